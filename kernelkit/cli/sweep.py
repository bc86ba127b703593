"""Commands about sweeps: run one, show how far it is, and what is best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import COMMON, REMOTE, Inputs, Mounts, Options, shares
from kernelkit.cli.root import app
from kernelkit.errors import RunFailedError

sweep_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(sweep_app, name="sweep")

STOPPED = "stopped: runs on Kaggle continue. The same command goes on with the sweep"

Trials = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Trials in all.", show_default="the project file"),
]


@sweep_app.callback()
@shares(*REMOTE, *COMMON)
def sweep(
    options: Options,
    trials: Trials = None,
    sessions: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Sessions at once.", show_default="the project file"),
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Sweep on a local Kaggle of its own.")
    ] = False,
    inputs: Inputs = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a rehearsal's results.", show_default="build/sweep"),
    ] = None,
    mounts: Annotated[Mounts, typer.Option(help="Layout of /kaggle/input.")] = Mounts.NEW,
) -> None:
    """Search for the best parameters.

    Runs the trials of [tool.kernelkit.sweep], some at once, and verifies each. It can be ended at
    any time: started again, it goes on, and pushes nothing twice.
    """
    from kernelkit import console, workflow
    from kernelkit.campaigns.notify import messenger
    from kernelkit.campaigns.sweep import rehearse_sweep, run_sweep
    from kernelkit.campaigns.sweep_plan import SweepView, plan_sweep

    if rehearse:
        config = options.config(environment={})
        with console.sweeping("the sweep and its local Kaggle were stopped") as reporter:
            view = rehearse_sweep(
                plan_sweep(config, trials=trials, sessions=sessions),
                inputs,
                out or config.build_folder("sweep"),
                mounts=mounts,
                on_event=reporter,
            )
    else:
        config = options.config()
        plan = plan_sweep(config, trials=trials, sessions=sessions)
        with console.sweeping(STOPPED) as reporter:
            messages = messenger(config, reporter)
            mark = f"{plan.search.name}-{plan.trials}"  # with the number of trials that have ended
            try:
                view = run_sweep(
                    plan,
                    lambda: workflow.connect_to(config),
                    config.project / "runs",
                    on_event=messages.listening(reporter, runs=False),
                )
            except RunFailedError as error:
                ended = error.details.ended if isinstance(error.details, SweepView) else 0
                messages.campaign_ended("sweep", f"{mark}-{ended}", "failed")
                raise
            messages.campaign_ended("sweep", f"{mark}-{view.ended}", "complete")
    console.swept(view)


@sweep_app.command("status")
@shares(*REMOTE, *COMMON)
def sweep_status(options: Options) -> None:
    """Show the trials of this sweep.

    Reads what is recorded here; needs no network.
    """
    from kernelkit import console
    from kernelkit.campaigns.sweep import read_sweep

    config = options.config()
    console.swept(read_sweep(config, config.project / "runs", on_event=console.sweep_note))


@sweep_app.command("best")
@shares(*REMOTE, *COMMON)
def sweep_best(options: Options) -> None:
    """Print the best parameters as options."""
    from kernelkit import console
    from kernelkit.campaigns.sweep import read_sweep

    config = options.config()
    view = read_sweep(config, config.project / "runs", on_event=console.sweep_note)
    stated = replace(options, profile=view.search.profile, settings=None).config()
    console.best_of_sweep(view, stated.parameters)


@sweep_app.command("report")
@shares(*REMOTE, *COMMON)
def sweep_report(options: Options) -> None:
    """Write the report with pictures again."""
    from kernelkit import console
    from kernelkit.campaigns.sweep import read_sweep

    config = options.config()
    root = config.project / "runs"
    console.sweep_reported(read_sweep(config, root, report=True, on_event=console.sweep_note))
