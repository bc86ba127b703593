"""The grid of experiments: run, skip what is done, name the best."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from src_salt import __version__
from src_salt.budget import Budget
from src_salt.checkpoint import changes
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages, split
from src_salt.launch import launched
from src_salt.outputs import Outputs, emit, sha256_of, write_json
from src_salt.train import (
    Epoch,
    Outcome,
    OutOfMemory,
    TrainingError,
    WorkerDied,
    best_epoch,
    train_experiment,
)


@dataclass(frozen=True)
class Result:
    """An experiment, or one fold of it, with weights to predict with."""

    experiment: Experiment
    history: tuple[Epoch, ...]
    selected_by: str = "val_iou"
    """The field of `Epoch` whose highest value names the best one."""

    ended: str = ""
    """Why it ended before its last epoch; empty if it is complete."""

    @property
    def best(self) -> Epoch:
        """The epoch whose weights are kept."""
        return best_epoch(self.history, self.selected_by)

    @property
    def value(self) -> float:
        """What the experiments are compared by, of the best epoch."""
        return float(getattr(self.best, self.selected_by))


def run_experiments(
    settings: Settings, labelled: LabelledImages, outputs: Outputs, budget: Budget | None = None
) -> list[Result]:
    """Every chosen experiment in its order, trained now or found complete from an earlier run.

    Those for which the time does not suffice are left out, and one that breaks down later than in
    its first epoch is taken as far as it came. TrainingError if none came to anything.
    """
    budget = budget or Budget()
    results: list[Result] = []
    faults: list[str] = []
    left_out: list[str] = []
    for experiment in settings.chosen:
        may_train = not results or budget.allows_an_epoch()
        try:
            result = _run_or_skip(experiment, settings, labelled, outputs, budget, may_train)
        except TrainingError as error:
            faults.append(str(error))
            emit("failed", experiment=experiment.name, message=str(error))
            continue
        if result is None:
            left_out.append(experiment.name)
        else:
            results.append(result)
    if left_out:
        emit("out_of_time", experiments=left_out)
    if not results:
        raise TrainingError(" ".join(faults))
    return results


def best_of(results: Sequence[Result]) -> list[Result]:
    """The experiment with the highest validation value, all its folds; the first of several.

    Of its folds those that are complete, where there are any: one that time has cut would spoil
    the mean.
    """
    groups = [
        [result for result in group if not result.ended] or group for group in grouped(results)
    ]
    # Where time ran out, one lucky fold must not win against five.
    return max(groups, key=lambda group: (len(group), fmean(result.value for result in group)))


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """The folds of each experiment together, in the order of the run."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.experiment.grid_name, []).append(result)
    return list(groups.values())


def _run_or_skip(
    experiment: Experiment,
    settings: Settings,
    labelled: LabelledImages,
    outputs: Outputs,
    budget: Budget,
    may_train: bool,
) -> Result | None:
    """None where there is nothing of an earlier run, and no time."""
    started = time.monotonic()
    train, validation = split(labelled, settings, experiment.fold)
    made_by = _made_by(settings, train, validation)
    result, reason = _finished(experiment, made_by, outputs)
    skipped = result is not None
    if result is None:
        if not may_train:
            return None
        if reason:
            emit("retrain", experiment=experiment.name, reason=reason)
        # Gone before the weights are overwritten: an old record must never vouch for new weights.
        outputs.history(experiment.name).unlink(missing_ok=True)
        outcome = _trained(experiment, settings, train, validation, outputs, made_by, budget)
        result = Result(experiment, outcome.history, settings.training.select_by, outcome.ended)
        _record(result, made_by, outputs)
    emit(
        "experiment",
        experiment=experiment.name,
        best_val_iou=result.best.val_iou,
        best_val_score=result.best.val_score,
        best_epoch=result.best.epoch,
        seconds=round(time.monotonic() - started, 2),
        skipped=skipped,
        ended=result.ended,
    )
    return result


def _trained(
    experiment: Experiment,
    settings: Settings,
    train: LabelledImages,
    validation: LabelledImages,
    outputs: Outputs,
    made_by: dict[str, Any],
    budget: Budget,
) -> Outcome:
    """Train, and begin again at the last checkpoint where memory or a worker gives out."""
    parts = 1
    while True:
        try:
            if settings.processes > 1:
                return launched(experiment, settings, outputs, made_by, budget, parts)
            return train_experiment(
                experiment, settings, train, validation, outputs, made_by, budget, parts
            )
        except OutOfMemory as error:
            parts *= 2
            # A piece of one image alone has no variance for batch normalisation to divide by.
            if settings.batch_size // settings.processes < 2 * parts:
                raise TrainingError(
                    f"{experiment.name}: out of memory with two images at once ({error}). "
                    "A smaller image_size or backbone needs less."
                ) from error
            emit(
                "out_of_memory",
                experiment=experiment.name,
                message=str(error),
                images_at_once=settings.batch_size // parts,
                accumulated=parts,
            )
        except WorkerDied as error:
            if settings.num_workers == 0:
                raise TrainingError(f"{experiment.name}: {error}") from error
            emit("worker_died", experiment=experiment.name, message=str(error), num_workers=0)
            settings = replace(settings, num_workers=0)  # the batches stay the same


def _made_by(
    settings: Settings, train: LabelledImages, validation: LabelledImages
) -> dict[str, Any]:
    """What decides a result: the settings, the pictures and this package's version."""
    data = {"train_data": train.fingerprint(), "val_data": validation.fingerprint()}
    return settings.decisive() | data | {"version": __version__}


def _record(result: Result, made_by: dict[str, Any], outputs: Outputs) -> None:
    name = result.experiment.name
    record = {
        "experiment": name,
        "selected_by": result.selected_by,
        "best_val_iou": result.best.val_iou,
        "best_val_score": result.best.val_score,
        "best_epoch": result.best.epoch,
        "ended": result.ended,
        "weights": outputs.weights(name).name,
        "weights_sha256": sha256_of(outputs.weights(name)),
        "recipe": made_by,
        "history": [asdict(epoch) for epoch in result.history],
    }
    write_json(outputs.history(name), record)
    if not result.ended:
        outputs.checkpoint(name).unlink(missing_ok=True)


def _finished(
    experiment: Experiment, made_by: dict[str, Any], outputs: Outputs
) -> tuple[Result | None, str]:
    """The result of an earlier run, or None and why it cannot be used ('' if there is none)."""
    path = outputs.history(experiment.name)
    if not path.exists():
        return None, ""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        changed = changes(record["recipe"], made_by)
        if changed:
            return None, f"differs from the earlier run: {changed}"
        if sha256_of(outputs.weights(experiment.name)) != record["weights_sha256"]:
            return None, "the weights are not those of the earlier run"
        history = tuple(Epoch(**epoch) for epoch in record["history"])
        if record["ended"]:
            return None, f"the earlier run ended early: {record['ended']}"
        return Result(experiment, history, record["selected_by"]), ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"the earlier run cannot be used: {error!r}"
