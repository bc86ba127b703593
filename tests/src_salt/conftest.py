"""A small made-up competition, and one finished run on it, shared by the tests of src_salt."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src_salt.config import Settings
from src_salt.data import LabelledImages, load_competition
from src_salt.main import run
from src_salt.synthetic import write_competition

TRAIN, TEST = 20, 5

TINY: dict[str, Any] = {
    "experiments": ["resnet34_bcedice", "resnet34_lovasz"],
    "epochs": 2,
    "batch_size": 4,
    "image_size": 32,
    "pretrained": False,
    "num_workers": 0,
}
"""Parameters with which a run takes a few seconds on one core."""


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    folder: Path
    summary: dict[str, Any]
    events: list[dict[str, Any]]


def finish_run(data_dir: Path, folder: Path, **changes: Any) -> Run:
    """Run in this process; every line that it prints must be an event."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = run(data_dir=str(data_dir), output_dir=str(folder), **{**TINY, **changes})
    return Run(folder, summary, [json.loads(line) for line in printed.getvalue().splitlines()])


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures of 32 pixels leave a second thread nothing to do but wait.

    On a busy machine that waiting made a run of seconds take minutes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def competition_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The competition's folder; not to be changed (see `faulty_dir`)."""
    folder = tmp_path_factory.mktemp("competition")
    write_competition(folder, train=TRAIN, test=TEST, seed=3)
    return folder


@pytest.fixture(scope="session")
def labelled(competition_dir: Path) -> LabelledImages:
    return load_competition(competition_dir).labelled


@pytest.fixture
def copied_dir(competition_dir: Path, tmp_path: Path) -> Path:
    """A copy of the competition that a test may spoil."""
    folder = tmp_path / "data"
    shutil.copytree(competition_dir, folder)
    return folder


@pytest.fixture(scope="session")
def finished(competition_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two experiments; not to be changed."""
    return finish_run(competition_dir, tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Makes tiny settings, with changes by name."""

    def make(**changes: Any) -> Settings:
        folders = {"data_dir": tmp_path / "data", "output_dir": tmp_path / "out"}
        return Settings.from_parameters({**folders, **TINY, **changes})

    return make


@pytest.fixture(scope="session")
def pictures() -> LabelledImages:
    """Eight noisy images whose left side is bright and salt: learnt within a few epochs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (8, 101, 101), dtype=np.uint8)
    masks = np.zeros((8, 101, 101), np.uint8)
    for row, edge in enumerate(range(20, 100, 10)):
        masks[row, :, :edge] = 1
    return LabelledImages(tuple("abcdefgh"), images + 150 * masks, masks)
