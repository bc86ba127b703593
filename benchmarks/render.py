"""How long rendering takes, and how it grows: made-up packages of 10, 100 and 1,000 modules.

    make bench

Each module has 100 lines and imports the one before it. A row: the median of several renders in
one process, the spread, and the size of the notebook as it is sent.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from kernelkit import pipeline
from kernelkit.config import Config, load_config

SIZES = (10, 100, 1000)  # modules
RUNS = 7

PROJECT = """
[tool.kernelkit]
package = "made_up"
entry = "made_up.module_0000:run"
outputs = ["out.txt"]
[tool.kernelkit.kernel]
id = "made-up"
title = "Made up"
"""


def main() -> None:
    """Print the table."""
    print(f"{'modules':>8} {'median s':>9} {'min':>7} {'max':>7} {'ms a module':>12} {'bytes':>11}")
    for modules in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            config = _project(Path(folder), modules)
            size = len(pipeline.render(config).payload)
            seconds = sorted(_render_seconds(config) for _ in range(RUNS))
        median = statistics.median(seconds)
        print(
            f"{modules:>8} {median:>9.3f} {seconds[0]:>7.3f} {seconds[-1]:>7.3f} "
            f"{median / modules * 1000:>12.2f} {size:>11,}"
        )


def _project(folder: Path, modules: int) -> Config:
    package = folder / "made_up"
    package.mkdir()
    (package / "__init__.py").touch()
    for number in range(modules):
        lines = [f'"""Module {number} of a made-up package."""']
        lines += [f"from made_up import module_{number - 1:04}"] if number else ["import os"]
        lines += [f"def step_{line}(x):\n    return x * {line}" for line in range(49)]
        lines += ["def run(**parameters): ..."]
        (package / f"module_{number:04}.py").write_text("\n".join(lines) + "\n")
    (folder / "pyproject.toml").write_text(PROJECT)
    return load_config(folder, environment={})


def _render_seconds(config: Config) -> float:
    started = time.perf_counter()
    pipeline.render(config)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
