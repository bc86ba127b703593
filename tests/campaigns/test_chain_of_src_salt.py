"""A chain of three short sessions of src_salt gives the submission of one long run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src_salt.main import run
from src_salt.synthetic import write_competition
from tests.conftest import ROOT, Cli

SETTINGS = {
    "experiments": ["resnet34_BCEDice"],
    "epochs": 3,
    "batch_size": 4,
    "image_size": 32,
    "limit_train": 8,
    "limit_val": 4,
}


@pytest.mark.slow
def test_three_sessions_give_the_bytes_of_one(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "inputs" / "tgs-salt-identification-challenge"
    write_competition(data, train=16, test=4)
    options = [f"--set={name}={json.dumps(value)}" for name, value in SETTINGS.items()]
    done = cli(
        *("rehearse", "--until-done", "--json", "--project", ROOT, "--profile", "smoke"),
        *("--inputs", data.parent, "--out", tmp_path / "out", "--set", "max_hours=1e-6"),
        *options,
    )
    document = json.loads(done.stdout)
    assert document["verified"] is True
    sessions = document["chain"]["sessions"]
    assert [session["ending"] for session in sessions] == ["incomplete", "incomplete", "complete"]
    slugs = [session["slug"] for session in sessions]
    assert slugs == [slugs[0], f"{slugs[0]}-b", slugs[0]]
    smoke = {"learning_rate": 5e-4, "pretrained": False, "num_workers": 0}
    run(data_dir=data, output_dir=tmp_path / "one", **smoke, **SETTINGS)
    chained = Path(document["folder"])
    for name in ("submission.csv", "models.zip"):
        assert (chained / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
