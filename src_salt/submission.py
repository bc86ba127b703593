"""submission.csv: run-length encoding both ways, and the check of the file.

A mask is written as `start length start length …`: pixels are counted from 1, down each column and
then column by column from the left; runs are sorted and do not touch. An empty mask is blank.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from src_salt.config import SaltError
from src_salt.outputs import whole

Mask = npt.NDArray[np.bool_]

HEADER = ["id", "rle_mask"]


class SubmissionError(SaltError):
    """A run-length text or a submission file that the competition would not accept."""


def encode(mask: Mask) -> str:
    """The run-length text of a mask (H, W) of bool."""
    pixels = np.zeros(mask.size + 2, np.int8)  # a zero at both ends closes the outer runs
    pixels[1:-1] = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1  # starts and first pixels after, in turn
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def decode(rle: str, shape: tuple[int, int]) -> Mask:
    """The mask of a run-length text; SubmissionError where it is not legal for that shape."""
    starts, ends = _runs(rle, shape[0] * shape[1])
    steps = np.zeros(shape[0] * shape[1] + 1, np.int8)
    steps[starts] += 1
    steps[ends] -= 1
    mask: Mask = np.cumsum(steps[:-1]).astype(bool).reshape(shape, order="F")
    return mask


def _runs(rle: str, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs as half-open ranges counted from 0, proven sorted, apart and within `size`."""
    words = rle.split()
    legal = all(word.isascii() and word.isdigit() and len(word) < 10 for word in words)
    if not legal or len(words) % 2:
        raise SubmissionError(f"run-length text {rle[:40]!r} is not pairs of whole numbers.")
    numbers = np.array(words, dtype=np.int64)
    starts, ends = numbers[::2] - 1, numbers[::2] - 1 + numbers[1::2]
    if (numbers == 0).any() or (ends > size).any() or (starts[1:] < ends[:-1]).any():
        raise SubmissionError(
            f"run-length text {rle[:40]!r} is not sorted, overlaps or leaves the {size} pixels."
        )
    return starts, ends


def write_submission(
    path: Path, ids: Sequence[str], masks: Iterable[Mask], sample_submission: Path
) -> None:
    """Write `id,rle_mask`, checked against sample_submission.csv before it takes its place."""
    with whole(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for image_id, mask in zip(ids, masks, strict=True):
                writer.writerow([image_id, _encode_checked(image_id, mask)])
        check_submission(temporary, sample_submission)


def _encode_checked(image_id: str, mask: Mask) -> str:
    rle = encode(mask)
    if not np.array_equal(decode(rle, (mask.shape[0], mask.shape[1])), mask):
        raise SubmissionError(f"the mask of {image_id} does not survive its encoding.")
    return rle


def check_submission(
    path: Path, sample_submission: Path, shape: tuple[int, int] = (101, 101)
) -> None:
    """SubmissionError unless ids and their order are the sample's and every mask is legal."""
    header, *rows = _rows(path)
    if header != HEADER:
        raise SubmissionError(f"{path}: the header is {header}, not {HEADER}.")
    expected = [row[0] for row in _rows(sample_submission)[1:]]
    if [row[0] for row in rows] != expected:
        raise SubmissionError(f"{path}: ids or their order are not those of {sample_submission}.")
    for image_id, rle in rows:
        try:
            _runs(rle, shape[0] * shape[1])
        except SubmissionError as error:
            raise SubmissionError(f"{path}: {image_id}: {error}") from error


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row for row in csv.reader(file) if row]
