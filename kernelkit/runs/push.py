"""Push a kernel: decide whether a push is needed, check, send exactly once, record, verify.

Kaggle's response to a push can be lost after Kaggle has accepted it, and a push starts a run that
takes hours. Each push has a `push_id` of its own, which the notebook carries: kernelkit then looks
for a version with it, and sends once more only if there is none.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit.errors import (
    AnswerLostError,
    ConfigError,
    KernelkitError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    RefusedError,
    SessionCapError,
    UnreachableError,
)
from kernelkit.kaggle.datasets import Dataset
from kernelkit.kaggle.types import PRODUCTION, KernelInfo, Timeouts, growing
from kernelkit.notebook.manifest import Manifest, ManifestWheels
from kernelkit.notebook.reader import embedded_manifest, read_cells
from kernelkit.notebook.render import Kernel
from kernelkit.runs import store
from kernelkit.runs.estimate import Wanted, estimate
from kernelkit.runs.manifest import RunAddress, RunRecord
from kernelkit.runs.store import RunFolder
from kernelkit.runs.verify import verify
from kernelkit.runs.watch import LATE_FIELDS, read_status

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

DATASET_SECONDS = 600  # for a dataset to become ready
QUEUE_PAUSES = (30.0, 300.0)  # seconds between two tries for a free session: first and longest
SESSION_VERSIONS = 50  # in which a campaign looks for its session, where none is recorded here
LONGEST_PAUSE = 3600.0  # seconds, whatever Retry-After asks for
RATE_LIMITED_TRIES = 5  # of a push that is refused for too many calls
CHANGING_SOURCES = ("dataset_sources", "kernel_sources", "model_sources")
"""Sources whose content can change while their name stays the same."""

PUBLISH_WHEELS = "Publish the wheels: `kernelkit wheels`. Nothing was sent."
PUSH_AGAIN = "Fix the cause, then push again: `kernelkit push --again`."

OnEvent = Callable[[str], None]
Publish = Callable[["Kaggle", Kernel, OnEvent], Kernel]


class Outcome(StrEnum):
    """How a push came to its version."""

    PUSHED = "pushed"
    ADOPTED = "adopted"
    """It already was on Kaggle: from another machine, or by a push whose response was lost."""

    REATTACHED = "reattached"
    """A version pushed from here is identical, and still runs."""

    REUSED = "reused"
    """A version pushed from here is identical, complete and verified."""


@dataclass(frozen=True)
class Pushed:
    """The folder of the version that a push came to, and how."""

    folder: RunFolder
    outcome: Outcome


@dataclass(frozen=True)
class SentVersion:
    """A version that is now queued or running on Kaggle."""

    run: RunAddress
    kernel: Kernel
    """As it was sent, with the push_id."""

    outcome: Outcome
    dropped: tuple[str, ...] = ()
    """Sources that Kaggle dropped at once."""


def push_once(
    kaggle: Kaggle,
    kernel: Kernel,
    root: Path,
    *,
    profile: str | None = None,
    reserve: float = 0.0,
    again: bool = False,
    session: str | None = None,
    asked: float | None = None,
    wait: bool = False,
    wait_for_quota: bool | None = None,
    deadline: float | None = None,
    publish: Publish | None = None,
    on_event: OnEvent,
) -> Pushed:
    """Push a kernel so that one version with its digest exists, and record it under `root`.

    An identical version is not pushed again unless `again` is set: see `find_identical`. `wait`
    waits for a free session and, unless `wait_for_quota` is False, for the refresh of the quota, up
    to `deadline` seconds. `reserve` is in GPU hours (see `check_remote`). `publish` publishes the
    dataset that holds the packages, where the notebook does not carry them, and returns the kernel
    that uses it.

    For a campaign, `session` is the mark that its notebook carries: then only a version with this
    mark counts, whatever became of it. `asked` is how long ago, in seconds, a process that was
    killed may have pushed it.

    Raises:
        ConfigError: the notebook of a campaign cannot carry the mark.
        CapacityError: no session, no quota, or too many calls; nothing was sent.
        RefusedError: Kaggle changed the requested settings; the version runs and is recorded.
        UnreachableError: the push was accepted and recorded, and could not be verified.
    """
    require_owner(kaggle, kernel)
    kernel = kernel.owned_by(kaggle.credentials.username)
    with store.push_lock(root, kernel.slug, on_event):
        current = current_kernel(kaggle, kernel.slug)
        if session and (found := find_session(kaggle, kernel, root, session, asked, on_event)):
            return found
        if not (again or session) and (
            found := find_identical(kaggle, kernel, root, current, on_event)
        ):
            return found
        if kernel.manifest.code_dataset:
            assert publish is not None
            kernel = publish(kaggle, kernel, on_event)
        hours = None if session else _expected_hours(kaggle, root, kernel)
        patient = wait if wait_for_quota is None else wait_for_quota
        waiting = Waiting(deadline, kaggle.timeouts) if patient else None
        usable = check_remote(kaggle, kernel, reserve, on_event, hours=hours, waiting=waiting)
        on_event(f"pushing {kernel.slug} as {kaggle.credentials.username} ({kernel.size:,} B)")
        hidden = _hidden_versions(kaggle, kernel, root)
        known = max([current.version or 0, *hidden]) if current else 0
        sent = send(
            kaggle,
            kernel,
            known,
            session=session,
            session_seconds=None if usable is None else max(1, int(usable * 3600)),
            wait=wait,
            deadline=deadline,
            on_event=on_event,
        )
        folder = _record(root, sent.kernel, sent.run, sent.outcome, profile, pushed=store.now())
    on_event(f"{sent.run.name} is pushed: {sent.run.url}")
    require_unchanged_settings(kaggle, sent.kernel, sent.run, folder, sent.dropped)
    if late := [name for name in LATE_FIELDS if getattr(kernel.manifest.kernel, name)]:
        on_event(f"not yet confirmed: {', '.join(late)} (Kaggle shows them once the run starts)")
    return Pushed(folder, sent.outcome)


def require_owner(kaggle: Kaggle, kernel: Kernel) -> None:
    """Check that the account owns the kernel: only its owner can push it.

    Raises:
        RefusedError: its id names another owner than the credentials.
    """
    owner = kernel.metadata.id.rpartition("/")[0]
    who = kaggle.credentials
    if owner and owner.lower() != who.username.lower():
        raise RefusedError(
            f"the kernel belongs to {owner}, and the credentials ({who.origin}) to {who.username}",
            "Leave the owner out of id, or use the owner's credentials.",
        )


def current_kernel(kaggle: Kaggle, slug: str) -> KernelInfo | None:
    """The account's kernel of this name as Kaggle has it; None if there is none yet."""
    try:
        return kaggle.kernel(kaggle.credentials.username, slug)
    except NotFoundError:
        return None


