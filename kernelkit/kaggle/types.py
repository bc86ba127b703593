"""What is sent to Kaggle and what comes back, as plain types; nothing here imports the SDK."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from kernelkit.errors import ConfigError

PRODUCTION = "https://api.kaggle.com"
"""The real Kaggle: the address that its runs are recorded with [V: the SDK's own constant]."""

CONNECT_SECONDS = 5
READ_SECONDS = 60  # Kaggle answers a push of 900 kB after several seconds
MOST_RETRY_SECONDS = 3600


def ignore(event: object) -> None:
    """A listener that does nothing."""


class State(StrEnum):
    """Where a run is; the names of KernelWorkerStatus in lower case."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    CANCEL_REQUESTED = "cancel_requested"
    CANCEL_ACKNOWLEDGED = "cancel_acknowledged"
    NEW_SCRIPT = "new_script"

    @property
    def finished(self) -> bool:
        """Whether the state can no longer change."""
        return self in (State.COMPLETE, State.ERROR, State.CANCEL_ACKNOWLEDGED)


@dataclass(frozen=True)
class Status:
    """A run's state, and Kaggle's message if it failed."""

    state: State
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run has ended without success."""
        return self.state.finished and self.state != State.COMPLETE

    @property
    def word(self) -> str:
        """The state in one word for people."""
        return state_word(self.state, self.failure)


_STATE_WORDS = {
    State.ERROR: "failed",
    State.CANCEL_REQUESTED: "running",  # until Kaggle has stopped it
    State.CANCEL_ACKNOWLEDGED: "cancelled",
    State.NEW_SCRIPT: "queued",
}
_TIMED_OUT = re.compile(
    r"time.?out|timed out|time.?limit|hours? limit"
    r"|max\w* (?:allowed )?(?:execution|run.?time|duration)"
    r"|allowed (?:execution|run.?time|duration)"
    r"|longer than (?:\w+ ){0,3}(?:allowed|permitted|limit)"
    r"|deadline exceeded|exceeded (?:\w+ ){0,2}deadline|session (?:has )?expired",
    re.IGNORECASE,
)
"""Kaggle reports a time-out as an error or as a cancellation; only its message shows which."""

_EXCEPTION = re.compile(
    r"Traceback \(|\b\w+(?:Error|Exception)\b"
    r"|\b(?:[^\W\d]\w*\.)+[^\W\d]\w*: |\b\w+(?:Timeout|Expired): "
)


def is_time_out(failure: str) -> bool:
    """Whether Kaggle's message says that the run reached its time limit.

    An exception of the notebook, such as "TimeoutError: …", is no such message.
    """
    return not _EXCEPTION.search(failure) and _TIMED_OUT.search(failure) is not None


def state_word(state: str, failure: str = "") -> str:
    """One word for a state: queued, running, complete, failed, cancelled or timed out.

    `failure` is Kaggle's message. Words that are not a `State` stay as they are.
    """
    if state in (State.ERROR, State.CANCEL_ACKNOWLEDGED) and is_time_out(failure):
        return "timed out"
    return next((word for known, word in _STATE_WORDS.items() if known == state), str(state))


@dataclass(frozen=True)
class PushResponse:
    """Kaggle's response to a push that it accepted."""

    url: str
    version: int
    dropped: Mapping[str, list[str]]
    """Kind of source → names that Kaggle did not accept; the kernel runs without them."""


@dataclass(frozen=True)
class KernelInfo:
    """A kernel as Kaggle has it, for comparison with what was requested."""

    version: int | None
    """The kernel's current version, whichever was asked for."""

    source: str
    is_private: bool | None
    enable_internet: bool | None
    machine_shape: str
    """Of the last session [V, SDK text]: until a run has started, that of the run before it."""

    docker_image: str
    sources: Mapping[str, list[str]]


@dataclass(frozen=True)
class ListedKernel:
    """A kernel in the list of an account."""

    owner: str
    slug: str
    title: str = ""
    last_run: datetime | None = None
    """When its latest run began [A], in UTC; None if Kaggle does not say."""

    version: int | None = None
    """Its current version; None if Kaggle leaves it out of the list."""


@dataclass(frozen=True)
class Quota:
    """Hours of an accelerator until `refresh`: used, allowed, and reserved by running sessions."""

    used: float
    allowed: float
    refresh: datetime | None = None
    reserved: float = 0.0

    @property
    def left(self) -> float:
        """Hours that another run may still use."""
        return max(0.0, self.allowed - self.used - self.reserved)


@dataclass(frozen=True)
class LogEntry:
    """A piece of a run's log. `seconds` counts from the start of the session."""

    stream: str
    seconds: float
    text: str


@dataclass(frozen=True)
class OutputFile:
    """One file among a run's outputs, and the address where it can be downloaded for a while."""

    name: str
    url: str

    size: int | None = None
    """In bytes; None if unknown."""

    sha256: str | None = None
    """From the run's own manifest; None for files that the manifest does not list."""


class Scoring(StrEnum):
    """Where a submission is; the names of SubmissionStatus in lower case."""

    PENDING = "pending"
    COMPLETE = "complete"
    ERROR = "error"


@dataclass(frozen=True)
class Submission:
    """A submission as Kaggle has it. Scores are Kaggle's text, empty if it shows none."""

    ref: int
    status: Scoring
    public_score: str = ""
    private_score: str = ""
    error: str = ""
    description: str = ""
    date: datetime | None = None
    size: int | None = None
    """Of the file, in bytes; None if Kaggle does not say."""


@dataclass(frozen=True)
class Terms:
    """What a competition accepts."""

    daily: int | None
    """Submissions per day, None if Kaggle does not say."""
    code_only: bool
    """Whether it accepts versions of kernels only, and no files."""
    entered: bool
    """Whether this account has accepted its rules."""
    closed: bool
    """Whether Kaggle says that it accepts no submissions [?]."""


@dataclass(frozen=True)
class Credentials:
    """Who calls: either a key or a token; `origin` says where they were found."""

    username: str
    origin: str
    key: str | None = None
    token: str | None = None


def growing(first: float, longest: float, factor: float = 1.5) -> Iterator[float]:
    """Pauses in seconds, without end, each longer than the one before by `factor`."""
    pause = first
    while True:
        yield pause
        pause = min(pause * factor, longest)


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for Kaggle, in seconds, and the clock that measures it."""

    connect: float = CONNECT_SECONDS
    read: float = READ_SECONDS
    """Silence of one call before it counts as lost. A call may last longer, for each byte of its
    answer."""

    push: float = 300
    """Until the response to a push: Kaggle reads a notebook of 900 kB before it answers."""

    retry: float = 20
    """No attempt of a reading call begins later than this after the first. With the two timeouts of
    a connection, a call takes less than 100 s in all."""

    grace: float = 120
    """After a push Kaggle may answer 403, 404 or with the version before [A]."""

    stale: float = 15
    """So long after a push the failed end of the version before may be shown for a run whose log
    does not say how it has ended."""

    outage: float = 600
    """How long Kaggle may be unreachable during a watch, which takes hours."""

    stream: float = 600
    """For one live log, before the status is asked again: some streams do not report their end."""

    first_pause: float = 0.5
    longest_pause: float = 10.0
    """Between two questions for the status."""

    quota: float = 300
    """Between two questions for the quota."""

    cancelling: float = 60
    """Until a session that was asked to end must have ended."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Timeouts:
        """The default ones, with the time for retries that the environment sets.

        Raises:
            ConfigError: it is not a number of seconds.
        """
        name = "KERNELKIT_RETRY_SECONDS"
        text = environment.get(name, "")
        try:
            seconds = float(text or cls.retry)
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= MOST_RETRY_SECONDS:
            raise ConfigError(
                f"{name}={text!r} is not a number of seconds from 0 to {MOST_RETRY_SECONDS}",
                f"Set it to {cls.retry:g}, or remove it.",
            )
        return cls(retry=seconds)

    def pauses(self) -> Iterator[float]:
        """Growing pauses, in seconds, without end."""
        return growing(self.first_pause, self.longest_pause)
