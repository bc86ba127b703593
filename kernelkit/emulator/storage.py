"""Files of the state folder: atomic JSON, a lock, and names that are safe as file names.

The emulator imports nothing from the rest of kernelkit, so it has these helpers of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,200}[A-Za-z0-9])?")


class StateError(Exception):
    """A state folder cannot be used; the message says why."""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a killed process leaves the previous content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def reading(record: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a record of the state is read into a StateError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{record.parent} cannot be read: {error!r}") from error


def lock_file(path: Path) -> int:
    """Lock a file until this process ends; its descriptor. Raises BlockingIOError if it is taken.

    The descriptor stays open on purpose: the system releases the lock when the process dies.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def is_safe_name(text: str) -> bool:
    """Whether `text` can be a slug, and so the name of a folder."""
    return bool(_NAME.fullmatch(text))


def is_safe_file_name(name: str) -> bool:
    """Whether a client's file name names a file inside a folder, and nothing above or below it."""
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
