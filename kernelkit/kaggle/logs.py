"""A run's log as Kaggle sends it: server-sent events while it runs, a JSON array afterwards.

A log may have any size, so the number of entries and the length of each are limited.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import queue
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from kernelkit.kaggle.types import LogEntry

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 1 << 20
LOG_BYTES = 128 << 20  # in memory; a log of a long run has some MB
ENTRY_CHARACTERS = 8 << 20  # the manifest of a failed run with 20,000 outputs has 6 MB
ENTRIES = 200_000  # beyond, several are joined: an entry needs 600 B, its text often 10
JOINED_CHARACTERS = 1 << 16
QUEUED_CHUNKS = 4
LONGEST_TOKEN = 16  # of JSON, besides strings and numbers: where a value is cut off, it may end

_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def parse_log(text: str) -> list[LogEntry]:
    """The entries of a finished run's log: a JSON array, or else plain lines."""
    try:
        return list(_joined(_array(iter([text]))))
    except (ValueError, RecursionError):
        return list(_joined(LogEntry("stdout", 0.0, line) for line in _plain_lines(iter([text]))))


def stream_log(file: BinaryIO) -> Iterator[LogEntry]:
    """The entries of a log of any size, as they are read; those before a damaged place.

    Of the log, a part of CHUNK_BYTES or its longest entry is in memory, whichever is longer.

    Raises:
        OSError: it cannot be read.
    """
    is_array = False
    try:
        for entry in _array(_chunks(file)):
            is_array = True
            yield entry
    except (ValueError, RecursionError):
        if not is_array:  # plain lines may begin with a bracket
            file.seek(0)
            for line in _plain_lines(_chunks(file)):
                yield LogEntry("stdout", 0.0, line)


