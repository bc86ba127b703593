"""The whole pipeline: `run(...)`, from the competition's folder to a submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryFile
from typing import Any

from torch import nn

from src_salt.assess import Assessment, assess
from src_salt.budget import Budget
from src_salt.config import Settings, SettingsError
from src_salt.data import Competition, LabelledImages, TestImages, load_competition, split
from src_salt.device import pick_device
from src_salt.experiments import Result, best_of, run_experiments
from src_salt.metrics import Cut
from src_salt.model import require_encoder_weights
from src_salt.outputs import Outputs, emit, refused_writing, write_zip
from src_salt.predict import load_model, predict
from src_salt.report import write_report
from src_salt.submission import write_submission


def run(data_dir: str | Path, output_dir: str | Path, **parameters: Any) -> dict[str, Any]:
    """Train and compare the experiments, predict with the best, write everything.

    `parameters` are the fields of `config.Settings` by name, as plain values. Prints one JSON line
    for each event and returns a summary whose paths are relative to `output_dir`. Raises a
    SaltError for anything that the user can mend; data and weights are checked before training.
    """
    settings = Settings.from_parameters(
        {"data_dir": data_dir, "output_dir": output_dir, **parameters}
    )
    budget = Budget(settings.max_hours)
    outputs = _prepared(settings.output_dir)
    competition = load_competition(settings.data_dir)
    require_encoder_weights((chosen.backbone for chosen in settings.chosen), settings)
    train, validation = split(competition.labelled, settings, settings.chosen[0].fold)
    budget.closing_images = _closing_images(settings, competition)
    taken = _taken_over(settings, outputs)
    with refused_writing(outputs.root):
        outputs.remove_stale()
    _announce(settings, train, validation, competition.test)
    if taken is not None:
        emit("taken_over", files=taken)

    with refused_writing(outputs.root):
        results = run_experiments(settings, competition.labelled, outputs, budget)
    best = best_of(results)
    models = [load_model(result.experiment, settings, outputs) for result in best]
    assessed = assess(best, models, competition.labelled, settings)
    with refused_writing(outputs.root):
        _submit(models, assessed.cut, competition, settings, outputs)
        write_report(results, assessed, settings, outputs)
        _pack(results, outputs)
    summary = _summary(results, assessed, outputs)
    emit("done", **summary)
    return summary


def _taken_over(settings: Settings, outputs: Outputs) -> list[str] | None:
    """Files of the run that this one goes on from, None where there is none."""
    if settings.resume_dir is None:
        return None
    with refused_writing(outputs.root):
        return outputs.take_over(settings.resume_dir)


def _closing_images(settings: Settings, competition: Competition) -> int:
    """Images that go through a network once training has ended, every view of them counted."""
    views = 2 if settings.training.flip_views else 1
    once = len(competition.test) * settings.folds + len(competition.labelled)
    return once * views


def _prepared(folder: Path) -> Outputs:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass  # before an epoch is trained, not after it
    except OSError as error:
        raise SettingsError(f"output_dir: {folder} cannot be made or written: {error}.") from error
    return Outputs(folder)


def _announce(
    settings: Settings, train: LabelledImages, validation: LabelledImages, test: TestImages
) -> None:
    emit(
        "start",
        experiments=list(settings.experiments),
        epochs=settings.epochs,
        device=str(pick_device()),
        train_images=len(train),
        val_images=len(validation),
        test_images=len(test),
    )


def _submit(
    models: Sequence[nn.Module],
    cut: Cut,
    competition: Competition,
    settings: Settings,
    outputs: Outputs,
) -> None:
    test = competition.test
    batches = predict(models, test.images, settings, "test")
    masks = (mask for batch in batches for mask in cut.masks(batch))
    write_submission(outputs.submission, test.ids, masks, competition.sample_submission)


def _pack(results: list[Result], outputs: Outputs) -> None:
    names = [result.experiment.name for result in results]
    models = [path(name) for name in names for path in (outputs.weights, outputs.history)]
    write_zip(outputs.models_zip, outputs.root, models)
    write_zip(outputs.results_zip, outputs.root, outputs.results)


def _summary(results: list[Result], assessed: Assessment, outputs: Outputs) -> dict[str, Any]:
    best = best_of(results)
    return {
        "best_experiment": best[0].experiment.grid_name,
        "best_val_iou": fmean(result.best.val_iou for result in best),
        "best_val_score": assessed.score,
        "cut": asdict(assessed.cut),
        "experiments": [
            {
                "experiment": result.experiment.name,
                "best_val_iou": result.best.val_iou,
                "best_epoch": result.best.epoch,
                "best_val_score": result.best.val_score,
                "epochs": len(result.history),
                "ended": result.ended,
                "weights": outputs.relative(outputs.weights(result.experiment.name)),
            }
            for result in results
        ],
        "submission": outputs.relative(outputs.submission),
        "models_zip": outputs.relative(outputs.models_zip),
        "results_zip": outputs.relative(outputs.results_zip),
        "comparison_plot": outputs.relative(outputs.iou_plot),
        "loss_plot": outputs.relative(outputs.loss_plot),
        "predictions_plot": outputs.relative(outputs.predictions_plot),
        "table_csv": outputs.relative(outputs.table_csv),
        "table_markdown": outputs.relative(outputs.table_markdown),
        "report_html": outputs.relative(outputs.page),
    }