def find_identical(
    kaggle: Kaggle, kernel: Kernel, root: Path, current: KernelInfo | None, on_event: OnEvent
) -> Pushed | None:
    """The newest version with the same digest that has not failed, if there is one.

    Raises:
        RefusedError: Kaggle changed its settings, so it cannot replace a push.
    """
    folders = list(_folders_of_account(kaggle, root, kernel.slug))
    if found := _pushed_elsewhere(kaggle, kernel, root, current, folders, on_event):
        return found
    changing = [kind for kind in CHANGING_SOURCES if getattr(kernel.manifest.kernel, kind)]
    note = f" (the content of {' and '.join(changing)} was not compared)" if changing else ""
    for folder in reversed(folders):
        record = folder.read()
        if record.digest != kernel.digest:
            continue
        name = f"{kernel.slug} v{folder.version}"
        if (end := folder.read_end()) is not None:
            store.recorded_state(folder)  # an unknown state must not start another run
            if end.succeeded and verify(folder.path).verified:
                _require_no_differences(folder)
                on_event(f"{name} is identical, complete and verified: nothing is pushed{note}")
                return Pushed(folder, Outcome.REUSED)
            continue
        try:
            now = read_status(kaggle, folder.address_at(kaggle.endpoint), age=folder.age())
        except NotFoundError:
            if current is not None and (current.version or 0) >= folder.version:
                raise
            on_event(f"{name} is no longer on Kaggle")  # deleted, or a fresh local Kaggle
            continue
        if not now.failed:
            _require_no_differences(folder)
            sent = kernel.as_sent(folder.read_bundle())
            require_unchanged_settings(kaggle, sent, record.address, folder)
            on_event(f"{name} is identical and was already pushed")
            return Pushed(folder, Outcome.REATTACHED)
    return None


