"""Everything that a person reads: messages, tables, the live view, errors; and `--json`.

This is the only module that prints. With `--json` it prints one document to stdout and nothing
else. With `--quiet` it prints the result of a command and errors. Prose wraps between words;
paths and commands stay whole, so that they can be copied.

Everything passes through `shown`: no control character and no credential gets to the terminal, and
no text fills it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
import traceback
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kernelkit.errors import KernelkitError
from kernelkit.printable import (
    LINE_CHARACTERS,
    lines_printable,
    machine_secrets,
    one_line,
    printable,
    shortened,
    without_secrets,
    without_signatures,
)
from kernelkit.storage import counted, human_size, read_model

if TYPE_CHECKING:
    from pydantic import JsonValue
    from rich.live import Live
    from rich.progress import Progress as ProgressBar

    from kernelkit.bundle.image import Availability
    from kernelkit.config import ConfigValue
    from kernelkit.diagnosis.diagnose import Diagnosis, Frame
    from kernelkit.doctor.checks import CheckResult
    from kernelkit.doctor.probe import Report
    from kernelkit.kaggle.types import LogEntry, Quota, Status
    from kernelkit.notebook.edits import SyncPlan
    from kernelkit.notebook.layout import SizeEntry
    from kernelkit.project.init import InitPlan
    from kernelkit.runs.download import Progress, PulledRun
    from kernelkit.runs.history import RunDetails, RunDifference, RunRow
    from kernelkit.runs.manifest import Verdict
    from kernelkit.runs.metric import Metric
    from kernelkit.runs.push import Pushed
    from kernelkit.runs.store import RunFolder
    from kernelkit.runs.submit import Submitted
    from kernelkit.runs.watch import LogEvent
    from kernelkit.testing.prove import Proof
    from kernelkit.workflow import Event, RenderedKernel

TAIL_CHARACTERS = 1000  # of a log line under the live table
TAIL_LINES = 6  # of the log under the live table
LOG_CHARACTERS = 20_000  # of a log line; `kernelkit logs` prints all of it
RESULT_FILES = 20  # tables, and images, of a run
RESULT_LINES = 200  # of all its tables
RESULT_BYTES = 1 << 14  # of one table
BUDGET_ROWS = 25  # files listed by `render`
LEFT_OUT_NAMED = 5  # files listed for each reason
OUTPUTS_SHOWN = 50  # a folder of outputs may hold thousands
UNDECLARED_NAMED = 20  # files that are not declared as outputs; --json lists all
ERROR_LINES = 8  # of an exception's message; --json has more
TRACEBACK_LINES = 1000  # of a bug
ERROR_MESSAGE_LINES = 200  # of kernelkit's own errors, such as all problems of a preflight
NOTE = ("note: ", "bold yellow")  # its label and style
INTERRUPTED = 130
STARTED = time.monotonic()
CELL_CHARACTERS = 400  # of a table's cell
NAME_CHARACTERS = 10  # of a cell that is cut because the terminal is narrow
WIDE = 200  # columns of a table that goes to a file or another program
EXPERIMENTS = 100  # rows of the live table
EPOCH_COLUMNS = (  # of an epoch's event: heading, key, digits
    ("train loss", "train_loss", 4),
    ("val loss", "val_loss", 4),
    ("val IoU", "val_iou", 4),
    ("val score", "val_score", 4),
    ("s", "seconds", 1),
)
NOT_MEASURED = frozenset({"epoch", "epochs", *(key for _, key, _ in EPOCH_COLUMNS)})
MORE_COLUMNS = 12  # other numbers of an epoch
EXPENDABLE = ("owner", "digest", "sha256", "commit", "here")
"""Columns that a table drops, in this order, before a narrow terminal cuts names."""

ABORTED = ("papermill.exceptions.", "Exception encountered at ")
"""Begin the traceback with which a log ends: the diagnosis is shorter, and `diagnose` shows it."""


class SafeConsole(Console):
    """A console whose text is `shown`, whoever made it; only rich moves the cursor."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of anything printed, with safe texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


stdout = SafeConsole()
stderr = SafeConsole(stderr=True)


@dataclass
class Mode:
    """What the shared options ask for, and what must not be printed."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    secrets: Sequence[str] | None = None
    """Pieces of this machine's credentials; None until something is printed."""


mode = Mode()


