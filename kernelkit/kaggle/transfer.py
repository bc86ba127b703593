"""Download one output: an interrupted download resumes, and a file appears only when complete.

The bytes so far are in a partial file. Next to it, a note keeps the server's mark of the file's
state: a strong ETag, else the time of the last change [V: the emulator; A: Kaggle's storage sends
both]. The next attempt, in this process or a later one, asks for the rest of exactly that state.
"""

from __future__ import annotations

import errno
import hashlib
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests
import urllib3
from pydantic import BaseModel
from requests.structures import CaseInsensitiveDict

from kernelkit.errors import LocalError, NotFoundError, RateLimitedError, RefusedError
from kernelkit.kaggle.answers import TransientError, calling, retry_after
from kernelkit.kaggle.types import CONNECT_SECONDS, OutputFile
from kernelkit.kaggle.waiting import within
from kernelkit.storage import DocumentError, as_json, read_model, write_atomically

SILENCE_SECONDS = 20  # of a server in the middle of a file; a large file may take hours
SLOW_SECONDS = 60  # in which at least ADVANCE_BYTES must arrive
FAILURES_IN_A_ROW = 5  # without any bytes between them
FAILING_SECONDS = 60  # since the first of those: "unreachable" is reported within 100 s in all
WRONG_CONTENTS = 3  # a bad download is repeated, but not forever
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
LONGEST_RETRY_AFTER_SECONDS = 60  # a server that asks for more is reported as an error
ADVANCE_BYTES = 1 << 16  # fewer bytes between two failures do not count as progress
CHUNK_BYTES = 1 << 18

# How a disk refuses a file name.
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR)
_HEAD_BYTES = 1 << 12
_ERROR_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,999}?-->\s*)?"
    rb"(?:<!doctype html\b|<html\b|<head\b|<body\b|<error>|\{\s*\"code\"\s*:\s*[45]\d\d\s*,)",
    re.IGNORECASE | re.DOTALL,
)
"""How a page of Kaggle or of its storage begins that is sent instead of a file, with status 200."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


class WrongContentError(RefusedError):
    """Kaggle sends something else: another length, another sha256, or an error page."""


class Stopped(Exception):
    """The download was asked to stop; the bytes so far are kept."""


@dataclass
class Transfer:
    """What several downloads share: how they report bytes, renew addresses and are stopped."""

    on_bytes: Callable[[int], None] = lambda _: None
    """Called with the number of new bytes; negative if a download starts over."""

    renew: Callable[[OutputFile], OutputFile] | None = None
    """Returns the file with a fresh address, after the old one was refused."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Once set, every download ends with `Stopped`."""


def download(
    session: requests.Session,
    file: OutputFile,
    target: Path,
    partial: Path | None = None,
    transfer: Transfer | None = None,
) -> None:
    """Download one output to `target`; until it is complete its bytes are in `partial`.

    Raises:
        NotFoundError: its address is refused, also after it was renewed.
        WrongContentError: what Kaggle sends is not the file, several times in a row.
        UnreachableError, CapacityError: it is unavailable for now; the bytes so far are kept.
        RefusedError: this disk does not accept the file name.
        LocalError: the disk is full, or cannot be written.
        Stopped: `transfer.stop` was set; the bytes so far are kept.
    """
    transfer = transfer or Transfer()
    what = _Partial(file, partial or target.with_name(f"{target.name}.partial"), transfer.on_bytes)
    wrong = failures = 0
    most, since = what.size, time.monotonic()
    while True:
        try:
            if not what.is_complete:
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
                failures, since, most = 0, time.monotonic(), what.size
            failures += 1
            asked = 0.0 if isinstance(error, NotFoundError) else error.retry_after or 0.0
            spent = time.monotonic() - since > FAILING_SECONDS
            if failures == FAILURES_IN_A_ROW or spent or asked > LONGEST_RETRY_AFTER_SECONDS:
                raise
            if isinstance(error, NotFoundError):
                if transfer.renew is None:
                    raise
                what.file = transfer.renew(what.file)
            pause = max(_pause(failures), asked)
        if transfer.stop.wait(pause):
            raise Stopped


class _Marks(BaseModel):
    """Which state of which file a partial file belongs to."""

    name: str
    state: str
    size: int


