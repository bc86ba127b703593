"""Low-level jobs on files and texts, each written once: atomic writes, locks, JSON, SHA-256, words.

`PathAllocator` turns names that somebody else chose, a run's outputs or a zip's members, into paths
in a folder. A name is accepted if it means one file below the folder on every operating system.
Any other name is refused with a reason, so that one bad name does not stop the other files.

Kaggle, a run and the files of strangers also choose many of the words that kernelkit prints.
`printable`, `lines_printable` and `one_line` make them safe to show; JSON keeps the data.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from kernelkit.errors import LocalError

if TYPE_CHECKING:  # pydantic takes 0.1 s to import, and `kernelkit --help` does not need it
    from _csv import Reader

    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

COMPONENT_BYTES = 255  # NAME_MAX of all common file systems
PATH_BYTES = 1000  # PATH_MAX is 1024 on macOS and 4096 on Linux
CELL_CHARACTERS = 1 << 28  # of a csv; also in the notebook's runtime, so that both read alike
LINE_CHARACTERS = 4000  # of one printed line
DOCUMENT_BYTES = 64 << 20  # a run manifest of 10,000 outputs has 3 MB

_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_LINE_END = re.compile(r"[^\S\n]*\n\s*")

TERMINAL_COMMANDS = re.compile(
    r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\)|[@-Z\\^_])"
)
"""A whole command of a terminal after ESC: colors, cursor movements, titles, links."""


class DocumentError(LocalError):
    """A JSON file that is missing, damaged, or lacks a key. `reason` does not name the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class MissingDocumentError(DocumentError):
    """There is no such file."""


