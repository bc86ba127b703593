"""Replay of recorded runs: fast, and equal to the real run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, Cli
from tests.local_kaggle import PLUGIN, LocalKaggle, start_emulator

CELLS = (
    "import os; name = os.environ['KAGGLE_CONTAINER_NAME']",
    "print('session', name); open('out.txt', 'w').write('x' * 1000)",
    "import sys; os.makedirs('sub'); open('sub/empty', 'w'); print('late', file=sys.stderr)",
)


@pytest.fixture(scope="module")
def replaying(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Iterator[LocalKaggle]:
    """An emulator with a folder of recordings that is empty at first."""
    folder = tmp_path_factory.mktemp("replay")
    options = ("--plugin", PLUGIN, "--replay", str(folder / "runs"))
    emulator = start_emulator(folder, *options, inputs=inputs)
    yield emulator
    assert emulator.stop() == (0, "")


def recordings(emulator: LocalKaggle) -> set[str]:
    """The names of complete recordings."""
    return {path.parent.name for path in emulator.ready_file.parent.glob("runs/*/end.json")}


def is_real(emulator: LocalKaggle, slug: str, version: int = 1) -> bool:
    """Whether a run has executed its notebook."""
    return (emulator.folder(slug, version) / "executed.ipynb").exists()


def test_a_replayed_run_equals_the_real_one(replaying: LocalKaggle) -> None:
    results, seconds = [], []
    for account in ("first", "second"):
        emulator = replaying.as_account(account)
        started = time.monotonic()
        emulator.push("my-kernel", *CELLS)
        status, log = emulator.finish("my-kernel")
        seconds.append(time.monotonic() - started)
        text = "".join(entry["data"] for entry in log)
        assert f"session kaggle-local-{emulator.session_id('my-kernel')}\n" in text
        outputs = {
            name: emulator.fetch(url).content for name, url in emulator.outputs("my-kernel").items()
        }
        streams = [(entry["stream_name"], entry["time"]) for entry in log]
        results.append((status, streams, outputs))
        assert is_real(emulator, "my-kernel") == (account == "first")
    assert results[0] == results[1]
    assert results[0][2] == {"out.txt": b"x" * 1000, "sub/empty": b""}
    assert seconds[1] < seconds[0]


def test_a_failed_run_is_replayed(replaying: LocalKaggle) -> None:
    for version in (1, 2):
        replaying.push("it-fails", "open('before', 'w'); raise ValueError('broken')")
        status, log = replaying.finish("it-fails")
        assert status == {"status": "ERROR", "failureMessage": "ValueError: broken"}
        assert "raise ValueError" in "".join(entry["data"] for entry in log)
        assert list(replaying.outputs("it-fails")) == ["before"]
        assert is_real(replaying, "it-fails", version) == (version == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"enableInternet": True},
        {"competitionDataSources": ["some-competition"]},
        {"machineShape": "NvidiaTeslaT4"},
    ],
)
def test_different_settings_start_a_new_run(
    replaying: LocalKaggle, change: dict[str, object]
) -> None:
    emulator = replaying.as_account(f"settings-{next(iter(change)).lower()}")
    emulator.run("my-kernel", "print('settings')")
    emulator.run("my-kernel", "print('settings')", **change)
    assert is_real(emulator, "my-kernel", 2)


@pytest.mark.slow
def test_some_runs_are_never_replayed(replaying: LocalKaggle) -> None:
    live = replaying.as_account("live-account")
    for version in (1, 2):
        live.run("my-kernel", "print('live')")
        assert is_real(live, "my-kernel", version)
    before = recordings(replaying)
    replaying.push("cancelled", "print('up', flush=True); import time; time.sleep(60)")
    next(replaying.events("cancelled"))
    number = replaying.session_id("cancelled")
    assert replaying.call("CancelKernelSession", kernelSessionId=number).json() == {}
    assert replaying.finish("cancelled")[0] == {"status": "CANCEL_ACKNOWLEDGED"}
    replaying.run("a-pipe", "import os; os.mkfifo('pipe')")
    assert recordings(replaying) == before


def test_faults_apply_to_a_replayed_run(replaying: LocalKaggle) -> None:
    emulator = replaying.as_account("forced")
    emulator.run("my-kernel", "open('out', 'w')")
    emulator.inject("run-cancelled,outputs=gone")
    emulator.push("my-kernel", "open('out', 'w')")
    assert emulator.finish("my-kernel", "v2")[0] == {"status": "CANCEL_ACKNOWLEDGED"}
    assert emulator.outputs("my-kernel", versionLabel="v2") == {}
    assert not is_real(emulator, "my-kernel", 2)
    replaying.remove_faults()


def test_kernelkit_accepts_a_replayed_run(replaying: LocalKaggle, cli: Cli, tmp_path: Path) -> None:
    """The same project pushed by another account: verified, with digest and push_id of the push."""
    records = []
    for account in ("ann", "bob"):
        project = Path(shutil.copytree(SAMPLES / "plain", tmp_path / account))
        emulator = replaying.as_account(account)
        assert "verified: " in cli("run", cwd=project, env=emulator.environment).stdout
        (folder,) = project.glob("runs/*/v1")
        records.append(json.loads((folder / "run-manifest.json").read_text()))
        pushed = json.loads((folder / "push.json").read_text())
        assert records[-1].pop("push_id") == pushed["push_id"]
        (effect,) = emulator.journal("effects")
        assert effect["digest"] == records[-1]["digest"]
        assert is_real(emulator, folder.parent.name) == (account == "ann")
    assert records[0] == records[1]
