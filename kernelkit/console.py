"""What a person reads: words, tables, the live view, errors; and the document of `--json`.

The only place that prints. Words go to stderr when a script wants its document on stdout.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kernelkit.bundle.image import Availability, Presence
from kernelkit.diagnosis.diagnose import TERMINAL_COMMANDS, Diagnosis, Frame, Origin
from kernelkit.doctor.checks import Finding, Health
from kernelkit.errors import KernelkitError
from kernelkit.kaggle import LogEntry, Quota, Status
from kernelkit.notebook.edits import SyncPlan
from kernelkit.notebook.render import SIZE_LIMIT_BYTES, SizeEntry
from kernelkit.notebook.runtime import MANIFEST_MARK
from kernelkit.runs.download import Progress
from kernelkit.runs.verify import Verdict
from kernelkit.runs.watch import progress
from kernelkit.workflow import Event, Pulled, Submitted

TAIL_CHARACTERS = 1000  # of one line of them
TAIL_LINES = 6  # of the log under the live table
BUDGET_ROWS = 25  # files named in the table of render
LEFT_OUT_NAMED = 5  # files named for each reason
BESIDE_NAMED = 20  # outputs that were not declared; --json has all
ERROR_LINES = 8  # of an exception's words; --json has more
FAILURE_LINES = 25  # of the log, when a run has failed: a traceback's end
INTERRUPTED = 130
STARTED = time.monotonic()
RUN_COLUMNS = (
    *("run", "version", "digest", "commit", "profile", "pushed", "state", "best metric"),
    *("public / private", "GPU s"),
)
WIDE = 200  # columns of a table that goes to a file or another program
COLUMNS = (  # of an epoch's event: heading, key, digits
    ("train loss", "train_loss", 4),
    ("val loss", "val_loss", 4),
    ("val IoU", "val_iou", 4),
    ("val score", "val_score", 4),
    ("s", "seconds", 1),
)
words = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Reporter:
    """Says what happens: a live table in a terminal, plain lines elsewhere."""

    def __init__(self, live: Live | None = None) -> None:
        self._live = live
        self._experiments: dict[str, Mapping[str, Any]] = {}
        self._epochs: Any = None
        self._tail: list[str] = []
        self._quota: Quota | None = None
        self._started = time.monotonic()
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=words,
            auto_refresh=False,
        )

    def __call__(self, event: Event) -> None:
        """One event of a step."""
        if isinstance(event, LogEntry):
            self._line(event)
        elif isinstance(event, Status):
            seconds = time.monotonic() - self._started
            failure = f": {event.failure}" if event.failure else ""
            after = f" after {seconds:.0f} s{lines_printable(failure)}"
            words.print(Text.assemble((event.state, "bold"), after))
        elif isinstance(event, Quota):
            self._quota = event
            if not self._live:
                words.print(_quota_line(event))
        elif isinstance(event, Progress):
            self._show(event)
        else:
            words.print(Text(lines_printable(event)))

    def unseen_tail(self) -> str:
        """The last lines of the log, where the live table has covered them."""
        return "\n".join(self._tail) if self._live else ""

    def _line(self, entry: LogEntry) -> None:
        if entry.text.startswith(MANIFEST_MARK):
            return  # of a failed run; the traceback that follows says it for people
        event = progress(entry)
        if event and event["event"] == "start":
            self._plan(event)
        if event and event["event"] == "epoch" and "experiment" in event:
            self._experiments[str(event["experiment"])] = event
        told = _epoch_line(event) if event and event["event"] == "epoch" else entry.text.rstrip()
        line = lines_printable(told)
        self._tail = [*self._tail, line[:TAIL_CHARACTERS]][-FAILURE_LINES:]
        if self._live:
            self._live.update(self._picture())
        elif line and (event is None or event["event"] == "epoch"):
            words.print(Text(line))

    def _show(self, progress: Progress) -> None:
        """A bar in a terminal; elsewhere each file has its line when it is whole."""
        if self._live:
            if not self._bar.tasks:
                self._bar.add_task("")
            self._bar.update(
                self._bar.task_ids[0],
                completed=progress.came,
                total=progress.size or None,
                description=f"{progress.files} of {counted(progress.of, 'file')}",
            )
            self._live.update(self._bar.get_renderable())

    @property
    def seen_epochs(self) -> bool:
        """Whether the run reports epochs at all."""
        return bool(self._experiments)

    def _plan(self, event: Mapping[str, Any]) -> None:
        """What a run says at its start that it will do."""
        names, self._epochs = event.get("experiments"), event.get("epochs")
        if isinstance(names, list):
            self._experiments |= {str(name): {} for name in names}

    def seconds_left(self) -> float | None:
        """Of the epochs that are planned, by what those before took; None where none tells."""
        took = {
            n: float(e["seconds"]) for n, e in self._experiments.items() if _is_number(e, "seconds")
        }
        if not took:
            return None
        mean, left = sum(took.values()) / len(took), 0.0
        for name, event in self._experiments.items():
            planned = {"epochs": self._epochs, "epoch": 0, **event}
            if _is_number(planned, "epochs"):
                done = planned["epoch"] if _is_number(planned, "epoch") else 0
                left += max(0.0, float(planned["epochs"]) - done) * took.get(name, mean)
        return left if 0 < left < math.inf else None

    def table(self) -> Table:
        """Where each experiment is: a row each, and a column for what they report."""
        shown = [c for c in COLUMNS if any(c[1] in event for event in self._experiments.values())]
        table = Table("experiment", "epoch", *(label for label, _, _ in shown), box=None)
        for column in table.columns:  # a narrow terminal cuts names, and wraps nothing
            column.no_wrap = True
        table.columns[0].min_width = 8
        for name, event in self._experiments.items():
            epoch = f"{event.get('epoch', 0)}/{event.get('epochs', self._epochs or '?')}"
            table.add_row(
                Text(printable(name)),
                Text(printable(epoch)),
                *(number(event.get(key), n) for _, key, n in shown),
            )
        return table

    def _picture(self) -> Group:
        tail = Text("\n".join(self._tail[-TAIL_LINES:]), style="dim", overflow="ellipsis")
        parts = [_duration_line(left)] if (left := self.seconds_left()) is not None else []
        parts += [_quota_line(self._quota)] if self._quota else []
        details = [Text(" · ".join(parts))] if parts else []
        return Group(*([self.table()] if self.seen_epochs else []), *details, tail)


@contextmanager
def watching(on_interrupt: str) -> Iterator[Reporter]:
    """A teller for a long wait; Ctrl-C ends it with the words `on_interrupt`."""
    console = words if words.is_terminal else None
    live = Live(console=console, refresh_per_second=4) if console else None
    teller = Reporter(live)
    try:
        if live:
            with live:
                yield teller
                live.update(teller.table() if teller.seen_epochs else Text())
        else:
            yield teller
    except KeyboardInterrupt:
        errors.print(on_interrupt)
        raise typer.Exit(INTERRUPTED) from None
    except KernelkitError as fault:
        if fault.exit_code == 6 and (tail := teller.unseen_tail()):
            errors.print(Text(tail, style="dim"))
        raise


def conclude(pulled: Pulled, as_json: bool) -> None:
    """What a verified pull ends with."""
    outputs(pulled.verdict)
    results(pulled.folder)
    what = "what was asked for, in " if pulled.partial else ""
    words.print(f"[bold green]verified[/]: {what}{escape(str(pulled.folder))}")
    document(as_json, pulled.details)


def diagnosis(diagnosis: Diagnosis) -> None:
    """The cause, the error, the frames with their source in one column, notes and advice."""
    words.print(Text(diagnosis.cause, style="bold red"))
    words.print(Text("\n".join(diagnosis.error.split("\n")[:ERROR_LINES])))
    places = [_place(frame) for frame in diagnosis.frames]
    width = max((len(place) for place in places), default=0)
    for frame, place in zip(diagnosis.frames, places, strict=True):
        own = frame.origin == Origin.PROJECT
        line = Text.assemble((f"  {place:{width}}", "bold" if own else "dim"), f"  {frame.source}")
        line.rstrip()
        words.print(line)
    for note in diagnosis.notes:
        words.print(Text.assemble(("note:  ", "bold"), note))
    words.print(Text.assemble(("next:  ", "bold"), diagnosis.next_step))


def _place(frame: Frame) -> str:
    if frame.origin == Origin.LIBRARY:
        return f"… {frame.times} frame{'s' if frame.times > 1 else ''} in {frame.place}"
    if frame.origin == Origin.CELL:
        return frame.place if frame.line is None else f"{frame.place}, line {frame.line}"
    function = f" in {frame.function}" if frame.function else ""
    times = f" ({frame.times} times)" if frame.times > 1 else ""
    return f"{frame.address}{function}{times}"


def outputs(verdict: Verdict) -> None:
    """The declared outputs with their sizes, and what lies beside them."""
    table = Table("output", "bytes", "sha256", box=None)
    table.columns[1].justify = "right"
    for output in verdict.outputs:
        table.add_row(Text(output["path"]), f"{output['size']:,}", output["sha256"][:12])
    words.print(table)
    if verdict.undeclared:
        more = len(verdict.undeclared) - BESIDE_NAMED
        named = ", ".join(verdict.undeclared[:BESIDE_NAMED]) + (f" and {more} more" * (more > 0))
        words.print(Text(printable(f"beside them: {named}"), style="dim"))


def results(folder: Path) -> None:
    """The tables that the run left, where its pictures are, and what it took."""
    for path in _files(folder, "*.md"):
        text = path.read_text(encoding="utf-8", errors="replace")
        words.print(Markdown("\n".join(map(printable, text.splitlines()))))
    for path in _files(folder, "*.png"):
        words.print(Text(printable(f"picture: {path}")))
    manifest = json.loads((folder / "run-manifest.json").read_text(encoding="utf-8"))
    total = time.monotonic() - STARTED
    words.print(f"the run took {number(manifest.get('seconds'), 0)} s, all of it {total:.0f} s")


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def submitted(submitted: Submitted) -> None:
    """What has become of a submission."""
    entry = submitted.entry
    words.print(Text(f"submission {entry['ref']} to {entry['competition']}: {entry['status']}"))
    if entry["status"] == "complete":
        for title in ("public", "private"):
            words.print(Text(f"{title} score: {entry[f'{title}_score'] or 'not shown'}"))


def budget(budget: Sequence[SizeEntry], size: int) -> None:
    """What each file takes of the cap, the largest first."""
    table = Table("file", "bytes", "as sent", "share", "carried as", box=None)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:4]:
        column.justify = "right"
        column.no_wrap = True
    own = {"archive": "the compressed files", "notebook": "all other cells"}
    for share in budget[:BUDGET_ROWS]:
        table.add_row(
            Text(share.path or own[share.form], style="" if share.path else "dim"),
            f"{share.size:,}" if share.size else "",
            f"{share.sent:,}",
            f"{share.sent / SIZE_LIMIT_BYTES:.1%}",
            share.form if share.path else "",
        )
    if rest := budget[BUDGET_ROWS:]:
        sent = sum(share.sent for share in rest)
        table.add_row(
            f"{len(rest)} smaller ones",
            f"{sum(share.size for share in rest):,}",
            f"{sent:,}",
            f"{sent / SIZE_LIMIT_BYTES:.1%}",
        )
    table.add_row(
        f"together, of {SIZE_LIMIT_BYTES:,}",
        f"{sum(share.size for share in budget if share.path):,}",
        f"{size:,}",
        f"{size / SIZE_LIMIT_BYTES:.1%}",
        style="bold" if size <= SIZE_LIMIT_BYTES else "bold red",
    )
    words.print(table)


def imports(findings: Sequence[Availability]) -> None:
    """What comes from elsewhere, and whether the image has it."""
    if not findings:
        return
    table = Table("import", "in the image", "here", "used at", box=None)
    for finding in findings:
        more = f" and {len(finding.places) - 1} more" if len(finding.places) > 1 else ""
        there = finding.image_version or str(finding.presence)
        good = finding.presence in (Presence.PRESENT, Presence.BY_PIP)
        table.add_row(
            Text(finding.module),
            Text(there, style="" if good else "yellow"),
            finding.local_version or "",
            Text(f"{finding.places[0]}{more}", style="dim"),
        )
    words.print(table)


def left_out(found: Mapping[str, str]) -> None:
    """What stays behind, by reason; caches are nobody's news."""
    reasons: dict[str, list[str]] = {}
    for path, reason in found.items():
        if reason != "a cache":
            reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        more = f" and {len(paths) - LEFT_OUT_NAMED} more" if len(paths) > LEFT_OUT_NAMED else ""
        named = ", ".join(paths[:LEFT_OUT_NAMED])
        words.print(Text(printable(f"left out ({reason}): {named}{more}"), style="dim"))


