"""Submit a verified run: check the file against the competition's sample, submit once, get a score.

A submission costs one of the day's, so the file is checked first. The check reads both files row
by row and keeps only the ids: memory grows with their number, and not with the masks. Rows are
numbered as in an editor: the header is row 1. Kaggle documents no size limit for a submission file,
so none is checked.
"""

from __future__ import annotations

import csv
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from kernelkit.errors import (
    CapacityError,
    ConfigError,
    KernelkitError,
    LocalError,
    RefusedError,
    VerificationError,
)
from kernelkit.kaggle.types import Scoring
from kernelkit.runs import store
from kernelkit.runs.manifest import FileProblems, RunAddress, SubmissionRecord
from kernelkit.runs.store import RunFolder
from kernelkit.runs.verify import verify

if TYPE_CHECKING:
    from kernelkit.kaggle.competitions import Competition
    from kernelkit.kaggle.kernels import Kaggle

NAMED = 3  # problems of one kind that are listed in full
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_RUN_LENGTHS = re.compile(r"\d+ \d+( \d+ \d+)*", re.ASCII)
_NOTHING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "inf", "-inf"})

OnEvent = Callable[[str], None]


@dataclass(frozen=True)
class SubmitOptions:
    """What to submit of a run, and how."""

    message: str = ""
    """Shown next to the score."""

    file: str = ""
    """Which output; by default the only csv."""

    competition: str = ""
    """By default the only competition source of the run."""

    sample: Path | None = None
    """The competition's sample submission; by default the one in `data`, else Kaggle's."""

    data: Path | None = None
    """A folder with one folder for each competition."""

    pixels: int | None = None
    """Of one image, if the submission contains run lengths."""

    code: bool = False
    """Submit the version of the kernel and not the file, as a code competition requires."""

    again: bool = False
    """Submit even if the same file was submitted before."""


@dataclass(frozen=True)
class Submitted:
    """A submission as it is recorded, and whether it was sent just now."""

    record: SubmissionRecord
    sent: bool

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {**self.record.document, "sent": self.sent}


@dataclass(frozen=True)
class _SubmissionFile:
    """An output that is to be submitted, and where to."""

    run: RunAddress
    competition: str
    file: Path
    name: str
    """Of the file among the run's outputs."""
    sha256: str

    @property
    def mark(self) -> str:
        """A part of the description, by which a submission is found again."""
        return f"kernelkit {self.run.slug} v{self.run.version} {self.run.digest[:12]}"

    def record(self, ref: int, description: str) -> SubmissionRecord:
        """The submission as it is recorded while it has no score."""
        return SubmissionRecord(
            ref=ref,
            competition=self.competition,
            **dict(self.run.address),
            file=self.name,
            sha256=self.sha256,
            description=description,
            submitted=store.now(),
            status=Scoring.PENDING,
            public_score="",
            private_score="",
            error="",
        )


def submit_once(
    kaggle: Kaggle, folder: RunFolder, options: SubmitOptions, *, on_event: OnEvent
) -> Submitted:
    """Submit an output of a verified run, and record the submission.

    A file that was submitted before is not sent again, unless `options.again` is set.

    Raises:
        VerificationError: the run is not complete and verified, or its file would get no score.
        ConfigError: it is not clear which file is submitted, or where to.
        CapacityError: the day's submissions are used up.
        RefusedError: Kaggle refuses, or the run is on another Kaggle.
    """
    candidate = _candidate(folder.address_at(kaggle.endpoint), folder, options)
    competition = kaggle.competition(candidate.competition)
    with store.submission_lock(folder.root, on_event):
        before = None if options.again else _submitted_before(competition, folder.root, candidate)
        if before is not None:
            on_event(f"{candidate.name} was already submitted, as {before.ref}: nothing is sent")
        record = before or _submit(competition, candidate, options, on_event)
        store.record_submission(folder.root, record)
    return Submitted(record, before is None)


def wait_for_score(
    kaggle: Kaggle,
    root: Path,
    submitted: Submitted,
    *,
    deadline: float | None = None,
    on_event: OnEvent,
) -> Submitted:
    """Wait until Kaggle has scored a submission, and record the score.

    Raises:
        DeadlineError: it has no score after `deadline` seconds; the scoring continues.
    """
    record = submitted.record
    on_event(f"waiting for the score of submission {record.ref}")
    found = kaggle.competition(record.competition).scored(record.ref, deadline)
    record = record.updated(
        status=found.status,
        public_score=found.public_score,
        private_score=found.private_score,
        error=found.error,
        asked=store.now(),
    )
    store.record_submission(root, record)
    return Submitted(record, submitted.sent)


def require_no_scoring_error(submitted: Submitted) -> None:
    """Check that Kaggle found no error in a submission.

    Raises:
        RefusedError: with Kaggle's reason.
    """
    record = submitted.record
    if record.status == Scoring.ERROR:
        raise RefusedError(
            f"submission {record.ref} was not scored: {record.error or 'Kaggle gives no reason'}",
            "Fix the submission and run again, or submit the same file again with --again.",
            submitted,
        )


