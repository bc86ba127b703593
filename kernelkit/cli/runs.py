"""Commands about recorded runs: list, compare, verify and explain them, without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import COMMON, Options, RunName, project_or_none, shares
from kernelkit.cli.root import app
from kernelkit.errors import ConfigError

runs_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")


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
        diagnosis = diagnose(text, project=project_or_none(options))
    elif source and Path(source).is_dir():
        diagnosis = diagnose_folder(Path(source), project_or_none(options))
    elif source and Path(source).is_file():
        diagnosis = diagnose_log(Path(source), project_or_none(options))
    else:
        config = options.config()
        folder = workflow.find_folder(config, source or "")
        diagnosis = diagnose_folder(folder.path, config.project)
    console.diagnosed(diagnosis)


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


@runs_app.callback()
@shares(*COMMON)
def runs(options: Options) -> None:
    """List, show or compare pushed versions."""
    from kernelkit import console
    from kernelkit.config import PROJECT_FILE
    from kernelkit.runs import history

    folder = project_or_none(options) or Path.cwd()
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


@runs_app.command("export")
@shares(*COMMON)
def runs_export(
    options: Options,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="csv, tensorboard or mlflow.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write.", show_default="build/export/FORMAT"),
    ] = None,
) -> None:
    """Export all runs for other tools.

    Their parameters, events, metrics and states, as csv, for TensorBoard or for MLflow. What is
    there already stays.
    """
    from kernelkit import console
    from kernelkit.runs.export import ExportFormat, export

    if to not in list(ExportFormat):
        known = ", ".join(ExportFormat)
        raise ConfigError(f"--to {to}: there is no such format", f"Choose one of {known}.")
    folder = project_or_none(options) or Path.cwd()
    with console.watching("the export was stopped; it can be repeated") as reporter:
        exported = export(
            folder / "runs",
            ExportFormat(to),
            out or folder / "build" / "export" / to,
            on_event=reporter,
        )
    console.exported(exported)
