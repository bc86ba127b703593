"""The declared outputs of a run: which files they stand for, and what the manifest says of each."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from .documents import OutputDocument
from .files import files_below, sha256_of
from .recording import bounded

CELL_CHARACTERS = 1 << 28  # of a csv: masks as run lengths take megabytes; Python allows 131,072


def declared_outputs(folder: Path, declared: Sequence[str]) -> dict[str, list[str]]:
    """Declared output → the files that it stands for: one, all of a folder, or a pattern's."""
    files = files_below(folder)
    found = {}
    for name in declared:
        is_file = not name.endswith("/") and (folder / name).is_file()
        found[name] = [name] if is_file else [f for f in files if stands_for(name, f)]
    return found


def stands_for(declared: str, file: str) -> bool:
    """Whether a declared output is a folder above this file, or a pattern of it or of a folder."""
    pattern = declared.split("/")
    if not pattern[-1]:  # "results/" is a folder and no file
        pattern[-1] = "*"
    return _matches(file.split("/"), pattern)


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(path[skipped:], pattern[1:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def describe(folder: Path, name: str) -> OutputDocument:
    """Name, size in bytes and sha256 of an output; for a csv also rows and a hash of the ids."""
    path = folder / name
    described: OutputDocument = {
        "path": bounded(name),
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
    }
    return {**described, **_describe_csv(path)} if path.suffix == ".csv" else described


def _describe_csv(path: Path) -> OutputDocument:
    """Rows below the header, and the sha256 over the first column, with a newline after each id.

    Both are None where the file is not a UTF-8 csv.
    """
    ids, rows = hashlib.sha256(), 0
    limit = csv.field_size_limit(CELL_CHARACTERS)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            next(reader, None)
            for row in reader:
                ids.update((row[0] if row else "").encode() + b"\n")
                rows += 1
    except (UnicodeDecodeError, csv.Error):
        return {"rows": None, "ids_sha256": None}
    finally:
        csv.field_size_limit(limit)  # the notebook may go on
    return {"rows": rows, "ids_sha256": ids.hexdigest()}
