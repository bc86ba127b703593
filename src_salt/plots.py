"""Plots of a run: curves, calibration, score by coverage, and example predictions.

They show values that other modules computed. They do not use pyplot, so a notebook keeps its
backend. They use matplotlib's default style, so a notebook's style does not change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from src_salt.config import Experiment
from src_salt.data import coverage_classes
from src_salt.evaluate import Evaluation
from src_salt.experiments import Result, group_folds
from src_salt.outputs import atomic_write
from src_salt.submission import Mask
from src_salt.train import Epoch

COLORS = {
    "resnet34_BCEDice": "#12607a",
    "resnet34_Lovasz": "#5fb4cc",
    "resnet34_BCEDiceSymmetric": "#1f3b57",
    "resnet50_BCEDice": "#a83a22",
    "resnet50_Lovasz": "#ec9a5c",
    "resnet50_BCEDiceSymmetric": "#6b1f2e",
}
"""By `Experiment.base_name`: each backbone has a hue, each loss a shade."""

MARKERS = {"BCEDice": "o", "Lovasz": "s", "BCEDiceSymmetric": "^"}

FOLD_LINES = ("-", "--", "-.", ":")

LABELS = {
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "BCEDice": "BCE+Dice",
    "Lovasz": "Lovász",
    "BCEDiceSymmetric": "BCE+Dice+symmetric Lovász",
}

TRUTH_COLOR = (0.10, 0.75, 0.55)
PREDICTION_COLOR = (0.95, 0.55, 0.10)
ENDED_COLOR = "#c2185b"
DEFAULT_COLOR = "#12607a"
DPI = 150
LAYOUT: Literal["constrained"] | None = "constrained"
RELIABILITY_BINS = 20


@dataclass(frozen=True)
class Case:
    """A validation image with its true and its predicted mask."""

    image_id: str
    image: npt.NDArray[np.uint8]  # (101, 101)
    truth: Mask
    prediction: Mask
    iou: float
    score: float


@dataclass(frozen=True)
class CoverageClass:
    """The validation images whose coverage with salt is in one range."""

    label: str
    images: int
    score: float  # means over them
    iou: float


def scores_by_coverage(evaluation: Evaluation) -> list[CoverageClass]:
    """Group by coverage: empty masks, then tenths of the image. Empty groups are left out."""
    classes = coverage_classes(evaluation.validation.masks)
    return [
        CoverageClass(
            label="none" if number == 0 else f"{10 * number - 10} to {10 * number}%",
            images=int((classes == number).sum()),
            score=float(evaluation.scores[classes == number].mean()),
            iou=float(evaluation.ious[classes == number].mean()),
        )
        for number in sorted(set(classes.tolist()))
    ]


def experiment_label(experiment: Experiment) -> str:
    """Return the name for readers: `ResNet34, BCE+Dice, fold 2`."""
    fold = "" if experiment.fold is None else f", fold {experiment.fold}"
    return f"{LABELS[experiment.backbone]}, {LABELS[experiment.loss]}{fold}"


def plot_iou_comparison(results: Sequence[Result], path: Path) -> None:
    """Plot validation IoU by epoch, and the best value of each run."""
    with _figure(path, (11, max(4.6, 0.28 * len(results) + 1.2))) as figure:
        curves, bars = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _plot_curves(curves, results, lambda epoch: epoch.val_iou, ring=True)
        _format_epoch_axes(curves, "IoU, mean over validation images")
        curves.set_title("Validation IoU by epoch (ring: kept)", loc="left", fontweight="bold")
        _plot_best_bars(bars, results)


def plot_scores(results: Sequence[Result], path: Path) -> None:
    """Plot the competition's score and the learning rate by epoch."""
    with _figure(path, (11, 4.6)) as figure:
        scores, rates = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _plot_curves(scores, results, lambda epoch: epoch.val_score, ring=True)
        _format_epoch_axes(scores, "score, mean over validation images")
        scores.set_title("Validation score by epoch (ring: kept)", loc="left", fontweight="bold")
        _plot_curves(rates, results, lambda epoch: epoch.learning_rate, ring=False)
        _format_epoch_axes(rates, "first step of the epoch")
        rates.set_title("Learning rate", loc="left", fontweight="bold")
        rates.set_yscale("log")
        values = [epoch.learning_rate for result in results for epoch in result.history]
        # At least a decade, so that a constant rate is a line in the middle.
        rates.set_ylim(min(values) / 3, max(values) * 3)
        rates.yaxis.set_minor_formatter(NullFormatter())


