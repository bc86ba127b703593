"""Pull a run: download its outputs, several at once, verify them, and complete the folder.

Each file is checked as it arrives: against the run's own manifest if that lists it, else against
the size in Kaggle's listing. Files that arrived stay, so that the next pull continues from there.
"""

from __future__ import annotations

import difflib
import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

import kernelkit
from kernelkit.errors import (
    CapacityError,
    ConfigError,
    KernelkitError,
    LocalError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle.types import LogEntry, OutputFile, Quota, State, Status, ignore
from kernelkit.runs import store
from kernelkit.runs.identity import Identity
from kernelkit.runs.manifest import (
    RUN_MANIFEST_NAME,
    OutputEntry,
    RunAddress,
    RunEnd,
    Verdict,
)
from kernelkit.runs.store import RunFolder
from kernelkit.runs.verify import (
    OWN_NAMES,
    PARTIAL_FOLDER,
    belongs_to_another_run,
    promised_outputs,
    unpacked_name,
    verify,
)
from kernelkit.runs.watch import EndedRun, follow_run, state_of
from kernelkit.storage import (
    PathAllocator,
    UnsafePathError,
    counted,
    encodable,
    human_size,
    locked,
    remove_partials,
    sha256_of,
    write_atomically,
)

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

AT_ONCE = 4  # more are not faster on a home connection, and Kaggle counts calls
TICK_SECONDS = 0.2  # between two reports of the progress
SPARE_BYTES = 16 << 20  # to leave free on the disk, for the log and other programs
MANIFEST_ATTEMPTS = 3  # an error page instead of the manifest would spoil the verdict
JOIN_SECONDS = 1.0  # for a download that was stopped; a silent one ends with the process


@dataclass(frozen=True)
class Progress:
    """How far a pull is."""

    received: int
    """Bytes on this disk."""

    size: int
    """Bytes of all files together, as far as their sizes are known."""

    files: int
    """Number of complete files."""

    of: int
    """Number of all files."""

    name: str = ""
    """The file that has just been completed, if one has."""


@dataclass(frozen=True)
class Selection:
    """Which outputs to pull: names, and patterns as in a shell. Without any, all of them."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether all outputs are selected."""
        return not self.names and not self.patterns

    def takes(self, name: str) -> bool:
        """Whether an output is selected: by its name, a folder above it, or a pattern."""
        below = any(name.startswith(f"{folder.rstrip('/')}/") for folder in self.names)
        chosen = name in self.names or any(fnmatchcase(name, p) for p in self.patterns)
        return self.everything or chosen or below


EVERYTHING = Selection()


@dataclass(frozen=True)
class DownloadResult:
    """What a download has fetched, and what it has not."""

    names: tuple[str, ...]
    """Files on this disk."""

    left_behind: Mapping[str, str]
    """Name → why it cannot become a path here; another pull would not change that."""

    refused: Mapping[str, str]
    """Name → what Kaggle sent instead of the file, several times in a row."""

    left_out: tuple[str, ...]
    """Files that were not selected and are not on this disk."""

    log: str = ""
    """What the run has printed, as Kaggle keeps it."""

    @property
    def has_left_anything(self) -> bool:
        """Whether Kaggle has at least one file or a log of the run."""
        return bool(self.names or self.log)


@dataclass(frozen=True)
class PulledRun:
    """A folder with what a run left, and the verdict about it."""

    folder: Path
    end: Status
    verdict: Verdict

    left_behind: Mapping[str, str] = field(default_factory=dict)
    """Files that stay on Kaggle, because their names cannot become paths here, and why."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """Files that Kaggle lists and does not send, and what it sent instead."""

    partial: bool = False
    """Whether only some outputs were selected; nothing is known about the others."""

    isolation: str | None = None
    """How a rehearsal isolated the run: "namespace" or "folders"; None for a run on Kaggle."""

    @property
    def word(self) -> str:
        """The state in one word; only the run's own manifest shows that it has stalled."""
        return ended_word(self.end, self.verdict)

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {
            "folder": str(self.folder),
            "state": self.end.state,
            "state_word": self.word,
            "failure": self.end.failure,
            **self.verdict.document,
            "left_behind": {**self.left_behind},
            "refused": {**self.refused},
            "partial": self.partial,
            **({"isolation": self.isolation} if self.isolation else {}),
        }


def ended_word(end: Status, verdict: Verdict) -> str:
    """How a run has ended in one word, from what Kaggle and the run itself say."""
    return "stalled" if end.failed and verdict.stalled else end.word


OnEvent = Callable[[Progress | str], None]


def pull_run(
    kaggle: Kaggle,
    folder: RunFolder,
    selection: Selection = EVERYTHING,
    *,
    deadline: float | None = None,
    on_event: Callable[[Progress | Status | LogEntry | Quota | EndedRun | str], None] = ignore,
) -> PulledRun:
    """Wait for a run's end, download its outputs, and verify them; the verdict may be bad.

    A complete folder stays as it is. A selection of the outputs does not complete the folder.

    Raises:
        ConfigError: the run left nothing with the selected names.
        UnreachableError, CapacityError: some files are missing; the next pull continues from there.
        LocalError: the disk is full, or the folder cannot be written.
    """
    folder.address_at(kaggle.endpoint)  # a run of another Kaggle is an error, also if complete
    if folder.is_complete():
        return use_complete(folder, selection, on_event=on_event)
    end = state_of(kaggle, folder)
    if not end.state.finished:
        end = follow_run(kaggle, folder, deadline=deadline, on_event=on_event)
    return pull_ended_run(kaggle, folder, end, selection, on_event=on_event)


def pull_ended_run(
    kaggle: Kaggle, folder: RunFolder, end: Status, selection: Selection, *, on_event: OnEvent
) -> PulledRun:
    """Download and verify the selected outputs of a run that has ended.

    If everything is selected and sound, this writes run.json, which completes the folder.

    Raises:
        ConfigError: the run left nothing with the selected names.
        UnreachableError, CapacityError: some files are missing; the next pull continues from there.
        LocalError: the disk is full, or the folder cannot be written.
    """
    run = folder.address_at(kaggle.endpoint)
    with _pull_lock(folder.path, on_event):
        remove_partials(folder.path)
        if folder.is_complete():  # through the pull that this one waited for
            return use_complete(folder, selection, on_event=on_event)
        return _pull(kaggle, folder, run, end, selection, on_event)


def use_complete(folder: RunFolder, selection: Selection, *, on_event: OnEvent) -> PulledRun:
    """Verify a complete folder again; nothing is downloaded.

    Raises:
        ConfigError: the run left nothing with the selected names.
        LocalError: run.json or bundle.json is damaged.
    """
    on_event(f"{folder.path} is complete already")
    kept = folder.read_end()
    end = Status(store.recorded_state(folder), (kept.failure if kept else "") or "")
    left_behind = dict((kept.left_behind if kept else None) or {})
    here = (path for path in folder.path.rglob("*") if path.is_file())
    names = tuple(path.relative_to(folder.path).as_posix() for path in here)
    declared = folder.read_bundle().outputs
    _require_known(selection, DownloadResult(names, left_behind, {}, ()), declared, end)
    verdict = verify(folder.path, selection.takes, left_behind, end)
    return PulledRun(folder.path, end, verdict, left_behind, partial=not selection.everything)


def require_everything_sent(pulled: PulledRun) -> None:
    """Check that Kaggle sent every file that it lists, also those that were not declared.

    Raises:
        RefusedError: with the files that it did not send.
    """
    if pulled.refused:
        lines = [f"{name}: {reason}" for name, reason in pulled.refused.items()]
        raise RefusedError(
            "the declared outputs are verified, but Kaggle does not send other files that it "
            "lists:\n" + "\n".join(lines),
            "Pull again, or select the files you need with --only or --file.",
            pulled,
        )


def _pull(
    kaggle: Kaggle,
    folder: RunFolder,
    run: RunAddress,
    end: Status,
    selection: Selection,
    on_event: OnEvent,
) -> PulledRun:
    started = time.monotonic()
    declared = folder.read_bundle().outputs
    result = download_outputs(kaggle, run, folder.path, declared, selection, on_event=on_event)
    _require_known(selection, result, declared, end)
    missing = {**result.left_behind, **result.refused}
    verdict = verify(folder.path, selection.takes, missing, end)
    # A complete run that does not verify may be a bad download, and the log of a run that has just
    # failed may still come: in both cases the next pull tries again. Kaggle may also still send
    # what another run has left.
    failed = end.failed and verdict.identity != Identity.MISMATCH
    settled = result.has_left_anything or folder.age() > kaggle.timeouts.grace
    sound = verdict.files_verified or (failed and settled)
    if sound and selection.everything and not result.refused:
        record = RunEnd(
            run=run,
            endpoint=run.endpoint,
            kernelkit=kernelkit.__version__,
            state=end.state,
            state_word=ended_word(end, verdict),
            failure=end.failure,
            pushed=folder.read().pushed,
            pulled=store.now(),
            pull_seconds=round(time.monotonic() - started, 3),
            files=result.names,
            left_behind=dict(result.left_behind),
            verified=verdict.verified,
            files_verified=verdict.files_verified,
            identity_proven=verdict.identity_proven,
            verdict=verdict,
        )
        store.record_end(folder, record)
    partial = not selection.everything
    return PulledRun(folder.path, end, verdict, result.left_behind, result.refused, partial)


def _require_known(
    selection: Selection, result: DownloadResult, declared: Sequence[str], end: Status
) -> None:
    """Check that every selected name, and every pattern, matches an output of a complete run."""
    known = {*result.names, *result.left_out, *result.left_behind, *result.refused, *declared}
    unknown = [name for name in selection.names if not any(map(Selection((name,)).takes, known))]
    unknown += [p for p in selection.patterns if not any(fnmatchcase(name, p) for name in known)]
    if unknown and end.state == State.COMPLETE:
        near = difflib.get_close_matches(unknown[0], known, 3) or sorted(known)[:10]
        raise ConfigError(
            f"the run left no {', '.join(unknown)}", f"Did you mean one of: {', '.join(near)}?"
        )


def download_outputs(
    kaggle: Kaggle,
    run: RunAddress,
    folder: Path,
    declared: Sequence[str] = (),
    selection: Selection = EVERYTHING,
    *,
    on_event: OnEvent,
) -> DownloadResult:
    """Download the selected outputs of a run that has ended, and its log, into the run's folder.

    Raises:
        UnreachableError, CapacityError: some files are missing; the next pull continues from there.
        LocalError: the disk is full, or the folder cannot be written.
    """
    listing = _Listing(kaggle, run, on_event)
    try:
        placed, left_behind = _allocate_paths(folder, listing.files, run, declared, on_event)
        downloads = _Downloads(kaggle, folder, listing, on_event)
        refused = _fetch_manifest(downloads, placed, folder)
        write_atomically(folder / f"{run.slug}.log", listing.log.encode(errors="backslashreplace"))
        entries = promised_outputs(folder) or {}
        foreign = belongs_to_another_run(folder)
        wanted = {
            _with_entry(file, entries.get(file.name)): target
            for file, target in placed.items()
            if file.name != RUN_MANIFEST_NAME and selection.takes(file.name) and not foreign
        }
        here = {file for file, target in wanted.items() if _is_here(file, target)}
        missing = {file: target for file, target in wanted.items() if file not in here}
        refused |= downloads.fetch(missing, done=here)
        for name, reason in refused.items():
            _report_left(on_event, name, reason)
        _remove_partials(folder / PARTIAL_FOLDER, selection)
    except OSError as error:
        raise LocalError(
            f"{folder} cannot be written: {error.strerror}",
            "Do not use what is there: it is incomplete. Make room, then pull again.",
        ) from error
    here_now = {file.name for file, target in placed.items() if target.is_file()}
    return DownloadResult(
        tuple(file.name for file in placed if file.name in here_now),
        left_behind,
        refused,
        tuple(sorted({file.name for file in placed} - here_now - refused.keys())),
        listing.log,
    )


def _pull_lock(folder: Path, on_event: Callable[[str], None]) -> AbstractContextManager[None]:
    """Let one pull of a run follow another."""
    return locked(
        folder,
        on_wait=lambda: on_event(f"waiting for another pull into {folder}"),
        on_unsupported=lambda: on_event(
            f"the disk of {folder} has no locks: run only one pull at a time there"
        ),
    )


class _Listing:
    """A run's outputs as Kaggle lists them; their addresses expire after a while."""

    def __init__(self, kaggle: Kaggle, run: RunAddress, on_event: OnEvent) -> None:
        self._kaggle, self._run = kaggle, run
        self._lock = threading.Lock()
        files, self.log = kaggle.outputs(run.owner, run.slug, run.version)
        self._urls = {file.name: file.url for file in files}
        sizes = self._sizes(on_event) if files else {}
        # Kaggle leaves out sizes of 0. So if any size is given, a missing one is 0.
        known = any(sizes.values())
        self.files = [replace(file, size=sizes.get(file.name) if known else None) for file in files]

    def _sizes(self, on_event: OnEvent) -> dict[str, int]:
        try:
            return self._kaggle.output_sizes(self._run.owner, self._run.slug, self._run.version)
        except RefusedError as error:
            on_event(f"the sizes of the outputs are unknown: {error}")
            return {}

    def renew(self, file: OutputFile) -> OutputFile:
        """The same file with a fresh address."""
        with self._lock:
            if self._urls.get(file.name) == file.url:  # else another thread has just renewed it
                run = self._run
                files, _ = self._kaggle.outputs(run.owner, run.slug, run.version)
                self._urls = {file.name: file.url for file in files}
            return replace(file, url=self._urls.get(file.name, file.url))


@dataclass
class _Downloads:
    """Several downloads at once, in threads that a silent server cannot keep alive at the end."""

    kaggle: Kaggle
    folder: Path
    listing: _Listing
    on_event: OnEvent
    _received: int = 0
    _count: threading.Lock = field(default_factory=threading.Lock)

    def fetch(
        self, files: dict[OutputFile, Path], done: Collection[OutputFile] = ()
    ) -> dict[str, str]:
        """Download each file to its path; returns the files that Kaggle does not send, and why.

        Raises:
            UnreachableError, CapacityError: after all other files, or once nothing arrives.
            LocalError: at once.
        """
        self._require_room(files)
        self._received = sum(file.size or 0 for file in done)
        size = self._received + sum(file.size or 0 for file in files)
        of = len(done) + len(files)
        refused: dict[str, str] = {}
        late: list[tuple[str, KernelkitError]] = []
        in_a_row = 0
        with closing(self._results(files, size, len(done), of)) as results:
            for number, (file, error) in enumerate(results, 1):
                completed = ""
                if error is None:
                    in_a_row = 0
                    completed = encodable(file.name)
                elif isinstance(error, RefusedError):
                    refused[file.name] = str(error)
                elif isinstance(error, UnreachableError | CapacityError):
                    late.append((file.name, error))
                    in_a_row += 1
                    if in_a_row == AT_ONCE:
                        break
                elif isinstance(error, LocalError):
                    raise self._no_room(error, files)
                else:
                    raise error
                count = len(done) + number - len(late)
                self.on_event(Progress(self._received, size, count, of, completed))
        if late:
            raise self._incomplete(late, files)
        return refused

    def _results(
        self, files: dict[OutputFile, Path], size: int, done: int, of: int
    ) -> Generator[tuple[OutputFile, BaseException | None], None, None]:
        """Each file as its download ends, with its error."""
        from kernelkit.kaggle.transfer import (  # imports the SDK's client
            Stopped,
            Transfer,
            download,
        )

        waiting: queue.SimpleQueue[OutputFile] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[OutputFile, BaseException | None]] = queue.SimpleQueue()
        for file in files:
            waiting.put(file)
        transfer = Transfer(self._add, self.listing.renew)

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
        threads: list[threading.Thread] = []
        try:
            for _ in range(count):
                thread = threading.Thread(target=work, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # this machine starts no more: fewer do it as well
                    if not threads:
                        raise
                    break
                threads.append(thread)
            left = len(files)
            while left:
                try:
                    result = ended.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    if self.kaggle.is_late:
                        raise UnreachableError(
                            f"{counted(left, 'file')} did not arrive completely"
                        ) from None
                    self.on_event(Progress(self._received, size, done + len(files) - left, of))
                    continue
                left -= 1
                yield result
        finally:
            transfer.stop.set()
            end = time.monotonic() + JOIN_SECONDS
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))

    def _add(self, more: int) -> None:
        with self._count:
            self._received += more

    def _partial(self, file: OutputFile) -> Path:
        """In a folder of its own: the file's name may be too long for another suffix."""
        return self.folder / PARTIAL_FOLDER / sha256(file.name.encode()).hexdigest()[:32]

    def _missing(self, files: dict[OutputFile, Path]) -> int:
        """Bytes that are not yet on this disk."""
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
                f"the disk of {self.folder} is too full: {human_size(missing)} are missing, "
                f"{human_size(free)} are free, and {human_size(SPARE_BYTES)} must stay free",
                f"Make room for {human_size(missing + SPARE_BYTES - free)} more, then pull again.",
            )

    def _no_room(self, error: LocalError, files: dict[OutputFile, Path]) -> LocalError:
        return error.with_message(
            f"{error}. {human_size(self._missing(files))} are still missing",
            "Make room, then pull again: it continues from there. Until then do not use the files.",
        )

    def _incomplete(
        self, late: list[tuple[str, KernelkitError]], files: dict[OutputFile, Path]
    ) -> KernelkitError:
        name, first = late[0]
        more = f", and {len(late) - 1} more" if len(late) > 1 else ""
        return first.with_message(
            f"not all files arrived: {encodable(name)}{more}. {first}",
            f"Pull again: it continues from there. {human_size(self._missing(files))} are missing.",
        )


