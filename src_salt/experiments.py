"""The experiments of a run: train or reuse each one, and select the best.

With several GPUs, each one trains another experiment. The processes that train write weights and
checkpoints; this process writes everything else.
"""

from __future__ import annotations

import queue
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from src_salt import __version__
from src_salt.budget import Budget
from src_salt.checkpoint import changed_modules, current_fingerprint, describe_changes
from src_salt.config import (
    Experiment,
    SaltError,
    Settings,
    current_experiment_name,
    first_line,
)
from src_salt.data import LabelledImages, split
from src_salt.device import release_memory
from src_salt.launch import ProcessesDied, stop_processes, train_elsewhere
from src_salt.model import load_encoder_weights
from src_salt.outputs import (
    DISK_FULL,
    Outputs,
    emit,
    read_json,
    sha256,
    sha256_of_file,
    write_json,
)
from src_salt.train import (
    OUT_OF_TIME,
    Epoch,
    Outcome,
    OutOfMemory,
    TrainingError,
    WorkerDied,
    best_epoch,
    saved_outcome,
    train_experiment,
)
from src_salt.weights import weights_fingerprint

STOP_SECONDS = 1.0  # between two requests to end the processes of a run that ends

TRAINING_CODE = (
    *("checkpoint", "data", "device", "losses", "metrics"),
    *("model", "muon", "train", "transforms", "weights"),
)
"""Modules that affect a result."""


@dataclass(frozen=True)
class Result:
    """An experiment, or one fold of it, with weights to predict with."""

    experiment: Experiment
    history: tuple[Epoch, ...]
    selected_by: str = "val_iou"
    """The field of `Epoch` whose highest value chooses the best epoch."""

    ended: str = ""
    """Why training stopped before the last epoch; empty if it is complete."""

    notes: tuple[str, ...] = ()
    """What happened on the way, such as a killed process."""

    @property
    def best(self) -> Epoch:
        """The epoch whose weights are kept."""
        return best_epoch(self.history, self.selected_by)

    @property
    def value(self) -> float:
        """The value of the best epoch that experiments are compared by."""
        return float(getattr(self.best, self.selected_by))


def run_experiments(
    settings: Settings, labelled: LabelledImages, outputs: Outputs, budget: Budget | None = None
) -> list[Result]:
    """Train every planned experiment, or reuse its complete result of an earlier run.

    They are trained in order, or several at the same time (see `experiments_at_once`); the results
    are in the order of the plan either way. Experiments for which there is no time are skipped. One
    that fails after its first epoch is kept with the epochs it has. `Result.notes` say what else
    happened.

    Raises:
        TrainingError: no experiment has a result.
    """
    runner = _Runner(settings, labelled, outputs, budget or Budget())
    at_once = experiments_at_once(settings)
    if at_once > 1:
        emit("parallel", experiments_at_once=at_once, gpus=torch.cuda.device_count())
        runner.run_at_once(at_once)
    else:
        for experiment in settings.planned_experiments:
            runner.run(experiment)
    if runner.skipped:
        emit("out_of_time", experiments=runner.skipped)
    cut_short = [
        result.experiment.name for result in runner.results if result.ended.startswith(OUT_OF_TIME)
    ]
    if unfinished := [*cut_short, *runner.skipped]:
        emit("incomplete", experiments=unfinished)  # another run can resume from this one
    if not runner.results:
        raise TrainingError(" ".join(runner.errors))
    plan = settings.planned_experiments
    return sorted(runner.results, key=lambda result: plan.index(result.experiment))


def experiments_at_once(settings: Settings) -> int:
    """How many experiments or folds are trained at the same time, each in its own process.

    With several GPUs and several experiments, one on each GPU, unless the settings say otherwise.
    """
    count = settings.processes
    if settings.parallel == "batches" or (settings.parallel is None and count > 1):
        return 1
    if count == 1:
        count = torch.cuda.device_count()
    return max(1, min(count, len(settings.planned_experiments)))