def find_session(
    kaggle: Kaggle,
    kernel: Kernel,
    root: Path,
    session: str,
    asked: float | None,
    on_event: OnEvent,
) -> Pushed | None:
    """The version that carries the mark of a campaign's session, here or on Kaggle.

    Raises:
        ConfigError: the notebook cannot carry the mark.
        RefusedError: Kaggle changed the settings of that version.
        KernelkitError: Kaggle's versions cannot be read; nothing was sent.
    """
    if kernel.as_pushed("0" * 32, session).manifest.session is None:
        raise ConfigError(
            "the project's templates hide the manifest, so that a session of a campaign could not "
            "be found again",
            "Let templates/50-check.py.j2 or another one embed it, as kernelkit's own does.",
        )
    folders = list(_folders_of_account(kaggle, root, kernel.slug))
    for folder in reversed(folders):
        if folder.read().session == session:
            _require_no_differences(folder)
            on_event(f"{kernel.slug} v{folder.version} is this session, and was already pushed")
            end = folder.read_end()
            return Pushed(folder, Outcome.REUSED if end else Outcome.REATTACHED)
    known = max((folder.version for folder in folders), default=0)
    started, said = kaggle.timeouts.clock(), False
    for pause in kaggle.timeouts.pauses():
        current = current_kernel(kaggle, kernel.slug)
        newest = (current.version or 0) if current else 0
        for version in range(newest, max(known, newest - SESSION_VERSIONS), -1):
            latest = current if version == newest else None
            source = latest.source if latest else _source_of(kaggle, kernel, version)
            manifest = _manifest_of(source) if session in source else None
            if manifest is None or manifest.session != session:  # a mark can begin like another
                continue
            sent = kernel.as_sent(manifest)
            run = _address(kaggle, sent, version)
            on_event(f"{run.name} is this session, and was pushed already")
            folder = _record(root, sent, run, Outcome.ADOPTED, None, pushed=None)
            require_unchanged_settings(kaggle, sent, run, folder)
            return Pushed(folder, Outcome.ADOPTED)
        passed = kaggle.timeouts.clock() - started
        if asked is None or asked + passed > kaggle.timeouts.grace:
            return None
        if not said:
            on_event(
                f"this session may have been pushed {asked:.0f} s ago; looking for it for up to "
                f"{kaggle.timeouts.grace - asked:.0f} s"
            )
            said = True
        kaggle.timeouts.sleep(pause)
    raise AssertionError("the pauses never end")


def find_or_adopt(
    connect: Callable[[], Kaggle], root: Path, default_slug: str, name: str
) -> tuple[Kaggle, RunFolder]:
    """A connection and the folder of a run; a run that was pushed from elsewhere is adopted.

    Raises:
        ConfigError: the name is invalid or unknown, or not the name of a kernel of kernelkit.
        NotFoundError: Kaggle knows no such kernel or version.
    """
    try:
        folder = store.find_named(root, default_slug, name)
    except ConfigError:
        wanted = store.parse_name(name) if name else store.RunName()
        if not wanted.slug:
            raise
        kaggle = connect()
        return kaggle, adopt(kaggle, root, wanted.owner, wanted.slug, wanted.version)
    return connect(), folder


def adopt(
    kaggle: Kaggle, root: Path, owner: str | None, slug: str, version: int | None
) -> RunFolder:
    """Record a run that was pushed from elsewhere, by the manifest in its notebook.

    Raises:
        NotFoundError: Kaggle knows no such kernel or version.
        RefusedError: Kaggle names no version.
        ConfigError: its notebook was not made by kernelkit.
    """
    owner = owner or kaggle.credentials.username
    info = kaggle.kernel(owner, slug, version)
    version = version or info.version
    if version is None:
        raise RefusedError(f"Kaggle names no version of {owner}/{slug}")
    manifest: Manifest = embedded_manifest(read_cells(info.source))
    record = RunRecord(
        owner=owner,
        slug=slug,
        version=version,
        url=f"{kaggle.web}/code/{owner}/{slug}",
        digest=manifest.digest,
        endpoint=kaggle.endpoint,
        outcome=Outcome.ADOPTED,
        profile=manifest.profile,
        push_id=manifest.push_id,
    )
    if manifest.session:
        record = record.updated(session=manifest.session)
    return store.record_push(root, record, manifest)


