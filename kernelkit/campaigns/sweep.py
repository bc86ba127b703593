"""A sweep: trials with different parameters, some at once, until all of them have ended.

The study chooses the parameters and remembers everything (`kernelkit.campaigns.study`). Each lane
runs one session after the other, in a thread of its own that pushes, watches and pulls. All
decisions, and all writing to the study, happen in the thread that called `run_sweep`.

What a process that is killed leaves behind is enough to go on: a trial is assigned to a session
before the session is pushed, and a session is found again by its mark.
"""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tomlkit
from pydantic import JsonValue

from kernelkit import workflow
from kernelkit.campaigns.lanes import lane_config, session_config
from kernelkit.campaigns.sessions import Session, pull_session, push_session
from kernelkit.campaigns.space import Point, Space, read_space
from kernelkit.campaigns.study import (
    DATABASE_NAME,
    Assignment,
    Search,
    SweepStudy,
    SweepTrial,
    best_trial,
    open_study,
    same_point,
)
from kernelkit.config import (
    Config,
    Parameter,
    Pruner,
    PruningSettings,
    Sampler,
    SweepSettings,
    TrialSettings,
)
from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    ConfigError,
    KernelkitError,
    LocalError,
    NotFoundError,
    QuotaError,
    RefusedError,
    RunFailedError,
    UnreachableError,
    VerificationError,
    require_extra,
)
from kernelkit.kaggle.types import PRODUCTION, LogEntry, Quota, ignore
from kernelkit.storage import counted, locked, make_ignored_folder

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.runs.download import PulledRun
    from kernelkit.runs.store import RunFolder
    from kernelkit.runs.watch import LogEvent
    from kernelkit.workflow import Event

GPUS = {"NvidiaTeslaT4": 2, "NvidiaTeslaT4Highmem": 2, "NvidiaL4": 4, "": 2}
"""How many GPUs a session of a machine_shape has, where it is more than one. Without a shape,
Kaggle gives two T4."""

CPU_PROCESSES = 2  # with per_gpu, in a session without a GPU: to try it
FAILURES = 3  # of the first trials, after which no more are pushed: the code has an error
OUTAGE_PAUSES = (30.0, 300.0)  # seconds between two tries while Kaggle is unreachable
OUTAGE_TRIES = 20  # of one step, one after the other; over an hour
PULLS = 3  # of a run whose files do not verify: Kaggle may still send those of another one
SWEEP_LOCK = ".sweep.lock"
OWN_FILES = frozenset(
    {SWEEP_LOCK, DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm", "sweep.html"}
)
"""What a sweep keeps next to the versions of the project's own kernel."""

ALIVE_SECONDS = 5.0  # between two signs that a sweep is running: the time of its lock's file


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


@dataclass(frozen=True)
class SweepView:
    """What is known about a sweep at one moment."""

    study: str
    metric: str
    goal: str
    planned: int
    """How many trials there will be; not less than there are."""

    trials: tuple[SweepTrial, ...]
    database: Path
    progress: Mapping[int, LogEvent] = field(default_factory=dict)
    """Number of a running trial → the last epoch that it has reported."""

    quota: Quota | None = None
    report: Path | None = None
    """The page with the pictures, once it is written."""

    @property
    def best(self) -> SweepTrial | None:
        """The complete trial with the best value."""
        return best_trial(self.trials, "minimize" if self.goal == "minimize" else "maximize")

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
            "goal": self.goal,
            "study": self.study,
            "database": str(self.database),
            "report": str(self.report) if self.report else None,
        }


SweepEvent = SweepView | str
"""What a sweep reports: its state after each change, or a message."""

OnSweepEvent = Callable[[SweepEvent], None]

Result = TypeVar("Result")


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
    gpus = GPUS.get(config.kernel.machine_shape, 1)
    return gpus if gpus > 1 else 0


