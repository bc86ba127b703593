"""A sweep: trials with different parameters, some at once, until all of them have ended.

The study chooses the parameters and remembers everything (`study`), the scheduler keeps the lanes
busy (`scheduler`). What a process that is killed leaves behind is enough to go on: a trial is
assigned to a session before the session is pushed, and a session is found again by its mark.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit import workflow
from kernelkit.campaigns.space import space_of
from kernelkit.campaigns.study import (
    DATABASE_NAME,
    SweepStudy,
    SweepTrial,
    has_trials,
    latest_search,
    open_study,
)
from kernelkit.campaigns.sweep_plan import (
    OnSweepEvent,
    SweepPlan,
    SweepView,
    config_of_session,
    lane_of,
    plan_sweep,
    set_options,
    view_of,
)
from kernelkit.config import Config, TrialSettings
from kernelkit.errors import ConfigError, KernelkitError, LocalError, require_extra
from kernelkit.kaggle.types import ignore
from kernelkit.storage import locked, make_ignored_folder

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.notebook.render import Kernel


def read_sweep(
    config: Config, root: Path, *, report: bool = False, on_event: OnSweepEvent = ignore
) -> SweepView:
    """The sweep as it is recorded; nothing is pushed, and Kaggle is not asked.

    If the project does not search for the same any more, or was given other options, it is the
    sweep that was started last. `report` writes the page with the pictures again.

    Raises:
        ConfigError: no sweep was ever started here.
    """
    require_extra("sweep", "optuna")
    path = root / config.kernel.slug / DATABASE_NAME
    search = latest_search(path.parent) if path.is_file() else None
    if search is None:
        raise ConfigError(
            f"no sweep of {config.kernel.slug} was started here", "Start it: kernelkit sweep"
        )
    with suppress(ConfigError):  # the project file may have no sweep any more
        wanted = plan_sweep(config).search
        if wanted != search and has_trials(path.parent, wanted):
            search = wanted
        elif wanted != search:
            options = f" (profile {search.profile})" if search.profile else ""
            on_event(f"note: this is the sweep that was started last{options}")
    with open_study(path.parent, search, space_of(search.space)) as study:
        view = view_of(study, path)
        return replace(view, report=_report(study, path.parent)) if report else view


def best_sweep_trial(view: SweepView) -> SweepTrial:
    """The best trial of a sweep.

    Raises:
        ConfigError: none is complete yet.
    """
    if view.best is None:
        raise ConfigError(
            f"no trial of the sweep {view.study} is complete yet",
            "Look at it: kernelkit sweep status",
        )
    return view.best


def rehearse_sweep(
    plan: SweepPlan,
    inputs: Path | None,
    out: Path,
    *,
    mounts: str = "new",
    on_event: OnSweepEvent = ignore,
) -> SweepView:
    """`run_sweep` on a new local Kaggle, from the beginning, into `out`.

    `inputs` is a folder of folders that are named by the slugs of the kernel's sources.

    Raises:
        ConfigError: as `workflow.local_rehearsal`, and as `run_sweep`.
    """
    from kernelkit.campaigns.scheduler import CONTINUE

    require_extra("sweep", "optuna")
    kernel, config = require_runnable(plan), plan.config
    lanes = [lane_of(config, lane).kernel.slug for lane in range(1, plan.sessions + 1)]
    with workflow.local_rehearsal(
        config, kernel, inputs, out, mounts=mounts, lanes=lanes, on_event=on_event
    ) as server:
        local = config.model_copy(update={"endpoint": server.endpoint})
        search = plan.search.model_copy(update={"endpoint": server.endpoint})
        try:
            return run_sweep(
                replace(plan, config=local, search=search),
                lambda: server.connect(config.kernel.owner),
                out,
                on_event=on_event,
            )
        except KernelkitError as error:
            step = error.next_step.replace(CONTINUE, "A rehearsal starts from the beginning.")
            raise error.with_message(str(error), step) from error


def run_sweep(
    plan: SweepPlan,
    connect: Callable[[], Kaggle],
    root: Path,
    *,
    on_event: OnSweepEvent = ignore,
) -> SweepView:
    """Run the trials that a sweep lacks, and continue those that an earlier process has started.

    `connect` makes a connection; each lane has its own. `root` is the folder of runs.

    Raises:
        ConfigError: Optuna is missing.
        PreflightError: a kernel of the sweep has problems; nothing was sent for it.
        LocalError: another process runs this sweep, or the disk is full.
        CapacityError: the quota is used up; sessions that were running have been pulled.
        RunFailedError: no trial gave a value.
    """
    from kernelkit.campaigns.scheduler import SWEEP_LOCK, Scheduler

    require_extra("sweep", "optuna")
    folder = root / plan.slug
    make_ignored_folder(root)
    with locked(folder, SWEEP_LOCK, on_wait=lambda: _refuse_second(folder)):
        source = require_runnable(plan).manifest.source_digest
        with open_study(folder, plan.search, plan.space) as study:
            if study.note_source(source):
                on_event("note: the source has changed since this sweep began: its values mix both")
            if plan.assumption:
                on_event(f"note: assumed that {plan.assumption}")
            study.plan(plan.trials)
            view = Scheduler(plan, study, connect, root, on_event).run()
            try:
                return replace(view, report=_report(study, folder))
            except KernelkitError as error:  # the sweep itself is complete
                on_event(f"warning: the report was not written: {error} {error.next_step}")
                return view


def require_runnable(plan: SweepPlan) -> Kernel:
    """Check, before anything is pushed, that the kernel of a trial has no problems; returns it.

    Raises:
        PreflightError: with every problem, such as a parameter that the entry does not take.
        ConfigError: the project's templates do not know trials side by side.
    """
    trial = TrialSettings(number=0, parameters=plan.space.first_point)
    kernel = workflow.preflight(config_of_session(plan, 1, [trial], ()))
    if plan.processes and ".run_trials(" not in kernel.notebook:
        raise ConfigError(
            "the project's templates do not start trials side by side",
            "Let 71-run.py.j2 call run_trials where the manifest has trials, as kernelkit's own "
            "does, or set per_gpu = false.",
        )
    return kernel


def _refuse_second(folder: Path) -> None:
    raise LocalError(
        f"another process is running the sweep in {folder}",
        "Look at it with `kernelkit sweep status`, or end that process first.",
    )


def _report(study: SweepStudy, folder: Path) -> Path:
    """Write the page with the pictures.

    Raises:
        ConfigError: what draws them is not installed.
    """
    from kernelkit.campaigns.report import write_report

    require_extra("sweep", "matplotlib", "sklearn")
    return write_report(study, folder, lambda trial: " ".join(set_options(trial.parameters)))
