"""The plan of a seed: its faults, and what users do meanwhile. A seed always has the same plan."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

MAY_BE_REFUSED = frozenset(
    {"public", "internet-flipped", "dropped-source", "other-machine", "save-error", "error-in-200"}
    | {"page-circle", "error-page", "download-short", "wrong-length"}
)
"""Faults that kernelkit reports with exit code 4."""

Chance = random.Random


@dataclass(frozen=True)
class Plan:
    """What happens in one seed."""

    seed: int
    faults: tuple[str, ...]
    fails: bool
    """Whether the pushed program fails."""

    size: int
    """Bytes of its largest output."""

    terminals: tuple[float, ...]
    """When each terminal starts, in seconds."""

    killed_after: float | None
    """When the first terminal is killed (SIGKILL), in seconds."""

    elsewhere: bool
    """Whether another machine joins once the kernel exists."""

    @property
    def users(self) -> str:
        """What users do, in some words."""
        words = f"{len(self.terminals)} terminals" + (", elsewhere too" if self.elsewhere else "")
        killed = f", one killed after {self.killed_after:.1f} s" if self.killed_after else ""
        return words + killed

    @property
    def kinds(self) -> frozenset[str]:
        """The names of its faults."""
        return frozenset(error.partition(",")[0] for error in self.faults)


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    chance = Chance(seed)
    faults = tuple(chance.choice(FAULTS)(chance) for _ in range(chance.choice([0, 1, 1, 2, 3, 4])))
    several = chance.random() < 0.3
    return Plan(
        seed,
        faults,
        fails=chance.random() < 0.1,
        size=chance.choice([10, 100_000, 3_000_000]),
        terminals=tuple(chance.uniform(0, 3) if n else 0.0 for n in range(3 if several else 1)),
        killed_after=chance.uniform(0.1, 5) if chance.random() < 0.2 else None,
        elsewhere=chance.random() < 0.15,
    )


def _when(chance: Chance) -> str:
    return f"at={chance.randint(1, 6)},times={chance.randint(1, 3)}"


def _any(name: str, *keys: str) -> Callable[[Chance], str]:
    """A fault that strikes any call, or one kind of call, a few times."""
    calls = ["SaveKernel", "GetKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"]
    calls += ["Log", "Download", "any"]

    def make(chance: Chance) -> str:
        before = chance.choice(["before", "after"])
        stated = ",".join([*keys, f"when={before}", _when(chance)])
        return f"{name},call={chance.choice(calls)},{stated}"

    return make


def _one(name: str, *keys: str) -> Callable[[Chance], str]:
    """A fault of one kind of call, a few times."""
    return lambda chance: ",".join([name, *keys, _when(chance)])


FAULTS: tuple[Callable[[Chance], str], ...] = (
    *(lambda _: "lost-after", lambda _: "lost-before", lambda _: "lost-after,reset=true"),
    *(lambda _: "lost-after,times=2", lambda c: f"forbidden,times={c.randint(1, 4)}"),
    *(lambda c: f"stale-status,times={c.randint(1, 4)}", lambda _: "stale-kernel,lasting=1"),
    lambda c: f"queued,lasting={c.uniform(0.2, 2):.1f}",
    *(_any("reset"), _any("timeout", "seconds=4"), _any("html"), _any("html", "code=502")),
    *(_any("server-error", "code=500"), _any("server-error", "code=503"), _any("error-in-200")),
    *(_any("rate-limit"), _any("rate-limit", "form=date"), _any("rate-limit", "form=none")),
    *(lambda _: "session-cap", lambda _: "quota", lambda _: "save-error,message=no"),
    *(lambda _: "dropped-source", lambda _: "dropped-source,reported=false", lambda _: "public"),
    *(lambda _: "internet-flipped", lambda _: "other-machine"),
    *(_one("stream-cut"), _one("stream-cut", "entries=3", "reset=true"), _one("stream-replayed")),
    *(_one("stream-endless"), _one("stream-silent", "seconds=3")),
    *(
        lambda _: "pages",
        lambda _: "page-circle",
        lambda _: "expired-url,uses=1",
        lambda _: "expired-url,form=html,code=404",
    ),
    *(_one("download-cut", "bytes=50000"), _one("download-cut", "bytes=5", "reset=true")),
    *(_one("download-short", "bytes=70000"), _one("wrong-length"), _one("wrong-length", "by=-3")),
    *(_one("error-page"), _one("etag-changes"), _one("no-range"), lambda _: "hostile-names"),
    *(lambda _: "download-slow,rate=2000000", lambda c: f"server-dies,seconds=1,{_when(c)}"),
    *(lambda _: "run-cancelled", lambda _: "run-cancelled,outputs=kept"),
    *(lambda _: "run-error", lambda _: "run-error,outputs=kept"),
)
"""Every fault that concerns one kernel, some in several forms."""

NOT_FOR_CAMPAIGNS = MAY_BE_REFUSED | {"hostile-names", "other-machine"}
"""Faults that end a campaign; the seeds of single runs cover them."""

PREEMPTED = "Your notebook was preempted."
"""Kaggle's words for a run that it ends itself: a campaign tries it again."""

CAMPAIGN_FAULTS: tuple[Callable[[Chance], str], ...] = (
    lambda c: f"run-error,message={PREEMPTED},at={c.randint(1, 3)}",
    lambda c: f"run-error,message={PREEMPTED},at={c.randint(1, 3)},times=2",
    lambda c: f"run-timed-out,at={c.randint(1, 3)}",
    lambda c: f"run-cancelled,outputs=kept,at={c.randint(1, 3)}",
    lambda c: f"lost-after,at={c.randint(1, 3)}",
    lambda c: f"lost-before,at={c.randint(1, 3)}",
    lambda c: f"session-cap,at={c.randint(1, 3)},times={c.randint(1, 2)}",
)
"""Faults that concern campaigns most; each is drawn twice as often as one of the others."""


def campaign_faults(chance: Chance) -> tuple[str, ...]:
    """Some faults for a campaign."""
    sure = [make(Chance(1)).partition(",")[0] for make in FAULTS]
    known = [m for m, name in zip(FAULTS, sure, strict=True) if name not in NOT_FOR_CAMPAIGNS]
    count = chance.choice([0, 1, 2, 2, 3, 4])
    return tuple(
        chance.choice([*known, *CAMPAIGN_FAULTS, *CAMPAIGN_FAULTS])(chance) for _ in range(count)
    )