def require_unchanged_settings(
    kaggle: Kaggle,
    kernel: Kernel,
    run: RunAddress,
    folder: RunFolder,
    dropped: Sequence[str] = (),
) -> None:
    """Compare what Kaggle made of a push with the request; differences are recorded.

    Raises:
        RefusedError: Kaggle changed settings, or dropped sources.
        KernelkitError: Kaggle's version could not be read.
    """
    try:
        differences = [*verify_push(kaggle, kernel, run), *dropped]
    except KernelkitError as error:
        raise error.with_message(
            f"{run.name} is pushed and runs, but it could not be verified: {error}",
            "Do not push again. Follow the run with `kernelkit watch`.",
            folder.read(),
        ) from error
    if differences:
        record = folder.read().updated(differences=differences)
        store.record_push(folder.root, record, folder.read_bundle())
        raise RefusedError(
            "Kaggle changed the requested settings:\n" + "\n".join(differences),
            f"Version {run.version} runs all the same. {PUSH_AGAIN}",
            record,
        )


def check_remote(
    kaggle: Kaggle,
    kernel: Kernel,
    reserve: float,
    on_event: OnEvent,
    *,
    hours: float | None = None,
    waiting: Waiting | None = None,
) -> float | None:
    """Check, before anything is spent, for what would make the run fail or run without its data.

    `reserve` is in GPU hours, and stays untouched; `hours` is how many the run probably needs. With
    `waiting`, this waits for the refresh of the quota. A dataset that Kaggle still processes is
    waited for. If Kaggle does not answer a check, that is reported, and the push decides.

    Returns:
        how many GPU hours the run may use; None where Kaggle does not say, or it needs none.

    Raises:
        QuotaError: not more than the reserve is left.
        RefusedError: a source does not exist, may not be used, or has failed.
    """
    quota = partial(_check_quota, kaggle, reserve, hours, waiting, on_event)
    usable: float | None = None
    for what, check in _remote_checks(kaggle, kernel, quota, on_event):
        try:
            usable = check() or usable
        except (QuotaError, _SourceError):
            raise
        except (RefusedError, RateLimitedError) as error:
            on_event(f"note: {what} could not be checked: {error}")
        except UnreachableError as error:  # each further check would take as long again
            on_event(f"note: {what} and the sources after it could not be checked: {error}")
            break
    return usable


def send(
    kaggle: Kaggle,
    kernel: Kernel,
    known: int,
    *,
    session: str | None = None,
    session_seconds: int | None = None,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent,
) -> SentVersion:
    """Push, so that exactly one new version exists, and return it.

    `known` is the highest version before the push: the new one is higher. With `wait`, wait for a
    free session, up to `deadline` seconds.

    Raises:
        AnswerLostError: whether Kaggle accepted the push is unknown.
        CapacityError, RefusedError: Kaggle's response; nothing was started.
    """
    queue = _Queue(wait, deadline, on_event, kaggle.timeouts)

    def new_attempt() -> Kernel:
        return kernel.as_pushed(secrets.token_hex(16), session, session_seconds)

    sent = _until_accepted(kaggle, new_attempt, known, queue)
    for version in range(known + 1, sent.run.version):
        if kernel.digest in _source_of(kaggle, kernel, version):
            on_event(
                f"warning: v{version} has the same digest and also runs: it was pushed from "
                f"elsewhere meanwhile, or by a request whose response was lost. To cancel it: "
                f"kernelkit cancel {kernel.slug}/v{version}"
            )
    return sent


def verify_push(kaggle: Kaggle, kernel: Kernel, run: RunAddress) -> list[str]:
    """The settings that Kaggle changed, most serious first; waits until Kaggle shows the run."""
    started = kaggle.timeouts.clock()
    for pause in kaggle.timeouts.pauses():
        try:
            info = kaggle.kernel(run.owner, run.slug)
            if (info.version or 0) > run.version:
                info = kaggle.kernel(run.owner, run.slug, run.version)
            if (info.version or 0) >= run.version:
                return list(_differences(kernel, run, info))
        except NotFoundError:
            pass  # a new kernel may take a while to appear
        if kaggle.timeouts.clock() - started > kaggle.timeouts.grace:
            break
        kaggle.timeouts.sleep(pause)
    grace = kaggle.timeouts.grace
    return [f"version {run.version} did not appear within {grace:.0f} s of the push"]


def _pushed_elsewhere(
    kaggle: Kaggle,
    kernel: Kernel,
    root: Path,
    current: KernelInfo | None,
    folders: Sequence[RunFolder],
    on_event: OnEvent,
) -> Pushed | None:
    """Adopt the current version if it is identical, unknown here, and has not failed."""
    if current is None or not current.version or kernel.digest not in current.source:
        return None
    if current.version in {folder.version for folder in folders}:
        return None
    manifest = _manifest_of(current.source)
    if manifest:
        kernel = kernel.as_sent(manifest)
    run = _address(kaggle, kernel, current.version)
    if read_status(kaggle, run, age=math.inf).failed:
        return None
    on_event(f"{run.name} is identical and was pushed from elsewhere: nothing is pushed")
    folder = _record(root, kernel, run, Outcome.ADOPTED, None, pushed=None)
    require_unchanged_settings(kaggle, kernel, run, folder)
    return Pushed(folder, Outcome.ADOPTED)


