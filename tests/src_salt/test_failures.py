"""Failures during a run: non-finite losses, memory, workers and the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src_salt.budget import Budget
from src_salt.config import Experiment, Settings, SettingsError
from src_salt.data import LabelledImages
from src_salt.experiments import run_experiments
from src_salt.main import run
from src_salt.outputs import Outputs
from src_salt.train import (
    Epoch,
    OutOfMemory,
    Trainer,
    TrainingError,
    WorkerDied,
    train_experiment,
)

from .conftest import TINY_OPTIONS, python, read_events, src_salt_command

MakeSettings = Callable[..., Settings]
RESNET34 = Experiment("resnet34", "BCEDice")
NAME = RESNET34.name

tiny = pytest.mark.usefixtures("tiny_networks")


# --- losses -------------------------------------------------------------------------------------


@tiny
def test_non_finite_loss_keeps_the_earlier_epochs(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen, outputs = settings(epochs=4), Outputs(tmp_path)
    first = train_experiment(
        RESNET34, chosen, easy_images, easy_images, outputs, {}, Budget(hours=1e-9)
    )
    kept = outputs.weights(NAME).read_bytes()
    state = torch.load(outputs.checkpoint(NAME), weights_only=True)
    state["state"]["optimizer"]["param_groups"][0]["lr"] = 1e30
    torch.save(state, outputs.checkpoint(NAME))
    outcome = train_experiment(RESNET34, chosen, easy_images, easy_images, outputs, {})
    assert "loss of epoch" in outcome.ended
    assert outcome.history[:1] == first.history
    assert outputs.weights(NAME).read_bytes() == kept


@tiny
def test_run_without_any_result_is_an_error(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(learning_rate=1e30, epochs=5)
    with pytest.raises(TrainingError, match=r"resnet34_BCEDice: the .* resnet34_Lovasz: the "):
        run_experiments(chosen, easy_images, Outputs(tmp_path))
    assert [event["event"] for event in read_events(capsys)] == ["failed", "failed"]


# --- memory -------------------------------------------------------------------------------------


@tiny
def test_out_of_memory_retries_with_smaller_pieces(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The test raises the allocator's error: really using all memory would stop the machine."""
    forward = Trainer._forward

    def limited(self: Trainer, network: Any, images: torch.Tensor, *rest: Any) -> Any:
        if torch.is_grad_enabled() and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return forward(self, network, images, *rest)

    monkeypatch.setattr(Trainer, "_forward", limited)
    chosen = settings(experiments=[NAME], epochs=1)
    run_experiments(chosen, easy_images, Outputs(tmp_path))
    events = read_events(capsys)
    assert [event["event"] for event in events] == ["out_of_memory", "epoch", "experiment"]
    assert events[0]["images_at_once"] == 2
    assert events[0]["message"] == "CUDA out of memory. Tried to allocate 2.00 GiB."

    def always_fail(*_: object) -> Any:
        raise torch.OutOfMemoryError("again")

    monkeypatch.setattr(Trainer, "_forward", always_fail)
    with pytest.raises(TrainingError, match="out of memory even with two images at once"):
        run_experiments(replace(chosen, seed=1), easy_images, Outputs(tmp_path))


