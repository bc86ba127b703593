"""Start a local Kaggle as a process of its own, and stop it again; check its folder of inputs."""

from __future__ import annotations

import difflib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel

from kernelkit.errors import ConfigError, LocalError
from kernelkit.storage import read_model

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

START_SECONDS = 30  # it imports nbclient, which takes some seconds from a cold disk
STOP_SECONDS = 20  # it ends its runs first
MESSAGE_CHARACTERS = 2000  # the end of its output, for an error
SHOWN = 8  # names of a folder, for an error
SEARCHED = 500  # folders that are searched for a source
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar", ".7z")


class ReadyLocalKaggle(BaseModel):
    """What a local Kaggle writes once it listens."""

    endpoint: str
    isolation: str = "namespace"
    """"namespace", or "folders" where this machine has no namespaces."""

    reason: str = ""
    """Why this machine has none."""

    def connect(self, user: str | None) -> Kaggle:
        """Open a connection for `user`; None is the local Kaggle's own account."""
        from kernelkit.kaggle.kernels import connect  # the SDK takes 0.3 s to import

        return connect(self.endpoint, {}, user)

    @property
    def start_messages(self) -> Iterator[str]:
        """Where it listens, and what differs from Kaggle on this machine."""
        yield f"local Kaggle at {self.endpoint}"
        if self.isolation != "namespace":
            yield (
                f"note: runs are not isolated, because this machine has no namespaces "
                f"({self.reason}): the network is open, even if enable_internet is false, "
                "your files are visible, and the inputs can be changed"
            )


@contextmanager
def local_kaggle(inputs: Path | None, mounts: str = "new") -> Iterator[ReadyLocalKaggle]:
    """Start a local Kaggle, yield how it runs, and stop it with all its runs.

    It also ends if this process is killed: it then loses the pipe that connects the two.

    Raises:
        LocalError: it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="kernelkit-emulator-") as folder:
        ready = Path(folder, "ready.json")
        command = emulator_command(
            ["--port", "0", "--mounts", mounts]
            + ["--lifeline", "--ready-file", str(ready)]
            + (["--inputs", str(inputs)] if inputs else [])
        )
        with Path(folder, "emulator.log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.PIPE)
            try:
                yield _wait_until_ready(process, ready, Path(log.name))
            finally:
                _stop(process)


def emulator_command(arguments: list[str]) -> list[str]:
    """The command that starts a local Kaggle; kernelkit itself never imports the emulator."""
    return [sys.executable, "-m", "kernelkit.emulator", *arguments]


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> ReadyLocalKaggle:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if ready.is_file():
            return read_model(ready, ReadyLocalKaggle)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    output = log.read_text(encoding="utf-8").strip()[-MESSAGE_CHARACTERS:]
    raise LocalError(f"the local Kaggle did not start: {output or 'it printed nothing'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def require_inputs(inputs: Path | None, sources: Mapping[str, Sequence[str]]) -> list[str]:
    """Check that the folder of inputs has data for every source; `sources` has them by kind.

    Returns what is doubtful about the folders that exist.

    Raises:
        ConfigError: with each folder that is missing, and what there is instead.
    """
    needed = [_Source(kind, name) for kind, names in sources.items() for name in names]
    if inputs is None:
        if needed:
            declared = "\n  ".join(f"{one.title}: DIR/{one.place}" for one in needed)
            raise ConfigError(
                f"the rehearsal needs a folder with the data of the sources:\n  {declared}",
                "Name it: kernelkit rehearse --inputs DIR, or set KERNELKIT_DATA.",
            )
        return []
    missing = [(one, problem) for one in needed if (problem := _problem(inputs, one.place))]
    if not missing:
        return [doubt for one in needed if (doubt := _doubt(inputs / one.place))]
    lines = [f"{one.title} needs {inputs / one.place}: {problem}" for one, problem in missing]
    advice = "Put the data of each source into its folder, or name another folder: --inputs DIR."
    for root in (inputs.resolve().parent, *_folders(inputs)):
        if not any(_problem(root, one.place) for one in needed):
            advice = f"Name this folder instead: kernelkit rehearse --inputs {root}"
            break
    raise ConfigError(
        "the folder of inputs lacks data that the kernel declares:\n  "
        + "\n  ".join([*lines, f"{inputs} contains {_contents(inputs)}"]),
        advice,
    )


@dataclass(frozen=True)
class _Source:
    """A declared source and its place below the folder of inputs."""

    kind: str
    name: str

    @property
    def title(self) -> str:
        return f'{self.kind} "{self.name}"'

    @property
    def place(self) -> PurePosixPath:
        """Owners are left out; so are versions, except those of models."""
        parts = self.name.split("/")
        if self.kind == "model_sources":
            return PurePosixPath(*parts[1:2], *(part.lower() for part in parts[2:3]), *parts[3:])
        return PurePosixPath(parts[1] if len(parts) > 1 else parts[0])


def _problem(inputs: Path, place: PurePosixPath) -> str:
    """Why the folder of a source cannot be used; empty if it can."""
    folder = inputs
    for part in place.parts:
        if not (folder / part).is_dir():
            return _instead(inputs, folder, part)
        folder /= part
    return ""


def _doubt(folder: Path) -> str:
    """What may be wrong with the folder of a source, though Kaggle has such sources too."""
    names = _names(folder)
    if not names:
        return f"{folder} is empty, so the run gets no data there"
    if names == [folder.name] and (folder / folder.name).is_dir():
        return (
            f"{folder} contains only a folder of the same name. If Kaggle's does not, the data is "
            f"one level too deep: kernelkit rehearse --inputs {folder}"
        )
    return ""


def _instead(inputs: Path, folder: Path, name: str) -> str:
    """What there is in place of a folder."""
    entry = folder / name
    if entry.is_symlink() and not entry.exists():
        return f"it is a link to {entry.readlink()}, which does not exist"
    if entry.exists():
        return "it is a file, not a folder"
    if packed := [name + ending for ending in ARCHIVES if (folder / (name + ending)).is_file()]:
        return f'there is only "{packed[0]}": unpack it into this folder'
    for found in _folders(inputs):
        if found.name == name:
            return f"there is no such folder, but there is {found}"
    if folder == inputs and inputs.resolve().name == name:
        return "there is no such folder: name the one above, which contains it"
    alike = {_plain(one): one for one in _names(folder) if (folder / one).is_dir()}
    near = difflib.get_close_matches(_plain(name), alike, 1, 0.75)
    if near:
        return f'there is no such folder. Is it "{alike[near[0]]}"?'
    inside = "" if folder == inputs else f"; {folder} contains {_contents(folder)}"
    return f"there is no such folder{inside}"


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-").replace(" ", "-")


def _folders(inputs: Path) -> list[Path]:
    """The folders below the inputs, down to Kaggle's own datasets/OWNER/SLUG; not all if many."""
    found = (path for depth in ("*", "*/*", "*/*/*") for path in inputs.glob(depth))
    return sorted(path for path in itertools.islice(found, SEARCHED) if path.is_dir())


def _names(folder: Path) -> list[str]:
    """The names in a folder, without hidden files such as .DS_Store."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _contents(folder: Path) -> str:
    names = [f"{one}/" if (folder / one).is_dir() else one for one in _names(folder)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more