def _hidden_versions(kaggle: Kaggle, kernel: Kernel, root: Path) -> Iterator[int]:
    """Versions with this digest that were just pushed: Kaggle may not show them yet.

    Older ones do not count: a kernel that was deleted and created again counts from 1.
    """
    for folder in _folders_of_account(kaggle, root, kernel.slug):
        identical = folder.read().digest == kernel.digest
        if identical and folder.age() < kaggle.timeouts.grace:
            yield folder.version


def _folders_of_account(kaggle: Kaggle, root: Path, slug: str) -> Iterator[RunFolder]:
    """The recorded versions that this account has pushed to this Kaggle."""
    username = kaggle.credentials.username.lower()
    for folder in store.folders(root, slug):
        record = folder.read()
        if record.endpoint == kaggle.endpoint and record.owner.lower() == username:
            yield folder


def _record(
    root: Path,
    kernel: Kernel,
    run: RunAddress,
    outcome: Outcome,
    profile: str | None,
    *,
    pushed: str | None,
) -> RunFolder:
    record = RunRecord.model_validate(
        {
            **run.address.document,
            "pushed": pushed,
            "profile": profile,
            "outcome": outcome,
            **({"session": kernel.manifest.session} if kernel.manifest.session else {}),
            **({"code_dataset": kernel.code_version} if kernel.code_version else {}),
        }
    )
    return store.record_push(root, record, kernel.manifest)


def _require_no_differences(folder: RunFolder) -> None:
    """Settings that Kaggle changed stay changed: such a version cannot replace a push."""
    record = folder.read()
    if record.differences:
        raise RefusedError(
            f"{record.slug} v{folder.version} is identical, and Kaggle changed its settings:\n"
            + "\n".join(record.differences),
            f"Nothing was sent. {PUSH_AGAIN}",
            record,
        )


RUN_AGAIN = (
    "Once Kaggle answers, run the same command again, without --again: it adopts the run if there "
    "is one, and sends the kernel only if there is none."
)


class _SourceError(RefusedError):
    """A source that the run would not have."""


class _Queue:
    """How often and after which pauses to repeat a push that was refused for lack of capacity."""

    def __init__(
        self, wait: bool, deadline: float | None, on_event: OnEvent, timeouts: Timeouts
    ) -> None:
        self.on_event, self.timeouts = on_event, timeouts
        self._wait = wait
        self._end = None if deadline is None else timeouts.clock() + deadline
        self._pauses = growing(*QUEUE_PAUSES)
        self._limited = 0

    def after(self, error: SessionCapError | RateLimitedError) -> None:
        """Sleep for a suitable time, or raise the error if there is no reason to wait."""
        if isinstance(error, RateLimitedError):
            self._limited += 1
            pause = (
                min(error.retry_after or 0.0, LONGEST_PAUSE) + random.uniform(1, 4) * self._limited
            )
            may_wait = self._wait or pause < self.timeouts.grace
            may_wait = may_wait and self._limited < RATE_LIMITED_TRIES
        else:
            pause, may_wait = random.uniform(0.8, 1.2) * next(self._pauses), self._wait
        if not may_wait or (self._end is not None and self.timeouts.clock() + pause > self._end):
            raise error
        self.on_event(f"{error}; trying again in {pause:.0f} s")
        self.timeouts.sleep(pause)


def _until_accepted(
    kaggle: Kaggle, new_attempt: Callable[[], Kernel], known: int, queue: _Queue
) -> SentVersion:
    attempts: list[Kernel] = []
    lost = False
    while True:
        attempt = new_attempt()
        attempts.append(attempt)
        try:
            response = kaggle.save_kernel(attempt.slug, attempt.payload, attempt.metadata)
        except SessionCapError as error:
            queue.after(error)
        except RateLimitedError as error:
            accepted = _after_limit(kaggle, attempts, known, queue, error)
            if accepted is not None:
                return accepted
        except AnswerLostError as error:
            grace = kaggle.timeouts.grace
            queue.on_event(f"{error}; looking for the new version for up to {grace:.0f} s")
            accepted = _accepted(kaggle, attempts, known, error)
            if accepted is not None:
                queue.on_event(f"Kaggle had accepted it, as version {accepted.run.version}")
                return accepted
            if lost:
                raise
            lost = True
            queue.on_event("Kaggle had not accepted it: sending it again")
        else:
            run = _address(kaggle, attempt, response.version, response.url)
            dropped = (
                f"{kind}: Kaggle dropped {name!r}, and runs without it"
                for kind, names in response.dropped.items()
                for name in names
            )
            return SentVersion(run, attempt, Outcome.PUSHED, tuple(dropped))