def findings(found: Sequence[Finding]) -> None:
    """The doctor's report: a line each, and what to do below what is bad."""
    styles = {Health.GOOD: "green", Health.BAD: "bold red", Health.UNKNOWN: "yellow"}
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        mark = (f"{finding.health:8}", styles[finding.health])
        told = printable("; ".join(finding.words.split("\n")))
        words.print(Text.assemble(mark, f"{finding.subject:{width}}  {told}"))
        if finding.remedy:
            words.print(Text(f"{'':8}{'':{width}}  → {printable(finding.remedy)}"))
    counts = {health: sum(f.health == health for f in found) for health in Health}
    words.print(", ".join(f"{count} {health}" for health, count in counts.items() if count))


def advice(notes: Sequence[str]) -> None:
    """Notes that stop nothing."""
    for line in notes:
        words.print(Text.assemble(("note: ", "bold yellow"), printable(line)))


def diff(text: str) -> None:
    """A unified diff in its usual colours."""
    styles = {"+": "green", "-": "red", "@": "cyan", "\\": "dim"}
    for number, line in enumerate(text.rstrip("\n").split("\n")):
        style = "bold" if number < 2 else styles.get(line[:1], "")
        words.print(Text(printable(line), style=style))


def sync(plan: SyncPlan, dry_run: bool) -> None:
    """What was written, and then whatever a person has to carry home by hand."""
    added = sum(change.added for change in plan.changes)
    changed = len(plan.changes) - added
    counts = f"{changed} {'file' if changed == 1 else 'files'} changed, {added} added"
    end = "nothing was written" if dry_run else "review with git diff"
    words.print(f"[bold]{counts}[/]; {end}" if plan.changes else "no file has changed")
    for change in plan.changes:
        if change.conflict:
            warning = f"warning: {change.name}: the change on disk gives way to the notebook's"
            words.print(Text(printable(warning), style="yellow"))
        if change.syntax_error:
            words.print(Text(printable(f"warning: {change.syntax_error}"), style="yellow"))
    for path in plan.gone:
        words.print(Text(printable(f"{path}: its cell is gone; the file stays")))
    for p in plan.parameters:
        if p.after is None:
            what = f"{p.name} is not set any more: remove it from"
        elif p.before is None:
            what = f"{p.name} = {p.after} is new: add it to"
        else:
            what = f"{p.name} = {p.before} → {p.after}: change it in"
        words.print(Text(printable(f"parameters: {what} {p.section}")))
    if plan.left:
        words.print("cells that have no place in the package:")
    for cell in plan.left:
        words.print(Text(printable(f"  cell {cell.cell}: {cell.first_line}")), end="")
        words.print(Text(f"  ({cell.reason})", style="dim"))
    for note in plan.notes:
        words.print(Text(printable(f"note: {note}"), style="dim"))


