"""Compare a submission file with the competition's sample: columns, ids, and the form of values.

The check reads both files row by row and keeps only the ids: memory grows with their number, and
not with the masks. Rows are numbered as in an editor: the header is row 1. Kaggle documents no size
limit for a submission file, so none is checked.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kernelkit.errors import ConfigError
from kernelkit.notebook.manifest import Document
from kernelkit.storage import csv_rows

NAMED = 3  # problems of one kind that are listed in full
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_RUN_LENGTHS = re.compile(r"\d+ \d+( \d+ \d+)*", re.ASCII)
_NOTHING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "inf", "-inf"})


class SubmissionCheck(Document):
    """What is wrong with a submission file (`problems`), and what is only unusual (`notes`)."""

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rows: int = 0
    """Number of rows below the header."""


def check(submission: Path, sample: Path, pixels: int | None = None) -> SubmissionCheck:
    """Compare a submission with the competition's sample; `pixels` is H * W of one image.

    A column contains run lengths if the sample's values are pairs of numbers, or if `pixels` is
    given and the sample leaves it blank. Another order than the sample's is a note: Kaggle finds
    the rows by their ids.

    Raises:
        ConfigError: the sample itself is unusable.
        OSError: a file cannot be read.
    """
    expected = _read_sample(sample)
    found, rows = _Findings(), _Rows(submission)
    if (header := rows.header(found)) is None:
        return SubmissionCheck(problems=tuple(found.lines()))
    if header != expected.header:
        ours, theirs = _row_shown(header), _row_shown(expected.header)
        found.add("columns", f"row 1: the columns are {ours}, the sample's are {theirs}")
        return SubmissionCheck(problems=tuple(found.lines()))
    rules = [_rule(expected, column, pixels) for column in range(len(header))]
    seen: dict[str, int] = {}
    notes, order, differs, count = _Findings(), iter(expected.ids), False, 0
    for number, row in rows.rest(found):
        if not row:
            notes.add("empty rows", f"row {number} is empty")
            continue
        count += 1
        name, where = row[0], f"row {number} (id {_shown(row[0])})"
        if len(row) != len(header):
            found.add("rows of the wrong length", f"{where}: {len(row)} cells, not {len(header)}")
        if not all(map(_is_text, row)):
            found.add("rows that are not UTF-8 text", f"{where}: not UTF-8 text")
        if name in seen:
            found.add("ids given twice", f"{where}: the id is already in row {seen[name]}")
        elif name not in expected.ids:
            found.add("ids that the sample lacks", f"{where}: the sample has no such id")
        seen.setdefault(name, number)
        if not differs and name != next(order, None):
            differs = True
            notes.add("order", f"{where}: from here on the order differs from the sample's")
        for title, rule, cell in zip(header[1:], rules[1:], row[1:], strict=False):
            if problem := rule(cell):
                found.add(f"bad values of {title}", f"{where}: {title}: {problem}")
    if not rows.broken:
        for name, number in expected.ids.items():
            if name not in seen:
                line = f"id {_shown(name)} is missing (row {number} of the sample)"
                found.add("missing ids", line)
    return SubmissionCheck(problems=tuple(found.lines()), notes=tuple(notes.lines()), rows=count)


@dataclass(frozen=True)
class _Sample:
    """What every submission must look like."""

    header: list[str]
    ids: dict[str, int]
    """Id → its row."""
    numeric: list[bool]
    """By column: whether all values of the sample are numbers."""
    blank: list[bool]
    """By column: whether the sample has blanks, or words such as `nan`."""
    run_lengths: list[bool]
    """By column: whether all values of the sample that are not blank are run lengths."""
    empty: list[bool]
    """By column: whether the sample has nothing but blanks."""


def _read_sample(path: Path) -> _Sample:
    found, rows = _Findings(), _Rows(path)
    header = rows.header(found)
    if header is None:
        raise ConfigError(f"the sample {path}: {'; '.join(found.lines())}", _ANOTHER_SAMPLE)
    found = _Findings()  # a byte-order mark is accepted here: the file is the competition's
    width = len(header)
    numeric, blank = [True] * width, [False] * width
    run_lengths, empty = [True] * width, [True] * width
    ids: dict[str, int] = {}
    for number, row in rows.rest(found):
        if not row:
            continue
        if len(row) != len(header) or row[0] in ids:
            error = "repeats an id" if row[0] in ids else "has another length than the header"
            raise ConfigError(f"the sample {path}: row {number} {error}", _ANOTHER_SAMPLE)
        ids[row[0]] = number
        for column, cell in enumerate(row):
            if cell.strip().lower() in _NOTHING:
                blank[column] = True
                continue
            empty[column] = False
            numeric[column] &= _is_number(cell)
            run_lengths[column] &= _RUN_LENGTHS.fullmatch(cell.strip()) is not None
    if found.lines() or not ids:
        raise ConfigError(
            f"the sample {path}: {'; '.join(found.lines()) or 'no rows'}", _ANOTHER_SAMPLE
        )
    return _Sample(header, ids, numeric, blank, run_lengths, empty)


_ANOTHER_SAMPLE = "Name the competition's own file: --sample FILE."


def _rule(sample: _Sample, column: int, pixels: int | None) -> Callable[[str], str]:
    """A function that says what is wrong with a value of a column; empty if nothing is."""
    unclear = sample.empty[column]
    if pixels is not None if unclear else sample.run_lengths[column]:
        return lambda cell: _run_length_problem(cell, pixels)
    numeric, blank = sample.numeric[column], sample.blank[column]

    def problem(cell: str) -> str:
        if cell.strip().lower() in _NOTHING:
            return "" if blank else f"{_shown(cell)} is not a value"
        return f"{_shown(cell)} is not a number" if numeric and not _is_number(cell) else ""

    return problem


def _run_length_problem(text: str, pixels: int | None) -> str:
    """What is wrong with run lengths: sorted pairs `start length`, from 1, without overlaps.

    Adjacent runs are valid. A blank means an empty mask.
    """
    words = text.split()
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        return f"{_shown(text)} is not whole numbers"
    if len(words) % 2:
        return f"{len(words)} numbers are not pairs of start and length"
    end = 1
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        if not start or not length:
            return f"the run '{start} {length}' has a zero; pixels count from 1"
        if start < end:
            return f"the run '{start} {length}' is not sorted, or overlaps the run before"
        end = start + length
        if pixels is not None and end > pixels + 1:
            return f"the run '{start} {length}' ends outside the {pixels:,} pixels of the image"
    return ""


class _Rows:
    """The rows of a csv with their numbers. `broken` is set if the rest cannot be read."""

    def __init__(self, path: Path) -> None:
        self.broken = False
        self._rows = self._read(path)

    def header(self, found: _Findings) -> list[str] | None:
        """The first row; None if it is unusable."""
        for _, row in self.rest(found):
            if row and row[0].startswith("\ufeff"):
                found.add("byte-order mark", "row 1: the file begins with a byte-order mark (BOM)")
                row[0] = row[0].removeprefix("\ufeff")
            if not all(map(_is_text, row)):
                found.add("header", "row 1: not UTF-8 text")
                return None
            if len(row) > 1:
                return row
            found.add("header", f"row 1: {_row_shown(row)} is not the header of a submission")
            return None
        found.add("header", "the file is empty")
        return None

    def rest(self, found: _Findings) -> Iterator[tuple[int, list[str]]]:
        """The remaining rows; an error in the csv ends them, and is added to `found`."""
        while True:
            try:
                yield next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                self.broken = True
                found.add("csv", f"row {self._line + 1} or below: not a readable csv ({error})")
                return

    def _read(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        # Bytes that are not UTF-8 become lone surrogates, so that the row can be reported.
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            reader = csv_rows(stream, strict=True)
            self._line = 0
            for row in reader:
                yield self._line + 1, row
                self._line = reader.line_num


@dataclass
class _Findings:
    """Problems by kind; the first few of each kind are kept."""

    _kinds: dict[str, list[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, line: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= NAMED:
            self._kinds.setdefault(kind, []).append(line)

    def lines(self) -> list[str]:
        lines = []
        for kind, named in self._kinds.items():
            lines += named
            if (more := self._counts[kind] - len(named)) > 0:
                lines.append(f"… and {more:,} more {kind}")
        return lines


def _is_text(cell: str) -> bool:
    """Whether it contains neither NUL nor the lone surrogates of bytes that are not UTF-8."""
    if not cell.isascii() and any("\ud800" <= char <= "\udfff" for char in cell):
        return False
    return "\0" not in cell


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell.strip()) is not None and math.isfinite(float(cell))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _row_shown(row: list[str]) -> str:
    more = [f"… and {len(row) - 20:,} more"] if len(row) > 20 else []
    return f"[{', '.join([*map(_shown, row[:20]), *more])}]"
