"""Waits for a call no longer than it makes progress, and never beyond a deadline.

A timeout of a socket limits only each silence. A server, a proxy or a name service can keep a call
alive forever with a byte now and then. So each call runs in a thread of its own. If the call takes
too long, nobody waits for the thread any more; it ends with its next byte, or with the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from kernelkit.kaggle.answers import EndlessAnswerError

T = TypeVar("T")

BYTES_PER_SECOND = 10_000  # a slower connection would need two minutes for a notebook
TICK_SECONDS = 0.25


class _Progress:
    """The bytes that one call has sent and received, and whether it was given up."""

    def __init__(self) -> None:
        self.bytes = 0
        self.abandoned = False
        self.done = threading.Event()


_current = threading.local()


def count_bytes(size: int) -> None:
    """Count bytes that the call of this thread has sent or received.

    Raises:
        EndlessAnswerError: nobody waits for this call any more.
    """
    progress: _Progress | None = getattr(_current, "progress", None)
    if progress is not None:
        progress.bytes += size
        if progress.abandoned:
            raise EndlessAnswerError("the call took too long")


def within(call: Callable[[], T], seconds: float, deadline: float | None = None) -> T:
    """The result of `call`, which may take `seconds`, and more only for the bytes that it moves.

    `deadline` is a time of `time.monotonic`.

    Raises:
        EndlessAnswerError: it took longer.
    """
    progress = _Progress()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        _current.progress = progress
        try:
            results.append(call())
        except BaseException as error:  # raised again by the thread that waits
            errors.append(error)
        finally:
            progress.done.set()

    started = time.monotonic()

    def left() -> float:
        end = started + seconds + progress.bytes / BYTES_PER_SECOND
        return (end if deadline is None else min(end, deadline)) - time.monotonic()

    threading.Thread(target=work, daemon=True).start()
    while not progress.done.wait(max(0.0, min(left(), TICK_SECONDS))):
        if left() <= 0:
            progress.abandoned = True
            raise EndlessAnswerError(
                f"no complete answer within {time.monotonic() - started:.0f} s"
            )
    if errors:
        raise errors[0]
    return results[0]


class Upload:
    """The rest of an open file as the body of a request; its bytes count as progress."""

    def __init__(
        self, stream: IO[bytes], size: int, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._stream, self._size = stream, size
        self._on_bytes = on_bytes

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(1 << 16), b"")

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._stream.read(size)
        count_bytes(len(data))
        self._on_bytes(self._stream.tell())
        return data


def read_body(response: Any, most: int) -> bytes:
    """The decoded body of a `requests.Response`, up to `most` bytes and one more chunk."""
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_content(1 << 16):
        count_bytes(len(chunk))
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            response.close()
            break
    return b"".join(chunks)
