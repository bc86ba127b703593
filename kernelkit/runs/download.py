"""Bring home what a run left: every file of its listing that has a place here, several at once.

A file is checked as it comes: against the run's own manifest where that lists it, else against
the size of the listing. What has come stays, so that the next pull goes on from there.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from kernelkit.errors import (
    CapacityError,
    KernelkitError,
    LocalError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle import Kaggle, OutputFile, Stopped, Transfer, download
from kernelkit.runs.verify import MANIFEST_NAME, OWN_NAMES, PARTIAL_FOLDER, promised, unpacked_name
from kernelkit.runs.watch import Run
from kernelkit.storage import PathAllocator, UnsafePathError, printable

AT_ONCE = 4  # more brings nothing on a home's line, and Kaggle counts calls
TICK_SECONDS = 0.2  # between two looks at how far it is
SPARE_BYTES = 16 << 20  # left free on the disk: the log, the record, everybody else's
MANIFEST_ATTEMPTS = 3  # an error page in its place would cost the verdict
JOIN_SECONDS = 1.0  # for a download that was stopped; one in silence ends with the process


@dataclass(frozen=True)
class Progress:
    """How far a pull is."""

    came: int
    """Bytes that lie here."""

    size: int
    """Bytes of all files together, as far as their sizes are known."""

    files: int
    """Of them whole."""

    of: int


@dataclass(frozen=True)
class Selection:
    """Which outputs are wanted: names, and patterns as a shell has them; none of both is all."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.names and not self.patterns

    def takes(self, name: str) -> bool:
        """Whether an output is wanted."""
        chosen = name in self.names or any(fnmatchcase(name, p) for p in self.patterns)
        return self.everything or chosen


EVERYTHING = Selection()


@dataclass(frozen=True)
class DownloadResult:
    """What a pull has brought."""

    names: tuple[str, ...]
    """Of the files that were wanted and are here."""

    left_behind: dict[str, str]
    """Name → why it has no place here: no other pull would change that."""

    refused: dict[str, str]
    """Name → what Kaggle gave instead of the file, each time."""

    left_out: tuple[str, ...]
    """What was not wanted and is not here."""


OnEvent = Callable[[Progress | str], None]


def pull(
    kaggle: Kaggle,
    run: Run,
    folder: Path,
    declared: Sequence[str] = (),
    selection: Selection = EVERYTHING,
    *,
    on_event: OnEvent,
) -> DownloadResult:
    """Bring the wanted outputs of a run that has ended, and its log, into the run's folder.

    Raises:
        UnreachableError, CapacityError: not all came, for now; the next pull goes on there.
        MachineError: the disk is full, or the folder cannot be written.
    """
    listing = _Listing(kaggle, run, on_event)
    try:
        placed, left_behind = _places(folder, listing.files, run, declared, on_event)
        fetching = _Fetching(kaggle, folder, listing, on_event)
        refused = _fetch_manifest(fetching, placed, folder)
        checks = promised(folder) or {}
        wanted = {
            _expected(file, checks.get(file.name)): target
            for file, target in placed.items()
            if file.name != MANIFEST_NAME and selection.takes(file.name)
        }
        here = {file for file, target in wanted.items() if _is_here(file, target)}
        missing = {file: target for file, target in wanted.items() if file not in here}
        refused |= fetching.fetch(missing, done=here)
        for name, reason in refused.items():
            _told(on_event, name, reason)
        _write_log(folder / f"{run.slug}.log", listing.log)
        _clear_partials(folder / PARTIAL_FOLDER, selection)
    except OSError as error:
        raise _machine_error(folder, error) from error
    here_now = {file.name for file, target in placed.items() if target.is_file()}
    return DownloadResult(
        tuple(file.name for file in placed if file.name in here_now),
        left_behind,
        refused,
        tuple(sorted({file.name for file in placed} - here_now - refused.keys())),
    )


