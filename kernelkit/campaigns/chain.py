"""A chain: one session after another, each with the outputs of the one before, until it is done.

The state is in `runs/<slug>/chain.json`. Each session is written down there before it is pushed,
and once more when it has ended. So the command can be killed at any time and started again: a
session that was pushed is found by its mark, and none is pushed twice.

The sessions alternate between two kernels, `<slug>` and `<slug>-b`: the output of another kernel
is a documented input, and whether Kaggle accepts a kernel's own is not known.
"""

from __future__ import annotations

import itertools
import shlex
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, JsonValue

from kernelkit import workflow
from kernelkit.campaigns.elsewhere import require_no_chain_elsewhere
from kernelkit.campaigns.lanes import lane_config, resuming_config, session_config
from kernelkit.campaigns.progress import (
    IDLE_SESSIONS,
    Reached,
    came_no_further,
    fingerprint,
    last_point,
)
from kernelkit.campaigns.sessions import (
    RETRIES,
    Ending,
    Session,
    ending_of,
    new_campaign,
    pull_session,
    push_session,
)
from kernelkit.campaigns.sweep_plan import set_options
from kernelkit.config import CHAIN_SUFFIX
from kernelkit.errors import (
    CapacityError,
    ConfigError,
    LocalError,
    PreflightError,
    RefusedError,
    RunFailedError,
)
from kernelkit.kaggle.types import PRODUCTION, ignore
from kernelkit.notebook.manifest import Document
from kernelkit.runs.manifest import RunAddress, RunFacts
from kernelkit.runs.push import current_kernel
from kernelkit.runs.resume import accepts_resume, has_left_files, point_text
from kernelkit.runs.store import RunFolder, find_named, now
from kernelkit.storage import (
    DocumentError,
    MissingDocumentError,
    counted,
    locked,
    make_ignored_folder,
    read_model,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernelkit.config import Config
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.runs.download import PulledRun
    from kernelkit.workflow import OnEvent

CHAIN_NAME, CHAIN_LOCK = "chain.json", ".chain.lock"
CONTINUE = "The same command continues the chain."
SETBACKS = (Ending.DIED, Ending.STALLED)


class ChainWork(Document):
    """What makes two chains the same work."""

    entry: str
    outputs: tuple[str, ...]
    parameters: RunFacts = RunFacts()


class ChainSession(Document):
    """One session of a chain, or one more try of it."""

    number: int
    """From 1; a new try has the number of the one before."""

    mark: str
    slug: str
    """Of its kernel."""

    asked: str | None = None
    """When it was going to be pushed, in UTC, written before the push; None if nothing was sent."""

    resumed_from: str | None = None
    """The run whose outputs it has as an input: `slug/v3`."""

    version: int | None = None
    """None until its push is recorded."""

    url: str | None = None
    ending: str | None = None
    """A value of `Ending`; None until it was pulled."""

    usable: bool = False
    """Whether another session can continue from what it has left."""

    ended: str | None = None
    point: RunFacts | None = None
    """The last event that the run has reported."""

    fingerprint: str | None = None
    """Of what the next session starts from; see `progress.fingerprint`."""

    idle: bool = False
    """Whether it came no further than the sessions before it, and nothing else explains that."""

    @property
    def name(self) -> str:
        """Of its run: `slug/v3`."""
        return f"{self.slug}/v{self.version}"

    @property
    def point_text(self) -> str:
        """The last event in some words: `epoch 3 of 20`."""
        return point_text(self.point) if self.point else ""

    @property
    def seconds_since_asked(self) -> float | None:
        """How long ago it may have been pushed; None if it cannot have been."""
        if self.asked is None:
            return None
        return max(0.0, time.time() - datetime.fromisoformat(self.asked).timestamp())


class ChainRecord(Document):
    """chain.json."""

    schema_version: int = Field(default=1, alias="schema")
    name: str
    slug: str
    endpoint: str
    owner: str
    profile: str | None = None
    work: ChainWork

    source_digest: str = ""
    """Of the files of the package when it began."""

    resume: str | None = None
    """The run from which its first session continues: `slug/v3`."""

    started: str
    state: Literal["running", "complete"] = "running"
    sessions: tuple[ChainSession, ...] = ()

    @property
    def last(self) -> ChainSession | None:
        """The session that was pushed last, or is about to be."""
        return self.sessions[-1] if self.sessions else None

    @property
    def count(self) -> int:
        """How many sessions there are; further tries do not count."""
        return self.sessions[-1].number if self.sessions else 0

    @property
    def source(self) -> ChainSession | None:
        """The latest session that another one can continue from."""
        return next((session for session in reversed(self.sessions) if session.usable), None)

    @property
    def tries(self) -> int:
        """How often the last session has been tried."""
        return sum(session.number == self.count for session in self.sessions)

    @property
    def word(self) -> str:
        """How far it is, in a few words."""
        if self.last is None:
            return "no session yet"
        ending = self.last.ending or "running"
        return f"session {self.count}: {ending}"

    @property
    def setbacks(self) -> int:
        """How many of the last sessions in a row have ended for no reason of the program."""
        later = itertools.takewhile(lambda one: one.ending in SETBACKS, reversed(self.sessions))
        return sum(1 for _ in later)

    @property
    def idle_sessions(self) -> int:
        """How many of the last sessions in a row came no further, apart from setbacks."""
        counted_ones = (one for one in reversed(self.sessions) if one.ending not in SETBACKS)
        return sum(1 for _ in itertools.takewhile(lambda one: one.idle, counted_ones))


def run_chain(
    config: Config,
    kaggle: Kaggle,
    root: Path,
    *,
    max_sessions: int | None = None,
    again: bool = False,
    resume: RunAddress | None = None,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
    on_end: Callable[[ChainRecord], None] = ignore,
) -> PulledRun:
    """Run sessions until the program says no longer that it is incomplete; returns the last one.

    A chain of the same work that is not complete is continued, unless `again` is set. `resume` is
    a run whose outputs the first session of a new chain has as an input. `deadline` is in seconds.
    `on_end` hears of a chain whose last session has ended in this call, also if an error follows.

    Raises:
        ConfigError: the entry takes no parameter for the folder of earlier results, or Kaggle has
            a chain of the same work that was started elsewhere.
        CapacityError: the quota is used up, or `max_sessions` have run: the chain can be continued.
        LocalError: another process runs this chain, or its file is damaged.
        RunFailedError: a session failed by an error of the program, was cancelled, or came no
            further than the one before, twice in a row.
        DeadlineError: `deadline` seconds passed; the session continues.
        KernelkitError: what `push_session` and `pull_session` raise; the chain can be continued.
    """
    if not accepts_resume(config):
        resuming_config(config, RunAddress.model_construct(slug="", owner=""))  # raises
    end = None if deadline is None else time.monotonic() + deadline

    def refuse() -> None:
        raise LocalError(
            f"another process runs the chain of {config.kernel.slug}",
            "Wait for it, or look at it: `kernelkit chain`.",
        )

    make_ignored_folder(root)
    with locked(root / config.kernel.slug, CHAIN_LOCK, on_wait=refuse):
        chain = _Chain.find(config, kaggle, root, again, resume, on_event)
        try:
            while True:
                left = None if end is None else max(1.0, end - time.monotonic())
                folder = chain.push(max_sessions, wait=wait, deadline=left)
                left = None if end is None else max(1.0, end - time.monotonic())
                pulled = pull_session(kaggle, folder, deadline=left, on_event=on_event)
                ending = ending_of(pulled)
                chain.note_end(pulled, ending)
                if ending == Ending.COMPLETE or not chain.may_go_on(pulled, ending):
                    workflow.require_success(pulled, config.project)
                    return pulled
        finally:
            if chain.has_ended_now:
                on_end(chain.record)


def rehearse_chain(
    config: Config,
    inputs: Path | None,
    out: Path,
    *,
    max_sessions: int | None = None,
    deadline: float | None = None,
    mounts: str = "new",
    on_event: OnEvent = ignore,
) -> PulledRun:
    """`run_chain` on a new local Kaggle; the arguments and errors are those of `rehearse` too."""
    kernel, lanes = workflow.preflight(config), [lane_config(config, CHAIN_SUFFIX).kernel.slug]
    with workflow.local_rehearsal(
        config, kernel, inputs, out, mounts=mounts, lanes=lanes, on_event=on_event
    ) as server:
        try:
            pulled = run_chain(
                config,
                server.connect(config.kernel.owner),
                out,
                max_sessions=max_sessions,
                deadline=deadline,
                on_event=on_event,
            )
        except (CapacityError, PreflightError) as error:
            step = error.next_step.replace(CONTINUE, "A rehearsal starts from the beginning.")
            raise error.with_message(str(error), step) from error
        return replace(pulled, isolation=server.isolation)


def read_chain(root: Path, slug: str) -> ChainRecord:
    """The chain of a kernel.

    Raises:
        ConfigError: there is none.
        DocumentError: chain.json is damaged.
    """
    try:
        return read_model(root / slug / CHAIN_NAME, ChainRecord)
    except MissingDocumentError:
        raise ConfigError(
            f"{root} has no chain of {slug}", "Start one: `kernelkit run --until-done`."
        ) from None


def command_of(chain: ChainRecord, config: Config) -> str:
    """The command that goes on with a chain; `config` is the project with the chain's profile.

    Without the parameters that were set, it would begin another one.
    """
    stated = config.parameters
    set_now = {
        name: value
        for name, value in chain.work.parameters.document.items()
        if name in stated and stated[name] != value
    }
    words = ["kernelkit run --until-done"]
    words += [f"--profile {shlex.quote(chain.profile)}"] if chain.profile else []
    words += set_options(set_now)
    words += [f"--endpoint {chain.endpoint}"] if chain.endpoint != PRODUCTION else []
    return " ".join(words)


class _Chain:
    """A chain and its file."""

    def __init__(
        self, config: Config, kaggle: Kaggle, root: Path, record: ChainRecord, on_event: OnEvent
    ) -> None:
        self._config, self._kaggle, self._root = config, kaggle, root
        self._on_event = on_event
        self._ended: ChainSession | None = None  # the last one whose end was written down here
        self.record = record

    @property
    def has_ended_now(self) -> bool:
        """Whether the last session has ended while this process ran the chain."""
        return self._ended is not None and self._ended == self.record.last

    @classmethod
    def find(
        cls,
        config: Config,
        kaggle: Kaggle,
        root: Path,
        again: bool,
        resume: RunAddress | None,
        on_event: OnEvent,
    ) -> _Chain:
        """The chain of the same work that is on the disk, or a new one."""
        slug, work = config.kernel.slug, _work(config)
        source_digest = workflow.render_kernel(config).manifest.source_digest
        path = root / slug / CHAIN_NAME
        try:
            before = read_model(path, ChainRecord)
        except MissingDocumentError:
            before = None
        except DocumentError as error:
            raise error.with_message(
                f"{error}", f"Move {path} away; the sessions are listed by `kernelkit runs`."
            ) from error
        first = f"{resume.slug}/v{resume.version}" if resume else None
        if before and not again and first in (None, before.resume):
            same = (before.endpoint, before.owner) == (
                kaggle.endpoint,
                kaggle.credentials.username,
            )
            same_work = before.work == work and before.profile == config.profile
            same_source = before.source_digest == source_digest
            if same and same_work and (same_source or before.state != "complete"):
                on_event(f"continuing {before.name}: {_told(before)}")
                if not same_source:
                    on_event("note: the source has changed since this chain began")
                return cls(config, kaggle, root, before, on_event)
            what = "another account or another Kaggle"
            if same:
                what = "other source" if same_work else "other parameters"
            on_event(f"{path} is of {what}: a new chain begins")
        if not again and resume is None:
            archived = [file.stem for file in path.parent.glob("chain-*.json")]
            require_no_chain_elsewhere(
                config,
                kaggle,
                root,
                source_digest=source_digest,
                known=[*archived, *([before.name] if before else [])],
                on_event=on_event,
            )
        if before:
            write_json(path.with_name(f"{before.name}.json"), before.document)
        record = ChainRecord.model_validate(
            {
                "schema": 1,
                "name": new_campaign("chain"),
                "slug": slug,
                "endpoint": kaggle.endpoint,
                "owner": kaggle.credentials.username,
                "profile": config.profile,
                "work": work.document,
                "source_digest": source_digest,
                "resume": first,
                "started": now(),
                "state": "running",
                "sessions": [],
            }
        )
        return cls(config, kaggle, root, record, on_event)

    def push(self, most: int | None, *, wait: bool, deadline: float | None) -> RunFolder:
        """The folder of the current session: the one that is not over, or a new one.

        Raises:
            CapacityError: `most` sessions have run, or the quota is used up.
            KernelkitError: what `push_session` raises.
        """
        session = self.record.last
        if session is None or (session.ending and not self._is_over(session)):
            session = self._next(most)
        if session.version is not None:
            return RunFolder(self._root / session.slug / f"v{session.version}")
        asked = session.seconds_since_asked
        if asked is None:
            session = session.updated(asked=datetime.now(UTC).isoformat())
            self._replace(session)
        try:
            pushed = push_session(
                Session(self._config_of(session), session.mark),
                self._kaggle,
                self._root,
                asked=asked,
                wait=wait,
                wait_for_quota=wait,
                deadline=deadline,
                on_event=self._on_event,
            )
        except (CapacityError, PreflightError) as error:
            self._replace(session.updated(asked=None))
            raise error.with_message(str(error), f"{error.next_step} {CONTINUE}".strip()) from error
        address = pushed.folder.read().address
        self._replace(session.updated(version=address.version, url=address.url))
        return pushed.folder

    def note_end(self, pulled: PulledRun, ending: Ending) -> None:
        """Write down how the current session has ended."""
        session = self.record.last
        assert session is not None
        if session.ending is None:
            usable = ending == Ending.INCOMPLETE
            # A run that stalled ends with an error: Kaggle may not offer its files as an input.
            usable = usable or (ending == Ending.TIMED_OUT and has_left_files(pulled.verdict))
            changes: dict[str, JsonValue] = {"ending": ending.value, "usable": usable}
            if point := last_point(pulled).document:
                changes["point"] = point
            if ending.may_continue:
                reached = Reached(last_point(pulled), fingerprint(pulled))
                earlier = [
                    Reached(one.point or RunFacts(), one.fingerprint or "")
                    for one in self.record.sessions
                    if one.usable
                ]
                is_idle = ending not in SETBACKS and came_no_further(reached, earlier)
                changes |= {"fingerprint": reached.left, "idle": is_idle}
            session = session.updated(**changes, ended=now())
            self._replace(session)
            self._ended = session
        if ending == Ending.COMPLETE:
            self._write(self.record.updated(state="complete"))
        self._on_event(f"session {session.number} ({session.name}) is over: {ending}")

    def may_go_on(self, pulled: PulledRun, ending: Ending) -> bool:
        """Whether another session follows the one that has just ended.

        Raises:
            RunFailedError: the last sessions came no further, so none is pushed.
        """
        session = self.record.last
        assert session is not None
        if session.idle and self.record.idle_sessions >= IDLE_SESSIONS:
            point = f"after {session.point_text}" if session.point_text else "without an event"
            name = self._config.resume_parameter
            raise RunFailedError(
                f"{counted(self.record.idle_sessions, 'session')} in a row came no further: "
                f"{session.name} ended {ending} {point}",
                f"Check that {self._config.entry} resumes from {name}, and saves its state to "
                f"kaggle://working before it ends. {CONTINUE}",
                pulled,
            )
        if ending in SETBACKS:
            if self.record.setbacks > RETRIES:
                return False
            reason = pulled.end.failure or "Kaggle gives no reason"
            self._on_event(f"trying again, because no error of the program is known: {reason}")
            return True
        return session.usable

    def _is_over(self, session: ChainSession) -> bool:
        """Whether no session follows this one, so that it only has to be verified again."""
        ending = Ending(session.ending or "")
        return ending in (Ending.COMPLETE, Ending.UNVERIFIED)

    def _next(self, most: int | None) -> ChainSession:
        """A new session, written down before it is pushed."""
        last, source = self.record.last, self.record.source
        is_retry = last is not None and last is not source
        number = self.record.count + (0 if is_retry else 1)
        if most is not None and number > most:
            raise CapacityError(
                f"{self.record.slug} has run {counted(most, 'session')} (--max-sessions), and the "
                "work is not done",
                f"Set a higher --max-sessions. {CONTINUE}",
            )
        name = source.name if source else self.record.resume
        run = self._run_named(name) if name else None
        if run is not None:
            self._require_current(run)
        tries = self.record.tries if is_retry else 0
        session = ChainSession(
            number=number,
            mark=f"{self.record.name}-{number}" + (f"-{tries + 1}" if tries else ""),
            slug=self._configured(run).kernel.slug,
            resumed_from=f"{run.slug}/v{run.version}" if run else None,
        )
        self._write(self.record.model_copy(update={"sessions": (*self.record.sessions, session)}))
        self._on_event(
            f"session {number}: {session.slug}"
            + (f", with the outputs of {session.resumed_from}" if run else "")
        )
        return session

    def _config_of(self, session: ChainSession) -> Config:
        """The project as a session runs it."""
        name = session.resumed_from
        return self._configured(self._run_named(name) if name else None)

    def _configured(self, run: RunAddress | None) -> Config:
        if run is not None:
            return resuming_config(self._config, run)
        name = self._config.resume_parameter
        first = {} if name in self._config.parameters else {name: None}
        return session_config(lane_config(self._config, ""), first)

    def _require_current(self, run: RunAddress) -> None:
        """Check that Kaggle would mount the outputs of this run: it mounts the latest version's."""
        current = current_kernel(self._kaggle, run.slug)
        if current is not None and (current.version or 0) > run.version:
            raise RefusedError(
                f"{run.owner}/{run.slug} has a newer version than {run.name}: the next session "
                f"would get the outputs of v{current.version}",
                "Start a new chain (--again), or continue from a run: --resume RUN.",
            )

    def _run_named(self, name: str) -> RunAddress:
        """The run `slug/v3`, which was pushed or adopted here."""
        return find_named(self._root, self.record.slug, name).read().address

    def _replace(self, session: ChainSession) -> None:
        """Replace the last session."""
        sessions = (*self.record.sessions[:-1], session)
        self._write(self.record.model_copy(update={"sessions": sessions}))

    def _write(self, record: ChainRecord) -> None:
        self.record = record
        write_json(self._root / record.slug / CHAIN_NAME, record.document)


def _work(config: Config) -> ChainWork:
    return ChainWork.model_validate(
        {"entry": config.entry, "outputs": config.outputs, "parameters": config.parameters}
    )


def _told(record: ChainRecord) -> str:
    last = record.last
    if last is None:
        return "no session was pushed yet"
    return f"session {last.number}, {last.ending or 'not over yet, as far as is known here'}"
