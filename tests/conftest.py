"""Fixtures of all tests: a clean environment, the command line, and a local Kaggle."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import hypothesis
import pytest

from kernelkit import console
from kernelkit.cli import main
from tests.local_kaggle import PLUGIN, LocalKaggle, start_emulator

# Waiting threads sleep: several times faster on a busy machine, with the same bits. Set before any
# test imports torch, and for every process that a test starts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "tests" / "samples"
KAGGLE = Path(sys.executable).with_name("kaggle")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


# On a busy machine, a single example may take very long.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Hide the credentials and settings of the user; forget --json after each test."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "KERNELKIT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    yield
    console.configure()


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
    """Like `cli`, in a separate process: for tests of signals, imports and encodings."""

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
            timeout=900,  # a shared machine can be several times slower
        )
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of the sample project `plain` that a test can change."""
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
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs by slug: the samples' inputs, a competition and a dataset."""
    folder = tmp_path_factory.mktemp("inputs")
    for source in (SAMPLES / "inputs").iterdir():
        (folder / source.name).symlink_to(source)
    for slug, text in {"some-competition": "rows", "some-dataset": "points"}.items():
        (folder / slug / "deep").mkdir(parents=True)
        (folder / slug / "data.txt").write_text(text)
        (folder / slug / "deep" / "more.txt").write_text(text * 2)
    return folder


@pytest.fixture(scope="session")
def replay_options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of an emulator that replays runs. All workers of a test run share the recordings."""
    base = tmp_path_factory.getbasetemp()
    workers = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return ("--plugin", PLUGIN, "--replay", str(workers / "recorded-runs"))


@pytest.fixture(scope="session")
def emulator_server(
    tmp_path_factory: pytest.TempPathFactory, inputs: Path, replay_options: tuple[str, ...]
) -> Iterator[LocalKaggle]:
    """The emulator that all tests of a worker share."""
    emulator = start_emulator(tmp_path_factory.mktemp("emulator"), *replay_options, inputs=inputs)
    yield emulator
    code, stderr = emulator.stop()
    assert code == 0
    assert "Traceback" not in stderr


_accounts = itertools.count(1)


@pytest.fixture
def emulator(emulator_server: LocalKaggle, request: pytest.FixtureRequest) -> Iterator[LocalKaggle]:
    """The shared emulator with an account of the test's own; faults are removed at the end."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in request.node.name[5:45])
    yield emulator_server.as_account(f"a{next(_accounts)}-{name}".rstrip("-"))
    emulator_server.remove_faults()


@pytest.fixture(scope="session")
def local_kaggle(emulator_server: LocalKaggle) -> str:
    """The address of the shared emulator."""
    return emulator_server.endpoint


@pytest.fixture
def launch(tmp_path: Path, inputs: Path) -> Iterator[Callable[..., LocalKaggle]]:
    """Start emulators with other options, without a plugin; all of them end with the test."""
    started: list[LocalKaggle] = []

    def launcher(*options: str, **more: object) -> LocalKaggle:
        folder = tmp_path / f"emulator{len(started)}"
        emulator = start_emulator(folder, *options, **{"inputs": inputs, **more})
        started.append(emulator)
        return emulator

    yield launcher
    for emulator in started:
        if emulator.process.poll() is None:
            emulator.stop()
        emulator.process.communicate()


@pytest.fixture
def kaggle(emulator: LocalKaggle, tmp_path: Path) -> Callable[..., str]:
    """`kaggle("kernels", "status", …)` runs the official client against the emulator."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "config"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": emulator.endpoint,
        "no_proxy": "",
        "KAGGLE_USERNAME": emulator.account,
        "KAGGLE_KEY": "key",
    }

    def run(*arguments: str | Path, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            [KAGGLE, *arguments],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def kernel_folder(emulator: LocalKaggle, tmp_path: Path) -> Path:
    """A kernel folder for the official client."""
    folder = tmp_path / "kernel"
    folder.mkdir()
    cells = (
        "print('hello'); open('out.txt', 'w').write('result')",
        "import os; os.makedirs('sub'); [open(f'sub/{i}', 'w').write(str(i)) for i in range(25)];",
    )
    (folder / "book.ipynb").write_text(emulator.notebook(*cells))
    metadata = {
        "id": f"{emulator.account}/my-first-kernel",
        "title": "My First Kernel",
        "code_file": "book.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_internet": False,
        "competition_sources": ["some-competition", "none-such"],
    }
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata))
    return folder
