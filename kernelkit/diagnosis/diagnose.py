"""Turns the log of a failed run into a `Diagnosis`: the cause, the line in the repository, advice.

This module neither calls Kaggle nor prints. It does not trust a log: it reads only the end, line by
line, shortens long lines, uses no pattern with nested repetition, and removes control characters.

The run's manifest is the best source for an error, because it has the whole plain traceback. Only
the log shows that a kernel was killed, what a child process printed, and the numbers of cells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from kernelkit.diagnosis.documents import EndReport, RunReport, SentBundle
from kernelkit.diagnosis.rules import UNKNOWN_STEP, Facts, FailureCause, find_cause
from kernelkit.diagnosis.tracebacks import (
    HEADER,
    PAPERMILL,
    Call,
    Traceback,
    read_tracebacks,
)
from kernelkit.errors import ConfigError, LocalError
from kernelkit.kaggle.types import is_time_out
from kernelkit.notebook.runtime import MANIFEST_MARK
from kernelkit.storage import (
    TERMINAL_COMMANDS,
    read_file,
    sha256_of,
)

TAIL_LINES = 20_000  # a run ends at its failure; a recursion of 3,000 frames in IPython has 15,000
LINE_CHARACTERS = 1_000
MOST_FRAMES, FIRST_FRAMES = 40, 10  # shown of a deep recursion: its beginning and its end
MOST_RELATIVES = 20  # related exceptions, in a chain or a group
LAST_LINES = 50  # of a log without a traceback, searched for a cause
PRINTED_LINES = 8  # of the run, shown where its error says nothing


class Origin(StrEnum):
    """Whose code a frame is in."""

    PROJECT = "project"
    CELL = "cell"
    LIBRARY = "library"


@dataclass(frozen=True)
class Frame:
    """One call in a traceback, or `times` of them: a recursion, or calls within a library."""

    origin: Origin
    place: str
    """A path relative to the project, a cell's name, or a library's."""

    line: int | None = None
    function: str = ""
    source: str = ""
    """The line of code, if the traceback shows it."""

    times: int = 1

    @property
    def address(self) -> str:
        """For people: `src_salt/train.py:42`."""
        return self.place if self.line is None else f"{self.place}:{self.line}"


@dataclass(frozen=True)
class Diagnosis:
    """What is known about a failure."""

    cause: FailureCause
    error: str
    """`Type: message` as the run printed it, with all its lines."""

    frames: tuple[Frame, ...]
    """From the outermost to the innermost."""

    next_step: str
    notes: tuple[str, ...] = ()
    last_lines: tuple[str, ...] = ()
    """What the run printed last, where the error itself does not say what is wrong."""

    @property
    def headline(self) -> str:
        """The error in one line: its type and the first line of its message."""
        first, *rest = self.error.split("\n")
        words = (line.strip() for line in rest if any(map(str.isalnum, line)))
        return f"{first} {next(words, '')}".strip() if first.endswith(":") else first

    @property
    def summary(self) -> str:
        """Cause and place: `out of GPU memory, at pkg/train.py:42 in step: loss.backward()`."""
        frame = self.innermost
        printed = "\n  ".join(["\nThe run printed last:", *self.last_lines])
        printed = printed if self.last_lines else ""
        if frame is None:
            return f"{self.cause}{printed}"
        function = f" in {frame.function}" if frame.function else ""
        source = f": {frame.source}" if frame.source else ""
        return f"{self.cause}, at {frame.address}{function}{source}{printed}"

    @property
    def innermost(self) -> Frame | None:
        """The innermost frame in the project."""
        return next((f for f in reversed(self.frames) if f.origin == Origin.PROJECT), None)


_Roots = Mapping[str, str]
"""First part of a file's path in the run → the project folder that contains it."""

_CELLS = {
    "kernelkit_run.check_hardware": "the hardware cell",
    "kernelkit_run.write_source": "a source cell",
    "kernelkit_run.check_sources": "the check cell",
    "kernelkit_run.resolve": "the inputs cell",
    "kernelkit_run.call": "the run cell",
    "kernelkit_run.show_results": "the results cell",
    "kernelkit_run.finish": "the manifest cell",
}
"""A call that only one cell of the templates contains → that cell."""

_HOSTS = frozenset({"PapermillExecutionError", "DeadKernelError", "CellTimeoutError"})
"""Raised in the process that runs the notebook: their frames do not help."""

_SILENT = re.compile(
    r"SystemExit\b(?!: [^\d\s])|.*\bDeadKernelError\b|.*\bCalledProcessError\b"
    r"|.*\bRuntimeFault: The run ended without its declared outputs"
)
"""Errors that do not say what is wrong: the program has printed that before, if at all."""

