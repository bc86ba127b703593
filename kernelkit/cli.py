"""`kernelkit COMMAND`: parse, call, speak, exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

import kernelkit
from kernelkit import doctor, history, pipeline, speak
from kernelkit import probe as probing
from kernelkit.client import connect
from kernelkit.config import PROJECT_FILE, Config, checked_endpoint, load_config
from kernelkit.diagnose import diagnose
from kernelkit.errors import ConfigError, KernelkitError
from kernelkit.outputs import Selection
from kernelkit.prove import DEADLINE_SECONDS
from kernelkit.push import Outcome
from kernelkit.render import SIZE_LIMIT_BYTES
from kernelkit.verify import verify

DETACHED = "detached: what runs on Kaggle goes on. Come back with: kernelkit watch{}"


app = typer.Typer(
    name="kernelkit",
    help=kernelkit.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
Again = Annotated[bool, typer.Option("--again", help="Push also what has run, or runs, just so.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until a session is free.")]
Deadline = Annotated[
    float | None,
    typer.Option(min=1, help="Seconds to wait for the run's end.", show_default="none"),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="v3, slug/v3, owner/slug or owner/slug/v3.",
        show_default="this project's latest",
    ),
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
        code = speak.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(speak.INTERRUPTED)
    except KernelkitError as fault:
        code = speak.error(fault)
        report = {"error": str(fault), "next": fault.next_step, **fault.about}
    except Exception as fault:
        code = speak.usage_error(fault)
        report = {"error": str(fault)}
    if code == speak.INTERRUPTED and not report:  # Ctrl-C as typer tells of it, too
        speak.errors.print("interrupted")
        report = {"error": "interrupted"}
    if report:
        speak.document("--json" in sys.argv, {**report, "exit_code": code})
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
    speak.to_stderr_for(as_json)
    config = load_config(
        project, profile=profile, settings=settings or [], only_reachable=only_reachable
    )
    folder = out or config.project / "build" / "kernel"
    kernel = pipeline.render_to(config, folder)
    size, findings = len(kernel.payload), pipeline.compare_with_image(kernel)
    speak.budget(kernel.budget, size)
    speak.imports(findings)
    speak.left_out(kernel.bundle.left_out)
    advice = pipeline.advise(kernel)
    speak.advice(advice)
    if size > SIZE_LIMIT_BYTES:
        speak.errors.print("too large for Kaggle: kernelkit preflight says what can be done")
    speak.words.print(f"{escape(str(folder))}  digest {kernel.digest[:12]}")
    about = {
        "folder": str(folder),
        "size": size,
        "limit": SIZE_LIMIT_BYTES,
        "budget": [vars(share) for share in kernel.budget],
        "imports": [vars(finding) for finding in findings],
        "left_out": dict(kernel.bundle.left_out),
        "notes": advice,
    }
    speak.document(as_json, {**about, **kernel.manifest})


@app.command()
def preflight(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    as_json: AsJson = False,
) -> None:
    """Say what Kaggle would refuse, or run other than meant; sends nothing."""
    speak.to_stderr_for(as_json)
    config = load_config(
        project, profile=profile, settings=settings or [], only_reachable=only_reachable
    )
    kernel = pipeline.render(config)
    pipeline.require_no_problems(pipeline.preflight(kernel, config.project))
    advice = pipeline.advise(kernel)
    speak.advice(advice)
    speak.words.print("no problems")
    speak.document(as_json, {"problems": [], "notes": advice})


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
    speak.to_stderr_for(as_json)
    config = load_config(
        project, profile=profile, settings=settings or [], only_reachable=only_reachable
    )
    try:
        proof = pipeline.prove(
            config, arguments or [], python=python, deadline=deadline, tell=speak.Teller()
        )
    except KeyboardInterrupt:
        speak.errors.print("the tests have ended, and nothing of them is left")
        raise typer.Exit(speak.INTERRUPTED) from None
    tests = speak.counted(len(proof.outcomes), "test")
    speak.words.print(
        f"[bold green]proved[/]: {tests}, the same results from the package and from the notebook "
        f"({proof.words})"
    )
    speak.document(as_json, {**vars(proof), "numbers": proof.numbers})


@app.command()
def push(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    endpoint: Endpoint = None,
    again: Again = False,
    wait: Wait = False,
    deadline: Annotated[
        float | None, typer.Option(min=1, help="Seconds for --wait.", show_default="none")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Render, check and send the kernel: a new version, and its run."""
    speak.to_stderr_for(as_json)
    config = load_config(
        project,
        profile=profile,
        settings=settings or [],
        endpoint=endpoint,
        only_reachable=only_reachable,
    )
    kaggle = pipeline.connect_to(config)
    with speak.watching("interrupted: `kernelkit push` again finds what was sent") as teller:
        record, outcome = pipeline.push(
            config, kaggle, again=again, wait=wait, deadline=deadline, tell=teller
        )
    follow = "pull" if outcome == Outcome.REUSED else "watch"
    speak.words.print(f"Follow it with: kernelkit {follow} v{record.version}")
    speak.document(as_json, {**record.push, "outcome": outcome})


