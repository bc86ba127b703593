"""The benchmark of the parts of a recipe, on a few synthetic images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality
from src_salt.config import Settings
from src_salt.data import LabelledImages
from src_salt.train import Trainer

pytestmark = pytest.mark.usefixtures("tiny_networks")

SMALL = ["--epochs", "2", "--image-size", "32", "--limit-train", "8", "--jobs", "1"]
SPECIAL = (
    "baseline",
    "adamw",
    "scse",
    "hypercolumns",
    "emptiness",
    "then-lovasz",
    "cycles",
    "folds",
)
"""Rows that have code of their own."""

COMPARED_WITH = {"adamw": "rate1", "then-lovasz": "bcedice"}
"""Rows that differ only by that code; otherwise `best`."""


def settings_of(name: str, data: Path) -> Settings:
    """The settings that the command line makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quality", "--data", str(data), *SMALL])
        return quality._settings(name, 1, quality._options())


@pytest.fixture(scope="module", autouse=True)
def recipes() -> Iterator[None]:
    """Restore the recipes, since rows add to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality.config, "RECIPES", dict(quality.config.RECIPES))
        yield


@pytest.fixture(scope="module")
def predicted(competition_dir: Path) -> Callable[[str], Any]:
    """A function that trains a row and returns its predictions, once per row."""
    return cache(
        lambda name: quality.train_and_predict(
            quality.ROWS[name], settings_of(name, competition_dir)
        )
    )


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.slow
def test_row_changes_the_training(name: str, predicted: Callable[[str], Any]) -> None:
    plain, flipped, truths = predicted(name)
    other = predicted(COMPARED_WITH.get(name, "best"))
    assert np.array_equal(truths, other[2])
    for probabilities, others in ((plain, other[0]), (flipped, other[1]), (flipped, plain)):
        assert probabilities.shape == truths.shape
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        assert not np.allclose(probabilities, others)


@pytest.mark.parametrize("name", ["scse", "hypercolumns", "emptiness", "adamw"])
def test_added_layers_are_trained(name: str, easy_images: LabelledImages) -> None:
    settings = settings_of(name, Path("unread"))
    trainer = Trainer(settings.planned_experiments[0], settings, easy_images, easy_images)
    adapt = quality.ROWS[name].adapt
    assert adapt is not None
    adapt(trainer)
    trained = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    assert trained == {id(value) for value in trainer.model.parameters()}
    assert trainer.scheduler.optimizer is trainer.optimizer


def test_loss_and_dtype_are_part_of_the_key(
    competition_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--data", str(competition_dir), *SMALL])
    options = quality._options()

    def key(name: str) -> dict[str, Any]:
        found = quality._key(name, 1, options)
        return {k: v for k, v in found.items() if k not in ("row", "recipe.name")}

    best = key("best")
    assert key("best") == best != key("bcedice")
    other = {"avx2"} if "bfloat16" in best["dtype"] else {"amx_bf16"}
    monkeypatch.setattr("src_salt.device.cpu_flags", lambda: other)
    assert key("best") != best


@pytest.mark.slow
def test_command_stores_its_results(competition_dir: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "benchmarks.quality", "--data", str(competition_dir), *SMALL]
    command += ["--rows", "plain", "--seeds", "1", "--results", str(results)]
    first = subprocess.run(command, cwd=quality.ROOT, capture_output=True, text=True, check=True)
    lines = first.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["best", "plain"]
    assert first.stderr.count("training ") == 2
    again = subprocess.run(command, cwd=quality.ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert "training " not in again.stderr
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(entries) == 2
    for entry in entries:
        values = entry["result"]
        assert values.pop("seconds") > 0
        assert set(values) == {
            f"{view}_{value}"
            for view in ("plain", "flipped", "tuned")
            for value in ("iou", "score")
        }
        assert all(0 <= value <= 1 for value in values.values())
