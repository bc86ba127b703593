"""The whole pipeline: what a run returns, prints and writes."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src_salt.config import SaltError, SettingsError
from src_salt.data import DataError
from src_salt.outputs import OutputError
from src_salt.submission import decode
from src_salt.weights import WeightsError

from .conftest import TEST, TINY, Run, finish_run, read_files

EXPECTED = [
    "models.zip",
    "models/best_model_resnet34_BCEDice.pth",
    "models/best_model_resnet34_Lovasz.pth",
    "models/prediction.json",
    "models/resnet34_BCEDice_history.json",
    "models/resnet34_Lovasz_history.json",
    "results.zip",
    "results/calibration.png",
    "results/cases_best.png",
    "results/cases_median.png",
    "results/cases_worst.png",
    "results/experiments.csv",
    "results/experiments.md",
    "results/loss_curves.png",
    "results/predictions.png",
    "results/report.html",
    "results/score_by_coverage.png",
    "results/score_curves.png",
    "results/validation_iou_comparison.png",
    "submission.csv",
]
ONE_EPOCH: dict[str, Any] = {"epochs": 1, "experiments": "resnet34_BCEDice"}

pytestmark = pytest.mark.usefixtures("tiny_networks")


def test_run_writes_exactly_its_outputs(finished: Run) -> None:
    assert sorted(read_files(finished.folder)) == EXPECTED


def test_summary_names_existing_files(finished: Run) -> None:
    summary = json.loads(json.dumps(finished.summary))
    assert [entry["experiment"] for entry in summary["experiments"]] == TINY["experiments"]
    best = max(summary["experiments"], key=lambda entry: entry["best_val_iou"])
    assert summary["best_experiment"] == best["experiment"]
    assert summary["best_val_iou"] == best["best_val_iou"]
    assert 0 <= summary["best_val_score"] <= 1
    paths = [
        value for name, value in summary.items() if name.endswith(("zip", "plot", "submission"))
    ]
    assert len(paths) == 6
    assert all((finished.folder / path).is_file() for path in paths)


def test_events_describe_the_run(finished: Run) -> None:
    assert finished.kinds == ["start", *["epoch", "epoch", "experiment"] * 2, "done"]
    start, epoch = finished.events[:2]
    assert start["experiments"] == TINY["experiments"]
    assert (start["train_images"], start["val_images"], start["test_images"]) == (16, 4, TEST)
    names = (
        "event experiment epoch epochs train_loss val_loss train_iou val_iou val_score "
        "learning_rate seconds"
    )
    assert sorted(epoch) == sorted(names.split())
    assert finished.events[-1]["best_experiment"] == finished.summary["best_experiment"]


def test_histories_equal_the_printed_epochs(finished: Run) -> None:
    for name in TINY["experiments"]:
        record = json.loads((finished.folder / f"models/{name}_history.json").read_text())
        printed = [e for e in finished.events if e["event"] == "epoch" and e["experiment"] == name]
        for epoch, event in zip(record["history"], printed, strict=True):
            assert {key: event[key] for key in epoch} == epoch
        assert record["best_val_iou"] == max(epoch["val_iou"] for epoch in record["history"])


def test_weights_are_a_plain_state_dict(finished: Run) -> None:
    path = finished.folder / "models/best_model_resnet34_BCEDice.pth"
    state = torch.load(path, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_submission_has_the_ids_of_the_sample(finished: Run, competition_dir: Path) -> None:
    with (finished.folder / "submission.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    with (competition_dir / "sample_submission.csv").open(newline="") as file:
        expected = [row[0] for row in csv.reader(file)][1:]
    assert header == ["id", "rle_mask"]
    assert [row[0] for row in rows] == expected
    for _, rle in rows:
        assert decode(rle, (101, 101)).shape == (101, 101)


def test_zips_contain_the_folders(finished: Run) -> None:
    files = read_files(finished.folder)
    for name in ("models", "results"):
        with zipfile.ZipFile(finished.folder / f"{name}.zip") as archive:
            assert archive.testzip() is None
            packed = {member: archive.read(member) for member in archive.namelist()}
        assert packed == {path: files[path] for path in files if path.startswith(f"{name}/")}


def test_models_zip_says_how_the_submission_was_made(finished: Run) -> None:
    with zipfile.ZipFile(finished.folder / "models.zip") as archive:
        how = json.loads(archive.read("models/prediction.json"))
        names = archive.namelist()
    best = finished.summary["best_experiment"]
    assert how["networks"] == [{"weights": f"best_model_{best}.pth", "backbone": "resnet34"}]
    assert {f"models/{one['weights']}" for one in how["networks"]} < set(names)
    assert {name: how[name] for name in ("threshold", "min_area")} == (
        finished.summary["postprocessing"]
    )
    assert (how["image_size"], how["fit"], how["flip_tta"]) == (TINY["image_size"], "resize", False)
    assert (how["mean"], how["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(
    finished: Run, competition_dir: Path, tmp_path: Path
) -> None:
    again = finish_run(competition_dir, tmp_path / "again", num_workers=2)
    assert read_files(again.folder) == read_files(finished.folder)


def test_seed_changes_the_weights(finished: Run, competition_dir: Path, tmp_path: Path) -> None:
    other = finish_run(competition_dir, tmp_path, seed=1, **ONE_EPOCH)
    name = "models/best_model_resnet34_BCEDice.pth"
    assert (other.folder / name).read_bytes() != (finished.folder / name).read_bytes()


@pytest.mark.slow
def test_second_run_only_writes_missing_files(competition_dir: Path, tmp_path: Path) -> None:
    first = finish_run(competition_dir, tmp_path, **ONE_EPOCH)
    before = read_files(tmp_path)
    for name in ("submission.csv", "models.zip", "results.zip"):
        (tmp_path / name).unlink()
    again = finish_run(competition_dir, tmp_path, **ONE_EPOCH)
    assert again.kinds == ["start", "experiment", "done"]
    assert read_files(tmp_path) == before
    assert again.summary == first.summary


@pytest.mark.slow
def test_limits_do_not_shorten_the_submission(competition_dir: Path, tmp_path: Path) -> None:
    run = finish_run(competition_dir, tmp_path, limit_train=4, limit_val=1, **ONE_EPOCH)
    start = run.events[0]
    assert (start["train_images"], start["val_images"]) == (4, 1)
    assert len((tmp_path / "submission.csv").read_text().splitlines()) == TEST + 1


@pytest.mark.parametrize("problem", ["data", "parameter", "weights", "resumed", "output folder"])
def test_errors_appear_before_anything_is_trained_or_deleted(
    problem: str, copied_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "submission.csv").write_text("of an earlier run")
    changes: dict[str, Any] = {}
    kind: type[SaltError] = DataError
    if problem == "data":
        (copied_dir / "test.zip").write_bytes((copied_dir / "test.zip").read_bytes()[:-40])
    elif problem == "parameter":
        changes, kind = {"epochs": 0}, SettingsError
    elif problem == "weights":
        changes, kind = {"pretrained": True, "weights_dir": str(tmp_path)}, WeightsError
    elif problem == "resumed":
        changes, kind = {"resume_dir": str(tmp_path / "mistyped")}, OutputError
    else:
        (tmp_path / "file").write_text("")
        output, kind = tmp_path / "file" / "out", SettingsError
    with pytest.raises(kind):
        finish_run(copied_dir, output, **changes)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out" / "submission.csv").read_text() == "of an earlier run"


def test_failing_run_leaves_no_files_of_an_earlier_run(
    competition_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    for name in ("submission.csv", "models.zip", "results/experiments.md", "results/mine.txt"):
        (tmp_path / name).write_text("of an earlier run")
    with pytest.raises(SaltError):
        finish_run(competition_dir, tmp_path, learning_rate=1e30, epochs=5)
    left = read_files(tmp_path)
    assert "results/mine.txt" in left  # files of the user stay
    assert {"submission.csv", "models.zip", "results/experiments.md"}.isdisjoint(left)


def test_failed_prediction_leaves_what_was_trained(
    competition_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr("src_salt.main.evaluate", fail)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            finish_run(competition_dir, tmp_path / "first", **ONE_EPOCH)
    assert not (tmp_path / "first" / "submission.csv").exists()
    (tmp_path / "kept").mkdir()
    (tmp_path / "first" / "models.zip").rename(tmp_path / "kept" / "models.zip")
    run = finish_run(
        competition_dir, tmp_path / "second", resume_dir=str(tmp_path / "kept"), **ONE_EPOCH
    )
    assert run.kinds == ["start", "taken_over", "experiment", "done"]
    assert (tmp_path / "second" / "submission.csv").exists()


REAL = Path(__file__).parents[3] / "shared/data/tgs-salt-identification-challenge"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the competition's real data is not available")
def test_run_on_the_real_data(tmp_path: Path) -> None:
    limits = {"limit_train": 8, "limit_val": 4, "batch_size": 32}
    real = finish_run(REAL, tmp_path, **limits, **ONE_EPOCH)
    assert np.isfinite(real.summary["best_val_iou"])
    assert len((tmp_path / "submission.csv").read_text().splitlines()) == 501
