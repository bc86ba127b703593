"""How the bytes of a response are sent: slowly, cut off, or with a wrong length."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kernelkit.emulator.responses import Body, ConnectionDropped, Reply

TICK = 0.05
"""Seconds between the pieces of a slow response."""


@dataclass(frozen=True)
class Throttle:
    """A way to send a body.

    `cut`: bytes after which the connection is dropped. `rate`: bytes per second. `stop`: bytes
    after which the body ends as if it were complete. `excess`: the error of Content-Length in
    bytes.
    """

    cut: int | None = None
    reset: bool = False
    rate: float | None = None
    stop: int | None = None
    excess: int = 0

    def length(self, true: int) -> int:
        """The Content-Length for a body of `true` bytes."""
        return max(0, (true if self.stop is None else min(true, self.stop)) + self.excess)

    def pieces(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks as they are sent. Raises ConnectionDropped after `cut` bytes."""
        ends = [end for end in (self.cut, self.stop) if end is not None]
        sent = 0
        for block in blocks:
            kept = block[: min(ends) - sent] if ends else block
            yield from self._slowly(kept)
            sent += len(kept)
            if sent == self.cut:
                raise ConnectionDropped(self.reset)
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
class ThrottledBody:
    """A body with another way to send it."""

    body: bytes | Body
    throttle: Throttle

    @property
    def length(self) -> int | None:
        length = len(self.body) if isinstance(self.body, bytes) else self.body.length
        return None if length is None else self.throttle.length(length)

    def blocks(self) -> Iterator[bytes]:
        blocks = [self.body] if isinstance(self.body, bytes) else self.body.blocks()
        return self.throttle.pieces(blocks)


@dataclass(frozen=True)
class FaultyReply(Reply):
    """A response that faults may still change, and how it will be sent."""

    throttle: Throttle = field(default_factory=Throttle)

    @classmethod
    def of(cls, reply: Reply) -> FaultyReply:
        return cls(reply.code, reply.body, reply.headers)

    def throttled(self) -> Reply:
        """The response for the server."""
        if self.throttle == Throttle():
            return Reply(self.code, self.body, self.headers)
        return Reply(self.code, ThrottledBody(self.body, self.throttle), self.headers)
