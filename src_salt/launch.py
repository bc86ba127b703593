"""Distributed training of one experiment: torchrun starts a process for each GPU.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m src_salt.launch JOB

`train_distributed` writes the job file, starts this command and reads the outcome. Each process
reads the competition's data itself and trains on its shard of every batch (see
`device.DistributedContext`). The main process writes weights and checkpoint; its events appear in
the output of the process that called `train_distributed`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import distributed

from src_salt.budget import Budget
from src_salt.config import Experiment, Settings
from src_salt.data import load_labelled, split
from src_salt.device import DistributedContext
from src_salt.outputs import Outputs, read_json, write_json
from src_salt.train import Epoch, Outcome, OutOfMemory, TrainingError, WorkerDied, train_experiment

ERRORS = {error.__name__: error for error in (TrainingError, OutOfMemory, WorkerDied)}


def train_distributed(
    experiment: Experiment,
    settings: Settings,
    outputs: Outputs,
    fingerprint: Mapping[str, Any],
    budget: Budget,
    accumulation_steps: int,
) -> Outcome:
    """Do what `train_experiment` does with `settings.processes` processes; same exceptions."""
    job = outputs.root / "checkpoints" / f"{experiment.name}_job.json"
    outcome = job.with_name(f"{experiment.name}_outcome.json")
    outcome.unlink(missing_ok=True)
    write_json(
        job,
        {
            "settings": _plain_values(settings),
            "experiment": [experiment.backbone, experiment.loss, experiment.fold],
            "fingerprint": dict(fingerprint),
            "budget": asdict(budget),
            "accumulation_steps": accumulation_steps,
            "outcome": str(outcome),
        },
    )
    try:
        status = _run_torchrun(settings.processes, job)
        if not outcome.exists():
            raise TrainingError(
                f"{experiment.name}: torchrun ended with status {status} and wrote no outcome. "
                "Its output above shows the reason. processes = 1 works without torchrun."
            )
        return _parse_outcome(read_json(outcome), budget)
    finally:
        job.unlink(missing_ok=True)
        outcome.unlink(missing_ok=True)


def _run_torchrun(processes: int, job: Path) -> int:
    """Run torchrun and return its exit status.

    Its output is printed by this process, since a notebook shows only what Python prints.
    """
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
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as running:
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


def _parse_outcome(content: Mapping[str, Any], budget: Budget) -> Outcome:
    if "error" in content:
        raise ERRORS[content["error"]](content["message"])
    budget.epoch_seconds, budget.image_seconds = content["pace"]
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
    context = DistributedContext.from_torchrun()
    settings = Settings.from_parameters(job["settings"])
    experiment = Experiment(*job["experiment"])
    labelled = load_labelled(settings.data_dir)
    train, validation = split(labelled, settings, experiment.fold)
    outputs, budget = Outputs(settings.output_dir), Budget(**job["budget"])
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
                "pace": [budget.epoch_seconds, budget.image_seconds],
            },
        )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
