"""Commands that work on a project, without Kaggle: from `init` to the tests of its notebook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import BUILD, COMMON, INTERRUPTED, Options, finite, shares
from kernelkit.cli.root import app
from kernelkit.errors import ConfigError


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

    console.config_values(config_values(options.config()))


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

    kernel = workflow.preflight(options.config())
    console.no_problems(advise(kernel), kernel.installs)


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
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Time limit of each step.",
            show_default="600",
            callback=finite,
        ),
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