def read_sweep(plan: SweepPlan, root: Path, *, report: bool = False) -> SweepView:
    """The sweep as it is recorded; nothing is pushed, and Kaggle is not asked.

    `report` writes the page with the pictures again.

    Raises:
        ConfigError: this sweep was never started.
    """
    require_extra("sweep", "optuna")
    path = root / plan.slug / DATABASE_NAME
    if not path.is_file():
        raise ConfigError(f"no sweep of {plan.slug} was started here", "Start it: kernelkit sweep")
    with open_study(path.parent, plan.search, plan.space) as study:
        trials = study.trials
        if not trials:
            raise ConfigError(
                f"{path} has no trial of this sweep: the parameters, the metric or the settings of "
                "the project have changed since",
                "Start it: kernelkit sweep. Earlier ones are in the same database.",
            )
        view = _view(plan, study, path, trials)
        if report:
            view = replace(view, report=_report(study, path.parent))
        return view


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
        ConfigError: as `workflow.rehearse`, and as `run_sweep`.
    """
    from kernelkit.kaggle.kernels import connect
    from kernelkit.kaggle.local import local_kaggle, require_inputs
    from kernelkit.runs import store

    require_extra("sweep", "optuna")
    require_runnable(plan)
    config = plan.config
    for doubt in require_inputs(inputs, config.kernel.sources):
        on_event(f"note: {doubt}")
    lanes = [_lane(config, lane).kernel.slug for lane in range(1, plan.sessions + 1)]
    with store.rehearsal_lock(out):
        for slug in (plan.slug, *lanes):
            store.remove_rehearsal(out / slug, config.project / "runs", OWN_FILES)
        with local_kaggle(inputs, mounts) as server:
            on_event(f"local Kaggle at {server.endpoint}")
            local = config.model_copy(update={"endpoint": server.endpoint})
            search = plan.search.model_copy(update={"endpoint": server.endpoint})
            return run_sweep(
                replace(plan, config=local, search=search),
                lambda: connect(server.endpoint, {}, config.kernel.owner),
                out,
                on_event=on_event,
            )


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
    require_extra("sweep", "optuna")
    folder = root / plan.slug
    make_ignored_folder(root)
    with locked(folder, SWEEP_LOCK, on_wait=lambda: _refuse_second(folder)):
        require_runnable(plan)
        with open_study(folder, plan.search, plan.space) as study:
            return _Scheduler(plan, study, connect, root, on_event).run()


def require_runnable(plan: SweepPlan) -> None:
    """Check, before anything is pushed, that the kernel of a trial has no problems.

    Raises:
        PreflightError: with every problem, such as a parameter that the entry does not take.
    """
    trial = TrialSettings(number=0, parameters=plan.space.first_point)
    workflow.preflight(_session_config(plan, 1, [trial], ()))


def _lane(config: Config, number: int) -> Config:
    return lane_config(config, f"lane-{number}")


def _refuse_second(folder: Path) -> None:
    raise LocalError(
        f"another process is running the sweep in {folder}",
        "Look at it with `kernelkit sweep status`, or end that process first.",
    )


def _session_config(
    plan: SweepPlan, lane: int, trials: Sequence[TrialSettings], medians: Sequence[float]
) -> Config:
    """The project as one session runs it."""
    config = _lane(plan.config, lane)
    if not plan.processes:
        return session_config(config, trials[0].parameters)
    pruning = PruningSettings(
        metric=plan.search.metric, goal=plan.search.goal, medians=tuple(medians)
    )
    return config.model_copy(
        update={"trials": tuple(trials), "pruning": pruning if medians else None}
    )


@dataclass
class _Running:
    """A session that a lane runs."""

    number: int
    lane: int
    trials: tuple[int, ...]
    """Those that have not ended."""

    session: Session
    asked: float | None
    """How long ago a killed process may have pushed it, in seconds."""

    folder: RunFolder | None = None
    """Of its version, once the push is recorded."""

    reported: dict[int, list[float]] = field(default_factory=dict)
    """Trial → the values of the metric that its run has printed so far."""

    stopping: bool = False

    @property
    def name(self) -> str:
        """For people: `trial 3`, `trials 3 and 4`."""
        numbers = " and ".join(map(str, self.trials))
        return f"trial{'s' if len(self.trials) > 1 else ''} {numbers}"


@dataclass(frozen=True)
class _Message:
    """What the thread of a session says to the scheduler."""

    session: _Running
    content: RunFolder | PulledRun | KernelkitError | BaseException | Event


class _Scheduler:
    """Keeps the lanes busy until every trial has ended."""

    def __init__(
        self,
        plan: SweepPlan,
        study: SweepStudy,
        connect: Callable[[], Kaggle],
        root: Path,
        on_event: OnSweepEvent,
    ) -> None:
        self._plan, self._study, self._connect = plan, study, connect
        self._root, self._on_event = root, on_event
        self._running: dict[int, _Running] = {}  # by the number of the session
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._progress: dict[int, LogEvent] = {}
        self._quota: Quota | None = None
        self._error: BaseException | None = None
        self._completed = any(trial.state == "complete" for trial in study.trials)
        self._failed: list[str] = []

    def run(self) -> SweepView:
        """Start, wait, decide, until nothing is left to do."""
        self._resume()
        while True:
            while self._error is None and self._start_next():
                pass
            self._show()
            if not self._running:
                break
            self._handle(self._next_message())
        if self._error is not None:
            raise self._error
        view = replace(self._view(), report=self._report())
        if view.best is None:
            failures = [trial for trial in view.trials if trial.failure]
            raise RunFailedError(
                f"none of {counted(len(view.trials), 'trial')} gave a value"
                + (f"; trial {failures[-1].number}: {failures[-1].failure}" if failures else ""),
                _diagnose_step(failures[-1]) if failures else "",
                view,
            )
        return view

    def _next_message(self) -> _Message:
        """The next message; until it comes, the lock's file shows that this process is alive."""
        while True:
            (self._root / self._plan.slug / SWEEP_LOCK).touch()
            with suppress(queue.Empty):
                return self._messages.get(timeout=ALIVE_SECONDS)

    # Starting

    def _resume(self) -> None:
        """Take over the sessions that an earlier process has left."""
        sessions: dict[int, list[SweepTrial]] = {}
        idle = _seconds_since_alive(self._root / self._plan.slug)
        for trial in self._study.trials:
            if (
                trial.state in ("running", "waiting")
                and trial.assignment
                and trial.assignment.session
            ):
                sessions.setdefault(trial.assignment.session, []).append(trial)
        for trials in sessions.values():
            assignment = trials[0].assignment
            assert assignment is not None
            self._start(trials, assignment, asked=idle)
        if sessions:
            self._on_event(f"going on with {counted(len(sessions), 'session')} of an earlier start")

    def _start_next(self) -> bool:
        """Push another session if a lane is free and a trial is left; whether it did."""
        busy = {session.lane for session in self._running.values()}
        free = [lane for lane in range(1, self._plan.sessions + 1) if lane not in busy]
        if len(self._running) >= self._plan.sessions or not free:
            return False
        trials = self._next_trials(self._plan.processes or 1)
        if not trials:
            return False
        number = self._study.next_session()
        medians = self._study.medians(self._plan.pruner) if self._plan.processes else ()
        for trial in trials:
            earlier = trial.assignment.earlier_runs if trial.assignment else ()
            assignment = Assignment(
                session=number,
                lane=free[0],
                earlier_runs=earlier,
                medians=medians,
            )
            self._study.assign(trial.number, assignment)
        self._start(trials, assignment)
        return True

    def _next_trials(self, most: int) -> list[SweepTrial]:
        """Trials that no session runs: asked for by a killed process, or new ones."""
        active = {number for session in self._running.values() for number in session.trials}
        known = self._study.trials
        left = [t for t in known if t.state == "waiting" and t.number not in active]
        found = left[:most]
        count = len(known)
        while len(found) < most and count < self._plan.trials:
            trial = self._study.ask(self._plan.sampler, self._plan.seed)
            if trial is None:
                break
            count = max(count, trial.number + 1)
            if same := same_point(trial.parameters, self._study.trials):
                self._study.repeat(trial.number, same)
                self._on_event(f"trial {trial.number} is the same as trial {same.number}")
                continue
            found.append(trial)
        return found

    def _start(
        self,
        trials: Sequence[SweepTrial],
        assignment: Assignment,
        *,
        asked: float | None = None,
    ) -> None:
        settings = [TrialSettings(number=t.number, parameters=t.parameters) for t in trials]
        config = _session_config(self._plan, assignment.lane, settings, assignment.medians)
        session = _Running(
            number=assignment.session,
            lane=assignment.lane,
            trials=tuple(trial.number for trial in trials),
            session=Session(config, f"{self._study.campaign}-{assignment.session}"),
            asked=asked,
            folder=_folder_of(self._root, assignment.run),
            stopping=assignment.stopping,
        )
        self._running[session.number] = session
        threading.Thread(target=self._work, args=[session], daemon=True).start()

    def _work(self, session: _Running) -> None:
        """In the thread of a session: push, watch and pull it, and report everything."""

        def post(content: object) -> None:
            self._messages.put(_Message(session, content))  # type: ignore[arg-type]

        try:
            kaggle = self._connect()
            folder = session.folder or _push(session, kaggle, self._root, post)
            post(folder)
            if not folder.is_complete():
                _patiently(lambda: _watch(kaggle, folder, post), kaggle, post)
            post(_pull(kaggle, folder, post))
        except BaseException as error:  # the scheduler decides, also about a bug
            post(error)

    # Deciding

    def _handle(self, message: _Message) -> None:
        from kernelkit.runs.download import PulledRun
        from kernelkit.runs.store import RunFolder

        session, content = message.session, message.content
        if session.number not in self._running:
            return  # it was given up
        if isinstance(content, RunFolder):
            session.folder = content
            self._record_run(session, content)
        elif isinstance(content, LogEntry):
            self._read(session, content)
        elif isinstance(content, Quota):
            self._quota = content
        elif isinstance(content, str):
            self._on_event(f"{session.name}: {content}")
        elif isinstance(content, PulledRun):
            self._release(session)
            self._end(session, content)
        elif isinstance(content, BaseException):
            self._release(session)
            self._fail(session, content)

    def _release(self, session: _Running) -> None:
        self._running.pop(session.number, None)
        for number in session.trials:
            self._progress.pop(number, None)

    def _record_run(self, session: _Running, folder: RunFolder) -> None:
        for trial in self._trials_of(session):
            if trial.assignment:
                run = f"{folder.slug}/v{folder.version}"
                self._study.assign(trial.number, trial.assignment.model_copy(update={"run": run}))

    def _trials_of(self, session: _Running) -> Iterator[SweepTrial]:
        """The trials of a session that have not ended."""
        for trial in self._study.trials:
            if trial.number in session.trials and trial.state in ("running", "waiting"):
                yield trial

    def _read(self, session: _Running, entry: LogEntry) -> None:
        """Note what a run prints about an epoch, and stop it if it is hopeless."""
        from kernelkit.runs.watch import progress

        event = progress(entry)
        if event is None or event.kind != "epoch":
            return
        number = session.trials[0] if not self._plan.processes else event.trial
        if number not in session.trials:
            return
        self._progress[number] = event
        value = event.numbers.get(self._plan.search.metric)
        if value is None:
            return
        values = session.reported.setdefault(number, [])
        values.append(float(value))
        self._study.report(number, values)
        hopeless = (
            self._plan.pruner == "median"
            and not self._plan.processes  # there the session itself ends a trial
            and not session.stopping
            and self._study.is_hopeless(number)
        )
        if hopeless and session.folder is not None:
            self._stop(session, session.folder)

    def _stop(self, session: _Running, folder: RunFolder) -> None:
        """Cancel the session of a hopeless trial; the decision is recorded first."""
        session.stopping = True
        for trial in self._trials_of(session):
            if trial.assignment:
                stopping = trial.assignment.model_copy(update={"stopping": True})
                self._study.assign(trial.number, stopping)
        self._on_event(f"{session.name}: worse than the median of the others: cancelling the run")

        def cancel() -> None:
            try:
                workflow.cancel(self._connect(), folder)
            except KernelkitError as error:
                self._messages.put(_Message(session, f"cannot be cancelled, and goes on: {error}"))

        threading.Thread(target=cancel, daemon=True).start()

    def _end(self, session: _Running, pulled: PulledRun) -> None:
        """Give each trial of a session that has ended its value, or another try."""
        from kernelkit.campaigns.results import read_results

        results = read_results(
            pulled,
            self._plan.search,
            session.trials,
            side_by_side=self._plan.processes > 0,
            project=self._plan.config.project,
        )
        for trial in list(self._trials_of(session)):
            result = results[trial.number]
            self._study.report(trial.number, result.reports)
            if result.value is not None:
                self._study.complete(trial.number, result.value)
                self._completed = True
            elif result.pruned or (session.stopping and pulled.end.word == "cancelled"):
                self._study.prune(trial.number, "worse than the median of the others")
            elif result.ended_by_kaggle:
                self._retry(trial, result.failure)
            else:
                self._give_up(trial, result.failure)

    def _retry(self, trial: SweepTrial, reason: str) -> None:
        """Let another session run a trial that Kaggle has ended, unless that happened too often."""
        assignment = trial.assignment
        assert assignment is not None
        earlier = (*assignment.earlier_runs, *([assignment.run] if assignment.run else []))
        if len(earlier) > self._plan.retries:
            self._give_up(trial, f"{reason} ({counted(len(earlier), 'time')} in a row)")
            return
        self._on_event(f"trial {trial.number}: {reason}; trying again")
        self._study.assign(trial.number, Assignment(earlier_runs=earlier))

    def _give_up(self, trial: SweepTrial, reason: str) -> None:
        self._study.fail(trial.number, reason)
        self._on_event(f"trial {trial.number} failed: {reason}")
        self._failed.append(reason)
        if not self._completed and len(self._failed) >= FAILURES and self._error is None:
            self._error = RunFailedError(
                f"the first {len(self._failed)} trials failed, so no more are pushed; the last "
                f"one: {reason}",
                f"{_diagnose_step(trial)} Then run kernelkit sweep again: it goes on.",
                self._view(),
            )

    def _fail(self, session: _Running, error: BaseException) -> None:
        """Decide what an error of a session's thread means for its trials and for the sweep."""
        if isinstance(error, NotFoundError) and session.folder is not None:
            for trial in list(self._trials_of(session)):
                self._retry(trial, f"its run is no longer on Kaggle ({error})")
        elif isinstance(error, VerificationError):
            for trial in list(self._trials_of(session)):
                self._give_up(trial, str(error))
        elif self._error is None:
            if isinstance(error, RefusedError) and error.details is not None:
                for trial in list(self._trials_of(session)):
                    self._study.fail(trial.number, str(error))
            if isinstance(error, KernelkitError):
                again = "Then run kernelkit sweep again: it goes on."
                error = error.with_message(
                    f"{session.name}: {error}", f"{error.next_step} {again}".strip()
                )
            self._error = error
            # What is not pushed yet may wait for hours; the next start finds it, pushed or not.
            self._running = {n: s for n, s in self._running.items() if s.folder is not None}

    # Showing

    def _report(self) -> Path | None:
        """Write the report; a sweep without one is as good."""
        try:
            return _report(self._study, self._root / self._plan.slug)
        except KernelkitError as error:
            self._on_event(f"the report was not written: {error}")
            return None

    def _view(self) -> SweepView:
        path = self._root / self._plan.slug / DATABASE_NAME
        view = _view(self._plan, self._study, path, self._study.trials)
        return replace(view, progress=dict(self._progress), quota=self._quota)

    def _show(self) -> None:
        self._on_event(self._view())


