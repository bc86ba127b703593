"""Training of one experiment elsewhere: alone on one GPU, or by several processes.

    python -m src_salt.launch JOB
    python -m torch.distributed.run --standalone --nproc-per-node 2 -m src_salt.launch JOB

`train_elsewhere` writes the job file, starts one of these commands and reads the outcome. Each
process reads the competition's data itself. The processes of torchrun train on their shards of
every batch (see `device.DistributedContext`), and the main one writes weights and checkpoint. Their
events appear in the output of the process that called `train_elsewhere`.

If a process is killed, raises an unexpected error or hangs, torchrun ends the others, and
`train_elsewhere` raises ProcessesDied. The last checkpoint that was written is then still there.
If the calling process dies, the processes that it started end too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from src_salt.budget import Budget
from src_salt.config import Experiment, SaltError, Settings
from src_salt.data import DataError, load_labelled, split
from src_salt.device import SINGLE_PROCESS, DistributedContext
from src_salt.outputs import Outputs, read_json, write_json
from src_salt.train import Epoch, Outcome, OutOfMemory, TrainingError, WorkerDied, train_experiment

ERRORS = {error.__name__: error for error in (TrainingError, OutOfMemory, WorkerDied)}

HANG_SECONDS = 300.0
"""A process that does not communicate for so long is taken for hanging. A step takes seconds."""


STARTER_SECONDS = 1.0  # between two looks whether the process that started this one still lives

_running: set[subprocess.Popen[str]] = set()


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


def train_elsewhere(
    experiment: Experiment,
    settings: Settings,
    outputs: Outputs,
    fingerprint: Mapping[str, Any],
    budget: Budget,
    accumulation_steps: int,
    gpu: int | None = None,
) -> Outcome:
    """Do what `train_experiment` does in `settings.processes` processes.

    A single process sees only the GPU number `gpu` of those that this process sees. Its output,
    apart from events, is marked with the experiment's name.

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
        "starter": os.getpid(),
        "outcome": str(outcome),
        "pace": str(pace),
    }
    try:
        for file in (outcome, pace):  # of a run that was killed
            file.unlink(missing_ok=True)
        try:
            write_json(job, content)
            running = _start(settings.processes, job, gpu)
        except OSError as error:
            raise ProcessesDied(f"it cannot be started: {error}.") from error
        mark = "" if settings.processes > 1 else f"[{experiment.name}] "
        status = _print_output(running, mark)
        if not outcome.exists():
            raise ProcessesDied(
                f"{'torchrun' if settings.processes > 1 else 'it'} ended with status {status} and "
                "wrote no outcome; its output above shows the reason."
            )
        return _parse_outcome(read_json(outcome))
    finally:
        if pace.exists():
            budget.record(*read_json(pace))
        for file in (job, outcome, pace):
            file.unlink(missing_ok=True)


def stop_processes() -> None:
    """End all processes that train for this one; `train_elsewhere` then raises ProcessesDied."""
    for running in list(_running):
        running.terminate()  # torchrun then ends its own processes


def _start(processes: int, job: Path, gpu: int | None) -> subprocess.Popen[str]:
    environment = dict(os.environ)
    package = str(Path(__file__).parent.parent)
    inherited = filter(None, [environment.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join([package, *inherited])
    command = [sys.executable, "-m", "src_salt.launch", str(job)]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command[2:2] = [*torchrun, "-m"]
        # torchrun's default of one thread per process leaves cores idle without a GPU.
        threads = max(1, (os.cpu_count() or 1) // processes)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    else:
        # As many threads as here: sums in another order would be another training.
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    # These processes and their data workers share the cores. A waiting thread that spins takes
    # them from the others; one that sleeps needs less than a tenth of the time and CPU time.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = _visible_gpus()[gpu]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if processes > 1 else subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES can select each GPU that this process sees."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen:
        return [name.strip() for name in chosen.split(",")]
    return [str(number) for number in range(torch.cuda.device_count())]


def _print_output(running: subprocess.Popen[str], mark: str) -> int:
    """Print a process's output until it ends, and return its exit status.

    This process prints it, since a notebook shows only what Python prints. `mark` comes before
    each line that is not an event.
    """
    with running:
        _running.add(running)
        assert running.stdout is not None
        try:
            for line in running.stdout:
                shown = line if line.startswith('{"event": ') else mark + line
                print(shown, end="", flush=True)
        except BaseException:
            running.terminate()  # torchrun then ends its processes
            running.wait()
            raise
        finally:
            _running.discard(running)
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
    """Exit when torchrun stops the others after a failure; the main process still writes.

    torchrun waits 30 seconds for it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it more than once
    sys.exit(1)


def _end_after(starter: int) -> None:
    """End this process soon after the process `starter`; files are always replaced whole."""

    def look() -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(starter, 0)  # only asks whether it exists
                time.sleep(STARTER_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def main() -> None:
    """Train as one of the processes."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    job = read_json(Path(sys.argv[1]))
    _end_after(job["starter"])
    settings = Settings.from_parameters(job["settings"])
    context = SINGLE_PROCESS
    if settings.processes > 1:
        context = DistributedContext.from_torchrun(job["hang_seconds"])
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
    if settings.processes > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
