"""What a run, a chain or a sweep will need: hours, sessions, and whether the quota has them.

The time of a run is estimated in `kernelkit.runs.estimate`. Everything that is not measured is
stated as an assumption, and what nothing says is None: "unknown".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, PlainSerializer

from kernelkit.errors import CapacityError, CredentialsError, RefusedError, UnreachableError
from kernelkit.kaggle.types import PRODUCTION
from kernelkit.notebook.runtime.deadline import (
    MARGIN_PART,
    MARGIN_SECONDS,
    SESSION_HOURS,
    TPU_SESSION_HOURS,
)
from kernelkit.runs.estimate import Certainty, Estimate, Wanted, estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernelkit.config import Config
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.kaggle.types import Quota

LANES = 2  # GPU sessions at once, by many reports [A]
WEEK = timedelta(weeks=1)

Digits = Annotated[float, PlainSerializer(lambda value: float(f"{value:.6g}"))]
"""A number of which six digits are reported: a measurement has no more."""


@dataclass(frozen=True)
class SweepShape:
    """How a sweep spreads its trials."""

    trials: int
    sessions: int = LANES
    """At once."""

    per_session: int = 1
    """Trials that run side by side in one session, one on each GPU."""

    assumption: str = ""
    """What the number of trials in a session assumes; empty if it is known."""

    @property
    def rounds(self) -> int:
        """Sessions that each lane runs, one after the other."""
        return math.ceil(self.pushes / self.sessions)

    @property
    def pushes(self) -> int:
        """Sessions of all lanes together."""
        return math.ceil(self.trials / self.per_session)


class QuotaReport(BaseModel):
    """The quota in hours."""

    used: Digits
    reserved: Digits
    allowed: Digits
    left: Digits
    refresh: datetime | None


class SweepReport(BaseModel):
    """How a sweep spreads its trials."""

    trials: int
    sessions: int
    per_session: int
    pushes: int


class PlanReport(BaseModel):
    """The document of `plan --json`. What is unknown is None."""

    kernel: str
    machine_shape: str
    certainty: Certainty
    seconds_per_epoch: Digits | None
    epochs: Digits | None
    fixed_seconds: Digits | None
    hours: Digits | None
    hours_range: tuple[Digits, Digits] | None
    runs: tuple[str, ...]
    differences: tuple[str, ...]
    assumptions: tuple[str, ...]
    session_hours: Digits
    session_hours_origin: str
    sessions: int | None
    billed_hours: Digits | None
    wall_hours: Digits | None
    sweep: SweepReport | None
    quota: QuotaReport | None
    quota_problem: str | None
    gpu_reserve_hours: Digits
    fits: bool | None
    refreshes: int | None
    enough_from: datetime | None


@dataclass(frozen=True)
class Plan:
    """The need of the next run, chain or sweep, and what the account has for it; in hours."""

    kernel: str
    wanted: Wanted
    estimate: Estimate
    """Of one run, or one trial."""

    session_hours: float
    session_origin: str
    reserve: float
    quota: Quota | None
    quota_problem: str = ""
    """Why the quota is unknown."""

    sweep: SweepShape | None = None

    @property
    def hours(self) -> float | None:
        """One run, or one trial, from its first cell to its last."""
        return None if self.estimate.seconds is None else self.estimate.seconds / 3600

    @property
    def assumptions(self) -> tuple[str, ...]:
        """One sentence each, with its origin."""
        found = list(self.estimate.assumptions)
        if self.sweep and self.sweep.assumption:
            found.append(self.sweep.assumption)
        if self.sweep and self.estimate.runs:
            found.append("each trial takes as long as the project's own parameters")
        return tuple(found)

    @property
    def sessions(self) -> int | None:
        """Sessions that one run needs under Kaggle's limit: more than one is a chain.

        None if it is unknown, or if a session is too short for anything but the fixed part.
        """
        if self.hours is None:
            return None
        if self.hours <= self.session_hours:
            return 1
        fixed = (self.estimate.fixed_seconds or 0.0) / 3600
        margin = min(MARGIN_SECONDS / 3600, MARGIN_PART * self.session_hours)
        usable = self.session_hours - margin - fixed  # the run ends before Kaggle ends it
        return math.ceil((self.hours - fixed) / usable) if usable > 0 else None

    @property
    def total_hours(self) -> float | None:
        """Hours of all sessions together; each session of a chain has the fixed part again."""
        if self.hours is None or self.sessions is None:
            return None
        fixed = (self.estimate.fixed_seconds or 0.0) / 3600
        one = self.hours + (self.sessions - 1) * fixed
        return one * self.sweep.pushes if self.sweep else one

    @property
    def wall_hours(self) -> float | None:
        """Hours until the end, if no session has to wait."""
        if self.total_hours is None or not self.sweep:
            return self.total_hours
        return self.total_hours / self.sweep.pushes * self.sweep.rounds

    @property
    def billed_hours(self) -> float | None:
        """GPU hours; a session with several GPUs bills its time once [A]."""
        return self.total_hours if self.wanted.wants_gpu else 0.0

    @property
    def usable_hours(self) -> float | None:
        """GPU hours that may be used before the refresh."""
        if self.quota is None or not self.quota.allowed:
            return None
        return max(0.0, self.quota.left - self.reserve)

    @property
    def is_cut_short(self) -> bool:
        """Whether Kaggle would end each trial of a sweep: a trial is one session, and no chain."""
        return self.sweep is not None and self.hours is not None and self.sessions != 1

    @property
    def fits(self) -> bool | None:
        """Whether the quota and the sessions have the hours; None if that is unknown.

        It is unknown as well if the hours fit, and are those of a run on other hardware with other
        parameters: a rehearsal often has little data.
        """
        if self.is_cut_short:
            return False
        if self.wanted.wants_tpu:  # kernelkit reads the GPU quota only
            return None
        if not self.wanted.wants_gpu:
            return True
        if self.billed_hours is None or self.usable_hours is None:
            return None
        fits = self.billed_hours <= self.usable_hours
        found = self.estimate
        unsure = found.certainty == Certainty.ASSUMED and bool(found.differences)
        return None if fits and unsure else fits

    @property
    def refreshes(self) -> int | None:
        """Refreshes of the quota until it has had the hours; None if unknown, or never."""
        if self.fits is None or self.quota is None or self.is_cut_short:
            return None
        if self.fits:
            return 0
        weekly = self.quota.allowed - self.reserve
        missing = (self.billed_hours or 0.0) - (self.usable_hours or 0.0)
        return math.ceil(missing / weekly) if weekly > 0 else None

    @property
    def enough_from(self) -> datetime | None:
        """When the quota will have had the hours; None if it has them, or if that is unknown."""
        if not self.refreshes or self.quota is None or self.quota.refresh is None:
            return None
        return self.quota.refresh + (self.refreshes - 1) * WEEK

    def report(self) -> PlanReport:
        """All of it for a script."""
        found, quota, sweep = self.estimate, self.quota, self.sweep
        spread = [one / 3600 for one in (found.least, found.most) if one is not None]
        return PlanReport(
            kernel=self.kernel,
            machine_shape=self.wanted.machine_shape,
            certainty=found.certainty,
            seconds_per_epoch=found.seconds_per_epoch,
            epochs=found.epochs,
            fixed_seconds=found.fixed_seconds,
            hours=self.hours,
            hours_range=(spread[0], spread[1]) if spread else None,
            runs=found.runs,
            differences=found.differences,
            assumptions=self.assumptions,
            session_hours=self.session_hours,
            session_hours_origin=self.session_origin,
            sessions=self.sessions,
            billed_hours=self.billed_hours,
            wall_hours=self.wall_hours,
            sweep=SweepReport.model_validate({**vars(sweep), "pushes": sweep.pushes})
            if sweep
            else None,
            quota=QuotaReport(**vars(quota), left=quota.left) if quota else None,
            quota_problem=self.quota_problem or None,
            gpu_reserve_hours=self.reserve,
            fits=self.fits,
            refreshes=self.refreshes,
            enough_from=self.enough_from,
        )


def sweep_shape(config: Config, trials: int | None = None) -> SweepShape:
    """The sweep of a project file; `trials` replaces its number of trials.

    Raises:
        ConfigError: what `plan_sweep` raises.
    """
    from kernelkit.campaigns.sweep_plan import plan_sweep

    plan = plan_sweep(config, trials=trials)
    return SweepShape(plan.trials, plan.sessions, plan.processes or 1, plan.assumption)


def make_plan(
    config: Config,
    connect: Callable[[], Kaggle],
    *,
    rehearsals: Path | None = None,
    ratio: float | None = None,
    sweep: SweepShape | None = None,
) -> Plan:
    """Plan a run of this project, or a sweep; nothing is pushed.

    `rehearsals` is the folder of rehearsals (default: `build/rehearsal`), and `ratio` how many
    times faster the wanted hardware is than theirs. Without an answer of Kaggle the quota is
    unknown, and the reason is part of the plan.
    """
    wanted = Wanted.of(config.kernel, config.parameters)
    found = estimate(
        config.project / "runs",
        config.kernel.slug,
        wanted,
        endpoint=config.endpoint or PRODUCTION,
        rehearsals=rehearsals or config.build_folder("rehearsal"),
        ratio=ratio,
    )
    quota, problem = None, ""
    try:
        quota = connect().quota()
    except (CapacityError, CredentialsError, RefusedError, UnreachableError) as error:
        problem = str(error)
    limit, origin = _session_limit(config)
    return Plan(
        kernel=config.kernel.slug,
        wanted=wanted,
        estimate=found,
        session_hours=limit,
        session_origin=origin,
        reserve=config.gpu_reserve_hours,
        quota=quota,
        quota_problem=problem,
        sweep=sweep,
    )


def _session_limit(config: Config) -> tuple[float, str]:
    """The hours after which a session ends, and who says so: the strictest of all limits."""
    kernel = config.kernel
    is_tpu = Wanted.of(kernel, config.parameters).wants_tpu
    limits = [(TPU_SESSION_HOURS if is_tpu else SESSION_HOURS, "Kaggle's limit by most reports")]
    if kernel.session_timeout_seconds:
        limits.append((kernel.session_timeout_seconds / 3600, "session_timeout_seconds"))
    if config.deadline_hours:
        limits.append((config.deadline_hours, "deadline_hours"))
    return min(limits)
