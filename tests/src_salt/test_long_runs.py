"""Runs that are cut, run out of time, memory, disk or workers, or leave the numbers."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src_salt import config
from src_salt.budget import Budget
from src_salt.checkpoint import read_checkpoint
from src_salt.config import Experiment, Settings, SettingsError
from src_salt.data import LabelledImages, load_competition
from src_salt.device import pick_compute
from src_salt.experiments import Result, best_of, run_experiments
from src_salt.main import run
from src_salt.metrics import Cut
from src_salt.outputs import Outputs
from src_salt.predict import load_model, predict_all
from src_salt.submission import encode_all
from src_salt.train import (
    Epoch,
    Keeper,
    OutOfMemory,
    Training,
    TrainingError,
    train_experiment,
)

from .conftest import TINY, Run, finish_run

MakeSettings = Callable[..., Settings]
RESNET34 = Experiment("resnet34", "bcedice")
NAME = RESNET34.name


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- cut and gone on ----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["seed", "fast", "best"])
def test_a_run_that_was_cut_goes_on_bit_for_bit(
    recipe: str,
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(recipe=recipe, epochs=3, learning_rate=1e-3)
    whole, cut = Outputs(tmp_path / "whole"), Outputs(tmp_path / "cut")
    made_by = {"a": 1}
    uncut = train_experiment(RESNET34, chosen, pictures, pictures, whole, made_by)

    def none_left() -> Budget:
        return Budget(hours=1e-9)

    first = train_experiment(RESNET34, chosen, pictures, pictures, cut, made_by, none_left())
    assert first.ended == "out of time after epoch 1"
    assert first.history == uncut.history[:1]
    torch.manual_seed(99)  # another process begins with other states
    second = train_experiment(RESNET34, chosen, pictures, pictures, cut, made_by, none_left())
    assert len(second.history) == 2
    capsys.readouterr()
    last = train_experiment(RESNET34, chosen, pictures, pictures, cut, made_by)
    assert events(capsys)[0] == {"event": "resume", "experiment": NAME, "epochs_done": 2}
    assert last == uncut
    assert cut.weights(NAME).read_bytes() == whole.weights(NAME).read_bytes()


def test_a_checkpoint_of_another_run_or_a_broken_one_is_not_gone_on_from(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen, outputs = settings(epochs=2), Outputs(tmp_path)

    def reason(made_by: dict[str, Any]) -> str:
        little = Budget(hours=1e-9)
        train_experiment(RESNET34, chosen, pictures, pictures, outputs, made_by, little)
        first = events(capsys)[0]
        return str(first["reason"]) if first["event"] == "retrain" else str(first["event"])

    assert reason({"seed": 1}) == "epoch"
    assert reason({"seed": 2}) == "the checkpoint is of another run: seed was 1, is 2"
    path = outputs.checkpoint(NAME)
    path.write_bytes(path.read_bytes()[:-1000])
    assert reason({"seed": 2}).startswith("the checkpoint cannot be read")
    # It holds the best weights itself where the last epoch is the best: they are written again.
    outputs.weights(NAME).unlink()
    assert reason({"seed": 2}) == "resume"
    assert outputs.weights(NAME).exists()


def test_an_epoch_is_written_as_it_was_though_the_next_one_goes_on(
    pictures: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    training = Training(RESNET34, settings(recipe="best", epochs=2), pictures, pictures)
    outputs = Outputs(tmp_path)
    training.one_epoch()
    first = copy.deepcopy(training.state())
    trained = threading.Event()
    with Keeper(outputs, NAME, {}) as keeper:
        keeper.writer.submit(trained.wait, timeout=60)
        keeper.keep(training)
        training.one_epoch()
        unwritten = not outputs.checkpoint(NAME).exists()
        trained.set()
    assert unwritten
    found = read_checkpoint(outputs.checkpoint(NAME), {})
    found.pop("weights_sha256")
    assert_same(found, first)
    assert_same(torch.load(outputs.weights(NAME), weights_only=True), first["model"])


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list):
        for mine, others in zip(found, expected, strict=True):
            assert_same(mine, others)
    else:
        assert found == expected


def test_an_interrupt_leaves_the_last_epoch_written(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_epoch = Training.one_epoch

    def interrupted(training: Training) -> Epoch:
        if training.history:
            raise KeyboardInterrupt
        return one_epoch(training)

    monkeypatch.setattr(Training, "one_epoch", interrupted)
    outputs = Outputs(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_experiment(RESNET34, settings(epochs=2), pictures, pictures, outputs, {})
    assert len(read_checkpoint(outputs.checkpoint(NAME), {})["history"]) == 1
    assert outputs.weights(NAME).exists()


def test_a_run_ends_in_time_and_the_next_one_finishes_it(
    competition_dir: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"epochs": 3, "experiments": "resnet34_bcedice,resnet34_lovasz"}
    short = finish_run(competition_dir, tmp_path / "short", max_hours=1e-6, **changes)
    assert [entry["epochs"] for entry in short.summary["experiments"]] == [1]
    assert short.summary["experiments"][0]["ended"] == "out of time after epoch 1"
    kinds = [event["event"] for event in short.events]
    assert kinds == ["start", "epoch", "estimate", "experiment", "out_of_time", "done"]
    estimate, left = short.events[2], short.events[4]
    assert (estimate["epochs_left"], estimate["epochs_that_fit"]) == (2, 0)
    assert left["experiments"] == ["resnet34_lovasz"]
    for name in ("models.zip", "results.zip"):
        with zipfile.ZipFile(short.folder / name) as archive:
            assert archive.testzip() is None
    assert len((short.folder / "submission.csv").read_text().splitlines()) == 6

    longer = finish_run(
        competition_dir, tmp_path / "longer", resume_dir=str(short.folder), **changes
    )
    kinds = [event["event"] for event in longer.events]
    assert kinds[:4] == ["start", "taken_over", "retrain", "resume"]
    assert "ended early: out of time after epoch 1" in longer.events[2]["reason"]
    assert longer.events[3]["epochs_done"] == 1
    uncut = finish_run(competition_dir, tmp_path / "uncut", **changes)
    for name in ("models.zip", "results.zip", "submission.csv"):
        assert (longer.folder / name).read_bytes() == (uncut.folder / name).read_bytes()
    assert not list((longer.folder / "checkpoints").glob("*"))


def test_what_is_complete_is_shown_though_the_time_is_out(
    finished: Run, competition_dir: Path, tmp_path: Path
) -> None:
    changes = {"experiments": "resnet50_lovasz,resnet34_bcedice", "max_hours": 1e-6}
    run = finish_run(competition_dir, tmp_path, resume_dir=str(finished.folder), **changes)
    entries = {entry["experiment"]: entry["ended"] for entry in run.summary["experiments"]}
    assert entries == {
        "resnet50_lovasz": "out of time after epoch 1",
        "resnet34_bcedice": "",
    }
    assert "out_of_time" not in [event["event"] for event in run.events]


def test_the_folder_itself_can_be_gone_on_from(
    finished: Run, competition_dir: Path, tmp_path: Path
) -> None:
    """As `kernelkit pull` brings it: models.zip alone."""
    (tmp_path / "models.zip").write_bytes((finished.folder / "models.zip").read_bytes())
    run = finish_run(competition_dir, tmp_path, resume_dir=str(tmp_path))
    assert [event.get("skipped") for event in run.events[2:4]] == [True, True]


def test_folds_are_averaged_and_one_that_was_cut_is_not(
    competition_dir: Path, tmp_path: Path
) -> None:
    """The recipe `best` from end to end."""
    experiment = "resnet34_bcedice_symmetric"
    changes = {"recipe": "best", "folds": 2, "epochs": 2, "experiments": experiment}
    whole = finish_run(competition_dir, tmp_path, **changes)
    names = [f"{experiment}_fold{number}" for number in (1, 2)]
    assert [entry["experiment"] for entry in whole.summary["experiments"]] == names
    with zipfile.ZipFile(tmp_path / "models.zip") as archive:
        assert {f"models/best_model_{name}.pth" for name in names} <= set(archive.namelist())
    assert "<dd>2</dd>" in (tmp_path / "results" / "report.html").read_text()

    chosen = Settings.from_parameters(
        {**TINY, "data_dir": competition_dir, "output_dir": tmp_path, **changes}
    )
    outputs, competition = Outputs(tmp_path), load_competition(competition_dir)
    models = [load_model(one, chosen, outputs) for one in chosen.chosen]
    both = predict_all(models, competition.test.images, chosen, "")
    each = [predict_all([model], competition.test.images, chosen, "") for model in models]
    assert np.allclose(both, np.mean(each, axis=0), atol=1e-6)
    assert not np.allclose(*each, atol=1e-3)
    cut = Cut(**whole.summary["cut"])
    rows = (tmp_path / "submission.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == encode_all(cut.masks(both))

    record = json.loads(outputs.history(names[1]).read_text())
    ended = replace(best_of_record(record, chosen.chosen[1]), ended="out of time after epoch 1")
    complete = replace(ended, experiment=chosen.chosen[0], ended="")
    assert best_of([complete, ended]) == [complete]
    assert best_of([ended]) == [ended]


def best_of_record(record: dict[str, Any], experiment: Experiment) -> Result:
    history = tuple(Epoch(**epoch) for epoch in record["history"])
    return Result(experiment, history, record["selected_by"])


def test_a_checkpoint_of_a_device_without_scaling_suits_one_with(
    pictures: LabelledImages, settings: MakeSettings
) -> None:
    training = Training(RESNET34, settings(recipe="fast"), pictures, pictures)
    training.one_epoch()
    state = training.state()
    other = Training(RESNET34, settings(recipe="fast"), pictures, pictures)
    other.scaler = torch.amp.GradScaler("cpu", enabled=True)
    other.restore(state)
    assert other.history == training.history
    assert other.scaler.get_scale() == 65536


def test_what_a_killed_run_was_writing_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    for name in (".a.77.pt", "a.pt", "a_job.json"):
        (tmp_path / "old" / "checkpoints" / name).write_text("")
    assert Outputs(tmp_path / "new").take_over(tmp_path / "old") == ["checkpoints/a.pt"]


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    removed = [
        f".submission.{ended.pid}.csv",
        f"results/.report.{ended.pid}.html",
        f"models/.best_model_a_b.{ended.pid}.pth",
        f"checkpoints/.a_b.{ended.pid}.pt",
    ]
    kept = [
        f".mine.{ended.pid}.csv",
        f"checkpoints/.a_b.{os.getpid()}.pt",
        "checkpoints/.a.b.pt",
        "checkpoints/a_b.pt",
    ]
    for name in (*removed, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Outputs(tmp_path).remove_stale()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept}


def test_a_folder_that_takes_nothing_is_refused_before_training(competition_dir: Path) -> None:
    with pytest.raises(SettingsError, match="output_dir: /proc cannot be made or written"):
        run(competition_dir, "/proc")


def test_weights_that_cannot_be_written_on_going_on_leave_the_checkpoint(
    pictures: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    outputs, little = Outputs(tmp_path), Budget(hours=1e-9)
    first = train_experiment(RESNET34, settings(epochs=2), pictures, pictures, outputs, {}, little)
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match=r"weights of epoch 1 cannot be written \(File exists"):
        train_experiment(RESNET34, settings(epochs=2), pictures, pictures, outputs, {})
    (tmp_path / "models").unlink()
    last = train_experiment(RESNET34, settings(epochs=2), pictures, pictures, outputs, {})
    assert last.history[:1] == first.history


def test_finished_experiments_come_back_from_models_zip(finished: Run, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "models.zip").write_bytes((finished.folder / "models.zip").read_bytes())
    outputs = Outputs(tmp_path / "new")
    taken = outputs.take_over(earlier)
    assert len(taken) == 4
    for name in taken:
        assert (outputs.root / name).read_bytes() == (finished.folder / name).read_bytes()
    assert outputs.take_over(earlier) == []  # nothing that is there is replaced


def test_a_folder_to_go_on_from_must_be_there(competition_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(config.SaltError, match="resume_dir: there is no folder"):
        finish_run(competition_dir, tmp_path, resume_dir=str(tmp_path / "nowhere"))


def test_what_is_left_is_judged_by_the_last_epoch_and_the_closing() -> None:
    budget = Budget(hours=1, closing_images=1000)
    assert budget.allows_an_epoch()  # the first one always
    budget.epoch_seconds, budget.image_seconds = 600.0, 0.5
    # 3600 - 60 - 1.15 * 500 leaves 2965 s; an epoch is taken to need 690.
    assert budget.epochs_left() == 4
    assert budget.allows_an_epoch()
    budget.started -= 2400
    assert not budget.allows_an_epoch()
    assert Budget(None, epoch_seconds=1e9).allows_an_epoch()


# --- what gives out -----------------------------------------------------------------------------


def test_what_was_reached_before_the_numbers_ended_is_kept(
    pictures: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen, outputs = settings(epochs=4), Outputs(tmp_path)
    little = Budget(hours=1e-9)
    first = train_experiment(RESNET34, chosen, pictures, pictures, outputs, {}, little)
    kept = outputs.weights(NAME).read_bytes()
    state = torch.load(outputs.checkpoint(NAME), weights_only=True)
    state["state"]["optimizer"]["param_groups"][0]["lr"] = 1e30
    torch.save(state, outputs.checkpoint(NAME))
    outcome = train_experiment(RESNET34, chosen, pictures, pictures, outputs, {})
    assert "loss of epoch" in outcome.ended
    assert outcome.history[:1] == first.history
    assert outputs.weights(NAME).read_bytes() == kept


def test_nothing_reached_is_an_error_that_says_so(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(learning_rate=1e30, epochs=5)
    with pytest.raises(TrainingError, match=r"resnet34_bcedice: the .* resnet34_lovasz: the "):
        run_experiments(chosen, pictures, Outputs(tmp_path))
    assert [event["event"] for event in events(capsys)] == ["failed", "failed"]


def test_out_of_memory_takes_smaller_pieces(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The allocator's error is raised by hand: really to run out would take the machine along."""
    forward = Training._forward

    def narrow(self: Training, network: Any, images: torch.Tensor, *rest: Any) -> Any:
        if torch.is_grad_enabled() and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return forward(self, network, images, *rest)

    monkeypatch.setattr(Training, "_forward", narrow)
    chosen = settings(experiments=[NAME], epochs=1)
    run_experiments(chosen, pictures, Outputs(tmp_path))
    said = events(capsys)
    assert [event["event"] for event in said] == ["out_of_memory", "epoch", "experiment"]
    assert said[0]["images_at_once"] == 2
    assert said[0]["message"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    monkeypatch.setattr(Training, "_forward", lambda *_: _raise(torch.OutOfMemoryError("again")))
    with pytest.raises(TrainingError, match="out of memory with two images at once"):
        run_experiments(replace(chosen, seed=1), pictures, Outputs(tmp_path))


def _raise(error: Exception) -> None:
    raise error


def test_pieces_add_up_to_the_batch(
    pictures: LabelledImages, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is taken over the batch: with Lovász, and without statistics of the batch."""
    train = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", lambda self, _mode=True: train(self, False))
    monkeypatch.setattr("src_salt.device.cpu_flags", set)  # bfloat16 rounds each sum its own way
    chosen = settings(recipe="fast", batch_size=8, epochs=1)
    found = []
    for parts in (1, 2):
        training = Training(Experiment("resnet34", "lovasz"), chosen, pictures, pictures, parts)
        training._train_pass(training.batches)
        found.append(torch.cat([value.flatten() for value in training.model.parameters()]))
    assert torch.allclose(*found, atol=1e-5)


def test_the_memory_of_a_real_process_runs_out(competition_dir: Path) -> None:
    """RLIMIT_AS leaves a step less than it needs; what comes is one line, not a crash."""
    done = python(
        f"""
        import resource, torch
        from src_salt.train import Training, OutOfMemory
        from src_salt.config import Settings
        from src_salt.data import load_labelled
        from src_salt.device import ALONE
        torch.set_num_threads(1)
        settings = Settings.from_parameters(dict(data_dir={str(competition_dir)!r}, output_dir="o",
            experiments="resnet34_bcedice", recipe="fast", pretrained=False, image_size=256,
            batch_size=16))
        labelled = load_labelled(settings.data_dir)
        training = Training(settings.chosen[0], settings, labelled, labelled)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), -1))
        try:
            training.one_epoch()
        except OutOfMemory as error:
            print("said:", error)
        """
    )
    assert "said: " in done.stdout, done.stderr[-2000:]
    assert "can't allocate memory" in done.stdout


def test_prediction_takes_smaller_pieces_where_memory_runs_out(tmp_path: Path) -> None:
    program = f"""
        import numpy as np, resource, torch
        from src_salt.config import Experiment, Settings, SettingsError
        from src_salt.model import UNet
        from src_salt.predict import predict_all
        torch.set_num_threads(1)
        settings = Settings.from_parameters(dict(data_dir={str(tmp_path)!r}, output_dir="o",
            recipe="fast", image_size=256))
        images = np.random.default_rng(0).integers(0, 256, (32, 101, 101), np.uint8)
        model = UNet("resnet34").to(memory_format=torch.channels_last).eval()
        parts = [predict_all([model], images[n : n + 4], settings, "") for n in range(0, 32, 4)]
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), -1))
        found = predict_all([model], images, settings, "")
        print("equal:", np.allclose(found, np.concatenate(parts), atol=1e-5))
        """
    for _ in range(3):
        done = python(program)
        # Refused memory, oneDNN itself crashes in one of ten runs: that is not what is tested.
        if done.returncode != -signal.SIGSEGV:
            break
    assert "equal: True" in done.stdout, done.stderr[-2000:]
    assert '"event": "out_of_memory"' in done.stdout


def test_a_dead_worker_is_done_without(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(experiments=[NAME], epochs=3, num_workers=1)
    before = set(children())
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for process in set(children()) - before:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    run_experiments(chosen, pictures, Outputs(tmp_path / "helped"))
    killer.join()
    said = [event["event"] for event in events(capsys)]
    assert said.count("worker_died") == 1
    run_experiments(replace(chosen, num_workers=0), pictures, Outputs(tmp_path / "alone"))
    ours, theirs = (Outputs(tmp_path / name).weights(NAME) for name in ("helped", "alone"))
    assert ours.read_bytes() == theirs.read_bytes()


def children() -> list[int]:
    """Processes that this one has started, its threads' too."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def test_a_full_disk_costs_the_checkpoint_first_and_never_what_is_whole(
    competition_dir: Path, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE refuses large files as a full disk does.

    The weights take 98 MB, a checkpoint three times that.
    """
    done = python(
        f"""
        import resource, signal, torch
        from src_salt.__main__ import main
        torch.set_num_threads(1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({150 << 20}, -1))
        raise SystemExit(main(["--data-dir", {str(competition_dir)!r}, "--output-dir",
            {str(tmp_path)!r}, "--experiments", "resnet34_bcedice", "--epochs", "1",
            "--batch-size", "4", "--image-size", "32", "--no-pretrained", "--num-workers", "0"]))
        """
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in said] == ["start", "epoch", "warning", "experiment", "done"]
    assert "no checkpoint of epoch 1" in said[2]["message"]
    assert (tmp_path / "submission.csv").exists()


BETTER_EPOCHS = """
import os, resource, signal, subprocess, sys, torch
from dataclasses import replace
from pathlib import Path
from src_salt.config import Settings
from src_salt.data import load_labelled, split
from src_salt.outputs import Outputs
from src_salt.train import Keeper, Training, train_experiment
torch.set_num_threads(1)
data, out, epochs = sys.argv[1:]
settings = Settings.from_parameters(dict(data_dir=data, output_dir=out,
    experiments="resnet34_bcedice", recipe="fast", epochs=int(epochs),
    batch_size=4, image_size=32, pretrained=False))