@contextmanager
def alone(folder: Path, on_event: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's folder against other pulls of the same; waits for the one that has it."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise LocalError(f"{folder} cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_event(f"another pull is at work in {folder}: waiting for its end")
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:
            on_event(f"{folder} lies on a disk without locks: let one pull at a time work there")
        yield
    finally:
        os.close(held)


class _Listing:
    """A run's outputs as Kaggle lists them; their addresses hold for a while only."""

    def __init__(self, kaggle: Kaggle, run: Run, on_event: OnEvent) -> None:
        self._kaggle, self._run = kaggle, run
        self._lock = threading.Lock()
        files, self.log = kaggle.outputs(run.owner, run.slug, run.version)
        self._urls = {file.name: file.url for file in files}
        sizes = self._sizes(on_event) if files else {}
        # Kaggle leaves out what is 0: where any size is given, none is an empty file's.
        known = any(sizes.values())
        self.files = [replace(file, size=sizes.get(file.name) if known else None) for file in files]

    def _sizes(self, on_event: OnEvent) -> dict[str, int]:
        try:
            return self._kaggle.output_sizes(self._run.owner, self._run.slug, self._run.version)
        except RefusedError as error:
            on_event(f"the sizes of the outputs are not known: {error}")
            return {}

    def renew(self, file: OutputFile) -> OutputFile:
        """The same file by an address that was just given out."""
        with self._lock:
            if self._urls.get(file.name) == file.url:  # else another download has just asked
                run = self._run
                files, _ = self._kaggle.outputs(run.owner, run.slug, run.version)
                self._urls = {file.name: file.url for file in files}
            return replace(file, url=self._urls.get(file.name, file.url))


@dataclass
class _Fetching:
    """Downloads, several at once, in threads that a silent server cannot hold back at the end."""

    kaggle: Kaggle
    folder: Path
    listing: _Listing
    on_event: OnEvent
    _came: int = 0
    _count: threading.Lock = field(default_factory=threading.Lock)

    def fetch(
        self, files: dict[OutputFile, Path], done: Collection[OutputFile] = ()
    ) -> dict[str, str]:
        """Fetch each file to its path; those that Kaggle does not give, and why.

        Raises:
            UnreachableError, CapacityError: after everything else has come, or nothing more does.
            MachineError: at once.
        """
        self._require_room(files)
        self._came = sum(file.size or 0 for file in done)
        size = self._came + sum(file.size or 0 for file in files)
        of = len(done) + len(files)
        refused: dict[str, str] = {}
        late: list[tuple[str, KernelkitError]] = []
        in_a_row = 0
        with closing(self._outcomes(files, size, len(done), of)) as outcomes:
            for number, (file, error) in enumerate(outcomes, 1):
                if error is None:
                    in_a_row = 0
                    came = _bytes(files[file].stat().st_size)
                    self.on_event(f"pulled {printable(file.name)} ({came})")
                elif isinstance(error, RefusedError):
                    refused[file.name] = str(error)
                elif isinstance(error, UnreachableError | CapacityError):
                    late.append((file.name, error))
                    in_a_row += 1
                    if in_a_row == AT_ONCE:
                        break
                elif isinstance(error, LocalError):
                    raise self._still_to_come(error, files)
                else:
                    raise error
                self.on_event(Progress(self._came, size, len(done) + number - len(late), of))
        if late:
            raise self._incomplete(late, files)
        return refused

    def _outcomes(
        self, files: dict[OutputFile, Path], size: int, done: int, of: int
    ) -> Generator[tuple[OutputFile, BaseException | None], None, None]:
        """Each file as its download ends, and with what fault."""
        waiting: queue.SimpleQueue[OutputFile] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[OutputFile, BaseException | None]] = queue.SimpleQueue()
        for file in files:
            waiting.put(file)
        transfer = Transfer(self._heard, self.listing.renew)

        def work() -> None:
            session = self.kaggle.file_session()
            while not transfer.stop.is_set():
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    download(session, file, files[file], self._partial(file), transfer)
                except Stopped:
                    return
                except BaseException as error:
                    ended.put((file, error))
                else:
                    ended.put((file, None))

        count = min(AT_ONCE, len(files))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            left = len(files)
            while left:
                try:
                    outcome = ended.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    self.on_event(Progress(self._came, size, done + len(files) - left, of))
                    continue
                left -= 1
                yield outcome
        finally:
            transfer.stop.set()
            end = time.monotonic() + JOIN_SECONDS
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))

    def _heard(self, more: int) -> None:
        with self._count:
            self._came += more

    def _partial(self, file: OutputFile) -> Path:
        """Not beside the file: its name may have no room for another ending."""
        return self.folder / PARTIAL_FOLDER / sha256(file.name.encode()).hexdigest()[:32]

    def _missing(self, files: dict[OutputFile, Path]) -> int:
        """Bytes that are still to come."""
        partials = [(file, self._partial(file)) for file in files if not files[file].is_file()]
        return sum(
            max(0, (file.size or 0) - (path.stat().st_size if path.is_file() else 0))
            for file, path in partials
        )

    def _require_room(self, files: dict[OutputFile, Path]) -> None:
        partials = self.folder / PARTIAL_FOLDER
        if partials.is_symlink():
            raise LocalError(f"{partials} is a link", "Remove it, then pull again.")
        partials.mkdir(exist_ok=True)
        missing, free = self._missing(files), shutil.disk_usage(self.folder).free
        if missing and missing + SPARE_BYTES > free:
            raise LocalError(
                f"the disk of {self.folder} is too full: {_bytes(missing)} are to come, "
                f"{_bytes(free)} are free, and {_bytes(SPARE_BYTES)} must be left",
                f"Make room for {_bytes(missing + SPARE_BYTES - free)} more, then pull again.",
            )

    def _still_to_come(self, error: LocalError, files: dict[OutputFile, Path]) -> LocalError:
        return LocalError(
            f"{error}. {_bytes(self._missing(files))} are still to come",
            "Nothing there counts as complete. Make room, then pull again: it goes on there.",
        )

    def _incomplete(
        self, late: list[tuple[str, KernelkitError]], files: dict[OutputFile, Path]
    ) -> KernelkitError:
        name, first = late[0]
        more = f", and {len(late) - 1} more" if len(late) > 1 else ""
        return type(first)(
            f"not everything came: {printable(name)}{more}. {first}",
            f"{_bytes(self._missing(files))} are still to come. Pull again: it goes on there.",
        )