def _push(
    session: _Running, kaggle: Kaggle, root: Path, post: Callable[[object], None]
) -> RunFolder:
    """The folder of the session's version; waits for a free session on Kaggle."""
    lost_at: list[float] = []

    def push() -> RunFolder:
        asked = time.monotonic() - lost_at[-1] if lost_at else session.asked
        try:
            return push_session(
                session.session, kaggle, root, asked=asked, wait=True, on_event=post
            ).folder
        except AnswerLostError:
            lost_at.append(time.monotonic())
            raise

    return _patiently(push, kaggle, post)


def _watch(kaggle: Kaggle, folder: RunFolder, post: Callable[[object], None]) -> None:
    """Follow a run to its end; what Kaggle changed is reported, and the run counts all the same."""
    try:
        workflow.watch(kaggle, folder, on_event=post)
    except NotFoundError:
        raise
    except (RefusedError, VerificationError) as error:
        post(f"warning: {error}")


def _pull(kaggle: Kaggle, folder: RunFolder, post: Callable[[object], None]) -> PulledRun:
    """Download and verify what a run left, again if it does not verify."""
    pauses = kaggle.timeouts.pauses()
    for attempt in range(1, PULLS + 1):
        pulled = _patiently(lambda: pull_session(kaggle, folder), kaggle, post)
        if folder.is_complete() or attempt == PULLS:
            break
        kaggle.timeouts.sleep(next(pauses))
    return pulled


