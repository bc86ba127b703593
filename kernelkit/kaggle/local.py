"""Start a local Kaggle as a process of its own, and stop it again."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from kernelkit.errors import LocalError
from kernelkit.storage import read_model

START_SECONDS = 30  # it imports nbclient, which takes some seconds from a cold disk
STOP_SECONDS = 20  # it ends its runs first
MESSAGE_CHARACTERS = 2000  # the end of its output, for an error


class _Ready(BaseModel):
    """What a local Kaggle writes once it listens."""

    endpoint: str


@contextmanager
def local_kaggle(inputs: Path | None, mounts: str = "new") -> Iterator[str]:
    """Start a local Kaggle, yield its address, and stop it with all its runs.

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
                yield _endpoint(process, ready, Path(log.name))
            finally:
                _stop(process)


def emulator_command(arguments: list[str]) -> list[str]:
    """The command that starts a local Kaggle; kernelkit itself never imports the emulator."""
    return [sys.executable, "-m", "kernelkit.emulator", *arguments]


def _endpoint(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if ready.is_file():
            return read_model(ready, _Ready).endpoint
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