def _places(
    folder: Path, files: Sequence[OutputFile], run: Run, declared: Sequence[str], on_event: OnEvent
) -> tuple[dict[OutputFile, Path], dict[str, str]]:
    """Where each file goes, and why some of them go nowhere."""
    own = [*(OWN_NAMES - {MANIFEST_NAME}), f"{run.slug}.log"]
    unpacked = [unpacked_name(name) for name in declared if name.endswith(".zip")]
    partials = [PARTIAL_FOLDER, *(f"{name}.partial" for name in [*own, *unpacked])]
    places = PathAllocator(folder, [*own, *unpacked, *partials])
    placed: dict[OutputFile, Path] = {}
    left_behind: dict[str, str] = {}
    for file in files:
        try:
            placed[file] = places.take(file.name)
        except UnsafePathError as error:
            left_behind[printable(file.name)] = _told(on_event, file.name, str(error))
    return placed, left_behind


def _told(on_event: OnEvent, name: str, reason: str) -> str:
    on_event(f"left on Kaggle: {printable(name)!r} ({reason})")
    return reason


def _fetch_manifest(
    fetching: _Fetching, placed: dict[OutputFile, Path], folder: Path
) -> dict[str, str]:
    """The run's manifest before everything that it lists, always anew: it may have come wrong."""
    found = {file: target for file, target in placed.items() if file.name == MANIFEST_NAME}
    refused: dict[str, str] = {}
    for _ in range(MANIFEST_ATTEMPTS if found else 0):
        refused = fetching.fetch(found)
        if promised(folder) is not None:
            return {}
    return refused


def _expected(file: OutputFile, check: Mapping[str, Any] | None) -> OutputFile:
    """A file with what the run has written of it; its own word counts for more than a listing."""
    return replace(file, size=check["size"], sha256=check["sha256"]) if check else file


def _is_here(file: OutputFile, target: Path) -> bool:
    """Whether an earlier pull has brought it whole."""
    if file.size is None or not target.is_file() or target.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return True
    with target.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest() == file.sha256


def _clear_partials(folder: Path, selection: Selection) -> None:
    """All has come that was wanted; of a part of the files, the others may still lie there."""
    if selection.everything:
        shutil.rmtree(folder)
    else:
        with suppress(OSError):
            folder.rmdir()


def _write_log(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def _machine_error(folder: Path, error: OSError) -> LocalError:
    return LocalError(
        f"{folder} cannot be written: {error.strerror}",
        "Nothing there counts as complete. Make room, then pull again.",
    )


def _bytes(size: int) -> str:
    """For people: 1.2 GB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
