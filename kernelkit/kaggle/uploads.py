"""Sends a file to an address that Kaggle names, and resumes it where it stopped.

The protocol is that of Google's resumable uploads [V, the official client].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from kernelkit.errors import RefusedError
from kernelkit.kaggle.answers import TransientError, calling, host_of
from kernelkit.kaggle.connection import Connection
from kernelkit.kaggle.types import ignore
from kernelkit.kaggle.waiting import Upload

if TYPE_CHECKING:
    import requests

UPLOAD_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # s, before each attempt after one without progress


@dataclass(frozen=True)
class UploadAddress:
    """Where to send a file, and the token that names it in a later call."""

    token: str
    url: str


OnBytes = Callable[[int], None]
"""Called with the number of bytes of a file that were sent so far."""


def upload(
    connection: Connection,
    file: Path,
    address: UploadAddress,
    *,
    resume: bool = False,
    on_bytes: OnBytes = ignore,
) -> None:
    """Send a file. Bytes that have arrived are not sent again.

    `resume` asks first how much of it has arrived, of an upload that began earlier.

    Raises:
        RefusedError: Kaggle refuses the file, or the address leads to where it must not be sent.
        NotFoundError: Kaggle no longer knows the address.
        UnreachableError: the upload makes no progress.
    """
    connection.require_upload_address(address.url)
    size = file.stat().st_size
    arrived, failures = 0, 0
    if resume and (arrived := _arrived(connection, address.url, size)) >= size:
        return
    while True:
        try:
            if _put(connection, file, address.url, arrived, on_bytes):
                return
            error = TransientError(f"the upload of {file.name} stays incomplete")
        except TransientError as caught:
            error = caught
        failures += 1
        if failures >= len(UPLOAD_PAUSES) or connection.is_late:
            raise error
        connection.timeouts.sleep(UPLOAD_PAUSES[failures])
        try:
            now = _arrived(connection, address.url, size)
        except TransientError:
            continue
        if now >= size:
            return
        failures, arrived = (0 if now > arrived else failures), now


def _put(connection: Connection, file: Path, url: str, start: int, on_bytes: OnBytes) -> bool:
    """Send the bytes from `start` on; returns whether Kaggle has all of them now."""
    size = file.stat().st_size
    part = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
    with calling("the upload"), file.open("rb") as stream:
        stream.seek(start)
        body = Upload(stream, size - start, on_bytes) if size > start else b""
        response = connection.wait_for(
            lambda: connection.files.put(url, data=body, headers=part, allow_redirects=False)
        )
        _require_no_other_address(response)
        if response.status_code in (503, 308):  # incomplete [V, the official client]
            return False
        response.raise_for_status()
        return response.status_code in (200, 201)


def _arrived(connection: Connection, url: str, size: int) -> int:
    """How many bytes Kaggle has of an upload."""
    with calling("the upload"):
        headers = {"Content-Range": f"bytes */{size}"}
        response = connection.wait_for(
            lambda: connection.files.put(url, headers=headers, allow_redirects=False)
        )
        if response.status_code == 308:
            last = response.headers.get("Range", "").rpartition("-")[2]
            return int(last) + 1 if last.isdecimal() else 0
        _require_no_other_address(response)
        response.raise_for_status()
        return size


def _require_no_other_address(response: requests.Response) -> None:
    """Check that a file is not asked for at another address: only the first one was checked.

    Raises:
        RefusedError: the server names another one.
    """
    if response.is_redirect and response.status_code != 308:  # which is "incomplete" here
        target = urljoin(response.url, response.headers["Location"])
        raise RefusedError(
            f"the upload was redirected to {host_of(target)}, and uploads are not redirected",
            "Try again; if it stays so, look for a proxy between this machine and Kaggle.",
        )
