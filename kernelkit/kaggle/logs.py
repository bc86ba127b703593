"""A run's log as Kaggle sends it: server-sent events while it runs, a JSON array afterwards."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kernelkit.kaggle.types import LogEntry

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 1 << 20


def parse_log(text: str) -> list[LogEntry]:
    """The entries of a finished run's log: a JSON array, or else plain lines."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = [{"data": line} for line in text.splitlines(keepends=True)]
    entries = document if isinstance(document, list) else [document]
    return [found for found in map(_entry, entries) if found]


def events(response: requests.Response, end: float) -> Iterator[LogEntry]:
    """Server-sent events of a running session, until its end, a silence or the time `end`."""
    import urllib3  # only here: `parse_log` is also used where no connection is made

    try:
        for line in _lines(response):
            if time.monotonic() > end:
                return
            payload = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not payload:
                continue
            if payload == b"END_OF_LOG":
                return
            yield _event(payload)
    except urllib3.exceptions.HTTPError:
        return  # the connection broke or fell silent; the caller asks for the status and reconnects


def _lines(response: requests.Response) -> Iterator[bytes]:
    """Lines as they arrive; `iter_lines` would delay each until a chunk of bytes is full."""
    pending = bytearray()
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
        pending += chunk
        if b"\n" in chunk:
            *lines, pending = pending.split(b"\n")
            yield from (bytes(line) for line in lines)
    yield bytes(pending)


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
    return LogEntry(str(entry.get("stream_name", "stdout")), seconds, str(entry.get("data", "")))
