"""A small synthetic competition, a small network, and a finished run, shared by these tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from src_salt.config import Settings
from src_salt.data import LabelledImages, load_competition
from src_salt.main import run
from src_salt.model import WIDTHS
from src_salt.synthetic import write_competition

TRAIN, TEST = 20, 5

TINY: dict[str, Any] = {
    "experiments": ["resnet34_BCEDice", "resnet34_Lovasz"],
    "epochs": 2,
    "batch_size": 4,
    "image_size": 32,
    "pretrained": False,
    "num_workers": 0,
    "checkpoint_seconds": 0,
}
"""Parameters with which a run takes a few seconds on one core."""

TINY_OPTIONS = (
    *("--epochs", "2", "--batch-size", "4", "--image-size", "32"),
    *("--no-pretrained", "--num-workers", "0", "--checkpoint-seconds", "0"),
)
"""The same as options of `python -m src_salt`, without the experiments."""

TINY_WIDTHS = (8, 8, 16, 32, 64)


class TinyEncoder(nn.Module):
    """The layers of a torchvision ResNet, with one block per stage and few channels.

    The network has 1.5 million parameters instead of ResNet-34's 24 million, so weights take 6 MB
    and a checkpoint 18 MB. Everything else that the tests use is the real code.
    """

    def __init__(self) -> None:
        super().__init__()
        stem, *widths = TINY_WIDTHS
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        before = stem
        for number, width in enumerate(widths, 1):
            stride = 1 if number == 1 else 2
            shortcut = nn.Sequential(
                nn.Conv2d(before, width, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(width),
            )
            setattr(self, f"layer{number}", BasicBlock(before, width, stride, shortcut))
            before = width


@contextlib.contextmanager
def quick_plots() -> Iterator[None]:
    """Draw small plots without a layout, which takes most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src_salt.plots.DPI", 40)
        patch.setattr("src_salt.plots.LAYOUT", None)
        yield


@contextlib.contextmanager
def tiny_encoders() -> Iterator[None]:
    """Use `TinyEncoder` for every backbone, and draw quick plots."""
    with pytest.MonkeyPatch.context() as patch, quick_plots():
        patch.setattr("src_salt.model._build_resnet", lambda _backbone, _weights: TinyEncoder())
        for backbone in list(WIDTHS):
            patch.setitem(WIDTHS, backbone, TINY_WIDTHS)
        yield


@pytest.fixture
def tiny_networks() -> Iterator[None]:
    with tiny_encoders():
        yield


@dataclass(frozen=True)
class Run:
    """What a finished run returned, wrote and printed."""

    folder: Path
    summary: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def kinds(self) -> list[str]:
        return [event["event"] for event in self.events]


def finish_run(data_dir: Path, folder: Path, **changes: Any) -> Run:
    """Run in this process; every line that it prints must be an event."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = run(data_dir=str(data_dir), output_dir=str(folder), **{**TINY, **changes})
    return Run(folder, summary, [json.loads(line) for line in printed.getvalue().splitlines()])


def read_events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def python(
    program: str, *arguments: str, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with one thread."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def src_salt_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "src_salt", *map(str, arguments)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Images of 32 pixels do not keep a second thread busy.

    On a busy machine, waiting for it made a run of seconds take minutes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def competition_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The competition's folder; do not change it (see `copied_dir`)."""
    folder = tmp_path_factory.mktemp("competition")
    write_competition(folder, train=TRAIN, test=TEST, seed=3)
    return folder


@pytest.fixture(scope="session")
def labelled(competition_dir: Path) -> LabelledImages:
    return load_competition(competition_dir).labelled


@pytest.fixture
def copied_dir(competition_dir: Path, tmp_path: Path) -> Path:
    """A copy of the competition that a test may change."""
    folder = tmp_path / "data"
    shutil.copytree(competition_dir, folder)
    return folder


@pytest.fixture(scope="session")
def finished(competition_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two experiments with tiny networks; do not change it."""
    with tiny_encoders():
        return finish_run(competition_dir, tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """A function that makes tiny settings with changes."""

    def make(**changes: Any) -> Settings:
        folders = {"data_dir": tmp_path / "data", "output_dir": tmp_path / "out"}
        return Settings.from_parameters({**folders, **TINY, **changes})

    return make


@pytest.fixture(scope="session")
def easy_images() -> LabelledImages:
    """Eight noisy images with bright salt on the left, learned within a few epochs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (8, 101, 101), dtype=np.uint8)
    masks = np.zeros((8, 101, 101), np.uint8)
    for row, edge in enumerate(range(20, 100, 10)):
        masks[row, :, :edge] = 1
    return LabelledImages(tuple("abcdefgh"), images + 150 * masks, masks)
