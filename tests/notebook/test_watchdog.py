"""What runs next to the program: the manifest while it runs, the deadline, the end of a stall."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelkit.notebook.runtime import NotebookRun, RuntimeFault, Stalled, time_left, watchdog
from kernelkit.notebook.runtime.deadline import allowed_seconds
from kernelkit.notebook.runtime.descriptions import Descriptions
from kernelkit.notebook.runtime.events import OutputTap, RunEvent

MODULE = """
import json, os, subprocess, sys, threading, time
from pathlib import Path

def run(do="", **parameters):
    return globals()[do]()

def train():
    Path("model.pt").write_bytes(b"weights" * 1000)
    Path("out.csv").write_text("id,x\\n1,2\\n")
    print(json.dumps({"event": "epoch", "epoch": 1, "val_loss": float("nan")}))
    while not Path("stop").exists():
        time.sleep(0.02)

def hang():
    print("working on it")
    time.sleep(60)

def child():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])

def patient():
    for _ in range(8):
        time.sleep(0.2)
        Path("out.csv").write_text("id,x\\n")

def returns():
    return "incomplete"

def prints():
    print(json.dumps({"event": "incomplete"}))

def from_a_child():
    code = "import json; print(json.dumps({'event': 'incomplete'}))"
    subprocess.run([sys.executable, "-c", code])
