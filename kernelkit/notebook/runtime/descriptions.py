"""What a run that is not over yet says about its files: each is hashed again only if it changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .documents import OutputDocument
from .files import files_below, sha256_of
from .outputs import stands_for
from .recording import bounded

CHECKPOINT_SUFFIXES = (
    *(".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".h5", ".hdf5", ".keras", ".onnx"),
    *(".npz", ".npy", ".pkl", ".pickle", ".joblib", ".msgpack", ".cbm", ".tar"),
)
CHECKPOINT_WORDS = ("checkpoint", "ckpt")  # in the name of a file or of a folder above it
MOST_CHECKPOINTS = 1000
SMALL_BYTES = 16 << 20  # written in one go
SETTLED_SECONDS = 1.0  # a larger file that changed after that is probably still being written


class Descriptions:
    """Path, size and sha256 of the declared outputs and of the checkpoints in a folder."""

    def __init__(self, folder: Path, declared: Sequence[str]) -> None:
        self._folder = folder
        self._declared = declared
        self._known: dict[str, tuple[tuple[int, int, int], OutputDocument]] = {}

    def update(self, stop: Callable[[], bool]) -> tuple[list[OutputDocument], list[OutputDocument]]:
        """The outputs and the checkpoints as they are now; hashes what changed since the last time.

        A file that is just being written is left out. Once `stop` is true, so is what would have
        to be hashed.
        """
        outputs, checkpoints = split_files(self._folder, self._declared)
        names = [*outputs, *checkpoints]
        self._known = {name: self._known[name] for name in names if name in self._known}
        return list(self._describe(outputs, stop)), list(self._describe(checkpoints, stop))

    def _describe(self, names: Sequence[str], stop: Callable[[], bool]) -> Iterator[OutputDocument]:
        for name in names:
            path = self._folder / name
            try:
                state = path.stat()
                key = state.st_size, state.st_mtime_ns, state.st_ino
                known = self._known.get(name)
                if known is None or known[0] != key:
                    self._known.pop(name, None)
                    settled = SETTLED_SECONDS * (0.2 if state.st_size <= SMALL_BYTES else 1)
                    if time.time() - state.st_mtime < settled:
                        continue
                    sha256 = sha256_of(path, stop)
                    after = path.stat()
                    if sha256 is None or (after.st_size, after.st_mtime_ns, after.st_ino) != key:
                        continue
                    self._known[name] = (
                        key,
                        {
                            "path": bounded(name),
                            "size": state.st_size,
                            "sha256": sha256,
                        },
                    )
            except OSError:  # it is gone, or cannot be read
                continue
            yield self._known[name][1]


def split_files(folder: Path, declared: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of a folder that are declared outputs, and those that look like checkpoints."""
    outputs, checkpoints = list[str](), list[str]()
    for name in files_below(folder):
        if any(name == one or stands_for(one, name) for one in declared):
            outputs.append(name)
        elif _is_checkpoint(name) and len(checkpoints) < MOST_CHECKPOINTS:
            checkpoints.append(name)
    return outputs, checkpoints


def _is_checkpoint(name: str) -> bool:
    word = name.lower()
    return word.endswith(CHECKPOINT_SUFFIXES) or any(one in word for one in CHECKPOINT_WORDS)
