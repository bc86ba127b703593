"""Commands about several runs: plan them, show a chain, and collect their results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import COMMON, REMOTE, Options, finite, shares
from kernelkit.cli.root import app


@app.command()
@shares(*REMOTE, *COMMON)
def plan(
    options: Options,
    sweep: Annotated[bool, typer.Option("--sweep", help="Plan the sweep.")] = False,
    trials: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of the sweep.", show_default="the project file"),
    ] = None,
    rehearsal: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Folder of a rehearsal to estimate by.",
            show_default="build/rehearsal",
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="X",
            help="Kaggle's GPU is X times as fast.",
            show_default="data sheets",
            callback=finite,
        ),
    ] = None,
) -> None:
    """Estimate hours, sessions and quota of a run.

    By earlier runs of the same kernel, with similar parameters on the same hardware. Without any,
    by a rehearsal and an assumed ratio. Pushes nothing.
    """
    from kernelkit import console, workflow
    from kernelkit.campaigns.plan import make_plan, sweep_shape

    config = options.config()
    console.planned(
        make_plan(
            config,
            lambda: workflow.connect_to(config),
            rehearsals=rehearsal,
            ratio=ratio,
            sweep=sweep_shape(config, trials) if sweep or trials else None,
        )
    )


@app.command()
@shares("profile", *COMMON)
def chain(options: Options) -> None:
    """Show the sessions of a chain.

    As far as they are known here: needs no network. `kernelkit run --until-done` starts a chain,
    and goes on with it.
    """
    from kernelkit import console
    from kernelkit.campaigns.chain import command_of, read_chain

    config = options.config()
    found = read_chain(config.project / "runs", config.kernel.slug)
    stated = replace(options, profile=found.profile).config()
    console.chained(found, command_of(found, stated))


@app.command()
@shares(*REMOTE, *COMMON)
def collect(
    options: Options,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for runs that have not ended.")
    ] = False,
    every_version: Annotated[
        bool, typer.Option("--all", help="Every version, not only the latest.")
    ] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Time limit in all.",
            show_default="none",
            callback=finite,
        ),
    ] = None,
) -> None:
    """Download and verify runs pushed elsewhere.

    Finds the kernels of this project in the list of your account, also those of chains and sweeps,
    adopts their runs, and pulls those that have ended. The exit code is the worst of all runs; 7
    if one still runs.
    """
    from kernelkit import console, workflow
    from kernelkit.campaigns.collect import collect as collect_runs
    from kernelkit.campaigns.notify import messenger

    config = options.config()
    with console.watching("interrupted: `kernelkit collect` goes on from here") as reporter:
        messages = messenger(config, reporter)
        found = collect_runs(
            config,
            workflow.connect_to(config),
            every_version=every_version,
            wait=wait,
            deadline=deadline,
            messages=messages,
            on_event=reporter,
        )
    console.collected(found)
    raise typer.Exit(found.exit_code)
