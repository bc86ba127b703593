"""Several trials side by side, as real processes, without a notebook."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kernelkit.notebook.runtime import NotebookRun, RuntimeFault

MODULE = """
import json, os, sys, time
from pathlib import Path

def run(output_dir, value, fail="", seconds=0.0):
    print("working in", Path.cwd().name)
    print("devices", os.environ.get("CUDA_VISIBLE_DEVICES"), file=sys.stderr)
    for epoch in range(1, 4):
        print(json.dumps({"event": "epoch", "epoch": epoch, "val_loss": value / epoch}), flush=True)
        time.sleep(seconds)
    if fail == "raise":
        raise ValueError("asked to fail")
    if fail == "exit":
        os._exit(3)
    Path(output_dir, "out.txt").write_text(str(value))
"""


def make_run(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> NotebookRun:
    for name in ("input", "working", "temp"):
        (folder / name).mkdir()
        monkeypatch.setenv(f"KAGGLE_{name.upper()}_DIR", str(folder / name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(folder)
    source = folder / "src"
    source.mkdir()
    (source / "training.py").write_text(MODULE)
    digest = hashlib.sha256(MODULE.encode()).hexdigest()
    bundle: Any = {
        "digest": "d" * 64,
        "wants_gpu": False,
        "kernel": {"machine_shape": ""},
        "files": [{"path": "training.py", "sha256": digest}],
        "third_party": [],
        **more,
    }
    run = NotebookRun(bundle, source)
    run.check_sources()
    return run


def trials(*parameters: dict[str, Any]) -> dict[str, Any]:
    found = [
        {"number": 3 + n, "parameters": one, "outputs": ["out.txt"]}
        for n, one in enumerate(parameters)
    ]
    return {
        "trials": found,
        "outputs": [f"trial-{trial['number']}/out.txt" for trial in found],
    }


def test_a_trial_that_fails_leaves_its_neighbours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three = trials({"value": 6}, {"value": 3, "fail": "raise"}, {"value": 9, "fail": "exit"})
    run = make_run(tmp_path, monkeypatch, **three)
    run.resolve({"output_dir": "kaggle://working"})
    run.run_trials("training:run")
    manifest = run.finish()
    printed = capsys.readouterr().out

    assert [t["status"] for t in manifest["trials"]] == ["complete", "failed", "failed"]
    complete, raised, exited = manifest["trials"]
    assert complete["error"] is None
    assert complete["parameters"] == {"output_dir": str(tmp_path / "working/trial-3"), "value": 6}
    assert raised["error"] == "ValueError: asked to fail"
    assert 'raise ValueError("asked to fail")' in str(raised["traceback"])
    assert exited["error"] == "the process of the trial ended with exit code 3"
    assert "working in trial-5" in str(exited["traceback"])
    assert manifest["status"] == "complete"
    assert [output["path"] for output in manifest["outputs"]] == ["trial-3/out.txt"]
    assert (tmp_path / "working/trial-3/out.txt").read_text() == "6"

    assert "[trial 3] working in trial-3\n" in printed
    assert "[trial 4] ValueError: asked to fail\n" in printed
    assert "[trial 3] devices None\n" in printed
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert sorted((e["trial"], e["epoch"]) for e in events) == [
        (number, epoch) for number in (3, 4, 5) for epoch in (1, 2, 3)
    ]


def test_a_session_fails_if_no_trial_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, monkeypatch, **trials({"value": 6, "fail": "raise"}))
    run.resolve({"output_dir": "kaggle://working"})
    with pytest.raises(RuntimeFault, match="no trial is complete; trial 3 failed") as caught:
        run.run_trials("training:run")
    assert "ValueError: asked to fail" in str(caught.value)


def test_each_trial_has_a_gpu_of_its_own_and_hopeless_ones_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = trials({"value": 6}, {"value": 60, "seconds": 30})
    pruning = {"metric": "val_loss", "goal": "minimize", "medians": [10.0, 5.0, 4.0]}
    run = make_run(tmp_path, monkeypatch, wants_gpu=True, pruning=pruning, **two)
    run.hardware = {"gpus": ["Tesla T4", "Tesla T4"]}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    run.resolve({"output_dir": "kaggle://working"})
    run.run_trials("training:run")
    manifest = run.finish()
    printed = capsys.readouterr().out
    assert [t["status"] for t in manifest["trials"]] == ["complete", "pruned"]
    assert "[trial 3] devices 4\n" in printed
    assert "[trial 4] devices 7\n" in printed
    assert "[trial 4] ended: worse than the median of the others\n" in printed
    assert manifest["trials"][1]["seconds"] < 20
