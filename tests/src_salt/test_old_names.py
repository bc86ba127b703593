"""Names of earlier versions: in settings, in finished results and in checkpoints.

The samples are real output of version 0.1.0 before the renaming, without the large weights. These
tests train with the current code and then put the result under the old names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src_salt.budget import Budget
from src_salt.checkpoint import (
    NEW_FIELDS,
    CheckpointError,
    current_fingerprint,
    describe_changes,
    read_checkpoint,
)
from src_salt.config import (
    OLD_LOSSES,
    OLD_RECIPES,
    Settings,
    current_experiment_name,
    renamed_values,
)
from src_salt.data import LabelledImages, split
from src_salt.experiments import _fingerprint, run_experiments
from src_salt.outputs import Outputs, sha256_of_file
from src_salt.train import Trainer

from .conftest import Run, finish_run, read_events, read_files

pytestmark = pytest.mark.usefixtures("tiny_networks")

SAMPLES = Path(__file__).parents[1] / "samples" / "src_salt_0_1"
NEW_NAMES = {
    "seed": ("resnet34_bcedice", "resnet34_BCEDice"),
    "fast": ("resnet34_lovasz", "resnet34_Lovasz"),
    "best": ("resnet34_bcedice_symmetric", "resnet34_BCEDiceSymmetric"),
}
"""The experiment of each sample's recipe: its old and its new name."""


def read_sample(name: str) -> Any:
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("resnet34_bcedice", "resnet34_BCEDice"),
        ("resnet50_lovasz_fold3", "resnet50_Lovasz_fold3"),
        (
            "best_model_resnet34_bcedice_symmetric_fold1.pth",
            "best_model_resnet34_BCEDiceSymmetric_fold1.pth",
        ),
        ("resnet50_bcedice_history.json", "resnet50_BCEDice_history.json"),
        ("resnet34_bcedicey.pt", "resnet34_bcedicey.pt"),
    ],
)
def test_old_experiment_names_in_file_names_are_replaced(old: str, new: str) -> None:
    assert current_experiment_name(old) == new
    assert current_experiment_name(new) == new


@pytest.mark.parametrize("recipe", ["seed", "baseline"])
@pytest.mark.parametrize(
    "experiments", ["resnet34_bcedice,resnet50_Lovasz", ["resnet34_BCEDice", "resnet50_lovasz"]]
)
def test_settings_accept_old_names(
    recipe: str, experiments: Any, settings: Callable[..., Settings]
) -> None:
    chosen = settings(recipe=recipe, experiments=experiments)
    assert chosen.recipe == "baseline"
    assert chosen.experiments == ("resnet34_BCEDice", "resnet50_Lovasz")
    names = [one.name for one in chosen.planned_experiments]
    assert names == ["resnet34_BCEDice", "resnet50_Lovasz"]


def test_old_and_new_name_of_one_experiment_are_rejected(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="name each one only once"):
        settings(experiments="resnet34_bcedice,resnet34_BCEDice")


def test_each_old_name_has_a_note() -> None:
    experiments = "resnet34_lovasz,resnet34_BCEDice"
    assert renamed_values({"recipe": "seed", "experiments": experiments}) == [
        "recipe: 'seed' is now called 'baseline'.",
        "experiments: 'resnet34_lovasz' is now called 'resnet34_Lovasz'.",
    ]
    assert renamed_values({"recipe": "best", "experiments": ["resnet34_Lovasz"]}) == []
    assert renamed_values({}) == []


# --- finished results ---------------------------------------------------------------------------


def put_under_old_names(finished: Run, folder: Path) -> None:
    """Write the files of the finished sample; only the digests of the weights are changed."""
    for old in ("bcedice", "lovasz"):
        name = f"resnet34_{old}"
        weights = folder / "models" / f"best_model_{name}.pth"
        weights.parent.mkdir(parents=True, exist_ok=True)
        current = Outputs(finished.folder).weights(f"resnet34_{OLD_LOSSES[old]}")
        shutil.copy(current, weights)
        record = read_sample(f"finished/models/{name}_history.json")
        assert record["weights"] == weights.name
        record["weights_sha256"] = sha256_of_file(weights)
        (folder / "models" / f"{name}_history.json").write_text(json.dumps(record, indent=2) + "\n")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files < set((SAMPLES / "finished" / "files.txt").read_text().split())


