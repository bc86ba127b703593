"""Responses and the ways a request can end without one. No sockets and no rules."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

BLOCK = 256 * 1024
"""Bytes read and sent at once."""


class RequestRefused(Exception):
    """Kaggle refuses the request: an HTTP status and the message of the error body."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConnectionDropped(Exception):
    """The server closes the connection without a (further) response; `reset` sends an RST."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__("the connection is dropped")
        self.reset = reset


class Body(Protocol):
    """What the server sends after the headers."""

    @property
    def length(self) -> int | None:
        """The Content-Length in bytes; None if the blocks carry their own framing (chunked)."""

    def blocks(self) -> Iterator[bytes]:
        """The bytes, block by block. May raise ConnectionDropped."""


@dataclass(frozen=True)
class FilePart:
    """`length` bytes of a file, starting at byte `start`."""

    path: Path
    start: int
    length: int

    def blocks(self) -> Iterator[bytes]:
        """The bytes in constant memory. Raises ConnectionDropped if the file has become shorter."""
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(self.start)
            left = self.length
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise ConnectionDropped
                yield block
                left -= len(block)


@dataclass(frozen=True)
class EventStream:
    """Text that is sent as it is produced: one chunk for each string, then the final chunk."""

    events: Iterator[str]
    length: None = None

    def blocks(self) -> Iterator[bytes]:
        """The chunks."""
        for event in self.events:
            data = event.encode()
            yield b"%x\r\n%s\r\n" % (len(data), data)
        yield b"0\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    """A complete response: status, body and headers."""

    code: int
    body: bytes | Body = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_reply(code: int, value: Any) -> Reply:
    """A response in JSON."""
    return Reply(code, json.dumps(value).encode(), {"Content-Type": "application/json"})


def error_reply(code: int, message: str) -> Reply:
    """An error as Kaggle words it."""
    return json_reply(code, {"code": code, "message": message})