def _after_limit(
    kaggle: Kaggle,
    attempts: Sequence[Kernel],
    known: int,
    queue: _Queue,
    limited: RateLimitedError,
) -> SentVersion | None:
    """Wait as the queue says, and look whether the push was accepted all the same.

    A proxy may answer 429 to a request that it has passed on. None if there is no such version.

    Raises:
        RateLimitedError: there is no reason to wait, and no such version is seen.
        AnswerLostError: Kaggle does not answer, or does not say which version it has.
    """
    while True:
        gave_up: KernelkitError | None = None
        try:
            queue.after(limited)
        except RateLimitedError as error:
            gave_up = error
        try:
            found = _version_of(kaggle, attempts, known, limited)
        except RateLimitedError as error:
            if gave_up is not None:
                raise gave_up from error
            limited = error
            continue
        except AnswerLostError:
            raise
        except UnreachableError as error:
            raise AnswerLostError(
                f"{limited}, and the kernel cannot be read ({error})", RUN_AGAIN
            ) from error
        if found is not None:
            queue.on_event(f"Kaggle had accepted it, as version {found.run.version}")
        elif gave_up is not None:
            raise gave_up
        return found


def _version_of(
    kaggle: Kaggle, attempts: Sequence[Kernel], known: int, answer: KernelkitError
) -> SentVersion | None:
    """The version after `known` that one of the attempts made; None if Kaggle shows none."""
    kernel = attempts[-1]
    info = current_kernel(kaggle, kernel.slug)
    newest = (info.version or 0) if info else 0
    if info and not newest and _sent_as(attempts, info.source):
        raise AnswerLostError(
            f"{answer}, and Kaggle names no version of the kernel that it has",
            "Look at the kernel's page before you send anything again.",
        )
    for version in range(newest, known, -1):
        latest = info if version == newest else None
        source = latest.source if latest else _source_of(kaggle, kernel, version)
        if sent := _sent_as(attempts, source):
            return SentVersion(_address(kaggle, sent, version), sent, Outcome.ADOPTED)
    return None


def _accepted(
    kaggle: Kaggle, attempts: Sequence[Kernel], known: int, lost: AnswerLostError
) -> SentVersion | None:
    """The version that one of the attempts made; None if none appears in the grace period."""
    started = kaggle.timeouts.clock()
    for pause in kaggle.timeouts.pauses():
        error: KernelkitError | None = None
        try:
            if found := _version_of(kaggle, attempts, known, lost):
                return found
        except AnswerLostError:
            raise
        except KernelkitError as caught:
            error = caught
        if kaggle.timeouts.clock() - started > kaggle.timeouts.grace:
            if error is None:
                return None
            raise lost.with_message(
                f"{lost}, and the kernel cannot be read ({error})", RUN_AGAIN
            ) from error
        kaggle.timeouts.sleep(pause)
    raise AssertionError("the pauses never end")


def _address(kaggle: Kaggle, kernel: Kernel, version: int, url: str = "") -> RunAddress:
    owner = kaggle.credentials.username
    return RunAddress(
        owner=owner,
        slug=kernel.slug,
        version=version,
        url=url or f"{kaggle.web}/code/{owner}/{kernel.slug}",
        digest=kernel.digest,
        endpoint=kaggle.endpoint,
        push_id=kernel.manifest.push_id,
    )


def _source_of(kaggle: Kaggle, kernel: Kernel, version: int) -> str:
    """The notebook of a version on Kaggle; empty if there is no such version."""
    try:
        return kaggle.kernel(kaggle.credentials.username, kernel.slug, version).source
    except NotFoundError:
        return ""


def _manifest_of(source: str) -> Manifest | None:
    """The manifest in a notebook on Kaggle; None if it has none, and only quotes one."""
    try:
        return embedded_manifest(read_cells(source))
    except ConfigError:
        return None


