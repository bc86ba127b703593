"""What ran, where, when, with which digest, and what came of it: the folders are the ledger.

runs/<slug>/v<version>/bundle.json   what was sent, kept at the push
                       push.json     the run's address, kept at the push
                       …             the outputs and the log, as they are pulled
                       run.json      last of all: its presence means complete

A folder `v3.1` held a version 3 of another Kaggle before this one's came.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelkit.errors import ConfigError, MachineError

PUSH_LOCK = ".push.lock"

_VERSION = re.compile(r"v(\d+)")


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
        """Whether everything was pulled and judged."""
        return (self.folder / "run.json").is_file()

    @property
    def push(self) -> Mapping[str, Any]:
        """The run's address, as it was kept at the push."""
        push = _read(self.folder / "push.json")
        kinds = dict.fromkeys(("owner", "slug", "url", "digest", "endpoint"), str) | {
            "version": int
        }
        for name, kind in kinds.items():
            if not isinstance(push.get(name), kind):
                raise MachineError(f"{self.folder}/push.json lacks {name!r}, or has it wrong")
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
    """Open the folder of a version that Kaggle has just taken.

    A folder that is there already holds a run of another Kaggle (each counts from 1): it is moved
    aside, whole.

    Raises:
        MachineError: it cannot be written.
    """
    record = Record(root / slug / f"v{version}")
    _move_aside(record.folder)
    _write(record.folder / "bundle.json", bundle)
    _write(record.folder / "push.json", push)
    return record


@contextmanager
def pushing(root: Path, slug: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Two pushes of one kernel from here, one after the other: the second sees what the first did.

    A run that cannot be recorded must not be started: the folder is tried at once.

    Raises:
        MachineError: the folder cannot be written.
    """
    path = root / slug / PUSH_LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as fault:
        raise MachineError(f"{root} cannot be written: {fault.strerror}") from fault
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            tell(f"another push of {slug} is under way: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _write(path.with_name(".probe"), {})
        path.with_name(".probe").unlink()
        yield


def record_end(record: Record, run: Mapping[str, Any]) -> None:
    """Close a folder: nothing is written to it after this."""
    _write(record.folder / "run.json", run)


def find(root: Path, slug: str, version: int | None = None, owner: str | None = None) -> Record:
    """A version's folder, or that of the latest one; `owner` where it must be theirs.

    Raises:
        ConfigError: nothing was pushed from here by that name.
    """
    known = list(records(root, slug))
    wanted = [
        record
        for record in known
        if version in (None, record.version)
        and (owner is None or str(record.push["owner"]).lower() == owner.lower())
    ]
    if not wanted:
        versions = ", ".join(f"v{record.version}" for record in known) or "none"
        raise ConfigError(
            f"{root} knows no {f'{owner}/' if owner else ''}{slug} "
            f"{f'v{version}' if version else 'of any version'} "
            f"(it has: {versions})",
            "Push first: `kernelkit push`.",
        )
    return wanted[-1]


def records(root: Path, slug: str | None = None) -> Iterator[Record]:
    """Every recorded version, by slug and then by number."""
    slugs = [root / slug] if slug else sorted(path for path in root.glob("*") if path.is_dir())
    for folder in slugs:
        versions = [path for path in folder.glob("v*") if _VERSION.fullmatch(path.name)]
        for path in sorted(versions, key=lambda path: int(path.name[1:])):
            if (path / "push.json").is_file():
                yield Record(path)


def _move_aside(folder: Path) -> None:
    if not folder.exists():
        return
    names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    try:
        folder.rename(next(name for name in names if not name.exists()))
    except OSError as fault:
        raise MachineError(f"{folder} cannot be moved aside: {fault.strerror}") from fault


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise MachineError(f"{path} cannot be read: {fault}") from fault
    if not isinstance(document, dict):
        raise MachineError(f"{path} is no JSON object")
    return document


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all, also when the power goes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as fault:
        raise MachineError(
            f"{path} cannot be written: {fault.strerror}", "Make room, then try again."
        ) from fault