class _Partial:
    """The bytes of a file so far, and the state of the file that they belong to."""

    def __init__(self, file: OutputFile, path: Path, on_bytes: Callable[[int], None]) -> None:
        self.file = file
        self._path, self._note = path, path.with_name(f"{path.name}.json")
        self._on_bytes = on_bytes
        self._hash, self._hashed = hashlib.sha256(), 0
        self._marks = self._read_note()
        if self._marks:
            self._on_bytes(self.size)
        else:
            self._path.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there: an earlier process may have ended before the rename."""
        return self._marks is not None and self._path.exists() and self.size == self._marks.size

    def headers(self) -> dict[str, str]:
        """Ask for the rest, or for the whole file if its state has changed since."""
        if not self._marks or not self.size:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._marks.state}

    def begin(self, response: requests.Response) -> None:
        """Get ready for a body.

        Raises:
            WrongContentError: its length is not that of the file.
            TransientError: it is a part that was not requested.
        """
        headers = response.headers
        if response.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            marks = self._marks
            same = found and marks and (int(found[1]), int(found[2])) == (self.size, marks.size)
            changed = marks is None or _state(headers) not in (None, marks.state)
            if not same or changed or _is_encoded(response):
                self.discard()
                raise TransientError(f"the output {self.file.name}: an unrequested part was sent")
            return
        length = None if _is_encoded(response) else _length(headers)
        if None not in (length, self.file.size) and length != self.file.size:
            raise self._wrong(f"it sends {length:,} B ({headers.get('Content-Type', 'no type')})")
        if length is None and self.file.size is None and "Transfer-Encoding" not in headers:
            raise self._wrong("the length is unknown")
        kind = str(headers.get("Content-Type", "")).partition(";")[0].strip().lower()
        if self._is_unknown and kind in ("text/html", "application/xhtml+xml"):
            raise self._wrong(f"it sends a page ({kind})")
        self.discard()
        state = _state(headers)
        if state and length is not None:
            self._marks = _Marks(name=self.file.name, state=state, size=length)
            write_atomically(self._note, as_json(self._marks.model_dump()))

    def append(self, response: requests.Response, stop: threading.Event) -> None:
        """Write a body as it arrives, in constant memory."""
        with self._path.open("ab") as stream:
            size = stream.tell()
            self._catch_up(size)
            before, checked = size, time.monotonic()
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                if stop.is_set():
                    raise Stopped
                size += len(chunk)
                if time.monotonic() - checked > SLOW_SECONDS:
                    if size - before < ADVANCE_BYTES:
                        raise TransientError(
                            f"the output {self.file.name}: only {size - before:,} B arrived in "
                            f"{SLOW_SECONDS} s"
                        )
                    before, checked = size, time.monotonic()
                if self.file.size is not None and size > self.file.size:
                    raise self._wrong("it sends more")
                stream.write(chunk)
                self._on_bytes(len(chunk))
                if self.file.sha256:
                    self._hash.update(chunk)
                    self._hashed = size

    def require_content(self) -> None:
        """Compare the bytes with what the file must be; discard them if they differ."""
        size = self.size
        if self.file.size not in (None, size):
            self.discard()
            raise self._wrong(f"it sent {size:,} B")
        if self._is_unknown and (page := _ERROR_PAGE.match(self._head())):
            self.discard()
            raise self._wrong(f"it sent a page ({page[0].strip().decode(errors='replace')!r:.60})")
        self._catch_up(size)
        found = self._hash.hexdigest()
        if self.file.sha256 not in (None, found):
            self.discard()
            raise self._wrong(f"the content has another sha256 ({found[:12]})")

    def move_to(self, target: Path) -> None:
        """Give the complete file its name."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path.replace(target)
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            raise RefusedError(f"this disk refuses the name ({error.strerror})") from error
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Start over."""
        self._on_bytes(-self.size)
        self._path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        self._marks = None
        self._hash, self._hashed = hashlib.sha256(), 0

    @property
    def _is_unknown(self) -> bool:
        """Whether neither its size nor its sha256 can show that an error page is not the file."""
        page = self.file.name.lower().endswith((".html", ".htm", ".xhtml", ".xml", ".svg"))
        return self.file.size is None and self.file.sha256 is None and not page

    def _head(self) -> bytes:
        with self._path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)

    def _catch_up(self, size: int) -> None:
        """Hash the bytes that are already there."""
        if self.file.sha256 is None or self._hashed == size:
            return
        with self._path.open("rb") as stream:
            self._hash = hashlib.file_digest(stream, "sha256")
        self._hashed = size

    def _wrong(self, what: str) -> WrongContentError:
        size = "" if self.file.size is None else f" of {self.file.size:,} B"
        return WrongContentError(f"Kaggle does not send the file{size}: {what}")

    def _read_note(self) -> _Marks | None:
        with suppress(DocumentError):
            marks = read_model(self._note, _Marks)
            if marks.name == self.file.name and self.size <= marks.size:
                return marks
        return None


def _attempt(session: requests.Session, what: _Partial, stop: threading.Event) -> None:
    """Ask once for what is missing, and write what arrives."""
    name = f"the output {what.file.name}"
    # With an encoding the length would differ, and a part could not be resumed.
    headers = {"Accept-Encoding": "identity", **what.headers()}
    timeout = (CONNECT_SECONDS, SILENCE_SECONDS)
    with calling(name):
        try:
            response = within(
                lambda: session.get(what.file.url, headers=headers, stream=True, timeout=timeout),
                CONNECT_SECONDS + SILENCE_SECONDS,
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise NotFoundError(f"{name}: its address is not valid") from error
        with response:
            _require_body(name, response, what)
            what.begin(response)
            try:
                what.append(response, stop)
            except urllib3.exceptions.HTTPError as error:
                raise TransientError(
                    f"{name}: the connection broke after {what.size:,} B", "Try again."
                ) from error


def _require_body(name: str, response: requests.Response, what: _Partial) -> None:
    """Raise the error that a response without the file means; addresses expire."""
    code = response.status_code
    if code in (200, 206):
        return
    if code == 416:
        what.discard()
        raise TransientError(f"{name}: the partial download no longer matches; starting over")
    if code == 429 or code == 408 or code >= 500:
        error = (
            RateLimitedError(f"{name}: too many calls", "Try again in some minutes.")
            if code == 429
            else TransientError(f"{name}: Kaggle reports an error of its own ({code})")
        )
        error.retry_after = retry_after(response)
        raise error
    raise NotFoundError(f"{name}: its address is refused ({code})", "Pull again.")


def _state(headers: CaseInsensitiveDict[str]) -> str | None:
    """What the header If-Range may contain: a strong ETag, else a time (RFC 9110, 13.1.5)."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _is_encoded(response: requests.Response) -> bool:
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def _length(headers: CaseInsensitiveDict[str]) -> int | None:
    stated = str(headers.get("Content-Length", ""))
    return int(stated) if re.fullmatch(r"\d{1,18}", stated) else None


def _pause(failures: int) -> float:
    """Seconds before the next attempt; random, so that many clients do not return at once."""
    return random.uniform(0.5, 1.0) * min(
        LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**failures
    )
