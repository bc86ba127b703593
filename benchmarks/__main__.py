"""Compare rendering with other tools, and run their results: `make bench`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.measure import CommandFailed, Usage, measured, render_alone
from benchmarks.packages import write_package
from benchmarks.tools import Kernelkit, Outcome, Package, Project, Repo2nb, Tool, peers
from kernelkit.config import Config

SIXTEEN = Project(
    Path(__file__).parent / "sixteen",
    hidden_modules=("sixteen.plugins.found_by_name",),
    data_suffixes=(".csv",),
)
SLOW_SECONDS = 30.0  # a tool that takes longer is measured fewer times
SLOW_REPETITIONS = 2
INSTALL = "make build/bench-venv/all.done"


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    tools = [*_layouts(), *peers(options.peers)]
    missing = sorted({"stickytape", "repo2nb"} - {tool.name for tool in tools})
    if missing:
        _say(f"not installed: {', '.join(missing)} (`{INSTALL}`)")
    with tempfile.TemporaryDirectory() as folder:
        parts = _measure(tools, options.sizes, options.repetitions, Path(folder))
    versions = list(dict.fromkeys(f"{tool.name.split(',')[0]} {tool.version}" for tool in tools))
    versions += [f"{name} not installed" for name in missing]
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    text = "\n".join(f"{part}\n" for part in [report.circumstances(versions, command), *parts])
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[10, 100, 1000],
        help="numbers of modules, as 10,100,1000",
    )
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path("build/bench-venv/bin/python"),
        help="the interpreter of the environment that holds the other tools",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    return parser.parse_args()


def _layouts() -> list[Tool]:
    """The tools to measure; kernelkit once per layout."""
    known = "layout" in Config.model_fields
    return [Kernelkit("cells"), Kernelkit("compressed")] if known else [Kernelkit()]


def _measure(tools: list[Tool], sizes: list[int], repetitions: int, folder: Path) -> list[str]:
    """The report's sections."""
    rows: list[report.Row] = []
    alone: list[report.Alone] = []
    for modules in sizes:
        projects = [_project(folder / f"{modules}-{n}", modules, t) for n, t in enumerate(tools)]
        rows += _whole_processes(tools, projects, modules, repetitions)
        for tool, project in zip(tools, projects, strict=True):
            if isinstance(tool, Kernelkit):
                _say(f"{modules} modules: render alone, {tool.name}")
                taken = render_alone(project.folder, repetitions)
                alone.append(report.Alone(modules, tool.layout, *taken))
    alone.sort(key=lambda row: (row.layout, row.modules))
    return [
        f"## Whole processes\n\n{report.whole_processes(rows)}",
        f"## `render` alone\n\n{report.render_alone(alone)}",
        f"## Sixteen checks\n\n{report.sixteen(_checks(tools, folder))}",
    ]


def _project(folder: Path, modules: int, tool: Tool) -> Project:
    """The generated package in a separate folder per tool, because repo2nb writes files there."""
    write_package(folder, modules, tool.layout)
    return Project(folder)


def _whole_processes(
    tools: list[Tool], projects: list[Project], modules: int, repetitions: int
) -> list[report.Row]:
    """Build once as a warm-up, then in turns; then run the results."""
    outs = [project.folder.with_name(f"{project.folder.name}-made") for project in projects]
    errors: dict[str, str] = {}
    usages: dict[str, list[Usage]] = {tool.name: [] for tool in tools}
    for turn in range(repetitions + 1):
        _say(f"{modules} modules: turn {turn} of {repetitions}")
        for tool, project, out in zip(tools, projects, outs, strict=True):
            taken = usages[tool.name]
            slow = any(usage.wall > SLOW_SECONDS for usage in taken)
            if tool.name in errors or (slow and len(taken) > SLOW_REPETITIONS):
                continue
            try:
                taken.append(measured(tool.command(project, out)))
            except CommandFailed as error:
                errors[tool.name] = str(error)
    expected = Package().run(projects[0])
    rows = []
    for tool, out in zip(tools, outs, strict=True):
        if tool.name in errors:
            rows.append(report.Row(modules, tool.name, (), 0, "not built", errors[tool.name]))
            continue
        _say(f"{modules} modules: run what {tool.name} made")
        verdict, note = _verdict(tool.run(out), expected)
        if isinstance(tool, Repo2nb) and note:
            by_hand, another = _verdict(tool.run_by_hand(out), expected)
            verdict = f"{verdict}; by hand {by_hand}"
            note = "; by hand: ".join([note, *([another] if another else [])])
        size = tool.artefact(out).stat().st_size
        counted = tuple(usages[tool.name][1:])
        rows.append(report.Row(modules, tool.name, counted, size, verdict, note))
    return rows


def _verdict(found: Outcome, expected: Outcome) -> tuple[str, str]:
    """Whether the result is the package's, and what happened otherwise."""
    if found.error:
        return "no", found.error
    if found.result != expected.result:
        return "no", f"it gives {found.result}, the package {expected.result}"
    return "yes", ""


def _checks(tools: list[Tool], folder: Path) -> list[report.Column]:
    """The checks in the real package, and in the result of each tool."""
    columns = [_column(Package.name, Package().run(SIXTEEN))]
    for number, tool in enumerate(tools):
        _say(f"sixteen checks: {tool.name}")
        project = _sixteen(folder / f"sixteen-{number}", tool)
        out = folder / f"sixteen-{number}-made"
        try:
            measured(tool.command(project, out))
        except CommandFailed as error:
            columns.append(report.Column(tool.name, {}, f"it cannot be built: {error}"))
            continue
        columns.append(_column(tool.name, tool.run(out)))
        if isinstance(tool, Repo2nb) and not columns[-1].passed:
            by_hand = "the folders made first, going on past cells that fail"
            columns.append(_column(f"{tool.name} by hand", tool.run_by_hand(out), by_hand))
    return columns


def _sixteen(folder: Path, tool: Tool) -> Project:
    """A copy in a separate folder, with the tool's layout."""
    shutil.copytree(SIXTEEN.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if tool.layout:
        file = folder / "pyproject.toml"
        head = "[tool.kernelkit]\n"
        text = file.read_text(encoding="utf-8").replace(head, f'{head}layout = "{tool.layout}"\n')
        file.write_text(text, encoding="utf-8")
    return Project(folder, SIXTEEN.hidden_modules, SIXTEEN.data_suffixes)


def _column(name: str, found: Outcome, note: str = "") -> report.Column:
    return report.Column(name, found.result or {}, found.error or note)


def _say(message: str) -> None:
    """Report progress on stderr: a benchmark takes minutes."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
