"""`kernelkit COMMAND`: parse, call, speak, exit. The only place that prints.

Words go to stderr when `--json` is given, and one JSON document to stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import kernelkit
from kernelkit import ledger, pipeline
from kernelkit.client import LogEntry, Status
from kernelkit.config import PROJECT_FILE, load_config
from kernelkit.diagnose import Diagnosis, Frame, Origin, diagnose
from kernelkit.errors import ConfigError, KernelkitError
from kernelkit.image import Availability, Presence
from kernelkit.pipeline import Event, Pulled
from kernelkit.prove import DEADLINE_SECONDS
from kernelkit.remote import progress
from kernelkit.render import SIZE_LIMIT_BYTES, Share
from kernelkit.runtime import MANIFEST_MARK
from kernelkit.sync import Plan
from kernelkit.verify import Verdict, verify

TAIL_LINES = 6  # of the log under the live table
BUDGET_ROWS = 25  # files named in the table of render
LEFT_OUT_NAMED = 5  # files named for each reason
ERROR_LINES = 8  # of an exception's words; --json has more
FAILURE_LINES = 25  # of the log, when a run has failed: a traceback's end
INTERRUPTED = 130
DETACHED = "detached: what runs on Kaggle goes on. Come back with: kernelkit watch{}"
STARTED = time.monotonic()

RUN_COLUMNS = ("run", "version", "profile", "pushed", "state", "verified", "digest")
COLUMNS = (  # of an epoch's event: heading, key, digits
    ("train loss", "train_loss", 4),
    ("val loss", "val_loss", 4),
    ("val IoU", "val_iou", 4),
    ("s", "seconds", 1),
)

app = typer.Typer(
    name="kernelkit",
    help=kernelkit.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
words = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Project = Annotated[Path, typer.Option(help="Folder of the project's pyproject.toml.")]
Profile = Annotated[str | None, typer.Option(help="A profile of the project file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A parameter, or kernel.FIELD, for this call."),
]
OnlyReachable = Annotated[
    bool, typer.Option("--only-reachable", help="Carry what the entry's imports lead to alone.")
]
Endpoint = Annotated[
    str | None,
    typer.Option(envvar="KERNELKIT_ENDPOINT", help="Address of a local Kaggle, on this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Deadline = Annotated[
    float | None,
    typer.Option(min=1, help="Seconds to wait for the run's end.", show_default="none"),
]
Version = Annotated[
    int | None, typer.Option("--version", min=1, help="Which version.", show_default="the latest")
]


class Mounts(StrEnum):
    """Forms of /kaggle/input: that of 2026, and the former."""

    NEW = "new"
    OLD = "old"


MountsOption = Annotated[Mounts, typer.Option(help="Form of /kaggle/input.")]
Inputs = Annotated[
    Path | None,
    typer.Option(
        envvar="KERNELKIT_DATA",
        exists=True,
        file_okay=False,
        help="Folder of folders named by source slug.",
    ),
]


def main() -> NoReturn:
    """Run a command and exit with its code; every error becomes words here, and only here."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what was begun is cleaned up
        signal.signal(number, signal.default_int_handler)
    report: dict[str, Any] = {}
    try:
        code = app(standalone_mode=False) or 0  # the code of a typer.Exit, or nothing
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except KernelkitError as fault:
        code = _say_error(fault)
        report = {"error": str(fault), "next": fault.next_step, **fault.about}
    except Exception as fault:
        code = _say_usage_error(fault)
        report = {"error": str(fault)}
    if code == INTERRUPTED and not report:  # Ctrl-C as typer tells of it, too
        errors.print("interrupted")
        report = {"error": "interrupted"}
    if report:
        _document("--json" in sys.argv, {**report, "exit_code": code})
    sys.exit(code)


