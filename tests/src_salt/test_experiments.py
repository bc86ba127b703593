"""Which experiments are trained, which results are reused, and which one is the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.experiments import Result, run_experiments, select_best
from src_salt.outputs import Outputs
from src_salt.train import Epoch

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
