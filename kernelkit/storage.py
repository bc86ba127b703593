"""Names that somebody else chose, a run's outputs or a zip's members, as paths in a folder of ours.

A name has a place where it names one file below the folder on every system that the folder may be
carried to. Any other is left out, with the reason: that costs the files beside it nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

COMPONENT_BYTES = 255  # NAME_MAX of all common file systems
PATH_BYTES = 1000  # PATH_MAX is 1024 on macOS, and 4096 on Linux

_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")


class UnsafePathError(Exception):
    """A name that must not become a path; the message is the reason."""


class PathAllocator:
    """The names that a folder takes, each once. `ours` are those which nobody else may have."""

    def __init__(self, folder: Path, ours: Iterable[str] = ()) -> None:
        self._folder = folder
        self._ours = {_folded(PurePosixPath(name)) for name in ours}
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def take(self, name: str) -> Path:
        """The path of a file of that name; nobody else gets it.

        Raises:
            NoPlace: there is none.
        """
        path = plain_path(name)
        if len(str(self._folder / path).encode()) > PATH_BYTES:
            raise UnsafePathError("its path is too long")
        around = [_folded(parent) for parent in path.parents if parent.parts]
        self._require_free(_folded(path), around)
        self._require_no_link(path)
        self._files[_folded(path)] = name
        self._folders |= dict.fromkeys(around, name)
        return self._folder / path

    def _require_free(self, path: str, around: list[str]) -> None:
        if not self._ours.isdisjoint([path, *around]):
            raise UnsafePathError("kernelkit keeps a file of its own there")
        if path in self._files:
            raise UnsafePathError(
                f"{self._files[path]!r} has its place (a disk may not tell them apart)"
            )
        if path in self._folders:
            raise UnsafePathError(f"it is a folder of {self._folders[path]!r}")
        for parent in around:
            if parent in self._files:
                raise UnsafePathError(f"{self._files[parent]!r} is a file")

    def _require_no_link(self, path: PurePosixPath) -> None:
        """On the disk: a link would lead out of the folder."""
        for parent in path.parents:
            place = self._folder / parent
            if parent.parts and place.is_symlink():
                raise UnsafePathError(f"{place} is a link")
            if parent.parts and place.exists() and not place.is_dir():
                raise UnsafePathError(f"{place} is no folder")
        if (self._folder / path).is_symlink():
            raise UnsafePathError(f"{self._folder / path} is a link")
        if (self._folder / path).is_dir():
            raise UnsafePathError(f"{self._folder / path} is a folder")


def plain_path(name: str) -> PurePosixPath:
    """The relative path that a name means on every system.

    Raises:
        NoPlace: it means none, or not the same one everywhere.
    """
    path = PurePosixPath(name)
    if not path.parts:
        raise UnsafePathError("it is empty")
    if path.is_absolute() or _DRIVE.match(name) or "\\" in name:
        raise UnsafePathError("it is no plain relative path")
    for part in path.parts:
        _require_plain(part)
    return path


def printable(name: str) -> str:
    """A name as text that any file or terminal takes: what it cannot hold is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _require_plain(part: str) -> None:
    if part == "..":
        raise UnsafePathError("it leads out of the folder")
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        raise UnsafePathError("it is no valid text") from None
    if size > COMPONENT_BYTES:
        raise UnsafePathError(f"a name in it is longer than {COMPONENT_BYTES} bytes")
    if any(unicodedata.category(character) == "Cc" for character in part):
        raise UnsafePathError("it holds control characters")
    if part[-1] in ". ":
        raise UnsafePathError("a name in it ends in a dot or a space")
    if _RESERVED.fullmatch(part.split(".")[0].rstrip()):
        raise UnsafePathError("a name in it is a device on Windows")


def _folded(path: PurePosixPath) -> str:
    """Equal for paths that some disks take for one: by case, or by how accents are written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
