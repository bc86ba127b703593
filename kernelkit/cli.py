"""The command line `kernelkit`: parses arguments, calls `workflow`, returns the exit code.

Each command imports what it needs when it runs: `--help`, `--version` and shell completion then
load nothing but typer.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import kernelkit
from kernelkit.errors import ConfigError

if TYPE_CHECKING:
    from kernelkit.config import Config

DETACHED = "detached: the run on Kaggle continues. Come back with: kernelkit watch{}"
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """The options that commands share. Each works before and after the name of the command."""

    project: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the project's pyproject.toml.",
            show_default="the nearest one, upwards",
        ),
    ] = None
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Profile of the project file.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter, or kernel.FIELD."),
    ] = None
    only_reachable: Annotated[
        bool, typer.Option("--only-reachable", help="Carry only what the entry imports.")
    ] = False
    endpoint: Annotated[
        str | None,
        typer.Option(envvar="KERNELKIT_ENDPOINT", metavar="URL", help="Address of a local Kaggle."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document only.")] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the result and errors.")
    ] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more details.")] = False

    @property
    def folder(self) -> Path:
        """The project's folder: `--project`, else the nearest project from here upwards.

        Raises:
            ConfigError: there is no such folder, or no folder from here upwards is a project.
        """
        from kernelkit.config import find_project, project_folder

        return project_folder(self.project) if self.project else find_project(Path.cwd())

    def config(self, environment: Mapping[str, str] | None = None) -> Config:
        """The project as these options describe it."""
        from kernelkit.config import load_config

        return load_config(
            self.folder,
            profile=self.profile,
            settings=self.settings or (),
            endpoint=self.endpoint,
            only_reachable=self.only_reachable,
            environment=os.environ if environment is None else environment,
        )


@dataclass(frozen=True)
class Given:
    """Options, and the names of those that the user typed."""

    options: Options
    typed: frozenset[str]

    def after(self, before: Given) -> Given:
        """These on top of those before the command's name; each `--set` counts."""
        kept = {name: getattr(before.options, name) for name in before.typed - self.typed}
        if "settings" in before.typed & self.typed:
            kept["settings"] = [*(before.options.settings or ()), *(self.options.settings or ())]
        return Given(replace(self.options, **kept), before.typed | self.typed)


COMMON = ("project", "as_json", "quiet", "verbose")
BUILD = ("profile", "settings", "only_reachable")
REMOTE = ("profile", "settings", "endpoint")
DECLARED = inspect.signature(Options, eval_str=True).parameters

Command = Callable[..., None]


def shares(*names: str) -> Callable[[Command], Command]:
    """Let typer pass the options `names` to a function, whose first argument is an `Options`."""

    def decorate(function: Command) -> Command:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
            *(DECLARED[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names),
        ]

        def call(context: typer.Context, **values: Any) -> None:
            given = Given(
                Options(**{name: values.pop(name) for name in names}), _typed(context, names)
            )
            before: Given | None = context.obj
            if context.invoked_subcommand:  # a group: its sub-command gets them
                context.obj = given.after(before) if before else given
            else:
                function(_combined(context, names, before, given), **values)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def _combined(
    context: typer.Context, names: Sequence[str], before: Given | None, given: Given
) -> Options:
    """The options of this command on top of those before its name; the console obeys them.

    Raises:
        ConfigError: an option before the name is one that the command does not take.
    """
    from kernelkit import console

    if before:
        allowed = {*names, "quiet", "verbose"} if names else set()  # pytest has those of `prove`
        refused = sorted(before.typed - allowed)
        if refused:
            flag = {"settings": "--set"}.get(refused[0], f"--{refused[0].replace('_', '-')}")
            raise ConfigError(
                f"{context.command_path} does not take {flag}",
                f"Show what it takes: `{context.command_path} --help`",
            )
        given = given.after(before)
    options = given.options
    console.configure(as_json=options.as_json, quiet=options.quiet, verbose=options.verbose)
    return options


