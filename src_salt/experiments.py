"""The experiments of a run: train or reuse each one, and select the best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from src_salt import __version__
from src_salt.budget import Budget
from src_salt.checkpoint import current_fingerprint, describe_changes
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages, split
from src_salt.launch import train_distributed
from src_salt.outputs import Outputs, emit, read_json, sha256_of_file, write_json
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
    """The field of `Epoch` whose highest value chooses the best epoch."""

    ended: str = ""
    """Why training stopped before the last epoch; empty if it is complete."""

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
    """Train every planned experiment in order, or reuse its complete result of an earlier run.

    Experiments for which there is no time are skipped. One that fails after its first epoch is
    kept with the epochs it has.

    Raises:
        TrainingError: no experiment has a result.
    """
    budget = budget or Budget()
    results: list[Result] = []
    errors: list[str] = []
    skipped: list[str] = []
    for experiment in settings.planned_experiments:
        may_train = not results or budget.allows_epoch()
        try:
            result = _train_or_reuse(experiment, settings, labelled, outputs, budget, may_train)
        except TrainingError as error:
            errors.append(str(error))
            emit("failed", experiment=experiment.name, message=str(error))
            continue
        if result is None:
            skipped.append(experiment.name)
        else:
            results.append(result)
    if skipped:
        emit("out_of_time", experiments=skipped)
    if not results:
        raise TrainingError(" ".join(errors))
    return results


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


def _train_or_reuse(
    experiment: Experiment,
    settings: Settings,
    labelled: LabelledImages,
    outputs: Outputs,
    budget: Budget,
    may_train: bool,
) -> Result | None:
    """Return None if there is neither an earlier result nor time to train."""
    started = time.monotonic()
    train, validation = split(labelled, settings, experiment.fold)
    fingerprint = _fingerprint(settings, train, validation)
    result, reason = _load_finished(experiment, fingerprint, outputs)
    reused = result is not None
    if result is None:
        if not may_train:
            return None
        if reason:
            emit("retrain", experiment=experiment.name, reason=reason)
        # Before the weights are overwritten: an old record must not describe new weights.
        outputs.history(experiment.name).unlink(missing_ok=True)
        outcome = _train_with_retries(
            experiment, settings, train, validation, outputs, fingerprint, budget
        )
        select_by = settings.resolved_recipe.select_by
        result = Result(experiment, outcome.history, select_by, outcome.ended)
        _write_record(result, fingerprint, outputs)
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


def _train_with_retries(
    experiment: Experiment,
    settings: Settings,
    train: LabelledImages,
    validation: LabelledImages,
    outputs: Outputs,
    fingerprint: dict[str, Any],
    budget: Budget,
) -> Outcome:
    """Train, and continue from the last checkpoint when memory runs out or a worker dies."""
    accumulation_steps = 1
    while True:
        try:
            if settings.processes > 1:
                return train_distributed(
                    experiment, settings, outputs, fingerprint, budget, accumulation_steps
                )
            return train_experiment(
                *(experiment, settings, train, validation, outputs),
                *(fingerprint, budget, accumulation_steps),
            )
        except OutOfMemory as error:
            accumulation_steps *= 2
            # Batch normalization may not be able to compute a variance from a single image.
            if settings.batch_size // settings.processes < 2 * accumulation_steps:
                raise TrainingError(
                    f"{experiment.name}: out of memory even with two images at once ({error}). "
                    "A smaller image_size or backbone needs less memory."
                ) from error
            emit(
                "out_of_memory",
                experiment=experiment.name,
                message=str(error),
                images_at_once=settings.batch_size // accumulation_steps,
                accumulated=accumulation_steps,
            )
        except WorkerDied as error:
            if settings.num_workers == 0:
                raise TrainingError(f"{experiment.name}: {error}") from error
            emit("worker_died", experiment=experiment.name, message=str(error), num_workers=0)
            settings = replace(settings, num_workers=0)  # the batches stay the same


def _fingerprint(
    settings: Settings, train: LabelledImages, validation: LabelledImages
) -> dict[str, Any]:
    """Return everything that affects a result: settings, images and the package's version."""
    data = {"train_data": train.fingerprint(), "val_data": validation.fingerprint()}
    return settings.fingerprint_fields() | data | {"version": __version__}


def _write_record(result: Result, fingerprint: dict[str, Any], outputs: Outputs) -> None:
    name = result.experiment.name
    record = {
        "experiment": name,
        "selected_by": result.selected_by,
        "best_val_iou": result.best.val_iou,
        "best_val_score": result.best.val_score,
        "best_epoch": result.best.epoch,
        "ended": result.ended,
        "weights": outputs.weights(name).name,
        "weights_sha256": sha256_of_file(outputs.weights(name)),
        "recipe": fingerprint,
        "history": [asdict(epoch) for epoch in result.history],
    }
    write_json(outputs.history(name), record)
    if not result.ended:
        outputs.checkpoint(name).unlink(missing_ok=True)


def _load_finished(
    experiment: Experiment, fingerprint: dict[str, Any], outputs: Outputs
) -> tuple[Result | None, str]:
    """Return the result of an earlier run, or None and why it cannot be used.

    The reason is empty if there is no earlier run. A record with old names is written again.
    """
    path = outputs.history(experiment.name)
    if not path.exists():
        return None, ""
    try:
        record = read_json(path)
        changes = describe_changes(current_fingerprint(record["recipe"]), fingerprint)
        if changes:
            return None, f"differs from the earlier run: {changes}"
        if sha256_of_file(outputs.weights(experiment.name)) != record["weights_sha256"]:
            return None, "the weights are not those of the earlier run"
        history = tuple(Epoch(**epoch) for epoch in record["history"])
        if record["ended"]:
            return None, f"the earlier run ended early: {record['ended']}"
        result = Result(experiment, history, record["selected_by"])
        if record["experiment"] != experiment.name or record["recipe"] != fingerprint:
            _write_record(result, fingerprint, outputs)
        return result, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"the earlier run cannot be used: {error!r}"