def _candidate(run: RunAddress, folder: RunFolder, options: SubmitOptions) -> _SubmissionFile:
    verdict = verify(folder.path)
    end = folder.read_end()
    if end is None or not verdict.verified or not end.succeeded:
        if end is not None:
            store.recorded_state(folder)  # an unknown state is the more precise error
        raise VerificationError(
            f"{folder.path} is not a complete and verified run", "Pull it first: kernelkit pull."
        )
    sources = folder.read_bundle().kernel.competition_sources
    names = [options.competition] if options.competition else list(sources)
    if len(names) != 1:
        raise ConfigError(
            f"the run has {len(names)} competition sources: {', '.join(names) or 'none'}",
            "Name the competition: --competition SLUG.",
        )
    outputs = {entry.path: entry.sha256 for entry in verdict.outputs}
    wanted = options.file
    files = [name for name in outputs if (name == wanted if wanted else name.endswith(".csv"))]
    if len(files) != 1:
        raise ConfigError(
            f"which output is the submission? The run has: {', '.join(outputs) or 'none'}",
            "Name it: --file NAME.",
        )
    return _SubmissionFile(run, names[0], folder.path / files[0], files[0], outputs[files[0]])


def _submitted_before(
    competition: Competition, root: Path, candidate: _SubmissionFile
) -> SubmissionRecord | None:
    """A submission of the same bytes from here, or of the same run from another machine."""
    same = (candidate.competition, candidate.run.endpoint, candidate.sha256)
    for record in reversed(store.submissions(root)):
        if (record.competition, record.endpoint, record.sha256) == same:
            return record
    found = competition.marked(candidate.mark)
    return candidate.record(found[0].ref, found[0].description) if found else None


def _submit(
    competition: Competition, candidate: _SubmissionFile, options: SubmitOptions, on_event: OnEvent
) -> SubmissionRecord:
    name, run = candidate.competition, candidate.run
    terms = competition.terms()
    if not terms.entered:
        on_event(f"note: Kaggle does not say that this account has joined {name}")
    if terms.closed:
        on_event(f"note: Kaggle says that {name} accepts no submissions")
    left = competition.left_today(terms.daily)
    if left == 0:
        raise CapacityError(
            f"{name}: the submissions of today (UTC) are used up"
            + (f" ({terms.daily} per day)" if terms.daily else ""),
            f"Nothing was sent. Try again in {_until_midnight()}, after midnight UTC.",
        )
    on_event(
        "the number of submissions left today is unknown" if left is None else f"{left} left today"
    )
    _require_scorable(competition, candidate, options, on_event)
    mark = candidate.mark
    description = f"{options.message} ({mark})" if options.message else mark
    if options.code or terms.code_only:
        on_event(f"submitting {candidate.name} of {run.name} to {name}")
        ref = competition.submit_version(
            run.owner, run.slug, run.version, candidate.name, description, mark
        )
    else:
        on_event(f"submitting {candidate.name} to {name}")
        ref = competition.submit_file(candidate.file, description, mark)
    return candidate.record(ref, description)


def _require_scorable(
    competition: Competition, candidate: _SubmissionFile, options: SubmitOptions, on_event: OnEvent
) -> None:
    """Check the file against the competition's sample."""
    with tempfile.TemporaryDirectory(prefix="kernelkit-sample-") as folder:
        sample = _find_sample(competition, options, Path(folder))
        try:
            found = check(candidate.file, sample, options.pixels)
        except OSError as error:
            raise LocalError(f"{error.filename} cannot be read: {error.strerror}") from error
    for note in found.notes:
        on_event(f"note: {candidate.name}: {note}")
    if found.problems:
        raise VerificationError(
            f"{candidate.file} would not be scored:\n" + "\n".join(found.problems),
            "Nothing was sent. Fix the package, and run again.",
            FileProblems(problems=tuple(found.problems)),
        )
    on_event(f"{candidate.name}: {found.rows:,} rows, with the ids and columns of the sample")


def _find_sample(competition: Competition, options: SubmitOptions, folder: Path) -> Path:
    if options.sample is not None:
        return options.sample
    if options.data is not None:
        local = options.data / competition.name / "sample_submission.csv"
        if local.is_file():
            return local
    try:
        return competition.sample(folder)
    except KernelkitError as error:
        raise error.with_message(
            f"the submission cannot be checked without the competition's sample: {error}",
            f"Nothing was sent. Name the file: --sample FILE. {error.next_step}".strip(),
        ) from error


def _until_midnight() -> str:
    now = datetime.now(UTC)
    minutes = 24 * 60 - now.hour * 60 - now.minute
    return f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class SubmissionCheck:
    """What is wrong with a submission file (`problems`), and what is only unusual (`notes`)."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int
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
        return SubmissionCheck(tuple(found.lines()), (), 0)
    if header != expected.header:
        found.add("columns", f"row 1: the columns are {header}, the sample's are {expected.header}")
        return SubmissionCheck(tuple(found.lines()), (), 0)
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
    return SubmissionCheck(tuple(found.lines()), tuple(notes.lines()), count)


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
            found.add("header", f"row 1: {row} is not the header of a submission")
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
            reader = csv.reader(stream, strict=True)
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