def counted(number: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(line: str) -> str:
    """Control characters as escapes: a notebook must not steer the terminal."""
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in line
    )


def lines_printable(text: str) -> str:
    """Like `printable`, for lines of a log: without colours, of a bar what it came to show."""
    lines = TERMINAL_COMMANDS.sub("", text).split("\n")
    return "\n".join(printable(line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each version, and what to do about those that are not as they should be."""
    if not rows:
        words.print("nothing was pushed from here")
        return
    lines = [_run_cells(row) for row in rows]
    kept = [number for number in range(len(RUN_COLUMNS)) if any(line[number] for line in lines)]
    table = Table(*(RUN_COLUMNS[number] for number in kept), box=None)
    for line in lines:
        table.add_row(*(Text(printable(line[number])) for number in kept))
    if not words.is_terminal:
        words.width = WIDE
    words.print(table)
    for row in rows:
        if row["next"]:
            words.print(Text(printable(f"{row['run']} v{row['version']}: {row['next']}"), "yellow"))


def _run_cells(row: Mapping[str, Any]) -> list[str]:
    unverified = ", not verified" if row["verified"] is False else ""
    cells = (
        *(row["run"], f"v{row['version']}", row["digest"], row["commit"], row["profile"]),
        str(row["pushed"])[:16].replace("T", " "),
        f"{row['state']}{unverified}",
        *(_metric(row["metric"]), _score(row), number(row["gpu_seconds"], 0)),
    )
    return [str(cell or "") for cell in cells]


def run(details: Mapping[str, Any]) -> None:
    """All that is known of one run."""
    plain = ("folder", "url", "digest", "commit", "profile", "pushed", "pulled", "state", "failure")
    words.print(Text(printable(f"{details['run']} v{details['version']}"), style="bold"))
    for name in (*plain, "verified", "seconds", "gpu_seconds"):
        if details[name] is not None and details[name] != "":
            dirty = " (and changes since)" if name == "commit" and details["dirty"] else ""
            words.print(Text(printable(f"  {name}: {details[name]}{dirty}")))
    if details["metric"]:
        metric = details["metric"]
        where = f"{metric['experiment'] or 'the run'}, epoch {metric['epoch']}"
        words.print(Text(printable(f"  best: {_metric(metric)} ({where})")))
    for title in ("parameters", "kernel", "hardware", "versions"):
        if details[title]:
            words.print(Text(title, style="bold"))
        for name, value in details[title].items():
            if value not in ("", [], None):
                words.print(Text(printable(f"  {name} = {json.dumps(value, ensure_ascii=False)}")))
    if details["outputs"]:
        words.print(Text("outputs", style="bold"))
    for output in details["outputs"]:
        size = output.get("size")
        size = f"{size:,} B" if isinstance(size, int) else "?"
        words.print(Text(printable(f"  {output.get('path')}  {size}")))
    if details["submissions"]:
        words.print(Text("submissions", style="bold"))
    for entry in details["submissions"]:
        line = f"  {entry['ref']} to {entry['competition']}, {entry['submitted']}: {_score(entry)}"
        words.print(Text(printable(f"{line} {entry.get('error') or ''}".rstrip())))
    for problem in details["problems"]:
        words.print(Text(printable(f"warning: {problem}"), style="yellow"))


def difference(found: Mapping[str, Any]) -> None:
    """How two runs differ."""
    words.print(Text(printable(f"{found['before']} → {found['after']}"), style="bold"))
    words.print("the very same kernel" if found["same"] else "another kernel")
    for title in ("parameters", "kernel", "settings", "versions", "results"):
        if found[title]:
            words.print(Text(title, style="bold"))
        for name, (a, b) in found[title].items():
            before, after = (
                _metric(value) if name == "metric" else json.dumps(value, ensure_ascii=False)
                for value in (a, b)
            )
            words.print(Text(printable(f"  {name}: {before or 'none'} → {after or 'none'}")))
    if any(found["code"].values()):
        words.print(Text("code", style="bold"))
    for kind, paths in found["code"].items():
        for path in paths:
            words.print(Text(printable(f"  {kind} {path}")))
    a, b = found["commits"]
    if any(found["code"].values()) and a and b and a != b and not (a + b).count("+"):
        words.print(Text(f"line by line: git diff {a} {b}", style="dim"))
    for problem in found["problems"]:
        words.print(Text(printable(f"warning: {problem}"), style="yellow"))


def _metric(metric: Mapping[str, Any] | None) -> str:
    return f"{metric['name']} {number(metric['value'])}" if metric else ""


def _score(entry: Mapping[str, Any]) -> str:
    """The scores of a submission as Kaggle shows them, or where it is."""
    scores = [entry.get("public_score"), entry.get("private_score")]
    if any(scores):
        return " / ".join(str(score or "?") for score in scores)
    return str(entry.get("submission") or entry.get("status") or "")


def _epoch_line(event: Mapping[str, Any]) -> str:
    numbers = [f"{label} {number(event[key], n)}" for label, key, n in COLUMNS if key in event]
    epoch = f"epoch {event.get('epoch', '?')}/{event.get('epochs', '?')}"
    return "  ".join([str(event.get("experiment", "")), epoch, *numbers]).strip()


def _duration_line(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s of epochs left"
    return f"about {seconds / 60:.0f} min of epochs left"


def _quota_line(quota: Quota) -> str:
    refresh = f" until {quota.refresh:%a %H:%M} UTC" if quota.refresh else ""
    return f"GPU quota: {quota.used:.1f} of {quota.allowed:.0f} h used{refresh}"


def _is_number(event: Mapping[str, Any], key: str) -> bool:
    """Whether it is a number that a float can hold: a notebook may report any."""
    value = event.get(key)
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an integer beyond every float
        return False


def number(value: Any, digits: int = 4) -> str:
    """A number as a run reports it; empty where it is none."""
    try:
        return f"{value:.{digits}f}" if isinstance(value, int | float) else ""
    except OverflowError:  # an integer of a notebook's own making
        return "∞"


def has_failed(end: Status) -> bool:
    """Whether a run has ended, and not well."""
    return end.state.finished and end.state != "complete"


def require_no_failure(end: Status, diagnosis: Diagnosis | None = None) -> None:
    """Say why a run has failed and exit with 6; nothing where it has not."""
    if not has_failed(end):
        return
    if end.state == "cancel_acknowledged":
        errors.print("error: the run was cancelled")
        errors.print("next:  To run it again: kernelkit push")
    elif diagnosis is None:
        errors.print(Text(f"error: the run has failed: {end.failure or end.state}"))
        errors.print("next:  Bring home its log: kernelkit pull")
    else:
        errors.print(Text(f"error: the run has failed: {diagnosis.headline}"))
        errors.print(Text(diagnosis.summary))
        errors.print(Text(f"next:  {diagnosis.next_step} Bring home its log: kernelkit pull"))
    raise typer.Exit(6)


def to_stderr_for(as_json: bool) -> None:
    """With `--json` stdout belongs to the document: words go to stderr."""
    words.stderr = as_json


def document(as_json: bool, content: Any) -> None:
    """The one document that a script reads."""
    if as_json:
        sys.stdout.write(json.dumps(content, indent=1, default=str) + "\n")


def error(fault: KernelkitError) -> int:
    """Say what was wrong and what to do next; the exit code."""
    told = "\n".join(map(printable, str(fault).split("\n")))
    errors.print(Text.assemble(("error: ", "bold red"), told))
    if fault.next_step:
        errors.print(Text.assemble(("next:  ", "bold"), fault.next_step))
    return fault.exit_code


def usage_error(fault: Exception) -> int:
    """click's complaints about the command line; all else is a bug of ours."""
    show: Callable[[], None] | None = getattr(fault, "show", None)
    if show is not None:
        show()
        return 2
    traceback.print_exception(fault)
    errors.print(
        Text.assemble(("error: ", "bold red"), "this is a bug of kernelkit: please report it")
    )
    return 1
