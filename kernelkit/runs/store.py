"""What ran, where, when, with which digest, and what came of it: the folders are the ledger.

runs/<slug>/v<version>/bundle.json   what was sent, kept at the push
                       push.json     the run's address, kept at the push
                       …             the outputs and the log, as they are pulled
                       run.json      last of all: its presence means complete
runs/<slug>/submissions/v<version>-<ref>.json
                                     what was submitted of that version, and its scores

A folder `v3.1` held a version 3 of another Kaggle before this one's came. A complete folder is
never changed, so what happens to a version afterwards lies beside it.

Several processes may write at once: a document is written whole under a name of its own and then
renamed, and so is a version's folder, under a lock.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelkit.errors import ConfigError, LocalError

PUSH_LOCK = ".push.lock"

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_ADDRESS: Mapping[str, type] = {
    **dict.fromkeys(("owner", "slug", "url", "digest", "endpoint"), str),
    "version": int,
}


@dataclass(frozen=True)
class Name:
    """What a person calls a run: `v3`, `slug`, `slug/v3`, `owner/slug`, `owner/slug/v3`."""

    owner: str | None = None
    slug: str | None = None
    version: int | None = None


def parse_name(text: str) -> Name:
    """Read the name of a run.

    Raises:
        ConfigError: it has none of the forms.
    """
    *path, last = text.strip().removesuffix("/").split("/")
    version = re.fullmatch(r"v?([1-9]\d{0,8})", last)
    words = path if version else [*path, last]
    if len(words) > 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", word) for word in words):
        raise ConfigError(
            f"{text!r} is no name of a run", "Write v3, slug, slug/v3, owner/slug or owner/slug/v3."
        )
    slug = words.pop().lower() if words else None
    owner = words.pop() if words else None
    return Name(owner, slug, int(version[1]) if version else None)


_HALF_WRITTEN = (
    "Look on Kaggle whether that version ran, and move the folder away; if it did, take it up "
    "anew: `kernelkit pull OWNER/SLUG/vN`."
)


@dataclass(frozen=True)
class Record:
    """One version's folder, as far as it has come."""

    folder: Path

    @property
    def version(self) -> int:
        """The number that Kaggle gave it."""
        return int(self.folder.name[1:])

    @property
    def complete(self) -> bool:
        """Whether everything was pulled and judged; a damaged run.json says nothing of the sort."""
        try:
            return isinstance(_read(self.folder / "run.json").get("state"), str)
        except LocalError:
            return False

    @property
    def error(self) -> str:
        """Why this is no record of a push, and what to do about it; empty where it is one."""
        try:
            self.push  # noqa: B018
        except LocalError as error:
            return f"{error} {error.next_step}".strip()
        return ""

    @property
    def push(self) -> Mapping[str, Any]:
        """The run's address, as it was kept at the push."""
        path = self.folder / "push.json"
        if not path.exists():
            raise LocalError(f"{self.folder} is half-written: it has no push.json.", _HALF_WRITTEN)
        try:
            push = _read(path)
        except LocalError as error:
            raise LocalError(f"{error}.", _HALF_WRITTEN) from error
        for name, kind in _ADDRESS.items():
            if not isinstance(push.get(name), kind) or push[name] is True:
                raise LocalError(f"{path} lacks {name!r}, or has it wrong.", _HALF_WRITTEN)
        if push["version"] != self.version:
            raise LocalError(f"{path} is of version {push['version']}.", _HALF_WRITTEN)
        return push

    @property
    def bundle(self) -> Mapping[str, Any]:
        """The manifest of what was sent."""
        return _read(self.folder / "bundle.json")

    @property
    def run(self) -> Mapping[str, Any]:
        """The end of it: state, times, verdict; empty while it is not complete."""
        return _read(self.folder / "run.json") if self.complete else {}


def record_push(
    root: Path, slug: str, version: int, push: Mapping[str, Any], bundle: Mapping[str, Any]
) -> Record:
    """Open the folder of a version that Kaggle has taken.

    A folder that is there already and is of another run (each Kaggle counts from 1, and a fresh
    local one begins anew) is moved aside, whole. Where two processes record the same run, both get
    its one folder, and what has been pulled into it stays.

    Raises:
        MachineError: it cannot be written.
    """
    record = Record(root / slug / f"v{version}")
    with _locked(root / slug):
        before = _address(record)
        same = before is not None and all(before[name] == push.get(name) for name in _ADDRESS)
        if same and not record.complete:
            _write(record.folder / "push.json", {**(before or {}), **push})
            _write(record.folder / "bundle.json", bundle)
        elif not same or push.get("outcome") != "adopted":
            _open(record.folder, push, bundle)
    return record


def _open(folder: Path, push: Mapping[str, Any], bundle: Mapping[str, Any]) -> None:
    """Put a new folder in its place, whole; the slug's folder is locked."""
    try:
        for left in folder.parent.glob(".v*.new"):  # by whoever was killed just here
            shutil.rmtree(left)
        new = folder.with_name(f".{folder.name}.new")
        _write(new / "bundle.json", bundle)
        _write(new / "push.json", push)
        _move_aside(folder)
        new.rename(folder)
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from error


