"""What a sweep costs on this machine: `make bench-sweep`, or `python -m benchmarks.sweep`.

`kernelkit sweep` runs 50, 100 and 200 trials over two lanes on a local Kaggle, each time with a new
database. The first run of the kernel is executed, and all others are replayed from it (see
`tests/replay.py`), so the time is that of the orchestrator: rendering, pushing, watching, pulling,
verifying, and Optuna's database. The last part measures the calls to Kaggle during a run that
takes a while, with a faster clock, because those depend on time and not on the number of trials.
"""

from __future__ import annotations

import argparse
import collections
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import urlopen

from benchmarks.measure import ROOT, Usage, exponent, measured
from benchmarks.report import circumstances, markdown_table
from kernelkit import __version__, workflow
from kernelkit.config import load_config
from kernelkit.emulator.runner import EmulatedSession, Isolation
from kernelkit.emulator.state import KernelVersion
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, Timeouts
from tests.replay import RecordAndReplay, ReplaySession

LANES = 2
BUDGET = 600
"""Calls to Kaggle in an hour of a run. Kaggle does not publish its limit; people report status 429
for several calls a second [A]."""
CALLS_PER_TRIAL = 30
LIMIT = 3600.0
"""Seconds of one sweep, on a machine that does other work too."""
WATCHED = 60
"""Seconds of the run whose calls are counted."""
FASTER = 60
"""The clock of the watch: its pauses are shorter by this, so that a minute counts as an hour."""

PROJECT = f"""
[tool.kernelkit]
package = "trial"
entry = "trial:run"
outputs = ["result.csv"]
metric = "score"
metric_goal = "maximize"

[tool.kernelkit.kernel]
id = "sweep-benchmark"
title = "Sweep benchmark"

[tool.kernelkit.parameters]
output_dir = "kaggle://working"
seconds = 0

[tool.kernelkit.sweep]
trials = 200
sampler = "tpe"
sessions = {LANES}

[tool.kernelkit.sweep.parameters]
rate = {{ low = 0.0001, high = 0.1, log = true }}
width = [16, 32, 64, 128]
"""

PACKAGE = '''"""A trial that reports ten epochs."""

import json
import time
from pathlib import Path


def run(output_dir, rate, width, seconds=0):
    for epoch in range(1, 11):
        time.sleep(seconds / 10)
        event = {"event": "epoch", "epoch": epoch, "epochs": 10, "score": epoch / 10}
        print(json.dumps(event), flush=True)
    Path(output_dir, "result.csv").write_text("score\\n1.0\\n")
'''


class ReplayOneRun(RecordAndReplay):
    """Replays the first run for every other one, whatever its parameters are."""

    def new_session(  # noqa: D102
        self, version: KernelVersion, isolation: Isolation, limit: float
    ) -> EmulatedSession:
        session = super().new_session(version, isolation, limit)
        if isinstance(session, ReplaySession) and "-lane-" in version.push.slug:
            session.replay_from("trial")
        return session


@dataclass(frozen=True)
class Cost:
    """What a sweep of `trials` trials has cost."""

    trials: int
    usage: Usage
    calls: collections.Counter[str]
    """Of each method of Kaggle's API."""

    database: int
    """Bytes of the database."""

    folders: int
    """Bytes of the folders of the runs."""

    @property
    def calls_per_trial(self) -> float:
        """All calls, divided by the trials."""
        return sum(self.calls.values()) / self.trials