def _typed(context: typer.Context, names: Sequence[str]) -> frozenset[str]:
    """The options that the user typed: neither a default nor from the environment."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return frozenset(
        name for name, source in sources.items() if source and source.name == "COMMANDLINE"
    )


app = typer.Typer(
    name="kernelkit",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if `wanted`."""
    if wanted:
        as_json = "--json" in sys.argv
        version = kernelkit.__version__
        print(json.dumps({"version": version}) if as_json else f"kernelkit {version}")
        raise typer.Exit


@app.callback(help=(kernelkit.__doc__ or "").partition("\n")[0])
@shares(*DECLARED)
def root(
    options: Options,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", is_eager=True, callback=print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Keep the shared options before the name of the command."""


Again = Annotated[bool, typer.Option("--again", help="Push even if an identical run exists.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until a session is free.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        min=1, metavar="SECONDS", help="How long to wait for the end.", show_default="none"
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="v3, slug/v3, owner/slug or owner/slug/v3.",
        show_default="the latest run of this project",
    ),
]


class Mounts(StrEnum):
    """Layouts of /kaggle/input: `new` since 2026, `old` before."""

    NEW = "new"
    OLD = "old"


Inputs = Annotated[
    Path | None,
    typer.Option(
        envvar="KERNELKIT_DATA",
        exists=True,
        file_okay=False,
        help="Folder with one folder per source slug.",
    ),
]


def main() -> NoReturn:
    """Run a command and exit with its code. Every error is reported here, and only here."""
    gc.set_threshold(100_000, 50, 100)  # most objects are syntax trees and cells, without cycles
    atexit.register(gc.freeze)  # else Python visits every object once more before it exits
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # urllib3 and requests warn on stderr, with whole addresses; what matters is in our own errors
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that `finally` blocks run
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(
            app(standalone_mode=False, prog_name="kernelkit") or 0
        )  # the code of a typer.Exit, or None
    except BrokenPipeError:  # the reader of our output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except (Exception, KeyboardInterrupt) as error:
        from kernelkit import console

        sys.exit(console.report(error, as_json="--json" in sys.argv))


@app.command("init")
@shares(*COMMON)
def init(
    options: Options,
    competition: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Competition that has the data.")
    ] = None,
    entry: Annotated[
        str | None, typer.Option(metavar="ENTRY", help="What the run starts, e.g. train.py.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
) -> None:
    """Write [tool.kernelkit] for this project.

    Reads the source, without executing it, for what could start a run, its parameters and the
    files that it opens and writes. What is in pyproject.toml stays as it is.
    """
    from kernelkit import console
    from kernelkit.project.init import open_points, plan_init, write_init

    folder = options.folder if options.project else Path.cwd()
    plan = plan_init(folder, competition=competition, entry=entry)
    if plan.exists:
        console.initialized(plan, [])
        return
    if not yes and (options.as_json or not sys.stdin.isatty()):
        raise ConfigError("init asks before it writes", "Agree in advance: kernelkit init --yes")
    if not yes:
        console.init_candidates(plan)
        if entry is None and len(plan.candidates) > 1:
            number = typer.prompt("Number of the entry", default=1, type=int)
            if not 1 <= number <= len(plan.candidates):
                raise ConfigError(f"there is no entry {number}", "Start again, or use --entry.")
            entry = plan.candidates[number - 1].entry
        if competition is None:
            question = "Slug of the competition, or nothing"
            competition = typer.prompt(question, default="", show_default=False) or None
        plan = plan_init(folder, competition=competition, entry=entry)
    console.init_text(plan)
    if not yes and not typer.confirm(f"Add this to {plan.path}?", default=True):
        raise typer.Exit(INTERRUPTED)
    write_init(plan)
    console.initialized(plan, open_points(folder))


@app.command("config")
@shares(*BUILD, "endpoint", *COMMON)
def show_config(options: Options) -> None:
    """Show each setting and where it comes from."""
    from kernelkit import console
    from kernelkit.config import config_values

    console.config_values(
        config_values(
            options.folder,
            profile=options.profile,
            settings=options.settings or (),
            endpoint=options.endpoint,
            only_reachable=options.only_reachable,
        )
    )


@app.command("render")
@shares(*BUILD, *COMMON)
def render(
    options: Options,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="build/kernel")
    ] = None,
) -> None:
    """Write the notebook, metadata and manifest."""
    from kernelkit import console, workflow

    console.rendered(workflow.render_to(options.config(), out))