@tiny
def test_gradients_of_pieces_add_up_to_the_batch(
    easy_images: LabelledImages, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Lovász and fixed batch statistics, nothing is computed over the whole batch."""
    train = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", lambda self, _mode=True: train(self, False))
    monkeypatch.setattr("src_salt.device.cpu_flags", set)  # bfloat16 rounds each sum differently
    chosen = settings(recipe="fast", batch_size=8, epochs=1)
    found = []
    for steps in (1, 2):
        trainer = Trainer(Experiment("resnet34", "Lovasz"), chosen, easy_images, easy_images, steps)
        trainer._train_pass(trainer.batches)
        found.append(torch.cat([value.flatten() for value in trainer.model.parameters()]))
    assert torch.allclose(*found, atol=1e-5)


@tiny
def test_out_of_memory_in_a_later_epoch_costs_one_epoch(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The write in progress is finished, and training resumes from it."""
    fail_in_epoch(2, OutOfMemory("no memory"), monkeypatch)
    chosen = settings(epochs=2, experiments=NAME, batch_size=8)
    (result,) = run_experiments(chosen, easy_images, Outputs(tmp_path))
    assert len(result.history) == 2
    kinds = [event["event"] for event in read_events(capsys)]
    assert kinds == ["epoch", "out_of_memory", "resume", "epoch", "experiment"]


def fail_in_epoch(number: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error instead of that epoch, but only once."""
    run_epoch, errors = Trainer.run_epoch, [error]

    def failing(trainer: Trainer) -> Epoch:
        if len(trainer.history) == number - 1 and errors:
            raise errors.pop()
        return run_epoch(trainer)

    monkeypatch.setattr(Trainer, "run_epoch", failing)


@pytest.mark.slow
def test_training_reports_when_a_process_reaches_its_memory_limit(competition_dir: Path) -> None:
    """RLIMIT_AS allows less than a step needs. The result is an exception, not a crash."""
    done = python(
        f"""
        import resource, torch
        from src_salt.train import Trainer, OutOfMemory
        from src_salt.config import Settings
        from src_salt.data import load_labelled
        torch.set_num_threads(1)
        settings = Settings.from_parameters(dict(data_dir={str(competition_dir)!r}, output_dir="o",
            experiments="resnet34_BCEDice", recipe="fast", pretrained=False, image_size=256,
            batch_size=16))
        labelled = load_labelled(settings.data_dir)
        trainer = Trainer(settings.planned_experiments[0], settings, labelled, labelled)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), -1))
        try:
            trainer.run_epoch()
        except OutOfMemory as error:
            print("caught:", error)
        """
    )
    assert "caught: " in done.stdout, done.stderr[-2000:]
    assert "can't allocate memory" in done.stdout


@pytest.mark.slow
def test_prediction_uses_smaller_pieces_at_the_memory_limit(tmp_path: Path) -> None:
    program = f"""
        import numpy as np, resource, torch
        from src_salt.config import Settings
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
        # Without memory, oneDNN itself crashes in one of ten runs. That is not tested here.
        if done.returncode != -signal.SIGSEGV:
            break
    assert "equal: True" in done.stdout, done.stderr[-2000:]
    assert '"event": "out_of_memory"' in done.stdout


# --- workers ------------------------------------------------------------------------------------


