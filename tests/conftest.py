"""What every test stands on: a clean environment, and the command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis
import pytest

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
    """`cli("push", "--json", expect=9, cwd=…)` runs the command in a process of its own."""

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
