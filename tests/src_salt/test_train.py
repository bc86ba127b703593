from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages, evaluation_loader
from src_salt.model import UNet
from src_salt.outputs import Outputs
from src_salt.train import Epoch, TrainingError, best_epoch, train_experiment

MakeSettings = Callable[..., Settings]
pytestmark = pytest.mark.usefixtures("tiny_networks")

RESNET34 = Experiment("resnet34", "BCEDice")


def test_training_learns_and_keeps_the_best_epoch(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outputs = Outputs(tmp_path)
    chosen = settings(epochs=8, learning_rate=1e-3, batch_size=4)
    outcome = train_experiment(RESNET34, chosen, easy_images, easy_images, outputs)
    history = outcome.history
    assert outcome.ended == ""
    assert [epoch.epoch for epoch in history] == list(range(1, 9))
    assert history[-1].train_loss < history[0].train_loss - 0.2
    assert best_epoch(history).val_iou > 0.65  # all salt gives 0.55, none 0

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["epoch"] * 8
    for event, epoch in zip(events, history, strict=True):
        assert event["experiment"] == "resnet34_BCEDice"
        assert event["epochs"] == 8
        assert event["val_iou"] == epoch.val_iou
        assert event["seconds"] >= 0

    # IoU improved in nearly every epoch, so the learning rate did not drop.
    assert rates(history) == pytest.approx(plateau_rates(history))
    assert rates(history)[-1] == 1e-3

    # The kept weights are those of the best epoch: they have the same IoU.
    state = torch.load(outputs.weights("resnet34_BCEDice"), weights_only=True)
    model = UNet("resnet34")
    model.load_state_dict(state)
    expected = best_epoch(history).val_iou
    assert iou_of(model, easy_images, chosen) == pytest.approx(expected, abs=1e-6)


def rates(history: Sequence[Epoch]) -> list[float]:
    return [epoch.learning_rate for epoch in history]


def plateau_rates(history: Sequence[Epoch]) -> list[float]:
    """The rate drops to a tenth after more than five epochs without a better validation IoU."""
    best, bad, rate, found = -1.0, 0, history[0].learning_rate, []
    for epoch in history:
        found.append(rate)
        better = epoch.val_iou > best * (1 + 1e-4)
        best, bad = (epoch.val_iou, 0) if better else (best, bad + 1)
        if bad > 5:
            rate, bad = rate * 0.1, 0
    return found


@torch.inference_mode()
def iou_of(model: UNet, easy_images: LabelledImages, settings: Settings) -> float:
    """Mean IoU, computed here from sets of pixels."""
    values = []
    for images, masks in evaluation_loader(easy_images, settings):
        found, truth = model.eval()(images) > 0, masks > 0
        for one, other in zip(found, truth, strict=True):
            values.append((one & other).sum().item() / (one | other).sum().item())
    return sum(values) / len(values)


def test_learning_rate_drops_after_five_epochs_without_improvement(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(epochs=10, learning_rate=1e-6)
    # IoU is 0 or 1 with an empty mask.
    empty = LabelledImages(("a",), easy_images.images[:1], easy_images.masks[:1] * 0)
    few = easy_images.subset([0, 1])
    history = train_experiment(RESNET34, chosen, few, empty, Outputs(tmp_path)).history
    assert rates(history) == pytest.approx(plateau_rates(history))
    assert history[-1].learning_rate < history[0].learning_rate


@pytest.mark.parametrize("images", [2, 4, 6])
def test_one_cycle_works_with_very_few_steps(
    images: int, easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(recipe="best", epochs=1, batch_size=2)
    few = easy_images.subset(range(images))
    outcome = train_experiment(RESNET34, chosen, few, easy_images.subset([0, 1]), Outputs(tmp_path))
    assert len(outcome.history) == 1


def test_non_finite_loss_ends_the_training(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(epochs=5, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"resnet34_BCEDice: the \w+ loss of epoch \d is"):
        train_experiment(RESNET34, chosen, easy_images, easy_images, Outputs(tmp_path))


def test_first_of_equal_epochs_is_best() -> None:
    history = [
        Epoch(n, 1, 1, 0, value, value, 1e-4) for n, value in enumerate([0.3, 0.5, 0.5, 0.4], 1)
    ]
    assert best_epoch(history).epoch == 2