def plot_losses(results: Sequence[Result], path: Path) -> None:
    """Plot training and validation loss, one panel per experiment since their scales differ."""
    groups = group_folds(results)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    with _figure(path, (5.5 * columns, 3.2 * rows + 0.4)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, group in zip(panels, groups, strict=False):
            _plot_loss_curves(panel, group)
        for unused in panels[len(groups) :]:
            unused.set_axis_off()


def plot_calibration(evaluation: Evaluation, path: Path) -> None:
    """Plot the score of each threshold and minimum area, and a reliability diagram."""
    with _figure(path, (11, 4.6)) as figure:
        candidates, reliability = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _plot_candidates(candidates, evaluation)
        _plot_reliability(reliability, evaluation)


def plot_coverage(evaluation: Evaluation, path: Path) -> None:
    """Plot mean score, mean IoU and number of images of each coverage class."""
    classes = scores_by_coverage(evaluation)
    with _figure(path, (max(5.5, 0.9 * len(classes) + 1.5), 4.2)) as figure:
        axes = figure.subplots()
        places = np.arange(len(classes))
        scores, ious = [one.score for one in classes], [one.iou for one in classes]
        axes.bar(places, scores, width=0.62, color=DEFAULT_COLOR, label="score")
        axes.plot(places, ious, "D", color=PREDICTION_COLOR, mec="white", label="IoU", ms=8)
        axes.axhline(evaluation.score, color="0.55", linewidth=1, linestyle="--")
        axes.text(
            len(classes) - 0.45, evaluation.score, f" all\n {evaluation.score:.3f}",
            va="center", fontsize=9, color="0.35",
        )  # fmt: skip
        for place, score in zip(places, scores, strict=True):
            inside = score > 0.08
            axes.text(
                place, 0.015 if inside else score + 0.015, f"{score:.2f}",
                ha="center", fontsize=9, color="white" if inside else "black",
            )  # fmt: skip
        axes.set_xticks(places, [f"{one.label}\nn = {one.images}" for one in classes])
        axes.tick_params(axis="x", labelsize=9, length=0)
        axes.set_xlim(-0.5, max(len(classes), 3) - 0.5)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("share of the image that is salt, and number of images")
        axes.set_title("Score by coverage", loc="left", fontweight="bold")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def plot_predictions(cases: Sequence[Case], title: str, path: Path) -> None:
    """Plot image, truth and prediction of a few validation images, one column per image."""
    columns = max(3, len(cases))  # room for the title above a single case
    with _figure(path, (1.9 * columns + 0.6, 6.8)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        panels = figure.subplots(3, columns, squeeze=False)
        for column, case in enumerate(cases):
            _show_image(panels[0, column], case.image)
            _show_image(panels[1, column], _overlay_mask(case.image, case.truth, TRUTH_COLOR))
            _show_image(
                panels[2, column], _overlay_mask(case.image, case.prediction, PREDICTION_COLOR)
            )
            _draw_outline(panels[2, column], case.truth)
            name = case.image_id if len(case.image_id) <= 12 else f"{case.image_id[:11]}…"
            panels[0, column].set_title(name, fontsize=9, family="monospace", parse_math=False)
            panels[1, column].set_xlabel(f"{case.truth.mean():.0%} salt", fontsize=9)
            values = f"IoU {case.iou:.2f}, score {case.score:.1f}"
            panels[2, column].set_xlabel(values, fontsize=9)
        for unused in panels[:, len(cases) :].ravel():
            unused.set_axis_off()
        for row, text in enumerate(("image", "truth", "prediction\n(line: truth)")):
            panels[row, 0].set_ylabel(text, fontsize=11)


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure, and save it at the end without version or date."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=size, dpi=DPI, layout=LAYOUT)
        yield figure
        with atomic_write(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})


def _plot_curves(
    axes: Axes, results: Sequence[Result], value: Callable[[Epoch], float], ring: bool
) -> None:
    """Plot one line per run: the color shows the experiment, the dashes show the fold."""
    for group in group_folds(results):
        for result in group:
            experiment = result.experiment
            color, marker = COLORS[experiment.base_name], MARKERS[experiment.loss]
            style = FOLD_LINES[((experiment.fold or 1) - 1) % len(FOLD_LINES)]
            epochs = [epoch.epoch for epoch in result.history]
            values = [value(epoch) for epoch in result.history]
            axes.plot(epochs, values, style, color=color, marker=marker, markersize=4)
            if ring:
                axes.plot(result.best.epoch, value(result.best), "o", mec=color, mfc="none", ms=11)
            if result.ended:
                axes.plot(
                    epochs[-1], values[-1], "X", color=ENDED_COLOR, ms=10, mec="white", zorder=5
                )
        folds = f", {len(group)} folds" if len(group) > 1 else ""
        text = f"{LABELS[experiment.backbone]}, {LABELS[experiment.loss]}{folds}"
        axes.plot([], [], color=color, marker=marker, markersize=4, label=text)
    if any(result.ended for result in results):
        axes.plot([], [], "X", color=ENDED_COLOR, ms=9, mec="white", label="ended early")
    if ring:
        axes.legend(frameon=False, loc="best", fontsize=9)


def _plot_best_bars(axes: Axes, results: Sequence[Result]) -> None:
    """Plot horizontal bars with value and epoch, the best on top."""
    ordered = sorted(results, key=lambda result: -result.best.val_iou)[::-1]  # bottom to top
    values = [result.best.val_iou for result in ordered]
    colors = [COLORS[result.experiment.base_name] for result in ordered]
    axes.barh(
        [experiment_label(result.experiment) for result in ordered],
        values,
        color=colors,
        height=0.6,
    )
    for row, result in enumerate(ordered):
        weight = "bold" if row == len(ordered) - 1 else "normal"
        text = f" {result.best.val_iou:.4f}, epoch {result.best.epoch}"
        text += "\n ended early" if result.ended else ""
        color = ENDED_COLOR if result.ended else "black"
        place = (result.best.val_iou, row)
        axes.text(*place, text, va="center", fontsize=9, fontweight=weight, color=color)
    axes.set_xlim(0, max(max(values) * 1.6, 0.1))  # room for the text at the bars' ends
    top = len(ordered) - 0.4
    axes.set_ylim(min(-0.6, top - 3), top)  # a single bar must not fill the figure
    axes.set_title("Validation IoU of the kept epoch", loc="left", fontweight="bold")
    axes.xaxis.set_visible(False)  # the bars have labels
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _plot_loss_curves(axes: Axes, group: Sequence[Result]) -> None:
    first = group[0].experiment
    color = COLORS[first.base_name]
    for result in group:
        names = ("training", "validation", "kept") if result is group[0] else (None, None, None)
        epochs = [epoch.epoch for epoch in result.history]
        training = [epoch.train_loss for epoch in result.history]
        validation = [epoch.val_loss for epoch in result.history]
        axes.plot(epochs, training, "o--", color="0.55", markersize=4, label=names[0])
        axes.plot(epochs, validation, "o-", color=color, markersize=4, label=names[1])
        axes.axvline(result.best.epoch, color="0.8", linewidth=1, zorder=0, label=names[2])
        if result.ended:
            axes.plot(epochs[-1], validation[-1], "X", color=ENDED_COLOR, ms=10, mec="white")
    ended = [result for result in group if result.ended]
    if ended:
        axes.plot([], [], "X", color=ENDED_COLOR, ms=9, mec="white", label="ended early")
    title = f"{LABELS[first.backbone]}, {LABELS[first.loss]}"
    axes.set_title(title, loc="left", fontweight="bold")
    _format_epoch_axes(axes, "loss")
    axes.legend(frameon=False, fontsize=9)


def _plot_candidates(axes: Axes, evaluation: Evaluation) -> None:
    areas = sorted({candidate.min_area for candidate in evaluation.candidates})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(areas)))
    for area, shade in zip(areas, shades, strict=True):
        line = sorted(
            (c.threshold, s) for c, s in evaluation.candidates.items() if c.min_area == area
        )
        text = f"at least {area} pixels" if area else "all regions kept"
        axes.plot(*zip(*line, strict=True), "o-", color=shade, markersize=4, label=text)
    used = evaluation.postprocessing
    axes.axvline(used.threshold, color="0.8", linewidth=1, zorder=0)
    if used in evaluation.candidates:
        axes.plot(
            used.threshold, evaluation.candidates[used], "o", mfc="none", mec=PREDICTION_COLOR,
            ms=13, mew=2, label="used for the submission",
        )  # fmt: skip
    axes.set_xlabel("threshold: a pixel is salt above this probability")
    axes.set_ylabel("score, mean over validation images")
    axes.set_title("Score by threshold and minimum area", loc="left", fontweight="bold")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _plot_reliability(axes: Axes, evaluation: Evaluation) -> None:
    """Plot predicted probability and the share of pixels that is salt, in bins."""
    bins = np.minimum(
        (evaluation.probabilities * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1
    ).ravel()
    truth = (evaluation.validation.masks > 0).ravel()
    pixels = np.bincount(bins, minlength=RELIABILITY_BINS)
    predicted = np.bincount(bins, evaluation.probabilities.ravel(), RELIABILITY_BINS)
    salt = np.bincount(bins, truth, RELIABILITY_BINS)
    filled = pixels > 0
    x, y = predicted[filled] / pixels[filled], salt[filled] / pixels[filled]
    share = pixels[filled] / pixels.sum()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    axes.plot(x, y, color=DEFAULT_COLOR, linewidth=1)
    axes.scatter(x, y, s=12 + 250 * share, color=DEFAULT_COLOR, alpha=0.85, clip_on=False, zorder=3)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("predicted probability (dot: share of pixels)")
    axes.set_ylabel("share that is salt")
    axes.set_title("Reliability", loc="left", fontweight="bold")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _format_epoch_axes(axes: Axes, value: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(value)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _show_image(axes: Axes, image: npt.NDArray[Any]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_outline(axes: Axes, mask: Mask) -> None:
    """Draw the edge of a mask, if it has one."""
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[TRUTH_COLOR], linewidths=1.5)


def _overlay_mask(
    image: npt.NDArray[np.uint8], mask: Mask, color: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """Return the gray image as RGB in 0…1, with the mask tinted."""
    rgb = np.repeat(image[..., None] / 255.0, 3, axis=-1)
    rgb[mask] = 0.5 * rgb[mask] + 0.5 * np.array(color)
    return rgb
