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


def test_the_defaults_are_the_seeds_recipe() -> None:
    settings = make()
    names = ["resnet34_bcedice", "resnet34_lovasz", "resnet50_bcedice", "resnet50_lovasz"]
    assert list(settings.experiments) == names
    assert settings.chosen == EXPERIMENTS
    assert (settings.epochs, settings.batch_size, settings.image_size) == (20, 32, 128)
    assert (settings.recipe, settings.folds, settings.processes, settings.seed) == (
        "seed",
        1,
        1,
        42,
    )
    recipe = settings.training
    assert (recipe.learning_rate, recipe.weight_decay) == (1e-4, 1e-5)
    assert (recipe.augmentation, recipe.fit, recipe.normalised_decoder) == ("full", "resize", False)
    assert (recipe.optimizer, recipe.select_by) == ("adam", "val_iou")
    assert (recipe.on_device, recipe.flip_views, recipe.chosen_cut) == (False, False, False)
    assert settings.pretrained is True
    assert settings.data_dir == Path("in")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "value",
    [
        "resnet50_lovasz,resnet34_bcedice",
        ["resnet50_lovasz", "resnet34_bcedice"],
        ["resnet50_lovasz, resnet34_bcedice"],
    ],
)
def test_experiments_are_named_in_a_list_or_with_commas(value: Any) -> None:
    chosen = make(experiments=value).chosen
    assert chosen == (Experiment("resnet50", "lovasz"), Experiment("resnet34", "bcedice"))


def test_the_combined_loss_can_be_chosen_by_name() -> None:
    assert make(experiments="resnet34_bcedice_symmetric").chosen[0].loss == "bcedice_symmetric"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "epoch: no such parameter. Did you mean 'epochs'?"),
        ({"recipe": ["fast"]}, "recipe: must be one of seed, fast, best, not ['fast']"),
        ({"max_hours": 0}, "max_hours: must be above 0"),
        ({"processes": 3, "batch_size": 8}, "cannot be shared evenly among 3"),
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
        ({"data_dir": ""}, "data_dir: must be a folder's path"),
        ({"weights_dir": 3}, "weights_dir: must be a folder's path"),
        ({"experiments": []}, "experiments: name at least one"),
        ({"experiments": 3}, "experiments: must be names"),
        ({"experiments": "resnet34_lovasz,resnet34_lovasz"}, "experiments: each may be named once"),
        ({"experiments": ["resnet34_lovas"]}, "Did you mean 'resnet34_lovasz'?"),
        ({"experiments": ["vgg16_lovasz"]}, "Allowed: resnet34_bcedice, "),
    ],
)
def test_a_bad_parameter_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        make(**changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_name_has_its_code() -> None:
    assert set(LOSS_FUNCTIONS) == set(LOSSES)
    assert set(WIDTHS) == set(BACKBONES)


def test_the_recipe_leaves_out_what_decides_nothing() -> None:
    other = make(data_dir="elsewhere", output_dir="x", num_workers=0, experiments="resnet34_lovasz")
    assert make().decisive() == other.decisive()
    longer = make(max_hours=3, processes=2, resume_dir="earlier")
    assert make().decisive() == longer.decisive()
    for change in ({"seed": 1}, {"recipe": "best"}, {"learning_rate": 2e-4}, {"folds": 5}):
        assert make().decisive() != make(**change).decisive()
