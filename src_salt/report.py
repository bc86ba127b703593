"""The report of a run: tables, and one HTML page with everything.

It shows what `Result` and `Evaluation` contain and computes no scores. Equal input gives equal
bytes, since the report contains no dates or durations.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
from jinja2 import Environment, StrictUndefined

from src_salt import plots
from src_salt.config import Settings
from src_salt.evaluate import Evaluation
from src_salt.experiments import Result, select_best
from src_salt.outputs import Outputs, write_text
from src_salt.plots import LABELS, experiment_label, scores_by_coverage

SELECTED_BY = {"val_iou": "validation IoU", "val_score": "validation score"}
"""Readable names of `Result.selected_by`."""

SHOWN_CASES = 6

SHOWN_SETTINGS = (
    "recipe",
    "epochs",
    "batch_size",
    "image_size",
    "pretrained",
    "folds",
    "seed",
    "limit_train",
    "limit_val",
)


@dataclass(frozen=True)
class ReportImage:
    """An image of the page with its alternative text and caption."""

    path: Path
    alt: str
    caption: str

    @property
    def data_url(self) -> str:
        """The content of the file as a data URL, so that the page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading of the page with its images."""

    title: str
    images: Sequence[ReportImage]
    with_classes: bool = False
    """Whether the table of coverage classes follows."""


def write_report(
    results: list[Result], evaluation: Evaluation, settings: Settings, outputs: Outputs
) -> None:
    """Write the folder results/: tables, plots, and the page that combines them."""
    write_table(results, evaluation, outputs.table_csv, outputs.table_markdown)
    plots.plot_iou_comparison(results, outputs.iou_plot)
    plots.plot_losses(results, outputs.loss_plot)
    plots.plot_scores(results, outputs.score_plot)
    plots.plot_calibration(evaluation, outputs.calibration_plot)
    plots.plot_coverage(evaluation, outputs.coverage_plot)
    name = select_best(results)[0].experiment.base_name
    groups = (
        (outputs.predictions_plot, "From little salt to much", _spread(evaluation)),
        *(
            (path, title, _ranked(evaluation, position))
            for path, title, position in (
                (outputs.best_cases, "Best cases", 0.0),
                (outputs.median_cases, "Median cases", 0.5),
                (outputs.worst_cases, "Worst cases", 1.0),
            )
        ),
    )
    for path, title, rows in groups:
        plots.plot_predictions(_cases(evaluation, rows), f"{title}, predicted by {name}", path)
    write_page(outputs.page, results, evaluation, settings, _sections(outputs))


def _cases(evaluation: Evaluation, rows: npt.NDArray[np.int64]) -> list[plots.Case]:
    validation = evaluation.validation
    return [
        plots.Case(
            image_id=validation.ids[row],
            image=validation.images[row],
            truth=validation.masks[row] > 0,
            prediction=evaluation.masks[row],
            iou=float(evaluation.ious[row]),
            score=float(evaluation.scores[row]),
        )
        for row in rows.tolist()
    ]


def _spread(evaluation: Evaluation) -> npt.NDArray[np.int64]:
    """Return rows evenly spread from little to much salt, with as few empty masks as possible."""
    salt = evaluation.validation.masks.mean(axis=(1, 2))
    by_salt = np.argsort(salt, kind="stable")
    empty = int((salt == 0).sum())
    shown_empty = max(1, SHOWN_CASES - (len(salt) - empty))
    by_salt = by_salt[max(0, empty - shown_empty) :]
    places = np.linspace(0, len(by_salt) - 1, min(SHOWN_CASES, len(by_salt)))
    rows: npt.NDArray[np.int64] = by_salt[places.round().astype(int)]
    return rows


def _ranked(evaluation: Evaluation, position: float) -> npt.NDArray[np.int64]:
    """Return rows around a position in the order from best (0) to worst (1).

    Images without predicted or true salt are used only if there are no others. Of equal scores and
    IoUs, the one with fewer wrong pixels is better.
    """
    truths = evaluation.validation.masks > 0
    wrong = (truths != evaluation.masks).sum(axis=(1, 2))
    order = np.lexsort((wrong, -evaluation.ious, -evaluation.scores))
    has_salt = (truths | evaluation.masks).any(axis=(1, 2))
    order = order[has_salt[order]] if has_salt.any() else order
    count = min(SHOWN_CASES, max(1, len(order) // 3))
    first = round(position * (len(order) - count))
    rows: npt.NDArray[np.int64] = order[first : first + count]
    return rows


def _sections(outputs: Outputs) -> list[Section]:
    """Return the sections of the page that show images."""
    cases = "Rows: the image, the truth, the prediction with the edge of the truth."
    return [
        Section(
            "Curves",
            [
                ReportImage(
                    outputs.iou_plot,
                    "Validation IoU of each run by epoch, and the IoU of the kept epochs",
                    "IoU by epoch, at the network's input size. A cross marks an early end.",
                ),
                ReportImage(
                    outputs.score_plot,
                    "Competition score on validation by epoch, and the learning rate",
                    "The competition's score by epoch, at full size with a threshold of 0.5.",
                ),
                ReportImage(
                    outputs.loss_plot,
                    "Training and validation loss by epoch, one panel for each experiment",
                    "Loss by epoch. The scales of different losses cannot be compared.",
                ),
            ],
        ),
        Section(
            "Calibration",
            [
                ReportImage(
                    outputs.calibration_plot,
                    "Score by threshold for each minimum area, and a reliability diagram",
                    "Left: every threshold and minimum area, tried on the same images, so the best "
                    "score is slightly too high. Right: perfect calibration is the dashed line.",
                )
            ],
        ),
        Section(
            "Coverage",
            [
                ReportImage(
                    outputs.coverage_plot,
                    "Score and IoU by coverage with salt, in steps of ten percent",
                    "An image without salt scores 0 or 1. Dashed: the mean of all images.",
                )
            ],
            with_classes=True,
        ),
        Section(
            "Cases",
            [
                ReportImage(outputs.best_cases, "Images with the highest scores", cases),
                ReportImage(outputs.median_cases, "Images with median scores", cases),
                ReportImage(outputs.worst_cases, "Images with the lowest scores", cases),
                ReportImage(outputs.predictions_plot, "Images from little salt to much", cases),
            ],
        ),
    ]


def table(results: Sequence[Result]) -> pandas.DataFrame:
    """Return one row for each result, best first. Each fold is a result."""
    rows = [
        {
            "experiment": result.experiment.name,
            "backbone": LABELS[result.experiment.backbone],
            "loss": LABELS[result.experiment.loss],
            "selected_by": result.selected_by,
            "best_val_iou": result.best.val_iou,
            "best_val_score": result.best.val_score,
            "best_epoch": result.best.epoch,
            "epochs": len(result.history),
            "ended": result.ended,
        }
        for result in sorted(results, key=lambda result: -result.value)
    ]
    return pandas.DataFrame(rows)


def write_table(
    results: Sequence[Result], evaluation: Evaluation, csv: Path, markdown: Path
) -> None:
    """Write the table as CSV and as Markdown."""
    frame = table(results)
    write_text(csv, frame.to_csv(index=False, lineterminator="\n"))
    lines = [
        "| experiment | backbone | loss | validation IoU | score | at epoch | epochs | ended |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in frame.itertuples(index=False):
        ended = " ".join(row.ended.replace("|", "\\|").split())
        lines.append(
            f"| {row.experiment} | {row.backbone} | {row.loss} | {row.best_val_iou:.4f} "
            f"| {row.best_val_score:.4f} | {row.best_epoch} | {row.epochs} | {ended} |"
        )
    best = select_best(results)[0]
    lines += [
        "",
        f"Best by {SELECTED_BY[best.selected_by]}: {best.experiment.base_name}. The competition's "
        f"score of its weights on the validation images at 101x101: {evaluation.score:.4f}. "
        + describe_postprocessing(evaluation),
        "",
    ]
    for result in results:
        lines += [f"- {result.experiment.name}: {' '.join(note.split())}" for note in result.notes]
    if any(result.notes for result in results):
        lines.append("")
    write_text(markdown, "\n".join(lines))


def describe_postprocessing(evaluation: Evaluation) -> str:
    """Describe how the submission's masks are made, and whether that was tuned on validation."""
    threshold = evaluation.postprocessing.threshold
    min_area = evaluation.postprocessing.min_area
    text = f"In the submission, pixels with a probability above {threshold:.2f} are salt"
    if min_area:
        text += f", and regions of fewer than {min_area} pixels are removed"
    if evaluation.tuned:
        return (
            f"{text}. This was tuned on the validation images. The score shown is cross-fitted: "
            "each half of the images uses what is best for the other half."
        )
    return f"{text}. This was fixed before training."


