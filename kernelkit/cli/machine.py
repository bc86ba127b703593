"""Commands about this machine: check it, and serve a local Kaggle."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kernelkit.cli.options import (
    COMMON,
    INTERRUPTED,
    REMOTE,
    Inputs,
    Options,
    project_or_none,
    shares,
)
from kernelkit.cli.root import app
from kernelkit.errors import ConfigError

if TYPE_CHECKING:
    from kernelkit.config import Config


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
    folder = project_or_none(options) or Path.cwd()
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
