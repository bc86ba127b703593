from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.model import UNet
from src_salt.outputs import Outputs
from src_salt.train import Epoch, TrainingError, best_epoch, train_experiment

MakeSettings = Callable[..., Settings]
RESNET34 = Experiment("resnet34", "bcedice")


def test_training_learns_and_keeps_the_best_epoch(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outputs = Outputs(tmp_path)
    chosen = settings(epochs=8, learning_rate=1e-3, batch_size=4)
    outcome = train_experiment(RESNET34, chosen, pictures, pictures, outputs)
    history = outcome.history
    assert outcome.ended == ""
    assert [epoch.epoch for epoch in history] == list(range(1, 9))
    assert history[-1].train_loss < history[0].train_loss - 0.2
    assert best_epoch(history).val_iou > 0.65  # all salt gives 0.55, none 0

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["epoch"] * 8
    for event, epoch in zip(events, history, strict=True):
        assert event["experiment"] == "resnet34_bcedice"
        assert event["epochs"] == 8
        assert event["val_iou"] == epoch.val_iou
        assert event["seconds"] >= 0

    # It gained nearly every time, so the learning rate had no reason to fall.
    assert rates(history) == pytest.approx(plateau_rates(history))
    assert rates(history)[-1] == 1e-3

    # The kept weights are those of the best epoch: they give its IoU again.
    state = torch.load(outputs.weights("resnet34_bcedice"), weights_only=True)
    model = UNet("resnet34")
    model.load_state_dict(state)
    assert iou_of(model, pictures, chosen) == pytest.approx(best_epoch(history).val_iou, abs=1e-6)


def rates(history: Sequence[Epoch]) -> list[float]:
    return [epoch.learning_rate for epoch in history]


def plateau_rates(history: Sequence[Epoch]) -> list[float]:
    """A tenth of the rate after more than five epochs without a better validation IoU."""
    best, bad, rate, found = -1.0, 0, history[0].learning_rate, []
    for epoch in history:
        found.append(rate)
        better = epoch.val_iou > best * (1 + 1e-4)
        best, bad = (epoch.val_iou, 0) if better else (best, bad + 1)
        if bad > 5:
            rate, bad = rate * 0.1, 0
    return found


@torch.inference_mode()
def iou_of(model: UNet, pictures: LabelledImages, settings: Settings) -> float:
    """Mean IoU, pixel sets counted here."""
    from src_salt.data import evaluation_loader

    values = []
    for images, masks in evaluation_loader(pictures, settings):
        found, truth = model.eval()(images) > 0, masks > 0
        for one, other in zip(found, truth, strict=True):
            values.append((one & other).sum().item() / (one | other).sum().item())
    return sum(values) / len(values)


def test_the_learning_rate_falls_after_five_epochs_without_gain(
    pictures: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(epochs=10, learning_rate=1e-6)
    empty = LabelledImages(("a",), pictures.images[:1], pictures.masks[:1] * 0)  # IoU is 0 or 1
    few = pictures.taken([0, 1])
    history = train_experiment(RESNET34, chosen, few, empty, Outputs(tmp_path)).history
    assert rates(history) == pytest.approx(plateau_rates(history))
    assert history[-1].learning_rate < history[0].learning_rate


@pytest.mark.parametrize("images", [2, 4, 6])
def test_a_cycle_of_very_few_steps_has_a_rise_and_a_fall(
    images: int, pictures: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(recipe="best", epochs=1, batch_size=2)
    few = pictures.taken(range(images))
    outcome = train_experiment(RESNET34, chosen, few, pictures.taken([0, 1]), Outputs(tmp_path))
    assert len(outcome.history) == 1


def test_a_loss_that_is_no_number_ends_the_training(
    pictures: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(epochs=5, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"resnet34_bcedice: the \w+ loss of epoch \d is"):
        train_experiment(RESNET34, chosen, pictures, pictures, Outputs(tmp_path))


def test_the_best_epoch_is_the_first_of_equals() -> None:
    history = [
        Epoch(n, 1, 1, 0, value, value, 1e-4) for n, value in enumerate([0.3, 0.5, 0.5, 0.4], 1)
    ]
    assert best_epoch(history).epoch == 2