def write_page(
    path: Path,
    results: Sequence[Result],
    evaluation: Evaluation,
    settings: Settings,
    sections: Sequence[Section],
) -> None:
    """Write one HTML file that needs no network and runs no scripts."""
    best = select_best(results)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(PAGE).render(
        best=best,
        best_label=experiment_label(best[0].experiment).split(", fold")[0],
        selected_by=SELECTED_BY[best[0].selected_by],
        rows=sorted(results, key=lambda result: -result.value),
        experiment_label=experiment_label,
        evaluation=evaluation,
        images=len(evaluation.validation),
        postprocessing=describe_postprocessing(evaluation),
        coverage=scores_by_coverage(evaluation),
        settings=_shown(settings),
        sections=sections,
    )
    write_text(path, text)


def _shown(settings: Settings) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in SHOWN_SETTINGS}
    values |= {
        name: getattr(settings.resolved_recipe, name) for name in ("learning_rate", "weight_decay")
    }
    return {
        name.replace("_", " "): {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else value
        for name, value in values.items()
        if value is not None
    }


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Salt: {{ best_label }}, score {{ "%.4f"|format(evaluation.score) }}</title>
<style>
:root {
  color-scheme: light dark;
  --ground: #fff; --ink: #1c2529; --soft: #5d6b72; --line: #dde3e6; --tint: #eef5f8;
  --accent: #12607a; --alarm: #b0124f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14191c; --ink: #e4eaed; --soft: #9aa8af; --line: #323c41; --tint: #1b2a31;
    --accent: #6fc3da; --alarm: #ff7bac;
  }
  img { filter: brightness(.9); }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(.9rem, 4vw, 2.5rem) 4rem; max-width: 72rem;
  background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
nav { font-size: .9rem; color: var(--soft); }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--accent); }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; }
.facts div { flex: 1 1 9rem; padding: .6rem .9rem; background: var(--tint); border-radius: .5rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; }
td, th { vertical-align: top; }
tr.best td { font-weight: 600; }
.mark { color: var(--accent); white-space: nowrap; }
.ended { color: var(--alarm); min-width: 12rem; font-weight: 600; }
figure { margin: 1rem 0 1.8rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .4rem; background: #fff; }
figcaption { color: var(--soft); font-size: .92rem; max-width: 46rem; margin-top: .4rem; }
@media (max-width: 46rem) {
  figure img { width: 44rem; max-width: none; }
}
@media print {
  :root {
    --ground: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f2f2f2;
    --accent: #12607a; --alarm: #b0124f;
  }
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav { display: none; }
  figure, tr, .facts { break-inside: avoid; }
  h2 { break-after: avoid; }
  figure img { width: auto; max-width: 100%; max-height: 21cm; filter: none; }
  .wide { overflow: visible; }
}
</style>
</head>
<body>
<h1>{{ best_label }}: score {{ "%.4f"|format(evaluation.score) }}</h1>
<p>This is the best run by {{ selected_by }}. There are {{ images }} validation images, each
predicted by a network that was not trained on it.</p>
<nav><a href="#runs">Runs</a>
{% for section in sections %}
<a href="#section{{ loop.index }}">{{ section.title }}</a>
{% endfor %}
<a href="#settings">Settings</a></nav>
<dl class="facts">
<div><dt>Competition's score</dt><dd>{{ "%.4f"|format(evaluation.score) }}</dd></div>
<div><dt>IoU</dt><dd>{{ "%.4f"|format(evaluation.iou) }}</dd></div>
<div><dt>Networks averaged</dt><dd>{{ best|length }}</dd></div>
<div><dt>Threshold</dt><dd>{{ "%.2f"|format(evaluation.postprocessing.threshold) }}</dd></div>
<div><dt>Minimum area</dt><dd>{{ evaluation.postprocessing.min_area or "none" }}\
{% if evaluation.postprocessing.min_area %} px{% endif %}</dd></div>
</dl>
<p>{{ postprocessing }}</p>

<h2 id="runs">All runs</h2>
<div class="wide" tabindex="0" role="region" aria-label="All runs">
<table>
<caption>IoU and score of the epoch whose weights are kept, with a threshold of 0.5.</caption>
<thead><tr><th>run</th><th>selected by</th><th class="number">value</th>
<th class="number">IoU</th><th class="number">score</th><th class="number">at epoch</th>
<th class="number">epochs</th><th>ended</th></tr></thead>
<tbody>
{% for run in rows %}
<tr{% if run in best %} class="best"{% endif %}>
<td>{{ experiment_label(run.experiment) }}
{% if run in best %}<span class="mark">&#9733; best</span>{% endif %}</td>
<td>{{ run.selected_by }}</td>
<td class="number">{{ "%.4f"|format(run.value) }}</td>
<td class="number">{{ "%.4f"|format(run.best.val_iou) }}</td>
<td class="number">{{ "%.4f"|format(run.best.val_score) }}</td>
<td class="number">{{ run.best.epoch }}</td>
<td class="number">{{ run.history|length }}</td>
{% if run.ended %}
<td class="ended">early: {{ run.ended }}
{% else %}
<td>complete
{% endif %}
{% for note in run.notes %}
<p>{{ note }}</p>
{% endfor %}
</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% for section in sections %}

<h2 id="section{{ loop.index }}">{{ section.title }}</h2>
{% for image in section.images %}
<figure>
<div class="wide" tabindex="0" role="region" aria-label="{{ image.alt }}">
<img src="{{ image.data_url }}" alt="{{ image.alt }}"></div>
<figcaption>{{ image.caption }}</figcaption>
</figure>
{% endfor %}
{% if section.with_classes %}
<div class="wide" tabindex="0" role="region" aria-label="Score by coverage">
<table>
<thead><tr><th>salt</th><th class="number">images</th><th class="number">score</th>
<th class="number">IoU</th></tr></thead>
<tbody>
{% for one in coverage %}
<tr><td>{{ one.label }}</td><td class="number">{{ one.images }}</td>
<td class="number">{{ "%.4f"|format(one.score) }}</td>
<td class="number">{{ "%.4f"|format(one.iou) }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% endfor %}

<h2 id="settings">Settings</h2>
<table>
<tbody>
{% for name, value in settings.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody>
</table>
</body>
</html>
"""