@pytest.mark.parametrize("where", ["output_dir", "resume_dir"])
@pytest.mark.slow
def test_finished_results_with_old_names_are_not_trained_again(
    where: str, finished: Run, competition_dir: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    put_under_old_names(finished, old)
    changes: dict[str, Any] = {} if where == "output_dir" else {"resume_dir": str(old)}
    output = old if where == "output_dir" else tmp_path / "new"
    run = finish_run(
        competition_dir,
        output,
        recipe="seed",
        experiments="resnet34_bcedice,resnet34_lovasz",
        **changes,
    )
    skipped = [event["skipped"] for event in run.events if event["event"] == "experiment"]
    assert skipped == [True, True]
    assert "epoch" not in run.kinds
    assert run.kinds[:5] == ["start", "note", "note", "note", "renamed"]
    assert run.events[4]["files"]["models/resnet34_lovasz_history.json"] == (
        "models/resnet34_Lovasz_history.json"
    )
    for name in ("resnet34_BCEDice", "resnet34_Lovasz"):
        record = json.loads(Outputs(output).history(name).read_text())
        old_record = read_sample(f"finished/models/{name.lower()}_history.json")
        assert record["experiment"] == name
        assert record["weights"] == f"best_model_{name}.pth"
        assert record["history"] == old_record["history"]
        assert record["recipe"]["recipe.name"] == "baseline"
    again = finish_run(competition_dir, output)
    assert again.kinds == ["start", "experiment", "experiment", "done"]
    assert not [name for name in read_files(output) if "bcedice" in name or "lovasz" in name]


def test_existing_results_win_over_adopted_ones_with_old_names(tmp_path: Path) -> None:
    for folder, content in (("here", "mine"), ("earlier", "theirs")):
        (tmp_path / folder / "models").mkdir(parents=True)
        name = "resnet34_bcedice_history.json"
        (tmp_path / folder / "models" / name).write_text(content)
    outputs = Outputs(tmp_path / "here")
    assert outputs.adopt(tmp_path / "earlier") == {}
    outputs.rename_old_files()
    assert outputs.history("resnet34_BCEDice").read_text() == "mine"
    # A file that already has the new name is not overwritten.
    (tmp_path / "here" / "models" / "resnet34_bcedice_history.json").write_text("old")
    assert outputs.rename_old_files() == {}
    assert outputs.history("resnet34_BCEDice").read_text() == "mine"


def test_summary_keeps_its_keys(finished: Run) -> None:
    old = read_sample("finished/summary.json")
    assert set(old) <= set(finished.summary)
    assert set(old["cut"]) == set(finished.summary["cut"])
    assert set(old["experiments"][0]) <= set(finished.summary["experiments"][0])
    record = read_sample("finished/models/resnet34_bcedice_history.json")
    path = Outputs(finished.folder).history("resnet34_BCEDice")
    assert set(record) <= set(json.loads(path.read_text()))
    header = (SAMPLES / "finished/results/experiments.csv").read_text().splitlines()[0]
    table = (finished.folder / "results/experiments.csv").read_text().splitlines()
    assert table[0] == header


def test_events_keep_their_names_and_keys(finished: Run) -> None:
    lines = (SAMPLES / "finished/events.jsonl").read_text().splitlines()
    old = [json.loads(line) for line in lines]
    assert [event["event"] for event in old] == finished.kinds
    for before, now in zip(old, finished.events, strict=True):
        assert set(before) <= set(now)


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", NEW_NAMES)
def test_fingerprint_of_a_sample_is_that_of_today(
    recipe: str, labelled: LabelledImages, settings: Callable[..., Settings]
) -> None:
    sample = read_sample(f"unfinished-{recipe}/checkpoint.json")["made_by"]
    chosen = settings(recipe=recipe, epochs=3)
    today = _fingerprint(chosen.planned_experiments[0], chosen, *split(labelled, chosen))
    assert sample != today
    assert set(today) - set(current_fingerprint(sample)) == set(NEW_FIELDS)
    assert describe_changes(current_fingerprint(sample), today) == ""
    assert current_fingerprint(today) == today


def test_old_fingerprint_knows_only_the_path_of_the_weights() -> None:
    old = {"weights_dir": "/a", "seed": 1}
    today = {"weights_dir": "/a", "seed": 1, "encoder_weights": "abc", "experiment": "x"}
    assert describe_changes(old, today) == ""
    assert describe_changes(old, today | {"weights_dir": "/b"}) == "weights_dir was /a, is /b"
    assert describe_changes(today, today | {"weights_dir": "/b"}) == ""
    for name in ("encoder_weights", "experiment"):
        assert f"{name} was {today[name]}, is y" in describe_changes(today, today | {name: "y"})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NEW_NAMES)
