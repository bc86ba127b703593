from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from src_salt.config import BACKBONES, EXPERIMENTS, LOSSES, Experiment, Settings, SettingsError
from src_salt.losses import LOSS_FUNCTIONS
from src_salt.model import WIDTHS

FOLDERS = {"data_dir": "in", "output_dir": "out"}


def make(**changes: Any) -> Settings:
    return Settings.from_parameters({**FOLDERS, **changes})


def test_defaults_are_the_baseline() -> None:
    settings = make()
    names = ["resnet34_BCEDice", "resnet34_Lovasz", "resnet50_BCEDice", "resnet50_Lovasz"]
    assert list(settings.experiments) == names
    assert settings.planned_experiments == EXPERIMENTS
    assert (settings.epochs, settings.batch_size, settings.image_size) == (20, 32, 128)
    assert (settings.recipe, settings.folds, settings.processes, settings.seed) == (
        "baseline",
        1,
        1,
        42,
    )
    recipe = settings.resolved_recipe
    assert (recipe.learning_rate, recipe.weight_decay) == (1e-4, 1e-5)
    assert (recipe.augmentation, recipe.fit, recipe.normalized_decoder) == ("full", "resize", False)
    assert (recipe.optimizer, recipe.select_by) == ("adam", "val_iou")
    assert (recipe.on_device, recipe.flip_tta, recipe.tune_threshold) == (False, False, False)
    assert settings.pretrained is True
    assert settings.data_dir == Path("in")


def test_settings_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "value",
    [
        "resnet50_Lovasz,resnet34_BCEDice",
        ["resnet50_Lovasz", "resnet34_BCEDice"],
        ["resnet50_Lovasz, resnet34_BCEDice"],
    ],
)
def test_experiments_are_a_list_or_separated_by_commas(value: Any) -> None:
    chosen = make(experiments=value).planned_experiments
    assert chosen == (Experiment("resnet50", "Lovasz"), Experiment("resnet34", "BCEDice"))


def test_empty_text_is_no_optional_folder() -> None:
    """TOML, and so a project file, has no null."""
    assert make(weights_dir="").weights_dir is None
    assert make(resume_dir="").fingerprint_fields() == make().fingerprint_fields()
    with pytest.raises(SettingsError, match="output_dir: must be the path of a folder"):
        make(output_dir="")


def test_combined_loss_has_a_name() -> None:
    (experiment,) = make(experiments="resnet34_BCEDiceSymmetric").planned_experiments
    assert experiment.loss == "BCEDiceSymmetric"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "epoch: no such parameter. Did you mean 'epochs'?"),
        ({"recipe": ["fast"]}, "recipe: must be one of baseline, fast, best, not ['fast']"),
        ({"max_hours": 0}, "max_hours: must be above 0"),
        ({"processes": 3, "batch_size": 8}, "cannot be split evenly among 3"),
        ({"epochs": 0}, "epochs: must be a whole number of at least 1, not 0"),
        ({"epochs": True}, "epochs: must be a whole number of at least 1, not True"),
        ({"epochs": 1.5}, "epochs: must be a whole number"),
        ({"batch_size": 1}, "batch_size: must be a whole number of at least 2"),
        ({"image_size": 16}, "image_size: must be a whole number of at least 32"),
        ({"limit_train": 0}, "limit_train: must be"),
        ({"limit_val": 0}, "limit_val: must be a whole number of at least 1"),
        ({"num_workers": -1}, "num_workers: must be"),
        ({"seed": -1}, "seed: must be"),
        ({"seed": 2**32}, "seed: must be below 2**32"),
        ({"learning_rate": 0}, "learning_rate: must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a finite number"),
        ({"learning_rate": "1e-4"}, "learning_rate: must be a finite number"),
        ({"weight_decay": -1}, "weight_decay: must be 0 or above"),
        ({"pretrained": "no"}, "pretrained: must be true or false, not 'no'"),
        ({"data_dir": ""}, "data_dir: must be the path of a folder"),
        ({"weights_dir": 3}, "weights_dir: must be the path of a folder"),
        ({"experiments": []}, "experiments: name at least one"),
        ({"experiments": 3}, "experiments: must be names"),
        (
            {"experiments": "resnet34_Lovasz,resnet34_Lovasz"},
            "experiments: name each one only once",
        ),
        ({"experiments": ["resnet34_lovas"]}, "Did you mean 'resnet34_Lovasz'?"),
        ({"experiments": ["vgg16_lovasz"]}, "Allowed: resnet34_BCEDice, "),
    ],
)
def test_invalid_parameter_is_rejected_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        make(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_loss_and_backbone_is_implemented() -> None:
    assert set(LOSS_FUNCTIONS) == set(LOSSES)
    assert set(WIDTHS) == set(BACKBONES)


def test_fingerprint_has_only_what_affects_a_result() -> None:
    other = make(data_dir="elsewhere", output_dir="x", num_workers=0, experiments="resnet34_Lovasz")
    assert make().fingerprint_fields() == other.fingerprint_fields()
    longer = make(max_hours=3, processes=2, resume_dir="earlier")
    assert make().fingerprint_fields() == longer.fingerprint_fields()
    for change in ({"seed": 1}, {"recipe": "best"}, {"learning_rate": 2e-4}, {"folds": 5}):
        assert make().fingerprint_fields() != make(**change).fingerprint_fields()
