"""The measurements as Markdown that also reads well on a terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.measure import Spread, Usage, can_pin, exponent
from benchmarks.packages import LINES

TARGET_MODULES, TARGET_SECONDS = 1000, 2.0


@dataclass(frozen=True)
class Row:
    """One tool on one package."""

    modules: int
    tool: str
    usages: tuple[Usage, ...]
    """Empty if the tool could not build."""

    artefact_bytes: int
    verdict: str
    """Whether the result runs and returns the package's number."""

    note: str = ""
    """The error, if it failed."""

    @property
    def wall(self) -> Spread:
        """Wall-clock seconds of the whole process."""
        return Spread(tuple(usage.wall for usage in self.usages))

    @property
    def cpu(self) -> Spread:
        """CPU seconds of the whole process."""
        return Spread(tuple(usage.cpu for usage in self.usages))

    @property
    def peak_bytes(self) -> Spread:
        """Peak memory of the whole process."""
        return Spread(tuple(usage.peak_bytes for usage in self.usages))


@dataclass(frozen=True)
class Alone:
    """`render` alone on one package."""

    modules: int
    layout: str
    wall: Spread
    """Seconds."""

    cpu: Spread
    """Seconds."""


@dataclass(frozen=True)
class Column:
    """The results of the checks with one tool."""

    name: str
    passed: dict[str, bool]
    """Check → whether it passed; empty if nothing ran."""

    note: str = ""
    """The error, or how the result was corrected by hand."""


def circumstances(tools: list[str], command: str, further: Mapping[str, str] | None = None) -> str:
    """Date, machine and versions."""
    cpus = f"{os.cpu_count()}, {_processor()}"
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"`{command}`",
        "tools": ", ".join(tools),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "CPUs": f"{cpus}, load {os.getloadavg()[0]:.1f} at the end",
        **(further or {}),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def whole_processes(rows: list[Row]) -> str:
    """Each tool's command as a new process; times also relative to the first tool's."""
    lines = []
    for row in rows:
        first = next(other for other in rows if other.modules == row.modules)
        measures = [""] * 6
        if row.usages:
            wall = row.wall
            measures = [
                f"{wall.median:.2f}",
                f"{wall.least:.2f} to {wall.most:.2f}",
                f"{row.cpu.median:.2f}",
                f"{row.peak_bytes.median / 1e6:.0f}",
                f"{wall.median / first.wall.median:.2f}" if first.usages else "",
                f"{row.artefact_bytes / 1e3:,.0f}",
            ]
        lines.append([f"{row.modules:,}", row.tool, *measures, row.verdict])
    head = [
        "modules",
        "tool",
        "wall s",
        "least to most",
        "CPU s",
        "peak MB",
        "time, kernelkit's = 1",
        "made, kB",
    ]
    repetitions = sorted({len(row.usages) for row in rows if row.usages})
    words = (
        f"Modules of {LINES} lines. The tools take turns, a fresh process each time; medians of "
        f"{' or '.join(map(str, repetitions))} after one that is not counted."
    )
    table = markdown_table([*head, "runs correctly"], lines)
    return "\n".join([words, "", table, *_notes([(row.tool, row.note) for row in rows])])


def render_alone(rows: list[Alone]) -> str:
    """The time of `render` in a running process, and how it grows."""
    lines = []
    for before, row in pairwise([None, *rows]):
        assert row is not None
        grows = ""
        if before is not None and before.layout == row.layout:
            medians = before.cpu.median, row.cpu.median
            grows = f"{exponent((before.modules, row.modules), medians):.2f}"
        lines.append(
            [
                *([row.layout] if any(other.layout for other in rows) else []),
                f"{row.modules:,}",
                f"{row.wall.median:.3f}",
                f"{row.wall.least:.3f} to {row.wall.most:.3f}",
                f"{row.cpu.median:.3f}",
                f"{row.cpu.median / row.modules * 1000:.2f}",
                grows,
            ]
        )
    measures = ["wall s", "least to most", "CPU s", "CPU ms a module", "grows as modules to the"]
    head = ["modules", *measures]
    head = [*(["layout"] if any(row.layout for row in rows) else []), *head]
    core = "one core" if can_pin() else "this system cannot pin a process to one core"
    words = [f"In a running process ({core}), without the interpreter's start and the imports."]
    for row in rows:
        if row.modules == TARGET_MODULES:
            met = "under" if row.wall.median < TARGET_SECONDS else "not under"
            words.append(
                f"{row.modules:,} modules{f' ({row.layout})' if row.layout else ''}: "
                f"{row.wall.median:.2f} s, {met} the {TARGET_SECONDS:.0f} s aimed at."
            )
    return f"{' '.join(words)}\n\n{markdown_table(head, lines)}"


def sixteen(columns: list[Column]) -> str:
    """A row for each check, a column for each tool, and why a column is empty."""
    names = list(columns[0].passed)
    lines = [[name, *(_mark(column, name) for column in columns)] for name in names]
    sums = [f"{sum(column.passed.values())} of {len(names)}" for column in columns]
    table = markdown_table(
        ["check", *(column.name for column in columns)], [*lines, ["passed", *sums]]
    )
    return "\n".join([table, *_notes([(column.name, column.note) for column in columns])])


def _notes(notes: list[tuple[str, str]]) -> list[str]:
    """The notes, each once, as lines that follow a table."""
    lines = [f"- {tool}: {note}" for tool, note in dict.fromkeys(notes) if note]
    return ["", *lines] if lines else []


def _mark(column: Column, check: str) -> str:
    if not column.passed:
        return "does not run"
    return "yes" if column.passed.get(check) else "**no**"


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in [head, rule, *lines]
    )


def _processor() -> str:
    """The processor's name, if the system reports it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
