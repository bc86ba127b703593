"""Pictures of a run: curves, calibration, score by coverage, and cases.

They show values that were computed elsewhere. Figures are built without pyplot, so the backend of
a notebook stays as it is, and from matplotlib's defaults, so its style does not get in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from src_salt.assess import Assessment
from src_salt.config import Experiment
from src_salt.data import coverage_classes
from src_salt.experiments import Result, grouped
from src_salt.outputs import whole
from src_salt.submission import Mask
from src_salt.train import Epoch

COLORS = {
    "resnet34_bcedice": "#12607a",
    "resnet34_lovasz": "#5fb4cc",
    "resnet34_bcedice_symmetric": "#1f3b57",
    "resnet50_bcedice": "#a83a22",
    "resnet50_lovasz": "#ec9a5c",
    "resnet50_bcedice_symmetric": "#6b1f2e",
}
"""By `Experiment.grid_name`: a hue for a backbone, a shade for a loss."""

MARKERS = {"bcedice": "o", "lovasz": "s", "bcedice_symmetric": "^"}

FOLD_LINES = ("-", "--", "-.", ":")

LABELS = {
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "bcedice": "BCE+Dice",
    "lovasz": "Lovász",
    "bcedice_symmetric": "BCE+Dice+symmetric Lovász",
}

TRUTH_COLOR = (0.10, 0.75, 0.55)
PREDICTION_COLOR = (0.95, 0.55, 0.10)
ENDED_COLOR = "#c2185b"
NEUTRAL = "#12607a"
DPI = 150
RELIABILITY_BINS = 20


@dataclass(frozen=True)
class Case:
    """A validation image with its truth and its prediction."""

    image_id: str
    image: npt.NDArray[np.uint8]  # (101, 101)
    truth: Mask
    prediction: Mask
    iou: float
    score: float


@dataclass(frozen=True)
class CoverageClass:
    """The validation images of which salt covers about as much."""

    label: str
    images: int
    score: float  # means over them
    iou: float


def by_coverage(assessed: Assessment) -> list[CoverageClass]:
    """Empty masks, then tenths of the picture; those without an image are left out."""
    classes = coverage_classes(assessed.validation.masks)
    return [
        CoverageClass(
            label="none" if number == 0 else f"{10 * number - 10} to {10 * number}%",
            images=int((classes == number).sum()),
            score=float(assessed.scores[classes == number].mean()),
            iou=float(assessed.ious[classes == number].mean()),
        )
        for number in sorted(set(classes.tolist()))
    ]


def label(experiment: Experiment) -> str:
    """As people write it: `ResNet34, BCE+Dice, fold 2`."""
    fold = "" if experiment.fold is None else f", fold {experiment.fold}"
    return f"{LABELS[experiment.backbone]}, {LABELS[experiment.loss]}{fold}"


def plot_iou_comparison(results: Sequence[Result], path: Path) -> None:
    """Validation IoU by epoch, and the best of each run beside it."""
    with _figure(path, (11, max(4.6, 0.28 * len(results) + 1.2))) as figure:
        curves, bars = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _curves(curves, results, lambda epoch: epoch.val_iou, ring=True)
        _label_epochs(curves, "IoU, mean over validation images")
        curves.set_title("Validation IoU by epoch (ring: kept)", loc="left", fontweight="bold")
        _best_bars(bars, results)


def plot_scores(results: Sequence[Result], path: Path) -> None:
    """The competition's score by epoch, and the learning rate beside it."""
    with _figure(path, (11, 4.6)) as figure:
        scores, rates = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _curves(scores, results, lambda epoch: epoch.val_score, ring=True)
        _label_epochs(scores, "score, mean over validation images")
        scores.set_title("Validation score by epoch (ring: kept)", loc="left", fontweight="bold")
        _curves(rates, results, lambda epoch: epoch.learning_rate, ring=False)
        _label_epochs(rates, "of an epoch's first step")
        rates.set_title("Learning rate", loc="left", fontweight="bold")
        rates.set_yscale("log")
        values = [epoch.learning_rate for result in results for epoch in result.history]
        # A whole decade at least: a rate that stays the same is a line in the middle.
        rates.set_ylim(min(values) / 3, max(values) * 3)
        rates.yaxis.set_minor_formatter(NullFormatter())