def _sent_as(attempts: Sequence[Kernel], source: str) -> Kernel | None:
    """The attempt that sent a notebook; by its digest if the templates hide the manifest."""
    marks = [(attempt, attempt.manifest.push_id or attempt.digest) for attempt in attempts]
    return next((attempt for attempt, mark in marks if mark in source), None)


def _remote_checks(
    kaggle: Kaggle, kernel: Kernel, check_quota: Callable[[], float | None], on_event: OnEvent
) -> Iterator[tuple[str, Callable[[], float | None]]]:
    fields = kernel.metadata
    if kernel.manifest.wants_gpu:
        yield "the quota", check_quota
    for slug in fields.competition_sources:
        yield f"the competition {slug}", partial(_check_competition, kaggle, slug)
    wheels = kernel.manifest.wheels
    own = f"{kaggle.credentials.username}/{wheels.dataset}" if wheels else ""
    for source in fields.dataset_sources:
        if wheels and source.lower() == own.lower():
            check = partial(_check_wheels, kaggle, source, wheels, on_event)
        else:
            check = partial(_check_dataset, kaggle, source, on_event)
        yield f"the dataset {source}", check
    for source in fields.kernel_sources:
        yield f"the kernel {source}", partial(_check_kernel, kaggle, source)
    for source in fields.model_sources:
        yield f"the model {source}", partial(_check_model, kaggle, source)


class Waiting:
    """How long a push may wait for the refresh of the quota."""

    def __init__(self, deadline: float | None, timeouts: Timeouts) -> None:
        """`deadline` is in seconds from now; None for no limit."""
        self._timeouts = timeouts
        self._end = None if deadline is None else timeouts.clock() + deadline

    def until(self, refresh: datetime) -> bool:
        """Sleep until the refresh, or for an hour at most; False if it comes too late."""
        left = (refresh - datetime.now(UTC)).total_seconds()
        if self._end is not None and self._timeouts.clock() + left > self._end:
            return False
        late = self._timeouts.grace / 2  # Kaggle may show the new quota somewhat later
        self._timeouts.sleep(min(max(left, 0.0) + late, LONGEST_PAUSE))
        return True


def _expected_hours(kaggle: Kaggle, root: Path, kernel: Kernel) -> float | None:
    """How many GPU hours the run will probably bill; None where no earlier run says."""
    if not kernel.manifest.wants_gpu:
        return None
    wanted = Wanted.of(kernel.manifest.kernel, kernel.manifest.parameters)
    seconds = estimate(root, kernel.slug, wanted, endpoint=kaggle.endpoint).seconds
    return None if seconds is None else seconds / 3600


def _check_quota(
    kaggle: Kaggle,
    reserve: float,
    hours: float | None,
    waiting: Waiting | None,
    on_event: OnEvent,
) -> float | None:
    """The GPU hours that a run may use; None if Kaggle does not say."""
    said = ""
    while True:
        quota = kaggle.quota()
        if not quota.allowed:
            on_event("note: Kaggle does not say how many GPU hours are left")
            return None
        until = f", until {quota.refresh:%Y-%m-%d %H:%M} UTC" if quota.refresh else ""
        running = f", {quota.reserved:.1f} reserved by running sessions" if quota.reserved else ""
        left = f"{quota.left:.1f} of {quota.allowed:.0f} GPU hours left{running}{until}"
        reserved = f", and gpu_reserve_hours = {reserve:g}" if reserve else ""
        usable = quota.left - reserve
        if usable > 0 and (hours is None or hours <= usable):
            on_event(left)
            return usable
        helps = hours is None or hours <= quota.allowed - reserve
        if waiting and quota.refresh and helps:
            if said != left:
                on_event(f"{left}{reserved}; waiting for the refresh")
                said = left
            if waiting.until(quota.refresh):
                continue
        if usable <= 0:
            raise QuotaError(
                f"{left}{reserved}",
                "Wait for the refresh (--wait does), or use a CPU. Nothing was sent.",
            )
        on_event(f"{left}{reserved}")
        on_event(
            f"warning: by earlier runs this one needs {hours:.1f} GPU hours, and may use "
            f"{usable:.1f}: Kaggle will probably end it early (`kernelkit plan`)"
        )
        return usable


@contextmanager
def _require_source(kaggle: Kaggle, problem: str, advice: str) -> Iterator[None]:
    """Explain what it means if Kaggle does not find a source."""
    try:
        yield
    except NotFoundError as error:
        if kaggle.endpoint != PRODUCTION:
            advice = f"Put its data into the local Kaggle's --inputs. On the real one: {advice}"
        raise _SourceError(f"{problem}: {error}", f"{advice} Nothing was sent.") from error


