"""The folders under `runs/` are the record of every run: no other database exists.

runs/<slug>/v<version>/bundle.json   what was sent, written at the push
                       push.json     the run's address, written at the push
                       …             the outputs and the log, as they are pulled
                       run.json      written last: its presence means that the folder is complete
runs/<slug>/submissions/v<version>-<ref>.json
                                     what was submitted of that version, and its scores

A folder such as `v3.1` contains a version 3 of another Kaggle, which was moved aside. A complete
folder never changes, so submissions are stored outside it.

Several processes may write at once: each file, and each new folder, is written under a temporary
name and then renamed, under a lock.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kernelkit.errors import ConfigError, LocalError, RefusedError
from kernelkit.kaggle.types import State
from kernelkit.notebook.manifest import BUNDLE_NAME, Manifest
from kernelkit.runs.manifest import (
    END_NAME,
    PUSH_NAME,
    RUN_MANIFEST_NAME,
    RunAddress,
    RunEnd,
    RunManifest,
    RunRecord,
    SubmissionRecord,
)
from kernelkit.storage import (
    DocumentError,
    MissingDocumentError,
    locked,
    make_ignored_folder,
    read_model,
    write_json,
)

PUSH_LOCK = ".push.lock"

_OF_CAMPAIGN = re.compile(r"\.?(chain|sweep)\b.*")
"""Files of a campaign next to the folders of the versions."""

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class RunName:
    """What people call a run: `v3`, `slug`, `slug/v3`, `owner/slug`, `owner/slug/v3`."""

    owner: str | None = None
    slug: str | None = None
    version: int | None = None


def parse_name(text: str) -> RunName:
    """Read the name of a run.

    Raises:
        ConfigError: it has none of the forms.
    """
    *path, last = text.strip().removesuffix("/").split("/")
    version = re.fullmatch(r"v?([1-9]\d{0,8})", last)
    words = path if version else [*path, last]
    if len(words) > 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", word) for word in words):
        raise ConfigError(
            f"{text!r} is not the name of a run",
            "Write v3, slug, slug/v3, owner/slug or owner/slug/v3.",
        )
    slug = words.pop().lower() if words else None
    owner = words.pop() if words else None
    return RunName(owner, slug, int(version[1]) if version else None)


_HALF_WRITTEN = (
    "Check on Kaggle whether that version ran, and move the folder away. If it ran, adopt it: "
    "`kernelkit pull OWNER/SLUG/vN`."
)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one version. Its files are read when a method is called, never before."""

    path: Path

    @property
    def version(self) -> int:
        """The number that Kaggle gave it."""
        return int(self.path.name[1:])

    @property
    def slug(self) -> str:
        """The kernel's name."""
        return self.path.parent.name

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return self.path.parent.parent

    @property
    def log(self) -> Path:
        """Where the log is, once it was pulled."""
        return self.path / f"{self.slug}.log"

    def read(self) -> RunRecord:
        """The run's address, as it was recorded at the push.

        Raises:
            LocalError: push.json is missing, damaged, or belongs to another version.
        """
        path = self.path / PUSH_NAME
        try:
            record = read_model(path, RunRecord)
        except MissingDocumentError:
            raise LocalError(
                f"{self.path} is half-written: it has no {PUSH_NAME}.", _HALF_WRITTEN
            ) from None
        except DocumentError as error:
            raise error.with_message(f"{error}.", _HALF_WRITTEN) from error
        if record.version != self.version:
            raise LocalError(f"{path} belongs to version {record.version}.", _HALF_WRITTEN)
        return record

    def address_at(self, endpoint: str) -> RunAddress:
        """The run's address, if it ran at `endpoint`: on another Kaggle it means another run.

        Raises:
            RefusedError: the run is on another Kaggle.
            LocalError: push.json cannot be read.
        """
        record = self.read()
        if record.endpoint != endpoint:
            raise RefusedError(
                f"{self.path} is a run of {record.endpoint}, not of {endpoint}",
                "Set --endpoint to its address, or name another run.",
            )
        return record.address

    def age(self) -> float:
        """Seconds since the push was recorded; infinite for an adopted run."""
        if self.read().pushed is None:
            return math.inf
        return max(0.0, time.time() - (self.path / PUSH_NAME).stat().st_mtime)

    def problem(self) -> str:
        """Why push.json cannot be read, with the next step; empty if it can."""
        try:
            self.read()
        except LocalError as error:
            return f"{error} {error.next_step}".strip()
        return ""

    def read_end(self) -> RunEnd | None:
        """How the run ended; None while the folder is not complete, or if run.json is damaged."""
        try:
            return read_model(self.path / END_NAME, RunEnd)
        except DocumentError:
            return None

    def is_complete(self) -> bool:
        """Whether everything was pulled and verified."""
        return self.read_end() is not None

    def read_bundle(self) -> Manifest:
        """The manifest of what was sent.

        Raises:
            DocumentError: bundle.json is missing or damaged.
        """
        return read_model(self.path / BUNDLE_NAME, Manifest)

    def read_manifest(self) -> RunManifest:
        """What the run says about itself.

        Raises:
            DocumentError: run-manifest.json is missing or damaged.
        """
        return read_model(self.path / RUN_MANIFEST_NAME, RunManifest)

    def reading(self) -> AbstractContextManager[None]:
        """A lock under which several files are read: no other process moves or closes the folder.

        Raises:
            LocalError: the folder cannot be opened.
        """
        return locked(self.path.parent)


