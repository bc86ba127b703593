"""The measurements of single habits, on a few made-up pictures."""

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
from src_salt.train import Training

SMALL = ["--epochs", "2", "--image-size", "32", "--limit-train", "8", "--jobs", "1"]
SPECIAL = (
    "seed",
    "adamw",
    "scse",
    "hypercolumns",
    "emptiness",
    "then-lovasz",
    "cycles",
    "folds",
)
"""Rows that take some code."""

BESIDE = {"adamw": "rate1", "then-lovasz": "bcedice"}
"""Rows from which they differ by that code alone; the others from `best`."""


def settings_of(name: str, data: Path) -> Settings:
    """As the command line makes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quality", "--data", str(data), *SMALL])
        return quality._settings(name, 1, quality._options())


@pytest.fixture(scope="module", autouse=True)
def recipes() -> Iterator[None]:
    """Rows add themselves to the recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality.config, "RECIPES", dict(quality.config.RECIPES))
        yield


@pytest.fixture(scope="module")
def predicted(competition_dir: Path) -> Callable[[str], Any]:
    """What a row predicts once it is trained; each only once."""
    return cache(
        lambda name: quality.predictions(quality.ROWS[name], settings_of(name, competition_dir))
    )


@pytest.mark.parametrize("name", SPECIAL)
def test_a_row_is_trained_in_its_own_way(name: str, predicted: Callable[[str], Any]) -> None:
    plain, flipped, truths = predicted(name)
    beside = predicted(BESIDE.get(name, "best"))
    assert np.array_equal(truths, beside[2])
    for probabilities, others in ((plain, beside[0]), (flipped, beside[1]), (flipped, plain)):
        assert probabilities.shape == truths.shape
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        assert not np.allclose(probabilities, others)


@pytest.mark.parametrize("name", ["scse", "hypercolumns", "emptiness", "adamw"])
def test_everything_that_a_row_adds_is_trained(name: str, pictures: LabelledImages) -> None:
    settings = settings_of(name, Path("unread"))
    training = Training(settings.chosen[0], settings, pictures, pictures)
    adapt = quality.ROWS[name].adapt
    assert adapt is not None
    adapt(training)
    trained = {id(value) for group in training.optimizer.param_groups for value in group["params"]}
    assert trained == {id(value) for value in training.model.parameters()}
    assert training.scheduler.optimizer is training.optimizer


def test_the_loss_and_the_number_format_decide_what_is_kept(
    competition_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--data", str(competition_dir), *SMALL])
    options = quality._options()

    def key(name: str) -> dict[str, Any]:
        found = quality._key(name, 1, options)
        return {k: v for k, v in found.items() if k not in ("row", "recipe.name")}

    best = key("best")
    assert key("best") == best != key("bcedice")
    other = {"avx2"} if "bfloat16" in best["number_format"] else {"amx_bf16"}
    monkeypatch.setattr("src_salt.device.cpu_flags", lambda: other)
    assert key("best") != best


def test_the_command_keeps_what_it_measured(competition_dir: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    command = [sys.executable, "-m", "benchmarks.quality", "--data", str(competition_dir), *SMALL]
    command += ["--rows", "plain", "--seeds", "1", "--kept", str(kept)]
    first = subprocess.run(command, cwd=quality.ROOT, capture_output=True, text=True, check=True)
    lines = first.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["best", "plain"]
    assert first.stderr.count("training ") == 2
    again = subprocess.run(command, cwd=quality.ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert "training " not in again.stderr
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(entries) == 2
    for entry in entries:
        values = entry["found"]
        assert values.pop("seconds") > 0
        assert set(values) == {
            f"{view}_{value}" for view in ("plain", "flipped", "cut") for value in ("iou", "score")
        }
        assert all(0 <= value <= 1 for value in values.values())
