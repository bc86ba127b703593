"""The live view of a run, and its log: tables, bars and lines while a command waits."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kernelkit.console.output import (
    CELL_CHARACTERS,
    INTERRUPTED,
    as_called,
    detail,
    document,
    mode,
    print_text,
    say,
    shown,
    stderr,
    stdout,
    without_credentials,
)
from kernelkit.console.values import epoch_columns, number
from kernelkit.storage import counted, human_size, lines_printable, one_line, shortened

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress as ProgressBar

    from kernelkit.kaggle.types import LogEntry, Quota
    from kernelkit.notebook.runtime import RunEvent
    from kernelkit.runs.download import Progress
    from kernelkit.workflow import Event

TAIL_CHARACTERS = 1000  # of a log line under the live table
TAIL_LINES = 6  # of the log under the live table
LOG_CHARACTERS = 20_000  # of a log line; `kernelkit logs` prints all of it
EXPERIMENTS = 100  # rows of the live table


_RUNTIME_FILE = re.compile(r"(?:Writing|Overwriting) \S+/kernelkit_runtime/\w+\.py\s*")
"""A line of the log for each module of kernelkit's runtime."""

ABORTED = ("papermill.exceptions.", "Exception encountered at ")
"""Begin the traceback with which a log ends: the diagnosis is shorter, and `diagnose` shows it."""


class Reporter:
    """Reports what a command does: a live view on a terminal, plain lines elsewhere."""

    def __init__(self, live: Live | None = None) -> None:
        self._live = live
        self._experiments: dict[str, RunEvent | None] = {}
        self._epochs: float | None = None
        self._tail: list[str] = []
        self._quota: Quota | None = None
        self._started = time.monotonic()
        self._download: Progress | None = None
        self._aborted = False
        self._bar: ProgressBar | None = None

    def __call__(self, event: Event) -> None:
        """Report one event of a step."""
        from kernelkit.kaggle.types import LogEntry, Quota, Status
        from kernelkit.runs.download import Progress
        from kernelkit.runs.watch import EndedRun

        if isinstance(event, LogEntry):
            self._line(event)
        elif isinstance(event, EndedRun):
            return  # its state was reported
        elif isinstance(event, Status):
            seconds = time.monotonic() - self._started
            failure = f": {one_line(event.failure)}" if event.failure else ""
            detail(Text.assemble((event.word, "bold"), f" after {seconds:.0f} s{failure}"))
        elif isinstance(event, Quota):
            self._quota = event
            if not self._live:
                detail(quota_line(event))
        elif isinstance(event, Progress):
            self._show(event)
        else:
            detail(one_line(event))

    def finish(self) -> None:
        """Leave the last table of the epochs on the screen, and one line about the download."""
        if self._live:
            self._live.update(self.table() if self.seen_epochs else Text())
        if (progress := self._download) and progress.files:
            files = counted(progress.files, "file")
            detail(f"{files} complete, {human_size(progress.received)}")

    def _line(self, entry: LogEntry) -> None:
        from kernelkit.notebook.runtime import MANIFEST_MARK, parse_event

        if entry.text.startswith(MANIFEST_MARK):
            return  # of a failed run; the traceback after it is for people
        if _RUNTIME_FILE.fullmatch(entry.text) and not mode.verbose:
            return  # two dozen files that are the same in every run
        event = parse_event(entry.text)
        is_epoch = event is not None and event.kind == "epoch"
        if event and event.kind == "start":
            self._epochs = event.numbers.get("epochs")
            for name in event.experiments:
                self._keep(name, None)
        elif event and is_epoch and event.experiment is not None:
            self._keep(event.experiment, event)
        text = _epoch_line(event) if event and is_epoch else entry.text
        line = lines_printable(shortened(text, LOG_CHARACTERS).rstrip())
        self._tail = [*self._tail, line[:TAIL_CHARACTERS]][-TAIL_LINES:]
        if self._live:
            self._live.update(self._view())
        elif line and (event is None or is_epoch) and not mode.quiet:
            self._aborted = self._aborted or line.startswith(ABORTED)
            if mode.verbose or not self._aborted:
                print_text(Text(line))

    def _show(self, progress: Progress) -> None:
        """Update the one bar of the download."""
        self._download = progress
        if mode.verbose and progress.name:
            say(f"downloaded {progress.name}")
        if not self._live:
            return
        if self._bar is None:
            self._bar = _progress_bar()
            self._bar.add_task("")
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.received,
            total=progress.size or None,
            description=f"{progress.files} of {counted(progress.of, 'file')}",
        )
        self._live.update(self._bar.get_renderable())

    @property
    def seen_epochs(self) -> bool:
        """Whether the run reports epochs at all."""
        return bool(self._experiments)

    def _keep(self, name: str, event: RunEvent | None) -> None:
        """Remember the last epoch of an experiment; None if it has only been announced."""
        if name in self._experiments or len(self._experiments) < EXPERIMENTS:
            self._experiments[name] = event

    def seconds_left(self) -> float | None:
        """Seconds of the planned epochs, estimated from those before; None if unknown."""
        numbers = {
            name: event.numbers if event else {} for name, event in self._experiments.items()
        }
        took = {name: float(one["seconds"]) for name, one in numbers.items() if "seconds" in one}
        if not took:
            return None
        mean, left = sum(took.values()) / len(took), 0.0
        for name, one in numbers.items():
            epochs = one.get("epochs", self._epochs)
            if epochs is not None:
                left += max(0.0, float(epochs) - float(one.get("epoch", 0))) * took.get(name, mean)
        return left if 0 < left < math.inf else None

    def table(self) -> Table:
        """A row for each experiment, with a column for each number that they report."""
        events = [event for event in self._experiments.values() if event]
        shown = epoch_columns(events)
        table = Table("experiment", "epoch", *(label for label, _, _ in shown), box=None)
        for column in table.columns:  # a narrow terminal cuts names, and wraps nothing
            column.no_wrap = True
        table.columns[0].min_width = 8
        for name, event in self._experiments.items():
            numbers = event.numbers if event else {}
            epoch = f"{numbers.get('epoch', 0)}/{numbers.get('epochs', self._epochs or '?')}"
            table.add_row(
                Text(one_line(name, CELL_CHARACTERS)),
                Text(epoch),
                *(number(numbers.get(key), n) for _, key, n in shown),
            )
        return table

    def _view(self) -> RenderableType:
        from rich.console import Group

        tail = Text("\n".join(self._tail), style="dim", overflow="ellipsis")
        parts = [_duration_line(left)] if (left := self.seconds_left()) is not None else []
        parts += [quota_line(self._quota)] if self._quota else []
        details = [Text(" · ".join(parts))] if parts else []
        return Group(*([self.table()] if self.seen_epochs else []), *details, tail)