def record_push(root: Path, record: RunRecord, bundle: Manifest) -> RunFolder:
    """Create the folder of a version that Kaggle has accepted.

    If a folder of another run has the same name, it is moved aside: each Kaggle counts from 1, and
    a fresh local Kaggle starts again. If two processes record the same run, both get its one
    folder, and what was already pulled into it stays.

    Raises:
        LocalError: it cannot be written.
    """
    folder = RunFolder(root / record.slug / f"v{record.version}")
    make_ignored_folder(root)
    with locked(root / record.slug):
        before = _record_or_none(folder)
        same = before is not None and before.address == record.address
        if before is not None and same and not folder.is_complete():
            write_json(folder.path / PUSH_NAME, before.updated(**record.document).document)
            write_json(folder.path / BUNDLE_NAME, bundle.document)
        elif not same or record.outcome != "adopted":
            _create(folder.path, record, bundle)
    return folder


def _create(path: Path, record: RunRecord, bundle: Manifest) -> None:
    """Put a complete new folder in its place; the caller holds the lock of the slug's folder."""
    try:
        for left in path.parent.glob(".v*.new"):  # of a process that was killed at this point
            shutil.rmtree(left)
        new = path.with_name(f".{path.name}.new")
        write_json(new / BUNDLE_NAME, bundle.document)
        write_json(new / PUSH_NAME, record.document)
        _move_aside(path)
        new.rename(path)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def push_lock(root: Path, slug: str, on_event: Callable[[str], None]) -> Iterator[None]:
    """Let one push of a kernel follow another, so that the second sees the first one's run.

    A run that cannot be recorded must not be started, so this also tries to write to the folder.

    Raises:
        LocalError: the folder cannot be written.
    """

    def wait() -> None:
        on_event(f"waiting for another push of {slug}")

    make_ignored_folder(root)
    with locked(root / slug, PUSH_LOCK, on_wait=wait):
        probe = root / slug / ".probe"
        write_json(probe, {})
        probe.unlink()
        yield


def record_end(folder: RunFolder, end: RunEnd) -> None:
    """Complete a folder: nothing is written to it afterwards.

    Raises:
        LocalError: it cannot be written, or another run has taken the folder's place.
    """
    with locked(folder.path.parent):
        record = folder.read()
        if end.run is not None and end.run.address != record.address:
            raise LocalError(
                f"{folder.path} now belongs to another run",
                f"Look for the pulled files in {folder.path}.1 or a later number.",
            )
        write_json(folder.path / END_NAME, end.document)


@contextmanager
def submission_lock(root: Path, on_event: Callable[[str], None]) -> Iterator[None]:
    """Let one submission follow another, so that the second sees what the first submitted.

    Raises:
        LocalError: the folder cannot be written.
    """
    with locked(root, on_wait=lambda: on_event("waiting for another submission")):
        yield


def record_submission(root: Path, submission: SubmissionRecord) -> None:
    """Write a submission's file; it is written again when its score is known.

    Raises:
        LocalError: it cannot be written.
    """
    name = f"v{submission.version}-{submission.ref}.json"
    write_json(root / submission.slug / "submissions" / name, submission.document)


def submissions(root: Path, slug: str | None = None) -> list[SubmissionRecord]:
    """What was submitted from here, newest last; a damaged file is left out."""
    found = []
    for path in root.glob(f"{slug or '*'}/submissions/v*.json"):
        try:
            found.append(read_model(path, SubmissionRecord))
        except DocumentError:
            continue
    return sorted(found, key=lambda submission: (submission.submitted, submission.ref))


