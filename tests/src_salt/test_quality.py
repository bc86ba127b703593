"""The measurements of single habits, on a few made-up pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import quality

SMALL = ["--epochs", "2", "--image-size", "32", "--limit-train", "8", "--jobs", "1"]
SPECIAL = (
    "seed",
    "adamw",
    "no-scse",
    "no-hypercolumns",
    "emptiness",
    "then-lovasz",
    "cycles",
    "folds",
)
"""Rows that change more than a value of the recipe."""


@pytest.mark.parametrize("name", SPECIAL)
def test_a_row_is_trained_and_scored(
    name: str, competition_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--data", str(competition_dir), *SMALL])
    monkeypatch.setattr(quality.config, "RECIPES", dict(quality.config.RECIPES))
    options = quality._options()
    found = quality.train(quality.ROWS[name], quality._settings(name, 1, options))
    best = quality.train(quality.ROWS["best"], quality._settings("best", 1, options))
    assert found["plain_iou"] != best["plain_iou"] or found["cut_iou"] != best["cut_iou"]
    values = {key: value for key, value in found.items() if key != "seconds"}
    assert set(values) == {
        f"{view}_{value}" for view in ("plain", "flipped", "cut") for value in ("iou", "score")
    }
    assert all(0 <= value <= 1 for value in values.values())


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
    assert len(kept.read_text().splitlines()) == 2
