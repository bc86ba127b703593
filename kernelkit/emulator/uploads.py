"""Uploads: an address to PUT a file to, and a token that names the file in a later call.

A client can resume an upload, as with Google's resumable uploads [V, the client's upload code]:
`Content-Range: bytes */N` asks how much has arrived (308, with `Range: bytes=0-K` if anything has),
and `bytes K+1-L/N` sends the rest. Uploads are stored in the state folder and survive a restart.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import asdict, dataclass
from io import BufferedIOBase
from pathlib import Path

from kernelkit.emulator.fields import RequestFields, answer
from kernelkit.emulator.responses import BLOCK, Reply, RequestRefused
from kernelkit.emulator.storage import read_json, reading, write_json

MAX_UPLOAD = 20 * 2**30
"""Bytes of one file [?]."""
MAX_NAME = 200
"""Bytes of its name [?]."""


@dataclass(frozen=True)
class AnnouncedUpload:
    """A file that a client will send. `purpose`: the call that may use it. `size`: bytes."""

    token: str
    key: str
    account: str
    purpose: str
    name: str
    size: int


@dataclass(frozen=True)
class UploadProgress:
    """The response to a PUT: 200, 308 (continue) or 503 (incomplete), and the bytes received."""

    code: int
    size: int


class Uploads:
    """All uploads; `folder` holds one folder each. A token cannot be used as a key, or vice versa.

    Raises StateError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._by_token: dict[str, AnnouncedUpload] = {}
        for record in sorted(folder.glob("*/upload.json")):
            with reading(record):
                upload = AnnouncedUpload(**read_json(record))
                self._by_token[upload.token] = upload

    def begin(self, account: str, purpose: str, name: str, size: int) -> AnnouncedUpload:
        """Announce a file. Raises RequestRefused for an invalid name or size."""
        legal = name.isprintable() and 0 < len(name.encode()) <= MAX_NAME
        if not legal or not 0 <= size <= MAX_UPLOAD:
            raise RequestRefused(400, "A file name and a valid contentLength are required")
        key, token = secrets.token_hex(16), secrets.token_hex(20)
        upload = AnnouncedUpload(token, key, account, purpose, name, size)
        folder = self._folder / key
        folder.mkdir(parents=True)
        (folder / "data").touch()
        write_json(folder / "upload.json", asdict(upload))
        with self._lock:
            self._by_token[token] = upload
        return upload

    def receive(
        self, key: str, content_range: str, body: BufferedIOBase, length: int
    ) -> UploadProgress:
        """Receive a PUT of `length` bytes. If the connection breaks, what has arrived is kept."""
        upload = self._by_key(key)
        path = self._folder / key / "data"
        with self._lock:
            here = path.stat().st_size
        if content_range == f"bytes */{upload.size}":
            return UploadProgress(200 if here == upload.size else 308, here)
        start = _start(content_range, upload.size, length)
        if start > here or start + length > upload.size:
            raise RequestRefused(
                400, f"{length} bytes from {start} do not fit: {here} of {upload.size}"
            )
        with path.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            while length and (block := body.read1(min(BLOCK, length))):
                file.write(block)
                file.flush()
                length -= len(block)
        here = path.stat().st_size
        return UploadProgress(200 if here == upload.size else 503, here)

    def take(self, token: str, account: str, purpose: str) -> tuple[AnnouncedUpload, Path]:
        """The complete file of a token. A token can be used twice [?], so a double request shows.

        Raises RequestRefused if it belongs to another account or call, or is incomplete.
        """
        with self._lock:
            upload = self._by_token.get(token)
        if upload is None or upload.account != account or upload.purpose != purpose:
            raise RequestRefused(400, "Invalid blob token")
        path = self._folder / upload.key / "data"
        if path.stat().st_size != upload.size:
            raise RequestRefused(400, f"The upload of {upload.name} is not complete")
        return upload, path

    def owner(self, key: str) -> str:
        """The account that announced the upload of this address; empty if unknown."""
        try:
            return self._by_key(key).account
        except RequestRefused:
            return ""

    def _by_key(self, key: str) -> AnnouncedUpload:
        with self._lock:
            for upload in self._by_token.values():
                if upload.key == key:
                    return upload
        raise RequestRefused(404, "Not found")


def begin_upload(
    uploads: Uploads, endpoint: str, account: str, purpose: str, name: str, fields: RequestFields
) -> Reply:
    """Announce a file; the response has the address to send it to and its token."""
    upload = uploads.begin(account, purpose, name, fields.number("contentLength") or 0)
    return answer(token=upload.token, createUrl=f"{endpoint}/upload/{upload.key}")


def _start(content_range: str, size: int, length: int) -> int:
    """The first byte that a PUT sends."""
    if not content_range:
        return 0
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range)
    if match:
        first, last, whole = map(int, match.groups())
        if whole == size and last + 1 - first == length:
            return first
    raise RequestRefused(400, f"Invalid Content-Range: {content_range}")