def find(root: Path, slug: str, version: int | None = None, owner: str | None = None) -> RunFolder:
    """The folder of a version, or of the latest one; with `owner`, only that account's runs count.

    Raises:
        ConfigError: nothing with that name was pushed from here.
        LocalError: its folder is half-written. An older one never takes its place.
    """
    everything = list(versions(root, slug))
    named = [folder for folder in everything if version in (None, folder.version)]
    if named:
        named[-1].read()
    known = list(folders(root, slug))
    wanted = [
        folder
        for folder in known
        if version in (None, folder.version)
        and (owner is None or folder.read().owner.lower() == owner.lower())
    ]
    if not wanted:
        there = ", ".join(f"v{folder.version}" for folder in known)
        name = f"{f'{owner}/' if owner else ''}{slug}{f' v{version}' if version else ''}"
        raise ConfigError(
            f"{root} has no run {name}" + (f" (only {there})" if there else ": nothing was pushed"),
            "List the runs: `kernelkit runs`." if known else "Push first: `kernelkit push`.",
        )
    return wanted[-1]


def find_named(root: Path, default_slug: str, name: str) -> RunFolder:
    """The folder of a run by its name; an empty name means the latest run of `default_slug`.

    Raises:
        ConfigError: the name is invalid, or nothing with that name was pushed from here.
        LocalError: the run's folder is half-written.
    """
    wanted = parse_name(name) if name else RunName()
    return find(root, wanted.slug or default_slug, wanted.version, wanted.owner)


def folders(root: Path, slug: str | None = None) -> Iterator[RunFolder]:
    """Every recorded version, by slug and then by number, without half-written ones."""
    return (folder for folder in versions(root, slug) if not folder.problem())


def versions(root: Path, slug: str | None = None) -> Iterator[RunFolder]:
    """The folder of every version, including half-written ones."""
    slugs = [root / slug] if slug else sorted(path for path in root.glob("[!.]*") if path.is_dir())
    for parent in slugs:
        found = [RunFolder(path) for path in parent.glob("v*") if _VERSION.fullmatch(path.name)]
        yield from sorted(found, key=lambda folder: folder.version)


def rehearsal_lock(out: Path) -> AbstractContextManager[None]:
    """Refuse a second rehearsal in the same folder: it would remove the first one's results.

    Raises:
        LocalError: another rehearsal runs there.
    """

    def refuse() -> None:
        raise LocalError(
            f"another rehearsal is using {out}", "Wait for it, or name another folder: --out."
        )

    make_ignored_folder(out)
    return locked(out, ".lock", on_wait=refuse)


def remove_rehearsal(folder: Path, runs: Path) -> None:
    """Remove the rehearsal before this one, and nothing else.

    Raises:
        ConfigError: `folder` is below `runs`, or contains other files than a rehearsal's.
        LocalError: it cannot be removed.
    """
    if folder.resolve().is_relative_to(runs.resolve()):
        raise ConfigError(f"--out {folder.parent} contains real runs", "Name another folder.")
    if not folder.exists():
        return
    strange = [
        path.name
        for path in folder.iterdir()
        if not (path / PUSH_NAME).is_file()
        and not _OF_CAMPAIGN.fullmatch(path.name)
        and path.name != PUSH_LOCK
    ]
    if strange or folder.is_symlink():
        raise ConfigError(
            f"{folder} contains other files than a rehearsal's: "
            + (", ".join(sorted(strange)) or "it is a link"),
            "Move them away, or name another folder with --out.",
        )
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise LocalError(f"{folder} cannot be emptied: {error.strerror}") from error


def _record_or_none(folder: RunFolder) -> RunRecord | None:
    try:
        return folder.read()
    except LocalError:
        return None


def _move_aside(path: Path) -> None:
    if not path.exists():
        return
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    try:
        path.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise LocalError(f"{path} cannot be moved aside: {error.strerror}") from error


def recorded_state(folder: RunFolder) -> State:
    """The state in which a complete folder's run has ended.

    Raises:
        LocalError: run.json names no such state.
    """
    end = folder.read_end()
    try:
        return State(end.state if end else "")
    except ValueError as error:
        raise LocalError(f"{folder.path}/run.json: {error}", "Pull this version again.") from error


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
