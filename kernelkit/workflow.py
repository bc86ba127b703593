"""The table of contents: `run`, `rehearse`, and each of their steps.

    render → preflight → push → watch → pull → verify → submit

A command calls one function here, once. A step takes a `Config`, a connection or the folder of a
run, and reports what happens to `on_event`; nothing here prints. What a step decides, and why, is
in the package that owns the data: `bundle`, `notebook`, `kaggle`, `runs`, `diagnosis`, `testing`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit.bundle.bundle import read_bundle
from kernelkit.bundle.secrets import own_credentials
from kernelkit.config import Config
from kernelkit.diagnosis.diagnose import Diagnosis, diagnose, diagnose_folder
from kernelkit.errors import ConfigError, KernelkitError, RunFailedError
from kernelkit.kaggle.local import local_kaggle
from kernelkit.kaggle.types import LogEntry, Quota, State, Status
from kernelkit.notebook import edits
from kernelkit.notebook.edits import SyncPlan
from kernelkit.notebook.preflight import Problem, advise, check, require_no_problems
from kernelkit.notebook.render import Kernel, render, write_kernel
from kernelkit.runs import download, store
from kernelkit.runs.download import EVERYTHING, Progress, PulledRun, Selection
from kernelkit.runs.push import Outcome, Pushed, adopt, push_once
from kernelkit.runs.store import RunFolder, RunName
from kernelkit.runs.submit import (
    SubmitOptions,
    Submitted,
    require_no_scoring_error,
    submit_once,
    wait_for_score,
)
from kernelkit.runs.verify import require_verified
from kernelkit.runs.watch import RequestedHardware, cancel_run, read_log, read_status, watch_run
from kernelkit.testing.prove import DEADLINE_SECONDS, Proof, without_accelerator
from kernelkit.testing.prove import prove as prove_kernel

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

Event = Status | LogEntry | Quota | Progress | str
"""What a step reports: a new state, a piece of the log, the quota, progress, or a message."""

OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""


def run(
    config: Config,
    kaggle: Kaggle,
    *,
    root: Path | None = None,
    again: bool = False,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> PulledRun:
    """Push, watch, pull and verify; returns only verified results.

    `root` (default: the project's `runs/`), `again` and `wait` are those of `push`. `deadline` is
    in seconds, for everything before the pull.
    """
    started = time.monotonic()
    pushed = push(
        config, kaggle, root, again=again, wait=wait, deadline=deadline, on_event=on_event
    )
    if deadline is not None:
        deadline = max(1.0, deadline - (time.monotonic() - started))
    if pushed.outcome != Outcome.REUSED:
        watch(kaggle, pushed.folder, deadline=deadline, on_event=on_event)
    pulled = pull(kaggle, pushed.folder, on_event=on_event)
    require_success(pulled, config.project)
    return pulled


def rehearse(
    config: Config,
    inputs: Path | None,
    out: Path,
    *,
    deadline: float | None = None,
    mounts: str = "new",
    on_event: OnEvent = ignore,
) -> PulledRun:
    """`run` on a new local Kaggle, through the same client, into `out`/<slug>/v1.

    `inputs` is a folder of folders that are named by the slugs of the kernel's sources.

    Raises:
        ConfigError: `out` is the folder of real runs, or contains other files than a rehearsal's.
    """
    from kernelkit.kaggle.connect import connect

    kernel = render_kernel(config)
    require_no_problems(preflight(kernel, config.project))  # before the last rehearsal is removed
    with store.rehearsal_lock(out):
        store.remove_rehearsal(out / config.kernel.slug, config.project / "runs")
        with local_kaggle(inputs, mounts) as endpoint:
            on_event(f"local Kaggle at {endpoint}")
            kaggle = connect(endpoint, {}, config.kernel.owner)
            return run(config, kaggle, root=out, deadline=deadline, on_event=on_event)


def connect_to(config: Config) -> Kaggle:
    """Connect to the Kaggle of this configuration, with the credentials of this machine."""
    from kernelkit.kaggle.connect import connect  # the SDK takes 0.3 s to import

    return connect(config.endpoint, local_user=config.kernel.owner)


def render_kernel(config: Config) -> Kernel:
    """The kernel as it would be pushed; nothing is written."""
    return render(read_bundle(config), config)


def render_to(config: Config, folder: Path) -> Kernel:
    """Render into a folder that the official client can also push."""
    kernel = render_kernel(config)
    write_kernel(kernel, folder)
    return kernel


def preflight(kernel: Kernel, project: Path) -> list[Problem]:
    """Every problem that prevents a push, including credentials of this machine in the kernel."""
    return check(kernel, own_credentials(os.environ, Path.home(), project))


def prove(
    config: Config,
    arguments: Sequence[str] = (),
    *,
    python: str | None = None,
    deadline: float = DEADLINE_SECONDS,
    on_event: OnEvent = ignore,
) -> Proof:
    """Run the project's own tests with the package and with what the notebook writes.

    `arguments` are those of pytest; `python` runs the tests (default: this interpreter); `deadline`
    is in seconds, for the notebook and for each of the two test runs.

    Raises:
        VerificationError: a test has another result, or another copy of the package was tested.
        ConfigError: there are no tests, or none passes with the package itself.
    """
    kernel = render_kernel(without_accelerator(config))
    return prove_kernel(
        kernel, config.project, arguments, python=python, deadline=deadline, on_event=on_event
    )


def push(
    config: Config,
    kaggle: Kaggle,
    root: Path | None = None,
    *,
    again: bool = False,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> Pushed:
    """Render, check, push once, record under `root` (default: the project's `runs/`), and verify.

    If an identical version exists, nothing is pushed, unless `again` is set. `wait` waits for a
    free session, up to `deadline` seconds.

    Raises:
        PreflightError: with every problem; nothing was sent.
        CapacityError: no session, no quota, or too many calls; nothing was sent.
        RefusedError: Kaggle changed the requested settings; the version runs and is recorded.
        UnreachableError: the push was accepted and recorded, and could not be verified.
    """
    kernel = render_kernel(config)
    require_no_problems(preflight(kernel, config.project))
    for note in advise(kernel):
        on_event(f"note: {note}")
    return push_once(
        kaggle,
        kernel,
        root or config.project / "runs",
        profile=config.profile,
        reserve=config.gpu_reserve_hours,
        again=again,
        wait=wait,
        deadline=deadline,
        on_event=on_event,
    )


def find_folder(config: Config, name: str = "") -> RunFolder:
    """The folder of a run of this project by its name (see `RunName`), or of its latest run.

    Raises:
        ConfigError: the name is invalid, or nothing with that name was pushed from here.
    """
    wanted = store.parse_name(name) if name else RunName()
    slug = wanted.slug or config.kernel.slug
    return store.find(config.project / "runs", slug, wanted.version, wanted.owner)


def attach(config: Config, name: str = "") -> tuple[Kaggle, RunFolder]:
    """A connection and the folder of a run; a run that was pushed from elsewhere is adopted.

    Raises:
        ConfigError: the name is invalid or unknown, or not the name of a kernel of kernelkit.
        NotFoundError: Kaggle knows no such kernel or version.
    """
    try:
        folder = find_folder(config, name)
    except ConfigError:
        wanted = store.parse_name(name) if name else RunName()
        if not wanted.slug:
            raise
        kaggle = connect_to(config)
        root = config.project / "runs"
        return kaggle, adopt(kaggle, root, wanted.owner, wanted.slug, wanted.version)
    return connect_to(config), folder


def watch(
    kaggle: Kaggle, folder: RunFolder, *, deadline: float | None = None, on_event: OnEvent = ignore
) -> Status:
    """Follow a run to its end, and return its final state.

    Raises:
        DeadlineError: `deadline` seconds passed; the run continues.
        RefusedError: Kaggle changed the machine or image; the run continues.
    """
    last = Status(State.QUEUED)
    requested = RequestedHardware.of(folder.read_bundle())
    run = folder.address_at(kaggle.endpoint)
    for event in watch_run(kaggle, run, requested, age=folder.age(), deadline=deadline):
        on_event(event)
        if isinstance(event, Status):
            last = event
    return last


def status(kaggle: Kaggle, folder: RunFolder) -> Status:
    """The state of a run."""
    fresh = folder.age() < kaggle.timeouts.grace
    return read_status(kaggle, folder.address_at(kaggle.endpoint), fresh=fresh)


def cancel(kaggle: Kaggle, folder: RunFolder) -> Status:
    """Cancel a run if possible, and return its final state."""
    return cancel_run(kaggle, folder.address_at(kaggle.endpoint), age=folder.age())


def logs(kaggle: Kaggle, folder: RunFolder) -> list[LogEntry]:
    """The log of a run, as far as Kaggle has it."""
    return read_log(kaggle, folder.address_at(kaggle.endpoint))


def pull(
    kaggle: Kaggle,
    folder: RunFolder,
    selection: Selection = EVERYTHING,
    *,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> PulledRun:
    """Wait for a run's end, download its outputs, and verify them.

    A complete folder stays as it is. A selection of the outputs does not complete the folder.

    Raises:
        ConfigError: the run left nothing with the selected names.
        UnreachableError, CapacityError: some files are missing; the next pull continues from there.
        LocalError: the disk is full, or the folder cannot be written.
    """
    folder.address_at(kaggle.endpoint)  # a run of another Kaggle is an error, also if complete
    if folder.is_complete():
        return download.use_complete(folder, selection, on_event=on_event)
    end = status(kaggle, folder)
    if not end.state.finished:
        end = watch(kaggle, folder, deadline=deadline, on_event=on_event)
    return download.pull_ended_run(kaggle, folder, end, selection, on_event=on_event)


def require_success(pulled: PulledRun, project: Path | None = None) -> None:
    """Check that a pulled run has succeeded and is verified.

    `project` is the folder whose files a failure is diagnosed with.

    Raises:
        RunFailedError: the run failed or was cancelled; with a diagnosis if there is a log.
        VerificationError: the files do not match the run's manifest.
        RefusedError: Kaggle did not send everything that it lists.
    """
    verdict = pulled.verdict
    failed = verdict.run_error is not None and not verdict.problems
    if not failed and pulled.state == State.COMPLETE:
        require_verified(verdict, pulled.folder)
        download.require_everything_sent(pulled)
        return
    if pulled.state == State.CANCEL_ACKNOWLEDGED:
        raise RunFailedError(
            "the run was cancelled",
            f"To run it again: kernelkit push. Its outputs so far are in {pulled.folder}",
            pulled.document,
        )
    message = f"the run failed: {verdict.run_error}"
    if not failed:
        problems = "; ".join(verdict.problems) or "none"
        message = f"Kaggle says {pulled.state}. Problems of the folder: {problems}"
    try:
        diagnosis = diagnose_folder(pulled.folder, project)
    except KernelkitError:  # there is no log: report the failure itself
        diagnosis = None
    if diagnosis is None:
        raise RunFailedError(message, f"Read its log in {pulled.folder}.", pulled.document)
    headline = (
        f"the run failed: {diagnosis.error}" if failed else f"{message}\n{diagnosis.headline}"
    )
    raise RunFailedError(
        f"{headline}\n{diagnosis.summary}",
        f"{diagnosis.next_step} All details: kernelkit diagnose {pulled.folder}",
        {**pulled.document, "diagnosis": asdict(diagnosis)},
    )


def diagnose_end(
    kaggle: Kaggle, folder: RunFolder, end: Status, project: Path | None = None
) -> Diagnosis | None:
    """Why a run that has just ended on Kaggle failed, from its log there."""
    text, bundle = "", None
    try:
        text = "".join(entry.text for entry in logs(kaggle, folder))
        bundle = folder.read_bundle().document
    except KernelkitError:  # the failure matters, and not that its log is unavailable
        pass
    failure = end.failure or f"Kaggle says {end.state}"
    return diagnose(text, bundle=bundle, project=project, failure=failure)


def submit(
    kaggle: Kaggle,
    folder: RunFolder,
    options: SubmitOptions,
    *,
    wait: bool = True,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> Submitted:
    """Check the submission of a verified run, submit it once, and wait for its score.

    Raises:
        VerificationError: the run is not complete and verified, or its file would get no score.
        ConfigError: it is not clear which file is submitted, or where to.
        CapacityError: the day's submissions are used up.
        RefusedError: Kaggle refuses it or found an error in it, or the run is on another Kaggle.
        DeadlineError: it is submitted, and had no score after `deadline` seconds.
    """
    submitted = submit_once(kaggle, folder, options, on_event=on_event)
    if wait:
        submitted = wait_for_score(
            kaggle, folder.root, submitted, deadline=deadline, on_event=on_event
        )
    require_no_scoring_error(submitted)
    return submitted


def plan_sync(config: Config, notebook: Path) -> SyncPlan:
    """What an edited notebook changes in the package; nothing is written.

    Raises:
        ConfigError: the file is not a notebook that was rendered from this package.
    """
    return edits.plan(edits.read_notebook(notebook), config)


def sync(plan: SyncPlan, *, force: bool = False, dry_run: bool = False) -> None:
    """Write the changed files into the package, all or none; a dry run only checks.

    Raises:
        ConfigError: the notebook writes to a path outside the package.
        VerificationError: a file was also changed on disk; `force` overwrites it.
    """
    if dry_run:
        edits.require_applicable(plan, force=force)
    else:
        edits.apply(plan, force=force)