_NOT_PRINTED_BY_THE_RUN = re.compile(
    r"Kernel died|Executing |Ending Cell |papermill\.exceptions\.|-{40,}$|\d+\.\d\ds - "
    r"|\S+interactiveshell\.py:\d+: UserWarning: To exit: |\s*warn\(\"To exit: "
    r"|An exception has occurred, use %tb|SystemExit\b"
)
"""Lines of papermill, IPython and the debugger."""

_PROGRAM_BEGINS = re.compile(r"\d+ files?, each with the sha256 of the package|\$ python ")
"""kernelkit prints it before the entry is called."""

_CHILD_FAILED = frozenset({"CalledProcessError", "ChildFailedError", "ProcessExitedException"})
"""They report that another process failed; that process has printed the real error before."""

# All other control characters, and characters that reverse or hide text.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_SOURCES = re.compile(r"(?:^|/)kernelkit-[0-9a-f]{12}/(.+)")
_DIGEST = re.compile(r"kernelkit digest ([0-9a-f]{64})")

_RUNTIME = "kernelkit_runtime"
_RUNTIME_PATH = re.compile(rf".*/{_RUNTIME}(?:\.py|/\w+\.py)")  # also of older runs
_LIBRARY_PATH = re.compile(
    r".*(?:/(?:site|dist)-packages/|/lib/python3(?:\.\d+)?/(?!(?:site|dist)-packages/))([^/]+)"
)
_CELL_PATH = re.compile(r"^<cell (\d+)>$|^<ipython-input-(\d+)-|/ipykernel_\d+/\d+\.py$")
_REMOTE = frozenset({"RemoteTraceback", "_RemoteTraceback"})
"""Not errors: multiprocessing and concurrent.futures wrap the text of a worker's error in them."""


def diagnose(
    log: str,
    *,
    manifest: RunReport | None = None,
    bundle: SentBundle | None = None,
    project: Path | None = None,
    failure: str = "",
) -> Diagnosis | None:
    """Explain the failure that the log of a run shows; None if it shows none.

    `log` is Kaggle's JSON array of pieces, complete or not, or the text itself. `manifest` is the
    run-manifest.json; without it, a line of the log serves. `bundle` is the bundle.json that was
    sent. `project` is the folder whose files are compared with those of the run. `failure` is
    Kaggle's message about a failed run.
    """
    text = _text(log)
    lines, printed = _tail(text)
    digest = _DIGEST.search(text)
    sent = bundle or SentBundle()
    if digest and sent.digest not in ("", digest[1]):
        sent = SentBundle()  # of another run
    reports = (one for one in (manifest, printed) if one and one != RunReport())
    same_run = (one for one in reports if sent == SentBundle() or one.digest == sent.digest)
    report = next(same_run, RunReport())
    if report.status == "complete" and not failure:
        return None
    found, facts = _find_failure(lines, report), Facts.of(report, sent, lines)
    if failure and not (found and found.sure):  # stopped from outside
        diagnosis = _from_message(_clean(failure), lines, report, facts)
        if diagnosis.cause != FailureCause.UNKNOWN or not found:
            return diagnosis
    return _explain(found, facts, sent, project) if found else None


def diagnose_folder(folder: Path, project: Path | None = None) -> Diagnosis | None:
    """Why the run that left a pulled folder failed; None if nothing in it reports a failure.

    Raises:
        ConfigError: the folder has no log.
        LocalError: the log cannot be read.
    """
    bundle, end = SentBundle.read(folder / "bundle.json"), EndReport.read(folder / "run.json")
    logs = [folder / f"{bundle.slug}.log", *sorted(folder.glob("*.log"))]
    log = next((path for path in logs if path.is_file()), None)
    if log is None:
        raise ConfigError(f"{folder} has no log", "Download it first: `kernelkit pull`.")
    manifest = RunReport.read(folder / "run-manifest.json")
    if trial := manifest.failed_trial:
        own = trial.model_dump(exclude={"number"})
        part = manifest.model_copy(update=own)
        found = diagnose("", manifest=part, bundle=bundle, project=project)
        where = f"in trial {trial.number}, with {trial.parameters}"
        return found and replace(found, notes=(where, *found.notes))
    if end.state == "complete" and manifest.status != "failed":
        return None
    failed = end.state not in ("", "complete")
    failure = (end.failure or f"Kaggle says {end.state}") if failed else ""
    return diagnose(
        _read_log(log), manifest=manifest, bundle=bundle, project=project, failure=failure
    )


