"""One output on its way to this disk: resumed where it was cut, and whole or not there.

What has come lies in a partial file, with the server's mark of its state beside it (a strong ETag,
else the time of its last change [V: the emulator; A: Kaggle's storage gives both]). The next
attempt, of this process or a later one, asks for the rest of exactly that state.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import urllib3

from kernelkit.errors import LocalError, NotFoundError, RateLimitedError, RefusedError
from kernelkit.kaggle.answers import TransientError, retry_after, words
from kernelkit.kaggle.connection import CONNECT_SECONDS

SILENCE_SECONDS = 20  # of a server in the middle of a file; a whole file may take hours
FAULTS_IN_A_ROW = 5  # without anything coming between them
PATIENCE_SECONDS = 60  # from the first of those on: "unreachable" is said within 100 s in all
WRONG_CONTENTS = 3  # a bad download is made anew, and not for ever
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
LONGEST_RETRY_AFTER_SECONDS = 60  # a server that asks for more is told of instead of waited for
ADVANCE_BYTES = 1 << 16  # less between two faults does not count as going on
CHUNK_BYTES = 1 << 18

# What a disk says to a name that it does not take.
_NAME_FAULTS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


class WrongContentError(RefusedError):
    """Kaggle sends something else than the file: another length, another sha256, an error page."""


class Stopped(Exception):
    """The download was asked to end; what has come is kept."""


@dataclass(frozen=True)
class OutputFile:
    """One file among a run's outputs, and where it can be fetched for a while."""

    name: str
    url: str

    size: int | None = None
    """Bytes; None where nobody has said."""

    sha256: str | None = None
    """By the run's own manifest; None for what it does not list."""


@dataclass
class Transfer:
    """How downloads go on together: what they tell, ask for and obey."""

    heard: Callable[[int], None] = lambda _: None
    """Told how many bytes more lie here; fewer than 0 where a download begins anew."""

    renew: Callable[[OutputFile], OutputFile] | None = None
    """The file with a fresh address, once its old one is refused."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Once set, every download ends with `Stopped`."""


def download(
    session: requests.Session,
    file: OutputFile,
    target: Path,
    partial: Path | None = None,
    transfer: Transfer | None = None,
) -> None:
    """Bring one output to `target`; until it is whole it lies in `partial`.

    Raises:
        NotFoundError: its address is refused, the fresh ones too.
        WrongContentError: what comes is not the file, each time.
        UnreachableError, CapacityError: it does not come, for now; what has come is kept.
        RefusedError: this disk does not take the name.
        MachineError: the disk is full, or cannot be written.
        Stopped: by `transfer.stop`; what has come is kept.
    """
    transfer = transfer or Transfer()
    what = _Partial(file, partial or target.with_name(f"{target.name}.partial"), transfer.heard)
    wrong = faults = 0
    most, since = what.size, time.monotonic()
    while True:
        try:
            if not what.is_whole:
                _attempt(session, what, transfer.stop)
            what.require_content()
            what.move_to(target)
            return
        except OSError as error:
            raise LocalError(f"{target} cannot be written: {error.strerror}") from error
        except WrongContentError:
            wrong += 1
            if wrong == WRONG_CONTENTS:
                raise
            pause = _pause(wrong)
        except (TransientError, RateLimitedError, NotFoundError) as error:
            if what.size - most >= ADVANCE_BYTES:
                faults, since, most = 0, time.monotonic(), what.size
            faults += 1
            asked = 0.0 if isinstance(error, NotFoundError) else error.retry_after or 0.0
            spent = time.monotonic() - since > PATIENCE_SECONDS
            if faults == FAULTS_IN_A_ROW or spent or asked > LONGEST_RETRY_AFTER_SECONDS:
                raise
            if isinstance(error, NotFoundError):
                if transfer.renew is None:
                    raise
                what.file = transfer.renew(what.file)
            pause = max(_pause(faults), asked)
        if transfer.stop.wait(pause):
            raise Stopped


