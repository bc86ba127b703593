"""Training by several processes of torchrun, with the full ResNet-34 on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from src_salt.config import Settings
from src_salt.data import LabelledImages
from src_salt.device import pick_compute
from src_salt.experiments import run_experiments
from src_salt.outputs import Outputs

from .conftest import finish_run, python

NAME = "resnet34_BCEDice"
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_train_an_epoch_like_one(
    competition_dir: Path, labelled: LabelledImages, settings: Callable[..., Settings]
) -> None:
    """The shortest of the slow tests, which vary recipe, loss and failures."""
    chosen = settings(data_dir=competition_dir, experiments=NAME, epochs=1, limit_train=8)
    both = replace(chosen, processes=2, output_dir=chosen.output_dir / "two")
    (one,) = run_experiments(chosen, labelled, Outputs(chosen.output_dir))
    (two,) = run_experiments(both, labelled, Outputs(both.output_dir))
    assert two.notes == ()
    assert two.ended == ""
    for name, value in asdict(one.best).items():
        expected = pytest.approx(value, rel=2e-3, abs=2e-3 + 0.1 / 4 * (name == "val_score"))
        assert getattr(two.best, name) == expected, name


@pytest.mark.slow
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


BUFFERS_OF_BOTH = """
    import sys, torch
    from pathlib import Path
    from torch import distributed
    from src_salt.config import Experiment, Settings
    from src_salt.data import load_labelled, split
    from src_salt.device import DistributedContext
    from src_salt.train import Trainer

    context = DistributedContext.from_torchrun(100)
    settings = Settings(Path(sys.argv[1]), Path(sys.argv[2]), recipe="best", processes=2,
                        batch_size=4, image_size=32, pretrained=False, num_workers=0)
    train, validation = split(load_labelled(settings.data_dir), settings)
    experiment = Experiment("resnet34", "BCEDice")
    trainer = Trainer(experiment, settings, train, validation, context=context)
    initial = [buffer.clone() for buffer in trainer.model.buffers()]
    epoch = trainer.run_epoch()
    mine = [epoch, *trainer.model.buffers()]
    found = [None, None]
    distributed.all_gather_object(found, mine)
    if context.is_main:
        (one, *ours), (other, *theirs) = found
        changed = [not torch.equal(*pair) for pair in zip(initial, ours, strict=True)]
        print("\\nfound:", len(ours), all(changed), one == other,
              all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True)))
    distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_keep_equal_running_statistics(competition_dir: Path, tmp_path: Path) -> None:
    """DistributedDataParallel does not copy them, and each process validates with its own."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(BUFFERS_OF_BOTH))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, program, competition_dir, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = re.findall(r"^found: (\d+) (.*)$", done.stdout, re.MULTILINE)
    assert int(found[0]) >= 3 * 44  # mean, variance and count of every batch normalization
    assert found[1] == "True True True"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "rank", "after"),
    [
        ("SIGKILL", 1, "epoch"),
        ("SIGKILL", 0, "epoch"),  # the process that writes
        ("SIGKILL", 1, "start"),  # before there is a checkpoint
        ("SIGSTOP", 1, "epoch"),  # it hangs
        ("always", 1, "epoch"),  # every process of rank 1 is killed
    ],
)
def test_run_continues_after_a_process_died(
    failure: str, rank: int, after: str, competition_dir: Path, tmp_path: Path
) -> None:
    program = f"""
        from src_salt import launch
        from src_salt.main import run
        launch.HANG_SECONDS = {20 if failure == "SIGSTOP" else 300}
        run(data_dir={str(competition_dir)!r}, output_dir={str(tmp_path)!r}, processes=2,
            batch_size=4, image_size=32, pretrained=False, num_workers=0, recipe="fast",
            experiments={NAME!r}, epochs=4)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        assert running.stdout is not None
        lines = []
        killed: set[int] = set()
        for line in running.stdout:
            lines.append(line)
            # After the second epoch, the checkpoint of the first one is complete.
            now = f'"event": "{after}"' in line and '"epoch": 1,' not in line
            if now and len(killed) < (2 if failure == "always" else 1):
                process = find_rank(rank, running.pid, killed)
                os.kill(process, getattr(signal, failure, signal.SIGKILL))
                killed.add(process)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors[-3000:]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    died = [event["processes"] for event in events if event["event"] == "processes_died"]
    assert died == ([2, 1] if failure == "always" else [2])
    resumed = [event["epochs_done"] for event in events if event["event"] == "resume"]
    assert len(resumed) == (0 if after == "start" else len(died))
    record = json.loads((tmp_path / f"models/{NAME}_history.json").read_text())
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3, 4]
    assert record["ended"] == ""
    assert len(record["notes"]) == len(died)
    assert (tmp_path / "submission.csv").exists()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert ("Timeout (0:00:20)" in errors) == (failure == "SIGSTOP")


def find_rank(rank: int, ancestor: int, without: set[int]) -> int:
    """Wait for a process of this rank, which torchrun names in its environment."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) not in without:
                with contextlib.suppress(OSError):
                    entries = (folder / "environ").read_bytes().split(b"\0")
                    if f"RANK={rank}".encode() in entries and is_descendant(
                        int(folder.name), ancestor
                    ):
                        return int(folder.name)
        time.sleep(0.05)
    raise AssertionError(f"there is no process of rank {rank}")


def is_descendant(process: int, ancestor: int) -> bool:
    while process > 1 and process != ancestor:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == ancestor
