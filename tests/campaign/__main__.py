"""`python -m tests.campaign`: play seeds, print the figures; exit 1 where a promise was broken."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.case import Ended, control, play
from tests.campaign.plan import Plan

INPUTS = Path(__file__).parent.parent / "samples" / "inputs"


@dataclass(frozen=True)
class Played:
    """One seed, when it is over."""

    plan: Plan
    ended: list[Ended]
    broken: list[str]
    struck: collections.Counter[str]
    """How often each fault has struck."""

    versions: int
    seconds: float


def main() -> int:
    """Play, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--jobs", type=int, default=3, help="local Kaggles side by side")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how each seed ended")
    options = parser.parse_args()
    started = time.monotonic()
    played = []
    for one in campaign(range(options.seed, options.seed + options.runs), options.jobs):
        played.append(one)
        if options.verbose or one.broken:
            print(told(one), flush=True)
    print(figures(played, time.monotonic() - started))
    return 1 if any(one.broken for one in played) else 0


def campaign(seeds: Iterable[int], jobs: int) -> Iterator[Played]:
    """Play seeds, `jobs` local Kaggles side by side, each told as it ends."""
    fork = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as folder,
        concurrent.futures.ProcessPoolExecutor(
            jobs, mp_context=fork, initializer=_Place.open, initargs=(folder,)
        ) as pool,
    ):
        for one in concurrent.futures.as_completed([pool.submit(_play, seed) for seed in seeds]):
            yield one.result()


def told(one: Played) -> str:
    """A seed's story in some lines."""
    plan = one.plan
    people = f"{len(plan.terminals)} terminals" + (", elsewhere too" if plan.elsewhere else "")
    people += f", one killed after {plan.killed_after:.1f} s" if plan.killed_after else ""
    lines = [
        f"seed {plan.seed} ({one.seconds:.0f} s): {people}; {' '.join(plan.faults) or 'no fault'}"
    ]
    lines += [f"    {ended.code}: {ended.words or 'verified'}" for ended in one.ended]
    return "\n".join([*lines, *(f"    BROKEN {broken}" for broken in one.broken)])


def figures(played: list[Played], seconds: float) -> str:
    """What all seeds came to."""
    codes = collections.Counter(e.code for one in played for e in one.ended[:-1])
    home = collections.Counter(one.ended[-1].code for one in played)
    struck = sum((one.struck for one in played), collections.Counter())
    broken = [one for one in played if one.broken]
    lines = [
        f"{len(played)} seeds in {seconds:.0f} s: {sum(one.versions for one in played)} versions, "
        f"{sum(struck.values())} faults struck",
        "terminals by exit code: " + _counted(codes),
        "brought home, the faults gone: " + _counted(home),
        "faults: " + _counted(struck),
        f"promises broken: {len(broken)}",
    ]
    again = [f"    python -m tests.campaign -v --runs 1 --seed {one.plan.seed}" for one in broken]
    return "\n".join([*lines, *again])


def _counted(counter: collections.Counter[str] | collections.Counter[int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items())) or "none"


class _Place:
    """A worker's own folder and local Kaggle, which ends with the worker: its lifeline is cut."""

    @classmethod
    def open(cls, root: str) -> None:
        cls.folder = Path(tempfile.mkdtemp(dir=root))
        cls.state = cls.folder / "state"
        ready = cls.folder / "ready.json"
        cls.kaggle = subprocess.Popen(
            [
                *(sys.executable, "-m", "kernelkit.emulator", "--port", "0", "--lifeline"),
                *("--inputs", str(INPUTS), "--ready-file", str(ready), "--state", str(cls.state)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline and cls.kaggle.poll() is None:
            time.sleep(0.05)
        cls.endpoint = str(json.loads(ready.read_text())["endpoint"])


def _play(seed: int) -> Played:
    started = time.monotonic()
    folder = _Place.folder / f"seed-{seed}"
    folder.mkdir()
    plan, ended, broken = play(seed, folder, _Place.endpoint, _Place.state)
    journal = control("GET", f"{_Place.endpoint}/emulator/journal").json()
    mine = f"owner-{seed}"
    requests = [request for request in journal["requests"] if request["account"] == mine]
    struck = collections.Counter(error for request in requests for error in request["faults"])
    versions = len([effect for effect in journal["effects"] if effect["account"] == mine])
    return Played(plan, ended, broken, struck, versions, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
