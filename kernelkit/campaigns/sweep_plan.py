"""What a sweep does, with every setting decided, and what is known about it at one moment."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from kernelkit.campaigns.lanes import lane_config, session_config
from kernelkit.campaigns.space import Point, Space, read_space
from kernelkit.campaigns.study import Search, SweepStudy, SweepTrial, best_trial
from kernelkit.config import (
    MACHINES,
    Config,
    Pruner,
    PruningSettings,
    Sampler,
    SweepSettings,
    TrialSettings,
    lane_suffix,
    setting_text,
)
from kernelkit.errors import ConfigError
from kernelkit.kaggle.types import PRODUCTION, Quota

if TYPE_CHECKING:
    from kernelkit.notebook.runtime import RunEvent

CPU_PROCESSES = 2  # with per_gpu, in a session without a GPU: to try it


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep does, with every setting decided."""

    config: Config
    space: Space
    search: Search
    trials: int
    sampler: Sampler
    sessions: int
    processes: int
    """Trials that a session runs side by side; 0 if a session is one trial."""

    retries: int
    pruner: Pruner
    seed: int

    @property
    def slug(self) -> str:
        """Of the project's own kernel, under which the sweep is recorded."""
        return self.config.kernel.slug

    @property
    def assumption(self) -> str:
        """What `per_gpu` had to assume; empty if the machine is known."""
        kernel, settings = self.config.kernel, self.config.sweep
        if not (settings and settings.per_gpu and kernel.wants_gpu):
            return ""
        if kernel.machine_shape in MACHINES:
            return ""
        if not kernel.machine_shape:
            return (
                "a session without machine_shape is taken to have one GPU: per_gpu needs the name "
                "of the machine"
            )
        return (
            f'a session of "{kernel.machine_shape}" is taken to have one GPU (per_gpu): kernelkit '
            "does not know this machine"
        )


@dataclass(frozen=True)
class SweepView:
    """What is known about a sweep at one moment."""

    search: Search
    planned: int
    """How many trials there will be; not less than there are."""

    trials: tuple[SweepTrial, ...]
    database: Path
    campaign: str
    """With which the marks of its sessions begin; `kernelkit runs` shows it."""

    progress: Mapping[int, RunEvent] = field(default_factory=dict)
    """Number of a running trial → the last epoch that it has reported."""

    quota: Quota | None = None
    report: Path | None = None
    """The page with the pictures, once it is written."""

    @property
    def study(self) -> str:
        """The name of its study in the database."""
        return self.search.name

    @property
    def metric(self) -> str:
        """What it improves."""
        return self.search.metric

    @property
    def best(self) -> SweepTrial | None:
        """The complete trial with the best value."""
        return best_trial(self.trials, self.search.goal)

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return sum(trial.state not in ("waiting", "running") for trial in self.trials)

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        best = self.best
        return {
            "trials": [trial.document for trial in self.trials],
            "best": best.number if best else None,
            "planned": self.planned,
            "metric": self.metric,
            "goal": self.search.goal,
            "study": self.study,
            "campaign": self.campaign,
            "database": str(self.database),
            "report": str(self.report) if self.report else None,
        }


SweepEvent = SweepView | str
"""What a sweep reports: its state after each change, or a message."""

OnSweepEvent = Callable[[SweepEvent], None]


def plan_sweep(
    config: Config, *, trials: int | None = None, sessions: int | None = None
) -> SweepPlan:
    """Decide every setting of a sweep; `trials` and `sessions` replace those of the project file.

    Raises:
        ConfigError: the project file has no sweep, a setting is wrong, or no metric is declared.
    """
    from kernelkit.notebook.runtime import goal_of

    settings = config.sweep or SweepSettings()
    space = read_space(config)
    if not config.metric:
        raise ConfigError(
            "a sweep needs to know which number it improves, and the project declares no metric",
            "Write the name of a number that your epochs report into [tool.kernelkit]: metric = "
            '"val_loss", metric_goal = "minimize"',
        )
    search = Search(
        slug=config.kernel.slug,
        space=space.text,
        metric=config.metric,
        goal=config.metric_goal or goal_of(config.metric),
        parameters={k: v for k, v in config.parameters.items() if k not in space.dimensions},
        profile=config.profile,
        endpoint=config.endpoint or PRODUCTION,
    )
    return SweepPlan(
        config=config,
        space=space,
        search=search,
        trials=_number_of_trials(settings, space, trials),
        sampler=settings.sampler,
        sessions=sessions or settings.sessions,
        processes=_processes(config, settings),
        retries=settings.retries,
        pruner=settings.pruner,
        seed=settings.seed,
    )


def _number_of_trials(settings: SweepSettings, space: Space, stated: int | None) -> int:
    wanted, size = stated or settings.trials, space.size
    if settings.sampler == "grid" and size is None:
        endless = [name for name, one in space.dimensions.items() if one.values is None]
        raise ConfigError(
            f'[tool.kernelkit.sweep] sampler = "grid" needs finitely many values, and '
            f"{', '.join(endless)} has a range without a step",
            "Give the range a step, list the values, or use another sampler.",
        )
    if settings.sampler == "grid" and wanted is None:
        return size or 0
    if wanted is None:
        raise ConfigError(
            '[tool.kernelkit.sweep] is missing the key "trials"',
            "Say how many trials there are: trials = 12. Only a grid has a number of its own.",
        )
    return wanted if size is None else min(wanted, size)


def _processes(config: Config, settings: SweepSettings) -> int:
    if not settings.per_gpu:
        return 0
    if not config.kernel.wants_gpu:
        return CPU_PROCESSES
    machine = MACHINES.get(config.kernel.machine_shape)
    return machine.gpus if machine and machine.gpus > 1 else 0


def config_of_session(
    plan: SweepPlan, lane: int, trials: Sequence[TrialSettings], medians: Sequence[float]
) -> Config:
    """The project as one session runs it."""
    config = lane_of(plan.config, lane)
    if not plan.processes:
        return session_config(config, trials[0].parameters)
    pruning = PruningSettings(
        metric=plan.search.metric, goal=plan.search.goal, medians=tuple(medians)
    )
    return config.model_copy(
        update={"trials": tuple(trials), "pruning": pruning if medians else None}
    )


def lane_of(config: Config, number: int) -> Config:
    """The project as the kernel of a lane."""
    return lane_config(config, lane_suffix(number))


def view_of(study: SweepStudy, path: Path) -> SweepView:
    """What a study knows about its trials; `path` is that of its database."""
    trials = study.trials
    return SweepView(
        search=study.search,
        planned=max(study.planned, len(trials)),
        trials=tuple(trials),
        database=path,
        campaign=study.campaign,
    )


def set_options(point: Point) -> list[str]:
    """Parameters as `--set` takes them, quoted for the shell."""
    return [f"--set {shlex.quote(setting_text(name, value))}" for name, value in point.items()]