def _patiently(
    step: Callable[[], Result], kaggle: Kaggle, post: Callable[[object], None]
) -> Result:
    """Repeat a step while Kaggle is unreachable or refuses for too many calls."""
    pause, longest = OUTAGE_PAUSES
    for _ in range(OUTAGE_TRIES):
        try:
            return step()
        except QuotaError:
            raise
        except (UnreachableError, CapacityError) as error:
            post(f"{error}; trying again in {pause:.0f} s")
            kaggle.timeouts.sleep(pause)
            pause = min(2 * pause, longest)
    return step()


def _folder_of(root: Path, run: str | None) -> RunFolder | None:
    """The folder of a recorded run; None if there is no such folder."""
    from kernelkit.runs.store import RunFolder

    folder = RunFolder(root / run) if run else None
    return folder if folder and not folder.problem() else None


def _seconds_since_alive(folder: Path) -> float:
    """How long ago a process that ran the sweep of a folder was alive for certain."""
    return max(0.0, time.time() - (folder / SWEEP_LOCK).stat().st_mtime - ALIVE_SECONDS)


def _diagnose_step(trial: SweepTrial) -> str:
    return f"Find the cause: kernelkit diagnose {trial.run}." if trial.run else ""


def _report(study: SweepStudy, folder: Path) -> Path:
    """Write the page with the pictures.

    Raises:
        ConfigError: what draws them is not installed.
    """
    from kernelkit.campaigns.report import write_report

    require_extra("sweep", "matplotlib", "sklearn")
    return write_report(study, folder, lambda trial: " ".join(set_options(trial.parameters)))


def set_options(point: Point) -> list[str]:
    """Parameters as `--set` takes them, quoted for the shell."""
    return [f"--set {shlex.quote(f'{name}={_toml(value)}')}" for name, value in point.items()]


def _toml(value: Parameter) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return tomlkit.item(value).as_string()


def _view(
    plan: SweepPlan, study: SweepStudy, path: Path, trials: Sequence[SweepTrial]
) -> SweepView:
    return SweepView(
        study=study.name,
        metric=plan.search.metric,
        goal=plan.search.goal,
        planned=max(plan.trials, len(trials)),
        trials=tuple(trials),
        database=path,
    )
