"""The table of contents: `run`, `rehearse`, and each of their steps.

    render → preflight → push → watch → pull → verify → submit

A command calls one function here, once. A step takes a `Config`, a connection or the folder of a
run, and reports what happens to `on_event`; nothing here prints. What a step decides, and why, is
in the package that owns the data: `bundle`, `notebook`, `kaggle`, `runs`, `diagnosis`, `testing`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit.bundle.bundle import read_bundle
from kernelkit.bundle.secrets import declare_credential, own_credentials
from kernelkit.config import Config
from kernelkit.errors import KernelkitError
from kernelkit.kaggle.types import ignore
from kernelkit.notebook.preflight import WARNING, advise, check, compare_with_image
from kernelkit.notebook.problems import require_no_problems
from kernelkit.notebook.render import Kernel, RenderedKernel, render, write_kernel

if TYPE_CHECKING:  # each function imports what it calls, so that `render` loads none of these
    from kernelkit.diagnosis.diagnose import Diagnosis
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.kaggle.local import ReadyLocalKaggle
    from kernelkit.kaggle.types import LogEntry, Quota, Status
    from kernelkit.notebook.edits import SyncPlan
    from kernelkit.runs.download import Progress, PulledRun, Selection
    from kernelkit.runs.push import Pushed
    from kernelkit.runs.store import RunFolder
    from kernelkit.runs.submit import SubmitOptions, Submitted
    from kernelkit.runs.watch import EndedRun
    from kernelkit.testing.prove import Proof

    Event = Status | LogEntry | Quota | Progress | EndedRun | str
    """What a step reports: a new state, a piece of the log, the quota, progress, or a message."""

    OnEvent = Callable[[Event], None]


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
    from kernelkit.runs.push import Outcome

    started = time.monotonic()
    pushed = push(
        config, kaggle, root, again=again, wait=wait, deadline=deadline, on_event=on_event
    )
    if deadline is not None:
        deadline = max(1.0, deadline - (time.monotonic() - started))
    if pushed.outcome != Outcome.REUSED:
        watch(kaggle, pushed.folder, deadline=deadline, on_event=on_event)
    return pull(kaggle, pushed.folder, config.project, on_event=on_event)


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

    `deadline` is in seconds. The other arguments and the errors are those of `local_rehearsal`.
    """
    kernel = preflight(config)  # before the last rehearsal is removed
    with local_rehearsal(config, kernel, inputs, out, mounts=mounts, on_event=on_event) as server:
        kaggle = server.connect(config.kernel.owner)
        pulled = run(config, kaggle, root=out, deadline=deadline, on_event=on_event)
        return replace(pulled, isolation=server.isolation)


@contextmanager
def local_rehearsal(
    config: Config,
    kernel: Kernel,
    inputs: Path | None,
    out: Path,
    *,
    mounts: str = "new",
    lanes: Sequence[str] = (),
    on_event: Callable[[str], None] = ignore,
) -> Iterator[ReadyLocalKaggle]:
    """A new local Kaggle, for runs whose results go to `out`. It has the wheels of `kernel`.

    `inputs` has a folder for each source, named by its slug. `lanes` are the slugs of further
    kernels, whose last rehearsals are removed as well.

    Raises:
        ConfigError: `inputs` lacks the data of a source, `build/wheels` lacks a wheel, or `out` is
            the folder of real runs or contains other files than a rehearsal's.
    """
    from kernelkit.kaggle.local import local_kaggle, require_inputs
    from kernelkit.project.wheels import wheels_for_rehearsal
    from kernelkit.runs import store

    for doubt in require_inputs(inputs, config.kernel.sources):
        on_event(f"note: {doubt}")
    publish_wheels = wheels_for_rehearsal(config, kernel.manifest.wheels, inputs)
    with store.rehearsal_lock(out):
        for slug in (config.kernel.slug, *lanes):
            store.remove_rehearsal(out / slug, config.project / "runs")
        with local_kaggle(inputs, mounts) as server:
            for message in server.start_messages:
                on_event(message)
            publish_wheels(server.connect(config.kernel.owner), on_event)
            yield server


