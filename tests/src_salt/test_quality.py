"""The measurements of single habits, on a few made-up pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality

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
"""Rows that change more than a value of the recipe."""


@pytest.fixture(scope="module")
def predicted(competition_dir: Path) -> Callable[[str], Any]:
    """What a row predicts once it is trained; each only once."""

    @cache
    def predict(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["quality", "--data", str(competition_dir), *SMALL])
            patch.setattr(quality.config, "RECIPES", dict(quality.config.RECIPES))
            return quality.predictions(
                quality.ROWS[name], quality._settings(name, 1, quality._options())
            )

    return predict


@pytest.mark.parametrize("name", SPECIAL)
def test_a_row_is_trained_in_its_own_way(name: str, predicted: Callable[[str], Any]) -> None:
    best, other = predicted("best"), predicted(name)
    assert np.array_equal(best[-1], other[-1])  # the same images
    for probabilities, of_best in zip(other[:-1], best[:-1], strict=True):
        assert probabilities.shape == other[-1].shape
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        assert not np.allclose(probabilities, of_best)


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