def test_old_checkpoint_is_resumed_bit_for_bit(
    recipe: str,
    labelled: LabelledImages,
    settings: Callable[..., Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Train one epoch, and rewrite checkpoint and record exactly as the old version did."""
    old_name, name = NEW_NAMES[recipe]
    sample = read_sample(f"unfinished-{recipe}/checkpoint.json")
    chosen = settings(recipe=recipe, epochs=3, experiments=name)
    whole, outputs = Outputs(tmp_path / "whole"), Outputs(tmp_path / "old")
    run_experiments(chosen, labelled, whole)
    run_experiments(chosen, labelled, outputs, Budget(1e-9))
    to_old_version(outputs, recipe, sample)
    assert set(read_files(outputs.root)) == {
        line
        for line in (SAMPLES / f"unfinished-{recipe}" / "files.txt").read_text().split()
        if line.startswith(("models/", "checkpoints/"))
    }

    capsys.readouterr()
    assert f"checkpoints/{old_name}.pt" in outputs.rename_old_files()
    run_experiments(chosen, labelled, outputs)
    events = read_events(capsys)
    kinds = [event["event"] for event in events]
    assert kinds == ["retrain", "resume", "epoch", "epoch", "experiment"]
    assert events[0]["reason"] == "the earlier run ended early: out of time after epoch 1"
    assert events[1] == {"event": "resume", "experiment": name, "epochs_done": 1}
    assert read_files(outputs.root / "models") == read_files(whole.root / "models")


def to_old_version(outputs: Outputs, recipe: str, sample: dict[str, Any]) -> None:
    old_name, name = NEW_NAMES[recipe]
    checkpoint = outputs.checkpoint(name)
    content = torch.load(checkpoint, weights_only=True)
    assert set(sample["state"]) | {"model", "optimizer"} == set(content["state"])
    content = dict(zip(sample["keys"], (sample["made_by"], content["state"]), strict=True))
    checkpoint.unlink()
    torch.save(content, outputs.root / sample["file"])
    outputs.weights(name).rename(outputs.weights(old_name))
    record = json.loads(outputs.history(name).read_text())
    outputs.history(name).unlink()
    old_record = read_sample(f"unfinished-{recipe}/models/{old_name}_history.json")
    same = {key: record[key] for key in ("weights_sha256", "history", "best_epoch", "ended")}
    outputs.history(old_name).write_text(json.dumps(old_record | same, indent=2) + "\n")


@pytest.mark.parametrize("recipe", NEW_NAMES)
def test_state_of_a_checkpoint_has_the_same_structure_as_before(
    recipe: str, easy_images: LabelledImages, settings: Callable[..., Settings]
) -> None:
    sample = read_sample(f"unfinished-{recipe}/checkpoint.json")
    chosen = settings(recipe=recipe, epochs=3, experiments=NEW_NAMES[recipe][1])
    trainer = Trainer(chosen.planned_experiments[0], chosen, easy_images, easy_images)
    trainer.run_epoch()
    state = trainer.state()
    assert set(sample["state"]) == set(state) - {"model", "optimizer"} | {"weights_sha256"}
    assert set(sample["state"]["scheduler"]) == set(state["scheduler"])
    assert set(sample["state"]["random"]) == set(state["random"])
    assert list(sample["history"][0]) == list(state["history"][0])
    groups = state["optimizer"]["param_groups"]
    assert len(groups) == len(sample["optimizer"]["param_groups"])
    assert set(groups[0]) - {"params"} == set(sample["optimizer"]["param_groups"][0])


def test_old_checkpoint_of_another_run_is_still_rejected(tmp_path: Path) -> None:
    sample = read_sample("unfinished-seed/checkpoint.json")["made_by"]
    torch.save({"made_by": sample, "state": {}}, tmp_path / "a.pt")
    today = current_fingerprint(sample)
    assert read_checkpoint(tmp_path / "a.pt", today) == {}
    with pytest.raises(CheckpointError, match="seed was 42, is 7"):
        read_checkpoint(tmp_path / "a.pt", today | {"seed": 7})
    assert OLD_RECIPES["seed"] == today["recipe.name"]
