"""Measures the time and memory of a command, and the time of `render` alone.

Run as `python -m benchmarks.measure PROJECT REPETITIONS` it prints the seconds of each `render` in
this process, wall-clock and CPU, pinned to one core where the system can do that.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 600.0  # the slowest tool takes a few


class CommandFailed(Exception):
    """A measured command failed; the message is its last line."""


@dataclass(frozen=True)
class Usage:
    """The time and memory of one process."""

    wall: float
    """Seconds."""

    cpu: float
    """Seconds."""

    peak_bytes: int


@dataclass(frozen=True)
class Spread:
    """Repeated measurements."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def least(self) -> float:
        """The minimum."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The maximum."""
        return max(self.values)


def measured(command: list[str], limit: float = LIMIT_SECONDS) -> Usage:
    """Run a command in a fresh process, which may take `limit` seconds.

    Raises:
        CommandFailed: its exit status is not 0.
    """
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).parent / "launch.py"), str(limit)]
    done = subprocess.run([*launcher, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:  # the program does not exist
        raise CommandFailed(last_line(done.stderr))
    found = json.loads(done.stdout)
    if found["status"] != 0:  # below 0 the signal, as when it took too long
        raise CommandFailed(last_line(done.stderr) or f"exit status {found['status']}")
    return Usage(found["wall"], found["cpu"], found["peak_bytes"])


def render_alone(project: Path, repetitions: int) -> tuple[Spread, Spread]:
    """Seconds of `workflow.render`, without the interpreter's start and the imports.

    Wall-clock and CPU; they differ if other work shares the core.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", str(project), str(repetitions)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall, cpu = zip(*json.loads(done.stdout), strict=True)
    return Spread(wall), Spread(cpu)


def exponent(sizes: tuple[int, int], seconds: tuple[float, float]) -> float:
    """The exponent x if time grows as size to the power of x; 1 is linear."""
    return math.log(seconds[1] / seconds[0]) / math.log(sizes[1] / sizes[0])


def last_line(text: str) -> str:
    """The last line with text, where programs report errors."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def can_pin() -> bool:
    """Whether this system can pin a process to one core."""
    return hasattr(os, "sched_setaffinity")


def main() -> None:
    """Render repeatedly and print the seconds."""
    # Only here: the benchmarks of src_salt also run where kernelkit is not installed.
    from kernelkit import workflow
    from kernelkit.config import load_config

    project, repetitions = Path(sys.argv[1]), int(sys.argv[2])
    if can_pin():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    config = load_config(project, environment={})
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter(), time.process_time()
        workflow.render_kernel(config)
        seconds.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
