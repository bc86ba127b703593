"""Training by several processes of torchrun, with the full ResNet-34 on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from src_salt.device import pick_compute

from .conftest import TINY_OPTIONS, finish_run, python, src_salt_command

pytestmark = pytest.mark.slow

NAME = "resnet34_BCEDice"


@pytest.mark.parametrize(
    ("recipe", "loss"),
    [
        ("baseline", "BCEDice"),  # in float32 on every machine
        ("fast", "BCEDice"),
        ("fast", "Lovasz"),
        ("best", "BCEDiceSymmetric"),
    ],
)
def test_two_processes_train_like_one_with_the_same_batch(
    recipe: str, loss: str, competition_dir: Path, tmp_path: Path
) -> None:
    changes = {
        "experiments": f"resnet34_{loss}",
        "recipe": recipe,
        # Muon amplifies the small parts of a gradient and their rounding errors. By the second
        # epoch, sums in another order lead to another training.
        "epochs": 1 if recipe == "best" else 2,
        "limit_train": 10,
        "limit_val": 3,  # the last batch cannot be split evenly
    }
    alone = finish_run(competition_dir, tmp_path / "alone", **changes)
    # The record counts: lines of other processes come between the events.
    (tmp_path / "two").mkdir()
    program = f"""
        from src_salt.main import run
        run(data_dir={str(competition_dir)!r}, output_dir={str(tmp_path / "two")!r}, processes=2,
            batch_size=4, image_size=32, pretrained=False, num_workers=0, **{changes!r})
    """
    done = python(program)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [
        json.loads((folder / f"models/resnet34_{loss}_history.json").read_text())["history"]
        for folder in (alone.folder, tmp_path / "two")
    ]
    rounded = pick_compute(recipe != "baseline").dtype != torch.float32
    tolerance = 3e-2 if rounded else 2e-3
    for one, other in zip(*records, strict=True):
        # Of three images, in steps of a tenth: one pixel may change it by a step.
        difference = 0.1 / 3 + tolerance
        assert other.pop("val_score") == pytest.approx(one.pop("val_score"), abs=difference)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def test_killed_process_ends_the_run_and_the_next_run_resumes(
    competition_dir: Path, tmp_path: Path
) -> None:
    folders = ["--data-dir", competition_dir, "--output-dir", tmp_path]
    options = ["--experiments", NAME, "--recipe", "fast", "--processes", "2", "--epochs", "30"]
    with subprocess.Popen(
        src_salt_command(*folders, *TINY_OPTIONS, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert any('"event": "epoch"' in line for line in running.stdout)
        os.kill(find_rank_1(running.pid), signal.SIGKILL)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 2, errors
    assert f"{NAME}: torchrun ended with status 1 and wrote no outcome" in errors
    done = len(torch.load(tmp_path / "checkpoints" / f"{NAME}.pt")["state"]["history"])
    assert done >= 1
    # One process can resume what two began: the fingerprint is the same.
    next_run = python(
        f"""
        from src_salt.config import Settings
        from src_salt.data import load_labelled
        from src_salt.experiments import run_experiments
        from src_salt.outputs import Outputs
        settings = Settings.from_parameters(dict(data_dir={str(competition_dir)!r},
            output_dir={str(tmp_path)!r}, experiments={NAME!r}, recipe="fast", epochs=30,
            batch_size=4, image_size=32, pretrained=False, max_hours=0.001))
        run_experiments(settings, load_labelled(settings.data_dir), Outputs(settings.output_dir))
        """
    )
    assert f'"epochs_done": {done}' in next_run.stdout, next_run.stderr[-2000:]


def find_rank_1(ancestor: int) -> int:
    """Find the process of rank 1 by the environment that torchrun gave it."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.stat().st_uid == os.getuid():
            with contextlib.suppress(OSError):
                entries = (folder / "environ").read_bytes().split(b"\0")
                if b"RANK=1" in entries and is_descendant(int(folder.name), ancestor):
                    return int(folder.name)
    raise AssertionError("there is no process of rank 1")


def is_descendant(process: int, ancestor: int) -> bool:
    while process > 1 and process != ancestor:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == ancestor
