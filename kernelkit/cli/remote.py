"""Commands about runs on Kaggle, real or local: push one, follow it, fetch and submit results."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import (
    BUILD,
    COMMON,
    DETACHED,
    INTERRUPTED,
    REMOTE,
    Again,
    Deadline,
    Inputs,
    MaxSessions,
    Mounts,
    Options,
    RunName,
    UntilDone,
    Wait,
    WaitDeadline,
    shares,
)
from kernelkit.cli.root import app
from kernelkit.errors import ConfigError


@app.command()
@shares(*BUILD, "endpoint", *COMMON)
def push(
    options: Options,
    again: Again = False,
    wait: Wait = False,
    deadline: WaitDeadline = None,
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
def cancel(
    options: Options,
    name: RunName = "",
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the kernel with all its versions.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Cancel a run.

    Its outputs may be lost. A run can be cancelled once it has printed its first lines. --delete
    works at any time: it saves what Kaggle lists now, says what will be lost, asks, and deletes the
    kernel, which ends the run at once.
    """
    from kernelkit import console, workflow
    from kernelkit.runs.delete import delete_kernel, prepare_deletion

    kaggle, folder = workflow.attach(options.config(), name)
    if not delete:
        console.state(folder, workflow.cancel(kaggle, folder))
        return
    with console.watching("interrupted: nothing was deleted") as reporter:
        deletion = prepare_deletion(kaggle, folder, on_event=reporter)
    console.deletion_plan(deletion)
    if not yes and (options.as_json or not sys.stdin.isatty()):
        raise ConfigError("--delete asks before it deletes", "Agree in advance: --delete --yes")
    if not yes and not typer.confirm(f"Delete {deletion.kernel}?"):
        raise typer.Exit(INTERRUPTED)
    delete_kernel(kaggle, deletion)
    console.deleted(deletion)


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
    from kernelkit.campaigns.notify import messenger

    config = options.config()
    kaggle, folder = workflow.attach(config, name, deadline)
    with console.watching(DETACHED.format(f" v{folder.version}")) as reporter:
        on_event = messenger(config, reporter).listening(reporter)
        end = workflow.watch(kaggle, folder, deadline=deadline, on_event=on_event)
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
    from kernelkit.campaigns.notify import messenger
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
            on_event=messenger(config, reporter).listening(reporter),
        )
    console.conclude(pulled)


@app.command()
@shares(*BUILD, "endpoint", *COMMON)
def run(
    options: Options,
    again: Again = False,
    wait: Wait = False,
    deadline: Deadline = None,
    until_done: UntilDone = False,
    max_sessions: MaxSessions = None,
    resume: Annotated[
        str,
        typer.Option(metavar="RUN", help="Continue from the outputs of a run.", show_default=False),
    ] = "",
) -> None:
    """Push, watch, pull and verify.

    With --until-done, sessions follow each other, each with the outputs of the one before, until
    the program no longer says that it is incomplete. The same command continues such a chain.
    """
    from kernelkit import console, workflow
    from kernelkit.campaigns.chain import read_chain, run_chain
    from kernelkit.campaigns.lanes import resuming_config
    from kernelkit.campaigns.notify import messenger

    config = options.config()
    _require_chain(until_done, max_sessions)
    interrupted = "interrupted: `kernelkit run` finds what was sent"
    if until_done:
        interrupted = "interrupted: the same command continues the chain"
    with console.watching(interrupted) as reporter:
        messages = messenger(config, reporter)
        on_event = messages.listening(reporter, runs=not until_done)
        source = None
        if resume:
            kaggle, folder = workflow.attach(config, resume)
            source = folder.read().address
        else:
            kaggle = workflow.connect_to(config)
        if until_done:
            root = config.project / "runs"
            pulled = run_chain(
                config,
                kaggle,
                root,
                max_sessions=max_sessions,
                again=again,
                resume=source,
                wait=wait,
                deadline=deadline,
                on_event=on_event,
                on_end=messages.chain_ended,
            )
        else:
            config = resuming_config(config, source) if source else config
            pulled = workflow.run(
                config, kaggle, again=again, wait=wait, deadline=deadline, on_event=on_event
            )
    if until_done:
        console.concluded_chain(pulled, read_chain(config.project / "runs", config.kernel.slug))
    else:
        console.conclude(pulled)


def _require_chain(until_done: bool, max_sessions: int | None) -> None:
    if max_sessions is not None and not until_done:
        raise ConfigError("--max-sessions is for a chain of sessions", "Add --until-done.")


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
    until_done: UntilDone = False,
    max_sessions: MaxSessions = None,
) -> None:
    """Run the notebook on a local Kaggle.

    The same notebook and the same client, without an account and without a network.
    """
    from kernelkit import console, workflow
    from kernelkit.campaigns.chain import read_chain, rehearse_chain
    from kernelkit.errors import RunFailedError
    from kernelkit.runs.resume import REHEARSE_AGAIN

    config = options.config(environment={})
    _require_chain(until_done, max_sessions)
    target = out or config.build_folder("rehearsal")
    try:
        with console.watching("the rehearsal and its local Kaggle were stopped") as reporter:
            if until_done:
                pulled = rehearse_chain(
                    config,
                    inputs,
                    target,
                    max_sessions=max_sessions,
                    deadline=deadline,
                    mounts=mounts,
                    on_event=reporter,
                )
            else:
                pulled = workflow.rehearse(
                    config, inputs, target, deadline=deadline, mounts=mounts, on_event=reporter
                )
    except RunFailedError as error:  # the command that continues must name the same options
        words = [word for word in sys.argv[1:] if word != "--until-done"]
        called = f"kernelkit {shlex.join(words)} --until-done"
        error.next_step = error.next_step.replace(REHEARSE_AGAIN, called)
        raise
    if until_done:
        console.concluded_chain(pulled, read_chain(target, config.kernel.slug))
    else:
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
    deadline: WaitDeadline = None,
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
