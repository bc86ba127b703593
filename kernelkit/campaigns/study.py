"""The study of a sweep: its trials in Optuna's database, and what kernelkit adds to each.

The database is `runs/<slug>/sweep.db`, which `optuna-dashboard` can open. It has a study for each
search: other parameters, another metric or another Kaggle start a new one, because their values
cannot be compared.

A trial remembers its `Assignment`, in one attribute, so that each change is written whole or not
at all: which session runs it, and in which lane. It is written before the session is pushed. A
process that was killed therefore leaves no trial whose session is unknown.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from kernelkit.campaigns.sessions import new_campaign
from kernelkit.campaigns.space import Choices, Dimension, Point, Space, Steps
from kernelkit.config import MetricGoal, Parameter, Pruner, Sampler
from kernelkit.errors import ConfigError, LocalError
from kernelkit.storage import make_ignored_folder

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

DATABASE_NAME = "sweep.db"
SHUFFLED_POINTS = 10_000  # larger finite spaces are sampled, which hardly ever repeats a point
STARTUP_TRIALS = 5  # complete ones before the first is stopped early: Optuna's own default
BUSY_SECONDS = 60  # until another process, such as optuna-dashboard, has finished its writing

_ASSIGNMENT, _FAILURE, _SOURCE = "session", "failure", "same_as"
_CAMPAIGN, _SEARCH, _SESSIONS = "campaign", "search", "sessions"
_PLANNED, _SOURCE_DIGEST = "planned", "source_digest"

TrialState = Literal["waiting", "running", "complete", "pruned", "failed"]


class Search(BaseModel):
    """What all trials of a study have in common; only then can their values be compared."""

    model_config = ConfigDict(frozen=True)

    slug: str
    space: str
    """The text of the space."""

    metric: str
    goal: MetricGoal
    parameters: Point
    """Those that are not swept."""

    profile: str | None
    endpoint: str

    @property
    def name(self) -> str:
        """Of the study: the slug and a hash of the rest."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Assignment(BaseModel):
    """Which session runs a trial."""

    model_config = ConfigDict(frozen=True)

    session: int = 0
    """Counts from 1; 0 for a trial that waits for another session."""

    lane: int = 0
    run: str | None = None
    """`slug/v3`, once the push is recorded."""

    earlier_runs: tuple[str, ...] = ()
    """That Kaggle ended; their number is that of the retries."""

    medians: tuple[float, ...] = ()
    """With which the session decides whether to end the trial early."""

    stopping: bool = False
    """Whether the sweep has decided to cancel the session, because its trials are hopeless."""


@dataclass(frozen=True)
class SweepTrial:
    """One trial, as its study has it."""

    number: int
    parameters: Point
    """The swept ones."""

    state: TrialState
    value: float | None
    assignment: Assignment | None
    failure: str
    """Why it failed, or was stopped."""

    same_as: int | None
    """The trial with the same parameters whose value this one has: it was not run again."""

    reports: Mapping[int, float]
    """Step → value of the metric, as the run has reported it."""

    @property
    def run(self) -> str | None:
        """`slug/v3`: the run that decides, or the latest one."""
        return self.assignment.run if self.assignment else None

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {
            "number": self.number,
            "parameters": dict(self.parameters),
            "value": self.value,
            "state": self.state,
            "run": self.run,
            "failure": self.failure or None,
            "same_as": self.same_as,
            "earlier_runs": list(self.assignment.earlier_runs) if self.assignment else [],
        }