def configure(*, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    """Obey `--json`, `--quiet` and `--verbose` from now on."""
    mode.as_json, mode.quiet, mode.verbose = as_json, quiet, verbose
    mode.secrets = None
    stdout.quiet = stderr.quiet = as_json


def document(content: object) -> None:
    """Print the document of `--json`, if it is asked for."""
    if mode.as_json:
        text = json.dumps(content, indent=1, default=str)
        sys.stdout.write(_without_credentials(text) + "\n")


def shown(text: str) -> str:
    """A text as it may be printed: without control characters and credentials."""
    return _hidden(lines_printable(text))


def _hidden(text: str) -> str:
    """A text of kernelkit without credentials, and without what makes an address secret."""
    return without_signatures(_without_credentials(text))


def _without_credentials(text: str) -> str:
    """Data of a run without this machine's credentials; its addresses stay as they are."""
    if mode.secrets is None:
        mode.secrets = machine_secrets()
    return without_secrets(text, mode.secrets)


def _safe(text: Text) -> Text:
    """A styled text as it may be printed."""
    if shown(text.plain) == text.plain:
        return text
    pieces = ((shown(one.text), one.style or "") for one in text.render(stdout))
    return Text.assemble(*pieces, style=text.style)


def report(error: BaseException, *, as_json: bool) -> int:
    """Report why a command failed; returns the exit code.

    An exception that is not a `KernelkitError`, an interrupt or a wrong command line is a bug of
    kernelkit: its traceback is printed.
    """
    configure(as_json=as_json)
    details: Mapping[str, object] = {}
    show: Callable[[], None] | None = getattr(error, "show", None)  # click's UsageError
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        code, message, next_step = INTERRUPTED, "interrupted", ""
        stderr.print("interrupted")
    elif isinstance(error, KernelkitError):
        code, message, next_step = error.exit_code, str(error), error.next_step
        details = error.details.document if error.details else {}
        _print_error(message, next_step)
    elif show is not None:
        code, message, next_step = 2, error.format_message(), _usage_advice(error)  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":  # no command: its message is the help
            if not as_json:
                show()
        else:
            _print_error(message, next_step)
    else:
        code, next_step = 1, "Report this bug of kernelkit, with the traceback."
        message = f"{type(error).__name__}: {error}"
        text = "".join(traceback.format_exception(error))
        details = {"traceback": _hidden(text)}
        if not as_json:
            sys.stderr.write(shown("\n".join(_beginning(text, TRACEBACK_LINES))))
        _print_error("this is a bug of kernelkit", "Please report it, with the traceback.")
    message, next_step = _hidden(message), _hidden(next_step)
    document({"error": message, "next": next_step, **details, "exit_code": code})
    return code


def as_called(text: str) -> str:
    """A text whose commands begin as the user called them, such as `.venv/bin/kernelkit push`."""
    return re.sub(r"(?:(?<=`)|(?<=: )|^)kernelkit (?=[a-z])", f"{_program()} ", text)


def _program() -> str:
    """The path of this program, unless the shell finds it by its name."""
    path = Path(sys.argv[0])
    if path.name != "kernelkit" or len(path.parts) == 1:
        return "kernelkit"
    found = shutil.which("kernelkit")
    if found and path.samefile(found):
        return "kernelkit"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _usage_advice(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"Show the usage: `{context.command_path if context else 'kernelkit'} --help`"


def _print_error(message: str, next_step: str = "") -> None:
    text = "\n".join(_beginning(message, ERROR_MESSAGE_LINES))
    say(Text.assemble(("error: ", "bold red"), text), to=stderr, indent=7)
    if next_step:
        advice = one_line(as_called(next_step))
        say(Text.assemble(("next:  ", "bold"), advice), to=stderr, indent=7)


def _beginning(text: str, most: int) -> list[str]:
    """The first lines of a text, each cut where it is too long, and how many more there are."""
    lines = text.split("\n")
    more = [f"… and {len(lines) - most:,} more lines"] if len(lines) > most else []
    return [*map(shortened, lines[:most]), *more]


def say(
    message: str | Text,
    style: str = "",
    *,
    to: Console | None = None,
    indent: int = 0,
) -> None:
    """Print prose: on a terminal it wraps between words, and paths and commands stay whole.

    `indent` is the number of spaces before the second and all further lines.
    """
    console = to or stdout
    text = _safe(Text(message, style) if isinstance(message, str) else message)
    if console.is_terminal:
        text = _wrapped(text, console.width, indent)
    console.print(text, soft_wrap=True)


_WORD = re.compile(
    r"(?:`[^`\n]+`|(?<=: )(?:kernelkit|git|cp|chmod) [^\n]+$|\S)+[^\S\n]*|\s", re.MULTILINE
)
"""What stays on one line: a word, or a command in backticks or at the end of a line."""


def _wrapped(text: Text, width: int, indent: int) -> Text:
    column, offsets = 0, []
    for word in _WORD.finditer(text.plain):
        if word[0] == "\n":
            column = 0
        elif column and column + cell_len(word[0].rstrip()) > width:
            offsets.append(word.start())
            column = indent + cell_len(word[0])
        else:
            column += cell_len(word[0])
    *lines, last = text.divide(offsets)
    for line in lines:
        line.rstrip()
    return Text("\n" + " " * indent).join([*lines, last])


def _detail(message: str | Text, style: str = "") -> None:
    """Prose that `--quiet` leaves out."""
    if not mode.quiet:
        say(message, style)


def _print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    right: Sequence[str] = (),
    last: str = "",
) -> None:
    """Print a table, without empty columns; a narrow terminal loses EXPENDABLE ones first.

    If it is still too wide, the longest names are cut. `--verbose` drops and cuts nothing. `right`
    names the columns of numbers, `last` is the style of the last row.
    """
    columns = {
        name: [_cell(row[n]) for row in rows]
        for n, name in enumerate(headings)
        if any(str(row[n]) for row in rows)
    }
    if not stdout.is_terminal:  # else rich takes 80 columns
        stdout.width = WIDE
    if not mode.verbose:
        for name in EXPENDABLE:
            if _excess(columns) > 0:
                columns.pop(name, None)
        if stdout.is_terminal:
            _cut_names(columns)
    table = Table(box=None, pad_edge=False)
    for name in columns:
        justify = "right" if name in right else "left"
        numeric = name in right  # numbers stay whole
        table.add_column(name, justify=justify, overflow="fold", no_wrap=numeric)  # type: ignore[arg-type]
    for n in range(len(rows)):
        cells = (column[n] for column in columns.values())
        table.add_row(*cells, style=last if n == len(rows) - 1 else "")
    stdout.print(table)


def _cell(cell: str | Text) -> Text:
    text = cell if isinstance(cell, Text) else Text(cell)
    most = LINE_CHARACTERS if mode.verbose else CELL_CHARACTERS
    return _safe(Text(one_line(text.plain, most), text.style))


def _width(name: str, cells: Sequence[Text]) -> int:
    return max(cell_len(text) for text in (name, *(cell.plain for cell in cells)))


def _excess(columns: Mapping[str, Sequence[Text]]) -> int:
    """By how much a table is wider than the terminal."""
    widths = [_width(name, cells) for name, cells in columns.items()]
    return sum(widths) + 2 * (len(widths) - 1) - stdout.width  # two spaces between columns


def _cut_names(columns: dict[str, list[Text]]) -> None:
    """Cut the longest cells in the middle until the table fits; both ends of a name stay."""
    widths = {name: _width(name, cells) for name, cells in columns.items()}
    for _ in range(_excess(columns)):
        widest = max(widths, key=lambda name: widths[name])
        widths[widest] = max(widths[widest] - 1, NAME_CHARACTERS)
    for name, cells in columns.items():
        columns[name] = [_cut(cell, widths[name]) for cell in cells]


def _cut(cell: Text, width: int) -> Text:
    if cell_len(cell.plain) <= width:
        return cell
    begin = cell.copy()
    begin.truncate(width - width // 2 - 1)
    end = next(cell[n:] for n in range(len(cell)) if cell_len(cell.plain[n:]) <= width // 2)
    return Text.assemble(begin, "…", end)


class Reporter:
    """Reports what a command does: a live view on a terminal, plain lines elsewhere."""

    def __init__(self, live: Live | None = None) -> None:
        self._live = live
        self._experiments: dict[str, LogEvent | None] = {}
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

        if isinstance(event, LogEntry):
            self._line(event)
        elif isinstance(event, Status):
            seconds = time.monotonic() - self._started
            failure = f": {one_line(event.failure)}" if event.failure else ""
            _detail(Text.assemble((event.word, "bold"), f" after {seconds:.0f} s{failure}"))
        elif isinstance(event, Quota):
            self._quota = event
            if not self._live:
                _detail(_quota_line(event))
        elif isinstance(event, Progress):
            self._show(event)
        else:
            _detail(one_line(event))

    def finish(self) -> None:
        """Leave the last table of the epochs on the screen, and one line about the download."""
        if self._live:
            self._live.update(self.table() if self.seen_epochs else Text())
        if (progress := self._download) and progress.files:
            files = counted(progress.files, "file")
            _detail(f"{files} complete, {human_size(progress.received)}")

    def _line(self, entry: LogEntry) -> None:
        from kernelkit.notebook.runtime import MANIFEST_MARK
        from kernelkit.runs.watch import progress

        if entry.text.startswith(MANIFEST_MARK):
            return  # of a failed run; the traceback after it is for people
        event = progress(entry)
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
                _print_text(Text(line))

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

    def _keep(self, name: str, event: LogEvent | None) -> None:
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
        shown = _epoch_columns(events)
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
        parts += [_quota_line(self._quota)] if self._quota else []
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
    with _interruptible(on_interrupt), live or nullcontext():
        try:
            yield reporter
        finally:
            reporter.finish()


@contextmanager
def _interruptible(on_interrupt: str) -> Iterator[None]:
    """Let Ctrl-C end the command with the message `on_interrupt`."""
    try:
        yield
    except KeyboardInterrupt:
        say(as_called(on_interrupt), to=stderr)
        document({"error": "interrupted", "next": on_interrupt, "exit_code": INTERRUPTED})
        raise typer.Exit(INTERRUPTED) from None


def config_values(values: Sequence[ConfigValue]) -> None:
    """Each setting with its value, as TOML would have it, and its origin."""
    shown_values = [one for one in values if mode.verbose or one.origin != "default"]
    rows = [(one.key, _value(one.value), one.origin) for one in shown_values]
    if not mode.as_json:
        _print_table(["key", "value", "from"], rows)
        if len(shown_values) < len(values):
            _detail("--verbose shows the defaults too", style="dim")
    document({one.key: {"value": one.value, "from": one.origin} for one in values})


def init_candidates(plan: InitPlan) -> None:
    """What could start the run, the most likely first."""
    if len(plan.candidates) > 1:
        rows = [
            (str(number), candidate.entry, candidate.parameters)
            for number, candidate in enumerate(plan.candidates, 1)
        ]
        _print_table(["", "entry", "parameters"], rows)


def init_text(plan: InitPlan) -> None:
    """What `init` is about to write."""
    if not mode.quiet:
        stdout.print(plan.text, soft_wrap=True)


def initialized(plan: InitPlan, problems: Sequence[str]) -> None:
    """What `init` has written, what a person should check, and the next two commands."""
    if plan.exists:
        _print_line(f"{plan.path} has [tool.kernelkit] already: nothing is changed")
        commands = ["kernelkit preflight"]
    else:
        _print_line(f"[tool.kernelkit] is in {plan.path}")
        for note in [*plan.notes, *problems]:
            say(f"check: {note}", to=stderr, indent=7)
        data = "".join(f" (DIR contains {slug}/ with the data)" for slug in plan.inputs)
        commands = ["kernelkit rehearse --profile smoke --inputs DIR", "kernelkit run"]
        if not plan.inputs:
            commands[0] = "kernelkit rehearse --profile smoke"
        say(f"next:  {as_called(commands[0])}{data}", indent=7)
        say(f"then:  {as_called(commands[1])}", indent=7)
    document(
        {
            "project_file": str(plan.path),
            "written": not plan.exists,
            "entry": plan.entry,
            "candidates": [
                {"entry": c.entry, "parameters": [o.names[-1] for o in c.options]}
                for c in plan.candidates
            ],
            "text": plan.text,
            "notes": [*plan.notes, *problems],
            "next": commands,
        }
    )


def rendered(result: RenderedKernel) -> None:
    """What `render` wrote: the size of each file, imports, files left out, notes."""
    from kernelkit.notebook.layout import SIZE_LIMIT_BYTES

    kernel = result.kernel
    size = kernel.size
    if not mode.quiet:
        budget(kernel.budget, size)
        image_imports(result.imports)
        if kernel.downloads:
            say(f"the run installs: {', '.join(kernel.downloads)}")
        left_out(kernel.bundle.left_out)
        advice(result.notes)
    if size > SIZE_LIMIT_BYTES:
        say("too large for Kaggle; for advice run: kernelkit preflight", to=stderr)
    _print_line(f"{result.folder}  digest {kernel.digest[:12]}")
    details = {
        "folder": str(result.folder),
        "size": size,
        "limit": SIZE_LIMIT_BYTES,
        "budget": [vars(entry) for entry in kernel.budget],
        "imports": [vars(one) for one in result.imports],
        "downloads": kernel.downloads,
        "left_out": {**kernel.bundle.left_out},
        "notes": list(result.notes),
    }
    document({**details, **kernel.manifest.document})


def no_problems(notes: Sequence[str]) -> None:
    """The result of a preflight without problems."""
    advice(notes)
    say("no problems")
    document({"problems": [], "notes": list(notes)})


def proved(proof: Proof) -> None:
    """The result of a proof: every test has the same result twice."""
    tests = counted(len(proof.outcomes), "test")
    message = f"{tests}, the same results from the package and from the notebook ({proof.words})"
    say(Text.assemble(("proved", "bold green"), f": {message}"))
    document({**vars(proof), "numbers": proof.numbers})


def pushed(result: Pushed) -> None:
    """The result of a push."""
    follow = "pull" if result.outcome == "reused" else "watch"
    say(f"Follow it with: kernelkit {follow} v{result.folder.version}")
    document({**result.folder.read().document, "outcome": result.outcome})


def state(folder: RunFolder, now: Status) -> None:
    """The state of a run, in one line."""
    say(f"{folder.slug} v{folder.version}: {now.word}")
    document({**folder.read().document, **_state_document(now)})


def watched(folder: RunFolder, end: Status, diagnosis: Diagnosis | None) -> None:
    """How a run has ended, as a document; the reporter has shown it to people."""
    details = {"diagnosis": asdict(diagnosis)} if diagnosis else {}
    document({**folder.read().document, **_state_document(end), **details})


def _state_document(now: Status) -> dict[str, str]:
    return {"state": now.state, "state_word": now.word, "failure": now.failure}


def log(entries: Sequence[LogEntry], tail: int | None = None) -> None:
    """The log of a run: as it is, or without control characters on a terminal."""
    document([vars(entry) for entry in entries])
    _print_log(_last_lines("".join(entry.text for entry in entries), tail))


def _print_log(text: str) -> None:
    if not mode.as_json:
        sys.stdout.write(shown(text) if sys.stdout.isatty() else _without_credentials(text))
        sys.stdout.flush()


def _last_lines(text: str, count: int | None) -> str:
    lines = text.splitlines(keepends=True)
    return text if count is None else "".join(lines[max(0, len(lines) - count) :])


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

    with _interruptible(on_interrupt):
        yield print_new
    document([vars(entry) for entry in every])


def open_page(url: str) -> None:
    """Show a page in the browser, and print its address: there may be no browser."""
    document({"url": url})
    _print_line(url)
    if not mode.as_json:
        webbrowser.open(url)


def conclude(pulled: PulledRun) -> None:
    """The end of a verified pull."""
    if not mode.quiet:
        outputs(pulled.verdict)
        results(pulled.folder, pulled.verdict)
    if pulled.partial:
        say("only the selected files were downloaded and verified", to=stderr)
    _verified_line(pulled.folder)
    document(pulled.document)


def _verified_line(folder: Path) -> None:
    _print_text(Text.assemble(("verified", "bold green"), f": {printable(str(folder))}"))


def verified(folder: Path, verdict: Verdict) -> None:
    """The result of a verification without problems."""
    from kernelkit.runs.verify import VerifiedFolder

    if not mode.quiet:
        outputs(verdict)
    _verified_line(folder)
    document(VerifiedFolder(folder, verdict).document)


def diagnosed(diagnosis: Diagnosis | None) -> None:
    """The result of `diagnose`; None if the log shows no failure."""
    if diagnosis is None:
        say("found no failure here")
    else:
        explain(diagnosis)
    document(asdict(diagnosis) if diagnosis else {"cause": None})


def explain(diagnosis: Diagnosis) -> None:
    """The cause, the error, the frames with their source in one column, notes and advice."""
    say(one_line(diagnosis.cause), "bold red")
    say("\n".join(map(shortened, diagnosis.error.split("\n")[:ERROR_LINES])))
    places = [one_line(_place(frame), CELL_CHARACTERS) for frame in diagnosis.frames]
    width = max((len(place) for place in places), default=0)
    for frame, place in zip(diagnosis.frames, places, strict=True):
        own = frame.origin == "project"
        source = printable(shortened(frame.source))
        line = Text.assemble((f"  {place:{width}}", "bold" if own else "dim"), f"  {source}")
        line.rstrip()
        _print_text(line)
    if diagnosis.last_lines:
        say("The run printed last:", "bold")
        say("\n".join(f"  {shortened(printed)}" for printed in diagnosis.last_lines), indent=2)
    for note in diagnosis.notes:
        say(Text.assemble(("note:  ", "bold"), one_line(note)), indent=7)
    say(Text.assemble(("next:  ", "bold"), one_line(as_called(diagnosis.next_step))), indent=7)


def _place(frame: Frame) -> str:
    if frame.origin == "library":
        return f"… {counted(frame.times, 'frame')} in {frame.place}"
    if frame.origin == "cell":
        return frame.place if frame.line is None else f"{frame.place}, line {frame.line}"
    function = f" in {frame.function}" if frame.function else ""
    times = f" ({frame.times} times)" if frame.times > 1 else ""
    return f"{frame.address}{function}{times}"


def outputs(verdict: Verdict) -> None:
    """The declared outputs with their sizes, and the files that are not declared."""
    rows = [
        (output.path, human_size(output.size), output.sha256[:12])
        for output in verdict.outputs[:OUTPUTS_SHOWN]
    ]
    _print_table(("output", "size", "sha256"), rows, right=("size",))
    if len(verdict.outputs) > OUTPUTS_SHOWN:
        left = verdict.outputs[OUTPUTS_SHOWN:]
        size = human_size(sum(output.size for output in left))
        say(f"… and {counted(len(left), 'more output')}, {size}")
    if verdict.undeclared:
        more = len(verdict.undeclared) - UNDECLARED_NAMED
        shown = ", ".join(verdict.undeclared[:UNDECLARED_NAMED])
        shown += f" and {more} more" if more > 0 else ""
        say(one_line(f"not declared as outputs: {shown}"), style="dim")
    for note in verdict.notes[:UNDECLARED_NAMED]:
        say(one_line(f"note: {note}"))
    if not verdict.identity_proven:
        say(
            "note: the digest matches, and that exactly this run made the files is not proven: it "
            "has no push_id, because another client or an older kernelkit has pushed it"
        )


def results(folder: Path, verdict: Verdict) -> None:
    """The beginning of the tables that the run wrote, the paths of its images, and its duration."""
    from kernelkit.runs.manifest import RUN_MANIFEST_NAME, RunManifest

    left = RESULT_LINES
    tables, images = _files(folder, "*.md"), _files(folder, "*.png")
    for path in tables[:RESULT_FILES]:
        if verdict.is_undeclared(path.relative_to(folder)):
            say(one_line(f"not declared as an output, so not verified: {path.name}"))
        left -= _print_markdown(path, left)
    _print_more(tables, "table")
    for path in images[:RESULT_FILES]:
        doubt = " (not verified)" if verdict.is_undeclared(path.relative_to(folder)) else ""
        _print_line(f"image: {path}{doubt}")
    _print_more(images, "image")
    manifest = read_model(folder / RUN_MANIFEST_NAME, RunManifest)
    total = time.monotonic() - STARTED
    say(f"the run took {number(manifest.seconds, 0)} s, this command {total:.0f} s")


def _print_markdown(path: Path, most: int) -> int:
    """Print the beginning of a file, up to `most` lines; returns how many were printed."""
    from rich.markdown import Markdown

    with path.open("rb") as stream:  # rich needs minutes for a table of 4 MB
        data = stream.read(RESULT_BYTES + 1)
    text = data[:RESULT_BYTES].decode(errors="replace")
    source = text.splitlines()
    safe = "\n".join(map(printable, source[:most]))
    markdown = Markdown(safe, hyperlinks=False)  # a link would hide where it leads
    rendered = stdout.render_lines(markdown, pad=False)
    for line in rendered[:most]:
        pieces = ((segment.text, segment.style or "") for segment in line)
        _print_text(Text.assemble(*pieces))
    if len(data) > RESULT_BYTES or len(source) > most or len(rendered) > most:
        say(printable(f"the rest is in {path}"), style="dim")
    return min(most, len(rendered))


def _print_more(files: Sequence[Path], noun: str) -> None:
    if more := files[RESULT_FILES:]:
        say(printable(f"… and {counted(len(more), f'more {noun}')} in {more[0].parent}"))


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def submitted(submitted: Submitted) -> None:
    """The state of a submission, and its scores."""
    record = submitted.record
    say(one_line(f"submission {record.ref} to {record.competition}: {record.status}"))
    if record.status == "complete":
        say(one_line(f"public score: {record.public_score or 'not shown'}"))
        say(one_line(f"private score: {record.private_score or 'not shown'}"))
    document(submitted.document)


def budget(entries: Sequence[SizeEntry], size: int) -> None:
    """How much of the size limit each file uses, the largest first."""
    from kernelkit.notebook.layout import SIZE_LIMIT_BYTES

    own = {"archive": "the compressed files", "notebook": "all other cells"}

    def share(sent: int) -> str:
        return f"{sent / SIZE_LIMIT_BYTES:.1%}"

    rows: list[Sequence[str | Text]] = [
        (
            Text(entry.path or own[entry.form], style="" if entry.path else "dim"),
            f"{entry.size:,}" if entry.size else "",
            f"{entry.sent:,}",
            share(entry.sent),
            entry.form if entry.path else "",
        )
        for entry in entries[:BUDGET_ROWS]
    ]
    if rest := entries[BUDGET_ROWS:]:
        sent = sum(entry.sent for entry in rest)
        total = sum(entry.size for entry in rest)
        rows.append((f"{len(rest)} smaller ones", f"{total:,}", f"{sent:,}", share(sent), ""))
    total = sum(entry.size for entry in entries if entry.path)
    rows.append((f"total, of {SIZE_LIMIT_BYTES:,}", f"{total:,}", f"{size:,}", share(size), ""))
    _print_table(
        ("file", "bytes", "as sent", "share", "carried as"),
        rows,
        right=("bytes", "as sent", "share"),
        last="bold" if size <= SIZE_LIMIT_BYTES else "bold red",
    )


def image_imports(found: Sequence[Availability]) -> None:
    """The imports from elsewhere, and whether Kaggle's image has them."""
    from kernelkit.bundle.image import Presence

    rows: list[Sequence[str | Text]] = []
    for one in found:
        more = f" and {len(one.places) - 1} more" if len(one.places) > 1 else ""
        good = one.presence in (Presence.PRESENT, Presence.BY_PIP)
        there = Text(one.image_version or str(one.presence), style="" if good else "yellow")
        place = Text(f"{one.places[0]}{more}", style="dim")
        rows.append((one.module, there, one.local_version or "", place))
    if rows:
        _print_table(("import", "in the image", "here", "used at"), rows)


def left_out(found: Mapping[str, str]) -> None:
    """The files that the notebook does not carry, by reason; caches are not worth a line."""
    reasons: dict[str, list[str]] = {}
    for path, reason in found.items():
        if reason != "a cache":
            reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        count = len(paths) if mode.verbose else LEFT_OUT_NAMED
        more = f" and {len(paths) - count} more" if len(paths) > count else ""
        say(one_line(f"left out ({reason}): {', '.join(paths[:count])}{more}"), style="dim")


def checked(results: Sequence[CheckResult]) -> None:
    """The doctor's report: a line for each check, and the advice below a bad one."""
    _print_checks(results)
    document([vars(result) for result in results])


def _print_checks(results: Sequence[CheckResult]) -> None:
    from kernelkit.doctor.checks import Health

    styles = {Health.GOOD: "green", Health.BAD: "bold red", Health.UNKNOWN: "yellow"}
    subjects = [one_line(result.subject, 60) for result in results]
    width = max(map(len, subjects))
    for result, subject in zip(results, subjects, strict=True):
        if mode.quiet and result.health == Health.GOOD:
            continue
        mark = (f"{result.health:8}", styles[result.health])
        message = one_line("; ".join(result.words.split("\n")))
        column = 8 + width + 2
        say(Text.assemble(mark, f"{subject:{width}}  {message}"), indent=column)
        if result.remedy:
            say(f"{'':{column}}→ {one_line(result.remedy)}", indent=column + 2)
    counts = {health: sum(one.health == health for one in results) for health in Health}
    say(", ".join(f"{count} {health}" for health, count in counts.items() if count))


def probe_plan(plan: str) -> None:
    """What the probe is going to do."""
    say(plan)


def probed(report: Report, *, suggest_image: bool) -> None:
    """What the probe found, and where it is kept."""
    _print_checks(report.findings)
    folder = printable(str(report.folder))
    say(f"good: as kernelkit assumes; bad: different. The details are in {folder}:")
    say("transcript.json and report.json contain no names or secrets and can be shared")
    if report.image and suggest_image:
        say(
            f"next:  Check imports against the image that you found: `cp {report.image} "
            'kaggle-image.json`, and set `image = "kaggle-image.json"` in [tool.kernelkit].'
        )
    findings = [vars(finding) for finding in report.findings]
    document({"folder": str(report.folder), "findings": findings})


def advice(notes: Sequence[str]) -> None:
    """Notes and warnings that do not prevent a push."""
    from kernelkit.notebook.preflight import WARNING

    for line in notes:
        label, style = (WARNING, "bold red") if line.startswith(WARNING) else NOTE
        text = one_line(line.removeprefix(WARNING))
        say(Text.assemble((label, style), text), indent=len(label))


def diffs(plan: SyncPlan) -> None:
    """The changes of a sync as unified diffs."""
    styles = {"+": "green", "-": "red", "@": "cyan", "\\": "dim"}
    for change in () if mode.quiet else plan.changes:
        for n, line in enumerate(change.diff.rstrip("\n").split("\n")):
            style = "bold" if n < 2 else styles.get(line[:1], "")
            _print_text(Text(printable(shortened(line)), style=style))


def synced(plan: SyncPlan, dry_run: bool) -> None:
    """What a sync wrote, and what a person has to copy by hand."""
    added = sum(change.added for change in plan.changes)
    counts = f"{counted(len(plan.changes) - added, 'file')} changed, {added} added"
    end = "nothing was written" if dry_run else "review with `git diff`"
    say(Text.assemble((counts, "bold"), f"; {end}") if plan.changes else "no file has changed")
    for change in plan.changes:
        if change.conflict:
            _warn(f"{change.name}: the notebook overwrites a change on disk")
        if change.syntax_error:
            _warn(change.syntax_error)
    for path in plan.gone:
        say(printable(f"{path}: its cell is gone; the file stays"))
    for p in plan.parameters:
        if p.after is None:
            what = f"{p.name} is no longer set: remove it from"
        elif p.before is None:
            what = f"{p.name} = {p.after} is new: add it to"
        else:
            what = f"{p.name} = {p.before} → {p.after}: change it in"
        say(printable(f"parameters: {what} {p.section}"))
    if plan.left:
        say("cells that have no place in the package:")
    for cell in plan.left:
        line = Text(printable(f"  cell {cell.cell}: {cell.first_line}"))
        say(line.append(f"  ({cell.reason})", "dim"))
    for note in plan.notes:
        say(printable(f"note: {note}"), style="dim")
    document({**plan.document, "written": not dry_run})


def _warn(message: str) -> None:
    say(printable(f"warning: {message}"), style="yellow")


def runs(rows: Sequence[RunRow], folder: Path | None = None) -> None:
    """A line for each version, the newest last, and advice about damaged folders."""
    document([row.model_dump(mode="json") for row in rows])
    if not rows:
        say(f"nothing was pushed from {folder or 'here'}")
        return
    headings = (
        *("owner", "run", "version", "digest", "commit", "profile", "pushed", "state"),
        *("best metric", "public / private", "GPU s"),
    )
    _print_table(headings, [_run_cells(row) for row in rows], right=("GPU s",))
    for row in rows:
        if row.next:
            say(one_line(f"{row.run} v{row.version}: {row.next}"), "yellow")


def _run_cells(row: RunRow) -> list[str]:
    owner, _, slug = row.run.rpartition("/")
    broken = row.state == "complete" and row.verified is False
    unverified = ", not verified" if broken else ""
    cells = (
        *(owner, slug, f"v{row.version}", row.digest, row.commit, row.profile),
        *(
            ago(row.pushed),
            f"{row.state_word}{unverified}",
            _metric(row.metric),
        ),
        _score(row.public_score, row.private_score, row.submission),
        number(row.gpu_seconds, 0),
    )
    return [printable(str(cell or "")) for cell in cells]


def run(details: RunDetails) -> None:
    """Everything known about one run."""
    document(details.document)
    say(printable(f"{details.run} v{details.version}"), style="bold")
    for name in ("folder", "url", "digest", "commit", "profile", "pushed", "pulled", "state"):
        if value := getattr(details, name):
            dirty = " (and uncommitted changes)" if name == "commit" and details.dirty else ""
            if name == "state":
                value = details.state_word
            elif name in ("pushed", "pulled"):
                value = f"{value} ({ago(value)})"
            _print_line(f"  {name}: {value}{dirty}")
    for name in ("failure", "verified", "identity_proven", "seconds", "gpu_seconds"):
        if (value := getattr(details, name)) is not None and value != "":
            _print_line(f"  {name}: {value}")
    if metric := details.metric:
        where = f"{metric.experiment or 'the run'}, epoch {metric.epoch}"
        direction = "lower" if metric.goal == "minimize" else "higher"
        _print_line(f"  best: {_metric(metric)} ({where}; {direction} is better)")
        others = [f"{name} {number(value)}" for name, value in metric.numbers.items()]
        if others:
            _print_line(f"        with {', '.join(others[:MORE_COLUMNS])}")
    for title in ("parameters", "kernel", "hardware", "versions"):
        values = getattr(details, title).document
        if values:
            say(title, style="bold")
        for name, value in values.items():
            if value not in ("", [], None):
                _print_line(f"  {name} = {json.dumps(value, ensure_ascii=False)}")
    if details.outputs:
        say("outputs", style="bold")
    for output in details.outputs[:OUTPUTS_SHOWN]:
        _print_line(f"  {output.path}  {human_size(output.size)}")
    if len(details.outputs) > OUTPUTS_SHOWN:
        say(f"  … and {counted(len(details.outputs) - OUTPUTS_SHOWN, 'more output')}")
    if details.submissions:
        say("submissions", style="bold")
    for one in details.submissions:
        score = _score(one.public_score, one.private_score, one.status)
        line = f"  {one.ref} to {one.competition}, {one.submitted}: {score} {one.error or ''}"
        _print_line(line.rstrip())
    for problem in details.problems:
        _warn(problem)


def _print_line(line: str) -> None:
    """Print a line that is data: it is not wrapped between words."""
    _print_text(Text(printable(shortened(line))))


def _print_text(line: Text) -> None:
    stdout.print(_safe(line), soft_wrap=True)


def difference(found: RunDifference) -> None:
    """How two runs differ."""
    document(found.model_dump(mode="json"))
    say(printable(f"{found.before} → {found.after}"), style="bold")
    say("the same kernel" if found.same else "different kernels")
    for title in ("parameters", "kernel", "settings", "versions", "results"):
        pairs = getattr(found, title)
        if pairs:
            say(title, style="bold")
        for name, (a, b) in pairs.items():
            _print_line(f"  {name}: {_value(a)} → {_value(b)}")
    if found.code.any:
        say("code", style="bold")
    for kind in ("added", "removed", "changed"):
        for path in getattr(found.code, kind):
            _print_line(f"  {kind} {path}")
    a, b = found.commits
    if found.code.any and a and b and a != b and not (a + b).count("+"):
        say(f"line by line: git diff {a} {b}", style="dim")
    for problem in found.problems:
        _warn(problem)


def has_failed(end: Status) -> bool:
    """Whether a run has ended, and not successfully."""
    return end.failed


def require_no_failure(end: Status, diagnosis: Diagnosis | None = None) -> None:
    """Report why a run failed and exit with 6; do nothing if it did not fail."""
    if not has_failed(end):
        return
    if end.word == "cancelled":
        _print_error("the run was cancelled", "To run it again: kernelkit push")
    elif end.word == "timed out":
        _print_error(
            f"the run timed out: {one_line(end.failure)}",
            "Download what it has saved, and see how to resume: kernelkit pull",
        )
    elif diagnosis is None:
        _print_error(
            f"the run failed: {one_line(end.failure) or 'Kaggle gives no reason'}",
            "Download its log: kernelkit pull",
        )
    else:
        _print_error(
            f"the run failed: {diagnosis.headline}\n{diagnosis.summary}",
            f"{diagnosis.next_step} Download its log: kernelkit pull",
        )
    raise typer.Exit(6)


def ago(when: object) -> str:
    """A time in ISO 8601 as people say it: "3 h ago"; unchanged if it is not one."""
    try:
        moment = datetime.fromisoformat(str(when))
        seconds = (datetime.now(UTC) - moment).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: without a time zone
        return str(when or "")
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def number(value: Any, digits: int = 4) -> str:
    """A number that a run reports; empty if it is not one."""
    try:
        return f"{value:.{digits}f}" if isinstance(value, int | float) else ""
    except OverflowError:  # JSON has integers that no float can hold
        return "∞"


def _metric(metric: Metric | None) -> str:
    return f"{metric.name} {number(metric.value)}" if metric else ""


def _value(value: JsonValue) -> str:
    """A value that differs between two runs; of a metric only its name and value."""
    if isinstance(value, dict) and {"name", "value", "epoch"} <= value.keys():
        return f"{value['name']} {number(value['value'])}"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _score(public: str | None, private: str | None, state: str | None) -> str:
    """The scores of a submission as Kaggle shows them, or its state."""
    return f"{public or '?'} / {private or '?'}" if public or private else state or ""


def _epoch_columns(events: Sequence[LogEvent]) -> list[tuple[str, str, int]]:
    """Heading, key and digits of every number that the events report."""
    known = [one for one in EPOCH_COLUMNS if any(one[1] in event.numbers for event in events)]
    keys = dict.fromkeys(key for event in events for key in event.numbers)
    other = [key for key in keys if key not in NOT_MEASURED][:MORE_COLUMNS]
    more = [(one_line(key.replace("_", " "), CELL_CHARACTERS), key, 4) for key in other]
    last = [one for one in known if one[1] == "seconds"]
    return [one for one in known if one not in last] + more + last


def _epoch_line(event: LogEvent) -> str:
    known = event.numbers
    shown = [f"{label} {number(known[key], n)}" for label, key, n in _epoch_columns([event])]
    epoch = f"epoch {known.get('epoch', '?')}/{known.get('epochs', '?')}"
    return "  ".join([event.experiment or "", epoch, *shown]).strip()


def _duration_line(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s of epochs left"
    return f"about {seconds / 60:.0f} min of epochs left"


def _quota_line(quota: Quota) -> str:
    refresh = f" until {quota.refresh:%a %H:%M} UTC" if quota.refresh else ""
    reserved = f", {quota.reserved:.1f} h reserved" if quota.reserved else ""
    return f"GPU quota: {quota.used:.1f} of {quota.allowed:.0f} h used{reserved}{refresh}"