def main() -> int:
    """Measure and print the tables; 1 if the sweep makes more calls than its budget."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with _local_kaggle(folder) as endpoint:
            _say("the run that is replayed")
            _sweep(folder / "first", endpoint, 1)
            costs = []
            for trials in options.trials:
                _say(f"{trials} trials")
                costs.append(_sweep(folder / f"of-{trials}", endpoint, trials))
            _say(f"a run of {options.watched} s, as if it were {options.watched} minutes")
            hourly = _calls_per_hour(folder / "watched", endpoint, options.watched)
    command = shlex.join(["python", "-m", "benchmarks.sweep", *sys.argv[1:]])
    print(circumstances([f"kernelkit {__version__}"], command))
    print("\n" + _table(costs))
    if len(costs) > 1:
        first, last = costs[0], costs[-1]
        sizes = first.trials, last.trials
        growth = exponent(sizes, (first.usage.cpu, last.usage.cpu))
        print(f"\nCPU time grows as the number of trials to the power of {growth:.2f}.")
    most = max(cost.calls_per_trial for cost in costs)
    per_hour = sum(hourly.values())
    print(f"\ncalls of a trial: {most:.1f} at most, of {CALLS_PER_TRIAL} allowed")
    print(f"calls in an hour of a run, for each lane: {per_hour:.0f}, of {BUDGET} allowed")
    print("    " + ", ".join(f"{name} {count:.0f}" for name, count in hourly.most_common()))
    return 1 if most > CALLS_PER_TRIAL or per_hour > BUDGET else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument(
        "--trials",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[50, 100, 200],
        help="numbers of trials, as 50,100,200",
    )
    parser.add_argument("--watched", type=int, default=WATCHED, help="seconds of a run")
    parser.add_argument("--folder", type=Path, help="where the runs are written")
    return parser.parse_args()


@contextmanager
def _local_kaggle(folder: Path) -> Iterator[str]:
    """The address of a local Kaggle that replays runs and counts calls."""
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "kernelkit.emulator", "--lifeline", "--ready-file", str(ready)]
    command += [
        "--plugin",
        "benchmarks.sweep:ReplayOneRun",
        "--replay",
        str(folder / "recorded"),
        "--state",
        str(folder / "state"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit("the local Kaggle does not start")
            time.sleep(0.05)
        yield str(json.loads(ready.read_text())["endpoint"])
    finally:
        process.terminate()
        process.wait()


def _project(folder: Path) -> Path:
    (folder / "trial").mkdir(parents=True)
    (folder / "trial" / "__init__.py").write_text(PACKAGE, encoding="utf-8")
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    return folder


def _sweep(folder: Path, endpoint: str, trials: int) -> Cost:
    """Run a sweep as a process of its own, under an account of its own."""
    project = _project(folder)
    command = [sys.executable, "-m", "kernelkit", "sweep", "--trials", str(trials), "--json"]
    account = ["env", f"KAGGLE_USERNAME={folder.name}", "KAGGLE_KEY=no-secret"]
    usage = measured([*account, *command, "--project", str(project), "--endpoint", endpoint], LIMIT)
    database = sum(path.stat().st_size for path in project.glob("runs/*/sweep.db*"))
    files = (path for path in project.glob("runs/*-lane-*/**/*") if path.is_file())
    folders = sum(path.stat().st_size for path in files)
    return Cost(trials, usage, _calls(endpoint, folder.name), database, folders)


def _calls(endpoint: str, account: str) -> collections.Counter[str]:
    """The calls that an account has made, by method."""
    with urlopen(f"{endpoint}/emulator/journal") as response:
        requests = json.load(response)["requests"]
    return collections.Counter(r["method"] for r in requests if r["account"] == account)


def _calls_per_hour(folder: Path, endpoint: str, seconds: int) -> collections.Counter[str]:
    """The calls of a run that is watched, while it runs, as if that were an hour."""
    project, account = _project(folder), folder.name
    usual = Timeouts()
    timeouts = replace(
        usual,
        stream=usual.stream / FASTER,
        quota=usual.quota / FASTER,
        longest_pause=usual.longest_pause / FASTER,
        first_pause=usual.longest_pause / FASTER,
    )
    credentials = Credentials(account, "the benchmark", key="no-secret")
    kaggle = Kaggle(credentials, endpoint, timeouts=timeouts)
    settings = [f"seconds={seconds}", "rate=0.1", "width=16"]
    config = load_config(project, settings=settings, environment={})
    record = workflow.push(config, kaggle).folder
    watcher = threading.Thread(target=workflow.watch, args=(kaggle, record), daemon=True)
    watcher.start()
    time.sleep(seconds / 3)  # the beginning, with more calls, belongs to the calls of a trial
    before, began = _calls(endpoint, account), time.monotonic()
    time.sleep(seconds / 2)
    after, ended = _calls(endpoint, account), time.monotonic()
    watcher.join()
    hours = (ended - began) * FASTER / 3600
    return collections.Counter(
        {name: round((after[name] - before[name]) / hours) for name in after}
    )


def _table(costs: list[Cost]) -> str:
    head = ["trials", "wall s", "CPU s", "CPU s a trial", "peak MB", "calls a trial"]
    head += ["database kB", "kB a trial", "folders kB a trial"]
    lines = [
        [
            str(cost.trials),
            f"{cost.usage.wall:.0f}",
            f"{cost.usage.cpu:.1f}",
            f"{cost.usage.cpu / cost.trials:.3f}",
            f"{cost.usage.peak_bytes / 1e6:.0f}",
            f"{cost.calls_per_trial:.1f}",
            f"{cost.database / 1e3:,.0f}",
            f"{cost.database / 1e3 / cost.trials:.1f}",
            f"{cost.folders / 1e3 / cost.trials:.1f}",
        ]
        for cost in costs
    ]
    return markdown_table(head, lines)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
