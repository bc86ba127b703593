"""What every test stands on: a clean environment, and the command line as a user calls it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import hypothesis
import pytest

from kernelkit import console
from kernelkit.cli import main

# Waiting threads sleep: several times faster on a machine that does something else as well, and
# the same bits. Before any test imports torch, and for every process that a test starts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "tests" / "samples"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


# A machine that is busy is no fault of the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """No credentials and no settings of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "KERNELKIT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def cli() -> Cli:
    """`cli("push", "--json", expect=9, cwd=…)` calls the command's `main` in this process."""

    def call(
        *arguments: str | Path,
        expect: int = 0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = ["kernelkit", *map(str, arguments)]
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd or ROOT)
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                console.configure()  # --json and --quiet last as long as the process
        code = int(ended.value.code or 0)
        printed = [_content(stream) for stream in streams]
        assert code == expect, "\n".join([str(code), *printed])
        return subprocess.CompletedProcess(command, code, *printed)

    return call


def _content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return cast(io.BytesIO, stream.buffer).getvalue().decode()


@pytest.fixture
def cli_process() -> Cli:
    """Like `cli`, in a process of its own: for what signals, imports or encodings decide."""

    def call(
        *arguments: str | Path,
        expect: int = 0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "kernelkit", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd or ROOT,
            env={**os.environ, **(env or {})},
            timeout=900,  # a machine shared with others is several times slower
        )
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of the sample project `plain`, to be changed at will."""
    return Path(shutil.copytree(SAMPLES / "plain", tmp_path / "plain"))


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """`make_project({"pkg/a.py": "…"}, keys="layout = …", extra="[tool.…]…")` writes a project."""

    def make(
        files: dict[str, str | bytes],
        entry: str = "pkg.main:run",
        keys: str = "",
        extra: str = "",
    ) -> Path:
        folder = tmp_path / "project"
        files = {
            "pkg/__init__.py": "",
            "pkg/main.py": "def run(**parameters):\n    pass\n",
            "pyproject.toml": f"""
[tool.kernelkit]
package = "pkg"
entry = "{entry}"
outputs = ["out.txt"]
{keys}
[tool.kernelkit.kernel]
id = "some-kernel"
title = "Some kernel"
{extra}
""",
            **files,
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return make


@pytest.fixture(scope="session")
def local_kaggle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a local Kaggle that runs beside the tests, with the samples' inputs."""
    folder = tmp_path_factory.mktemp("local-kaggle")
    ready = folder / "ready.json"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kernelkit.emulator", "--port", "0"),
            *("--inputs", str(SAMPLES / "inputs"), "--ready-file", str(ready)),
            *("--state", str(folder / "state")),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        yield json.loads(ready.read_text())["endpoint"]
    finally:
        process.terminate()
        process.wait(30)
