"""Tables for the notebook: as HTML, and as text for terminals and Kaggle's log."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

HEAD_ROWS = 5  # of a csv
HEAD_COLUMNS = 10
HEAD_CHARACTERS = 1 << 20  # read of a csv: one cell may hold a whole mask
LINE_CHARACTERS = 100_000  # Python reads cells of at most 131,072
CELL_SHOWN = 60  # characters


@dataclass(frozen=True)
class Table:
    """A caption, the names of the columns, and the texts of the cells."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: int | None = None
    """The row to emphasize."""

    note: str = ""
    """Below the table, such as what was left out."""

    @property
    def html(self) -> str:
        """With everything escaped: a cell may hold anything."""
        head = "".join(f"<th>{escape(_cut(name))}</th>" for name in self.columns)
        lines = []
        for number, row in enumerate(self.rows):
            tag = "b" if number == self.best else "span"
            cells = "".join(f"<td><{tag}>{escape(_cut(cell))}</{tag}></td>" for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        return (
            f"<p><b>{escape(self.caption)}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{note}"
        )

    @property
    def text(self) -> str:
        """In columns of equal width."""
        lines = [[_plain(cell) for cell in row] for row in [self.columns, *self.rows]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        ]
        marks = ["", *("  (best)" if n == self.best else "" for n in range(len(self.rows)))]
        body = [f"  {line}{mark}" for line, mark in zip(padded, marks, strict=True)]
        return "\n".join([self.caption, *body, *([f"  {self.note}"] if self.note else [])])


def number_text(value: float | None) -> str:
    """A number in a few digits; empty for None."""
    if value is None:
        return ""
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10 else f"{value:.5g}"


def csv_head(path: Path, name: str) -> Table | None:
    """The first rows of a csv; None where it is not a UTF-8 table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            content = stream.read(HEAD_CHARACTERS)
            is_whole = not stream.read(1)
        lines = content.splitlines(keepends=True)
        complete = lines if is_whole or len(lines) <= 2 else lines[:-1]
        short = (line[:LINE_CHARACTERS] for line in complete)
        rows = list(itertools.islice(csv.reader(short), HEAD_ROWS + 2))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if not rows or not rows[0]:
        return None
    columns, body = rows[0], rows[1 : HEAD_ROWS + 1]
    hidden = max(len(columns) - HEAD_COLUMNS, 0)
    width = min(len(columns), HEAD_COLUMNS)
    shown = [[*row, *[""] * width][:width] for row in body]
    is_cut = len(rows) > HEAD_ROWS + 1 or not is_whole
    shown_rows = f"first {_rows(len(body))}" if is_cut else _rows(len(body))
    note = f"and {hidden} more columns" if hidden else ""
    size = path.stat().st_size
    return Table(f"{name} ({size:,} B): {shown_rows}", columns[:width], shown, note=note)


def _rows(count: int) -> str:
    return f"{count} row" + ("s" if count != 1 else "")


def _cut(text: str) -> str:
    return text if len(text) <= CELL_SHOWN else f"{text[: CELL_SHOWN - 1]}…"


def _plain(text: str) -> str:
    """Text for a terminal: one line, without control characters."""
    return "".join(c if c.isprintable() else "·" for c in _cut(text))