@app.command()
@shares(*BUILD, *COMMON)
def preflight(options: Options) -> None:
    """Check for problems without pushing."""
    from kernelkit import console, workflow
    from kernelkit.notebook.preflight import advise

    console.no_problems(advise(workflow.preflight(options.config())))


@app.command(context_settings={"ignore_unknown_options": True})
@shares(*BUILD, "project", "as_json")  # -q and -v are for pytest
def prove(
    options: Options,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="PYTEST ARGUMENTS", help="Passed to pytest unchanged."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter that runs the tests.", show_default="this one"),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="Time limit of each step.", show_default="600"),
    ] = None,
) -> None:
    """Compare test results: package and notebook.

    Runs the project's own tests twice, with the package and with the modules that the notebook
    writes, and compares the results of every test.
    """
    from kernelkit import console, workflow

    with console.watching("the tests were stopped and left nothing behind") as reporter:
        proof = workflow.prove(
            options.config(),
            arguments or [],
            python=python,
            deadline=deadline,
            on_event=reporter,
        )
    console.proved(proof)


@app.command()
@shares(*BUILD, "endpoint", *COMMON)
def push(
    options: Options,
    again: Again = False,
    wait: Wait = False,
    deadline: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="How long --wait waits.", show_default="none"),
    ] = None,
) -> None:
    """Push a new version, which starts to run."""
    from kernelkit import console, workflow

    config = options.config()
    kaggle = workflow.connect_to(config)
    with console.watching("interrupted: `kernelkit push` finds what was sent") as reporter:
        pushed = workflow.push(
            config, kaggle, again=again, wait=wait, deadline=deadline, on_event=reporter
        )
    console.pushed(pushed)


@app.command()
@shares(*REMOTE, *COMMON)
def cancel(options: Options, name: RunName = "") -> None:
    """Cancel a run. Its outputs may be lost."""
    from kernelkit import console, workflow

    kaggle, folder = workflow.attach(options.config(), name)
    console.state(folder, workflow.cancel(kaggle, folder))


@app.command()
@shares(*REMOTE, *COMMON)
def status(options: Options, name: RunName = "") -> None:
    """Show the state of a run.

    The exit code is 6 if the run failed.
    """
    from kernelkit import console, workflow

    kaggle, folder = workflow.attach(options.config(), name)
    now = workflow.status(kaggle, folder)
    console.state(folder, now)
    console.require_no_failure(now)


@app.command()
@shares(*REMOTE, *COMMON)
def watch(options: Options, name: RunName = "", deadline: Deadline = None) -> None:
    """Follow a run until it ends.

    Ctrl-C stops the watch; the run continues.
    """
    from kernelkit import console, workflow

    config = options.config()
    kaggle, folder = workflow.attach(config, name, deadline)
    with console.watching(DETACHED.format(f" v{folder.version}")) as reporter:
        end = workflow.watch(kaggle, folder, deadline=deadline, on_event=reporter)
    diagnosis = None
    if console.has_failed(end):
        diagnosis = workflow.diagnose_end(kaggle, folder, end, config.project)
    console.watched(folder, end, diagnosis)
    console.require_no_failure(end, diagnosis)


