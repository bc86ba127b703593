"""The events in the log of a pulled run, each with the time of its line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernelkit.kaggle.logs import stream_log
from kernelkit.kaggle.types import LogEntry
from kernelkit.notebook.runtime import EVENT_CHARACTERS, RunEvent, parse_event
from kernelkit.storage import opened

_LINE_ENDS = re.compile(r"[\r\n]")


@dataclass(frozen=True)
class TimedEvent:
    """An event, and when its line was written, in seconds since the start of the session."""

    seconds: float
    event: RunEvent


def read_events(path: Path) -> Iterator[TimedEvent]:
    """Every event in a log of any size, in its order, as the log is read.

    None from a log that is missing, and of a damaged one those before the damage.
    """
    with suppress(OSError), opened(path) as file:
        for seconds, line in _lines(stream_log(file)):
            if '"event"' in line and (event := parse_event(line)) is not None:
                yield TimedEvent(seconds, event)


def _lines(entries: Iterable[LogEntry]) -> Iterator[tuple[float, str]]:
    """The lines of each stream, with the time of the entry in which a line ends.

    Of a line that is too long for an event, only the beginning.
    """
    pending: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}  # characters: a bar of progress may need an entry for each
    seconds = 0.0
    for entry in entries:
        seconds = entry.seconds
        *lines, rest = _LINE_ENDS.split(entry.text)
        begun = pending.setdefault(entry.stream, [])
        for line in lines:
            yield seconds, "".join([*begun, line])
            begun.clear()
            lengths[entry.stream] = 0
        length = lengths.get(entry.stream, 0)
        if rest and length <= EVENT_CHARACTERS:
            begun.append(rest)
            lengths[entry.stream] = length + len(rest)
    for begun in pending.values():
        yield seconds, "".join(begun)
