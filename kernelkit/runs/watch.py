"""Follow a run: its state, its log, whether it has the requested hardware, and its end.

Every call names the version. For a while after a push Kaggle may still answer for the version
before; the digest and the push_id in a log's first lines show whose log it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kernelkit.config import MACHINES
from kernelkit.errors import (
    CapacityError,
    DeadlineError,
    KernelkitError,
    NotFoundError,
    RateLimitedError,
    RefusedError,
    UnreachableError,
    VerificationError,
)
from kernelkit.kaggle.logs import parse_log
from kernelkit.kaggle.types import LogEntry, Quota, State, Status
from kernelkit.notebook.manifest import Manifest
from kernelkit.notebook.runtime import MANIFEST_MARK
from kernelkit.runs.identity import HEAD_CHARACTERS, Identity, log_identity, shows_run
from kernelkit.runs.manifest import RunAddress, RunRecord
from kernelkit.runs.store import RunFolder, recorded_state

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

LATE_FIELDS = ("machine_shape", "docker_image")
"""Settings that Kaggle shows only once the run has started."""

_SESSION_LINE = re.compile(r"kernelkit session (\d+)")
_HARDWARE_LINE = re.compile(r"^hardware: (\{.*\})\s*$", re.MULTILINE)


@dataclass(frozen=True)
class RequestedHardware:
    """Machine and image of a run, which Kaggle shows only after the run has started."""

    machine_shape: str
    docker_image: str
    wants_gpu: bool

    @classmethod
    def of(cls, bundle: Manifest) -> RequestedHardware:
        """What the sent manifest requests."""
        return cls(bundle.kernel.machine_shape, bundle.kernel.docker_image, bundle.wants_gpu)


@dataclass(frozen=True)
class EndedRun:
    """The run of a folder has ended on Kaggle; its outputs are not here yet."""

    folder: RunFolder
    end: Status


def read_status(kaggle: Kaggle, run: RunAddress, *, age: float) -> Status:
    """The state of exactly this version; `age` is how long ago it was pushed, in seconds.

    Within the grace period after its push, a run counts as queued while Kaggle does not
    show it, or shows the end of the version before: the log of a finished run shows whose it was,
    and how its program has ended.
    """
    fresh = age < kaggle.timeouts.grace
    try:
        now = kaggle.status(run.owner, run.slug, run.version)
    except NotFoundError:
        if fresh:
            return Status(State.QUEUED)
        if kaggle.kernel(run.owner, run.slug).version != run.version:
            raise
        # This Kaggle accepts no versions in the call.
        now = kaggle.status(run.owner, run.slug, None)
    if fresh and now.state.finished:
        log = _text(_kept_log(kaggle, run))
        said = _said_at_the_end(log)
        if not shows_run(run, log) or said == ("complete" if now.failed else "failed"):
            return Status(State.QUEUED)
        # The log may be that of a run which goes on. A run that is complete is verified anyway.
        may_be_stale = now.failed and run.version > 1 and age < kaggle.timeouts.stale
        if said is None and may_be_stale and now == _state_before(kaggle, run):
            return Status(State.QUEUED)
    return now


def _said_at_the_end(log: str) -> str | None:
    """How a run has ended, as the manifest in its log says; None if it says nothing."""
    _, found, rest = log.rpartition("\n" + MANIFEST_MARK)
    try:
        return str(json.loads(rest.partition("\n")[0])["status"]) if found else None
    except (ValueError, TypeError, KeyError):
        return None


def _state_before(kaggle: Kaggle, run: RunAddress) -> Status | None:
    """The state of the version before; None if Kaggle does not say it."""
    try:
        return kaggle.status(run.owner, run.slug, run.version - 1)
    except (NotFoundError, RefusedError):
        return None


def state_of(kaggle: Kaggle, folder: RunFolder) -> Status:
    """The state of the run of a folder; of one that is no longer on Kaggle, as it was pulled.

    Raises:
        NotFoundError: Kaggle does not know the run, and it was not pulled.
    """
    run, end = folder.address_at(kaggle.endpoint), folder.read_end()
    try:
        return read_status(kaggle, run, age=folder.age() if end is None else math.inf)
    except NotFoundError:
        if end is None:
            raise
        return Status(recorded_state(folder), end.failure or "")


def follow_run(
    kaggle: Kaggle,
    folder: RunFolder,
    *,
    deadline: float | None,
    on_event: Callable[[Status | LogEntry | Quota | EndedRun | str], None],
) -> Status:
    """`watch_run` for the run of a folder, with each event passed to `on_event`.

    The last event is an `EndedRun`.

    Returns:
        the run's final state.
    """
    last = Status(State.QUEUED)
    requested = RequestedHardware.of(folder.read_bundle())
    run = folder.address_at(kaggle.endpoint)
    age = math.inf if folder.is_complete() else folder.age()
    for event in watch_run(kaggle, run, requested, age=age, deadline=deadline):
        on_event(event)
        if isinstance(event, Status):
            last = event
    on_event(EndedRun(folder, last))
    return last


def watch_run(
    kaggle: Kaggle,
    run: RunAddress,
    requested: RequestedHardware,
    *,
    age: float = 0.0,
    deadline: float | None = None,
) -> Iterator[Status | LogEntry | Quota | str]:
    """Follow a run to its end: each change of its state, each line of its log once, and notes.

    `age` is how long ago it was pushed, `deadline` how long from now it may take, in seconds. Once
    Kaggle has answered, it may be unreachable for `timeouts.outage` before the watch gives up.

    Raises:
        DeadlineError: the deadline passed; the run continues.
        RefusedError: Kaggle changed the machine or image; the run continues.
        UnreachableError: Kaggle never answered, or was silent for too long.
    """
    clock = kaggle.timeouts.clock
    started = answered = clock()
    state: Status | None = None
    shown, pauses = "", kaggle.timeouts.pauses()
    confirmed, quota_read = False, -math.inf
    while True:
        limit = 0.0
        try:
            age_now = age + clock() - started
            fresh = age_now < kaggle.timeouts.grace
            current = read_status(kaggle, run, age=age_now)
            entries = _kept_log(kaggle, run) if current.state.finished else []
            if not confirmed and current.state == State.RUNNING:
                confirmed = yield from _confirm(kaggle, run, requested, shown, settled=not fresh)
        except (UnreachableError, CapacityError) as error:
            if state is None or clock() - answered > kaggle.timeouts.outage:
                raise
            limit = (error.retry_after or 0.0) if isinstance(error, RateLimitedError) else 0.0
            limit = min(limit, kaggle.timeouts.outage)  # some servers ask for a day
            if not kaggle.is_late:  # else the deadline has cut off the call
                yield f"{error}; trying again"
            current = state
        else:
            answered = clock()
        if current != state:
            state = current
            yield state
        if state.state.finished:
            require_own_log(run, entries)
            yield from _unseen(entries, shown)
            if not confirmed:
                yield from _confirm(kaggle, run, requested, _text(entries), settled=True)
            return
        if requested.wants_gpu and clock() - quota_read > kaggle.timeouts.quota:
            quota_read = clock()
            yield from _quota(kaggle)
        left = math.inf if deadline is None else deadline - (clock() - started)
        if state.state == State.RUNNING and left > 0:
            for entry in _live_log(kaggle, run, shown, min(left, kaggle.timeouts.stream)):
                shown += entry.text
                yield entry
        left = math.inf if deadline is None else deadline - (clock() - started)
        if left <= 0:
            raise DeadlineError(
                f"{run.name} has not ended within {deadline:.0f} s; it keeps running",
                f"Come back with `kernelkit watch v{run.version}`, or set a longer --deadline.",
            )
        kaggle.timeouts.sleep(min(max(next(pauses), limit), left))


def confirm(
    kaggle: Kaggle, run: RunAddress, requested: RequestedHardware, text: str
) -> tuple[list[str], list[str]]:
    """Which requested settings of machine and image Kaggle changed, and which it confirms.

    `text` is the run's log so far: the output of its hardware cell is the most reliable source.
    """
    given = kaggle.kernel(run.owner, run.slug)
    if given.version != run.version:  # Kaggle describes the session of the current version only
        given = replace(given, machine_shape="", docker_image="")
    different: list[str] = []
    confirmed: list[str] = []
    for name in LATE_FIELDS:
        want, got = getattr(requested, name), getattr(given, name)
        if want and got:
            line = f"{name}: requested {want}, got {got}"
            (confirmed if want.lower() in got.lower() else different).append(line)
    if not requested.wants_gpu and given.machine_shape.startswith("Nvidia"):
        different.append(f"machine_shape: requested no GPU, got {given.machine_shape}")
    gpus = _gpus(text)
    machine = MACHINES.get(requested.machine_shape)
    if gpus is not None and machine and machine.gpu:
        line = f"GPU: requested {requested.machine_shape}, the run has {', '.join(gpus) or 'none'}"
        fits = bool(gpus) and all(machine.gpu in gpu for gpu in gpus)
        (confirmed if fits else different).append(line)
    return different, confirmed


def cancel_run(kaggle: Kaggle, run: RunAddress, *, age: float = math.inf) -> Status:
    """Cancel a run, and return its final state.

    Kaggle cancels a session by its number, which no call returns [V]; the run prints it in its log.

    Raises:
        RefusedError: the run cannot be cancelled from here, or Kaggle refuses.
        DeadlineError: Kaggle has not cancelled the run in time.
    """
    now = read_status(kaggle, run, age=age)
    if now.state.finished:
        raise RefusedError(
            f"{run.name} has already ended ({now.word}): there is nothing to cancel",
            f"Pull its outputs: `kernelkit pull v{run.version}`.",
        )
    entries = _live_log(kaggle, run, "", kaggle.timeouts.longest_pause)
    session = _SESSION_LINE.search(_text(entries))
    if session is None:
        raise RefusedError(
            f"{run.name} is {now.word} and has not printed the number of its session: it cannot "
            "be cancelled from here, and keeps running",
            f"Try again once the log has its first lines, or stop it by hand: {run.url}",
        )
    kaggle.cancel(int(session[1]))
    started = kaggle.timeouts.clock()
    for pause in kaggle.timeouts.pauses():
        now = read_status(kaggle, run, age=math.inf)
        if now.state == State.CANCEL_ACKNOWLEDGED:
            return now
        if now.state.finished:
            raise RefusedError(
                f"{run.name} had ended before it was cancelled: {now.word}",
                f"Pull its outputs: `kernelkit pull v{run.version}`.",
            )
        if kaggle.timeouts.clock() - started > kaggle.timeouts.cancelling:
            break
        kaggle.timeouts.sleep(pause)
    raise DeadlineError(
        f"Kaggle was asked to cancel {run.name}, and still reports it as {now.word}",
        f"Check again with `kernelkit status v{run.version}`, or stop it by hand: {run.url}",
    )


def read_log(kaggle: Kaggle, run: RunAddress) -> list[LogEntry]:
    """The log of exactly this run, as far as Kaggle has it.

    Raises:
        VerificationError: Kaggle sends the log of another run.
    """
    entries = parse_log(kaggle.log(run.owner, run.slug, run.version))
    require_own_log(run, entries)
    return entries


def require_own_log(run: RunAddress, entries: Sequence[LogEntry]) -> None:
    """Check that nothing in a log shows that another run wrote it.

    Raises:
        VerificationError: it has another digest, or another push_id.
    """
    whose, difference = log_identity(run, _text(entries))
    if whose == Identity.MISMATCH:
        raise VerificationError(
            f"Kaggle sends the log of another run for {run.name}: it is {difference}",
            f"Right after a push, try again in some minutes. Else look at {run.url}.",
        )


def _confirm(
    kaggle: Kaggle, run: RunAddress, requested: RequestedHardware, text: str, *, settled: bool
) -> Generator[str, None, bool]:
    """Whether all requested settings are confirmed; until `settled`, Kaggle may show old values."""
    try:
        different, confirmed = confirm(kaggle, run, requested, text)
    except (UnreachableError, CapacityError, NotFoundError) as error:
        if settled:
            yield f"note: machine and image could not be confirmed: {error}"
        return settled
    hardware = _gpus(text) is not None
    if different and (settled or hardware):
        raise RefusedError(
            f"Kaggle changed the requested settings of {run.name}:\n" + "\n".join(different),
            f"Cancel it with `kernelkit cancel v{run.version}`, or pull its outputs.",
            RunRecord.model_validate({**run.document, "differences": different}),
        )
    if settled or (hardware and confirmed):
        for line in confirmed:
            yield f"confirmed: {line}"
        return True
    return False


def _kept_log(kaggle: Kaggle, run: RunAddress) -> list[LogEntry]:
    """The log of a run that has ended, of whichever run it is; empty while Kaggle has none."""
    try:
        return parse_log(kaggle.log(run.owner, run.slug, run.version))
    except NotFoundError:
        return []


def _text(entries: Iterable[LogEntry]) -> str:
    return "".join(entry.text for entry in entries)


def _quota(kaggle: Kaggle) -> Iterator[Quota]:
    """The quota, if Kaggle reports it; a watch does not depend on it."""
    try:
        yield kaggle.quota()
    except KernelkitError:
        return


def _gpus(text: str) -> list[str] | None:
    """The GPUs that the hardware cell found; None if it printed nothing."""
    line = _HARDWARE_LINE.search(text)
    try:
        gpus = json.loads(line[1])["gpus"] if line else None
    except (ValueError, KeyError, RecursionError):
        return None
    return [str(gpu) for gpu in gpus] if isinstance(gpus, list) else None


def _live_log(kaggle: Kaggle, run: RunAddress, shown: str, seconds: float) -> Iterator[LogEntry]:
    """What the stream has beyond `shown`, once its first lines show that it is this run's log.

    A stream starts at the first line each time it is opened. Errors of the stream are ignored: the
    status and the log of the finished version decide.
    """
    text, head, ours = "", "", False
    waiting: list[LogEntry] = []
    try:
        for entry in kaggle.log_stream(run.owner, run.slug, run.version, seconds):
            waiting.append(entry)
            if not ours:
                head += entry.text
                ours = shows_run(run, head)
                other = log_identity(run, head)[0] == Identity.MISMATCH
                if other or (not ours and len(head) > HEAD_CHARACTERS):
                    return
            if not ours:
                continue
            for piece in waiting:
                beyond = piece.text[max(0, len(shown) - len(text)) :]
                text += piece.text
                if beyond:
                    yield replace(piece, text=beyond)
            waiting = []
    except KernelkitError:
        return


def _unseen(entries: list[LogEntry], shown: str) -> Iterator[LogEntry]:
    """What a log has beyond `shown`; if the two differ, everything from the first such line on."""
    whole = _text(entries)
    skip = len(shown)
    if not whole.startswith(shown):
        pairs = enumerate(zip(whole, shown, strict=False))
        differing = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(shown)))
        skip = whole.rfind("\n", 0, differing) + 1
    for entry in entries:
        beyond = entry.text[skip:]
        skip = max(0, skip - len(entry.text))
        if beyond:
            yield replace(entry, text=beyond)
