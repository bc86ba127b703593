"""The events that the entry prints, one line of JSON each, read from what it writes to stdout.

`OutputTap` listens to `sys.stdout` and `sys.stderr` without replacing them. In a notebook ipykernel
writes what child processes print through the same `write`, so their events are seen, too. A forked
child sends its events through a pipe.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .documents import Parameter
from .recording import recorded

EVENT_CHARACTERS = 1 << 16  # a longer line is not an event
SHOWN_CHARACTERS = 200  # of the last output
INCOMPLETE = "incomplete"
"""The event, or the value that a function returns, which asks for another session."""

SETTLE_SECONDS = 0.2  # ipykernel takes milliseconds
PIPE_BYTES = 4096  # a longer line of a forked child could mix with that of another


@dataclass(frozen=True)
class RunEvent:
    """One event: `{"event": "epoch", "experiment": …, "val_iou": …}`."""

    kind: str
    experiment: str | None
    numbers: Mapping[str, int | float]
    """Every finite number in it by its name: `epoch`, `epochs`, `seconds`, `val_iou` and others."""

    trial: int | None = None
    """Of a sweep, where a session runs several side by side."""

    experiments: tuple[str, ...] = ()
    """The plan that the event "start" announces."""

    @property
    def label(self) -> str:
        """What it belongs to within its run: a trial, an experiment, both, or nothing."""
        trial = "" if self.trial is None else f"trial {self.trial}"
        return " ".join(filter(None, [trial, self.experiment]))

    @property
    def document(self) -> dict[str, Parameter]:
        """The event as JSON, with bounded texts and numbers."""
        whose = {"experiment": self.label} if self.label else {}
        described = recorded({"event": self.kind, **whose, **self.numbers})
        assert isinstance(described, dict)
        return described


def parse_event(line: str) -> RunEvent | None:
    """The event in a line of output; None for other lines."""
    text = line.strip() if len(line) <= EVENT_CHARACTERS else ""
    if not text.startswith("{") or '"event"' not in text:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kind, name, names = (document.get(key) for key in ("event", "experiment", "experiments"))
    trial = document.pop("trial", None)
    if not isinstance(kind, str):
        return None
    return RunEvent(
        kind,
        None if name is None else str(name),
        {key: value for key, value in document.items() if _is_finite(value)},
        trial if type(trial) is int else None,
        tuple(one for one in names if isinstance(one, str)) if isinstance(names, list) else (),
    )


def _is_finite(value: object) -> bool:
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an integer that no float can hold
        return False


class OutputTap:
    """Calls `on_event` with each event that is printed while it listens, in the printing thread."""

    def __init__(self, on_event: Callable[[RunEvent], None]) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._pending = ""
        self._skipping = False
        self._parent = self._process = os.getpid()
        self._to_parent: int | None = None
        self._silent: set[int] = set()  # threads whose output is not the program's
        self.last_output = time.monotonic()
        """When something was last written, by the clock of `time.monotonic`."""

        self.last_text = ""
        """The last of it that is not blank."""

        self.last_event: RunEvent | None = None
        self.events = 0
        """How many there were."""

        self.hears = False
        """Whether it hears all that is written while it listens."""

    def print(self, *words: object) -> None:
        """Print something that does not count as output of the program."""
        thread = threading.get_ident()
        self._silent.add(thread)
        try:
            print(*words, flush=True)
        finally:
            self._silent.discard(thread)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen in the body."""
        self.last_output = time.monotonic()
        reading, self._to_parent = os.pipe()
        reader = threading.Thread(target=self._read_children, args=(reading,), daemon=True)
        reader.start()
        try:
            with (
                _watched(sys.stdout, self._written) as hears_stdout,
                _watched(sys.stderr, self._touched) as hears_stderr,
            ):
                self.hears = hears_stdout and hears_stderr
                yield
                if hasattr(sys.stdout, "watch_fd_thread"):  # ipykernel reads what children wrote
                    time.sleep(SETTLE_SECONDS)
        finally:
            os.close(self._to_parent)  # a forked child that still runs may keep its own copy
            reader.join(timeout=1)

    def _touched(self, text: str) -> None:
        self.last_output = time.monotonic()
        if not text.isspace():
            self.last_text = text[:SHOWN_CHARACTERS]

    def _written(self, text: str) -> None:
        if threading.get_ident() in self._silent:
            return
        self._touched(text)
        if os.getpid() != self._process:  # another thread may have held the lock during the fork
            self._process, self._lock, self._pending = os.getpid(), threading.Lock(), ""
        with self._lock:
            *lines, rest = (self._pending + text).split("\n")
            if self._skipping and lines:
                lines, self._skipping = lines[1:], False
            self._pending = "" if self._skipping else rest
            begun = self._pending.lstrip()
            if begun and (not begun.startswith("{") or len(rest) > EVENT_CHARACTERS):
                self._pending, self._skipping = "", True
        for line in lines:
            self._handle(line)

    def _handle(self, line: str) -> None:
        event = parse_event(line)
        if event is None:
            return
        if self._process == self._parent:
            self._deliver(event)
        elif self._to_parent is not None and len(content := f"{line}\n".encode()) <= PIPE_BYTES:
            with contextlib.suppress(OSError):
                os.write(self._to_parent, content)

    def _read_children(self, reading: int) -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self.last_output = time.monotonic()
                if (event := parse_event(line)) is not None:
                    with contextlib.suppress(Exception):  # a full pipe would block the children
                        self._deliver(event)

    def _deliver(self, event: RunEvent) -> None:
        self.last_event = event
        self.events += 1
        self._on_event(event)


@contextlib.contextmanager
def _watched(stream: Any, on_text: Callable[[str], None]) -> Iterator[bool]:
    """Call `on_text` with all that is written to a stream; yields whether the stream allows it.

    Meanwhile nothing closes the stream: a notebook needs it to say that a cell has ended, and would
    otherwise wait for ever.
    """
    own = getattr(stream, "write", None)

    def write(text: str) -> Any:
        written = own(text)  # type: ignore[misc]
        # A mistake here must not end the program that prints.
        with contextlib.suppress(Exception):
            on_text(text)
        return written

    def close() -> None:
        stream.flush()

    try:
        stream.write, stream.close = write, close
    except AttributeError:
        yield False
        return
    try:
        yield True
    finally:
        for name, ours in (("write", write), ("close", close)):
            with contextlib.suppress(AttributeError):
                if getattr(stream, name) is ours:
                    delattr(stream, name)
