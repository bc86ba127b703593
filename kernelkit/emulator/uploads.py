"""Files on their way in: an address to PUT to, and a token that names the file in a later call.

An upload can be cut and resumed, as Google's resumable uploads can [V, the client's upload code]:
`Content-Range: bytes */N` asks how much has arrived (308, with `Range: bytes=0-K` once there is
something), `bytes K+1-L/N` sends the rest. Uploads lie in the state folder and outlive a restart.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from dataclasses import asdict, dataclass
from io import BufferedIOBase
from pathlib import Path

from kernelkit.emulator.library import write_record
from kernelkit.emulator.state import Refusal

BLOCK = 256 * 1024
"""Bytes read and written at once."""
MAX_UPLOAD = 20 * 2**30
"""Bytes of one file [?]."""
MAX_NAME = 200
"""Bytes of its name [?]."""


@dataclass(frozen=True)
class Upload:
    """A file that is announced. `purpose` says which call may take it, `size` is in bytes."""

    token: str
    key: str
    account: str
    purpose: str
    name: str
    size: int


@dataclass(frozen=True)
class Received:
    """The answer to a PUT: 200, 308 (go on) or 503 (incomplete), and how many bytes are here."""

    code: int
    size: int


class Uploads:
    """All uploads; `folder` holds one folder each. Token and key never stand for each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._by_token: dict[str, Upload] = {}
        for record in sorted(folder.glob("*/upload.json")):
            upload = Upload(**json.loads(record.read_text(encoding="utf-8")))
            self._by_token[upload.token] = upload

    def begin(self, account: str, purpose: str, name: str, size: int) -> Upload:
        """Announce a file."""
        legal = name.isprintable() and 0 < len(name.encode()) <= MAX_NAME
        if not legal or not 0 <= size <= MAX_UPLOAD:
            raise Refusal(400, "A file name and a valid contentLength are required")
        key, token = secrets.token_hex(16), secrets.token_hex(20)
        upload = Upload(token, key, account, purpose, name, size)
        folder = self._folder / key
        folder.mkdir(parents=True)
        (folder / "data").touch()
        write_record(folder / "upload.json", asdict(upload))
        with self._lock:
            self._by_token[token] = upload
        return upload

    def receive(self, key: str, content_range: str, body: BufferedIOBase, length: int) -> Received:
        """One PUT of `length` bytes. What arrives stays, also when the connection is cut."""
        upload = self._by_key(key)
        path = self._folder / key / "data"
        with self._lock:
            here = path.stat().st_size
        if content_range == f"bytes */{upload.size}":
            return Received(200 if here == upload.size else 308, here)
        start = _start(content_range, upload.size, length)
        if start > here or start + length > upload.size:
            raise Refusal(400, f"{length} bytes from {start} do not fit: {here} of {upload.size}")
        with path.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            while length and (block := body.read1(min(BLOCK, length))):
                file.write(block)
                file.flush()
                length -= len(block)
        here = path.stat().st_size
        return Received(200 if here == upload.size else 503, here)

    def take(self, token: str, account: str, purpose: str) -> tuple[Upload, Path]:
        """The whole file that a token means. Taking it twice is allowed [?]: who sends twice shows.

        Refusal where it is not the caller's, was announced for something else, or is not whole.
        """
        with self._lock:
            upload = self._by_token.get(token)
        if upload is None or upload.account != account or upload.purpose != purpose:
            raise Refusal(400, "Invalid blob token")
        path = self._folder / upload.key / "data"
        if path.stat().st_size != upload.size:
            raise Refusal(400, f"The upload of {upload.name} is not complete")
        return upload, path

    def _by_key(self, key: str) -> Upload:
        with self._lock:
            for upload in self._by_token.values():
                if upload.key == key:
                    return upload
        raise Refusal(404, "Not found")


def _start(content_range: str, size: int, length: int) -> int:
    """The first byte that a PUT sends."""
    if not content_range:
        return 0
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range)
    if match:
        first, last, whole = map(int, match.groups())
        if whole == size and last + 1 - first == length:
            return first
    raise Refusal(400, f"Invalid Content-Range: {content_range}")
