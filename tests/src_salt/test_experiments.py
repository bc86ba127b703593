from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.experiments import Result, best_of, run_experiments
from src_salt.outputs import Outputs
from src_salt.train import Epoch

MakeSettings = Callable[..., Settings]
NAME = "resnet34_lovasz"


@pytest.fixture
def run_once(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., list[dict[str, Any]]]:
    """Run NAME for one epoch in the same folder, with changes; returns the events."""

    def once(data: LabelledImages = pictures, **changes: Any) -> list[dict[str, Any]]:
        chosen = settings(**{"experiments": [NAME], "epochs": 1, **changes})
        run_experiments(chosen, data, Outputs(tmp_path))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return once


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_a_complete_experiment_is_skipped(run_once: Any, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    first = run_once()
    assert kinds(first) == ["epoch", "experiment"]
    assert first[-1]["skipped"] is False
    before = outputs.history(NAME).read_bytes()
    second = run_once(num_workers=2, output_dir="elsewhere")  # these decide nothing
    assert kinds(second) == ["experiment"]
    assert second[0]["skipped"] is True
    assert second[0]["best_val_iou"] == first[-1]["best_val_iou"]
    assert outputs.history(NAME).read_bytes() == before


def test_what_changes_a_result_trains_again(
    run_once: Any, pictures: LabelledImages, tmp_path: Path
) -> None:
    run_once()
    events = run_once(seed=1)
    assert kinds(events) == ["retrain", "epoch", "experiment"]
    assert events[0]["reason"] == "differs from the earlier run: seed was 42, is 1"
    events = run_once(data=pictures.taken(range(6)), seed=1)
    assert "train_data was" in events[0]["reason"]
    weights = Outputs(tmp_path).weights(NAME)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert (
        "the weights are not those" in run_once(data=pictures.taken(range(6)), seed=1)[0]["reason"]
    )
    weights.unlink()
    assert "cannot be used" in run_once(data=pictures.taken(range(6)), seed=1)[0]["reason"]
    Outputs(tmp_path).history(NAME).write_text("{")
    assert kinds(run_once(data=pictures.taken(range(6)), seed=1))[0] == "retrain"


def test_an_interrupted_experiment_goes_on_from_its_own_checkpoint_alone(
    run_once: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_once()
    outputs = Outputs(tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # Interrupted after the weights of other settings were written: the old record must not vouch.
    monkeypatch.setattr("src_salt.train._announce", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_once(seed=1)
    monkeypatch.undo()
    capsys.readouterr()
    assert outputs.weights(NAME).exists()
    assert not outputs.history(NAME).exists()
    assert kinds(run_once(seed=2)) == ["retrain", "epoch", "experiment"]  # the checkpoint is of 1
    assert not outputs.checkpoint(NAME).exists()


def test_an_experiment_does_not_depend_on_what_ran_before_it(run_once: Any, tmp_path: Path) -> None:
    run_once()
    outputs = Outputs(tmp_path)
    alone = [outputs.history(NAME).read_bytes(), outputs.weights(NAME).read_bytes()]
    outputs.history(NAME).unlink()
    run_once(experiments=["resnet34_bcedice", NAME])
    assert [outputs.history(NAME).read_bytes(), outputs.weights(NAME).read_bytes()] == alone


def test_the_best_is_the_first_of_equals() -> None:
    results = [
        Result(Experiment(backbone, "lovasz"), (Epoch(1, 1, 1, 0, value, value, 1e-4),))
        for backbone, value in (("resnet34", 0.5), ("resnet50", 0.5))
    ]
    assert [best.experiment.backbone for best in best_of(results)] == ["resnet34"]


def test_one_lucky_fold_does_not_win_against_several() -> None:
    def result(backbone: str, fold: int, value: float) -> Result:
        experiment = Experiment(backbone, "lovasz", fold)
        return Result(experiment, (Epoch(1, 1, 1, 0, value, value, 1e-4),))

    several = [result("resnet34", 1, 0.5), result("resnet34", 2, 0.6)]
    assert best_of([*several, result("resnet50", 1, 0.9)]) == several
    other = [result("resnet50", 1, 0.9), result("resnet50", 2, 0.1)]
    assert best_of([*several, *other]) == several
    assert best_of([*other[:1], *several[:1]]) == other[:1]