def _chunks(file: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := file.read(CHUNK_BYTES):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def events(response: requests.Response, end: float) -> Iterator[LogEntry]:
    """Server-sent events of a running session, until its end, a silence or the time `end`."""
    for line in _lines(response, end):
        payload = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or payload in (b"", b"null"):
            continue
        if payload == b"END_OF_LOG":
            return
        yield _event(payload)


def whole(response: requests.Response, end: float) -> str:
    """The text of a log that does not arrive as events; what has come until the time `end`."""
    data = bytearray()
    for chunk in chunks(response, end):
        data += chunk
        if len(data) > LOG_BYTES:
            break
    return data.decode(errors="replace")


def _lines(response: requests.Response, end: float) -> Iterator[bytes]:
    """Lines as they arrive; `iter_lines` would delay each until a chunk of bytes is full.

    Of a line that is too long, a note is left.
    """
    pending, left_out = bytearray(), 0
    for chunk in chunks(response, end):
        pending += chunk
        if b"\n" in chunk:
            first, *lines, pending = pending.split(b"\n")
            yield _left_out(left_out + len(first)) if left_out else bytes(first)
            left_out = 0
            yield from (bytes(line) for line in lines)
        if len(pending) > ENTRY_CHARACTERS or (left_out and pending):
            left_out += len(pending)
            pending.clear()
    yield _left_out(left_out) if left_out else bytes(pending)


def _left_out(size: int) -> bytes:
    return b"data:" + json.dumps({"data": f"(a line of {size:,} B is left out)\n"}).encode()


def chunks(response: requests.Response, end: float) -> Iterator[bytes]:
    """The body of a response as it arrives, until it ends, breaks, or the time `end`.

    A thread reads it: a socket can be silent for longer than the caller may wait.
    """
    arrived: queue.Queue[bytes] = queue.Queue(QUEUED_CHUNKS)
    stopped = threading.Event()

    def read() -> None:
        try:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                if not _put(arrived, chunk, stopped):
                    return
        except Exception:  # broken or silent; the caller asks for the status and reconnects
            pass
        _put(arrived, b"", stopped)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                chunk = arrived.get(timeout=left)
            except queue.Empty:
                return
            if not chunk:
                return
            yield chunk
    finally:
        stopped.set()


def _put(arrived: queue.Queue[bytes], chunk: bytes, stopped: threading.Event) -> bool:
    """Hand over a chunk; False if nobody takes it any more."""
    while not stopped.is_set():
        try:
            arrived.put(chunk, timeout=0.5)
        except queue.Full:
            continue
        return True
    return False


def _array(parts: Iterator[str]) -> Iterator[LogEntry]:
    """The entries of a JSON array, one at a time: all at once need ten times the memory.

    `parts` are those of its text, of any length.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    text = _Text(parts)
    if text.next_character() != "[":
        found = _entry(text.value())
        if text.next_character():
            raise ValueError("text after a JSON value")
        if found is not None:
            yield found
        return
    text.position += 1
    separator = text.take() if text.next_character() == "]" else ","
    while separator == ",":
        if (found := _entry(text.value())) is not None:
            yield found
        separator = text.take()
    if separator != "]":
        raise ValueError("not a JSON array")
    if text.next_character():
        raise ValueError("text after a JSON array")


class _Text:
    """A text that arrives in parts, and a place in it."""

    def __init__(self, parts: Iterator[str]) -> None:
        self._parts, self._text = parts, ""
        self.position = 0

    def next_character(self) -> str:
        """The first character from here on that is not blank, and the new place; "" at the end."""
        while True:
            end = _BLANKS.match(self._text, self.position)
            assert end is not None  # it matches anything
            self.position = end.end()
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._more():
                return ""

    def take(self) -> str:
        """The next character that is not blank, which is then behind the place; "" at the end."""
        character = self.next_character()
        self.position += len(character)
        return character

    def value(self) -> object:
        """The JSON value at this place, which is then behind it.

        Raises:
            ValueError, RecursionError: there is none.
        """
        while True:
            self.next_character()
            try:
                value, end = _DECODER.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                near_end = error.pos > len(self._text) - LONGEST_TOKEN
                is_cut_off = near_end or error.msg.startswith("Unterminated string")
                if not is_cut_off or len(self._text) > LOG_BYTES or not self._more():
                    raise
                continue
            if end == len(self._text) and self._more():  # of a number, there may be more
                continue
            self.position = end
            return value

    def _more(self) -> bool:
        """Read on, at least as much as is left, so that a long value takes linear time."""
        left, self.position = self._text[self.position :], 0
        ahead, size = [left] if left else [], 0
        for part in filter(None, self._parts):
            ahead.append(part)
            size += len(part)
            if size >= len(left):
                break
        self._text = "".join(ahead)  # of one part it makes no copy
        return size > 0


def _plain_lines(parts: Iterator[str]) -> Iterator[str]:
    """Lines with their ends; one that is longer than an entry may be comes in pieces."""
    pending = ""
    for part in parts:
        text, start = pending + part, 0
        while (end := text.find("\n", start) + 1) > 0:
            yield text[start:end]
            start = end
        pending = text[start:]
        if len(pending) > ENTRY_CHARACTERS:
            yield pending
            pending = ""
    if pending:
        yield pending


def _joined(entries: Iterator[LogEntry]) -> Iterator[LogEntry]:
    """The entries, each of a limited length; after many of them, neighbors are joined."""
    yield from map(_cut, itertools.islice(entries, ENTRIES))
    pieces: list[str] = []
    size, first = 0, LogEntry("stdout", 0.0, "")
    for entry in map(_cut, entries):
        if pieces and (size > JOINED_CHARACTERS or entry.stream != first.stream):
            yield LogEntry(first.stream, first.seconds, "".join(pieces))
            pieces, size = [], 0
        first = first if pieces else entry
        pieces.append(entry.text)
        size += len(entry.text)
    if pieces:
        yield LogEntry(first.stream, first.seconds, "".join(pieces))


def _cut(entry: LogEntry) -> LogEntry:
    more = len(entry.text) - ENTRY_CHARACTERS
    if more <= 0:
        return entry
    note = f"… ({more:,} more characters are left out)\n"
    return LogEntry(entry.stream, entry.seconds, entry.text[:ENTRY_CHARACTERS] + note)


def _event(payload: bytes) -> LogEntry:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        document = None
    return _entry(document) or LogEntry("stdout", 0.0, payload.decode(errors="replace"))


def _entry(entry: object) -> LogEntry | None:
    """The entry that an object of Kaggle's JSON describes; None for anything else."""
    if not isinstance(entry, dict):
        return None
    try:
        seconds = float(entry.get("time") or 0.0)
    except (OverflowError, TypeError, ValueError):
        seconds = 0.0
    seconds = seconds if math.isfinite(seconds) else 0.0
    stream, data = entry.get("stream_name"), entry.get("data")
    if data is None:
        data = ""
    elif not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False)
    return LogEntry(stream if isinstance(stream, str) else "stdout", seconds, data)