@app.command()
def render(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    out: Annotated[Path | None, typer.Option(show_default="build/kernel")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the notebook, its metadata and its manifest."""
    _speak(as_json)
    config = load_config(
        project, profile=profile, settings=settings or [], only_reachable=only_reachable
    )
    folder = out or config.project / "build" / "kernel"
    kernel = pipeline.render_to(config, folder)
    size, findings = len(kernel.payload), pipeline.compare_with_image(kernel)
    _print_budget(kernel.budget, size)
    _print_imports(findings)
    _print_left_out(kernel.bundle.left_out)
    advice = pipeline.advise(kernel)
    _print_advice(advice)
    if size > SIZE_LIMIT_BYTES:
        errors.print("too large for Kaggle: kernelkit preflight says what can be done")
    words.print(f"{escape(str(folder))}  digest {kernel.digest[:12]}")
    about = {
        "folder": str(folder),
        "size": size,
        "limit": SIZE_LIMIT_BYTES,
        "budget": [vars(share) for share in kernel.budget],
        "imports": [vars(finding) for finding in findings],
        "left_out": dict(kernel.bundle.left_out),
        "notes": advice,
    }
    _document(as_json, {**about, **kernel.manifest})


@app.command()
def preflight(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    as_json: AsJson = False,
) -> None:
    """Say what Kaggle would refuse, or run other than meant; sends nothing."""
    _speak(as_json)
    config = load_config(
        project, profile=profile, settings=settings or [], only_reachable=only_reachable
    )
    kernel = pipeline.render(config)
    pipeline.require_no_problems(pipeline.preflight(kernel, config.project))
    advice = pipeline.advise(kernel)
    _print_advice(advice)
    words.print("no problems")
    _document(as_json, {"problems": [], "notes": advice})


@app.command(context_settings={"ignore_unknown_options": True})
def prove(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="PYTEST ARGUMENTS", help="Handed to pytest as they are."),
    ] = None,
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter that runs the project's tests.", show_default="this one"),
    ] = None,
    deadline: Annotated[
        float, typer.Option(min=1, help="Seconds for the notebook, and for each test run.")
    ] = DEADLINE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Run the project's own tests with the package and with what the notebook writes."""
    _speak(as_json)
    config = load_config(
        project, profile=profile, settings=settings or [], only_reachable=only_reachable
    )
    try:
        proof = pipeline.prove(
            config, arguments or [], python=python, deadline=deadline, tell=_Teller()
        )
    except KeyboardInterrupt:
        errors.print("the tests have ended, and nothing of them is left")
        raise typer.Exit(INTERRUPTED) from None
    tests = _counted(len(proof.outcomes), "test")
    words.print(
        f"[bold green]proved[/]: {tests}, the same results from the package and from the notebook "
        f"({proof.words})"
    )
    _document(as_json, {**vars(proof), "numbers": proof.numbers})


@app.command()
def push(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Render, check and send the kernel: a new version, and its run."""
    _speak(as_json)
    config = load_config(
        project,
        profile=profile,
        settings=settings or [],
        endpoint=endpoint,
        only_reachable=only_reachable,
    )
    record = pipeline.push(config, pipeline.connect_to(config), tell=_Teller())
    words.print("Follow it with: kernelkit watch")
    _document(as_json, record.push)


@app.command()
def status(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Say where a run is; exit code 6 when it has failed."""
    _speak(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    record = pipeline.find_record(config, version)
    now = pipeline.status(pipeline.connect_to(config), record)
    _document(as_json, {**record.push, "state": now.state, "failure": now.failure})
    words.print(f"{record.push['slug']} v{record.version}: {now.state}")
    _require_no_failure(now)


@app.command()
def watch(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    version: Version = None,
    deadline: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run to its end. Ctrl-C leaves it running."""
    _speak(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    record = pipeline.find_record(config, version)
    kaggle = pipeline.connect_to(config)
    with _watching(DETACHED.format(f" --version {record.version}")) as teller:
        end = pipeline.watch(kaggle, record, deadline=deadline, tell=teller)
    diagnosis = (
        pipeline.diagnose_end(kaggle, record, end, config.project) if _has_failed(end) else None
    )
    about = {"diagnosis": asdict(diagnosis)} if diagnosis else {}
    _document(as_json, {**record.push, "state": end.state, "failure": end.failure, **about})
    _require_no_failure(end, diagnosis)


@app.command()
def logs(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a run, as far as Kaggle keeps it."""
    _speak(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    record = pipeline.find_record(config, version)
    entries = pipeline.logs(pipeline.connect_to(config), record)
    _document(as_json, [vars(entry) for entry in entries])
    if not as_json:
        sys.stdout.write("".join(entry.text for entry in entries))


@app.command()
def pull(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    version: Version = None,
    deadline: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a run's end, download what it left, and verify it."""
    _speak(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    record = pipeline.find_record(config, version)
    kaggle = pipeline.connect_to(config)
    with _watching(DETACHED.format(f" --version {record.version}")) as teller:
        pulled = pipeline.pull(kaggle, record, deadline=deadline, tell=teller)
    pipeline.require_success(pulled, config.project)
    _conclude(pulled, as_json)


@app.command("diagnose")
def diagnose_command(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER_OR_LOG",
            help="A pulled folder, a log file, or - for stdin.",
            show_default="the latest run of this project",
        ),
    ] = None,
    project: Project = Path(),
    profile: Profile = None,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Say why a run failed, and where in the repository; needs no network."""
    _speak(as_json)
    if source is None:
        config = load_config(project, profile=profile)
        folder = pipeline.find_record(config, version).folder
        diagnosis = pipeline.diagnose_folder(folder, config.project)
    elif source == "-":
        text = sys.stdin.buffer.read().decode(errors="replace")
        diagnosis = diagnose(text, project=_project_or_none(project))
    elif Path(source).is_dir():
        diagnosis = pipeline.diagnose_folder(Path(source), _project_or_none(project))
    elif Path(source).is_file():
        diagnosis = pipeline.diagnose_log(Path(source), _project_or_none(project))
    else:
        raise ConfigError(f"{source} is no folder and no file", "Name one like runs/<slug>/v1.")
    if diagnosis is None:
        words.print("nothing here tells of a failure")
    else:
        _print_diagnosis(diagnosis)
    _document(as_json, asdict(diagnosis) if diagnosis else {"cause": None})


def _project_or_none(project: Path) -> Path | None:
    """A folder that is no project has no files to hold against the run's."""
    return project if (project / PROJECT_FILE).is_file() else None


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="A pulled folder: runs/<slug>/v<version>.")],
    as_json: AsJson = False,
) -> None:
    """Hold a pulled folder against the manifest that its run wrote; needs no network."""
    _speak(as_json)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", "Name one like runs/<slug>/v1.")
    verdict = verify(folder)
    about = {"folder": str(folder), **vars(verdict), "verified": verdict.verified}
    pipeline.require_verified(verdict, folder, about)
    _print_outputs(verdict)
    _document(as_json, about)


@app.command()
def run(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    endpoint: Endpoint = None,
    deadline: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Push, watch, pull and verify."""
    _speak(as_json)
    config = load_config(
        project,
        profile=profile,
        settings=settings or [],
        endpoint=endpoint,
        only_reachable=only_reachable,
    )
    kaggle = pipeline.connect_to(config)
    with _watching(DETACHED.format("")) as teller:
        pulled = pipeline.run(config, kaggle, deadline=deadline, tell=teller)
    _conclude(pulled, as_json)


@app.command()
def rehearse(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    inputs: Inputs = None,
    out: Annotated[Path | None, typer.Option(show_default="build/rehearsal")] = None,
    mounts: MountsOption = Mounts.NEW,
    deadline: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Run the same notebook, by the same client, on a local Kaggle: no account, no network."""
    _speak(as_json)
    config = load_config(
        project,
        profile=profile,
        settings=settings or [],
        only_reachable=only_reachable,
        environment={},
    )
    target = out or config.project / "build" / "rehearsal"
    with _watching("the rehearsal and its local Kaggle have ended") as teller:
        pulled = pipeline.rehearse(
            config, inputs, target, deadline=deadline, mounts=mounts, tell=teller
        )
    _conclude(pulled, as_json)


@app.command()
def submit(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    version: Version = None,
    message: Annotated[str | None, typer.Option(help="Shown beside the score.")] = None,
    as_json: AsJson = False,
) -> None:
    """Enter the submission of a verified run."""
    _speak(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    record = pipeline.find_record(config, version)
    text = message or f"{record.push['slug']} v{record.version} {record.push['digest'][:12]}"
    number, answer = pipeline.submit(pipeline.connect_to(config), record, text)
    words.print(f"submission {number}: {answer}")
    _document(as_json, {"ref": number, "message": answer})


@app.command()
def sync(
    notebook: Annotated[Path, typer.Argument(help="The edited .ipynb, as it was pulled.")],
    project: Project = Path(),
    profile: Profile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it, write nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Let the notebook win where the disk differs too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring what was edited in a pulled notebook home into the package."""
    _speak(as_json)
    plan = pipeline.plan_sync(load_config(project, profile=profile), notebook)
    for change in plan.changes:
        _print_diff(change.diff)
    pipeline.sync(plan, force=force, dry_run=dry_run)
    _print_sync(plan, dry_run)
    _document(as_json, {**plan.about, "written": not dry_run})


@app.command()
def runs(project: Project = Path(), as_json: AsJson = False) -> None:
    """List every version pushed from this project."""
    _speak(as_json)
    records = list(ledger.records(project / "runs"))
    table = Table(*RUN_COLUMNS, box=None)
    rows = [_run_row(record) for record in records]
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    words.print(table if rows else "nothing was pushed from here")
    _document(as_json, rows)


@app.command()
def doctor(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Look, and change nothing: project, disk, credentials, quota."""
    _speak(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    findings = pipeline.doctor(config)
    marks = {True: "[green]good   [/]", False: "[red]bad    [/]", None: "unknown"}
    for finding in findings:
        words.print(f"{marks[finding.good]} {finding.subject}: {escape(finding.words)}")
    _document(as_json, [vars(finding) for finding in findings])
    raise typer.Exit(next((f.exit_code for f in findings if f.exit_code), 0))


@app.command()
def emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    inputs: Inputs = None,
    state: Annotated[Path | None, typer.Option(help="Where its runs are kept.")] = None,
    mounts: MountsOption = Mounts.NEW,
) -> None:
    """Serve a local Kaggle until stopped."""
    arguments = ["--port", str(port), "--mounts", mounts]
    arguments += ["--inputs", str(inputs)] if inputs else []
    arguments += ["--state", str(state)] if state else []
    process = subprocess.Popen(pipeline.emulator_command(arguments))
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the process as well
        code = process.wait()
    raise typer.Exit(code)


class _Teller:
    """Says what happens: a live table in a terminal, plain lines elsewhere."""

    def __init__(self, live: Live | None = None) -> None:
        self._live = live
        self._experiments: dict[str, Mapping[str, Any]] = {}
        self._tail: list[str] = []
        self._started = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, LogEntry):
            self._line(event)
        elif isinstance(event, Status):
            seconds = time.monotonic() - self._started
            failure = f": {event.failure}" if event.failure else ""
            words.print(f"[bold]{event.state}[/] after {seconds:.0f} s{escape(failure)}")
        else:
            words.print(escape(event))

    def unseen_tail(self) -> str:
        """The last lines of the log, where the live table has covered them."""
        return "\n".join(self._tail) if self._live else ""

    def _line(self, entry: LogEntry) -> None:
        if entry.text.startswith(MANIFEST_MARK):
            return  # of a failed run; the traceback that follows says it for people
        event = progress(entry)
        if event and event["event"] == "epoch" and "experiment" in event:
            self._experiments[str(event["experiment"])] = event
        line = _epoch_line(event) if event and event["event"] == "epoch" else entry.text.rstrip()
        self._tail = [*self._tail, line][-FAILURE_LINES:]
        if self._live:
            self._live.update(self._picture())
        elif line and (event is None or event["event"] == "epoch"):
            words.print(Text(line))

    @property
    def seen_epochs(self) -> bool:
        """Whether the run reports epochs at all."""
        return bool(self._experiments)

    def table(self) -> Table:
        """Where each experiment is: a row each, and a column for what they report."""
        shown = [c for c in COLUMNS if any(c[1] in event for event in self._experiments.values())]
        table = Table("experiment", "epoch", *(label for label, _, _ in shown), box=None)
        for name, event in self._experiments.items():
            epoch = f"{event.get('epoch', '?')}/{event.get('epochs', '?')}"
            table.add_row(
                Text(name), Text(epoch), *(_number(event.get(key), n) for _, key, n in shown)
            )
        return table

    def _picture(self) -> Group:
        tail = Text("\n".join(self._tail[-TAIL_LINES:]), style="dim", overflow="ellipsis")
        return Group(self.table(), tail) if self.seen_epochs else Group(tail)


@contextmanager
def _watching(on_interrupt: str) -> Iterator[_Teller]:
    """A teller for a long wait; Ctrl-C ends it with the words `on_interrupt`."""
    console = words if words.is_terminal else None
    live = Live(console=console, refresh_per_second=4) if console else None
    teller = _Teller(live)
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


def _conclude(pulled: Pulled, as_json: bool) -> None:
    """What a verified pull ends with."""
    _print_outputs(pulled.verdict)
    _print_results(pulled.folder)
    words.print(f"[bold green]verified[/]: {escape(str(pulled.folder))}")
    _document(as_json, pulled.about)


def _print_diagnosis(diagnosis: Diagnosis) -> None:
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


def _print_outputs(verdict: Verdict) -> None:
    table = Table("output", "bytes", "sha256", box=None)
    table.columns[1].justify = "right"
    for output in verdict.outputs:
        table.add_row(Text(output["path"]), f"{output['size']:,}", output["sha256"][:12])
    words.print(table)
    if verdict.undeclared:
        words.print(Text(f"beside them: {', '.join(verdict.undeclared)}", style="dim"))


def _print_results(folder: Path) -> None:
    """The tables that the run left, where its pictures are, and what it took."""
    for path in sorted(folder.rglob("*.md")):
        words.print(Markdown(path.read_text(encoding="utf-8", errors="replace")))
    for path in sorted(folder.rglob("*.png")):
        words.print(Text(f"picture: {path}"))
    manifest = json.loads((folder / "run-manifest.json").read_text(encoding="utf-8"))
    total = time.monotonic() - STARTED
    words.print(f"the run took {_number(manifest.get('seconds'), 0)} s, all of it {total:.0f} s")


def _print_budget(budget: Sequence[Share], size: int) -> None:
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


def _print_imports(findings: Sequence[Availability]) -> None:
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


def _print_left_out(left_out: Mapping[str, str]) -> None:
    reasons: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        if reason != "a cache":
            reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        more = f" and {len(paths) - LEFT_OUT_NAMED} more" if len(paths) > LEFT_OUT_NAMED else ""
        named = ", ".join(paths[:LEFT_OUT_NAMED])
        words.print(Text(_printable(f"left out ({reason}): {named}{more}"), style="dim"))


def _print_advice(advice: Sequence[str]) -> None:
    for line in advice:
        words.print(Text.assemble(("note: ", "bold yellow"), _printable(line)))


def _print_diff(diff: str) -> None:
    styles = {"+": "green", "-": "red", "@": "cyan", "\\": "dim"}
    for number, line in enumerate(diff.rstrip("\n").split("\n")):
        style = "bold" if number < 2 else styles.get(line[:1], "")
        words.print(Text(_printable(line), style=style))


def _print_sync(plan: Plan, dry_run: bool) -> None:
    """What was written, and then whatever a person has to carry home by hand."""
    added = sum(change.added for change in plan.changes)
    changed = len(plan.changes) - added
    counts = f"{changed} {'file' if changed == 1 else 'files'} changed, {added} added"
    end = "nothing was written" if dry_run else "review with git diff"
    words.print(f"[bold]{counts}[/]; {end}" if plan.changes else "no file has changed")
    for change in plan.changes:
        if change.conflict:
            warning = f"warning: {change.name}: the change on disk gives way to the notebook's"
            words.print(Text(_printable(warning), style="yellow"))
        if change.syntax_error:
            words.print(Text(_printable(f"warning: {change.syntax_error}"), style="yellow"))
    for path in plan.gone:
        words.print(Text(_printable(f"{path}: its cell is gone; the file stays")))
    for p in plan.parameters:
        if p.after is None:
            what = f"{p.name} is not set any more: remove it from"
        elif p.before is None:
            what = f"{p.name} = {p.after} is new: add it to"
        else:
            what = f"{p.name} = {p.before} → {p.after}: change it in"
        words.print(Text(_printable(f"parameters: {what} {p.section}")))
    if plan.left:
        words.print("cells that have no place in the package:")
    for cell in plan.left:
        words.print(Text(_printable(f"  cell {cell.cell}: {cell.first_line}")), end="")
        words.print(Text(f"  ({cell.reason})", style="dim"))
    for note in plan.notes:
        words.print(Text(_printable(f"note: {note}"), style="dim"))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _printable(line: str) -> str:
    """Control characters as escapes: a notebook must not steer the terminal."""
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in line
    )


def _run_row(record: ledger.Record) -> dict[str, Any]:
    try:
        push, run = record.push, record.run
    except KernelkitError as fault:
        words.print(Text(f"{record.folder}: {fault}", style="red"))
        return dict.fromkeys(RUN_COLUMNS, "?") | {"run": str(record.folder)}
    values = (
        f"{push['owner']}/{push['slug']}",
        record.version,
        push.get("profile") or "",
        push.get("pushed", ""),
        run.get("state", "not pulled"),
        {"True": "yes", "False": "no"}.get(str(run.get("verified")), ""),
        str(push["digest"])[:12],
    )
    return dict(zip(RUN_COLUMNS, values, strict=True))


def _epoch_line(event: Mapping[str, Any]) -> str:
    numbers = [f"{label} {_number(event[key], n)}" for label, key, n in COLUMNS if key in event]
    epoch = f"epoch {event.get('epoch', '?')}/{event.get('epochs', '?')}"
    return "  ".join([str(event.get("experiment", "")), epoch, *numbers]).strip()


def _number(value: Any, digits: int = 4) -> str:
    try:
        return f"{value:.{digits}f}" if isinstance(value, int | float) else ""
    except OverflowError:  # an integer of a notebook's own making
        return "∞"


def _has_failed(end: Status) -> bool:
    return end.state.finished and end.state != "complete"


def _require_no_failure(end: Status, diagnosis: Diagnosis | None = None) -> None:
    if not _has_failed(end):
        return
    if diagnosis is None:
        errors.print(Text(f"error: the run has failed: {end.failure or end.state}"))
        errors.print("next:  Bring home its log: kernelkit pull")
    else:
        errors.print(Text(f"error: the run has failed: {diagnosis.headline}"))
        errors.print(Text(diagnosis.summary))
        errors.print(Text(f"next:  {diagnosis.next_step} Bring home its log: kernelkit pull"))
    raise typer.Exit(6)


def _speak(as_json: bool) -> None:
    """With `--json` stdout belongs to the document: words go to stderr."""
    words.stderr = as_json


def _document(as_json: bool, document: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")


def _say_error(fault: KernelkitError) -> int:
    told = "\n".join(map(_printable, str(fault).split("\n")))
    errors.print(Text.assemble(("error: ", "bold red"), told))
    if fault.next_step:
        errors.print(Text.assemble(("next:  ", "bold"), fault.next_step))
    return fault.exit_code


def _say_usage_error(fault: Exception) -> int:
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
