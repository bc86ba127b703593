"""The table of environments, and what is said about those that cannot be created."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import (
    ENVIRONMENTS,
    PINS,
    Environment,
    Outcome,
    Training,
    exit_code,
    reason,
    report,
    try_environment,
)

ROOT = Path(__file__).parent.parent
HOME = os.environ.get("HOME", "")  # before a fixture hides it; uv's cache is there
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSIONS = {"python": "3.12.1", "torch": "2.10.0", "albumentationsx": "2.5.1"}


def outcome(name: str, **changes: Training) -> Outcome:
    trainings = {
        recipe: Training(recipe, 2.0, val_iou=0.5, masks=7, submission="a", weights="b")
        for recipe in ("baseline", "fast", "best")
    }
    return Outcome(
        Environment(name), versions=VERSIONS, trainings=tuple((trainings | changes).values())
    )


def cells(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_environments_differ_from_the_reference_as_their_names_say() -> None:
    reference, *others = ENVIRONMENTS
    assert (reference.python, reference.torch) == ("3.12", PINS["torch"])
    assert len({env.name for env in ENVIRONMENTS}) == len(ENVIRONMENTS)
    assert all(replace(env, name=reference.name) != reference for env in others)
    for name in ("numpy", "pandas", "torch", "opencv", "augmentation"):
        assert len({getattr(env, name) for env in ENVIRONMENTS}) > 1


def test_table_compares_results_with_the_first_environment() -> None:
    masks = Training("best", 2.0, val_iou=0.25, masks=3, submission="a", weights="other")
    text = report([outcome("first"), outcome("second", best=masks)])
    assert cells(text, "first")[-4:] == [*["IoU 0.5000, 7 of 20 masks"] * 3, "6"]
    second = cells(text, "second")
    assert second[1:6] == ["3.12.1", "2.10.0", "", "", "X 2.5.1"]
    assert second[-4:-1] == ["equal", "equal", "equal submission, IoU 0.2500, 3 of 20 masks"]
    other = replace(masks, submission="c")
    text = report([outcome("first"), outcome("second", best=other)])
    assert cells(text, "second")[-2] == "IoU 0.2500, 3 of 20 masks"


def test_failures_and_absent_environments_are_named_and_decide_the_exit_code() -> None:
    absent = Outcome(Environment("absent", python="3.99"), not_installed="no wheels")
    failed = replace(
        outcome("failed", fast=Training("fast", 1.0, error="x")), failures=("fast: x",)
    )
    fine = replace(outcome("fine"), warnings=("cv2/a.py: FutureWarning: b",), tests="5 passed")
    text = report([fine, failed, absent])
    assert cells(text, "failed")[-4:-2] == ["**failed**", "equal"]
    assert cells(text, "fine")[-1] == "5 passed"
    assert "Cannot be installed:\n\n- absent (Python 3.99): no wheels." in text
    assert "Failed:\n\n- failed: fast: x" in text
    assert "libraries:\n\n- `cv2/a.py: FutureWarning: b`" in text
    assert "nothing was compared" in report([absent, fine])
    assert cells(report([absent, fine]), "fine")[-4].startswith("IoU 0.5")
    codes = [exit_code(found) for found in ([fine], [fine, absent], [fine, failed], [absent])]
    assert codes == [0, 0, 1, 1]


def test_reason_is_one_line_without_addresses() -> None:
    text = (
        "Using Python 3.13\nerror: Request failed\n  cause: Failed to download `https://a/b`\n"
        "  cause: dns error\n  cause: dns error\n\nhint: try again\n"
    )
    assert reason(text) == "Request failed: Failed to download …: dns error"
    assert reason("") == "uv gives no reason"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            Environment("a", python="3.99"),
            "this machine has no Python 3.99, and uv cannot download",
        ),
        (Environment("b", python=THIS_PYTHON), "torch was not found in the cache"),
    ],
)
def test_what_cannot_be_installed_gets_the_reason_of_uv(
    environment: Environment, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    found = try_environment(environment, tmp_path, with_tests=False)
    assert said in found.not_installed
    assert exit_code([found]) == 1
    assert not (tmp_path / "venv").exists()


def is_running(pid: str) -> bool:
    try:
        return ") Z " not in Path("/proc", pid, "stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("limit", [0.001, 1.5])
def test_what_takes_too_long_is_marked_and_ended(
    limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "LIMIT", limit)
    environment = Environment("a", python=THIS_PYTHON)
    if limit < 1:
        found = try_environment(environment, tmp_path, with_tests=False)
        assert found.not_installed == "uv was ended, because it was not done after 0 s"
        assert exit_code([found]) == 1
        return
    # A program that starts another one, which keeps the output open.
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nsleep 60 &\necho $! >> {tmp_path}/pids\nsleep 60\n")
    python.chmod(0o755)
    trained = environments._train(environment, python, tmp_path)
    assert trained.failures == ("the program was ended, because it was not done after 2 s",)
    tested = environments._test(trained, python, tmp_path)
    assert tested.failures[1:] == ("pytest was ended, because it was not done after 2 s",)
    assert exit_code([tested]) == 1
    assert cells(report([outcome("first"), tested]), "a")[-5:-2] == ["**failed**"] * 3
    started = (tmp_path / "pids").read_text().split()
    assert len(started) == 2
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_failing_tests_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repository" / "tests" / "src_salt"
    folder.mkdir(parents=True)
    (folder.parent / "conftest.py").write_text("raise RuntimeError('kernelkit is not installed')")
    monkeypatch.setattr(environments, "ROOT", tmp_path / "repository")
    (folder / "test_a.py").write_text("def test_one(): pass\ndef test_two(): assert False\n")
    tested = environments._test(outcome("a"), Path(sys.executable), tmp_path)
    assert tested.tests == "1 failed, 1 passed"
    (failure,) = tested.failures
    assert failure.startswith("FAILED tests/src_salt/test_a.py::test_two")
    (folder / "test_a.py").write_text("import absent\n")
    assert "ERROR" in environments._test(outcome("a"), Path(sys.executable), tmp_path).failures[0]
    (folder / "test_a.py").unlink()
    nothing = environments._test(outcome("a"), Path(sys.executable), tmp_path)
    assert nothing.failures == ("pytest: no tests ran",)


@pytest.mark.slow
def test_the_projects_own_environment_is_created_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make setup` has left the wheels in uv's cache, so this needs no network."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("HOME", HOME)
    file = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.environments", "--only", "this project's"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path), "--markdown", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    text = file.read_text(encoding="utf-8")
    if "Cannot be installed" in text:
        pytest.skip("uv's cache does not hold the wheels")
    assert done.returncode == 0, done.stderr
    row = cells(text, "this project's")
    assert row[1:7] == [
        row[1],
        *(PINS[name].removeprefix("==") for name in ("torch", "numpy", "pandas")),
        *(PINS[name].removeprefix("==") for name in ("albumentations", "opencv-python")),
    ]
    assert row[1].startswith("3.11.")
    assert all(cell.startswith("IoU 0.") for cell in row[7:10])
    assert "Failed" not in text