@app.command()
def cancel(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """End a run, where Kaggle lets it be ended; its outputs may be lost."""
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    kaggle, record = pipeline.attach(config, name)
    end = pipeline.cancel(kaggle, record)
    speak.words.print(f"{record.push['slug']} v{record.version}: cancelled")
    speak.document(as_json, {**record.push, "state": end.state, "failure": end.failure})


@app.command()
def status(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Say where a run is; exit code 6 when it has failed."""
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    kaggle, record = pipeline.attach(config, name)
    now = pipeline.status(kaggle, record)
    speak.document(as_json, {**record.push, "state": now.state, "failure": now.failure})
    speak.words.print(f"{record.push['slug']} v{record.version}: {now.state}")
    speak.require_no_failure(now)


@app.command()
def watch(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    deadline: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run to its end. Ctrl-C leaves it running."""
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    kaggle, record = pipeline.attach(config, name)
    with speak.watching(DETACHED.format(f" v{record.version}")) as teller:
        end = pipeline.watch(kaggle, record, deadline=deadline, tell=teller)
    diagnosis = (
        pipeline.diagnose_end(kaggle, record, end, config.project)
        if speak.has_failed(end)
        else None
    )
    about = {"diagnosis": asdict(diagnosis)} if diagnosis else {}
    speak.document(as_json, {**record.push, "state": end.state, "failure": end.failure, **about})
    speak.require_no_failure(end, diagnosis)


@app.command()
def logs(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a run, as far as Kaggle keeps it."""
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    kaggle, record = pipeline.attach(config, name)
    entries = pipeline.logs(kaggle, record)
    speak.document(as_json, [vars(entry) for entry in entries])
    if not as_json:
        text = "".join(entry.text for entry in entries)
        sys.stdout.write(speak.lines_printable(text) if sys.stdout.isatty() else text)


@app.command()
def pull(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    deadline: Deadline = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="NAME", help="This output alone; may be given again."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Outputs of such names alone; may be given again."),
    ] = None,
    unpacked: Annotated[
        bool, typer.Option("--unpack", help="Unpack each verified zip into a folder beside it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Wait for a run's end, download what it left, and verify it.

    Everything in the run's working folder comes, unless --file or --only name a part of it. What
    was cut goes on where it was. Files that were not declared as outputs come too, unverified.
    """
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    kaggle, record = pipeline.attach(config, name)
    selection = Selection(tuple(files or ()), tuple(only or ()))
    with speak.watching(DETACHED.format(f" v{record.version}")) as teller:
        pulled = pipeline.pull(kaggle, record, selection, deadline=deadline, tell=teller)
    pipeline.require_success(pulled, config.project)
    if unpacked:
        pipeline.unpack(pulled, tell=teller)
    speak.conclude(pulled, as_json)


@app.command("diagnose")
def diagnose_command(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN, FOLDER OR LOG",
            help="A run's name, a pulled folder, a log file, or - for stdin.",
            show_default="the latest run of this project",
        ),
    ] = None,
    project: Project = Path(),
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Say why a run failed, and where in the repository; needs no network."""
    speak.to_stderr_for(as_json)
    if source == "-":
        text = sys.stdin.buffer.read().decode(errors="replace")
        diagnosis = diagnose(text, project=_project_or_none(project))
    elif source and Path(source).is_dir():
        diagnosis = pipeline.diagnose_folder(Path(source), _project_or_none(project))
    elif source and Path(source).is_file():
        diagnosis = pipeline.diagnose_log(Path(source), _project_or_none(project))
    else:
        config = load_config(project, profile=profile)
        folder = pipeline.find_record(config, source or "").folder
        diagnosis = pipeline.diagnose_folder(folder, config.project)
    if diagnosis is None:
        speak.words.print("nothing here tells of a failure")
    else:
        speak.diagnosis(diagnosis)
    speak.document(as_json, asdict(diagnosis) if diagnosis else {"cause": None})


def _project_or_none(project: Path) -> Path | None:
    """A folder that is no project has no files to hold against the run's."""
    return project if (project / PROJECT_FILE).is_file() else None


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="A pulled folder: runs/<slug>/v<version>.")],
    as_json: AsJson = False,
) -> None:
    """Hold a pulled folder against the manifest that its run wrote; needs no network."""
    speak.to_stderr_for(as_json)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", "Name one like runs/<slug>/v1.")
    verdict = verify(folder)
    about = {"folder": str(folder), **vars(verdict), "verified": verdict.verified}
    pipeline.require_verified(verdict, folder, about)
    speak.outputs(verdict)
    speak.words.print(f"[bold green]verified[/]: {escape(str(folder))}")
    speak.document(as_json, about)