def plot_losses(results: Sequence[Result], path: Path) -> None:
    """Training and validation loss, a panel for each experiment: the losses' scales differ."""
    groups = grouped(results)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    with _figure(path, (5.5 * columns, 3.2 * rows + 0.4)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, group in zip(panels, groups, strict=False):
            _loss_curves(panel, group)
        for unused in panels[len(groups) :]:
            unused.set_axis_off()


def plot_calibration(assessed: Assessment, path: Path) -> None:
    """The score of each cut that was tried, and predicted probability against the truth."""
    with _figure(path, (11, 4.6)) as figure:
        cuts, reliability = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _cut_curves(cuts, assessed)
        _reliability(reliability, assessed)


def plot_coverage(assessed: Assessment, path: Path) -> None:
    """Mean score and IoU of the images of each coverage class, with their number."""
    classes = by_coverage(assessed)
    with _figure(path, (max(5.5, 0.9 * len(classes) + 1.5), 4.2)) as figure:
        axes = figure.subplots()
        places = np.arange(len(classes))
        scores, ious = [one.score for one in classes], [one.iou for one in classes]
        axes.bar(places, scores, width=0.62, color=NEUTRAL, label="score")
        axes.plot(places, ious, "D", color=PREDICTION_COLOR, mec="white", label="IoU", ms=8)
        axes.axhline(assessed.score, color="0.55", linewidth=1, linestyle="--")
        axes.text(
            len(classes) - 0.45, assessed.score, f" all\n {assessed.score:.3f}",
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
        axes.set_xlabel("share of the picture that is salt, and number of images")
        axes.set_title("Score by coverage", loc="left", fontweight="bold")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def plot_predictions(cases: Sequence[Case], title: str, path: Path) -> None:
    """Image, truth and prediction of a few validation images, a column for each."""
    columns = max(3, len(cases))  # room for the title above a case alone
    with _figure(path, (1.9 * columns + 0.6, 6.8)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        panels = figure.subplots(3, columns, squeeze=False)
        for column, case in enumerate(cases):
            _show(panels[0, column], case.image)
            _show(panels[1, column], _overlaid(case.image, case.truth, TRUTH_COLOR))
            _show(panels[2, column], _overlaid(case.image, case.prediction, PREDICTION_COLOR))
            _outline(panels[2, column], case.truth)
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
    """A figure to draw on; saved whole at the end, without a version or date in it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        yield figure
        with whole(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})


def _curves(
    axes: Axes, results: Sequence[Result], value: Callable[[Epoch], float], ring: bool
) -> None:
    """A line for each run: a colour for the experiment, a dash for the fold."""
    for group in grouped(results):
        for result in group:
            experiment = result.experiment
            color, marker = COLORS[experiment.grid_name], MARKERS[experiment.loss]
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


def _best_bars(axes: Axes, results: Sequence[Result]) -> None:
    """Horizontal bars, best on top, with value and epoch."""
    ordered = sorted(results, key=lambda result: -result.best.val_iou)[::-1]  # from below
    values = [result.best.val_iou for result in ordered]
    colors = [COLORS[result.experiment.grid_name] for result in ordered]
    axes.barh([label(result.experiment) for result in ordered], values, color=colors, height=0.6)
    for row, result in enumerate(ordered):
        weight = "bold" if row == len(ordered) - 1 else "normal"
        text = f" {result.best.val_iou:.4f}, epoch {result.best.epoch}"
        text += "\n ended early" if result.ended else ""
        color = ENDED_COLOR if result.ended else "black"
        place = (result.best.val_iou, row)
        axes.text(*place, text, va="center", fontsize=9, fontweight=weight, color=color)
    axes.set_xlim(0, max(max(values) * 1.6, 0.1))  # room for the text at the bars' ends
    top = len(ordered) - 0.4
    axes.set_ylim(min(-0.6, top - 3), top)  # a bar alone must not fill the picture
    axes.set_title("Validation IoU of the kept epoch", loc="left", fontweight="bold")
    axes.xaxis.set_visible(False)  # the values stand at the bars
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _loss_curves(axes: Axes, group: Sequence[Result]) -> None:
    first = group[0].experiment
    color = COLORS[first.grid_name]
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
    _label_epochs(axes, "loss")
    axes.legend(frameon=False, fontsize=9)


def _cut_curves(axes: Axes, assessed: Assessment) -> None:
    areas = sorted({cut.smallest for cut in assessed.tried})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(areas)))
    for area, shade in zip(areas, shades, strict=True):
        line = sorted((c.threshold, s) for c, s in assessed.tried.items() if c.smallest == area)
        text = f"at least {area} pixels" if area else "all regions kept"
        axes.plot(*zip(*line, strict=True), "o-", color=shade, markersize=4, label=text)
    used = assessed.cut
    axes.axvline(used.threshold, color="0.8", linewidth=1, zorder=0)
    if used in assessed.tried:
        axes.plot(
            used.threshold, assessed.tried[used], "o", mfc="none", mec=PREDICTION_COLOR,
            ms=13, mew=2, label="the submission's cut",
        )  # fmt: skip
    axes.set_xlabel("threshold: a pixel is salt above this probability")
    axes.set_ylabel("score, mean over validation images")
    axes.set_title("Score by threshold and smallest region", loc="left", fontweight="bold")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _reliability(axes: Axes, assessed: Assessment) -> None:
    """Of the pixels with about this probability, the share that is salt."""
    bins = np.minimum(
        (assessed.probabilities * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1
    ).ravel()
    truth = (assessed.validation.masks > 0).ravel()
    pixels = np.bincount(bins, minlength=RELIABILITY_BINS)
    predicted = np.bincount(bins, assessed.probabilities.ravel(), RELIABILITY_BINS)
    salt = np.bincount(bins, truth, RELIABILITY_BINS)
    filled = pixels > 0
    x, y = predicted[filled] / pixels[filled], salt[filled] / pixels[filled]
    share = pixels[filled] / pixels.sum()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    axes.plot(x, y, color=NEUTRAL, linewidth=1)
    axes.scatter(x, y, s=12 + 250 * share, color=NEUTRAL, alpha=0.85, clip_on=False, zorder=3)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("predicted probability (dot: share of pixels)")
    axes.set_ylabel("share that is salt")
    axes.set_title("Reliability", loc="left", fontweight="bold")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _label_epochs(axes: Axes, value: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(value)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Axes, picture: npt.NDArray[Any]) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _outline(axes: Axes, mask: Mask) -> None:
    """The mask's edge in the colour of the truth; a mask without an edge has none to draw."""
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[TRUTH_COLOR], linewidths=1.5)


def _overlaid(
    image: npt.NDArray[np.uint8], mask: Mask, color: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """The gray image as RGB in 0…1 with the mask tinted."""
    rgb = np.repeat(image[..., None] / 255.0, 3, axis=-1)
    rgb[mask] = 0.5 * rgb[mask] + 0.5 * np.array(color)
    return rgb
