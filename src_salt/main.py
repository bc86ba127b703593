"""The whole pipeline: `run` reads the competition's folder and writes a submission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryFile
from typing import Any

from torch import nn

from src_salt.budget import Budget
from src_salt.config import Settings, SettingsError, renamed_values
from src_salt.data import Competition, LabelledImages, TestImages, load_competition, split
from src_salt.device import pick_device
from src_salt.evaluate import Evaluation, evaluate
from src_salt.experiments import Result, run_experiments, select_best
from src_salt.metrics import Postprocessing
from src_salt.model import require_encoder_weights
from src_salt.outputs import Outputs, convert_disk_errors, emit, write_zip
from src_salt.predict import load_model, predict, write_prediction
from src_salt.report import write_report
from src_salt.submission import write_submission
from src_salt.transforms import training_transform


def run(data_dir: str | Path, output_dir: str | Path, **parameters: Any) -> dict[str, Any]:
    """Train and compare the experiments, predict with the best one, and write all results.

    `parameters` are plain values for the fields of `config.Settings`. Each event is printed as one
    line of JSON. Data and weights are checked before training begins.

    Returns:
        A summary that can be written as JSON; its paths are relative to `output_dir`.

    Raises:
        SaltError: an error that the user can fix.
    """
    settings = Settings.from_parameters(
        {"data_dir": data_dir, "output_dir": output_dir, **parameters}
    )
    budget = Budget(settings.max_hours)
    outputs = _prepare_outputs(settings.output_dir)
    competition = load_competition(settings.data_dir)
    planned = settings.planned_experiments
    require_encoder_weights((experiment.backbone for experiment in planned), settings)
    if not settings.resolved_recipe.on_device:
        training_transform(settings.image_size)  # fail now if albumentations cannot be used
    train, validation = split(competition.labelled, settings, planned[0].fold)
    budget.final_images = _count_final_images(settings, competition)
    with convert_disk_errors(outputs.root):
        adopted = None if settings.resume_dir is None else outputs.adopt(settings.resume_dir)
        renamed = outputs.rename_old_files()
        outputs.remove_stale()
    _report_start(settings, train, validation, competition.test)
    _report_old_names(renamed_values(parameters), renamed | (adopted or {}))
    if adopted is not None:
        emit("taken_over", files=sorted(adopted.values()))

    with convert_disk_errors(outputs.root):
        results = run_experiments(settings, competition.labelled, outputs, budget)
    best = select_best(results)
    try:
        models = [load_model(result.experiment, settings, outputs) for result in best]
        evaluation = evaluate(best, models, competition.labelled, settings)
        with convert_disk_errors(outputs.root):
            _write_submission(models, evaluation.postprocessing, competition, settings, outputs)
            experiments = [result.experiment for result in best]
            write_prediction(experiments, evaluation.postprocessing, settings, outputs)
            write_report(results, evaluation, settings, outputs)
            write_zip(outputs.results_zip, outputs.root, outputs.results)
    finally:  # also after an error of the GPU: the next run can resume from this zip
        with convert_disk_errors(outputs.root):
            _write_models_zip(results, outputs)
    summary = _summarize(results, evaluation, outputs)
    emit("done", **summary)
    return summary


def _count_final_images(settings: Settings, competition: Competition) -> int:
    """Count the images that a network predicts after training; a mirrored image counts again."""
    views = 2 if settings.resolved_recipe.flip_tta else 1
    return (len(competition.test) * settings.folds + len(competition.labelled)) * views


def _prepare_outputs(folder: Path) -> Outputs:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass  # find out before the first epoch, not after it
    except OSError as error:
        raise SettingsError(
            f"output_dir: {folder} cannot be created or written: {error}."
        ) from error
    return Outputs(folder)


def _report_start(
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


def _report_old_names(notes: Sequence[str], files: dict[str, str]) -> None:
    for note in notes:
        emit("note", message=f"{note} The old name still works.")
    renamed = {old: new for old, new in files.items() if old != new}
    if renamed:
        emit("renamed", files=renamed)


def _write_submission(
    models: Sequence[nn.Module],
    postprocessing: Postprocessing,
    competition: Competition,
    settings: Settings,
    outputs: Outputs,
) -> None:
    test = competition.test
    batches = predict(models, test.images, settings, "test")
    masks = (mask for batch in batches for mask in postprocessing.apply(batch))
    write_submission(outputs.submission, test.ids, masks, competition.sample_submission)


def _write_models_zip(results: list[Result], outputs: Outputs) -> None:
    names = [result.experiment.name for result in results]
    files = [path(name) for name in names for path in (outputs.weights, outputs.history)]
    if outputs.prediction.exists():
        files.append(outputs.prediction)
    write_zip(outputs.models_zip, outputs.root, files)


def _summarize(results: list[Result], evaluation: Evaluation, outputs: Outputs) -> dict[str, Any]:
    best = select_best(results)
    threshold = evaluation.postprocessing.threshold
    min_area = evaluation.postprocessing.min_area
    return {
        "best_experiment": best[0].experiment.base_name,
        "best_val_iou": fmean(result.best.val_iou for result in best),
        "best_val_score": evaluation.score,
        "postprocessing": {"threshold": threshold, "min_area": min_area},
        "cut": {"threshold": threshold, "smallest": min_area},  # the name in earlier versions
        "experiments": [
            {
                "experiment": result.experiment.name,
                "best_val_iou": result.best.val_iou,
                "best_epoch": result.best.epoch,
                "best_val_score": result.best.val_score,
                "epochs": len(result.history),
                "ended": result.ended,
                "notes": list(result.notes),
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
