"""A run's life after the button: where it is, its log, whether it has what was asked, its end.

What belongs to one version is asked for by that version. Kaggle answers for another one all the
same, for a while after a push: the digest in a log's first line tells whose it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kernelkit.errors import (
    CapacityError,
    DeadlineError,
    KernelkitError,
    NotFoundError,
    RateLimitedError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle import Kaggle, LogEntry, Quota, State, Status, parse_log

GPU_NAMES = {
    "NvidiaTeslaT4": "T4",
    "NvidiaTeslaT4Highmem": "T4",
    "NvidiaTeslaP100": "P100",
    "NvidiaTeslaA100": "A100",
    "NvidiaL4": "L4",
    "NvidiaL4X1": "L4",
    "NvidiaH100": "H100",
    "NvidiaRtxPro6000": "RTX PRO 6000",
}
"""What nvidia-smi calls the GPUs of a machine_shape."""

_DIGEST_LINE = re.compile(r"kernelkit digest ([0-9a-f]{64})")
_SESSION_LINE = re.compile(r"kernelkit session (\d+)")
_HARDWARE_LINE = re.compile(r"^hardware: (\{.*\})\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """The address of one run, and what was asked to run there."""

    owner: str
    slug: str
    version: int
    url: str
    digest: str
    endpoint: str

    @property
    def name(self) -> str:
        """For people: `owner/slug v3`."""
        return f"{self.owner}/{self.slug} v{self.version}"


@dataclass(frozen=True)
class RequestedHardware:
    """What a run is to have, and Kaggle shows only once it has started."""

    machine_shape: str
    docker_image: str
    wants_gpu: bool

    @classmethod
    def of(cls, bundle: Mapping[str, Any]) -> RequestedHardware:
        """As the manifest of what was sent has it."""
        kernel = bundle.get("kernel", {})
        shape, image = kernel.get("machine_shape") or "", kernel.get("docker_image") or ""
        return cls(str(shape), str(image), bool(bundle.get("wants_gpu")))


def status(kaggle: Kaggle, run: Run, *, fresh: bool) -> Status:
    """The state of exactly this version.

    A `fresh` one, within the grace after its push, is queued where Kaggle does not show it yet, or
    tells the end of another: of a run that has ended the log says whose it was.
    """
    try:
        now = kaggle.status(run.owner, run.slug, run.version)
    except NotFoundError:
        if fresh:
            return Status(State.QUEUED)
        if kaggle.kernel(run.owner, run.slug).version != run.version:
            raise
        now = kaggle.status(run.owner, run.slug, None)  # a Kaggle that takes no versions here
    if fresh and now.state.finished and digest_of(_kept_log(kaggle, run)) != run.digest:
        return Status(State.QUEUED)
    return now


def watch(
    kaggle: Kaggle,
    run: Run,
    asked: RequestedHardware,
    *,
    age: float = 0.0,
    deadline: float | None = None,
) -> Iterator[Status | LogEntry | Quota | str]:
    """Follow a run to its end: each change of its state, each line of its log once, and words.

    `age` is how long ago it was pushed, `deadline` how long from now it may take, in seconds. A
    Kaggle that has answered once may fall silent for `patience.outage`; the watch goes on.

    Raises:
        DeadlineError: it passed; the run goes on.
        RefusedError: the run has another machine or image than was asked for; it goes on too.
        UnreachableError: no answer at all, or none for too long.
    """
    clock = kaggle.timeouts.clock
    started = answered = clock()
    state: Status | None = None
    shown, pauses = "", kaggle.timeouts.pauses()
    confirmed, asked_quota = False, -math.inf
    while True:
        limit = 0.0
        try:
            fresh = age + clock() - started < kaggle.timeouts.grace
            current = status(kaggle, run, fresh=fresh)
            entries = _kept_log(kaggle, run) if current.state.finished else []
            if not confirmed and current.state == State.RUNNING:
                confirmed = yield from _confirm(kaggle, run, asked, shown, settled=not fresh)
        except (UnreachableError, CapacityError) as error:
            if state is None or clock() - answered > kaggle.timeouts.outage:
                raise
            limit = (error.retry_after or 0.0) if isinstance(error, RateLimitedError) else 0.0
            yield f"{error}; trying on"
            current = state
        else:
            answered = clock()
        if current != state:
            state = current
            yield state
        if state.state.finished:
            _require_own(run, entries)
            yield from _unseen(entries, shown)
            if not confirmed:
                text = "".join(entry.text for entry in entries)
                yield from _confirm(kaggle, run, asked, text, settled=True)
            return
        if asked.wants_gpu and clock() - asked_quota > kaggle.timeouts.quota:
            asked_quota = clock()
            yield from _quota(kaggle)
        left = math.inf if deadline is None else deadline - (clock() - started)
        if state.state == State.RUNNING and left > 0:
            for entry in _live_log(kaggle, run, shown, min(left, kaggle.timeouts.stream)):
                shown += entry.text
                yield entry
        left = math.inf if deadline is None else deadline - (clock() - started)
        if left <= 0:
            raise DeadlineError(
                f"{run.name} has not ended within {deadline:.0f} s; it goes on running",
                f"Come back with `kernelkit watch v{run.version}`, or give a longer --deadline.",
            )
        kaggle.timeouts.sleep(min(max(next(pauses), limit), left))


def confirm(
    kaggle: Kaggle, run: Run, asked: RequestedHardware, text: str
) -> tuple[list[str], list[str]]:
    """What differs of machine and image from what was asked, and what is confirmed.

    `text` is the run's log as far as it is known: its hardware cell is the surest witness.
    """
    given = kaggle.kernel(run.owner, run.slug)
    if given.version != run.version:  # it tells of the current version's session alone
        given = replace(given, machine_shape="", docker_image="")
    different: list[str] = []
    confirmed: list[str] = []
    for name, want, got in (
        ("machine_shape", asked.machine_shape, given.machine_shape),
        ("docker_image", asked.docker_image, given.docker_image),
    ):
        if want and got:
            line = f"{name}: asked {want}, given {got}"
            (confirmed if want.lower() in got.lower() else different).append(line)
    if not asked.wants_gpu and given.machine_shape.startswith("Nvidia"):
        different.append(f"machine_shape: asked for no GPU, given {given.machine_shape}")
    gpus = _gpus(text)
    expected = GPU_NAMES.get(asked.machine_shape)
    if gpus is not None and expected:
        line = f"GPU: asked {asked.machine_shape}, the run has {', '.join(gpus) or 'none'}"
        fits = bool(gpus) and all(expected in gpu for gpu in gpus)
        (confirmed if fits else different).append(line)
    return different, confirmed


def cancel(kaggle: Kaggle, run: Run, *, age: float = math.inf) -> Status:
    """End a run, and return the state in which it has ended.

    Kaggle ends a session by its number, which no call tells [V]: the run prints it itself.

    Raises:
        RefusedError: it cannot be ended from here, or Kaggle does not do it.
        DeadlineError: it is asked for, and not done yet.
    """
    now = status(kaggle, run, fresh=age < kaggle.timeouts.grace)
    if now.state.finished:
        raise RefusedError(
            f"{run.name} has ended already ({now.state}): nothing is cancelled",
            f"What it left can be pulled: `kernelkit pull v{run.version}`.",
        )
    text = "".join(
        entry.text for entry in _live_log(kaggle, run, "", kaggle.timeouts.longest_pause)
    )
    session = _SESSION_LINE.search(text)
    if session is None:
        raise RefusedError(
            f"{run.name} is {now.state}, and has not printed the number of its session: it cannot "
            "be cancelled from here, and goes on",
            f"Try again once its first lines are in the log, or stop it by hand: {run.url}",
        )
    kaggle.cancel(int(session[1]))
    started = kaggle.timeouts.clock()
    for pause in kaggle.timeouts.pauses():
        now = status(kaggle, run, fresh=False)
        if now.state == State.CANCEL_ACKNOWLEDGED:
            return now
        if now.state.finished:
            raise RefusedError(
                f"{run.name} had ended before it was cancelled: {now.state}",
                f"What it left can be pulled: `kernelkit pull v{run.version}`.",
            )
        if kaggle.timeouts.clock() - started > kaggle.timeouts.cancelling:
            break
        kaggle.timeouts.sleep(pause)
    raise DeadlineError(
        f"Kaggle was asked to cancel {run.name}, and still says {now.state}",
        f"Look again: `kernelkit status v{run.version}`. By hand: {run.url}",
    )


def digest_of(entries: list[LogEntry]) -> str | None:
    """The digest that a log begins with: whose it is."""
    found = _DIGEST_LINE.search("".join(entry.text for entry in entries))
    return found[1] if found else None


def log(kaggle: Kaggle, run: Run) -> list[LogEntry]:
    """The log of exactly this version, as far as Kaggle keeps it."""
    return parse_log(kaggle.log(run.owner, run.slug, run.version))


def progress(entry: LogEntry) -> Mapping[str, Any] | None:
    """The event that a line of the log reports (`{"event": "epoch", …}`), None for other lines."""
    text = entry.text.strip()
    if not text.startswith("{"):
        return None
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _confirm(
    kaggle: Kaggle, run: Run, asked: RequestedHardware, text: str, *, settled: bool
) -> Generator[str, None, bool]:
    """Whether everything asked for is confirmed; what Kaggle shows may be old until `settled`."""
    try:
        different, confirmed = confirm(kaggle, run, asked, text)
    except (UnreachableError, CapacityError, NotFoundError) as error:
        if settled:
            yield f"note: machine and image could not be confirmed: {error}"
        return settled
    hardware = _gpus(text) is not None
    if different and (settled or hardware):
        raise RefusedError(
            f"{run.name} has other than was asked for:\n" + "\n".join(different),
            f"If it still runs: `kernelkit cancel v{run.version}`. What it leaves can be pulled.",
            {"differences": different},
        )
    if settled or (hardware and confirmed):
        for line in confirmed:
            yield f"confirmed: {line}"
        return True
    return False


def _kept_log(kaggle: Kaggle, run: Run) -> list[LogEntry]:
    """The log of a run that has ended; empty where Kaggle has none (yet)."""
    try:
        return log(kaggle, run)
    except NotFoundError:
        return []


def _quota(kaggle: Kaggle) -> Iterator[Quota]:
    """The quota, where it can be had: it is beside the point of a watch."""
    try:
        yield kaggle.quota()
    except KernelkitError:
        return


def _gpus(text: str) -> list[str] | None:
    """The GPUs that the hardware cell has found; None where it has not spoken."""
    line = _HARDWARE_LINE.search(text)
    try:
        gpus = json.loads(line[1])["gpus"] if line else None
    except (ValueError, KeyError, RecursionError):
        return None
    return [str(gpu) for gpu in gpus] if isinstance(gpus, list) else None


def _require_own(run: Run, entries: list[LogEntry]) -> None:
    found = digest_of(entries)
    if found not in (None, run.digest):
        raise RefusedError(
            f"Kaggle gives the log of another run for {run.name}: of digest {found[:12]}, not "
            f"{run.digest[:12]}",
            f"Look at {run.url}, then try again.",
        )


def _live_log(kaggle: Kaggle, run: Run, shown: str, seconds: float) -> Iterator[LogEntry]:
    """What the stream has beyond `shown`, once the digest shows that it is this run's.

    It replays from the first line whenever it is opened. Whatever is wrong with it, the status and
    the log of the version have the last word.
    """
    text, ours = "", False
    waiting: list[LogEntry] = []
    try:
        for entry in kaggle.log_stream(run.owner, run.slug, run.version, seconds):
            waiting.append(entry)
            found = _DIGEST_LINE.search(entry.text)
            if found and found[1] != run.digest:
                return
            ours = ours or found is not None
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
    """What a log has beyond `shown`; from the line on where the two part, if they do."""
    whole = "".join(entry.text for entry in entries)
    skip = len(shown)
    if not whole.startswith(shown):
        pairs = enumerate(zip(whole, shown, strict=False))
        parting = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(shown)))
        skip = whole.rfind("\n", 0, parting) + 1
    for entry in entries:
        beyond = entry.text[skip:]
        skip = max(0, skip - len(entry.text))
        if beyond:
            yield replace(entry, text=beyond)
