"""Files that can be downloaded besides the outputs of runs, each at an address of its own."""

from __future__ import annotations

import os
import secrets
import threading
import urllib.parse
import zipfile
from collections.abc import Mapping
from pathlib import Path

from kernelkit.emulator.fields import JsonObject, iso_time
from kernelkit.emulator.responses import Reply
from kernelkit.emulator.state import StoredFile

Contents = tuple[StoredFile, ...]


class Downloads:
    """The files that clients were sent to, and the archives that were made for them.

    `folder` holds the archives. An address is valid until the emulator ends.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._zipping = threading.Lock()
        self._archived: dict[str, Contents] = {}
        self._files: dict[str, tuple[Path, StoredFile]] = {}

    def redirect(self, path: Path, file: StoredFile) -> Reply:
        """A redirection to a new address of the file."""
        key = secrets.token_hex(16)
        with self._lock:
            self._files[key] = (path, file)
        quoted = urllib.parse.quote(os.fsencode(file.name))
        address = f"{self._endpoint}/download/{key}/{quoted}"
        return Reply(302, headers={"Location": address})

    def archive(self, name: str, key: str, folder: Path | None, files: Contents) -> Reply:
        """A redirection to a zip of files below a folder; it is written again if they changed.

        `key` distinguishes archives of the same name.
        """
        with self._zipping:
            path = self._folder / key / name
            if self._archived.get(f"{key}/{name}") != files:
                _zip(path, {file.name: Path(f"{folder}/{file.name}") for file in files})
                self._archived[f"{key}/{name}"] = files
        return self.redirect(path, _stored(path))

    def archive_of(self, name: str, key: str, member: str, text: str) -> Reply:
        """A redirection to a zip of one file with this text."""
        with self._zipping:
            path = self._folder / key / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.with_suffix(".text")
            content.write_text(text, encoding="utf-8")
            _zip(path, {member: content})
        return self.redirect(path, _stored(path))

    def find(self, key: str, name: str) -> tuple[Path, StoredFile] | None:
        """The file of an address."""
        with self._lock:
            found = self._files.get(key)
        return found if found and found[1].name == name else None


def file_entry(file: StoredFile) -> JsonObject:
    """A file in a list."""
    return JsonObject(
        ref=file.name,
        name=file.name,
        creationDate=iso_time(file.modified),
        totalBytes=file.size or None,
    )


def _stored(path: Path) -> StoredFile:
    details = path.stat()
    return StoredFile(path.name, details.st_size, details.st_mtime)


def _zip(path: Path, files: Mapping[str, Path]) -> None:
    """Write a zip atomically: a client that still reads the previous one can finish."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with zipfile.ZipFile(temporary, "w", strict_timestamps=False) as archive:
        for name, source in files.items():
            archive.write(source, name)
    temporary.replace(path)