def diagnose_log(path: Path, project: Path | None = None) -> Diagnosis | None:
    """The same for a log file alone: Kaggle's JSON, or its text.

    Raises:
        LocalError: the log cannot be read.
    """
    bundle = SentBundle.read(path.parent / "bundle.json")
    return diagnose(_read_log(path), bundle=bundle, project=project)


def _read_log(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace")
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}") from error


@dataclass
class _Failure:
    """The fatal traceback and the related ones, in the order of the log."""

    chain: list[Traceback]
    cell: str = ""
    sure: bool = True  # something says that the run ended with it
    notes: list[str] = field(default_factory=list)
    last_lines: tuple[str, ...] = ()
    """What the run printed before, if the error says nothing."""

    @property
    def shown(self) -> Traceback:
        """The most helpful one: that of a worker, else the first member of a group."""
        workers = [one for one in self.chain if one.within == "worker"]
        if workers:
            return workers[-1]
        numbers = [n for n, one in enumerate(self.chain) if one.link == "member" and one.frames]
        if not numbers:
            return self.head
        followers = takewhile(_follows, self.chain[numbers[0] + 1 :])
        return [self.chain[numbers[0]], *followers][-1]

    @property
    def head(self) -> Traceback:
        """The exception that ended the run."""
        return next((one for one in reversed(self.chain) if not one.within), self.chain[-1])


def _follows(traceback: Traceback) -> bool:
    return traceback.link in ("cause", "context")


def _text(log: str) -> str:
    """The text in Kaggle's JSON; a log that is not JSON is returned unchanged."""
    decoder = json.JSONDecoder(strict=False)
    between = re.compile(r"[\s,\[\]]*+")
    pieces: list[str] = []
    stream: Any = None
    position = 0
    while begin := between.match(log, position):
        position = begin.end()
        try:
            entry, after = decoder.raw_decode(log, position)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
            break
        position = after
        if pieces and stream != entry.get("stream_name") and not pieces[-1].endswith("\n"):
            pieces.append("\n")
        stream = entry.get("stream_name")
        pieces.append(entry["data"])
    return "".join([*pieces, log[position:]]) if pieces else log


def _tail(text: str) -> tuple[list[str], RunReport | None]:
    """The last lines without control characters, and the manifest that is printed in them."""
    lines: list[str] = []
    manifest: RunReport | None = None
    for line in text.rsplit("\n", TAIL_LINES)[-TAIL_LINES:]:
        if line.startswith(MANIFEST_MARK):
            read = RunReport.parse(line.removeprefix(MANIFEST_MARK))
            manifest = read if read != RunReport() else manifest
        else:
            lines.append(_clean(line))
    return lines, manifest


def _clean(line: str) -> str:
    """What a terminal would finally show of the line, without control characters."""
    last = line.rstrip("\r").rpartition("\r")[2]  # a progress bar overwrites itself
    shown = TERMINAL_COMMANDS.sub("", last[: 2 * LINE_CHARACTERS]).replace("\t", "    ")
    return _CONTROLS.sub("�", shown[:LINE_CHARACTERS]).rstrip()


def _find_failure(lines: list[str], report: RunReport) -> _Failure | None:
    """The traceback that ended the run, from the manifest or the log."""
    marks = [(n, found) for n, line in enumerate(lines) if (found := PAPERMILL.match(line))]
    began, cell = (marks[-1][0], marks[-1][1][1]) if marks else (len(lines), "")
    tracebacks = read_tracebacks(lines)
    hosts = [one.start for one in tracebacks if one.kind in _HOSTS]
    printed = _printed_lines(lines[: min([began, *hosts])], report)
    dead = _dead_kernel(tracebacks, lines, report)
    if dead:
        return dead
    errors = [one for one in tracebacks if one.error and one.kind not in _HOSTS]
    before = [one for one in errors if one.start < began]
    # IPython prints a group's traceback before papermill has the cell's end: it may stand before.
    failure = _last_chain([one for one in errors if one.start >= began] or before, cell)
    written = _from_report(report, cell)
    if written and (not marks or not failure or failure.shown.kind == written.shown.kind):
        failure = written
    if failure is None:
        return None
    child = _child(failure, before)
    failure = child or failure
    if _SILENT.match(failure.shown.error):
        failure.last_lines = printed
    failure.sure = bool(marks or written)
    if not failure.sure:  # then the end of the message is unknown
        last = failure.chain[-1]
        last.error = _first_line(last.error)
        if any(line.strip() for line in lines[last.end + 1 :]):
            failure.notes.append("the log continues after this: the run may have survived it")
    return failure


