"""One experiment by several processes, started by torchrun: one for each GPU.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m src_salt.launch JOB

`launched` writes the job, starts the command above and reads the outcome. Each process reads the
competition anew and trains its share of every batch (see `device.Team`); the first of them writes
weights and checkpoint, and its lines appear in this process's output.
"""

from __future__ import annotations

import json
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
from src_salt.device import Team
from src_salt.outputs import Outputs, write_json
from src_salt.train import Epoch, Outcome, OutOfMemory, TrainingError, WorkerDied, train_experiment

FAULTS = {fault.__name__: fault for fault in (TrainingError, OutOfMemory, WorkerDied)}


def launched(
    experiment: Experiment,
    settings: Settings,
    outputs: Outputs,
    made_by: Mapping[str, Any],
    budget: Budget,
    parts: int,
) -> Outcome:
    """What `train_experiment` does, by `settings.processes` processes; it raises the same."""
    job = outputs.root / "checkpoints" / f"{experiment.name}_job.json"
    answer = job.with_name(f"{experiment.name}_outcome.json")
    answer.unlink(missing_ok=True)
    write_json(
        job,
        {
            "settings": _plain(settings),
            "experiment": [experiment.backbone, experiment.loss, experiment.fold],
            "made_by": dict(made_by),
            "budget": asdict(budget),
            "parts": parts,
            "answer": str(answer),
        },
    )
    try:
        status = _torchrun(settings.processes, job)
        if not answer.exists():
            raise TrainingError(
                f"{experiment.name}: torchrun ended with status {status} and without an outcome; "
                "its own lines say why. With processes = 1 it is not needed."
            )
        return _outcome(json.loads(answer.read_text(encoding="utf-8")), budget)
    finally:
        job.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)


def _torchrun(processes: int, job: Path) -> int:
    """Run it, and pass on what it prints as it comes: a notebook shows what Python prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "src_salt.launch", str(job)]
    package = Path(__file__).parent.parent
    environment = {
        # torchrun's own default of one thread each leaves cores idle where there is no GPU.
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
            running.terminate()  # torchrun then ends its own
            running.wait()
            raise
    return running.returncode


def _plain(settings: Settings) -> dict[str, Any]:
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items()
    }


def _outcome(answer: Mapping[str, Any], budget: Budget) -> Outcome:
    if "fault" in answer:
        raise FAULTS[answer["fault"]](answer["message"])
    budget.epoch_seconds, budget.image_seconds = answer["pace"]
    history = tuple(Epoch(**epoch) for epoch in answer["history"])
    return Outcome(history, answer["ended"])


def _leave(*_: object) -> None:
    """What torchrun asks of the others when one fails: the leader first finishes its writing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it asks more than once
    sys.exit(1)


def main() -> None:
    """One of the processes."""
    signal.signal(signal.SIGTERM, _leave)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    team = Team.joined()
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
            made_by=job["made_by"],
            budget=budget,
            parts=job["parts"],
            team=team,
        )
    except tuple(FAULTS.values()) as fault:
        # The whole team meets it, or torchrun ends those who wait for the one that did.
        write_json(Path(job["answer"]), {"fault": type(fault).__name__, "message": str(fault)})
        raise SystemExit(1) from fault
    if team.leads:
        write_json(
            Path(job["answer"]),
            {
                "history": [asdict(epoch) for epoch in outcome.history],
                "ended": outcome.ended,
                "pace": [budget.epoch_seconds, budget.image_seconds],
            },
        )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