@tiny
def test_training_continues_without_a_killed_worker(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = settings(experiments=[NAME], epochs=3, num_workers=1)
    before = set(child_processes())
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for process in set(child_processes()) - before:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    run_experiments(chosen, easy_images, Outputs(tmp_path / "killed"))
    killer.join()
    assert [event["event"] for event in read_events(capsys)].count("worker_died") == 1
    run_experiments(replace(chosen, num_workers=0), easy_images, Outputs(tmp_path / "none"))
    weights = [Outputs(tmp_path / name).weights(NAME).read_bytes() for name in ("killed", "none")]
    assert weights[0] == weights[1]


def child_processes() -> list[int]:
    """Child processes of all threads of this process."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


# --- several processes --------------------------------------------------------------------------


@tiny
@pytest.mark.parametrize("program", ["/bin/false", "/bin/nothing", "/bin/sleep"])
def test_run_continues_with_one_process_if_torchrun_cannot_work(
    program: str,
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place of Python, a program that fails, one that does not exist, and one that misuses."""
    monkeypatch.setattr("src_salt.launch.sys.executable", program)
    chosen = settings(processes=2, epochs=1)
    found = run_experiments(chosen, easy_images, Outputs(tmp_path / "two"))
    events = read_events(capsys)
    died = [event["processes"] for event in events if event["event"] == "processes_died"]
    assert died == [2, 1]  # the second experiment does not try again
    assert [event["event"] for event in events][-4:] == ["epoch", "experiment"] * 2
    first, second = found
    assert first.ended == second.ended == ""
    assert second.notes == ()
    assert "Training continued with one process." in first.notes[-1]
    record = json.loads(Outputs(tmp_path / "two").history(NAME).read_text())
    assert tuple(record["notes"]) == first.notes
    assert not [path for path in (tmp_path / "two").rglob("*.json") if "history" not in path.name]
    alone = run_experiments(replace(chosen, processes=1), easy_images, Outputs(tmp_path / "one"))
    assert [one.history for one in alone] == [one.history for one in found]
    # The note stays when the result is reused.
    assert run_experiments(chosen, easy_images, Outputs(tmp_path / "two")) == found


@tiny
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nMore"),
        KeyError("a bug"),
        WorkerDied("DataLoader worker is killed"),  # there are no workers to do without
    ],
)
def test_error_in_a_later_epoch_keeps_the_earlier_epochs_and_experiments(
    error: Exception,
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fail_in_epoch(2, error, monkeypatch)
    outputs = Outputs(tmp_path)
    first, second = run_experiments(settings(epochs=2), easy_images, outputs)
    assert len(first.history) == 1
    assert first.ended.startswith(NAME)
    assert "More" not in first.ended
    assert second.ended == ""
    assert len(second.history) == 2
    assert ("Traceback" in capfd.readouterr().err) == (not isinstance(error, WorkerDied))
    # The next run finishes it from the checkpoint.
    again = run_experiments(settings(epochs=2), easy_images, outputs)
    assert [one.ended for one in again] == ["", ""]
    assert again[0].history[:1] == first.history


@tiny
def test_error_before_the_first_checkpoint_costs_only_its_experiment(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_in_epoch(1, RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), monkeypatch)
    (found,) = run_experiments(settings(epochs=1), easy_images, Outputs(tmp_path))
    assert found.experiment.name == "resnet34_Lovasz"
    assert "CUDNN_STATUS_EXECUTION_FAILED" in read_events(capsys)[0]["message"]


@tiny
def test_failure_without_time_left_does_not_start_again(
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a checkpoint, a new attempt would train a first epoch, whatever time it takes."""
    chosen, budget = settings(epochs=1), Budget(hours=1)
    run_epoch = Trainer.run_epoch

    def failing(trainer: Trainer) -> Epoch:
        if trainer.experiment.loss == "Lovasz":
            budget.started -= 3600
            raise OutOfMemory("full")
        return run_epoch(trainer)

    monkeypatch.setattr(Trainer, "run_epoch", failing)
    (found,) = run_experiments(chosen, easy_images, Outputs(tmp_path), budget)
    assert found.experiment.name == NAME
    assert read_events(capsys)[-1]["message"].endswith("(full) Then there was no time.")


@tiny
def test_earlier_unfinished_result_counts_if_there_is_no_time_to_finish_it(
    easy_images: LabelledImages, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen, no_time = settings(epochs=2, experiments="resnet34_Lovasz"), Budget(hours=1e-9)
    (short,) = run_experiments(chosen, easy_images, Outputs(tmp_path), no_time)
    both = replace(chosen, experiments=(NAME, "resnet34_Lovasz"))
    first, second = run_experiments(both, easy_images, Outputs(tmp_path), Budget(hours=1e-9))
    assert first.ended == second.ended == "out of time after epoch 1"
    assert second == short


# --- the disk -----------------------------------------------------------------------------------


def test_unwritable_folder_is_rejected_before_training(competition_dir: Path) -> None:
    with pytest.raises(SettingsError, match="output_dir: /proc cannot be created or written"):
        run(competition_dir, "/proc")


@tiny
@pytest.mark.parametrize("other", [TrainingError("not finite"), OutOfMemory("no memory")])
def test_disk_error_is_reported_although_the_next_epoch_fails_too(
    other: Exception,
    easy_images: LabelledImages,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights of epoch 1 cannot be written, and epoch 2 fails during that write."""
    fail_in_epoch(2, other, monkeypatch)
    outputs = Outputs(tmp_path)
    outputs.weights(NAME).mkdir(parents=True)  # a folder in place of the file
    with pytest.raises(TrainingError) as caught:
        train_experiment(RESNET34, settings(epochs=2), easy_images, easy_images, outputs)
    message = f"{NAME}: the weights of epoch 1 cannot be written (Is a directory)."
    assert str(caught.value) == message + (
        " not finite" if isinstance(other, TrainingError) else ""
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_unwritable_first_weights_are_an_error(
    processes: int, competition_dir: Path, tmp_path: Path
) -> None:
    """The error appears in the second epoch, which trains during the write."""
    Outputs(tmp_path).weights(NAME).mkdir(parents=True)  # a folder in place of the file
    folders = ["--data-dir", competition_dir, "--output-dir", tmp_path]
    done = subprocess.run(
        src_salt_command(
            *folders, *TINY_OPTIONS, "--experiments", NAME, "--processes", str(processes)
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr[-2000:]
    message = f"{NAME}: the weights of epoch 1 cannot be written (Is a directory)."
    assert message in done.stderr
    assert message in done.stdout  # the event
    assert '"epoch": 1' in done.stdout
    assert '"epoch": 2' not in done.stdout


@pytest.mark.slow
def test_full_disk_costs_the_checkpoint_but_not_the_results(
    competition_dir: Path, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE rejects large files, as a full disk does.

    The weights of ResNet-34 take 98 MB, a checkpoint three times as much.
    """
    done = python(
        f"""
        import resource, signal, torch
        from src_salt.__main__ import main
        torch.set_num_threads(1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({150 << 20}, -1))
        raise SystemExit(main(["--data-dir", {str(competition_dir)!r}, "--output-dir",
            {str(tmp_path)!r}, "--experiments", {NAME!r}, "--epochs", "1",
            "--batch-size", "4", "--image-size", "32", "--no-pretrained", "--num-workers", "0"]))
        """
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["start", "epoch", "warning", "experiment", "done"]
    assert "no checkpoint of epoch 1" in events[2]["message"]
    assert (tmp_path / "submission.csv").exists()


IMPROVING_EPOCHS = """
import os, resource, signal, subprocess, sys, torch
from dataclasses import replace
from pathlib import Path
from src_salt.config import Settings
from src_salt.data import load_labelled, split
from src_salt.outputs import Outputs
from src_salt.train import Checkpointer, Trainer, train_experiment
torch.set_num_threads(1)
data, out, epochs = sys.argv[1:]
settings = Settings.from_parameters(dict(data_dir=data, output_dir=out,
    experiments="resnet34_BCEDice", recipe="fast", epochs=int(epochs),
    batch_size=4, image_size=32, pretrained=False, checkpoint_seconds=0))
run_epoch = Trainer.run_epoch
def improving(trainer):
    epoch = replace(run_epoch(trainer), val_iou=0.1 * (1 + len(trainer.history)))
    trainer.history[-1] = epoch
    return epoch
Trainer.run_epoch = improving
def train():
    outputs = Outputs(settings.output_dir)
    parts = split(load_labelled(settings.data_dir), settings)
    outcome = train_experiment(settings.planned_experiments[0], settings, *parts, outputs, {})
    print(len(outcome.history), outcome.ended)
"""
"""A program in which every epoch is better than the previous one."""


@pytest.mark.slow
def test_failed_write_keeps_the_previous_weights(competition_dir: Path, tmp_path: Path) -> None:
    """Weights and checkpoint of epoch 2 cannot be written; the next run trains that epoch again."""
    program = f"""{IMPROVING_EPOCHS}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = Checkpointer.save
def save_with_limit(checkpointer, trainer):
    if len(trainer.history) == 2:
        checkpointer.wait(trainer)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50 << 20, -1))
    save(checkpointer, trainer)
Checkpointer.save = save_with_limit
train()
"""
    done = python(program, str(competition_dir), str(tmp_path), "3")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"1 {NAME}: the weights of epoch 2 cannot be written"), done.stderr
    weights = torch.load(Outputs(tmp_path).weights(NAME), weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    done = python(f"{IMPROVING_EPOCHS}\ntrain()", str(competition_dir), str(tmp_path), "3")
    assert '"epochs_done": 1' in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "3 "


@pytest.mark.slow
def test_checkpoint_is_deleted_on_a_full_disk_to_write_better_weights(
    competition_dir: Path, tmp_path: Path
) -> None:
    """A disk of 450 MB has room for weights and checkpoint, 392 MB, but not for two of either."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=450m", "none", str(tmp_path)]
    program = f"""{IMPROVING_EPOCHS}
subprocess.run({mount}, check=True)
train()
weights = Outputs(Path(out)).weights({NAME!r})
print(sorted(path.name for path in weights.parent.iterdir()), weights.stat().st_size >> 20)
"""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, *mount], check=False).returncode:
        pytest.skip("this machine does not allow a private mount")
    done = python(program, str(competition_dir), str(tmp_path), "2", prefix=namespace)
    *lines, outcome, left = done.stdout.splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert kinds == ["epoch", "epoch", "warning"], done.stderr
    assert outcome == "2 "
    assert left == f"['best_model_{NAME}.pth'] 93"