def _allocate_paths(
    folder: Path,
    files: Sequence[OutputFile],
    run: RunAddress,
    declared: Sequence[str],
    on_event: OnEvent,
) -> tuple[dict[OutputFile, Path], dict[str, str]]:
    """The path of each file, and the files whose names cannot become paths, with the reason."""
    own = [*(OWN_NAMES - {RUN_MANIFEST_NAME}), f"{run.slug}.log"]
    unpacked = [unpacked_name(name) for name in declared if name.endswith(".zip")]
    partials = [PARTIAL_FOLDER, *(f"{name}.partial" for name in [*own, *unpacked])]
    paths = PathAllocator(folder, [*own, *unpacked, *partials])
    placed: dict[OutputFile, Path] = {}
    left_behind: dict[str, str] = {}
    for file in files:
        try:
            placed[file] = paths.take(file.name)
        except UnsafePathError as error:
            _report_left(on_event, file.name, str(error))
            left_behind[encodable(file.name)] = str(error)
    return placed, left_behind


def _report_left(on_event: OnEvent, name: str, reason: str) -> None:
    on_event(f"left on Kaggle: {encodable(name)!r} ({reason})")


def _fetch_manifest(
    downloads: _Downloads, placed: dict[OutputFile, Path], folder: Path
) -> dict[str, str]:
    """Download the run's manifest first, and again each time: an earlier copy may be damaged."""
    found = {file: target for file, target in placed.items() if file.name == RUN_MANIFEST_NAME}
    refused: dict[str, str] = {}
    for _ in range(MANIFEST_ATTEMPTS if found else 0):
        refused = downloads.fetch(found)
        if promised_outputs(folder) is not None:
            return {}
    return refused


def _with_entry(file: OutputFile, entry: OutputEntry | None) -> OutputFile:
    """A file with the size and SHA-256 from the run's manifest, which is more reliable."""
    return replace(file, size=entry.size, sha256=entry.sha256) if entry else file


def _is_here(file: OutputFile, target: Path) -> bool:
    """Whether an earlier pull has downloaded the complete file."""
    if file.size is None or not target.is_file() or target.stat().st_size != file.size:
        return False
    return file.sha256 is None or sha256_of(target) == file.sha256


def _remove_partials(folder: Path, selection: Selection) -> None:
    """Everything selected is here; partial files of other outputs may still be of use."""
    if selection.everything:
        shutil.rmtree(folder)
    else:
        with suppress(OSError):
            folder.rmdir()
