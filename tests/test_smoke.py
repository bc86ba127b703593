"""The main job: src_salt in a notebook on the local Kaggle writes the same files as `python -m`."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"
SLUG = "tgs-salt-identification-challenge"

SMALL = {
    "limit_train": 8,
    "limit_val": 4,
    "batch_size": 4,
    "epochs": 1,
    "image_size": 32,
    "num_workers": 2,
}


def rehearse(cli: Cli, inputs: Path, out: Path, **parameters: object) -> Path:
    options = [
        part
        for name, value in {**SMALL, **parameters}.items()
        for part in ("--set", f"{name}={json.dumps(value)}")
    ]
    cli("rehearse", "--profile", "smoke", "--inputs", inputs, "--out", out, *options)
    return out / "tgs-salt-unet" / "v1"


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    arguments = [folder / SLUG, "--train", "40", "--test", "7"]
    subprocess.run([sys.executable, "-m", "src_salt.synthetic", *arguments], cwd=ROOT, check=True)
    return folder


def flags(parameters: dict[str, object]) -> list[str]:
    """The options of `python -m src_salt` for the parameters that a run used."""
    options: list[str] = []
    for name, value in parameters.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            values = value if isinstance(value, list) else [value]
            options += [f"--{option}", *map(str, values)]
    return options


@pytest.mark.slow
def test_notebook_and_package_write_the_same_bytes(cli: Cli, inputs: Path, tmp_path: Path) -> None:
    names = ["resnet34_BCEDice", "resnet34_Lovasz"]
    pulled = rehearse(cli, inputs, tmp_path / "out", experiments=names)
    manifest = json.loads((pulled / "run-manifest.json").read_text())
    assert manifest["versions"]["torch"].startswith("2.10.0")
    assert manifest["parameters"]["data_dir"] == f"/kaggle/input/competitions/{SLUG}"
    here = tmp_path / "here"
    used = {**manifest["parameters"], "data_dir": inputs / SLUG, "output_dir": here}
    subprocess.run(
        [sys.executable, "-m", "src_salt", *flags(used)], cwd=ROOT, check=True, capture_output=True
    )
    assert (pulled / "submission.csv").read_bytes() == (here / "submission.csv").read_bytes()
    for name in names:
        history = f"models/{name}_history.json"
        assert (pulled / history).read_bytes() == (here / history).read_bytes()
    with zipfile.ZipFile(pulled / "models.zip") as archive:
        assert f"best_model_{names[0]}.pth" in {Path(n).name for n in archive.namelist()}


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / SLUG).is_dir(), reason="the real data is not available")
def test_notebook_runs_on_real_data(cli: Cli, tmp_path: Path) -> None:
    pulled = rehearse(cli, REAL_DATA, tmp_path, experiments=["resnet34_BCEDice"])
    sample = (REAL_DATA / SLUG / "sample_submission.csv").read_text().splitlines()
    submission = (pulled / "submission.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in submission] == [
        line.partition(",")[0] for line in sample
    ]
