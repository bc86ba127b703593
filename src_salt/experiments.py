"""The grid of experiments: run, skip what is done, name the best."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src_salt import __version__
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.outputs import Outputs, emit, write_json
from src_salt.train import Epoch, best_epoch, train_experiment


@dataclass(frozen=True)
class Result:
    """A finished experiment."""

    experiment: Experiment
    history: tuple[Epoch, ...]

    @property
    def best(self) -> Epoch:
        """The epoch whose weights are kept."""
        return best_epoch(self.history)


def run_experiments(
    settings: Settings, train: LabelledImages, validation: LabelledImages, outputs: Outputs
) -> list[Result]:
    """Every chosen experiment in its order, trained now or found complete from an earlier run."""
    recipe = _recipe(settings, train, validation)
    return [
        _run_or_skip(experiment, settings, recipe, train, validation, outputs)
        for experiment in settings.chosen
    ]


def best_of(results: list[Result]) -> Result:
    """The experiment with the highest validation IoU; the first of them if several have it."""
    return max(results, key=lambda result: result.best.val_iou)


def _recipe(
    settings: Settings, train: LabelledImages, validation: LabelledImages
) -> dict[str, Any]:
    """What decides a result: the settings, the pictures and this package's version."""
    data = {"train_data": train.fingerprint(), "val_data": validation.fingerprint()}
    return settings.recipe() | data | {"version": __version__}


def _run_or_skip(
    experiment: Experiment,
    settings: Settings,
    recipe: dict[str, Any],
    train: LabelledImages,
    validation: LabelledImages,
    outputs: Outputs,
) -> Result:
    started = time.monotonic()
    result, reason = _finished(experiment, recipe, outputs)
    skipped = result is not None
    if result is None:
        if reason:
            emit("retrain", experiment=experiment.name, reason=reason)
        result = _run(experiment, settings, recipe, train, validation, outputs)
    emit(
        "experiment",
        experiment=experiment.name,
        best_val_iou=result.best.val_iou,
        best_epoch=result.best.epoch,
        seconds=round(time.monotonic() - started, 2),
        skipped=skipped,
    )
    return result


def _run(
    experiment: Experiment,
    settings: Settings,
    recipe: dict[str, Any],
    train: LabelledImages,
    validation: LabelledImages,
    outputs: Outputs,
) -> Result:
    # Gone before the weights are overwritten: an old record must never vouch for new weights.
    outputs.history(experiment.name).unlink(missing_ok=True)
    history = train_experiment(experiment, settings, train, validation, outputs)
    result = Result(experiment, tuple(history))
    _record(result, recipe, outputs)
    return result


def _record(result: Result, recipe: dict[str, Any], outputs: Outputs) -> None:
    name = result.experiment.name
    record = {
        "experiment": name,
        "best_val_iou": result.best.val_iou,
        "best_epoch": result.best.epoch,
        "weights": outputs.weights(name).name,
        "weights_sha256": _sha256(outputs.weights(name)),
        "recipe": recipe,
        "history": [asdict(epoch) for epoch in result.history],
    }
    write_json(outputs.history(name), record)


def _finished(
    experiment: Experiment, recipe: dict[str, Any], outputs: Outputs
) -> tuple[Result | None, str]:
    """The result of an earlier run, or None and why it cannot be used ('' if there is none)."""
    path = outputs.history(experiment.name)
    if not path.exists():
        return None, ""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        changed = _changes(record["recipe"], recipe)
        if changed:
            return None, f"differs from the earlier run: {changed}"
        if _sha256(outputs.weights(experiment.name)) != record["weights_sha256"]:
            return None, "the weights are not those of the earlier run"
        history = tuple(Epoch(**epoch) for epoch in record["history"])
        return Result(experiment, history), ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"the earlier run cannot be used: {error!r}"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """`epochs was 1, is 2`, for every entry that differs."""
    names = sorted(set(before) | set(now))
    return "; ".join(
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
