"""The events in the log of a pulled run, each with the time of its line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kernelkit.errors import KernelkitError
from kernelkit.kaggle.logs import parse_log
from kernelkit.kaggle.types import LogEntry
from kernelkit.notebook.runtime import RunEvent, parse_event
from kernelkit.storage import read_file

LOG_BYTES = 64 << 20  # events are not read from a larger log


@dataclass(frozen=True)
class TimedEvent:
    """An event, and when its line was written, in seconds since the start of the session."""

    seconds: float
    event: RunEvent


def read_events(path: Path) -> list[TimedEvent]:
    """Every event in a log, in its order; none from a log that is missing, damaged or too large."""
    try:
        if path.stat().st_size > LOG_BYTES:
            return []
        entries = parse_log(read_file(path).decode(errors="replace"))
    except (OSError, ValueError, RecursionError, KernelkitError):
        return []
    lines = ((seconds, line) for seconds, line in _lines(entries) if '"event"' in line)
    found = ((seconds, parse_event(line)) for seconds, line in lines)
    return [TimedEvent(seconds, event) for seconds, event in found if event]


def _lines(entries: list[LogEntry]) -> Iterator[tuple[float, str]]:
    """The lines of each stream, with the time of the entry in which a line ends."""
    pending: dict[str, str] = {}
    for entry in entries:
        *lines, rest = (pending.get(entry.stream, "") + entry.text).split("\n")
        yield from ((entry.seconds, part) for line in lines for part in line.splitlines())
        pending[entry.stream] = rest
    yield from ((entries[-1].seconds, rest) for rest in pending.values() if rest)
