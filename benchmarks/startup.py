"""How long `kernelkit` takes to start, compared with the official client.

    python -m benchmarks.startup

Each command runs ten times, in turns, and the median of its CPU time (user and system) counts:
wall-clock time would include what else the machine does. Exits with 1 if `kernelkit --help` or
`--version` needs more than `kaggle --help`, or rendering ten modules more than 1.4 times as much.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 10
MODULES = 10
LIMITS = {"kernelkit --help": 1.0, "kernelkit --version": 1.0, "kernelkit render": 1.4}
REFERENCE = "kaggle --help"

PROJECT = """\
[tool.kernelkit]
package = "pkg"
entry = "pkg.module0:run"
outputs = ["out.txt"]

[tool.kernelkit.kernel]
id = "ten-modules"
title = "Ten modules"
"""


def write_project(folder: Path) -> None:
    """Write a project of ten small modules that import one another."""
    (folder / "pkg").mkdir()
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (folder / "pkg" / "__init__.py").write_text('"""Ten modules."""\n', encoding="utf-8")
    for number in range(MODULES - 1):
        following = f"from pkg import module{number + 1}  # noqa: F401\n" if number < 8 else ""
        source = (
            f'"""Module {number}."""\n\n{following}\n\ndef run(**parameters):\n    """Run."""\n'
        )
        (folder / "pkg" / f"module{number}.py").write_text(source, encoding="utf-8")


def cpu_seconds(command: list[str], folder: Path) -> float:
    """CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("KAGGLE", "KERNELKIT"))}
    subprocess.run(
        command,
        cwd=folder,
        env={**environment, "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure, print a table, compare with the limits."""
    scripts = Path(sys.executable).parent
    commands = {name: [str(scripts / name.split()[0]), *name.split()[1:]] for name in LIMITS}
    commands[REFERENCE] = [str(scripts / "kaggle"), "--help"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder))
        for _ in range(ROUNDS + 1):
            for name, command in commands.items():
                seconds[name].append(cpu_seconds(command, Path(folder)))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # 1: cold
    failed = False
    for name, median in medians.items():
        ratio = median / medians[REFERENCE]
        limit = LIMITS.get(name)
        failed |= limit is not None and ratio > limit
        note = f"at most {limit:.1f}" if limit else ""
        print(f"{name:20} {median:6.3f} s  {ratio:5.2f} x  {note}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
