"""A run's life after the button: push it, read back what Kaggle made of it, watch it.

Clock and sleep are arguments. What belongs to one version is asked for by that version; the log
stream alone knows only the latest one, so a stream that begins with another digest is not ours.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kernelkit.client import Given, Kaggle, LogEntry, State, Status, parse_log
from kernelkit.errors import (
    CapacityError,
    DeadlineError,
    KernelkitError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from kernelkit.render import Kernel

GRACE_SECONDS = 120
"""How long after a push Kaggle may answer 403, 404 or with the version before."""

OUTAGE_SECONDS = 600  # a watch of hours outlives a restart of Kaggle's, or a train's tunnel

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0  # between two questions for the status

_DIGEST_LINE = re.compile(r"kernelkit digest ([0-9a-f]{64})")


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
class Pushed:
    """A push that Kaggle took: a version that is now queued or running."""

    run: Run
    dropped: tuple[str, ...]
    """Sources that Kaggle left out at once."""


def push(kaggle: Kaggle, kernel: Kernel) -> Pushed:
    """Send the kernel, once.

    Raises:
        AnswerLostError: nobody knows whether it was taken.
        CapacityError, RefusedError: Kaggle's answer.
    """
    _check_owner(kaggle, kernel)
    saved = kaggle.save_kernel(kernel.slug, kernel.payload, kernel.metadata)
    owner = kaggle.credentials.username
    run = Run(owner, kernel.slug, saved.version, saved.url, kernel.digest, kaggle.endpoint)
    dropped = [
        f"{kind}: Kaggle dropped {name!r}, and runs without it"
        for kind, names in saved.dropped.items()
        for name in names
    ]
    return Pushed(run, tuple(dropped))


def read_back(
    kaggle: Kaggle,
    kernel: Kernel,
    run: Run,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Where Kaggle gave other than was asked, the gravest first; waits until it shows the run."""
    started, pause = clock(), FIRST_PAUSE_SECONDS
    while clock() - started < GRACE_SECONDS:
        try:
            given = kaggle.kernel(run.owner, run.slug)
            if (given.version or 0) >= run.version:
                return _differences(kernel, run, given)
        except NotFoundError:
            pass  # a fresh kernel may take a while to show
        sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
    return [f"version {run.version} did not show within {GRACE_SECONDS} s of the push"]


def status(kaggle: Kaggle, run: Run, *, within_grace: bool) -> Status:
    """The state of exactly this version; a run that does not show yet is queued, for a while."""
    try:
        return kaggle.status(run.owner, run.slug, run.version)
    except NotFoundError:
        if not within_grace:
            raise
        return Status(State.QUEUED)


def watch(
    kaggle: Kaggle,
    run: Run,
    *,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Status | LogEntry | str]:
    """Follow a run to its end: each change of its state, each line of its log once, and words.

    `deadline` is in seconds from now. A Kaggle that has answered once may fall silent for
    `OUTAGE_SECONDS`; the watch says so and goes on.

    Raises:
        DeadlineError: it passed; the run goes on.
        UnreachableError: no answer at all, or none for too long.
    """
    started = answered = clock()
    state: Status | None = None
    shown, pause = "", FIRST_PAUSE_SECONDS
    while True:
        try:
            current = status(kaggle, run, within_grace=clock() - started < GRACE_SECONDS)
        except (UnreachableError, CapacityError) as fault:
            if state is None or clock() - answered > OUTAGE_SECONDS:
                raise
            yield f"{fault}; trying on"
            current = state
        else:
            answered = clock()
        if current != state:
            state = current
            yield state
        if state.state.finished:
            yield from _unseen(log(kaggle, run), shown)
            return
        left = math.inf if deadline is None else deadline - (clock() - started)
        if state.state == State.RUNNING and left > 0:
            for entry in _live_log(kaggle, run, shown, left):
                shown += entry.text
                yield entry
        left = math.inf if deadline is None else deadline - (clock() - started)
        if left <= 0:
            raise DeadlineError(
                f"{run.name} has not ended within {deadline:.0f} s; it goes on running",
                "Come back with `kernelkit watch`, or give a longer --deadline.",
            )
        sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def log(kaggle: Kaggle, run: Run) -> list[LogEntry]:
    """The log of exactly this version, as far as Kaggle keeps it."""
    return parse_log(kaggle.outputs(run.owner, run.slug, run.version)[1])


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


def _check_owner(kaggle: Kaggle, kernel: Kernel) -> None:
    owner = str(kernel.metadata["id"]).rpartition("/")[0]
    if owner and owner.lower() != kaggle.credentials.username.lower():
        raise RefusedError(
            f"the kernel belongs to {owner}, and the credentials ({kaggle.credentials.origin}) to "
            f"{kaggle.credentials.username}",
            "Leave the owner out of id, or use the owner's credentials.",
        )


def _differences(kernel: Kernel, run: Run, given: Given) -> list[str]:
    """What was asked against what was given; a privacy wider than asked comes first."""
    asked = kernel.metadata
    found = []
    if given.is_private != asked["is_private"]:
        found.append(f"is_private: asked {asked['is_private']}, given {given.is_private}")
    if given.version == run.version and run.digest not in given.source:
        found.append(f"the notebook on Kaggle does not carry the digest {run.digest}")
    if given.enable_internet != asked["enable_internet"]:
        found.append(
            f"enable_internet: asked {asked['enable_internet']}, given {given.enable_internet}"
        )
    for kind, names in given.sources.items():
        lost = sorted({name.lower() for name in asked[kind]} - {name.lower() for name in names})
        found += [f"{kind}: asked {name!r}, not given" for name in lost]
    return found


def _live_log(kaggle: Kaggle, run: Run, shown: str, seconds: float) -> Iterator[LogEntry]:
    """What the stream has beyond `shown`, once the digest shows that it is this run's.

    It replays from the first line whenever it is opened. Whatever is wrong with it, the status and
    the log of the version have the last word.
    """
    text, ours = "", False
    waiting: list[LogEntry] = []
    try:
        for entry in kaggle.log_stream(run.owner, run.slug, seconds):
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