def _printed_lines(lines: list[str], report: RunReport) -> tuple[str, ...]:
    """The last lines that the program itself printed."""
    printed: list[str] = []
    settings = tuple(f"{name} = " for name in report.parameters)  # kernelkit prints them
    for line in reversed(lines):
        if _PROGRAM_BEGINS.match(line) or len(printed) == PRINTED_LINES:
            break
        if line.strip() and not _NOT_PRINTED_BY_THE_RUN.match(line):
            printed.append(line)
    while printed and settings and printed[-1].startswith(settings):
        printed.pop()
    return tuple(reversed(printed))


def _dead_kernel(
    tracebacks: list[Traceback], lines: list[str], report: RunReport
) -> _Failure | None:
    """A kernel that was killed leaves no traceback; a crash may leave one."""
    pattern = re.compile(r"(?:[\w.]*\.)?((?:DeadKernel|CellTimeout)Error)\b")
    found = next((n for n in reversed(range(len(lines))) if pattern.match(lines[n])), None)
    if found is None:
        return None
    crashes = [one for one in tracebacks if one.error.startswith("Fatal Python error")]
    failure = _Failure([crashes[-1] if crashes else Traceback(found, found, error=lines[found])])
    host = [one.start for one in tracebacks if one.kind in _HOSTS and one.end >= found]
    if not crashes:
        failure.last_lines = _printed_lines(lines[: min([found, *host])], report)
    return failure


def _from_report(report: RunReport, cell: str) -> _Failure | None:
    if report.status != "failed":
        return None
    lines, _ = _tail(report.traceback)
    if HEADER not in lines[0]:  # the log's line has only the end of a long traceback
        lines[0] = f"{HEADER}:"
    failure = _last_chain([one for one in read_tracebacks(lines) if one.error], cell)
    if failure:
        return failure
    error = "\n".join(_tail(report.error or "no reason given")[0])
    return _Failure([Traceback(error=error)], cell)


def _last_chain(tracebacks: list[Traceback], cell: str = "") -> _Failure | None:
    return next(_chains(tracebacks, cell), None)


def _chains(tracebacks: list[Traceback], cell: str) -> Iterator[_Failure]:
    """The tracebacks with those that each is chained to, the last one first."""
    end = len(tracebacks)
    for start in reversed(range(end)):
        if not tracebacks[start].link or start == 0:
            yield _Failure(tracebacks[max(start, end - MOST_RELATIVES) : end], cell)
            end = start


def _child(failure: _Failure, before: list[Traceback]) -> _Failure | None:
    """The failure in the child process that the error is about; it has printed that itself."""
    if failure.shown.kind not in _CHILD_FAILED:
        return None
    for child in _chains(before, failure.cell):
        paths = [call.path for call in child.shown.frames]
        if child.shown.kind not in _CHILD_FAILED and any(map(_SOURCES.search, paths)):
            child.notes.append(f"in a child process; the run then ended with {failure.head.kind}")
            return child
    return None


def _explain(
    found: _Failure,
    facts: Facts,
    bundle: SentBundle,
    project: Path | None,
) -> Diagnosis:
    shown = found.shown
    cause, next_step = find_cause(_causal_errors(found), facts)
    frames = _fold(_frame_of(call, bundle.roots, found.cell) for call in shown.frames)
    notes = list(found.notes)
    notes += _relatives(found, bundle.roots)
    if len(frames) > MOST_FRAMES:
        notes.append(f"{len(frames) - MOST_FRAMES} frames in the middle are not shown")
        frames = [*frames[:FIRST_FRAMES], *frames[FIRST_FRAMES - MOST_FRAMES :]]
    notes += _changed_files(shown, bundle, project)
    printed = found.last_lines
    return Diagnosis(cause, shown.error, tuple(frames), next_step, tuple(notes), printed)


def _relatives(found: _Failure, roots: _Roots) -> Iterator[str]:
    """The other errors of the same failure, each in a line."""
    shown, head = found.shown, found.head
    relations = {"worker": "in a worker; the main process ended", "group": "part of"}
    for number, other in enumerate(found.chain):
        if other is shown or other.kind in _REMOTE:
            continue
        if other is head:
            relation = relations.get(shown.within, "then")
        elif other.within == "group":
            relation = "also in the group"
        else:
            after = found.chain[number + 1].link if number + 1 < len(found.chain) else ""
            relation = "raised from" if after == "cause" else "while handling"
        place = _address(other, roots)
        yield f"{relation}: {_first_line(other.error)}{f', at {place}' if place else ''}"