"""


@pytest.fixture
def new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NotebookRun]:
    """A run of MODULE in folders of its own; keywords are keys of its manifest."""
    source = tmp_path / "src" / "stalling.py"
    source.parent.mkdir()
    source.write_text(MODULE)
    for name in ("input", "working", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KAGGLE_{name.upper()}_DIR", str(tmp_path / name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv(watchdog_deadline, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "EVENT_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "REFRESH_SECONDS", 0.2)

    def make(**keys: Any) -> NotebookRun:
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        bundle: Any = {
            "digest": "d" * 64,
            "wants_gpu": False,
            "kernel": {"machine_shape": ""},
            "files": [{"path": "stalling.py", "sha256": sha256}],
            "outputs": ["out.csv"],
            "third_party": [],
            **keys,
        }
        run = NotebookRun(bundle, source.parent)
        run.check_sources()
        sys.modules.pop("stalling", None)
        return run

    return make


watchdog_deadline = "KERNELKIT_DEADLINE"


def manifest_of(run: NotebookRun) -> Any:
    return json.loads((run.working_dir / "run-manifest.json").read_text())


def call(run: NotebookRun, do: str) -> object:
    return run.call("stalling:run", run.resolve({"do": do}))


def test_the_manifest_is_there_while_the_program_runs(
    new_run: Callable[..., NotebookRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelkit.notebook.runtime.descriptions.SETTLED_SECONDS", 0.0)
    run = new_run()
    run.resolve({"do": "train"})
    first = manifest_of(run)
    assert (first["status"], first["outputs"], first["parameters"]) == (
        "running",
        [],
        {"do": "train"},
    )
    seen = []

    def look() -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end and not (seen and seen[-1]["outputs"]):
            seen.append(manifest_of(run))
            time.sleep(0.05)
        (run.working_dir / "stop").touch()

    thread = threading.Thread(target=look)
    thread.start()
    call(run, "train")
    thread.join()
    last = seen[-1]
    assert last["status"] == "running"
    assert last["last_event"] == {"event": "epoch", "epoch": 1}
    sha256 = hashlib.sha256(b"weights" * 1000).hexdigest()
    assert last["checkpoints"] == [{"path": "model.pt", "size": 7000, "sha256": sha256}]
    assert [one["path"] for one in last["outputs"]] == ["out.csv"]
    finished = run.finish()
    assert finished["status"] == "complete"
    assert finished["checkpoints"] == last["checkpoints"]
    assert finished["outputs"][0]["rows"] == 1


def test_a_program_that_stalls_is_interrupted(
    new_run: Callable[..., NotebookRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(stall_minutes=0.4 / 60)
    with pytest.raises(Stalled, match=r"for 0 s .*Last output: working on it") as caught:
        call(run, "hang")
    manifest = manifest_of(run)
    assert manifest["status"] == "stalled"
    assert "working on it" in manifest["error"]
    assert "in hang" in manifest["traceback"]
    printed = capsys.readouterr().out
    assert "after 0 s the run ends" in printed
    assert 'kernelkit-manifest {"checkpoints"' in printed
    assert not (run.working_dir / "run-stalled.txt").exists()
    assert isinstance(caught.value, RuntimeFault)


def test_the_processes_of_a_program_that_stalls_are_ended(
    new_run: Callable[..., NotebookRun],
) -> None:
    run = new_run(stall_minutes=0.4 / 60)
    with pytest.raises(Stalled, match=r"import time; time\.sleep"):
        call(run, "child")


def test_changed_files_are_a_sign_of_life(new_run: Callable[..., NotebookRun]) -> None:
    run = new_run(stall_minutes=0.8 / 60)
    call(run, "patient")
    assert run.finish()["status"] == "complete"


def test_compiled_code_that_keeps_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Python's `re` releases the lock for nothing: only a thread without Python can end it."""
    code = f"""
import re, sys
from pathlib import Path
from kernelkit.notebook.runtime import watchdog
from kernelkit.notebook.runtime.events import OutputTap, RunEvent
from kernelkit.notebook.runtime.watchdog import Watchdog
watchdog.FROZEN_SECONDS = 0.2
dog = Watchdog(OutputTap(print), refresh=lambda stop: None, end_stalled=lambda *why: None,
               working=Path({str(tmp_path)!r}), folders=(), deadline=1e12, stall_seconds=0.3)
with dog.watching():
    re.match(r"(a+)+$", "a" * 60 + "b")
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == 1
    assert "in match" in (tmp_path / "run-stalled.txt").read_text()


@pytest.mark.parametrize("do", ["returns", "prints"])
def test_an_incomplete_run_may_lack_outputs(new_run: Callable[..., NotebookRun], do: str) -> None:
    run = new_run()
    call(run, do)
    manifest = run.finish()
    assert (manifest["status"], manifest["incomplete"], manifest["outputs"]) == (
        "complete",
        True,
        [],
    )


def test_other_runs_may_not(new_run: Callable[..., NotebookRun]) -> None:
    run = new_run()
    assert manifest_of_start(run)["incomplete"] is False
    with pytest.raises(RuntimeFault, match="without its declared outputs"):
        run.finish()


def manifest_of_start(run: NotebookRun) -> Any:
    run.resolve({})
    return manifest_of(run)


def test_what_kernelkit_prints_is_no_sign_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[RunEvent] = []
    tap = OutputTap(events.append)
    with tap.listening():
        assert tap.hears
        print("x" * 1000)
        last = tap.last_output
        tap.print('{"event": "ours"}')
    assert (tap.last_output, tap.last_text, events) == (last, "x" * 200, [])
    assert "ours" in capsys.readouterr().out


def test_only_changed_files_are_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    module = "kernelkit.notebook.runtime.descriptions"
    monkeypatch.setattr(f"{module}.sha256_of", lambda path, _: hashed.append(path.name) or "0")
    for name in ("a.pt", "out.csv", "checkpoints/state", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    files = Descriptions(tmp_path, ["out.csv"])
    for _ in range(2):
        outputs, checkpoints = files.update(lambda: False)
        assert [one["path"] for one in outputs] == ["out.csv"]
        assert sorted(one["path"] for one in checkpoints) == ["a.pt", "checkpoints/state"]
    assert sorted(hashed) == ["a.pt", "out.csv", "state"]
    (tmp_path / "a.pt").write_text("changed")  # just now: it may not be whole
    assert [one["path"] for one in files.update(lambda: False)[1]] == ["checkpoints/state"]
    os.utime(tmp_path / "a.pt", (2, 2))
    assert len(files.update(lambda: False)[1]) == 2
    assert hashed.count("a.pt") == 2


@pytest.mark.parametrize(
    ("keys", "hours"),
    [
        ({}, 12 - 1 / 6),
        ({"kernel": {"machine_shape": "TpuV5E8"}}, 9 - 1 / 6),
        ({"kernel": {"machine_shape": "", "session_timeout_seconds": 100}}, 95 / 3600),
        ({"session_seconds": 7200}, 1.9),
        ({"deadline_hours": 8.0}, 8),
        ({"deadline_hours": 8.0, "session_seconds": 7200}, 1.9),
    ],
)
def test_the_deadline_is_what_is_allowed_less_a_margin(keys: Any, hours: float) -> None:
    bundle: Any = {"kernel": {"machine_shape": ""}, **keys}
    assert allowed_seconds(bundle) == pytest.approx(hours * 3600)


def test_the_program_can_ask_for_the_time_left(
    new_run: Callable[..., NotebookRun], capsys: pytest.CaptureFixture[str]
) -> None:
    assert time_left() is None
    run = new_run(deadline_hours=100 / 3600)
    (run.working_dir / "stop").touch()
    found = run.resolve({"max_hours": "kaggle://hours_left", "do": "train"})
    assert found["max_hours"] == pytest.approx(100 / 3600, abs=0.005)
    left = time_left()
    assert left is not None
    assert 90 < left <= 100
    (run.working_dir / "stop").unlink()
    threading.Timer(0.5, (run.working_dir / "stop").touch).start()
    call(run, "train")
    printed = capsys.readouterr().out
    events = re.findall(r'^{"event": "deadline".*', printed, re.MULTILINE)
    assert len(events) == 1
    assert 90 < json.loads(events[0])["seconds_left"] <= 100
