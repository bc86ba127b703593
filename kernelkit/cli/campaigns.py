"""Commands about several runs: plan them, and collect their results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import COMMON, REMOTE, Options, shares
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
