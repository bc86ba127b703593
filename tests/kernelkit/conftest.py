from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent.parent / "samples"


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