def _check_competition(kaggle: Kaggle, slug: str) -> None:
    rules = f"https://www.kaggle.com/c/{slug}/rules."
    with _require_source(
        kaggle,
        f"the competition {slug} gives you no data",
        f"Join it and accept its rules: {rules}",
    ):
        kaggle.competition_access(slug)


def _check_dataset(kaggle: Kaggle, source: str, on_event: OnEvent) -> None:
    owner, slug = source.split("/")[:2]
    started, reported = kaggle.timeouts.clock(), ""
    for pause in kaggle.timeouts.pauses():
        with _require_source(
            kaggle,
            f"there is no dataset {source}, or you may not see it",
            "Fix dataset_sources, or ask its owner.",
        ):
            now = kaggle.dataset_status(owner, slug)
        if now == "READY":
            return
        if now in ("FAILED", "DELETED"):
            raise _SourceError(
                f"the dataset {source} is {now}", "Upload it again. Nothing was sent."
            )
        if kaggle.timeouts.clock() - started > DATASET_SECONDS:
            raise _SourceError(
                f"the dataset {source} is still {now} after {DATASET_SECONDS} s",
                "Push again once it is ready. Nothing was sent.",
            )
        if now != reported:
            on_event(f"waiting for the dataset {source}: {now}")
            reported = now
        kaggle.timeouts.sleep(pause)


def _check_wheels(kaggle: Kaggle, source: str, wheels: ManifestWheels, on_event: OnEvent) -> None:
    """The account's dataset lists every wheel; the run itself compares their hashes."""
    dataset = Dataset(kaggle, *source.split("/"))
    if (details := dataset.details()) is None:
        raise _SourceError(f"there is no dataset {source} with the wheels", PUBLISH_WHEELS)
    _check_dataset(kaggle, source, on_event)
    listed = dataset.files(details.version) if details.version else {}
    missing = [one.file for one in wheels.files if one.file not in listed]
    if missing and listed:
        raise _SourceError(
            f"the dataset {source} lacks {', '.join(missing)}, which the notebook installs",
            PUBLISH_WHEELS,
        )


def _check_kernel(kaggle: Kaggle, source: str) -> None:
    owner, slug = source.split("/")[:2]
    problem = f"there is no kernel {source}, or you may not see it"
    with _require_source(kaggle, problem, "Fix kernel_sources."):
        kaggle.kernel(owner, slug)


def _check_model(kaggle: Kaggle, source: str) -> None:
    problem = f"there is no model {source}, or you may not use it"
    with _require_source(
        kaggle, problem, "Fix model_sources, or accept the model's terms on its page."
    ):
        kaggle.model_access(source)


def _differences(kernel: Kernel, run: RunAddress, info: KernelInfo) -> Iterator[str]:
    """Requested settings that Kaggle changed; a kernel that is public by mistake comes first."""
    requested = kernel.metadata
    marks = (("digest", run.digest), ("push_id", run.push_id))
    if info.is_private != requested.is_private:
        yield f"is_private: requested {requested.is_private}, got {info.is_private}"
    missing = [f"{name} {value}" for name, value in marks if value and value not in info.source]
    if missing:
        yield f"the notebook on Kaggle does not contain the {' and the '.join(missing)}"
    else:
        yield from _changed_cells(kernel.notebook, info.source)
    if info.enable_internet != requested.enable_internet:
        yield f"enable_internet: requested {requested.enable_internet}, got {info.enable_internet}"
    for kind, names in info.sources.items():
        wanted = {name.lower() for name in getattr(requested, kind)}
        lost = sorted(wanted - {name.lower() for name in names})
        yield from (f"{kind}: requested {name!r}, not attached" for name in lost)


def _changed_cells(sent: str, received: str) -> Iterator[str]:
    """Kaggle adds metadata of its own, so only the cells can be compared."""
    try:
        theirs = [(cell.kind, cell.source.rstrip()) for cell in read_cells(received)]
    except KernelkitError as error:
        yield f"the notebook on Kaggle cannot be read: {error}"
        return
    ours = [(cell.kind, cell.source.rstrip()) for cell in read_cells(sent)]
    if len(ours) != len(theirs):
        yield f"the notebook on Kaggle has {len(theirs)} cells, {len(ours)} were sent"
        return
    for number, (mine, its) in enumerate(zip(ours, theirs, strict=True), start=1):
        if mine != its:
            yield f"cell {number} on Kaggle differs from what was sent"