epoch = Training.one_epoch
def better(training):
    found = replace(epoch(training), val_iou=0.1 * (1 + len(training.history)))
    training.history[-1] = found
    return found
Training.one_epoch = better
def train():
    outputs = Outputs(settings.output_dir)
    sides = split(load_labelled(settings.data_dir), settings)
    outcome = train_experiment(settings.chosen[0], settings, *sides, outputs, {})
    print(len(outcome.history), outcome.ended)
"""
"""Every epoch is better than the one before."""


def test_weights_that_cannot_be_written_leave_those_before(
    competition_dir: Path, tmp_path: Path
) -> None:
    """Weights and checkpoint of a second epoch are refused, and the next run does them anew."""
    program = f"""{BETTER_EPOCHS}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
keep = Keeper.keep
def keep_within(keeper, training):
    if len(training.history) == 2:
        keeper.settle(training)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50 << 20, -1))
    keep(keeper, training)
Keeper.keep = keep_within
train()
"""
    done = python(program, str(competition_dir), str(tmp_path), "3")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"1 {NAME}: the weights of epoch 2 cannot be written"), done.stderr
    weights = torch.load(Outputs(tmp_path).weights(NAME), weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    done = python(f"{BETTER_EPOCHS}\ntrain()", str(competition_dir), str(tmp_path), "3")
    assert '"epochs_done": 1' in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "3 "


def test_on_a_full_disk_the_checkpoint_makes_room_for_better_weights(
    competition_dir: Path, tmp_path: Path
) -> None:
    """A disk of 450 MB holds weights and checkpoint of an epoch, 392 MB, and neither twice."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=450m", "none", str(tmp_path)]
    program = f"""{BETTER_EPOCHS}
subprocess.run({mount}, check=True)
train()
weights = Outputs(Path(out)).weights("resnet34_bcedice")
print(sorted(path.name for path in weights.parent.iterdir()), weights.stat().st_size >> 20)
"""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, *mount], check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk of their own")
    done = python(program, str(competition_dir), str(tmp_path), "2", before=alone)
    *said, outcome, left = done.stdout.splitlines()
    kinds = [json.loads(line)["event"] for line in said]
    assert kinds == ["epoch", "epoch", "warning"], done.stderr
    assert outcome == "2 "
    assert left == f"['best_model_{NAME}.pth'] 93"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_weights_that_cannot_be_written_are_an_error(
    processes: int, competition_dir: Path, tmp_path: Path
) -> None:
    """Noticed in the second epoch, which was trained meanwhile."""
    Outputs(tmp_path).weights(NAME).mkdir(parents=True)  # where the file should be
    command = [sys.executable, "-m", "src_salt", "--data-dir", str(competition_dir)]
    command += ["--output-dir", str(tmp_path), "--experiments", NAME, "--epochs", "3"]
    command += ["--batch-size", "4", "--image-size", "32", "--no-pretrained", "--num-workers", "0"]
    done = subprocess.run(
        [*command, "--processes", str(processes)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr[-2000:]
    fault = f"{NAME}: the weights of epoch 1 cannot be written (Is a directory)."
    assert fault in done.stderr
    assert fault in done.stdout  # the event
    assert '"epoch": 1' in done.stdout
    assert '"epoch": 2' not in done.stdout


@pytest.mark.parametrize("met", [TrainingError("no number"), OutOfMemory("no room")])
def test_of_two_faults_that_of_the_disk_is_not_lost(
    met: Exception,
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first epoch's weights cannot be written, and the second one fails meanwhile."""
    fail_in_epoch(2, met, monkeypatch)
    Outputs(tmp_path).weights(NAME).mkdir(parents=True)  # where the file should be
    with pytest.raises(TrainingError) as caught:
        train_experiment(RESNET34, settings(epochs=2), pictures, pictures, Outputs(tmp_path))
    fault = f"{NAME}: the weights of epoch 1 cannot be written (Is a directory)."
    assert str(caught.value) == fault + (" no number" if isinstance(met, TrainingError) else "")


def test_memory_that_runs_out_later_costs_one_epoch(
    pictures: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is being written then is finished, and gone on from."""
    fail_in_epoch(2, OutOfMemory("no room"), monkeypatch)
    chosen = settings(epochs=2, experiments=NAME, batch_size=8)
    (result,) = run_experiments(chosen, pictures, Outputs(tmp_path))
    assert len(result.history) == 2
    kinds = [event["event"] for event in events(capsys)]
    assert kinds == ["epoch", "out_of_memory", "resume", "epoch", "experiment"]


def fail_in_epoch(number: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, in place of that epoch."""
    one_epoch, faults = Training.one_epoch, [error]

    def failing(training: Training) -> Epoch:
        if len(training.history) == number - 1 and faults:
            raise faults.pop()
        return one_epoch(training)

    monkeypatch.setattr(Training, "one_epoch", failing)


def python(
    program: str, *arguments: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# --- several processes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "loss"), [("fast", "bcedice"), ("fast", "lovasz"), ("best", "bcedice_symmetric")]
)
def test_two_processes_train_as_one_with_the_same_batch(
    recipe: str, loss: str, competition_dir: Path, tmp_path: Path
) -> None:
    changes = {
        "experiments": f"resnet34_{loss}",
        "recipe": recipe,
        # Muon raises the small parts of a gradient, and their rounding: by the second epoch two
        # sums in another order are two trainings.
        "epochs": 1 if recipe == "best" else 2,
        "limit_train": 10,
        "limit_val": 3,  # the last batch does not divide evenly
    }
    alone = finish_run(competition_dir, tmp_path / "alone", **changes)
    # Other processes' lines come between the events; the record is what counts.
    (tmp_path / "team").mkdir()
    program = f"""
        from src_salt.main import run
        run(data_dir={str(competition_dir)!r}, output_dir={str(tmp_path / "team")!r}, processes=2,
            batch_size=4, image_size=32, pretrained=False, num_workers=0, **{changes!r})
    """
    done = python(program)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [
        json.loads((folder / f"models/resnet34_{loss}_history.json").read_text())["history"]
        for folder in (alone.folder, tmp_path / "team")
    ]
    rounded = recipe == "best" and pick_compute(True).number_format != torch.float32
    within = 3e-2 if rounded else 2e-3
    for one, other in zip(*records, strict=True):
        # Of three images, in steps of a tenth: one pixel may move it by a step.
        assert other.pop("val_score") == pytest.approx(one.pop("val_score"), abs=0.1 / 3 + within)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=within, abs=within), name


def test_a_team_that_loses_a_process_ends_and_the_next_run_goes_on(
    competition_dir: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "src_salt", "--data-dir", str(competition_dir)]
    command += ["--output-dir", str(tmp_path), "--experiments", NAME, "--recipe", "fast"]
    command += ["--epochs", "30", "--batch-size", "4", "--image-size", "32", "--no-pretrained"]
    with subprocess.Popen(
        [*command, "--processes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert any('"event": "epoch"' in line for line in running.stdout)
        os.kill(second_of_the_team(running.pid), signal.SIGKILL)
        _, said = running.communicate(timeout=120)
    assert running.returncode == 2, said
    assert f"{NAME}: torchrun ended with status 1 and without an outcome" in said
    done = len(torch.load(tmp_path / "checkpoints" / f"{NAME}.pt")["state"]["history"])
    assert done >= 1
    # One process is enough to end what two began: what decides the result is the same.
    next_run = python(
        f"""
        from src_salt.config import Settings
        from src_salt.data import load_labelled
        from src_salt.experiments import run_experiments
        from src_salt.outputs import Outputs
        settings = Settings.from_parameters(dict(data_dir={str(competition_dir)!r},
            output_dir={str(tmp_path)!r}, experiments={NAME!r}, recipe="fast", epochs=30,
            batch_size=4, image_size=32, pretrained=False, max_hours=0.001))
        run_experiments(settings, load_labelled(settings.data_dir), Outputs(settings.output_dir))
        """
    )
    assert f'"epochs_done": {done}' in next_run.stdout, next_run.stderr[-2000:]


def second_of_the_team(command: int) -> int:
    """The process of rank 1, by the environment that torchrun gave it."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.stat().st_uid == os.getuid():
            with contextlib.suppress(OSError):
                entries = (folder / "environ").read_bytes().split(b"\0")
                if b"RANK=1" in entries and descends(int(folder.name), command):
                    return int(folder.name)
    raise AssertionError("no process of rank 1")


def descends(process: int, ancestor: int) -> bool:
    while process > 1 and process != ancestor:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == ancestor
