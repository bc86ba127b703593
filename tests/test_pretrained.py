"""Pretrained weights on the local Kaggle: `make weights`, then `make push WEIGHTS=…`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from src_salt.synthetic import write_competition
from src_salt.weights import weights_fingerprint
from tests.conftest import ROOT, Cli
from tests.local_kaggle import LocalKaggle

SLUG = "tgs-resnet-weights"
SMALL = {
    "experiments": ["resnet34_BCEDice"],
    "recipe": "fast",
    "epochs": 1,
    "batch_size": 4,
    "image_size": 32,
    "limit_train": 8,
    "limit_val": 4,
    "num_workers": 0,
}


def made(target: str, *variables: str) -> list[str]:
    """The last command of a target of the Makefile, without the program's name."""
    # `make test ARGS=…` gives its variables to what it runs.
    own = {"ARGS", "PROFILE", "WEIGHTS", "KERNELKIT_DATA"}
    kept = {k: v for k, v in os.environ.items() if k not in own and not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", target, *variables],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=True,
    )
    program, *arguments = shlex.split(done.stdout.splitlines()[-1])
    assert program == ".venv/bin/kernelkit"
    return arguments


def test_makefile_gives_a_run_the_weights() -> None:
    own = made("push", "WEIGHTS=ann/some-weights", "PROFILE=best")
    assert own == [
        *("push", "--profile", "best", "--set", "kernel.enable_internet=false"),
        *("--set", 'kernel.dataset_sources=["ann/some-weights"]', "--set", "pretrained=true"),
        *("--set", "weights_dir=kaggle://input/some-weights"),
    ]
    model = made("run", "WEIGHTS=org/resnet/pytorch/default/1")
    assert 'kernel.model_sources=["org/resnet/pytorch/default/1"]' in model
    assert model[-1] == "weights_dir=kaggle://input/resnet"
    assert made("push") == ["push"]  # with internet, the run downloads them
    published = ["dataset", "push", f"build/inputs/{SLUG}", "--slug", SLUG]
    assert made("weights") == made("weights", "KERNELKIT_DATA=/data") == published


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("src_salt", "templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def kaggle(launch: Callable[..., LocalKaggle], tmp_path: Path) -> LocalKaggle:
    write_competition(tmp_path / "inputs" / "tgs-salt-identification-challenge", train=16, test=4)
    return launch(inputs=tmp_path / "inputs")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_published_weights_are_trained_from_and_damaged_ones_are_refused(
    cli: Cli, kaggle: LocalKaggle, project: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.manual_seed(1)
    state = torchvision.models.resnet34().state_dict()
    torch.save(state, weights / "resnet34-b627a593.pth")  # torchvision's name, with the classifier
    publish = ["dataset", "push", weights, "--slug", SLUG]
    options = made("run", f"WEIGHTS={kaggle.account}/{SLUG}", "PROFILE=smoke")
    options += [f"--set={name}={json.dumps(value)}" for name, value in SMALL.items()]
    environment = kaggle.environment

    cli(*publish, cwd=project, env=environment)
    done = cli(*options, "--json", cwd=project, env=environment)
    pulled = Path(json.loads(done.stdout)["folder"])
    manifest = json.loads((pulled / "run-manifest.json").read_text())
    assert manifest["parameters"]["weights_dir"].endswith(f"/{SLUG}")
    with zipfile.ZipFile(pulled / "models.zip") as archive:
        history = json.loads(archive.read("models/resnet34_BCEDice_history.json"))
    encoder = {name: value for name, value in state.items() if name[:3] != "fc."}
    assert weights_fingerprint(encoder) in json.dumps(history)

    (weights / "resnet34-b627a593.pth").write_bytes(b"<!DOCTYPE html>not the weights")
    cli(*publish, cwd=project, env=environment)
    failed = cli(*options, "--set", "seed=2", cwd=project, env=environment, expect=6)
    said = " ".join((failed.stdout + failed.stderr).split())
    assert "resnet34-b627a593.pth is a web page, not weights. Download the file again" in said