def _progress_bar() -> ProgressBar:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=stdout,
        auto_refresh=False,
    )


@contextmanager
def watching(on_interrupt: str) -> Iterator[Reporter]:
    """A reporter for a long wait. Ctrl-C ends it with the message `on_interrupt`."""
    from rich.live import Live

    visible = stdout.is_terminal and not (mode.as_json or mode.quiet)
    live = Live(console=stdout, refresh_per_second=4) if visible else None
    reporter = Reporter(live)
    with interruptible(on_interrupt), live or nullcontext():
        try:
            yield reporter
        finally:
            reporter.finish()


@contextmanager
def following(
    entries: Sequence[LogEntry], tail: int | None, on_interrupt: str
) -> Iterator[Callable[[Event], None]]:
    """Print the last lines of a log, and then what a watch adds to it; `--json` prints all of it.

    A watch begins with the first line again, so what is printed already is left out.
    """
    from kernelkit.kaggle.types import LogEntry

    every: list[LogEntry] = []
    left = sum(len(entry.text) for entry in entries)
    _print_log(_last_lines("".join(entry.text for entry in entries), tail))

    def print_new(event: Event) -> None:
        nonlocal left
        if isinstance(event, LogEntry):
            every.append(event)
            _print_log(event.text[left:])
            left = max(0, left - len(event.text))

    with interruptible(on_interrupt):
        yield print_new
    document([vars(entry) for entry in every])


def log(entries: Sequence[LogEntry], tail: int | None = None) -> None:
    """The log of a run: as it is, or without control characters on a terminal."""
    document([vars(entry) for entry in entries])
    _print_log(_last_lines("".join(entry.text for entry in entries), tail))


def _print_log(text: str) -> None:
    if not mode.as_json:
        sys.stdout.write(shown(text) if sys.stdout.isatty() else without_credentials(text))
        sys.stdout.flush()


def _last_lines(text: str, count: int | None) -> str:
    lines = text.splitlines(keepends=True)
    return text if count is None else "".join(lines[max(0, len(lines) - count) :])


@contextmanager
def interruptible(on_interrupt: str) -> Iterator[None]:
    """Let Ctrl-C end the command with the message `on_interrupt`."""
    try:
        yield
    except KeyboardInterrupt:
        called, command = as_called(on_interrupt), on_interrupt.rpartition(": ")[2]
        # Scripts look for the command itself, which the name of a make target would replace.
        say(Text(called if command in called else f"{called} ({command})"), to=stderr)
        document({"error": "interrupted", "next": on_interrupt, "exit_code": INTERRUPTED})
        raise typer.Exit(INTERRUPTED) from None


def _epoch_line(event: RunEvent) -> str:
    known = event.numbers
    shown = [f"{label} {number(known[key], n)}" for label, key, n in epoch_columns([event])]
    epoch = f"epoch {known.get('epoch', '?')}/{known.get('epochs', '?')}"
    return "  ".join([event.experiment or "", epoch, *shown]).strip()


def _duration_line(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s of epochs left"
    return f"about {seconds / 60:.0f} min of epochs left"


def quota_line(quota: Quota) -> str:
    """The hours of the GPU quota, in one line."""
    refresh = f" until {quota.refresh:%a %H:%M} UTC" if quota.refresh else ""
    reserved = f", {quota.reserved:.1f} h reserved" if quota.reserved else ""
    return f"GPU quota: {quota.used:.1f} of {quota.allowed:.0f} h used{reserved}{refresh}"