@app.command()
@shares(*REMOTE, *COMMON)
def logs(
    options: Options,
    name: RunName = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Only the last N lines.", show_default="all"),
    ] = None,
    deadline: Deadline = None,
) -> None:
    """Print the log of a run."""
    from kernelkit import console, workflow

    kaggle, folder = workflow.attach(options.config(), name)
    entries = workflow.logs(kaggle, folder)
    if not follow:
        console.log(entries, tail)
        return
    with console.following(entries, tail, DETACHED.format(f" v{folder.version}")) as on_event:
        end = workflow.watch(kaggle, folder, deadline=deadline, on_event=on_event)
    console.require_no_failure(end, None)


@app.command("open")
@shares("profile", *COMMON)
def open_run(options: Options, name: RunName = "") -> None:
    """Show the page of a run in a browser."""
    from kernelkit import console, workflow

    console.open_page(workflow.find_folder(options.config(), name).read().address.url)


@app.command()
@shares(*REMOTE, *COMMON)
def pull(
    options: Options,
    name: RunName = "",
    deadline: Deadline = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="NAME", help="Only this output. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only outputs that match. Repeatable."),
    ] = None,
    unpack_zips: Annotated[
        bool, typer.Option("--unpack", help="Unpack each verified zip into a folder.")
    ] = False,
) -> None:
    """Download and verify the outputs of a run.

    Waits for the end of the run, then downloads its whole working folder, unless --file or --only
    select some of it. An interrupted download is resumed. Files that are not declared as outputs
    are downloaded but not verified.
    """
    from kernelkit import console, workflow
    from kernelkit.runs.download import Selection

    config = options.config()
    kaggle, folder = workflow.attach(config, name, deadline)
    selection = Selection(tuple(files or ()), tuple(only or ()))
    with console.watching(DETACHED.format(f" v{folder.version}")) as reporter:
        pulled = workflow.pull(
            kaggle,
            folder,
            config.project,
            selection,
            unpack=unpack_zips,
            deadline=deadline,
            on_event=reporter,
        )
    console.conclude(pulled)


@app.command("diagnose")
@shares("profile", *COMMON)
def diagnose_command(
    options: Options,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN, FOLDER OR LOG",
            help="A run, a folder, a log file, or - (stdin).",
            show_default="the latest run of this project",
        ),
    ] = None,
) -> None:
    """Explain why a run failed.

    Shows the cause, the place in the repository and the next step. Needs no network.
    """
    from kernelkit import console, workflow
    from kernelkit.diagnosis.diagnose import diagnose, diagnose_folder, diagnose_log

    if source == "-":
        text = sys.stdin.buffer.read().decode(errors="replace")
        diagnosis = diagnose(text, project=_project_or_none(options))
    elif source and Path(source).is_dir():
        diagnosis = diagnose_folder(Path(source), _project_or_none(options))
    elif source and Path(source).is_file():
        diagnosis = diagnose_log(Path(source), _project_or_none(options))
    else:
        config = options.config()
        folder = workflow.find_folder(config, source or "")
        diagnosis = diagnose_folder(folder.path, config.project)
    console.diagnosed(diagnosis)


def _project_or_none(options: Options) -> Path | None:
    """The folder that `--project` names, else the nearest project, if there is one.

    Raises:
        ConfigError: `--project` names no folder.
    """
    if options.project:
        return options.folder
    try:
        return options.folder
    except ConfigError:
        return None


@app.command("verify")
@shares(*COMMON)
def verify_command(
    _: Options,
    folder: Annotated[Path, typer.Argument(help="A run folder: runs/<slug>/v<version>.")],
) -> None:
    """Verify a downloaded run folder.

    Compares every output with the manifest that the run wrote. Needs no network.
    """
    from kernelkit import console
    from kernelkit.runs.verify import require_verified, verify

    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", "Name one like runs/<slug>/v1.")
    verdict = verify(folder)
    require_verified(verdict, folder)
    console.verified(folder, verdict)


