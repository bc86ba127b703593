"""Checkpoints, the time limit, and runs that resume earlier ones."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src_salt import config
from src_salt.budget import Budget
from src_salt.checkpoint import read_checkpoint
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages, load_competition
from src_salt.metrics import Postprocessing
from src_salt.outputs import Outputs
from src_salt.predict import load_model, predict_all
from src_salt.submission import encode_all
from src_salt.train import Checkpointer, Epoch, Trainer, TrainingError, train_experiment

from .conftest import TINY, Run, finish_run, python, read_events

pytestmark = pytest.mark.usefixtures("tiny_networks")

MakeSettings = Callable[..., Settings]
RESNET34 = Experiment("resnet34", "BCEDice")
NAME = RESNET34.name


def no_time() -> Budget:
    """Only the first epoch is allowed."""
    return Budget(hours=1e-9)


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["baseline", "fast", "best"])
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(
    recipe: str,
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(recipe=recipe, epochs=3, learning_rate=1e-3)
    outputs, whole = Outputs(tmp_path / "resumed"), Outputs(tmp_path / "whole")
    fingerprint = {"a": 1}

    def train(into: Outputs, budget: Budget | None = None) -> Any:
        return train_experiment(
            RESNET34, chosen, easy_images, easy_images, into, fingerprint, budget
        )

    uninterrupted = train(whole)
    first = train(outputs, no_time())
    assert first.ended == "out of time after epoch 1"
    assert first.history == uninterrupted.history[:1]
    torch.manual_seed(99)  # another process starts with other random states
    assert len(train(outputs, no_time()).history) == 2
    capsys.readouterr()
    last = train(outputs)
    assert read_events(capsys)[0] == {"event": "resume", "experiment": NAME, "epochs_done": 2}
    assert last == uninterrupted
    assert outputs.weights(NAME).read_bytes() == whole.weights(NAME).read_bytes()


def test_checkpoint_that_is_broken_or_of_another_run_is_not_used(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen, outputs = settings(epochs=2), Outputs(tmp_path)

    def first_event(fingerprint: dict[str, Any]) -> str:
        train_experiment(
            RESNET34, chosen, easy_images, easy_images, outputs, fingerprint, no_time()
        )
        event = read_events(capsys)[0]
        return str(event["reason"] if event["event"] == "retrain" else event["event"])

    assert first_event({"seed": 1}) == "epoch"
    assert first_event({"seed": 2}) == "the checkpoint is of another run: seed was 1, is 2"
    path = outputs.checkpoint(NAME)
    path.write_bytes(path.read_bytes()[:-1000])
    assert first_event({"seed": 2}).startswith("the checkpoint cannot be read")
    # If the last epoch is the best one, the checkpoint contains the best weights.
    outputs.weights(NAME).unlink()
    assert first_event({"seed": 2}) == "resume"
    assert outputs.weights(NAME).exists()


def test_checkpoint_contains_its_epoch_although_the_next_one_is_running(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    trainer = Trainer(RESNET34, settings(recipe="best", epochs=2), easy_images, easy_images)
    outputs = Outputs(tmp_path)
    trainer.run_epoch()
    first = copy.deepcopy(trainer.state())
    trained = threading.Event()
    with Checkpointer(outputs, NAME, {}) as checkpointer:
        checkpointer.executor.submit(trained.wait, timeout=60)
        checkpointer.save(trainer)
        trainer.run_epoch()
        unwritten = not outputs.checkpoint(NAME).exists()
        trained.set()
    assert unwritten
    state = read_checkpoint(outputs.checkpoint(NAME), {})
    state.pop("weights_sha256")
    assert_equal(state, first)
    assert_equal(torch.load(outputs.weights(NAME), weights_only=True), first["model"])


def test_checkpoints_are_written_by_time(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    """The first epoch at once; later ones after so many seconds, and at the end of the block."""
    trainer = Trainer(RESNET34, settings(recipe="best", epochs=4), easy_images, easy_images)
    outputs = Outputs(tmp_path)

    def epochs_written() -> int:
        return len(read_checkpoint(outputs.checkpoint(NAME), {})["history"])

    with (
        contextlib.suppress(KeyboardInterrupt),
        Checkpointer(outputs, NAME, {}, 1000) as checkpointer,
    ):
        train_epoch(trainer, checkpointer, score=0.1)
        assert checkpointer.wait(trainer) == ""
        assert epochs_written() == 1
        train_epoch(trainer, checkpointer, score=0.3)
        best = copy.deepcopy(trainer.model.state_dict())
        train_epoch(trainer, checkpointer, score=0.2)
        assert checkpointer.pending is None
        assert epochs_written() == 1
        raise KeyboardInterrupt
    assert epochs_written() == 3
    assert_equal(torch.load(outputs.weights(NAME), weights_only=True), best)
    # A run that was killed between the checkpoint and the weights gets them from the checkpoint.
    outputs.weights(NAME).write_bytes(b"of the first epoch")
    with Checkpointer(outputs, NAME, {}, 0.01) as checkpointer:
        assert checkpointer.resume(trainer)
        assert_equal(torch.load(outputs.weights(NAME), weights_only=True), best)
        train_epoch(trainer, checkpointer, score=0.1)
        assert checkpointer.pending is not None
    assert epochs_written() == 4


def test_interrupt_after_a_failed_write_keeps_the_checkpoint(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    """Epoch 2 cannot be written. Epoch 3 is not either, since it needs the digest of epoch 2."""
    trainer = Trainer(RESNET34, settings(recipe="fast", epochs=4), easy_images, easy_images)
    outputs = Outputs(tmp_path)
    kept = tmp_path / "kept"
    with (
        contextlib.suppress(KeyboardInterrupt),
        Checkpointer(outputs, NAME, {}, 1000) as checkpointer,
    ):
        train_epoch(trainer, checkpointer, score=0.1)
        assert checkpointer.wait(trainer) == ""
        outputs.weights(NAME).rename(kept)
        outputs.weights(NAME).mkdir()
        checkpointer.began = -math.inf
        train_epoch(trainer, checkpointer, score=0.2)
        train_epoch(trainer, checkpointer, score=0.1)
        raise KeyboardInterrupt
    outputs.weights(NAME).rmdir()
    kept.rename(outputs.weights(NAME))
    with Checkpointer(outputs, NAME, {}) as checkpointer:
        assert checkpointer.resume(trainer)
    assert len(trainer.history) == 2


def test_interrupt_during_a_copy_separates_no_weights_from_their_epoch(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(RESNET34, settings(recipe="fast", epochs=3), easy_images, easy_images)
    outputs = Outputs(tmp_path)

    def interrupted(_trainer: Trainer) -> bool:
        raise KeyboardInterrupt

    with (
        contextlib.suppress(KeyboardInterrupt),
        Checkpointer(outputs, NAME, {}, 1000) as checkpointer,
    ):
        train_epoch(trainer, checkpointer, score=0.1)
        monkeypatch.setattr(Trainer, "is_best", property(interrupted))
        train_epoch(trainer, checkpointer, score=0.2)
    assert len(read_checkpoint(outputs.checkpoint(NAME), {})["history"]) == 1


@pytest.mark.slow
def test_killed_run_resumes_from_the_last_checkpoint_by_time(
    competition_dir: Path, tmp_path: Path
) -> None:
    """With the default of 60 seconds: epochs 2 and 3 are trained again, with the same result."""
    parameters = {**TINY, "data_dir": str(competition_dir), "experiments": NAME}
    parameters |= {"epochs": 4, "checkpoint_seconds": 60}

    def run_in_process(folder: Path, killed_in: int) -> subprocess.CompletedProcess[str]:
        return python(f"""
            import os, time
            from src_salt.main import run
            from src_salt.train import Trainer
            run_epoch = Trainer.run_epoch
            def killed(trainer):
                if len(trainer.history) + 1 == {killed_in}:
                    os.kill(os.getpid(), 9)
                epoch = run_epoch(trainer)
                time.sleep(1)  # for the write in the background
                return epoch
            Trainer.run_epoch = killed
            run(output_dir={str(folder)!r}, **{parameters!r})
        """)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_in_process(whole, killed_in=0).returncode == 0
    assert run_in_process(killed, killed_in=4).returncode == -9
    resumed = run_in_process(killed, killed_in=0)
    events = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert [one["epochs_done"] for one in events if one["event"] == "resume"] == [1]
    for name in (f"models/best_model_{NAME}.pth", "submission.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_failed_write_removes_every_epoch_that_it_includes(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    trainer = Trainer(RESNET34, settings(recipe="fast", epochs=3), easy_images, easy_images)
    outputs = Outputs(tmp_path)
    with Checkpointer(outputs, NAME, None, 1000) as checkpointer:
        train_epoch(trainer, checkpointer, score=0.1)
        assert checkpointer.wait(trainer) == ""
        train_epoch(trainer, checkpointer, score=0.2)
        train_epoch(trainer, checkpointer, score=0.1)
        outputs.weights(NAME).unlink()
        outputs.weights(NAME).mkdir()
        error = checkpointer.wait(trainer)
    assert error.startswith(f"{NAME}: the weights of epoch 3 cannot be written")
    assert error.endswith("The previous weights are kept.")
    assert len(trainer.history) == 1


def train_epoch(trainer: Trainer, checkpointer: Checkpointer, score: float) -> None:
    """Train and save an epoch that counts as one with this score and IoU."""
    epoch = trainer.run_epoch()
    trainer.history[-1] = replace(epoch, val_iou=score, val_score=score)
    checkpointer.save(trainer)


def assert_equal(found: Any, expected: Any) -> None:
    """Compare nested dictionaries and lists with tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def test_interrupt_still_writes_the_last_epoch(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_epoch = Trainer.run_epoch

    def interrupted(trainer: Trainer) -> Epoch:
        if trainer.history:
            raise KeyboardInterrupt
        return run_epoch(trainer)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    outputs = Outputs(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_experiment(RESNET34, settings(epochs=2), easy_images, easy_images, outputs, {})
    assert len(read_checkpoint(outputs.checkpoint(NAME), {})["history"]) == 1
    assert outputs.weights(NAME).exists()


def test_checkpoint_written_without_gradient_scaling_works_with_it(
    easy_images: LabelledImages, settings: MakeSettings
) -> None:
    trainer = Trainer(RESNET34, settings(recipe="fast"), easy_images, easy_images)
    trainer.run_epoch()
    state = trainer.state()
    other = Trainer(RESNET34, settings(recipe="fast"), easy_images, easy_images)
    other.scaler = torch.amp.GradScaler("cpu", enabled=True)
    other.load_state(state)
    assert other.history == trainer.history
    assert other.scaler.get_scale() == 65536


def test_unwritable_weights_on_resume_keep_the_checkpoint(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen, outputs = settings(epochs=2), Outputs(tmp_path)

    def train(budget: Budget | None = None) -> Any:
        return train_experiment(RESNET34, chosen, easy_images, easy_images, outputs, {}, budget)

    first = train(no_time())
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "models").write_text("a file in place of the folder")
    with pytest.raises(TrainingError, match=r"weights of epoch 1 cannot be written \(File exists"):
        train()
    (tmp_path / "models").unlink()
    assert train().history[:1] == first.history


# --- whole runs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_stops_in_time_and_the_next_run_finishes_it(
    competition_dir: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"epochs": 3}
    short = finish_run(competition_dir, tmp_path / "short", max_hours=1e-6, **changes)
    assert [entry["epochs"] for entry in short.summary["experiments"]] == [1]
    assert short.summary["experiments"][0]["ended"] == "out of time after epoch 1"
    kinds = ["start", "epoch", "estimate", "experiment", "out_of_time", "incomplete", "done"]
    assert short.kinds == kinds
    estimate, skipped, incomplete = short.events[2], short.events[4], short.events[5]
    assert (estimate["epochs_left"], estimate["epochs_that_fit"]) == (2, 0)
    assert skipped["experiments"] == ["resnet34_Lovasz"]
    assert incomplete["experiments"] == ["resnet34_BCEDice", "resnet34_Lovasz"]
    for name in ("models.zip", "results.zip"):
        with zipfile.ZipFile(short.folder / name) as archive:
            assert archive.testzip() is None
    assert len((short.folder / "submission.csv").read_text().splitlines()) == 6

    longer = finish_run(
        competition_dir, tmp_path / "longer", resume_dir=str(short.folder), **changes
    )
    assert longer.kinds[:4] == ["start", "taken_over", "retrain", "resume"]
    assert "incomplete" not in longer.kinds
    assert "ended early: out of time after epoch 1" in longer.events[2]["reason"]
    assert longer.events[3]["epochs_done"] == 1
    whole = finish_run(competition_dir, tmp_path / "whole", **changes)
    for name in ("models.zip", "results.zip", "submission.csv"):
        assert (longer.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list((longer.folder / "checkpoints").glob("*"))


def test_complete_experiments_are_kept_when_time_is_out(
    finished: Run, competition_dir: Path, tmp_path: Path
) -> None:
    changes = {"experiments": "resnet50_Lovasz,resnet34_BCEDice", "max_hours": 1e-6}
    run = finish_run(competition_dir, tmp_path, resume_dir=str(finished.folder), **changes)
    entries = {entry["experiment"]: entry["ended"] for entry in run.summary["experiments"]}
    assert entries == {"resnet50_Lovasz": "out of time after epoch 1", "resnet34_BCEDice": ""}
    assert "out_of_time" not in run.kinds
    (incomplete,) = (event for event in run.events if event["event"] == "incomplete")
    assert incomplete["experiments"] == ["resnet50_Lovasz"]


def test_output_folder_itself_can_be_resumed(
    finished: Run, competition_dir: Path, tmp_path: Path
) -> None:
    """With models.zip alone, as `kernelkit pull` downloads it."""
    (tmp_path / "models.zip").write_bytes((finished.folder / "models.zip").read_bytes())
    run = finish_run(competition_dir, tmp_path, resume_dir=str(tmp_path))
    assert [event.get("skipped") for event in run.events[2:4]] == [True, True]


@pytest.mark.slow
def test_folds_are_averaged(competition_dir: Path, tmp_path: Path) -> None:
    """The recipe `best` from beginning to end."""
    experiment = "resnet34_BCEDiceSymmetric"
    changes = {"recipe": "best", "folds": 2, "epochs": 2, "experiments": experiment}
    run = finish_run(competition_dir, tmp_path, **changes)
    names = [f"{experiment}_fold{number}" for number in (1, 2)]
    assert [entry["experiment"] for entry in run.summary["experiments"]] == names
    with zipfile.ZipFile(tmp_path / "models.zip") as archive:
        assert {f"models/best_model_{name}.pth" for name in names} <= set(archive.namelist())
    assert "<dd>2</dd>" in (tmp_path / "results" / "report.html").read_text()

    chosen = Settings.from_parameters(
        {**TINY, "data_dir": competition_dir, "output_dir": tmp_path, **changes}
    )
    outputs, images = Outputs(tmp_path), load_competition(competition_dir).test.images
    models = [load_model(one, chosen, outputs) for one in chosen.planned_experiments]
    both = predict_all(models, images, chosen, "")
    each = [predict_all([model], images, chosen, "") for model in models]
    assert np.allclose(both, np.mean(each, axis=0), atol=1e-6)
    assert not np.allclose(*each, atol=1e-3)
    postprocessing = Postprocessing(**run.summary["postprocessing"])
    rows = (tmp_path / "submission.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == encode_all(postprocessing.apply(both))


def test_finished_experiments_are_adopted_from_models_zip(finished: Run, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "models.zip").write_bytes((finished.folder / "models.zip").read_bytes())
    outputs = Outputs(tmp_path / "new")
    adopted = outputs.adopt(earlier)
    assert len(adopted) == 4
    for source, target in adopted.items():
        assert (outputs.root / target).read_bytes() == (finished.folder / source).read_bytes()
    assert outputs.adopt(earlier) == {}  # existing files are not replaced


def test_missing_resume_dir_is_an_error(competition_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(config.SaltError, match="resume_dir: there is no folder"):
        finish_run(competition_dir, tmp_path, resume_dir=str(tmp_path / "nowhere"))


# --- temporary files of killed runs -------------------------------------------------------------


def test_temporary_files_are_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    for name in (".a.77.pt", "a.pt", "a_job.json"):
        (tmp_path / "old" / "checkpoints" / name).write_text("")
    adopted = Outputs(tmp_path / "new").adopt(tmp_path / "old")
    assert adopted == {"checkpoints/a.pt": "checkpoints/a.pt"}


def test_temporary_files_of_killed_runs_are_deleted(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    removed = [
        f".submission.{ended.pid}.csv",
        f"results/.report.{ended.pid}.html",
        f"models/.best_model_a_b.{ended.pid}.pth",
        f"checkpoints/.a_b.{ended.pid}.pt",
    ]
    kept = [
        f".mine.{ended.pid}.csv",
        f"checkpoints/.a_b.{os.getpid()}.pt",
        "checkpoints/.a.b.pt",
        "checkpoints/a_b.pt",
    ]
    for name in (*removed, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Outputs(tmp_path).remove_stale()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept}


# --- the time limit -----------------------------------------------------------------------------


def test_budget_reserves_time_for_epochs_and_prediction() -> None:
    budget = Budget(hours=1, final_images=1000)
    assert budget.allows_epoch()  # the first one always
    budget.epoch_seconds, budget.image_seconds = 600.0, 0.5
    # 3600 - 60 - 1.15 * 500 leaves 2965 s, and an epoch may need 690.
    assert budget.epochs_left() == 4
    assert budget.allows_epoch()
    budget.started -= 2400
    assert not budget.allows_epoch()
    assert Budget(None, epoch_seconds=1e9).allows_epoch()