def _from_message(failure: str, lines: list[str], report: RunReport, facts: Facts) -> Diagnosis:
    """Diagnose without a traceback, from Kaggle's message or the last lines of the log."""
    printed = _printed_lines(lines, report)
    if is_time_out(failure):
        step = facts.time_advice
        return Diagnosis(FailureCause.TIMED_OUT, failure, (), step, last_lines=printed)
    last = [line for line in lines[-LAST_LINES:] if line.strip()]
    for words in [failure, *reversed(last), "\n".join(last)]:
        cause, next_step = find_cause([words], facts)
        if cause != FailureCause.OTHER:
            error = failure if "\n" in words else words.strip()
            return Diagnosis(cause, error, (), next_step, last_lines=printed)
    return Diagnosis(FailureCause.UNKNOWN, failure, (), UNKNOWN_STEP, last_lines=printed)


def _causal_errors(found: _Failure) -> list[str]:
    """The error and what it was raised `from`, without errors that only happened before it."""
    direct = [
        one
        for one, after in zip(found.chain, found.chain[1:], strict=False)
        if after.link == "cause"
    ]
    members = [one for one in found.chain if one.link == "member"]
    errors = [one.error for one in (found.shown, found.head, *reversed(direct), *members)]
    # What was printed explains such an end better than the error itself. Before a process was
    # killed, only the very last lines can have to do with it.
    if found.shown.kind in ("SystemExit", *_CHILD_FAILED):
        return ["\n".join(found.last_lines), *errors]
    if found.shown.kind == "DeadKernelError":
        return ["\n".join(found.last_lines[-2:]), *errors]
    return errors


def _frame_of(call: Call, roots: _Roots, cell: str) -> Frame:
    function = call.function.partition("(")[0].strip()
    if own := _project_path(call.path, roots):
        return Frame(Origin.PROJECT, own, call.line, function, call.source, call.times)
    if numbered := _CELL_PATH.search(call.path):
        named = next((name for use, name in _CELLS.items() if use in call.source), None)
        number = numbered[1] or numbered[2] or cell.strip()
        place = named or (f"cell [{number}]" if number else "a cell")
        function = "" if function.startswith("<") else function
        return Frame(Origin.CELL, place, call.line, function, call.source, call.times)
    return Frame(Origin.LIBRARY, _library(call.path), times=call.times)


def _project_path(path: str, roots: _Roots) -> str | None:
    """The path in the project of a file of the run."""
    found = _SOURCES.search(path)
    if not found or _RUNTIME_PATH.fullmatch(path):
        return None
    return _below_root(found[1], roots)


def _below_root(path: str, roots: _Roots) -> str:
    return PurePosixPath(roots.get(path.partition("/")[0], "."), path).as_posix()


def _library(path: str) -> str:
    """The name of the library as it is imported, such as `torch`; else the path."""
    if path.startswith("<frozen "):
        return path.removeprefix("<frozen ").partition(".")[0].rstrip(">")
    if _RUNTIME_PATH.fullmatch(path):
        return _RUNTIME
    found = _LIBRARY_PATH.match(path)
    return found[1].removesuffix(".py") if found else path


def _fold(frames: Iterable[Frame]) -> list[Frame]:
    """Merge equal neighbors, and drop the library frames above the first cell."""
    folded: list[Frame] = []
    for frame in frames:
        if folded and replace(frame, times=1) == replace(folded[-1], times=1):
            folded[-1] = replace(frame, times=frame.times + folded[-1].times)
        else:
            folded.append(frame)
    outer = list(takewhile(lambda frame: frame.origin == Origin.LIBRARY, folded))
    return folded[len(outer) :] or folded


def _address(traceback: Traceback, roots: _Roots) -> str:
    """The innermost line of the project in a traceback."""
    for call in reversed(traceback.frames):
        if own := _project_path(call.path, roots):
            return f"{own}:{call.line}"
    return ""


def _changed_files(shown: Traceback, bundle: SentBundle, project: Path | None) -> Iterator[str]:
    """A note for each file of the traceback that has changed since the run."""
    if project is None:
        return
    carried = {found[1] for call in shown.frames if (found := _SOURCES.search(call.path))}
    for path in sorted(carried & bundle.hashes.keys()):
        own = _below_root(path, bundle.roots)
        try:
            now = sha256_of(project / own)
        except (OSError, ValueError):  # also a name that no file can have
            yield f"{own} is no longer in the project"
        else:
            if now != bundle.hashes[path]:
                yield f"{own} has changed since the run: its lines may have moved"


def _first_line(error: str) -> str:
    return Diagnosis(FailureCause.OTHER, error, (), "").headline