@app.command()
def run(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    only_reachable: OnlyReachable = False,
    endpoint: Endpoint = None,
    again: Again = False,
    wait: Wait = False,
    deadline: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Push, watch, pull and verify."""
    speak.to_stderr_for(as_json)
    config = load_config(
        project,
        profile=profile,
        settings=settings or [],
        endpoint=endpoint,
        only_reachable=only_reachable,
    )
    kaggle = pipeline.connect_to(config)
    with speak.watching("interrupted: `kernelkit run` again finds what was sent") as teller:
        pulled = pipeline.run(
            config, kaggle, again=again, wait=wait, deadline=deadline, tell=teller
        )
    speak.conclude(pulled, as_json)


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
    speak.to_stderr_for(as_json)
    config = load_config(
        project,
        profile=profile,
        settings=settings or [],
        only_reachable=only_reachable,
        environment={},
    )
    target = out or config.project / "build" / "rehearsal"
    with speak.watching("the rehearsal and its local Kaggle have ended") as teller:
        pulled = pipeline.rehearse(
            config, inputs, target, deadline=deadline, mounts=mounts, tell=teller
        )
    speak.conclude(pulled, as_json)


@app.command()
def submit(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    message: Annotated[str, typer.Option(help="Shown beside the score.", show_default=False)] = "",
    file: Annotated[
        str, typer.Option(help="Which output is submitted.", show_default="its one csv")
    ] = "",
    competition: Annotated[
        str, typer.Option(metavar="SLUG", help="Where to.", show_default="the run's one source")
    ] = "",
    sample: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="The competition's sample submission.",
            show_default="that of --inputs, else Kaggle's",
        ),
    ] = None,
    inputs: Inputs = None,
    code: Annotated[
        bool, typer.Option("--code", help="Submit the version, as to a code competition.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send also what was submitted before.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the score.")] = True,
    deadline: Annotated[
        float | None, typer.Option(min=1, help="Seconds to wait for it.", show_default="none")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the submission of a verified run, enter it once, and wait for its score."""
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    record = pipeline.find_record(config, name)
    kaggle = pipeline.connect_to(config)
    with speak.watching("interrupted: the same command finds what was entered") as teller:
        submitted = pipeline.submit(
            kaggle,
            record,
            message=message,
            file=file,
            competition=competition,
            sample=sample,
            data=inputs,
            code=code,
            again=again,
            wait=wait,
            deadline=deadline,
            tell=teller,
        )
    speak.submitted(submitted)
    speak.document(as_json, submitted.about)


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
    speak.to_stderr_for(as_json)
    plan = pipeline.plan_sync(load_config(project, profile=profile), notebook)
    for change in plan.changes:
        speak.diff(change.diff)
    pipeline.sync(plan, force=force, dry_run=dry_run)
    speak.sync(plan, dry_run)
    speak.document(as_json, {**plan.about, "written": not dry_run})


runs_app = typer.Typer(
    invoke_without_command=True,
    help="List every version pushed from this project.",
    rich_markup_mode=None,
)
app.add_typer(runs_app, name="runs")


@runs_app.callback()
def runs(context: typer.Context, project: Project = Path(), as_json: AsJson = False) -> None:
    """List every version pushed from this project, the newest last; or one, or two compared."""
    if context.invoked_subcommand:
        if as_json or project != Path():
            raise ConfigError(
                "options of runs stand before its sub-command",
                f"Write them behind: kernelkit runs {context.invoked_subcommand} … --json.",
            )
        return
    speak.to_stderr_for(as_json)
    rows = history.rows(project / "runs")
    speak.runs(rows)
    speak.document(as_json, rows)


@runs_app.command("show")
def runs_show(
    name: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Tell all that is known of one run."""
    speak.to_stderr_for(as_json)
    about = history.show(pipeline.find_record(load_config(project, profile=profile), name))
    speak.run(about)
    speak.document(as_json, about)


@runs_app.command("diff")
def runs_diff(
    before: Annotated[str, typer.Argument(metavar="RUN", help="v3, slug/v3, owner/slug/v3.")],
    after: RunName = "",
    project: Project = Path(),
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Tell how two runs differ: parameters, code, fields, versions, results."""
    speak.to_stderr_for(as_json)
    config = load_config(project, profile=profile)
    found = history.diff(*(pipeline.find_record(config, name) for name in (before, after)))
    speak.difference(found)
    speak.document(as_json, found)


@app.command("doctor")
def doctor_command(
    project: Project = Path(),
    profile: Profile = None,
    settings: Settings = None,
    endpoint: Endpoint = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run a tiny private kernel, to see what Kaggle does.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the probe beforehand.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look, and change nothing: this machine, the account, the project and its sources."""
    speak.to_stderr_for(as_json)
    config: Config | ConfigError
    try:
        config = load_config(project, profile=profile, settings=settings or [], endpoint=endpoint)
    except ConfigError as fault:
        config = fault
    if probe:
        _probe(project, config, checked_endpoint(endpoint), yes, as_json)
        return
    findings = doctor.examine(project, config, checked_endpoint(endpoint))
    speak.findings(findings)
    speak.document(as_json, [vars(finding) for finding in findings])
    raise typer.Exit(next((f.exit_code for f in findings if f.exit_code), 0))


def _probe(
    project: Path, config: Config | ConfigError, endpoint: str | None, yes: bool, as_json: bool
) -> None:
    """Say what the probe does, ask, do it. A project is not needed; its competitions are."""
    kernel = config.kernel if isinstance(config, Config) else None
    kaggle = connect(endpoint, local_user=kernel.owner if kernel else None)
    folder = project / "runs" / "probe" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
    competitions = kernel.competition_sources if kernel else ()
    speak.words.print(escape(probing.plan(kaggle, folder, competitions)))
    if not yes and not sys.stdin.isatty():
        raise ConfigError("the probe asks before it pushes", "Agree beforehand: --probe --yes")
    if not yes and not typer.confirm("Go on?", err=as_json):
        raise typer.Exit(speak.INTERRUPTED)
    with speak.watching(f"what runs on Kaggle goes on; the calls so far are in {folder}") as teller:
        report = probing.probe(kaggle, folder, competitions, tell=teller)
    speak.findings(report.findings)
    speak.words.print(f"good: as kernelkit assumes; bad: otherwise. Kept in {escape(str(folder))}:")
    speak.words.print("transcript.json and report.json name nobody, and may be shown to others")
    if report.image and endpoint is None:
        speak.words.print(
            f'next:  cp {report.image} kaggle-image.json, and image = "kaggle-image.json" in '
            "[tool.kernelkit]: imports are then held against what is really there",
            markup=False,
        )
    findings = [vars(finding) for finding in report.findings]
    speak.document(as_json, {"folder": str(folder), "findings": findings})


@app.command(context_settings={"ignore_unknown_options": True})
def emulator(
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="OPTIONS", help="`python -m kernelkit.emulator --help` has more."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    inputs: Inputs = None,
) -> None:
    """Serve a local Kaggle until stopped.

    Further options are handed on as they are: --state DIR keeps everything over a restart,
    --solutions DIR scores submissions.
    """
    arguments = ["--port", str(port), *(["--inputs", str(inputs)] if inputs else [])]
    arguments += options or []
    process = subprocess.Popen(pipeline.emulator_command(arguments))
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the process as well
        code = process.wait()
    raise typer.Exit(code)
