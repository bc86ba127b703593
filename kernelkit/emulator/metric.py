"""The score of a submission, by the columns of the competition's solution.csv.

It knows one metric for run-length encoded masks, in the columns `id, rle_mask`: the mean average
precision at different thresholds of the intersection over union (IoU). The score of an image is the
mean over t = 0.50, 0.55 … 0.95 of (IoU > t); a submission gets the mean over its images. If the
true mask is empty, an empty prediction scores 1 and any other 0. This is the plain formula over
sets of pixels. The version that many notebooks copy counts with np.histogram, which takes its range
from the data: it gives 0.6 for an empty prediction on a mask that covers 79% of the image.

Runs count the pixels from 1, down each column, column by column. If the solution has the column
`pixels`, the number of pixels of an image, runs beyond it are invalid.

A mask is a Python integer with one bit per pixel, because the tool's environment has no numpy. IoU
and t are compared as whole numbers, so an IoU of exactly 0.60 does not count at t = 0.60 [?].
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CELL_CHARACTERS = 1 << 28  # a mask as run lengths takes megabytes; Python allows 131,072
MAX_PIXELS = 2**26
"""Pixels of an image if the solution does not say; limits the memory that a mask takes."""
COLUMNS = ("id", "rle_mask")
USAGES = ("Public", "Private", "Ignored")
"""The score that a row is part of [D]; ignored rows are required but not scored."""
TWENTIETHS = range(10, 20)
"""The thresholds, times 20."""
SHOWN = 3
"""Number of examples that an error names."""


class InvalidCsv(Exception):
    """A solution or submission cannot be read or scored; the message says why."""


@dataclass(frozen=True)
class Solution:
    """By id: the true mask, the score that it is part of, and the pixels of the image if given."""

    masks: dict[str, int]
    usage: dict[str, str]
    pixels: dict[str, int]


@dataclass(frozen=True)
class Scores:
    """From 0 to 1; None if no row of the solution is part of that score."""

    public: float | None
    private: float | None


def read_solution(path: Path) -> Solution:
    """Read solution.csv: the columns of a submission, `Usage`, and optionally `pixels`.

    Raises InvalidCsv.
    """
    header, rows = read_table(path)
    known = [*COLUMNS, "Usage"]
    if header not in (known, [*known, "pixels"]):
        columns = f"{', '.join(header)} (known: {', '.join(known)})"
        raise InvalidCsv(f"no metric is known for the columns {columns}")
    try:
        pixels = {row[0]: int(row[3]) for row in rows} if "pixels" in header else {}
    except ValueError as error:
        raise InvalidCsv(f"pixels: {error}") from None
    masks, problems = _masks(((row[0], row[1]) for row in rows), pixels)
    usage = {row[0]: row[2] for row in rows}
    if wrong := sorted({u for u in usage.values() if u not in USAGES}):
        problems.append(f"Usage is {', '.join(map(repr, wrong))}, not one of {', '.join(USAGES)}")
    if problems or not masks:
        raise InvalidCsv(". ".join(problems) or "there are no rows")
    return Solution(masks, usage, pixels)


def score(solution: Solution, path: Path) -> Scores:
    """Both scores of a submission. Raises InvalidCsv, which lists all problems.

    Header and number of columns must match the sample; the order of the rows does not matter [D].
    Every id of the solution must appear once, and no other. Where Kaggle's wording is unknown,
    the messages are ours [?].
    """
    header, rows = read_table(path)
    if header != list(COLUMNS):
        raise InvalidCsv(f"The columns must be {', '.join(COLUMNS)}, not {', '.join(header)}")
    masks, problems = _masks(((row[0], row[1]) for row in rows), solution.pixels)
    missing = [key for key in solution.masks if key not in masks]
    unknown = [key for key in masks if key not in solution.masks]
    if missing:
        found = f"Unable to find {len(missing)} required key values in the 'id' column"  # [A]
        problems.append(f"{found}: {examples(missing)}")
    if unknown:
        problems.append(f"{len(unknown)} values in the 'id' column unknown: {examples(unknown)}")
    if problems:
        raise InvalidCsv(". ".join(problems))
    return Scores(*(_mean(solution, masks, usage) for usage in ("Public", "Private")))


def image_hits(truth: int, prediction: int) -> int:
    """How many of the ten thresholds the IoU exceeds: the score of an image, times 10."""
    if not truth:
        return 0 if prediction else 10
    common = (truth & prediction).bit_count()
    either = (truth | prediction).bit_count()
    return sum(20 * common > twentieths * either for twentieths in TWENTIETHS)


def decode(rle: str, pixels: int = MAX_PIXELS) -> int:
    """The pixels of `start length start length …` as bits; blank means none.

    Raises ValueError unless these are pairs of positive whole numbers, sorted, without overlap, and
    inside the image.
    """
    words = rle.split()
    if len(words) % 2 or not all(w.isascii() and w.isdigit() and len(w) < 10 for w in words):
        raise ValueError("not pairs of whole numbers")
    mask, end = 0, 1
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        if not start or not length:
            raise ValueError(f"the run '{start} {length}' has a zero; pixels count from 1")
        if start < end:
            raise ValueError(f"the run '{start} {length}' is not sorted or overlaps the one before")
        end = start + length
        if end > pixels + 1:
            raise ValueError(f"the run '{start} {length}' leaves the {pixels} pixels")
        mask |= ((1 << length) - 1) << (start - 1)
    return mask


def _mean(solution: Solution, masks: dict[str, int], usage: str) -> float | None:
    """The mean. Sums whole numbers, so that the order of the rows cannot change the last bit."""
    keys = [key for key, value in solution.usage.items() if value == usage]
    if not keys:
        return None
    return sum(image_hits(solution.masks[key], masks[key]) for key in keys) / (10 * len(keys))


def _masks(
    rows: Iterable[tuple[str, str]], pixels: dict[str, int]
) -> tuple[dict[str, int], list[str]]:
    """Masks by id, and the problems of the rows."""
    masks: dict[str, int] = {}
    twice: list[str] = []
    illegal: list[str] = []
    for key, rle in rows:
        if key in masks:
            twice.append(key)
        try:
            masks[key] = decode(rle, pixels.get(key, MAX_PIXELS))
        except ValueError as error:
            masks[key] = 0
            illegal.append(f"{key}: {error}")
    problems = [f"{len(twice)} duplicate values in the 'id' column: {examples(twice)}"]
    problems.append(f"{len(illegal)} run-length texts are not legal: {examples(illegal)}")
    return masks, [p for p, found in zip(problems, (twice, illegal), strict=True) if found]


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a csv, all as long as the header. Raises InvalidCsv."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidCsv(f"The file is not a csv: {error}") from None
    if not rows:
        raise InvalidCsv("The file is empty")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InvalidCsv(f"Row {number} has {len(row)} columns but {width} are expected")
    return rows[0], rows[1:]


def _rows(lines: Iterable[str]) -> Iterator[list[str]]:
    csv.field_size_limit(CELL_CHARACTERS)
    return (row for row in csv.reader(lines, strict=True) if row)


def examples(found: list[str]) -> str:
    """The first few, for an error."""
    return ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
