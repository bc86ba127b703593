"""Keeps the lanes of a sweep busy, and decides what each session means for its trials.

Each lane runs one session after the other, in a thread of its own that pushes, watches and pulls.
All decisions, and all writing to the study, happen in the thread that called `Scheduler.run`.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kernelkit import workflow
from kernelkit.campaigns.results import read_results
from kernelkit.campaigns.sessions import LONGEST_PAUSE, Session, pull_session, push_session
from kernelkit.campaigns.study import (
    DATABASE_NAME,
    Assignment,
    SweepStudy,
    SweepTrial,
    same_point,
)
from kernelkit.campaigns.sweep_plan import (
    OnSweepEvent,
    SweepPlan,
    SweepView,
    config_of_session,
    view_of,
)
from kernelkit.config import TrialSettings
from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    ConfigError,
    KernelkitError,
    NotFoundError,
    QuotaError,
    RefusedError,
    RunFailedError,
    UnreachableError,
    VerificationError,
    limit_of_machine,
)
from kernelkit.kaggle.types import LogEntry, Quota, growing
from kernelkit.notebook.reader import embedded_manifest, read_cells
from kernelkit.notebook.runtime import RunEvent, parse_event
from kernelkit.runs.download import PulledRun
from kernelkit.runs.push import current_kernel
from kernelkit.runs.store import RunFolder
from kernelkit.storage import counted

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

FAILURES = 3  # of the first trials, after which no more are pushed: the code has an error

OUTAGE_PAUSES = (30.0, 300.0)  # seconds between two tries while Kaggle is unreachable

OUTAGE_TRIES = 20  # of one step, one after the other; over an hour


PULLS = 3  # of a run whose files do not verify: Kaggle may still send those of another one

SWEEP_LOCK = ".sweep.lock"
CONTINUE = "Then run the same command again: it goes on with the sweep."

ALIVE_SECONDS = 5.0  # between two signs that a sweep is running: the time of its lock's file

Result = TypeVar("Result")


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
    is_first: bool = False
    """Whether this process has not used its lane before."""

    @property
    def name(self) -> str:
        """For people: `trial 3`, `trials 3 and 4`."""
        numbers = " and ".join(map(str, self.trials))
        return f"trial{'s' if len(self.trials) > 1 else ''} {numbers}"


@dataclass(frozen=True)
class _Message:
    """What the thread of a session says to the scheduler."""

    session: _Running
    content: RunFolder | PulledRun | RunEvent | Quota | str | BaseException


_CONTENT = (RunFolder, PulledRun, RunEvent, Quota, str, BaseException)


class Scheduler:
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
        self._progress: dict[int, RunEvent] = {}
        self._lanes: set[int] = set()  # that were used
        self._quota: Quota | None = None
        self._error: BaseException | None = None
        self._completed = any(trial.state == "complete" for trial in study.trials)
        self._failed: list[str] = []

    def run(self) -> SweepView:
        """Start, wait, decide, until nothing is left to do."""
        self._study.finish_asking(self._plan.sampler, self._plan.seed)
        self._resume()
        while True:
            while self._error is None and self._start_next():
                pass
            if not self._running or self._messages.empty():  # a log is read in bursts
                self._show()
            if not self._running:
                break
            self._handle(self._next_message())
        if self._error is not None:
            if isinstance(self._error, RunFailedError):  # others have ended since
                self._error.details = self._view()
            raise self._error
        view = self._view()
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
            session = trial.assignment.session if trial.assignment else 0
            if session and trial.state in ("running", "waiting"):
                sessions.setdefault(session, []).append(trial)
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
            before = trial.assignment or Assignment()
            assignment = before.model_copy(
                update={"session": number, "lane": free[0], "medians": medians}
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
        config = config_of_session(self._plan, assignment.lane, settings, assignment.medians)
        session = _Running(
            number=assignment.session,
            lane=assignment.lane,
            trials=tuple(trial.number for trial in trials),
            session=Session(config, f"{self._study.campaign}-{assignment.session:04}"),
            asked=asked,
            folder=_folder_of(self._root, assignment.run),
            stopping=assignment.stopping,
            is_first=assignment.lane not in self._lanes,
        )
        self._lanes.add(assignment.lane)
        self._running[session.number] = session
        try:
            threading.Thread(target=self._work, args=[session], daemon=True).start()
        except RuntimeError as error:
            self._messages.put(_Message(session, error))

    def _work(self, session: _Running) -> None:
        """In the thread of a session: push, watch and pull it, and report everything."""

        def post(content: object) -> None:
            if isinstance(content, LogEntry):  # most lines of a log are not events
                content = parse_event(content.text)
                if content is None or content.kind != "epoch":
                    return
            if isinstance(content, _CONTENT):
                self._messages.put(_Message(session, content))

        try:
            kaggle = self._connect()
            if session.is_first and session.folder is None:
                _patiently(lambda: _free_lane(session, kaggle, self._root, post), kaggle, post)
            folder = session.folder or _push(session, kaggle, self._root, post)
            post(folder)
            if not folder.is_complete():
                _patiently(lambda: _watch(kaggle, folder, post), kaggle, post)
            post(_pull(kaggle, folder, post))
        except BaseException as error:  # the scheduler decides, also about a bug
            post(error)

    # Deciding

    def _handle(self, message: _Message) -> None:
        session, content = message.session, message.content
        if session.number not in self._running:
            return  # it was given up
        if isinstance(content, RunFolder):
            session.folder = content
            self._record_run(session, content)
        elif isinstance(content, RunEvent):
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

    def _read(self, session: _Running, event: RunEvent) -> None:
        """Note what a run reports about an epoch, and stop it if it is hopeless."""
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
            except BaseException as error:  # a bug, or a limit of this machine
                self._messages.put(_Message(session, error))

        try:
            threading.Thread(target=cancel, daemon=True).start()
        except RuntimeError as error:
            self._on_event(f"{session.name}: cannot be cancelled, and goes on: {error}")

    def _end(self, session: _Running, pulled: PulledRun) -> None:
        """Give each trial of a session that has ended its value, or another try."""
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
                f"{_diagnose_step(trial)} {CONTINUE}".strip(),
            )

    def _fail(self, session: _Running, error: BaseException) -> None:
        """Decide what an error of a session's thread means for its trials and for the sweep."""
        if isinstance(error, NotFoundError) and session.folder is not None:
            for trial in list(self._trials_of(session)):
                self._retry(trial, f"its run is no longer on Kaggle ({error})")
        elif isinstance(error, VerificationError):
            for trial in list(self._trials_of(session)):
                self._give_up(trial, str(error))
        else:
            if isinstance(error, RefusedError) and error.details is not None:
                for trial in list(self._trials_of(session)):
                    self._study.fail(trial.number, str(error))
            self._end_with(session, error)

    def _end_with(self, session: _Running, error: BaseException) -> None:
        """Push no more, and raise the first error once the sessions that run have been pulled."""
        error = limit_of_machine(error) or error
        if self._error is not None:  # every error is reported, and the first one is raised
            self._on_event(f"{session.name}: {error or type(error).__name__}")
            return
        if isinstance(error, KernelkitError):
            error = error.with_message(
                f"{session.name}: {error}", f"{error.next_step} {CONTINUE}".strip()
            )
        self._error = error
        # What is not pushed yet may wait for hours; the next start finds it, pushed or not.
        self._running = {n: s for n, s in self._running.items() if s.folder is not None}

    # Showing

    def _view(self) -> SweepView:
        path = self._root / self._plan.slug / DATABASE_NAME
        view = view_of(self._study, path)
        return replace(view, progress=dict(self._progress), quota=self._quota)

    def _show(self) -> None:
        self._on_event(self._view())


