"""Pictures and tables of a run.

They show values that were computed elsewhere. Figures are built without pyplot, so the backend of
a notebook stays as it is, and from matplotlib's defaults, so its style does not get in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src_salt.experiments import Result
from src_salt.outputs import whole, write_text
from src_salt.submission import Mask

COLORS = {
    "resnet34_bcedice": "#12607a",
    "resnet34_lovasz": "#5fb4cc",
    "resnet34_bcedice_lovasz": "#1f3b57",
    "resnet50_bcedice": "#a83a22",
    "resnet50_lovasz": "#ec9a5c",
    "resnet50_bcedice_lovasz": "#6b1f2e",
}
"""A hue for a backbone, a shade for a loss."""

MARKERS = {"bcedice": "o", "lovasz": "s", "bcedice_lovasz": "^"}

LABELS = {
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "bcedice": "BCE+Dice",
    "lovasz": "Lovász",
    "bcedice_lovasz": "BCE+Dice+Lovász",
}

TRUTH_COLOR = (0.10, 0.75, 0.55)
PREDICTION_COLOR = (0.95, 0.55, 0.10)
DPI = 150


@dataclass(frozen=True)
class Case:
    """A validation image with its truth and its prediction."""

    image_id: str
    image: npt.NDArray[np.uint8]  # (101, 101)
    truth: Mask
    prediction: Mask
    iou: float


def table(results: Sequence[Result]) -> pandas.DataFrame:
    """One row for each experiment, best first."""
    rows = [
        {
            "experiment": result.experiment.name,
            "backbone": LABELS[result.experiment.backbone],
            "loss": LABELS[result.experiment.loss],
            "best_val_iou": result.best.val_iou,
            "best_epoch": result.best.epoch,
            "epochs": len(result.history),
        }
        for result in results
    ]
    return pandas.DataFrame(rows).sort_values("best_val_iou", ascending=False, kind="stable")


def write_table(results: Sequence[Result], val_score: float, csv: Path, markdown: Path) -> None:
    """The table as csv and as markdown; `val_score` is the best experiment's, shown below it."""
    frame = table(results)
    write_text(csv, frame.to_csv(index=False, lineterminator="\n"))
    lines = [
        "| experiment | backbone | loss | best validation IoU | at epoch | epochs |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in frame.itertuples(index=False):
        lines.append(
            f"| {row.experiment} | {row.backbone} | {row.loss} "
            f"| {row.best_val_iou:.4f} | {row.best_epoch} | {row.epochs} |"
        )
    lines += [
        "",
        f"Best: {frame.iloc[0]['experiment']}. The competition's score of its weights "
        f"on the validation images at 101x101: {val_score:.4f}.",
        "",
    ]
    write_text(markdown, "\n".join(lines))


def plot_iou_comparison(results: Sequence[Result], path: Path) -> None:
    """Validation IoU by epoch, and the best of each experiment beside it."""
    with _figure(path, (11, 4.6)) as figure:
        curves, bars = figure.subplots(1, 2, width_ratios=(1.6, 1))
        for result in results:
            _iou_curve(curves, result)
        _label_epochs(curves, "IoU, mean over validation images")
        curves.set_title("Validation IoU by epoch (ring: the best)", loc="left", fontweight="bold")
        curves.legend(frameon=False, loc="best", fontsize=9)
        _best_bars(bars, results)


def plot_losses(results: Sequence[Result], path: Path) -> None:
    """Training and validation loss, one panel for each experiment: the losses' scales differ."""
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    with _figure(path, (5.5 * columns, 3.2 * rows + 0.4)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, result in zip(panels, results, strict=False):
            _loss_curves(panel, result)
        for unused in panels[len(results) :]:
            unused.set_axis_off()


def plot_predictions(cases: Sequence[Case], title: str, path: Path) -> None:
    """Image, truth and prediction of a few validation images, a column for each."""
    with _figure(path, (1.9 * len(cases) + 0.6, 6.6)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        panels = figure.subplots(3, len(cases), squeeze=False)
        for column, case in enumerate(cases):
            _show(panels[0, column], case.image)
            _show(panels[1, column], _overlaid(case.image, case.truth, TRUTH_COLOR))
            _show(panels[2, column], _overlaid(case.image, case.prediction, PREDICTION_COLOR))
            _outline(panels[2, column], case.truth)
            panels[0, column].set_title(case.image_id, fontsize=9, family="monospace")
            panels[1, column].set_xlabel(f"{case.truth.mean():.0%} salt", fontsize=9)
            panels[2, column].set_xlabel(f"IoU {case.iou:.2f}", fontsize=9)
        for row, label in enumerate(("image", "truth", "prediction\n(line: truth)")):
            panels[row, 0].set_ylabel(label, fontsize=11)


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure to draw on; saved whole at the end, without a version or date in it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        yield figure
        with whole(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})


def _iou_curve(axes: Axes, result: Result) -> None:
    color, marker = COLORS[result.experiment.name], MARKERS[result.experiment.loss]
    epochs = [epoch.epoch for epoch in result.history]
    values = [epoch.val_iou for epoch in result.history]
    axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=_label(result))
    axes.plot(result.best.epoch, result.best.val_iou, marker, color=color, fillstyle="none", ms=11)


def _best_bars(axes: Axes, results: Sequence[Result]) -> None:
    """Horizontal bars, best on top, with value and epoch."""
    ordered = sorted(results, key=lambda result: -result.best.val_iou)[::-1]  # from below
    values = [result.best.val_iou for result in ordered]
    colors = [COLORS[result.experiment.name] for result in ordered]
    axes.barh([_label(result) for result in ordered], values, color=colors, height=0.6)
    for row, result in enumerate(ordered):
        weight = "bold" if row == len(ordered) - 1 else "normal"
        text = f" {result.best.val_iou:.4f}, epoch {result.best.epoch}"
        axes.text(result.best.val_iou, row, text, va="center", fontsize=9, fontweight=weight)
    axes.set_xlim(0, max(max(values) * 1.5, 0.1))  # room for the text at the bars' ends
    top = len(ordered) - 0.4
    axes.set_ylim(min(-0.6, top - 3), top)  # a bar alone must not fill the picture
    axes.set_title("Best validation IoU", loc="left", fontweight="bold")
    axes.xaxis.set_visible(False)  # the values stand at the bars
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _loss_curves(axes: Axes, result: Result) -> None:
    epochs = [epoch.epoch for epoch in result.history]
    training = [epoch.train_loss for epoch in result.history]
    validation = [epoch.val_loss for epoch in result.history]
    color = COLORS[result.experiment.name]
    axes.plot(epochs, training, "o--", color="0.55", markersize=4, label="training")
    axes.plot(epochs, validation, "o-", color=color, markersize=4, label="validation")
    axes.axvline(result.best.epoch, color="0.8", linewidth=1, zorder=0, label="best IoU")
    axes.set_title(_label(result), loc="left", fontweight="bold")
    _label_epochs(axes, "loss")
    axes.legend(frameon=False, fontsize=9)


def _label_epochs(axes: Axes, value: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(value)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _label(result: Result) -> str:
    return f"{LABELS[result.experiment.backbone]}, {LABELS[result.experiment.loss]}"


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