def select_best(results: Sequence[Result]) -> list[Result]:
    """Return all folds of the experiment with the highest validation value; the first of equals.

    Folds that stopped early are left out if the experiment has complete ones, since they would
    lower the mean.
    """
    groups = [
        [result for result in group if not result.ended] or group for group in group_folds(results)
    ]
    # The number of folds comes first: one lucky fold must not win against five.
    return max(groups, key=lambda group: (len(group), fmean(result.value for result in group)))


def group_folds(results: Sequence[Result]) -> list[list[Result]]:
    """Group results by experiment, in the order of the run."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.experiment.base_name, []).append(result)
    return list(groups.values())


class _Runner:
    """Trains the experiments of a run, and continues after failures."""

    def __init__(
        self, settings: Settings, labelled: LabelledImages, outputs: Outputs, budget: Budget
    ) -> None:
        self.settings, self.labelled = settings, labelled
        self.outputs, self.budget = outputs, budget
        self.results: list[Result] = []
        self.errors: list[str] = []
        self.skipped: list[str] = []
        self.own_process = False
        """Whether each experiment is trained in a process of its own."""

        self.stopping = False
        """Whether the run ends, so that nothing is tried again."""

    def run_at_once(self, count: int) -> None:
        """Run all planned experiments, `count` at the same time, each on its own GPU."""
        self.own_process = True
        self.settings = replace(self.settings, processes=1, parallel="batches")
        gpus = torch.cuda.device_count()
        places: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for number in range(count):
            places.put(number % gpus if gpus else None)

        def run(experiment: Experiment) -> None:
            place = places.get()
            try:
                if not self.stopping:
                    self.run(experiment, place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(count) as pool:
            waiting = {pool.submit(run, one) for one in self.settings.planned_experiments}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for ended in done:
                        ended.result()
            except BaseException:  # also an interrupt: do not wait for the others' last epochs
                self.stopping = True
                while waiting:
                    stop_processes()  # also one that a thread was just starting
                    _, waiting = wait(waiting, timeout=STOP_SECONDS)
                raise

    def run(self, experiment: Experiment, gpu: int | None = None) -> None:
        """Add the result of an experiment, why it failed, or that there is no time for it.

        Raises:
            SaltError, OSError: the cause is not the training, and there is no other result.
            BrokenPipeError: nobody reads the output any more.
        """
        may_train = not self.results or self.budget.allows_epoch()
        try:
            result = self.train_or_reuse(experiment, may_train, gpu)
        except (SaltError, OSError) as error:
            if self.stopping:
                return
            # If the disk is full or the weights are gone, other results are still valid.
            alone = not self.results and not isinstance(error, TrainingError)
            if alone or isinstance(error, BrokenPipeError):
                raise
            self.errors.append(str(error))
            emit("failed", experiment=experiment.name, message=str(error))
            return
        if result is None:
            self.skipped.append(experiment.name)
        else:
            self.results.append(result)

    def train_or_reuse(
        self, experiment: Experiment, may_train: bool, gpu: int | None = None
    ) -> Result | None:
        """Return None if there is neither an earlier result nor time to train."""
        started = time.monotonic()
        data = split(self.labelled, self.settings, experiment.fold)
        fingerprint = _fingerprint(experiment, self.settings, *data)
        result, reason = _load_earlier(experiment, fingerprint, self.outputs)
        reused = result is not None and not (result.ended and may_train)
        if result is None or not reused:
            if not may_train:
                return None
            if reason:
                emit("retrain", experiment=experiment.name, reason=reason)
            # Before the weights are overwritten: an old record must not describe new weights.
            self.outputs.history(experiment.name).unlink(missing_ok=True)
            notes = [] if result is None else list(result.notes)
            outcome = self._train(experiment, data, fingerprint, notes, gpu)
            select_by = self.settings.resolved_recipe.select_by
            result = Result(experiment, outcome.history, select_by, outcome.ended, tuple(notes))
            _write_record(result, fingerprint, self.outputs)
        emit(
            "experiment",
            experiment=experiment.name,
            best_val_iou=result.best.val_iou,
            best_val_score=result.best.val_score,
            best_epoch=result.best.epoch,
            seconds=round(time.monotonic() - started, 2),
            skipped=reused,
            ended=result.ended,
        )
        return result

    def _train(
        self,
        experiment: Experiment,
        data: tuple[LabelledImages, LabelledImages],
        fingerprint: dict[str, Any],
        notes: list[str],
        gpu: int | None,
    ) -> Outcome:
        """Train, and continue from the last checkpoint after a failure; add to `notes` what failed.

        If training cannot continue, the outcome is what the last checkpoint has reached.

        Raises:
            TrainingError: there is no such checkpoint.
        """
        attempt = _Attempt(experiment, self.settings, gpu)
        try:
            while True:
                try:
                    return self._try(attempt, data, fingerprint)
                except (OutOfMemory, WorkerDied, ProcessesDied) as error:
                    if self.stopping:
                        raise TrainingError(f"{experiment.name}: the run was stopped.") from error
                    notes.append(attempt.reduce(error))
                if attempt.settings.processes < self.settings.processes:
                    self.budget.epoch_seconds *= self.settings.processes
                    # For the rest of the run: the cause may remain, and a hang takes minutes.
                    self.settings = replace(self.settings, processes=1)
                release_memory()
                self.outputs.remove_temporary()  # a killed process may leave a large one
                if self.results and not self.budget.allows_epoch():
                    raise TrainingError(f"{experiment.name}: {notes[-1]} Then there was no time.")
        except TrainingError as error:
            reached = saved_outcome(
                experiment, self.settings, self.outputs, fingerprint, ended=str(error)
            )
            if reached is None:
                raise
            return reached

    def _try(
        self,
        attempt: _Attempt,
        data: tuple[LabelledImages, LabelledImages],
        fingerprint: dict[str, Any],
    ) -> Outcome:
        """Train with what is left to the attempt. An unexpected error becomes a TrainingError."""
        experiment, settings, (train, validation) = attempt.experiment, attempt.settings, data
        shared = (self.outputs, fingerprint, self.budget, attempt.accumulation_steps)
        try:
            if self.own_process or settings.processes > 1:
                return train_elsewhere(experiment, settings, *shared, attempt.gpu)
            return train_experiment(experiment, settings, train, validation, *shared)
        except (SaltError, OSError):
            raise
        except Exception as error:  # such as an error of CUDA: the other results are still good
            traceback.print_exc()
            message = f"{experiment.name}: {type(error).__name__}: {first_line(error)}"
            raise TrainingError(message) from error


@dataclass
class _Attempt:
    """What one experiment is trained with. Each failure takes something away."""

    experiment: Experiment
    settings: Settings
    gpu: int | None = None
    accumulation_steps: int = 1
    deaths: int = 0
    """How often the processes have died."""

    def reduce(self, error: OutOfMemory | WorkerDied | ProcessesDied) -> str:
        """Choose how to continue, report it, and return it as a note for the results.

        Raises:
            TrainingError: there is nothing left to take away.
        """
        if isinstance(error, OutOfMemory):
            return self._use_smaller_pieces(error)
        if isinstance(error, WorkerDied):
            return self._use_no_workers(error)
        self.deaths += 1
        if self.deaths > 1 and self.settings.processes == 1:
            message = f"{self.experiment.name}: its process ended twice ({error})"
            raise TrainingError(message) from error
        if self.deaths > 1:
            self.settings = replace(self.settings, processes=1)
        count = self.settings.processes
        self._report("processes_died", error, processes=count)
        continued = f"{count} processes" if count > 1 else "one process"
        return f"A training process ended. Training continued with {continued}. ({error})"

    def _use_smaller_pieces(self, error: OutOfMemory) -> str:
        self.accumulation_steps *= 2
        at_once = self.settings.batch_size // self.accumulation_steps
        # Batch normalization may not be able to compute a variance from a single image.
        if at_once // self.settings.processes < 2:
            raise TrainingError(
                f"{self.experiment.name}: out of memory even with two images at once ({error}). "
                "A smaller image_size or backbone needs less memory."
            ) from error
        self._report(
            "out_of_memory", error, images_at_once=at_once, accumulated=self.accumulation_steps
        )
        return f"Out of memory. Training continued with {at_once} images at once. ({error})"

    def _use_no_workers(self, error: WorkerDied) -> str:
        if self.settings.num_workers == 0:
            raise TrainingError(f"{self.experiment.name}: {error}") from error
        self.settings = replace(self.settings, num_workers=0)  # the batches stay the same
        self._report("worker_died", error, num_workers=0)
        return f"A data worker died. Training continued without workers. ({error})"

    def _report(self, event: str, error: SaltError, **values: int) -> None:
        emit(event, experiment=self.experiment.name, message=str(error), **values)


def _fingerprint(
    experiment: Experiment, settings: Settings, train: LabelledImages, validation: LabelledImages
) -> dict[str, Any]:
    """Return everything that affects a result: settings, content of all files, and the code."""
    package = Path(__file__).parent
    weights = load_encoder_weights(experiment.backbone, settings)
    return settings.fingerprint_fields() | {
        "experiment": experiment.name,
        "encoder_weights": None if weights is None else weights_fingerprint(weights),
        "train_data": train.fingerprint(),
        "val_data": validation.fingerprint(),
        "version": __version__,
        "code": {name: sha256((package / f"{name}.py").read_bytes()) for name in TRAINING_CODE},
    }


def _write_record(result: Result, fingerprint: dict[str, Any], outputs: Outputs) -> None:
    name = result.experiment.name
    record = {
        "experiment": name,
        "selected_by": result.selected_by,
        "best_val_iou": result.best.val_iou,
        "best_val_score": result.best.val_score,
        "best_epoch": result.best.epoch,
        "ended": result.ended,
        "notes": list(result.notes),
        "weights": outputs.weights(name).name,
        "weights_sha256": sha256_of_file(outputs.weights(name)),
        "recipe": fingerprint,
        "history": [asdict(epoch) for epoch in result.history],
    }
    try:
        write_json(outputs.history(name), record)
    except OSError as error:
        if result.ended or error.errno not in DISK_FULL:
            raise
        outputs.checkpoint(name).unlink(missing_ok=True)  # makes room, and is no longer needed
        write_json(outputs.history(name), record)
    if not result.ended:
        outputs.checkpoint(name).unlink(missing_ok=True)


def _load_earlier(
    experiment: Experiment, fingerprint: dict[str, Any], outputs: Outputs
) -> tuple[Result | None, str]:
    """Return the result of an earlier run, and why it must be trained (again).

    The result is None if it cannot be used at all, and the reason is empty if there is none or if
    the result is complete. A record with old names is written again.
    """
    path = outputs.history(experiment.name)
    if not path.exists():
        return None, ""
    try:
        record = read_json(path)
        changes = describe_changes(current_fingerprint(record["recipe"]), fingerprint)
        if changes:
            return None, f"differs from the earlier run: {changes}"
        if current_experiment_name(record["experiment"]) != experiment.name:
            return None, f"the record is of {record['experiment']}"
        if sha256_of_file(outputs.weights(experiment.name)) != record["weights_sha256"]:
            return None, "the weights are not those of the earlier run"
        history = tuple(Epoch(**epoch) for epoch in record["history"])
        notes = tuple(map(str, record.get("notes", ())))  # earlier versions wrote none
        changed = changed_modules(record["recipe"], fingerprint)
        if changed:
            note = f"Trained with another version of the code ({', '.join(changed)})."
            emit("note", message=f"{experiment.name}: {note} Delete {path} to train again.")
            notes = (*notes, note)
        result = Result(experiment, history, record["selected_by"], record["ended"], notes)
        if result.ended:
            return result, f"the earlier run ended early: {result.ended}"
        if record["experiment"] != experiment.name or record["recipe"] != fingerprint:
            _write_record(result, fingerprint, outputs)
        return result, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"the earlier run cannot be used: {error!r}"
