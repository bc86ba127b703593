"""Compare a pull of large outputs with the official client: `python -m benchmarks.pull`.

A local Kaggle runs a kernel that writes random bytes. Then `kernelkit pull` and
`kaggle kernels output` download them in turns, each a new process into an empty folder;
kernelkit's time includes its verification of every file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Spread, Usage, measured
from benchmarks.report import circumstances, markdown_table
from kernelkit import __version__, workflow
from kernelkit.config import load_config
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.local import local_kaggle
from kernelkit.kaggle.types import Credentials
from kernelkit.runs.store import RunFolder

MEMORY_LIMIT_MB = 150  # the limit for a pull, whatever the size of the outputs

PROJECT = """
[tool.kernelkit]
package = "large"
entry = "large:run"
outputs = [{outputs}]

[tool.kernelkit.kernel]
id = "large-outputs"
title = "Large outputs"

[tool.kernelkit.parameters]
megabytes = {megabytes}
"""

PACKAGE = '''"""Writes files of random bytes."""

import os

def run(megabytes):
    for name in ({outputs},):
        with open(name, "wb") as stream:
            for _ in range(megabytes):
                stream.write(os.urandom(1_000_000))
'''


def main() -> None:
    """Run the kernel, download in turns, and print the table."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        project = _project(folder / "project", options.files, options.megabytes)
        with local_kaggle(None) as server:
            record = _run(project, server.endpoint)
            usages = _measure(project, record, server.endpoint, folder / "kaggle", options.rounds)
    size = options.files * options.megabytes * 1_000_000
    command = shlex.join(["python", "-m", "benchmarks.pull", *sys.argv[1:]])
    tools = [f"kernelkit {__version__}", f"kaggle {importlib.metadata.version('kaggle')}"]
    print(circumstances(tools, command))
    print(f"\n{options.files} files, {size / 1e9:.2f} GB; medians of {options.rounds}.\n")
    print(
        markdown_table(
            ["command", "peak MB", "most", "wall s", "least to most", "CPU s", "MB a second"],
            [_line(name, taken, size) for name, taken in usages.items()],
        )
    )
    most = Spread(tuple(usage.peak_bytes for usage in usages["kernelkit pull"])).most / 1e6
    verdict = "under" if most < MEMORY_LIMIT_MB else "**over**"
    print(f"\nkernelkit's peak of {most:.0f} MB is {verdict} the {MEMORY_LIMIT_MB} MB aimed at.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pull", description=__doc__)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=512, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on a disk with three times the room")
    return parser.parse_args()


def _project(folder: Path, files: int, megabytes: int) -> Path:
    outputs = ", ".join(f'"part{number}.bin"' for number in range(files))
    (folder / "large").mkdir(parents=True)
    (folder / "large" / "__init__.py").write_text(PACKAGE.format(outputs=outputs), encoding="utf-8")
    project = PROJECT.format(outputs=outputs, megabytes=megabytes)
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    return folder


def _run(project: Path, endpoint: str) -> RunFolder:
    """A complete run that was not pulled."""
    kaggle = Kaggle(Credentials("rehearsal", "the benchmark", key="no-secret"), endpoint)
    record = workflow.push(load_config(project, environment={}), kaggle).folder
    end = workflow.watch(kaggle, record)
    if end.state != "complete":
        raise SystemExit(f"the run has failed: {end.failure}")
    return record


def _measure(
    project: Path, record: RunFolder, endpoint: str, other: Path, rounds: int
) -> dict[str, list[Usage]]:
    """Both clients in turns; the first download of each is a warm-up."""
    ours = [
        *("env", f"KERNELKIT_ENDPOINT={endpoint}"),
        *(sys.executable, "-m", "kernelkit", "pull", "--project", str(project)),
    ]
    theirs = [
        *("env", "KAGGLE_API_ENVIRONMENT=LOCALHOST", f"http_proxy={endpoint}", "no_proxy="),
        *("KAGGLE_USERNAME=rehearsal", "KAGGLE_KEY=no-secret", f"KAGGLE_CONFIG_DIR={project}"),
        str(Path(sys.executable).with_name("kaggle")),
        *("kernels", "output", "rehearsal/large-outputs", "-p", str(other)),
    ]
    usages: dict[str, list[Usage]] = {"kernelkit pull": [], "kaggle kernels output": []}
    kept = {"bundle.json", "push.json"}
    for turn in range(rounds + 1):
        for name, command in zip(usages, (ours, theirs), strict=True):
            print(f"turn {turn} of {rounds}: {name}", file=sys.stderr, flush=True)
            taken = measured(command)
            usages[name] += [taken] if turn else []
        wrong = _differences(record.path, other)
        if wrong:
            raise SystemExit(f"the clients downloaded different files: {wrong}")
        for path in record.path.iterdir():
            if path.name not in kept:
                path.unlink()
        shutil.rmtree(other)
    return usages


def _differences(ours: Path, theirs: Path) -> list[str]:
    """Outputs whose sizes differ between the two clients; kernelkit's are verified."""
    names = [path.name for path in ours.glob("*.bin")]
    sizes = [[(folder / name).stat().st_size for name in names] for folder in (ours, theirs)]
    return [] if names and sizes[0] == sizes[1] else names or ["nothing"]


def _line(name: str, usages: list[Usage], size: int) -> list[str]:
    wall = Spread(tuple(usage.wall for usage in usages))
    cpu = Spread(tuple(usage.cpu for usage in usages))
    peak = Spread(tuple(usage.peak_bytes for usage in usages))
    return [
        name,
        f"{peak.median / 1e6:,.0f}",
        f"{peak.most / 1e6:,.0f}",
        f"{wall.median:.1f}",
        f"{wall.least:.1f} to {wall.most:.1f}",
        f"{cpu.median:.1f}",
        f"{size / 1e6 / wall.median:,.0f}",
    ]


if __name__ == "__main__":
    main()
