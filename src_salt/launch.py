"""Distributed training of one experiment: torchrun starts a process for each GPU.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m src_salt.launch JOB

`train_distributed` writes the job file, starts this command and reads the outcome. Each process
reads the competition's data itself and trains on its shard of every batch (see
`device.DistributedContext`). The main process writes weights and checkpoint; its events appear in
the output of the process that called `train_distributed`.

If a process is killed, raises an unexpected error or hangs, torchrun ends the others, and
`train_distributed` raises ProcessesDied. The checkpoint of the last epoch is then still there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import distributed

from src_salt.budget import Budget
from src_salt.config import Experiment, SaltError, Settings
from src_salt.data import DataError, load_labelled, split
from src_salt.device import DistributedContext
from src_salt.outputs import Outputs, read_json, write_json
from src_salt.train import Epoch, Outcome, OutOfMemory, TrainingError, WorkerDied, train_experiment

ERRORS = {error.__name__: error for error in (TrainingError, OutOfMemory, WorkerDied)}

HANG_SECONDS = 300.0
"""A process that does not communicate for so long is taken for hanging. A step takes seconds."""


class ProcessesDied(SaltError):
    """The processes of one experiment ended without an outcome."""


@dataclass
class _SavedBudget(Budget):
    """A budget that writes its pace to a file, where it survives this process."""

    pace_file: Path = Path()

    def record(self, epoch_seconds: float, image_seconds: float) -> None:
        super().record(epoch_seconds, image_seconds)
        with suppress(OSError):  # a full disk must not end the training
            write_json(self.pace_file, [epoch_seconds, image_seconds])


def train_distributed(
    experiment: Experiment,
    settings: Settings,
    outputs: Outputs,
    fingerprint: Mapping[str, Any],
    budget: Budget,
    accumulation_steps: int,
) -> Outcome:
    """Do what `train_experiment` does with `settings.processes` processes.

    Raises:
        ProcessesDied: they ended without an outcome; a checkpoint may exist.
        TrainingError, OutOfMemory, WorkerDied: as in `train_experiment`.
    """
    job, outcome, pace = (
        outputs.root / "checkpoints" / f"{experiment.name}_{kind}.json"
        for kind in ("job", "outcome", "pace")
    )
    content = {
        "settings": _plain_values(settings),
        "experiment": [experiment.backbone, experiment.loss, experiment.fold],
        "fingerprint": dict(fingerprint),
        "budget": asdict(budget),
        "accumulation_steps": accumulation_steps,
        "hang_seconds": HANG_SECONDS,
        "outcome": str(outcome),
        "pace": str(pace),
    }
    try:
        for file in (outcome, pace):  # of a run that was killed
            file.unlink(missing_ok=True)
        try:
            write_json(job, content)
            running = _start_torchrun(settings.processes, job)
        except OSError as error:
            raise ProcessesDied(f"torchrun cannot be started: {error}.") from error
        status = _print_output(running)
        if not outcome.exists():
            raise ProcessesDied(
                f"torchrun ended with status {status} and wrote no outcome; its output above "
                "shows the reason."
            )
        return _parse_outcome(read_json(outcome))
    finally:
        if pace.exists():
            budget.record(*read_json(pace))
        for file in (job, outcome, pace):
            file.unlink(missing_ok=True)


def _start_torchrun(processes: int, job: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "src_salt.launch", str(job)]
    package = Path(__file__).parent.parent
    environment = {
        # torchrun's default of one thread per process leaves cores idle without a GPU.
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _print_output(running: subprocess.Popen[str]) -> int:
    """Print a process's output until it ends, and return its exit status.

    This process prints it, since a notebook shows only what Python prints.
    """
    with running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                print(line, end="", flush=True)
        except BaseException:
            running.terminate()  # torchrun then ends its processes
            running.wait()
            raise
    return running.returncode


def _plain_values(settings: Settings) -> dict[str, Any]:
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items()
    }


def _parse_outcome(content: Mapping[str, Any]) -> Outcome:
    if "error" in content:
        raise ERRORS[content["error"]](content["message"])
    history = tuple(Epoch(**epoch) for epoch in content["history"])
    return Outcome(history, content["ended"])


def _exit_on_sigterm(*_: object) -> None:
    """Exit when torchrun stops the others after a failure; the main process finishes its write."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it more than once
    sys.exit(1)


def main() -> None:
    """Train as one of the processes."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    job = read_json(Path(sys.argv[1]))
    context = DistributedContext.from_torchrun(job["hang_seconds"])
    settings = Settings.from_parameters(job["settings"])
    experiment = Experiment(*job["experiment"])
    labelled = load_labelled(settings.data_dir)
    train, validation = split(labelled, settings, experiment.fold)
    if train.fingerprint() != job["fingerprint"]["train_data"]:
        raise DataError(f"data_dir: the images in {settings.data_dir} have changed.")
    outputs, budget = Outputs(settings.output_dir), Budget(**job["budget"])
    if context.is_main:
        budget = _SavedBudget(**job["budget"], pace_file=Path(job["pace"]))
    try:
        outcome = train_experiment(
            experiment,
            settings,
            train,
            validation,
            outputs,
            fingerprint=job["fingerprint"],
            budget=budget,
            accumulation_steps=job["accumulation_steps"],
            context=context,
        )
    except tuple(ERRORS.values()) as error:
        # Any process may write this. Either all of them fail, or torchrun ends the others.
        content = {"error": type(error).__name__, "message": str(error)}
        write_json(Path(job["outcome"]), content)
        raise SystemExit(1) from error
    if context.is_main:
        write_json(
            Path(job["outcome"]),
            {
                "history": [asdict(epoch) for epoch in outcome.history],
                "ended": outcome.ended,
            },
        )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