class UnsafePathError(Exception):
    """A name that must not become a path; the message is the reason."""


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file completely or not at all; text is UTF-8 with the newlines as they are given.

    Several processes may write the same path at once: the last one wins. With `durable`, the
    content is on the disk before the file gets its name, so that it survives a power failure.

    Raises:
        OSError: the file cannot be written; a file that was there before is unchanged.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")  # `path` may have the longest name
    data = content.encode() if isinstance(content, str) else content
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder; the caller holds the folder's lock."""
    for path in folder.glob(".*.partial"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.partial", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def replace_files(files: Mapping[Path, bytes], root: Path) -> None:
    """Write several files below `root`: each replaces the old one only after all are on the disk.

    Missing folders are created. A file that was there keeps its permissions. An interrupt in
    between leaves whole files. No link below `root` is followed, also not one that has appeared
    since the paths were checked.

    Raises:
        OSError: a file cannot be written, or a link has taken the place of a folder.
    """
    partials = {path: f".{secrets.token_hex(8)}.partial" for path in files}
    try:
        for path, partial in partials.items():
            with _opened_folder(root, path.parent) as folder:
                _write_partial(folder, partial, path.name, files[path])
        for path, partial in partials.items():
            with _opened_folder(root, path.parent) as folder:
                os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        for path, partial in partials.items():
            with suppress(OSError), _opened_folder(root, path.parent) as folder:
                os.unlink(partial, dir_fd=folder)


@contextmanager
def _opened_folder(root: Path, folder: Path) -> Iterator[int]:
    """A descriptor of a folder below `root`, which is created where it is missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    descriptor = os.open(root, flags)
    try:
        for part in folder.relative_to(root).parts:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _write_partial(folder: int, partial: str, name: str, content: bytes) -> None:
    """Write a new file in a folder, with the permissions of the file `name`."""
    created = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
    with os.fdopen(created, "wb") as stream:
        stream.write(content)
        with suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(there.st_mode):
                os.fchmod(created, stat.S_IMODE(there.st_mode))


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file, to read its bytes.

    Opening a pipe may wait for ever, and a device may have no end, so nothing else is opened: the
    folder may be a stranger's.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with stream:
        yield stream


def read_file(path: Path, most: int = -1) -> bytes:
    """The content of a regular file, or its first `most` bytes.

    Raises:
        OSError: as `opened`.
    """
    with opened(path) as stream:
        return stream.read(most)


def decoded(data: bytes) -> str:
    """The text of a file that a person wrote: UTF-8, or what its byte-order mark says.

    Editors and shells of Windows write such marks.

    Raises:
        UnicodeDecodeError: it is in another encoding.
    """
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
    marks |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # after those that begin like it
    encoding = next((marks[mark] for mark in marks if data.startswith(mark)), "utf-8-sig")
    return data.decode(encoding)


def as_json(document: object) -> str:
    """JSON in the form that all files of kernelkit have."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def make_ignored_folder(folder: Path) -> None:
    """Create a folder for generated files, with a .gitignore that makes git ignore all of it.

    A folder that has other files belongs to the user, and stays as it is.

    Raises:
        LocalError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            write_atomically(folder / ".gitignore", "*\n")
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from error


def write_json(path: Path, document: object) -> None:
    """Write a JSON file durably and completely; its folder is created where it is missing.

    Raises:
        LocalError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_json(document), durable=True)
    except OSError as error:
        raise LocalError(
            f"{path} cannot be written: {error.strerror}", "Make room, then try again."
        ) from error


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a JSON file into a pydantic model.

    Raises:
        MissingDocumentError: there is no such file.
        DocumentError: the file cannot be read, is not a JSON object, or a key of it is wrong.
    """
    try:
        if path.stat().st_size > DOCUMENT_BYTES:
            raise DocumentError(path, f"larger than {human_size(DOCUMENT_BYTES)}")
        text = read_file(path).decode()
    except FileNotFoundError:
        raise MissingDocumentError(path, "missing") from None
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DocumentError(path, f"cannot be read ({error})") from error
    return parse_model(text, model, path)


def parse_model(text: str | bytes, model: type[Model], source: Path) -> Model:
    """Read the text of a JSON file into a pydantic model; errors name `source` and the key.

    Raises:
        DocumentError: the text is not a JSON object, or a key of it is wrong.
    """
    from pydantic import ValidationError

    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(source, f"cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise DocumentError(source, "is not a JSON object")
    try:
        return model.model_validate(document)
    except (ValidationError, RecursionError) as error:
        problems = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        lines = [
            f'"{".".join(map(str, one["loc"]))}": {one["msg"].removeprefix("Value error, ")}'
            for one in problems
        ]
        raise DocumentError(source, "; ".join(lines) or "nested too deeply") from error


@contextmanager
def locked(
    folder: Path,
    name: str = "",
    *,
    on_wait: Callable[[], None] = lambda: None,
    on_unsupported: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold a lock on a folder, or on the file `name` in it, against other processes.

    The folder is created where it is missing. If another process holds the lock, `on_wait` is
    called first; it may raise to give up. On a disk without locks, `on_unsupported` is called, and
    the work goes on without a lock.

    Raises:
        LocalError: the folder cannot be opened, or its disk has no locks and there is no
            `on_unsupported`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name:
            held = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        else:
            held = os.open(folder, os.O_RDONLY)  # no lock file that a user would see
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:
            if on_unsupported is None:
                raise LocalError(
                    f"{folder} cannot be locked: {error.strerror}",
                    "Move the project to a disk that supports file locks.",
                ) from error
            on_unsupported()
        yield
    finally:
        os.close(held)


def csv_rows(stream: Iterable[str], *, strict: bool = False) -> Reader:
    """The rows of a csv, also with long cells: masks as run lengths take megabytes.

    Raises:
        csv.Error: the text is not a csv, or a cell has more than CELL_CHARACTERS.
    """
    csv.field_size_limit(CELL_CHARACTERS)  # Python's own limit is 131,072
    return csv.reader(stream, strict=strict)


def digest_of_bytes(content: bytes) -> str:
    """The SHA-256 of a file's content that is in memory, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def human_size(size: int) -> str:
    """A size in bytes for people: `1.2 GB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 file`, `2,000 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(line: str) -> str:
    """Control characters as escapes, so that a notebook cannot control the terminal.

    Also those that change the order of text or are invisible, and line ends. Spaces of any width
    stay.
    """
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    if character.isprintable() or character == "\t" or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def lines_printable(text: str) -> str:
    """Like `printable`, for lines of a log: without colors, and only the end of a progress bar."""
    if text.isprintable():
        return text
    lines = TERMINAL_COMMANDS.sub("", text).split("\n")
    return "\n".join(printable(line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def one_line(text: str, characters: int = LINE_CHARACTERS) -> str:
    """Words of somebody else as a part of a line: they cannot begin a line of their own."""
    return _LINE_END.sub(" ", lines_printable(shortened(text, characters)).strip())


def shortened(line: str, characters: int = LINE_CHARACTERS) -> str:
    """A line, or its beginning and how much more there is."""
    more = len(line) - characters
    return line if more <= 0 else f"{line[:characters]}… ({more:,} more characters)"


class PathAllocator:
    """Gives each name a path in a folder, once. `reserved` names are refused."""

    def __init__(self, folder: Path, reserved: Iterable[str] = ()) -> None:
        self._folder = folder
        self._reserved = {_folded(PurePosixPath(name)) for name in reserved}
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def take(self, name: str) -> Path:
        """Reserve and return the path of a file of that name.

        Raises:
            UnsafePathError: the name is not safe, or its path is taken.
        """
        path = safe_path(name)
        if len(str(self._folder / path).encode()) > PATH_BYTES:
            raise UnsafePathError("its path is too long")
        parents = [_folded(parent) for parent in path.parents if parent.parts]
        self._require_free(_folded(path), parents)
        self._require_no_link(path)
        self._files[_folded(path)] = name
        self._folders |= dict.fromkeys(parents, name)
        return self._folder / path

    def _require_free(self, path: str, parents: list[str]) -> None:
        if not self._reserved.isdisjoint([path, *parents]):
            raise UnsafePathError("kernelkit uses this name")
        if path in self._files:
            raise UnsafePathError(
                f"{self._files[path]!r} has this path (some disks do not distinguish the two)"
            )
        if path in self._folders:
            raise UnsafePathError(f"it is a folder of {self._folders[path]!r}")
        for parent in parents:
            if parent in self._files:
                raise UnsafePathError(f"{self._files[parent]!r} is a file")

    def _require_no_link(self, path: PurePosixPath) -> None:
        """A link on the disk would lead out of the folder."""
        for parent in path.parents:
            place = self._folder / parent
            if parent.parts and place.is_symlink():
                raise UnsafePathError(f"{place} is a link")
            if parent.parts and place.exists() and not place.is_dir():
                raise UnsafePathError(f"{place} is not a folder")
        if (self._folder / path).is_symlink():
            raise UnsafePathError(f"{self._folder / path} is a link")
        if (self._folder / path).is_dir():
            raise UnsafePathError(f"{self._folder / path} is a folder")


def safe_path(name: str) -> PurePosixPath:
    """The relative path that a name means on every operating system.

    Raises:
        UnsafePathError: it means no such path, or not the same one everywhere.
    """
    path = PurePosixPath(name)
    if not path.parts:
        raise UnsafePathError("it is empty")
    if path.is_absolute() or _DRIVE.match(name) or "\\" in name:
        raise UnsafePathError("it is not a plain relative path")
    for part in path.parts:
        _require_safe(part)
    return path


def encodable(name: str) -> str:
    """A name as text that any file can take: lone surrogates are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _require_safe(part: str) -> None:
    if part == "..":
        raise UnsafePathError("it leads out of the folder")
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        raise UnsafePathError("it is not valid text") from None
    if size > COMPONENT_BYTES:
        raise UnsafePathError(f"a name in it is longer than {COMPONENT_BYTES} bytes")
    if any(unicodedata.category(character) == "Cc" for character in part):
        raise UnsafePathError("it contains control characters")
    if part[-1] in ". ":
        raise UnsafePathError("a name in it ends in a dot or a space")
    if _RESERVED.fullmatch(part.split(".")[0].rstrip()):
        raise UnsafePathError("a name in it is a device on Windows")


def _folded(path: PurePosixPath) -> str:
    """Equal for paths that some disks do not distinguish: by case, or by the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