def _free_lane(
    session: _Running, kaggle: Kaggle, root: Path, post: Callable[[object], None]
) -> None:
    """Wait for the run of another sweep that the lane's kernel still has.

    Two versions of a kernel must not run at once: Kaggle answers some calls for its latest one.
    """
    slug = session.session.config.kernel.slug
    current = current_kernel(kaggle, slug)
    if current is None:
        return
    mark = None
    with suppress(ConfigError):  # kernelkit has not made it
        mark = embedded_manifest(read_cells(current.source)).session
    if mark == session.session.mark:
        return
    run = f"{slug}/v{current.version}"
    if (mark or "").startswith("sweep-") and not (root / run).is_dir():
        post(
            f"note: {run} is of a sweep that was started elsewhere, and this sweep does not know "
            "its trials: `kernelkit collect` downloads them"
        )
    for number, pause in enumerate(growing(kaggle.timeouts.first_pause, LONGEST_PAUSE)):
        state = kaggle.status(kaggle.credentials.username, slug, None)
        if state.state.finished:
            return
        if number == 0:
            post(f"waiting for {run}, which is {state.word}: a lane runs one session at a time")
        kaggle.timeouts.sleep(pause)


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
    for pause in itertools.islice(growing(*OUTAGE_PAUSES, factor=2), OUTAGE_TRIES):
        try:
            return step()
        except QuotaError:
            raise
        except (UnreachableError, CapacityError) as error:
            post(f"{error}; trying again in {pause:.0f} s")
            kaggle.timeouts.sleep(pause)
    return step()


def _folder_of(root: Path, run: str | None) -> RunFolder | None:
    """The folder of a recorded run; None if there is no such folder."""
    folder = RunFolder(root / run) if run else None
    return folder if folder and not folder.problem() else None


def _seconds_since_alive(folder: Path) -> float:
    """How long ago a process that ran the sweep of a folder was alive for certain."""
    return max(0.0, time.time() - (folder / SWEEP_LOCK).stat().st_mtime - ALIVE_SECONDS)


def _diagnose_step(trial: SweepTrial) -> str:
    return f"Find the cause: kernelkit diagnose {trial.run}." if trial.run else ""