class SweepStudy:
    """The trials of one search. Only one thread may use it."""

    def __init__(self, study: Study, storage: RDBStorage, search: Search, space: Space) -> None:
        self._study, self._storage = study, storage
        self.search, self.space = search, space
        self._distributions = {
            name: _distribution(dimension) for name, dimension in space.dimensions.items()
        }
        self._choices = {
            name: {_encoded(value): value for value in dimension.values}
            for name, dimension in space.dimensions.items()
            if isinstance(dimension, Choices)
        }
        self._order: Sequence[int] | None = None  # of the points of a finite space
        self._walked = 0  # how many of them were looked at
        self._ended: dict[int, SweepTrial] = {}
        self._known: Sequence[FrozenTrial] | None = None  # until this process writes

    @property
    def name(self) -> str:
        """Of the study in the database."""
        return self.search.name

    @property
    def campaign(self) -> str:
        """With which the marks of its sessions begin; another one for each study."""
        return str(self._study.user_attrs[_CAMPAIGN])

    @property
    def planned(self) -> int:
        """How many trials there will be, as far as it was decided."""
        return int(self._study.user_attrs.get(_PLANNED, 0))

    def plan(self, trials: int) -> None:
        """Record how many trials there will be."""
        self._study.set_user_attr(_PLANNED, trials)

    def note_source(self, digest: str) -> bool:
        """Record the digest of the package's files; whether the sweep began with other files."""
        first = self._study.user_attrs.get(_SOURCE_DIGEST)
        if first is None:
            self._study.set_user_attr(_SOURCE_DIGEST, digest)
        return first not in (None, digest)

    @property
    def optuna(self) -> Study:
        """Optuna's own study, for its pictures and importances."""
        return self._study

    @property
    def trials(self) -> list[SweepTrial]:
        """All of them, by number; what another process writes meanwhile may be missing."""
        return [self._shown(trial) for trial in self._all()]

    @property
    def best(self) -> SweepTrial | None:
        """The complete trial with the best value; None without one."""
        return best_trial(self.trials, self.search.goal)

    def ask(self, sampler: Sampler, seed: int) -> SweepTrial | None:
        """Start a new trial; None if the space has no further point.

        A finite space is walked point by point, in a random order unless it is a grid. The seed
        is combined with the number of the trial: a sweep that was killed goes on as it would have.
        """
        import optuna

        trials = self._all()
        waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in trials)
        if not waiting and sampler != "tpe" and self._is_walked(sampler):
            point = self._next_point(sampler, seed, trials)
            if point is None:
                return None
            self._study.enqueue_trial({k: _encoded(v) for k, v in point.items()})
        with _experimental_features():
            self._set_sampler(sampler, seed, len(trials))
            asked = self._study.ask(fixed_distributions=self._distributions)
        self._known = None
        return self._get(asked.number)

    def finish_asking(self, sampler: Sampler, seed: int) -> None:
        """Choose the parameters that a process which was killed in `ask` has not chosen."""
        import optuna

        running = (optuna.trial.TrialState.RUNNING,)
        for frozen in self._study.get_trials(deepcopy=False, states=running):
            if frozen.params.keys() >= self._distributions.keys():
                continue
            with _experimental_features():
                self._set_sampler(sampler, seed, frozen.number)
                trial = optuna.trial.Trial(self._study, frozen._trial_id)
                for name, distribution in self._distributions.items():
                    trial._suggest(name, distribution)
        self._known = None

    def _set_sampler(self, sampler: Sampler, seed: int, number: int) -> None:
        """Let Optuna choose the parameters of a trial as it would in a sweep without a break."""
        import optuna

        mixed = hashlib.sha256(f"{seed}-{number}".encode()).digest()
        own_seed = int.from_bytes(mixed[:4], "big")
        self._study.sampler = (
            optuna.samplers.TPESampler(seed=own_seed, constant_liar=True)
            if sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=own_seed)
        )

    def assign(self, number: int, assignment: Assignment) -> None:
        """Record which session runs a trial."""
        self._set(number, _ASSIGNMENT, assignment.model_dump(mode="json"))

    def next_session(self) -> int:
        """A number that no session of the study has had, also none whose trial is tried again.

        It is written down before it is used: the mark of a session is found again by its number.
        """
        numbers = [trial.assignment.session for trial in self.trials if trial.assignment]
        number = max([int(self._study.user_attrs.get(_SESSIONS, 0)), *numbers]) + 1
        self._study.set_user_attr(_SESSIONS, number)
        return number

    def report(self, number: int, values: Sequence[float]) -> None:
        """Record the values that a run has reported so far, in their order."""
        import optuna

        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        for step, value in enumerate(values):
            if step not in frozen.intermediate_values:
                trial.report(value, step)
        self._known = None

    def is_hopeless(self, number: int) -> bool:
        """Whether a running trial is worse than the median of the others so far."""
        import optuna

        frozen = self._frozen(number)
        if not frozen.intermediate_values or frozen.state.is_finished():
            return False
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
        return pruner.prune(self._study, frozen)

    def medians(self, pruner: Pruner) -> tuple[float, ...]:
        """After 1, 2, … reports: the median of the complete trials' values; empty without enough.

        A session decides with these on its own: nothing can be sent to it while it runs.
        """
        complete = [trial.reports for trial in self.trials if trial.state == "complete"]
        if pruner == "none" or len(complete) < STARTUP_TRIALS:
            return ()
        medians: list[float] = []
        while values := [reports[len(medians)] for reports in complete if len(medians) in reports]:
            medians.append(statistics.median(values))
        return tuple(medians)

    def complete(self, number: int, value: float) -> None:
        """End a trial with the value of its verified run."""
        self._tell(number, "COMPLETE", value)

    def fail(self, number: int, reason: str) -> None:
        """End a trial without a value."""
        self._set(number, _FAILURE, reason)
        self._tell(number, "FAIL")

    def prune(self, number: int, reason: str) -> None:
        """End a trial that was stopped early."""
        self._set(number, _FAILURE, reason)
        self._tell(number, "PRUNED")

    def repeat(self, number: int, other: SweepTrial) -> None:
        """End a trial with the value of another one that has the same parameters."""
        self._set(number, _SOURCE, other.number)
        if other.assignment is not None:
            self.assign(number, other.assignment)
        if other.value is not None:
            self.complete(number, other.value)

    def close(self) -> None:
        """Close the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _is_walked(self, sampler: Sampler) -> bool:
        size = self.space.size
        return size is not None and (sampler == "grid" or size <= SHUFFLED_POINTS)

    def _next_point(
        self, sampler: Sampler, seed: int, trials: Iterable[FrozenTrial]
    ) -> Point | None:
        size = self.space.size or 0
        if self._order is None:
            self._order = range(size)
            if sampler == "random":
                self._order = list(self._order)
                random.Random(seed).shuffle(self._order)
        used = {_key(self._decoded(trial)) for trial in trials}
        while self._walked < size:  # what is used stays used
            point = self.space.point(self._order[self._walked])
            if _key(point) not in used:
                return point
            self._walked += 1
        return None

    def _all(self) -> Sequence[FrozenTrial]:
        """Every trial, by number. Reading them takes milliseconds, and they are asked for often."""
        if self._known is None:
            self._known = self._study.get_trials(deepcopy=False)
        return self._known

    def _frozen(self, number: int) -> FrozenTrial:
        return self._all()[number]

    def _get(self, number: int) -> SweepTrial:
        return self._shown(self._frozen(number))

    def _set(self, number: int, name: str, value: JsonValue) -> None:
        self._storage.set_trial_user_attr(self._frozen(number)._trial_id, name, value)
        self._known = None

    def _tell(self, number: int, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState as OptunaState

        self._study.tell(number, value, OptunaState[state], skip_if_finished=True)
        self._known = None

    def _decoded(self, trial: FrozenTrial) -> Point:
        known = trial.params or trial.system_attrs.get("fixed_params", {})
        names = [name for name in self.space.dimensions if name in known]
        return {name: self._value(name, known[name]) for name in names}

    def _value(self, name: str, stored: Parameter) -> Parameter:
        """A value as the project file writes it."""
        dimension = self.space.dimensions[name]
        if isinstance(dimension, Choices):
            return self._choices[name].get(stored, stored)
        values = dimension.values
        return values.nearest(stored) if isinstance(values, Steps) else stored

    def _shown(self, trial: FrozenTrial) -> SweepTrial:
        if trial.number not in self._ended:
            shown = self._read(trial)
            if not trial.state.is_finished():
                return shown
            self._ended[trial.number] = shown
        return self._ended[trial.number]

    def _read(self, trial: FrozenTrial) -> SweepTrial:
        stated = trial.user_attrs.get(_ASSIGNMENT)
        assignment = Assignment.model_validate(stated) if stated else None
        state = _STATES[trial.state.name]
        if state == "running" and (assignment is None or assignment.run is None):
            state = "waiting"  # it is not on Kaggle yet, as far as this machine knows
        return SweepTrial(
            number=trial.number,
            parameters=self._decoded(trial),
            state=state,
            value=trial.value if state == "complete" else None,
            assignment=assignment,
            failure=str(trial.user_attrs.get(_FAILURE, "")),
            same_as=trial.user_attrs.get(_SOURCE),
            reports=trial.intermediate_values,
        )


_STATES: Mapping[str, TrialState] = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
}


@contextmanager
def open_study(folder: Path, search: Search, space: Space) -> Iterator[SweepStudy]:
    """The study of a search in the database of a folder; both are created where missing.

    Raises:
        LocalError: the database cannot be read or written.
    """
    make_ignored_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    with _database(folder / DATABASE_NAME) as storage:
        import optuna

        direction = search.goal
        study = optuna.create_study(
            storage=storage, study_name=search.name, direction=direction, load_if_exists=True
        )
        if _CAMPAIGN not in study.user_attrs:
            study.set_user_attr(_SEARCH, search.model_dump(mode="json"))
            study.set_user_attr(_CAMPAIGN, new_campaign("sweep"))
        opened = SweepStudy(study, storage, search, space)
        yield opened


def has_trials(folder: Path, search: Search) -> bool:
    """Whether the database of a folder has a trial of a search."""
    with _database(folder / DATABASE_NAME) as storage:
        import optuna

        known = optuna.get_all_study_summaries(storage)
        return any(one.study_name == search.name and one.n_trials for one in known)


def latest_search(folder: Path) -> Search | None:
    """What was searched for last in the database of a folder; None without any trial.

    Raises:
        LocalError: the database cannot be read.
    """
    with _database(folder / DATABASE_NAME) as storage:
        import optuna

        known = optuna.get_all_study_summaries(storage)
        started = [one for one in known if one.datetime_start and _SEARCH in one.user_attrs]
        if not started:
            return None
        latest = max(started, key=lambda one: one.datetime_start or datetime.min)
        return Search.model_validate(latest.user_attrs[_SEARCH])


@contextmanager
def _database(path: Path) -> Iterator[RDBStorage]:
    """Optuna's storage in a file of SQLite.

    Raises:
        LocalError: it cannot be read or written.
    """
    import optuna
    from sqlalchemy import event
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}}
        )

        # A write-ahead log: one write to the disk for each change, and readers never wait. What
        # was written survives the end of the process.
        @event.listens_for(storage.engine, "connect")
        def configure(connection: object, _record: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]
            connection.execute("PRAGMA synchronous=NORMAL")  # type: ignore[attr-defined]

        storage.engine.dispose()
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LocalError(
            f"{path} cannot be used: {reason}",
            "Move it away to start the sweep from the beginning.",
        ) from error
    except RuntimeError as error:  # Optuna's word for a database of another version
        if "optuna" not in str(error).lower() and "version" not in str(error).lower():
            raise
        raise ConfigError(
            f"{path} was written by another version of Optuna: {error}",
            f"Run: optuna storage upgrade --storage sqlite:///{path}",
        ) from error


def best_trial(trials: Iterable[SweepTrial], goal: MetricGoal) -> SweepTrial | None:
    """The complete trial with the best value, the first of equals; None without one."""
    valued = [(trial.value, trial) for trial in trials if trial.value is not None]
    sign = 1 if goal == "minimize" else -1
    return min(valued, key=lambda pair: (sign * pair[0], pair[1].number))[1] if valued else None


def same_point(point: Point, trials: Iterable[SweepTrial]) -> SweepTrial | None:
    """The first complete trial with these parameters, which was run."""
    key = _key(point)
    complete = (t for t in trials if t.value is not None and t.same_as is None)
    return next((trial for trial in complete if _key(trial.parameters) == key), None)


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _encoded(value: Parameter) -> str | int | float | bool:
    """A choice as Optuna stores it: lists and tables as their JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(dimension, Choices):
        return CategoricalDistribution([_encoded(value) for value in dimension.values])
    high = dimension.values[-1] if dimension.values is not None else dimension.high
    if dimension.is_whole:
        return IntDistribution(
            int(dimension.low), int(high), log=dimension.log, step=int(dimension.step or 1)
        )
    return FloatDistribution(dimension.low, high, log=dimension.log, step=dimension.step)


@contextmanager
def _experimental_features() -> Iterator[None]:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
