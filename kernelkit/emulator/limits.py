"""What an account may use: sessions at once, hours of a session, weekly hours of an accelerator.

All durations are Kaggle's: with a faster clock (`--clock 60`) an hour of a limit, of the quota or
of the queue passes in a minute. Moments stay those of this machine's clock, so that a client that
waits for the refresh of the quota waits for the right one.
"""

from __future__ import annotations

import datetime as dt
import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

HOUR = 3600.0
SATURDAY = 5
"""The weekday on which the quota is refreshed, at midnight UTC [A]."""
WEEK = 7 * 24 * HOUR


class Machine(enum.StrEnum):
    """The kinds of machines, each with its own cap and quota."""

    CPU = "CPU"
    GPU = "GPU"
    TPU = "TPU"


SESSIONS = {Machine.CPU: 5, Machine.GPU: 2, Machine.TPU: 1}
"""Batch sessions of one account at once, queued or running [A]."""
TIME_LIMITS = {Machine.CPU: 12 * HOUR, Machine.GPU: 12 * HOUR, Machine.TPU: 9 * HOUR}
"""Seconds of a session [A]."""
QUOTAS = {Machine.GPU: 30 * HOUR, Machine.TPU: 20 * HOUR}
"""Seconds of an account per week [A]; a CPU needs none."""


@dataclass(frozen=True)
class Clock:
    """How fast Kaggle's durations pass: `speed` seconds in one of this machine."""

    speed: float = 1.0
    began: float = field(default_factory=time.time)

    def week(self, now: float) -> tuple[float, float]:
        """The last and the next refresh of the quota, in seconds since the epoch."""
        passed = self.began + (now - self.began) * self.speed  # a moment on Kaggle's clock
        today = dt.datetime.fromtimestamp(passed, dt.UTC).replace(
            hour=0, minute=0, second=0, microsecond=0
        )
        days = (SATURDAY - today.weekday()) % 7 or 7
        refresh = (today + dt.timedelta(days=days)).timestamp()
        ends = self.began + (refresh - self.began) / self.speed
        return ends - WEEK / self.speed, ends


@dataclass(frozen=True)
class AccountLimits:
    """The limits of every account. Durations in seconds of Kaggle's clock.

    `queue`: how long a run stays queued. `machines`: runs at once, of all accounts together; more
    runs wait, sorted by their pushes. None: no limit.
    """

    sessions: Mapping[Machine, int] = field(default_factory=lambda: dict(SESSIONS))
    time: Mapping[Machine, float] = field(default_factory=lambda: dict(TIME_LIMITS))
    quota: Mapping[Machine, float] = field(default_factory=lambda: dict(QUOTAS))
    queue: float = 0.0
    machines: int | None = None
    clock: Clock = field(default_factory=Clock)


@dataclass(frozen=True)
class SessionTime:
    """The times of one run, for the quota. `limit`: seconds of Kaggle's clock."""

    limit: float
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Usage:
    """Seconds of an accelerator in the current week, and when the next one begins.

    `reserved`: what the sessions that have not ended may still use [V, the SDK's words]; that
    queued ones count is [?].
    """

    used: float
    reserved: float
    allowed: float
    refresh: float

    @property
    def is_used_up(self) -> bool:
        """Whether no session may use the accelerator any more this week."""
        return self.used >= self.allowed


def usage(
    sessions: list[SessionTime], allowed: float, clock: Clock, now: float | None = None
) -> Usage:
    """What sessions on one accelerator have used and reserved in this week."""
    now = time.time() if now is None else now
    begin, refresh = clock.week(now)
    used = reserved = 0.0
    for session in sessions:
        passed = 0.0
        if session.started is not None:
            ended = now if session.ended is None else session.ended
            used += max(0.0, ended - max(session.started, begin)) * clock.speed
            passed = max(0.0, now - session.started) * clock.speed
        if session.ended is None:
            reserved += max(0.0, session.limit - passed)
    return Usage(used, reserved, allowed, refresh)