@contextmanager
def pushing(root: Path, slug: str, on_event: Callable[[str], None]) -> Iterator[None]:
    """Two pushes of one kernel from here, one after the other: the second sees what the first did.

    A run that cannot be recorded must not be started: the folder is tried at once.

    Raises:
        MachineError: the folder cannot be written.
    """
    path = root / slug / PUSH_LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise LocalError(f"{root} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            on_event(f"another push of {slug} is under way: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _write(path.with_name(".probe"), {})
        path.with_name(".probe").unlink()
        yield


def record_end(record: Record, run: Mapping[str, Any]) -> None:
    """Close a folder: nothing is written to it after this. `run["run"]` is the run's address.

    Raises:
        MachineError: it cannot be written, or another run has taken the folder's place meanwhile.
    """
    with _locked(record.folder.parent):
        push, ended = record.push, run.get("run", {})
        if any(push[name] != ended.get(name, push[name]) for name in _ADDRESS):
            raise LocalError(
                f"{record.folder} belongs to another run by now",
                f"What was pulled lies beside it: {record.folder}.1 or a later number.",
            )
        _write(record.folder / "run.json", run)


@contextmanager
def reading(record: Record) -> Iterator[None]:
    """While several documents of a folder are read: nobody moves it aside or closes it."""
    with _locked(record.folder.parent):
        yield


@contextmanager
def submitting(root: Path, on_event: Callable[[str], None]) -> Iterator[None]:
    """One submission from here after the other: the second sees what the first has entered.

    Raises:
        MachineError: the folder cannot be written.
    """
    with _locked(root, lambda: on_event("another submit goes on: waiting for it")):
        yield


def record_submission(root: Path, submission: Mapping[str, Any]) -> None:
    """Keep a submission (anew, when its score is known) by its `slug`, `version` and `ref`."""
    name = f"v{submission['version']}-{submission['ref']}.json"
    _write(root / str(submission["slug"]) / "submissions" / name, submission)


def submissions(root: Path, slug: str | None = None) -> list[Mapping[str, Any]]:
    """What was submitted from here, the newest last; a document that cannot be read is left out.

    Each has `slug`, `version`, `ref`, `competition`, `endpoint`, `sha256` and `submitted`.
    """
    kinds: dict[str, type] = dict.fromkeys(("slug", "competition", "endpoint", "sha256"), str)
    kinds |= {"version": int, "ref": int, "submitted": str}
    found = []
    for path in root.glob(f"{slug or '*'}/submissions/v*.json"):
        try:
            entry = _read(path)
        except LocalError:
            continue
        if all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
            found.append(entry)
    return sorted(found, key=lambda entry: (entry["submitted"], entry["ref"]))


def find(root: Path, slug: str, version: int | None = None, owner: str | None = None) -> Record:
    """A version's folder, or that of the latest one; `owner` where it must be theirs.

    Raises:
        ConfigError: nothing was pushed from here by that name.
        MachineError: its folder is half-written. An older one is never taken in its place.
    """
    folders = list(versions(root, slug))
    known = [record for record in folders if not record.error]
    meant = [record for record in folders if version in (None, record.version)]
    if meant and meant[-1].error:
        meant[-1].push  # noqa: B018
    wanted = [
        record
        for record in known
        if version in (None, record.version)
        and (owner is None or str(record.push["owner"]).lower() == owner.lower())
    ]
    if not wanted:
        there = ", ".join(f"v{record.version}" for record in known)
        name = f"{f'{owner}/' if owner else ''}{slug}{f' v{version}' if version else ''}"
        raise ConfigError(
            f"{root} holds no {name}" + (f" (it has {there})" if there else ": nothing was pushed"),
            "`kernelkit runs` lists them." if known else "Push first: `kernelkit push`.",
        )
    return wanted[-1]


def records(root: Path, slug: str | None = None) -> Iterator[Record]:
    """Every recorded version, by slug and then by number; half-written ones are left out."""
    return (record for record in versions(root, slug) if not record.error)


def versions(root: Path, slug: str | None = None) -> Iterator[Record]:
    """The folder of every version, also of those whose push was not recorded to its end."""
    slugs = [root / slug] if slug else sorted(path for path in root.glob("[!.]*") if path.is_dir())
    for folder in slugs:
        found = [Record(path) for path in folder.glob("v*") if _VERSION.fullmatch(path.name)]
        yield from sorted(found, key=lambda record: record.version)


@contextmanager
def _locked(folder: Path, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Alone with a folder among the processes of this machine; `wait` is called if another is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)  # the folder itself: no file of ours lies about
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _address(record: Record) -> Mapping[str, Any] | None:
    """What is recorded of a push so far; None where nothing sound is."""
    try:
        return record.push
    except LocalError:
        return None


def _move_aside(folder: Path) -> None:
    if not folder.exists():
        return
    names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    try:
        folder.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise LocalError(f"{folder} cannot be moved aside: {error.strerror}") from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LocalError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise LocalError(f"{path} is no JSON object")
    return document


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all, also when the power goes, and when another process does the same."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as stream:
                stream.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise LocalError(
            f"{path} cannot be written: {error.strerror}", "Make room, then try again."
        ) from error