@app.command()
@shares(*BUILD, "endpoint", *COMMON)
def run(
    options: Options, again: Again = False, wait: Wait = False, deadline: Deadline = None
) -> None:
    """Push, watch, pull and verify."""
    from kernelkit import console, workflow

    config = options.config()
    kaggle = workflow.connect_to(config)
    with console.watching("interrupted: `kernelkit run` finds what was sent") as reporter:
        pulled = workflow.run(
            config, kaggle, again=again, wait=wait, deadline=deadline, on_event=reporter
        )
    console.conclude(pulled)


@app.command()
@shares(*BUILD, *COMMON)
def rehearse(
    options: Options,
    inputs: Inputs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="build/rehearsal")
    ] = None,
    mounts: Annotated[Mounts, typer.Option(help="Layout of /kaggle/input.")] = Mounts.NEW,
    deadline: Deadline = None,
) -> None:
    """Run the notebook on a local Kaggle.

    The same notebook and the same client, without an account and without a network.
    """
    from kernelkit import console, workflow

    config = options.config(environment={})
    target = out or config.build_folder("rehearsal")
    with console.watching("the rehearsal and its local Kaggle were stopped") as reporter:
        pulled = workflow.rehearse(
            config, inputs, target, deadline=deadline, mounts=mounts, on_event=reporter
        )
    console.conclude(pulled)


@app.command()
@shares(*REMOTE, *COMMON)
def submit(
    options: Options,
    name: RunName = "",
    message: Annotated[str, typer.Option(help="Shown next to the score.", show_default=False)] = "",
    file: Annotated[str, typer.Option(help="Output to submit.", show_default="its only csv")] = "",
    competition: Annotated[
        str,
        typer.Option(
            metavar="SLUG", help="Competition.", show_default="the only source of the run"
        ),
    ] = "",
    sample: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Sample submission of the competition.",
            show_default="from --inputs, else from Kaggle",
        ),
    ] = None,
    inputs: Inputs = None,
    code: Annotated[
        bool, typer.Option("--code", help="Submit the version (code competition).")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Submit even if it was submitted before.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the score.")] = True,
    deadline: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="How long --wait waits.", show_default="none"),
    ] = None,
) -> None:
    """Submit a verified run, wait for its score.

    Checks the file before it is sent, and submits it only once.
    """
    from kernelkit import console, workflow
    from kernelkit.runs.submit import SubmitOptions

    config = options.config()
    folder = workflow.find_folder(config, name)
    submission = SubmitOptions(
        message=message,
        file=file,
        competition=competition,
        sample=sample,
        data=inputs,
        pixels=config.submission.pixels,
        code=code,
        again=again,
    )
    kaggle = workflow.connect_to(config)
    with console.watching("interrupted: the same command finds the submission") as reporter:
        submitted = workflow.submit(
            kaggle, folder, submission, wait=wait, deadline=deadline, on_event=reporter
        )
    console.submitted(submitted)


@app.command()
@shares("profile", *COMMON)
def sync(
    options: Options,
    notebook: Annotated[Path, typer.Argument(help="The edited .ipynb file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show changes, write nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that changed on disk.")
    ] = False,
) -> None:
    """Copy notebook edits back to the package."""
    from kernelkit import console, workflow

    plan = workflow.plan_sync(options.config(), notebook)
    console.diffs(plan)
    workflow.sync(plan, force=force, dry_run=dry_run)
    console.synced(plan, dry_run)


app.add_typer(runs_app, name="runs")


@runs_app.callback()
@shares(*COMMON)
def runs(options: Options) -> None:
    """List, show or compare pushed versions."""
    from kernelkit import console
    from kernelkit.config import PROJECT_FILE
    from kernelkit.runs import history

    folder = _project_or_none(options) or Path.cwd()
    if options.project and not any((folder / name).exists() for name in (PROJECT_FILE, "runs")):
        raise ConfigError(f"{folder} has no {PROJECT_FILE} and no runs", "Name a project's folder.")
    console.runs(history.rows(folder / "runs"), folder)


