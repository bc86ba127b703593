"""Reads a folder that becomes a dataset: its files by path and hash, and what must not leave."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kernelkit.bundle.bundle import digest_of
from kernelkit.bundle.files import is_key_name
from kernelkit.bundle.secrets import (
    PRIVATE_KEY_KIND,
    Credential,
    NamedText,
    is_text,
    scan,
    search_bytes,
    searchable_text,
)
from kernelkit.errors import ConfigError, LocalError
from kernelkit.notebook.problems import Problem
from kernelkit.project.archives import UNREADABLE, archived_files
from kernelkit.storage import (
    UnsafePathError,
    opened,
    safe_path,
    sha256_of,
)

SEARCHED_BYTES = 32 << 20
"""Of one text, for credentials of every kind: at most 0.2 s a megabyte."""

UNPACKED_BYTES = 128 << 20
"""Searched of what an archive holds: one may unpack to any size."""

HEAD_BYTES = 1 << 16

_LEFT_OUT = {
    "git's own": re.compile(r"\.git"),
    "a cache": re.compile(r"__pycache__|\.ipynb_checkpoints|\.cache"),
    "of the file manager": re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini"),
    "the official client's": re.compile(r"dataset-metadata\.json"),
}
"""Names of files and folders that no dataset needs; the last one only at the top."""


@dataclass(frozen=True)
class FolderFile:
    """One file, as it was when the folder was read."""

    path: str
    """Below the folder, with forward slashes."""

    file: Path
    size: int
    """In bytes."""

    sha256: str
    modified: int
    """In nanoseconds since the epoch."""

    def require_unchanged(self) -> None:
        """Check that the file is still the one whose hash is known.

        Raises:
            LocalError: it has changed, or is gone.
        """
        try:
            now = self.file.stat()
        except OSError as error:
            raise LocalError(f"{self.file} cannot be read: {error.strerror}") from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified):
            raise LocalError(f"{self.file} has changed since it was read", "Run the command again.")


@dataclass(frozen=True)
class FolderContents:
    """The files of a folder, sorted by path."""

    folder: Path
    files: tuple[FolderFile, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Path (a folder ends in a slash) → why it is not uploaded."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the path and content of every file."""
        return digest_of([(file.path, file.sha256) for file in self.files])


