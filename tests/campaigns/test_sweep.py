"""Sweeps against a local Kaggle: real pushes, real notebooks, real verification."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelkit.campaigns.study import Assignment, open_study
from kernelkit.campaigns.sweep import run_sweep
from kernelkit.campaigns.sweep_plan import plan_sweep
from kernelkit.config import load_config
from kernelkit.errors import LocalError, RefusedError
from kernelkit.kaggle.kernels import connect
from kernelkit.notebook.manifest import Manifest
from kernelkit.runs.manifest import RunRecord
from kernelkit.runs.store import RunFolder, record_push
from kernelkit.storage import locked
from tests.local_kaggle import LocalKaggle

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def add_sweep(project: Path, settings: str, parameters: str) -> None:
    path = project / "pyproject.toml"
    text = path.read_text().replace("[tool.kernelkit]\n", '[tool.kernelkit]\nmetric = "val_iou"\n')
    section = f"[tool.kernelkit.sweep]\n{settings}\n[tool.kernelkit.sweep.parameters]\n{parameters}"
    path.write_text(f"{text}\n{section}\n")


def pushes(emulator: LocalKaggle) -> int:
    return sum(effect["effect"] == "version" for effect in emulator.journal("effects"))


def test_a_parameter_that_the_entry_does_not_take_is_found_at_once(
    plain: Path, cli: Cli, emulator: LocalKaggle
) -> None:
    add_sweep(plain, "trials = 2", "epoch = [1, 2]")
    printed = cli("sweep", cwd=plain, env=emulator.environment, expect=3).stderr
    assert 'parcel.main:run takes no such argument; did you mean "epochs"?' in printed
    assert emulator.journal("effects") == []


def test_own_templates_must_know_trials_side_by_side(
    plain: Path, cli: Cli, emulator: LocalKaggle
) -> None:
    add_sweep(plain, "trials = 2\nper_gpu = true", "epochs = [1, 2]")
    path = plain / "pyproject.toml"
    path.write_text(
        path.read_text().replace("[tool.kernelkit]\n", '[tool.kernelkit]\ntemplates = "own"\n', 1)
    )
    (plain / "own").mkdir()
    (plain / "own" / "71-run.py.j2").write_text(
        "result = kernelkit_run.call({{ manifest.entry | repr }}, parameters)\n"
    )
    printed = cli("sweep", cwd=plain, env=emulator.environment, expect=2).stderr
    assert "templates do not start trials side by side" in printed


def test_without_optuna_the_command_says_how_to_install_it(
    plain: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_sweep(plain, "trials = 2", "epochs = [1, 2]")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name)
    )
    for command in (["sweep"], ["sweep", "status"], ["sweep", "best"]):
        printed = cli(*command, cwd=plain, expect=2).stderr
        assert "optuna is not installed" in printed
        assert "-m pip install" in printed


def test_a_sweep_that_was_never_started_has_no_status(plain: Path, cli: Cli) -> None:
    add_sweep(plain, "trials = 2", "epochs = [1, 2]")
    printed = cli("sweep", "status", cwd=plain, expect=2).stderr
    assert "no sweep of plain-parcel was started here" in printed


def test_a_second_process_does_not_run_the_same_sweep(plain: Path, emulator: LocalKaggle) -> None:
    add_sweep(plain, "trials = 2", "epochs = [1, 2]")
    plan = plan_sweep(load_config(plain, endpoint=emulator.endpoint, environment={}))
    folder = plain / "runs" / "plain-parcel"
    with locked(folder, ".sweep.lock"), pytest.raises(LocalError, match="another process"):
        run_sweep(plan, lambda: pytest.fail("connected"), plain / "runs")


def test_a_machine_without_threads_is_a_limit_and_no_bug(
    plain: Path, emulator: LocalKaggle
) -> None:
    add_sweep(plain, "trials = 2", "epochs = [1, 2]")
    plan = plan_sweep(load_config(plain, endpoint=emulator.endpoint, environment={}))
    before = threading.stack_size(1 << 45)  # no machine has this much for a thread
    try:
        with pytest.raises(LocalError, match="limit: it starts no more threads") as caught:
            run_sweep(plan, lambda: pytest.fail("connected"), plain / "runs")
    finally:
        threading.stack_size(before)
    assert caught.value.next_step.endswith("it goes on with the sweep.")
    assert not emulator.journal("effects")


@pytest.mark.slow
def test_no_error_of_a_lane_is_lost(plain: Path, emulator: LocalKaggle) -> None:
    """The first one is raised; those of the other lanes are told."""
    add_sweep(plain, "trials = 2\nsessions = 2", "epochs = [1, 2]")
    plan = plan_sweep(load_config(plain, endpoint=emulator.endpoint, environment={}))
    told: list[object] = []
    with open_study(plain / "runs" / plan.slug, plan.search, plan.space) as study:
        for number in range(2):  # both are pushed already, by a process that was killed
            trial = study.ask("random", 0)
            assert trial is not None
            run = RunFolder(plain / "runs" / f"plain-parcel-lane-{number + 1}" / "v1")
            record = RunRecord(
                owner="me", slug=run.slug, version=1, url="", digest="d", endpoint="http://[::1]:1"
            )
            record_push(plain / "runs", record, Manifest(digest="d", outputs=()))
            assignment = Assignment(session=number + 1, lane=number + 1, run=f"{run.slug}/v1")
            study.assign(number, assignment)
    with pytest.raises(RefusedError, match=r"trial (0|1): .*is a run of http") as caught:
        run_sweep(
            plan,
            lambda: connect(emulator.endpoint, emulator.environment),
            plain / "runs",
            on_event=told.append,
        )
    other = "trial 1: " if str(caught.value).startswith("trial 0") else "trial 0: "
    assert any(isinstance(one, str) and one.startswith(other) for one in told)


def start(project: Path, emulator: LocalKaggle) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "sweep"],
        cwd=project,
        env={**os.environ, **emulator.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_pushes_nothing_twice(
    plain: Path, cli: Cli, emulator: LocalKaggle
) -> None:
    add_sweep(plain, 'sampler = "grid"\nsessions = 2', "epochs = [1, 2]")
    for count in (1, 2):  # kill it once the first, and once the last trial is pushed
        process = start(plain, emulator)
        deadline = time.monotonic() + 60
        while pushes(emulator) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = json.loads(cli("sweep", "--json", cwd=plain, env=emulator.environment).stdout)
    assert pushes(emulator) == 2
    assert [trial["state"] for trial in ended["trials"]] == ["complete"] * 2
    assert [trial["parameters"] for trial in ended["trials"]] == [{"epochs": 1}, {"epochs": 2}]
    assert len({trial["run"] for trial in ended["trials"]}) == 2
    assert ended["best"] == 0  # all reach 1.0, and the first of equals counts
    for trial in ended["trials"]:
        end = json.loads((plain / "runs" / trial["run"] / "run.json").read_text())
        assert end["verified"] is True

    report = Path(ended["report"]).read_text()
    assert "plain-parcel-lane-1/v1" in report
    assert report.count("<svg") == 2  # without two different values nothing is important
    assert "It takes two complete trials with different values." in report
    assert "src=" not in report

    again = json.loads(cli("sweep", "--json", cwd=plain, env=emulator.environment).stdout)
    assert again["trials"] == ended["trials"]
    assert pushes(emulator) == 2
    status = json.loads(
        cli("sweep", "status", "--json", cwd=plain, env=emulator.environment).stdout
    )
    assert status["trials"] == ended["trials"]
    best = json.loads(cli("sweep", "best", "--json", cwd=plain, env=emulator.environment).stdout)
    assert best["options"] == ["--set", "epochs=1"]
    assert shlex.split(best["command"]) == ["kernelkit", "run", "--set", "epochs=1"]
    rows = json.loads(cli("runs", "--json", cwd=plain).stdout)
    assert {row["campaign"] for row in rows} == {status["campaign"]}


@pytest.mark.slow
def test_another_sweep_waits_for_the_lane(plain: Path, cli: Cli, emulator: LocalKaggle) -> None:
    """A trial still runs, of a sweep that was started elsewhere."""
    add_sweep(plain, "trials = 1\nsessions = 1", "epochs = [1]")
    path = plain / "pyproject.toml"
    text = path.read_text()
    path.write_text(text.replace("seconds = 0.0", "seconds = 3.0"))
    assert path.read_text() != text
    process = start(plain, emulator)
    deadline = time.monotonic() + 60
    while pushes(emulator) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(plain / "runs")
    path.write_text(text)
    done = cli("sweep", cwd=plain, env=emulator.environment)
    said = done.stdout + done.stderr
    assert "plain-parcel-lane-1/v1 is of a sweep that was started elsewhere" in said
    assert "waiting for plain-parcel-lane-1/v1" in said
    assert pushes(emulator) == 2


@pytest.mark.slow
def test_a_trial_that_fails_does_not_take_its_neighbour_with_it(
    plain: Path, cli: Cli, emulator: LocalKaggle
) -> None:
    add_sweep(plain, 'sampler = "grid"\nper_gpu = true', "fail = [true, false]")
    view = json.loads(cli("sweep", "--json", cwd=plain, env=emulator.environment).stdout)
    failed, complete = view["trials"]
    assert pushes(emulator) == 1
    assert failed["run"] == complete["run"] == "plain-parcel-lane-1/v1"
    assert (failed["state"], failed["value"]) == ("failed", None)
    assert failed["failure"] == "RuntimeError: asked to fail"
    assert (complete["state"], complete["value"]) == ("complete", 1.0)
    folder = plain / "runs" / complete["run"]
    assert (folder / "trial-1" / "table.csv").is_file()
    assert not (folder / "trial-0" / "table.csv").exists()
    verified = cli("verify", folder).stdout
    assert "note: trial 0 failed: RuntimeError: asked to fail" in verified
    assert "verified: " in verified
    diagnosis = json.loads(cli("diagnose", folder, "--json", cwd=plain).stdout)
    assert diagnosis["error"] == "RuntimeError: asked to fail"
    assert diagnosis["notes"][0].startswith("in trial 0, with {")


@pytest.mark.slow
def test_only_runs_that_kaggle_ends_are_repeated(
    plain: Path, cli: Cli, emulator: LocalKaggle
) -> None:
    add_sweep(plain, 'sampler = "grid"\nsessions = 1\nretries = 1', "epochs = [1]")
    emulator.inject("run-error,message=Your notebook was preempted.")
    view = json.loads(cli("sweep", "--json", cwd=plain, env=emulator.environment).stdout)
    (trial,) = view["trials"]
    assert (trial["state"], trial["run"]) == ("complete", "plain-parcel-lane-1/v2")
    assert trial["earlier_runs"] == ["plain-parcel-lane-1/v1"]
    assert pushes(emulator) == 2


@pytest.mark.slow
def test_a_hopeless_trial_is_cancelled(plain: Path, emulator: LocalKaggle) -> None:
    add_sweep(
        plain,
        'trials = 6\nsampler = "random"\nsessions = 1',
        "epochs = [20, 21, 22, 23, 24, 25, 26, 27]",
    )
    slow = ["seconds=0.5"]
    config = load_config(plain, settings=slow, endpoint=emulator.endpoint, environment={})
    plan = plan_sweep(config)
    root = plain / "runs"
    with open_study(root / plan.slug, plan.search, plan.space) as study:
        for number in range(5):  # as if five other trials had reached more after one epoch
            trial = study.ask("random", 0)
            assert trial is not None
            study.assign(number, Assignment(session=number + 1, lane=1, run=f"other/v{number + 1}"))
            study.report(number, [0.9])
            study.complete(number, 0.9)
    messages: list[Any] = []
    account = emulator.as_account(f"live-{emulator.account}")
    view = run_sweep(
        plan,
        lambda: connect(emulator.endpoint, account.environment),
        root,
        on_event=messages.append,
    )
    assert view.trials[5].state == "pruned"
    assert view.trials[5].failure == "worse than the median of the others"
    assert any("cancelling the run" in message for message in messages if isinstance(message, str))
    assert view.best is not None
    assert view.best.number < 5