class _Partial:
    """What has come of a file, and of which state of it."""

    def __init__(self, file: OutputFile, path: Path, heard: Callable[[int], None]) -> None:
        self.file = file
        self._path, self._note = path, path.with_name(f"{path.name}.json")
        self._heard = heard
        self._hash, self._hashed = hashlib.sha256(), 0
        self._marks = self._read_note()
        if self._marks:
            self._heard(self.size)
        else:
            self._path.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def is_whole(self) -> bool:
        """By what the server has said of its length: an earlier process ended just then."""
        return bool(self._marks) and self._path.exists() and self.size == self._marks["size"]

    def headers(self) -> dict[str, str]:
        """Ask for the rest, and for the whole where the file is in another state by now."""
        if not self._marks or not self.size:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": str(self._marks["state"])}

    def begin(self, response: requests.Response) -> None:
        """Make ready for a body.

        Raises:
            WrongContentError: its length is not that of the file.
            TransientError: it is a part that was not asked for.
        """
        headers = response.headers
        if response.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            same = found and int(found[1]) == self.size and int(found[2]) == self._marks["size"]
            changed = _state(headers) not in (None, self._marks["state"])
            if not same or changed or _is_encoded(response):
                self.discard()
                raise TransientError(f"the output {self.file.name}: a part that nobody asked for")
            return
        length = None if _is_encoded(response) else _length(headers)
        if None not in (length, self.file.size) and length != self.file.size:
            raise self._wrong(f"{length:,} B come ({headers.get('Content-Type', 'of no type')})")
        if length is None and self.file.size is None and "Transfer-Encoding" not in headers:
            raise self._wrong("nobody says how long it is")
        self.discard()
        state = _state(headers)
        if state and length is not None:
            self._marks = {"name": self.file.name, "state": state, "size": length}
            self._note.write_text(json.dumps(self._marks), encoding="ascii")

    def append(self, response: requests.Response, stop: threading.Event) -> None:
        """Write a body as it comes, in constant memory."""
        with self._path.open("ab") as stream:
            size = stream.tell()
            self._catch_up(size)
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                if stop.is_set():
                    raise Stopped
                size += len(chunk)
                if self.file.size is not None and size > self.file.size:
                    raise self._wrong("more comes")
                stream.write(chunk)
                self._heard(len(chunk))
                if self.file.sha256:
                    self._hash.update(chunk)
                    self._hashed = size

    def require_content(self) -> None:
        """Hold what has come against what the file must be; what is not it is thrown away."""
        size = self.size
        if self.file.size not in (None, size):
            self.discard()
            raise self._wrong(f"{size:,} B came")
        self._catch_up(size)
        found = self._hash.hexdigest()
        if self.file.sha256 not in (None, found):
            self.discard()
            raise self._wrong(f"what came has another sha256 ({found[:12]})")

    def move_to(self, target: Path) -> None:
        """Give it its name: it is whole."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path.replace(target)
        except OSError as error:
            if error.errno not in _NAME_FAULTS:
                raise
            raise RefusedError(f"this disk takes no such name ({error.strerror})") from error
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Begin anew."""
        self._heard(-self.size)
        self._path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        self._marks = {}
        self._hash, self._hashed = hashlib.sha256(), 0

    def _catch_up(self, size: int) -> None:
        """Hash what lies here already."""
        if self.file.sha256 is None or self._hashed == size:
            return
        with self._path.open("rb") as stream:
            self._hash = hashlib.file_digest(stream, "sha256")
        self._hashed = size

    def _wrong(self, what: str) -> WrongContentError:
        size = "" if self.file.size is None else f" of {self.file.size:,} B"
        return WrongContentError(f"Kaggle does not give the file{size}: {what}")

    def _read_note(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            marks = json.loads(self._note.read_bytes())
            if isinstance(marks, dict) and marks.get("name") == self.file.name:
                state, size = marks.get("state"), marks.get("size")
                if isinstance(state, str) and isinstance(size, int) and self.size <= size:
                    return {"name": self.file.name, "state": state, "size": size}
        return {}


def _attempt(session: requests.Session, what: _Partial, stop: threading.Event) -> None:
    """Ask once for what is missing, and write what comes."""
    name = f"the output {what.file.name}"
    # Encoded, its length would be another one, and a part of it nothing to go on with.
    headers = {"Accept-Encoding": "identity", **what.headers()}
    timeout = (CONNECT_SECONDS, SILENCE_SECONDS)
    with words(name):
        try:
            response = session.get(what.file.url, headers=headers, stream=True, timeout=timeout)
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise NotFoundError(f"{name}: it has no usable address ({error})") from error
        with response:
            _require_body(name, response, what)
            what.begin(response)
            try:
                what.append(response, stop)
            except urllib3.exceptions.HTTPError as error:
                raise TransientError(f"{name}: cut after {what.size:,} B", "Try again.") from error


def _require_body(name: str, response: requests.Response, what: _Partial) -> None:
    """Raise what an answer without the file means; an address is refused once it has expired."""
    code = response.status_code
    if code in (200, 206):
        return
    if code == 416:
        what.discard()
        raise TransientError(f"{name}: what had come was no beginning of it")
    if code == 429 or code == 408 or code >= 500:
        error = (
            RateLimitedError(f"{name}: too many calls", "Try again in some minutes.")
            if code == 429
            else TransientError(f"{name}: Kaggle has a fault of its own ({code})")
        )
        error.retry_after = retry_after(response)
        raise error
    raise NotFoundError(f"{name}: its address is refused ({code})", "Pull again.")


def _state(headers: Any) -> str | None:
    """What If-Range may name: a strong ETag, else a time (RFC 9110, 13.1.5)."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _is_encoded(response: requests.Response) -> bool:
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def _length(headers: Any) -> int | None:
    stated = str(headers.get("Content-Length", ""))
    return int(stated) if re.fullmatch(r"\d{1,18}", stated) else None


def _pause(error: int) -> float:
    """Seconds before the attempt after the n-th fault: many clients must not come back at once."""
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**error)
