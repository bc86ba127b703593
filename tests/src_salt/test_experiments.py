"""Which experiments are trained, which results are reused, and which one is the best."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from src_salt import experiments
from src_salt.budget import Budget
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.experiments import Result, run_experiments, select_best
from src_salt.outputs import Outputs
from src_salt.train import Epoch
from src_salt.weights import WeightsError

from .conftest import read_events

pytestmark = pytest.mark.usefixtures("tiny_networks")

MakeSettings = Callable[..., Settings]
NAME = "resnet34_Lovasz"


@pytest.fixture
def run_once(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., list[dict[str, Any]]]:
    """Run NAME for one epoch in the same folder, with changes; returns the events."""

    def once(data: LabelledImages = easy_images, **changes: Any) -> list[dict[str, Any]]:
        chosen = settings(**{"experiments": [NAME], "epochs": 1, **changes})
        run_experiments(chosen, data, Outputs(tmp_path))
        return read_events(capsys)

    return once


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_complete_experiment_is_reused(run_once: Any, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    first = run_once()
    assert kinds(first) == ["epoch", "experiment"]
    assert first[-1]["skipped"] is False
    before = outputs.history(NAME).read_bytes()
    second = run_once(num_workers=2, output_dir="elsewhere")  # neither affects the result
    assert kinds(second) == ["experiment"]
    assert second[0]["skipped"] is True
    assert second[0]["best_val_iou"] == first[-1]["best_val_iou"]
    assert outputs.history(NAME).read_bytes() == before


def test_changed_settings_data_weights_or_record_cause_training(
    run_once: Any, easy_images: LabelledImages, tmp_path: Path
) -> None:
    few = easy_images.subset(range(6))
    run_once()
    events = run_once(seed=1)
    assert kinds(events) == ["retrain", "epoch", "experiment"]
    assert events[0]["reason"] == "differs from the earlier run: seed was 42, is 1"
    assert "train_data was" in run_once(data=few, seed=1)[0]["reason"]
    weights = Outputs(tmp_path).weights(NAME)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "the weights are not those" in run_once(data=few, seed=1)[0]["reason"]
    weights.unlink()
    assert "cannot be used" in run_once(data=few, seed=1)[0]["reason"]
    for broken in ("{", "[]"):
        Outputs(tmp_path).history(NAME).write_text(broken)
        assert kinds(run_once(data=few, seed=1))[0] == "retrain"


def test_interrupted_experiment_resumes_only_from_its_own_checkpoint(
    run_once: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_once()
    outputs = Outputs(tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # Interrupted after the weights of other settings were written: the old record must be gone.
    with monkeypatch.context() as patch:
        patch.setattr("src_salt.train._report_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_once(seed=1)
    capsys.readouterr()
    assert outputs.weights(NAME).exists()
    assert not outputs.history(NAME).exists()
    assert kinds(run_once(seed=2)) == ["retrain", "epoch", "experiment"]  # its seed was 1
    assert not outputs.checkpoint(NAME).exists()


def test_result_does_not_depend_on_earlier_experiments(run_once: Any, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    run_once(experiments=[NAME])
    alone = [outputs.history(NAME).read_bytes(), outputs.weights(NAME).read_bytes()]
    outputs.history(NAME).unlink()
    run_once(experiments=["resnet34_BCEDice", NAME])
    assert [outputs.history(NAME).read_bytes(), outputs.weights(NAME).read_bytes()] == alone


@pytest.fixture
def weights_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    write_weights(folder / "resnet34.pth", seed=1)
    return folder


def write_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(torchvision.models.resnet34().state_dict(), path)


def test_changed_weights_at_the_same_path_cause_training(run_once: Any, weights_dir: Path) -> None:
    changes = {"pretrained": True, "weights_dir": str(weights_dir)}
    assert kinds(run_once(**changes)) == ["epoch", "experiment"]
    assert kinds(run_once(**changes)) == ["experiment"]
    write_weights(weights_dir / "resnet34.pth", seed=2)
    events = run_once(**changes)
    assert kinds(events) == ["retrain", "epoch", "experiment"]
    assert "encoder_weights was" in events[0]["reason"]


def test_same_weights_at_another_path_do_not(run_once: Any, weights_dir: Path) -> None:
    run_once(pretrained=True, weights_dir=str(weights_dir))
    moved = weights_dir.rename(weights_dir.with_name("moved"))
    (moved / "resnet34.pth").rename(moved / "resnet34-b627a593.pt")
    assert kinds(run_once(pretrained=True, weights_dir=str(moved))) == ["experiment"]


def test_checkpoint_of_changed_weights_is_not_resumed(
    easy_images: LabelledImages,
    settings: MakeSettings,
    weights_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(
        pretrained=True, weights_dir=str(weights_dir), epochs=2, experiments="resnet34_BCEDice"
    )
    outputs = Outputs(tmp_path)
    run_experiments(chosen, easy_images, outputs, Budget(hours=1e-9))
    write_weights(weights_dir / "resnet34.pth", seed=2)
    capsys.readouterr()
    run_experiments(chosen, easy_images, outputs)
    events = read_events(capsys)
    assert kinds(events) == ["retrain", "retrain", "epoch", "epoch", "experiment"]


def test_files_of_another_experiment_under_this_name_are_not_used(
    run_once: Any, tmp_path: Path
) -> None:
    """The two experiments differ in the loss only, so every other field is equal."""
    outputs, other = Outputs(tmp_path), "resnet34_BCEDice"
    run_once()
    for path in (outputs.history, outputs.weights):
        path(NAME).rename(path(other))
    events = run_once(experiments=[other])
    assert kinds(events) == ["retrain", "epoch", "experiment"]
    assert f"experiment was {NAME}, is {other}" in events[0]["reason"]
    # A record of an earlier version has the name in another place only.
    record = json.loads(outputs.history(other).read_text())
    for field in ("experiment", "encoder_weights"):
        del record["recipe"][field]
    record["experiment"] = NAME
    outputs.history(other).write_text(json.dumps(record))
    assert f"is of {NAME}" in run_once(experiments=[other])[0]["reason"]


def test_weights_that_vanish_cost_only_the_experiments_that_need_them(
    easy_images: LabelledImages,
    settings: MakeSettings,
    weights_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = experiments._write_record

    def write_and_delete(*arguments: Any) -> None:
        write(*arguments)
        (weights_dir / "resnet34.pth").unlink(missing_ok=True)

    chosen = settings(pretrained=True, weights_dir=str(weights_dir), epochs=1)
    monkeypatch.setattr(experiments, "_write_record", write_and_delete)
    found = run_experiments(chosen, easy_images, Outputs(tmp_path))
    assert [one.experiment.name for one in found] == ["resnet34_BCEDice"]
    with pytest.raises(WeightsError):
        run_experiments(replace(chosen, seed=1), easy_images, Outputs(tmp_path))


def test_result_of_other_code_is_reused_and_says_so(run_once: Any, tmp_path: Path) -> None:
    """Training again after every change of the code would cost hours."""
    run_once()
    path = Outputs(tmp_path).history(NAME)
    record = json.loads(path.read_text())
    assert "losses" in record["recipe"]["code"]
    record["recipe"]["code"]["losses"] = "of another version"
    path.write_text(json.dumps(record))
    events = run_once()
    assert kinds(events) == ["note", "experiment"]
    assert "another version of the code (losses)" in events[0]["message"]
    kept = json.loads(path.read_text())
    assert kept["notes"] == ["Trained with another version of the code (losses)."]
    assert kinds(run_once()) == ["experiment"]  # the note is in the record now
    del kept["recipe"]["code"]  # as an earlier version wrote it
    path.write_text(json.dumps(kept))
    assert kinds(run_once()) == ["experiment"]


def result(backbone: str, fold: int | None, value: float, ended: str = "") -> Result:
    experiment = Experiment(backbone, "Lovasz", fold)
    return Result(experiment, (Epoch(1, 1, 1, 0, value, value, 1e-4),), ended=ended)


def test_first_of_equal_experiments_is_best() -> None:
    results = [result("resnet34", None, 0.5), result("resnet50", None, 0.5)]
    assert select_best(results) == results[:1]


def test_one_lucky_fold_does_not_win_against_several() -> None:
    several = [result("resnet34", 1, 0.5), result("resnet34", 2, 0.6)]
    assert select_best([*several, result("resnet50", 1, 0.9)]) == several
    other = [result("resnet50", 1, 0.9), result("resnet50", 2, 0.1)]
    assert select_best([*several, *other]) == several
    assert select_best([*other[:1], *several[:1]]) == other[:1]


def test_fold_that_stopped_early_is_left_out_if_another_is_complete() -> None:
    stopped = result("resnet34", 2, 0.9, ended="out of time after epoch 1")
    complete = result("resnet34", 1, 0.5)
    assert select_best([complete, stopped]) == [complete]
    assert select_best([stopped]) == [stopped]