@runs_app.command("show")
@shares("profile", *COMMON)
def runs_show(options: Options, name: RunName = "") -> None:
    """Show everything known about a run."""
    from kernelkit import console, workflow
    from kernelkit.runs import history

    console.run(history.show(workflow.find_folder(options.config(), name)))


@runs_app.command("diff")
@shares("profile", *COMMON)
def runs_diff(
    options: Options,
    before: Annotated[str, typer.Argument(metavar="RUN", help="v3, slug/v3, owner/slug/v3.")],
    after: RunName = "",
) -> None:
    """Compare two runs.

    Shows different parameters, code, settings, versions and results.
    """
    from kernelkit import console, workflow
    from kernelkit.runs import history

    config = options.config()
    found = history.diff(*(workflow.find_folder(config, name) for name in (before, after)))
    console.difference(found)


@app.command()
@shares(*REMOTE, *COMMON)
def doctor(
    options: Options,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run a tiny private kernel on Kaggle.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run the probe without asking.")] = False,
) -> None:
    """Check this machine, account and project.

    Changes nothing, except that --probe pushes a tiny private kernel.
    """
    from kernelkit import console
    from kernelkit.config import checked_endpoint
    from kernelkit.doctor.checks import examine

    project: Config | ConfigError
    try:
        project = options.config()
    except ConfigError as error:
        project = error
    endpoint = checked_endpoint(options.endpoint)
    folder = _project_or_none(options) or Path.cwd()
    if probe:
        _probe(options, folder, project, endpoint, yes)
        return
    results = examine(folder, project, endpoint)
    console.checked(results)
    raise typer.Exit(next((one.exit_code for one in results if one.exit_code), 0))


def _probe(
    options: Options,
    project: Path,
    config: Config | ConfigError,
    endpoint: str | None,
    yes: bool,
) -> None:
    """Describe the probe, ask, run it. It works without a project."""
    from kernelkit import console
    from kernelkit.doctor.probe import plan, probe
    from kernelkit.kaggle.kernels import connect
    from kernelkit.storage import make_ignored_folder

    kernel = None if isinstance(config, ConfigError) else config.kernel
    kaggle = connect(endpoint, local_user=kernel.owner if kernel else None)
    folder = project / "runs" / "probe" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
    competitions = kernel.competition_sources if kernel else ()
    console.probe_plan(plan(kaggle, folder, competitions))
    if not yes and (options.as_json or not sys.stdin.isatty()):
        raise ConfigError("the probe asks before it pushes", "Agree in advance: --probe --yes")
    if not yes and not typer.confirm("Continue?"):
        raise typer.Exit(INTERRUPTED)
    make_ignored_folder(project / "runs")
    interrupted = f"runs on Kaggle continue; the recorded calls are in {folder}"
    with console.watching(interrupted) as reporter:
        report = probe(kaggle, folder, competitions, on_event=reporter)
    console.probed(report, suggest_image=endpoint is None)


@app.command(context_settings={"ignore_unknown_options": True})
@shares()
def emulator(
    _: Options,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="OPTIONS", help="Options of `python -m kernelkit.emulator`."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8000,
    inputs: Inputs = None,
) -> None:
    """Start a local Kaggle.

    It runs until you stop it. Other options are passed on: --state DIR keeps its data after a
    restart, --solutions DIR scores submissions. See `python -m kernelkit.emulator --help`.
    """
    from kernelkit.kaggle.local import emulator_command

    command = emulator_command(["--port", str(port)])
    command += ["--inputs", str(inputs)] if inputs else []
    sys.stdout.flush()
    # Not a child: signals to this process, and its exit status, are the emulator's own.
    os.execv(command[0], [*command, *(arguments or [])])
