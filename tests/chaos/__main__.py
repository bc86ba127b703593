"""`python -m tests.chaos`: run seeds, print the figures; exit 1 if a promise was broken."""

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.chaos.campaigns import CampaignPlan, run_campaign
from tests.chaos.case import TerminalEnd, control, run_seed
from tests.chaos.plan import Plan

ROOT = Path(__file__).parents[2]
Kind = Literal["run", "chain", "sweep"]
KINDS: tuple[Kind, ...] = ("run", "chain", "sweep")
INPUTS = ROOT / "tests" / "samples" / "inputs"


@dataclass(frozen=True)
class SeedResult:
    """The result of one seed."""

    kind: Kind
    plan: Plan | CampaignPlan
    ends: list[TerminalEnd]
    broken: list[str]
    struck: collections.Counter[str]
    """How often each fault has struck."""

    versions: int
    seconds: float


def main() -> int:
    """Run the seeds and print the results."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--jobs", type=int, default=3, help="local Kaggles in parallel")
    parser.add_argument("-v", "--verbose", action="store_true", help="print how each seed ended")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        action="append",
        help="of the seeds, one after the other (all three)",
    )
    options = parser.parse_args()
    started = time.monotonic()
    results = []
    seeds = range(options.seed, options.seed + options.runs)
    for one in run_seeds(seeds, options.jobs, options.kind or KINDS):
        results.append(one)
        if options.verbose or one.broken:
            print(report(one), flush=True)
    print(figures(results, time.monotonic() - started))
    return 1 if any(one.broken for one in results) else 0


def run_seeds(
    seeds: Iterable[int], jobs: int, kinds: Sequence[Kind] = KINDS
) -> Iterator[SeedResult]:
    """Run seeds on `jobs` local Kaggles; yields each result when the seed has ended.

    A seed is of one kind: that of its number, divided by the number of kinds.
    """
    fork = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        concurrent.futures.ProcessPoolExecutor(
            jobs, mp_context=fork, initializer=_Worker.open, initargs=(folder,)
        ) as pool,
    ):
        for one in concurrent.futures.as_completed(
            [pool.submit(_run, seed, kinds[seed % len(kinds)]) for seed in seeds]
        ):
            yield one.result()


def report(one: SeedResult) -> str:
    """A seed and how it ended, in some lines."""
    plan = one.plan
    faults = " ".join(plan.faults) or "no fault"
    lines = [f"{one.kind} {plan.seed} ({one.seconds:.0f} s): {plan.users}; {faults}"]
    lines += [f"    {end.code}: {end.message or 'verified'}" for end in one.ends]
    return "\n".join([*lines, *(f"    BROKEN {broken}" for broken in one.broken)])


def figures(results: list[SeedResult], seconds: float) -> str:
    """The figures of all seeds."""
    codes = collections.Counter(e.code for one in results for e in one.ends[:-1])
    last = collections.Counter(one.ends[-1].code for one in results)
    struck = sum((one.struck for one in results), collections.Counter())
    broken = [one for one in results if one.broken]
    lines = [
        f"{len(results)} seeds in {seconds:.0f} s: "
        f"{sum(one.versions for one in results)} versions, {sum(struck.values())} faults struck",
        "terminals by exit code: " + _counted(codes),
        "last pull, without faults: " + _counted(last),
        "faults: " + _counted(struck),
        f"promises broken: {len(broken)}",
    ]
    again = [
        f"    python -m tests.chaos -v --runs 1 --seed {one.plan.seed} --kind {one.kind}"
        for one in broken
    ]
    return "\n".join([*lines, *again])


def _counted(counter: collections.Counter[str] | collections.Counter[int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items())) or "none"


class _Worker:
    """A worker's folder and local Kaggle, which ends with the worker: then its stdin closes."""

    @classmethod
    def open(cls, root: str) -> None:
        cls.folder = Path(tempfile.mkdtemp(dir=root))
        cls.state = cls.folder / "state"
        ready = cls.folder / "ready.json"
        cls.kaggle = subprocess.Popen(
            [
                *(sys.executable, "-m", "kernelkit.emulator", "--port", "0", "--lifeline"),
                *("--plugin", "tests.replay:RecordAndReplay", "--replay", str(Path(root) / "runs")),
                *("--inputs", str(INPUTS), "--ready-file", str(ready), "--state", str(cls.state)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline and cls.kaggle.poll() is None:
            time.sleep(0.05)
        cls.endpoint = str(json.loads(ready.read_text())["endpoint"])


def _run(seed: int, kind: Kind) -> SeedResult:
    started = time.monotonic()
    folder = _Worker.folder / f"seed-{seed}"
    folder.mkdir()
    place = (folder, _Worker.endpoint, _Worker.state)
    plan: Plan | CampaignPlan
    if kind == "run":
        plan, ends, broken = run_seed(seed, *place)
    else:
        plan, ends, broken = run_campaign(seed, kind, *place)
    journal = control("GET", f"{_Worker.endpoint}/emulator/journal").json()
    account = f"live-owner-{seed}" if kind == "run" else f"owner-{seed}"
    requests = [request for request in journal["requests"] if request["account"] == account]
    struck = collections.Counter(fault for request in requests for fault in request["faults"])
    versions = len([effect for effect in journal["effects"] if effect["account"] == account])
    return SeedResult(kind, plan, ends, broken, struck, versions, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
