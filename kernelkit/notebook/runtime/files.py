"""What the run reads of files: their SHA-256, the files below a folder, a tree for messages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from .documents import RUN_MANIFEST_NAME, STALLED_NAME

NOT_OUTPUTS = frozenset(
    {RUN_MANIFEST_NAME, "run-manifest.partial", STALLED_NAME}
    | {"__notebook__.ipynb", "__notebook_source__.ipynb"}
    | {"__results__.html", "__results___files", "__output__.json", "__script__.py", "custom.css"}
)
"""What kernelkit and Kaggle write into the working folder."""

SEARCH_DEPTH = 4  # /kaggle/input/competitions/<slug>/<folder of the archive>/
TREE_LINES = 60  # enough to show what is mounted, and short enough for a log
CHUNK_BYTES = 1 << 20


def sha256_of(path: Path, stop: Callable[[], bool] = lambda: False) -> str | None:
    """SHA-256 of a file's content, in hexadecimal.

    None where there is no such file, or if `stop` is true before its end.
    """
    if not path.is_file():
        return None
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            if stop():
                return None
            state.update(chunk)
    return state.hexdigest()


def files_below(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, without those of kernelkit and Kaggle.

    Nor links: whether Kaggle keeps them is not known.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        at_top = parent == str(folder)
        folders[:] = sorted(name for name in folders if not (at_top and name in NOT_OUTPUTS))
        found += [
            (below / name).as_posix()
            for name in sorted(names)
            if not (at_top and name in NOT_OUTPUTS) and _is_regular(Path(parent, name))
        ]
    return found


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def tree(folder: Path) -> str:
    """What a folder holds, one line each, at most `SEARCH_DEPTH` deep and `TREE_LINES` long."""
    lines = []
    for path in sorted(folder.rglob("*")):
        depth = len(path.relative_to(folder).parts)
        if depth <= SEARCH_DEPTH:
            lines.append("  " * depth + path.name + ("/" if path.is_dir() else ""))
    cut = [f"  … and {len(lines) - TREE_LINES} more"] if len(lines) > TREE_LINES else []
    return "\n".join(lines[:TREE_LINES] + cut) or "  (nothing)"
