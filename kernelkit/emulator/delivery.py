"""How an answer's bytes leave: whole, or slowly, cut, shorter or longer than told.

A `Manner` is data, so that a fault need not know sockets and the wire need not know faults.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 256 * 1024
"""Bytes read and sent at once."""
TICK = 0.05
"""Seconds between the pieces of an answer that is sent slowly."""


class Lost(Exception):
    """The connection ends here, without a word more; with RST where it is reset."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__("the connection is cut")
        self.reset = reset


@dataclass(frozen=True)
class Manner:
    """How the body leaves.

    `cut`: bytes after which the connection is lost; `rate`: bytes a second; `stop`: bytes after
    which the body ends as if it were whole; `told`: what Content-Length is wrong by.
    """

    cut: int | None = None
    reset: bool = False
    rate: float | None = None
    stop: int | None = None
    told: int = 0

    def length(self, true: int) -> int:
        """What Content-Length tells of a body of `true` bytes."""
        return max(0, (true if self.stop is None else min(true, self.stop)) + self.told)

    def pieces(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks as they are to be sent. Raises Lost where the connection is to be cut."""
        ends = [end for end in (self.cut, self.stop) if end is not None]
        sent = 0
        for block in blocks:
            kept = block[: min(ends) - sent] if ends else block
            yield from self._slowly(kept)
            sent += len(kept)
            if sent == self.cut:
                raise Lost(self.reset)
            if sent == self.stop:
                return

    def _slowly(self, block: bytes) -> Iterator[bytes]:
        if self.rate is None:
            yield block
            return
        size = max(1, round(self.rate * TICK))
        for start in range(0, len(block), size):
            piece = block[start : start + size]
            yield piece
            time.sleep(len(piece) / self.rate)


@dataclass(frozen=True)
class Part:
    """`length` bytes of a file, from `start` on."""

    path: Path
    start: int
    length: int

    def blocks(self) -> Iterator[bytes]:
        """The bytes, in constant memory. Raises Lost where the file is shorter than promised."""
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(self.start)
            left = self.length
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise Lost
                yield block
                left -= len(block)