def connect_to(config: Config) -> Kaggle:
    """Connect to the Kaggle of this configuration, with the credentials of this machine."""
    from kernelkit.kaggle.kernels import connect  # the SDK takes 0.3 s to import

    return connect(config.endpoint, local_user=config.kernel.owner)


def render_kernel(config: Config) -> Kernel:
    """The kernel as it would be pushed; nothing is written."""
    return render(read_bundle(config), config)


def render_to(config: Config, folder: Path | None = None) -> RenderedKernel:
    """Render into a folder (default: `build/kernel`) that the official client can also push."""
    kernel, folder = render_kernel(config), folder or config.build_folder("kernel")
    write_kernel(kernel, folder)
    return RenderedKernel(kernel, folder, compare_with_image(kernel), advise(kernel))


def preflight(config: Config) -> Kernel:
    """Render, and look for problems, including credentials of this machine in the kernel.

    Raises:
        PreflightError: with every problem that prevents a push.
    """
    kernel = render_kernel(config)
    declare_credential(config.notify_env)
    require_no_problems(check(kernel, own_credentials(os.environ, Path.home(), config.project)))
    return kernel


def prove(
    config: Config,
    arguments: Sequence[str] = (),
    *,
    python: str | None = None,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> Proof:
    """Run the project's own tests with the package and with what the notebook writes.

    `arguments` are those of pytest; `python` runs the tests (default: this interpreter); `deadline`
    is in seconds, for the notebook and for each of the two test runs (default: 600).

    Raises:
        VerificationError: a test has another result, or another copy of the package was tested.
        ConfigError: there are no tests, or none passes with the package itself.
    """
    from kernelkit.testing.prove import DEADLINE_SECONDS, prove, without_accelerator

    kernel = render_kernel(without_accelerator(config))
    seconds = deadline or DEADLINE_SECONDS
    return prove(
        kernel, config.project, arguments, python=python, deadline=seconds, on_event=on_event
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
    from kernelkit.project.code import publish_code
    from kernelkit.runs.push import push_once

    kernel = preflight(config)
    for note in advise(kernel):
        on_event(note if note.startswith(WARNING) else f"note: {note}")
    with kaggle.ends_in(deadline):
        return push_once(
            kaggle,
            kernel,
            root or config.project / "runs",
            profile=config.profile,
            reserve=config.gpu_reserve_hours,
            again=again,
            wait=wait,
            deadline=deadline,
            publish=publish_code,
            on_event=on_event,
        )


def find_folder(config: Config, name: str = "") -> RunFolder:
    """The folder of a run of this project by its name (see `RunName`), or of its latest run.

    Raises:
        ConfigError: the name is invalid, or nothing with that name was pushed from here.
    """
    from kernelkit.runs.store import find_named

    return find_named(config.project / "runs", config.kernel.slug, name)


def attach(
    config: Config, name: str = "", deadline: float | None = None
) -> tuple[Kaggle, RunFolder]:
    """A connection and the folder of a run; a run that was pushed from elsewhere is adopted.

    Raises:
        ConfigError: the name is invalid or unknown, or not the name of a kernel of kernelkit.
        NotFoundError: Kaggle knows no such kernel or version.
        DeadlineError: Kaggle did not answer within `deadline` seconds.
    """
    from kernelkit.runs.push import find_or_adopt

    root, slug = config.project / "runs", config.kernel.slug
    with ExitStack() as limited:

        def connect() -> Kaggle:
            kaggle = connect_to(config)
            limited.enter_context(kaggle.ends_in(deadline))
            return kaggle

        return find_or_adopt(connect, root, slug, name)


def watch(
    kaggle: Kaggle, folder: RunFolder, *, deadline: float | None = None, on_event: OnEvent = ignore
) -> Status:
    """Follow a run to its end, and return its final state.

    Raises:
        DeadlineError: `deadline` seconds passed; the run continues.
        RefusedError: Kaggle changed the machine or image; the run continues.
    """
    from kernelkit.runs.watch import follow_run

    with kaggle.ends_in(deadline):
        return follow_run(kaggle, folder, deadline=deadline, on_event=on_event)


def status(kaggle: Kaggle, folder: RunFolder) -> Status:
    """The state of a run."""
    from kernelkit.runs.watch import state_of

    return state_of(kaggle, folder)


def cancel(kaggle: Kaggle, folder: RunFolder) -> Status:
    """Cancel a run if possible, and return its final state."""
    from kernelkit.runs.watch import cancel_run

    return cancel_run(kaggle, folder.address_at(kaggle.endpoint), age=folder.age())


def logs(kaggle: Kaggle, folder: RunFolder) -> list[LogEntry]:
    """The log of a run, as far as Kaggle has it."""
    from kernelkit.runs.watch import read_log

    return read_log(kaggle, folder.address_at(kaggle.endpoint))


def pull(
    kaggle: Kaggle,
    folder: RunFolder,
    project: Path | None = None,
    selection: Selection | None = None,
    *,
    unpack: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> PulledRun:
    """Wait for a run's end, download its outputs, and require that it succeeded and is verified.

    A complete folder stays as it is. A selection of the outputs does not complete the folder.
    `unpack` makes a folder of each verified zip.
    """
    from kernelkit.runs.download import EVERYTHING, pull_run
    from kernelkit.runs.unpack import unpack_zips

    selection = selection or EVERYTHING
    with kaggle.ends_in(deadline):
        pulled = pull_run(kaggle, folder, selection, deadline=deadline, on_event=on_event)
    require_success(pulled, project)
    if unpack:
        unpack_zips(pulled, on_event=on_event)
    return pulled


def require_success(pulled: PulledRun, project: Path | None = None) -> None:
    """Check that a pulled run has succeeded; `project` has the files for the diagnosis if not.

    Raises what `runs.failure.require_success` raises.
    """
    from kernelkit.diagnosis.diagnose import diagnose_folder
    from kernelkit.runs import failure

    failure.require_success(pulled, lambda folder: diagnose_folder(folder, project))


def diagnose_end(
    kaggle: Kaggle, folder: RunFolder, end: Status, project: Path | None = None
) -> Diagnosis | None:
    """Why a run that has just ended on Kaggle failed, from its log there."""
    from kernelkit.diagnosis.diagnose import diagnose
    from kernelkit.diagnosis.documents import SentBundle

    text, bundle = "", SentBundle.read(folder.path / "bundle.json")
    with suppress(KernelkitError):  # the failure matters, and not that its log is unavailable
        text = "".join(entry.text for entry in logs(kaggle, folder))
    reason = end.failure or f"Kaggle says {end.state}"
    return diagnose(text, bundle=bundle, project=project, failure=reason)


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

    Raises what `submit_once`, `wait_for_score` and `require_no_scoring_error` raise.
    """
    from kernelkit.runs.submit import require_no_scoring_error, submit_once, wait_for_score

    submitted = submit_once(kaggle, folder, options, on_event=on_event)
    if wait:
        with kaggle.ends_in(deadline):
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
    from kernelkit.notebook.edits import plan, read_notebook

    return plan(read_notebook(notebook), config)


def sync(plan: SyncPlan, *, force: bool = False, dry_run: bool = False) -> None:
    """Write the changed files into the package, all or none; a dry run only checks.

    Raises:
        ConfigError: the notebook writes to a path outside the package.
        VerificationError: a file was also changed on disk; `force` overwrites it.
    """
    from kernelkit.notebook import edits

    (edits.require_applicable if dry_run else edits.apply)(plan, force=force)
