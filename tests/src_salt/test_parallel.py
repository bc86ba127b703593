"""Several experiments at the same time, each in its own process, with the full ResNet-34."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src_salt import experiments
from src_salt.config import Settings, SettingsError
from src_salt.experiments import experiments_at_once

NAMES = ("resnet34_BCEDice", "resnet34_Lovasz")
KEPT = ("submission.csv", *(f"models/best_model_{name}.pth" for name in NAMES))


@pytest.mark.parametrize(
    ("changes", "gpus", "expected"),
    [
        ({}, 2, 2),  # the default on two GPUs
        ({}, 1, 1),
        ({}, 0, 1),
        ({"experiments": NAMES[0]}, 2, 1),
        ({"experiments": NAMES[0], "folds": 5}, 2, 2),
        ({"parallel": "batches"}, 2, 1),
        ({"processes": 2}, 2, 1),  # as before there was `parallel`
        ({"processes": 2, "parallel": "experiments"}, 0, 2),
        ({"processes": 3, "parallel": "experiments"}, 0, 2),
        ({"parallel": "experiments"}, 0, 1),
    ],
)
def test_how_many_experiments_are_trained_at_once(
    changes: dict[str, object],
    gpus: int,
    expected: int,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experiments.torch.cuda, "device_count", lambda: gpus)
    assert experiments_at_once(settings(**{"experiments": NAMES, **changes})) == expected


def test_other_words_for_parallel_are_refused(settings: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError, match="parallel: must be experiments or batches"):
        settings(parallel="gpus")


@pytest.mark.slow
def test_experiments_at_once_give_the_bytes_of_one_after_the_other(
    competition_dir: Path, tmp_path: Path
) -> None:
    for folder, processes in (("alone", 1), ("both", 2)):
        lines, code = run_and_kill(competition_dir, tmp_path / folder, processes)
        assert code == 0, lines
    for name in KEPT:
        alone, both = ((tmp_path / folder / name).read_bytes() for folder in ("alone", "both"))
        assert both == alone, name


@pytest.mark.slow
def test_an_experiment_whose_process_dies_twice_leaves_its_neighbour_alone(
    competition_dir: Path, tmp_path: Path
) -> None:
    lines, code = run_and_kill(competition_dir, tmp_path, 2, victim=NAMES[1])
    assert code == 0, lines
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert [event["experiment"] for event in events if event["event"] == "processes_died"] == [
        NAMES[1]
    ]
    done = {one["experiment"]: one for one in events[-1]["experiments"]}
    assert done[NAMES[0]]["ended"] == ""
    assert NAMES[1] not in done or "ended twice" in done[NAMES[1]]["ended"]
    assert (tmp_path / "submission.csv").exists()


def run_and_kill(
    data_dir: Path, folder: Path, processes: int, victim: str = ""
) -> tuple[list[str], int]:
    """Run two experiments, kill two processes of one; return the lines and the exit code."""
    program = f"""
        from src_salt.main import run
        run(data_dir={str(data_dir)!r}, output_dir={str(folder)!r}, processes={processes},
            parallel="experiments", experiments={NAMES!r}, epochs=2, batch_size=4, image_size=32,
            limit_train=8, pretrained=False, num_workers=0, recipe="fast")
    """
    killed: set[int] = set()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        while victim and len(killed) < 2 and running.poll() is None:
            for process in processes_with(f"{victim}_job.json") - killed:
                os.kill(process, signal.SIGKILL)
                killed.add(process)
            time.sleep(0.1)
        output, _ = running.communicate(timeout=300)
    assert len(killed) == (2 if victim else 0)
    return output.splitlines(), running.returncode


def processes_with(word: str) -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if word.encode() in (folder / "cmdline").read_bytes():
                    found.add(int(folder.name))
            except OSError:
                continue
    return found