def read_folder(folder: Path) -> FolderContents:
    """Read every file of a folder; links to files inside the folder count as those files.

    Raises:
        ConfigError: there is no such folder, it has no files, a name cannot be carried to every
            system, a link leads out of it or to a folder, or something is not a regular file.
        LocalError: a file cannot be read.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {what}", "Name the folder whose files become the dataset.")
    home = folder.resolve()
    files: list[FolderFile] = []
    left_out: dict[str, str] = {}
    for above, folders, names in os.walk(folder, onerror=_refuse):
        below = Path(above).relative_to(folder)
        for name in list(folders):
            path = (below / name).as_posix()
            if _is_link(Path(above, name)):
                raise ConfigError(
                    f"{folder / path} is a link to a folder", "Put the files themselves there."
                )
            if reason := _reason(path):
                folders.remove(name)
                left_out[f"{path}/"] = reason
        folders.sort()
        if not folders and not names and below.parts:
            left_out[f"{below.as_posix()}/"] = "an empty folder, which a dataset cannot hold"
        for name in names:
            path = (below / name).as_posix()
            if reason := _reason(path):
                left_out[path] = reason
            else:
                files.append(_read(home, Path(above, name), path))
    if not files:
        raise ConfigError(f"{folder} has no files", "A dataset needs at least one.")
    return FolderContents(folder, tuple(sorted(files, key=lambda file: file.path)), left_out)


def find_secrets(
    contents: FolderContents,
    place: str,
    own: Collection[Credential] = (),
    allowed: Collection[str] = (),
) -> Iterator[Problem]:
    """Credentials among the files, which must not be uploaded.

    Texts are searched for credentials of every kind, all other files for `own`, those of this
    machine, and for private keys; the files in archives too. `place` is the folder as messages and
    `allowed` write it.

    Raises:
        LocalError: a file cannot be read.
    """
    for file in contents.files:
        name = f"{place}/{file.path}"
        if is_key_name(file.path) and name not in allowed:
            yield Problem(
                name,
                "this is the usual name of a file of credentials",
                "Move it out of the folder. If it holds none, set allow_secrets = "
                f'["{name}"] in [tool.kernelkit].',
            )
            continue
        try:
            yield from _secrets_of(file, name, own, allowed)
            yield from _secrets_inside(file, name, own, allowed)
        except OSError as error:
            raise LocalError(f"{file.file} cannot be read: {error.strerror}") from error


def _secrets_of(
    file: FolderFile, name: str, own: Collection[Credential], allowed: Collection[str]
) -> Iterator[Problem]:
    with opened(file.file) as stream:
        head = stream.read(HEAD_BYTES)
        searched = 0
        if is_text(head):
            text = searchable_text(head + stream.read(SEARCHED_BYTES - len(head)))
            searched = stream.tell()
            for finding in scan([NamedText(name, text)], own, allowed):
                yield _secret(finding.where, finding.kind)
        stream.seek(max(0, searched - HEAD_BYTES))
        if searched < file.size and name not in allowed:
            for kind in sorted(search_bytes(stream, own)):
                yield _secret(name, kind)


def _secrets_inside(
    file: FolderFile, name: str, own: Collection[Credential], allowed: Collection[str]
) -> Iterator[Problem]:
    """Credentials in the files of an archive; in a wheel, which others publish, only `own`."""
    left = UNPACKED_BYTES
    is_wheel = file.path.endswith(".whl")
    if is_wheel and not own:
        return
    try:
        for inner, stream in archived_files(file.file):
            where = f"{name}/{inner}"
            if left <= 0:
                return
            head = stream.read(HEAD_BYTES)
            if is_text(head) and not is_wheel:
                content = head + stream.read(min(left, SEARCHED_BYTES) - len(head))
                text = searchable_text(content)
                for finding in scan([NamedText(where, text)], own, allowed):
                    yield _secret(finding.where, finding.kind)
            else:
                content = head + stream.read(max(0, left - len(head)))
                for kind in sorted(search_bytes(io.BytesIO(content), own)):
                    if where not in allowed and not (is_wheel and kind == PRIVATE_KEY_KIND):
                        yield _secret(where, kind)
            left -= len(content)
    except UNREADABLE:
        return  # an unusual archive; its own bytes are searched


def _secret(where: str, kind: str) -> Problem:
    return Problem(
        where,
        f"looks like {kind}",
        f'Remove it. If it is not a secret, set allow_secrets = ["{where}"] in [tool.kernelkit].',
    )


def _reason(path: str) -> str | None:
    """Why a path is not uploaded."""
    name = path.rpartition("/")[2]
    reason = next((why for why, names in _LEFT_OUT.items() if names.fullmatch(name)), None)
    return None if reason == "the official client's" and "/" in path else reason


def _read(home: Path, file: Path, path: str) -> FolderFile:
    try:
        if not path.isprintable():
            raise UnsafePathError("it contains control characters")
        safe_path(path)
    except UnsafePathError as error:
        raise ConfigError(f"the file name {path!r}: {error}", "Rename the file.") from None
    try:
        if file.is_symlink() and not (target := _target(file)).is_relative_to(home):
            raise ConfigError(
                f"{file} is a link to {target}, outside of the folder", "Put the file itself there."
            )
        details = file.stat()
        if not stat.S_ISREG(details.st_mode):
            raise ConfigError(f"{file} is not a regular file", "Move it out of the folder.")
        return FolderFile(
            path=path,
            file=file,
            size=details.st_size,
            sha256=sha256_of(file),
            modified=details.st_mtime_ns,
        )
    except OSError as error:
        raise LocalError(f"{file} cannot be read: {error.strerror}") from error


def _is_link(folder: Path) -> bool:
    try:
        return folder.is_symlink()
    except OSError as error:  # a path of more than 4096 bytes
        raise LocalError(f"{folder} cannot be read: {error.strerror}") from error


def _target(link: Path) -> Path:
    """Where a link leads in the end.

    Raises:
        ConfigError: nowhere.
    """
    try:
        return link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        raise ConfigError(f"{link} is a link to nothing", "Remove it.") from None


def _refuse(error: OSError) -> None:
    raise LocalError(f"{error.filename} cannot be read: {error.strerror}") from error
