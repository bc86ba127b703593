"""Tables of a run, and one page that holds all of its story.

They show what `Result` and `Assessment` hold, and compute no score anew. The same input gives the
same bytes: there is no date in them and no time that was taken.
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

from src_salt import pictures
from src_salt.assess import Assessment
from src_salt.config import Settings
from src_salt.experiments import Result, best_of
from src_salt.outputs import Outputs, write_text
from src_salt.pictures import LABELS, by_coverage, label

SELECTED_BY = {"val_iou": "validation IoU", "val_score": "validation score"}
"""`Result.selected_by` in words."""

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
class Picture:
    """A picture of the page, and what it shows in words."""

    path: Path
    alt: str
    caption: str

    @property
    def data_url(self) -> str:
        """The file itself, so that the page needs no other."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading of the page with its pictures."""

    title: str
    pictures: Sequence[Picture]
    with_classes: bool = False
    """Whether the table of the coverage classes stands below them."""


def write_report(
    results: list[Result], assessed: Assessment, settings: Settings, outputs: Outputs
) -> None:
    """The folder results/: tables, pictures, and the page that holds all of them."""
    write_table(results, assessed, outputs.table_csv, outputs.table_markdown)
    pictures.plot_iou_comparison(results, outputs.iou_plot)
    pictures.plot_losses(results, outputs.loss_plot)
    pictures.plot_scores(results, outputs.score_plot)
    pictures.plot_calibration(assessed, outputs.calibration_plot)
    pictures.plot_coverage(assessed, outputs.coverage_plot)
    name = best_of(results)[0].experiment.grid_name
    groups = (
        (outputs.predictions_plot, "From little salt to much", _spread(assessed)),
        *(
            (path, title, _ranked(assessed, place))
            for path, title, place in (
                (outputs.best_cases, "Best cases", 0.0),
                (outputs.median_cases, "Median cases", 0.5),
                (outputs.worst_cases, "Worst cases", 1.0),
            )
        ),
    )
    for path, title, rows in groups:
        pictures.plot_predictions(_cases(assessed, rows), f"{title}, predicted by {name}", path)
    write_page(outputs.page, results, assessed, settings, _sections(outputs))


def _cases(assessed: Assessment, rows: npt.NDArray[np.int64]) -> list[pictures.Case]:
    validation = assessed.validation
    return [
        pictures.Case(
            image_id=validation.ids[row],
            image=validation.images[row],
            truth=validation.masks[row] > 0,
            prediction=assessed.masks[row],
            iou=float(assessed.ious[row]),
            score=float(assessed.scores[row]),
        )
        for row in rows.tolist()
    ]


def _spread(assessed: Assessment) -> npt.NDArray[np.int64]:
    """Rows spread evenly from little salt to much, with as few empty ones as can be."""
    salt = assessed.validation.masks.mean(axis=(1, 2))
    by_salt = np.argsort(salt, kind="stable")
    empty = int((salt == 0).sum())
    shown_empty = max(1, SHOWN_CASES - (len(salt) - empty))
    by_salt = by_salt[max(0, empty - shown_empty) :]
    places = np.linspace(0, len(by_salt) - 1, min(SHOWN_CASES, len(by_salt)))
    rows: npt.NDArray[np.int64] = by_salt[places.round().astype(int)]
    return rows


def _ranked(assessed: Assessment, place: float) -> npt.NDArray[np.int64]:
    """Rows about `place` of the order from best (0) to worst (1).

    An empty picture that was left empty shows nothing: such are only taken where there is no other.
    Of equal scores and IoUs the one with fewer wrong pixels is the better.
    """
    truths = assessed.validation.masks > 0
    wrong = (truths != assessed.masks).sum(axis=(1, 2))
    order = np.lexsort((wrong, -assessed.ious, -assessed.scores))
    shows = (truths | assessed.masks).any(axis=(1, 2))
    order = order[shows[order]] if shows.any() else order
    count = min(SHOWN_CASES, max(1, len(order) // 3))
    first = round(place * (len(order) - count))
    rows: npt.NDArray[np.int64] = order[first : first + count]
    return rows


def _sections(outputs: Outputs) -> list[Section]:
    """What the page shows in pictures, in its order."""
    cases = "Rows: the image, its truth, the prediction with the truth's edge."
    return [
        Section(
            "Curves",
            [
                Picture(
                    outputs.iou_plot,
                    "Validation IoU of each run by epoch, and of the epochs kept",
                    "IoU by epoch, at the network's size. A cross marks a run that ended early.",
                ),
                Picture(
                    outputs.score_plot,
                    "Competition's score on validation by epoch, and the learning rate",
                    "The competition's score by epoch, of masks cut at one half, at full size.",
                ),
                Picture(
                    outputs.loss_plot,
                    "Training and validation loss by epoch, a panel for each experiment",
                    "Loss by epoch. The scales of two losses cannot be compared.",
                ),
            ],
        ),
        Section(
            "Calibration",
            [
                Picture(
                    outputs.calibration_plot,
                    "Score over thresholds for each smallest region, and a reliability diagram",
                    "Left: every cut tried on the same images. The highest point flatters itself "
                    "a little. Right: on the dashed line a probability means what it says.",
                )
            ],
        ),
        Section(
            "Coverage",
            [
                Picture(
                    outputs.coverage_plot,
                    "Score and IoU for each tenth of coverage with salt",
                    "A picture without salt scores all or nothing. Dashed: the mean of all.",
                )
            ],
            with_classes=True,
        ),
        Section(
            "Cases",
            [
                Picture(outputs.best_cases, "Images with the highest scores", cases),
                Picture(outputs.median_cases, "Images with middling scores", cases),
                Picture(outputs.worst_cases, "Images with the lowest scores", cases),
                Picture(outputs.predictions_plot, "Images from little salt to much", cases),
            ],
        ),
    ]


def table(results: Sequence[Result]) -> pandas.DataFrame:
    """One row for each run, fold by fold, best first."""
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


def write_table(results: Sequence[Result], assessed: Assessment, csv: Path, markdown: Path) -> None:
    """The table as csv and as markdown."""
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
    best = best_of(results)[0]
    lines += [
        "",
        f"Best by {SELECTED_BY[best.selected_by]}: {best.experiment.grid_name}. The competition's "
        f"score of its weights on the validation images at 101x101: {assessed.score:.4f}. "
        + cut_in_words(assessed),
        "",
    ]
    write_text(markdown, "\n".join(lines))


def cut_in_words(assessed: Assessment) -> str:
    """How the submission's masks are made, and how far the score on validation can be trusted."""
    cut = assessed.cut
    words = f"The submission marks as salt what is more probable than {cut.threshold:.2f}"
    if cut.smallest:
        words += f", without regions of fewer than {cut.smallest} pixels"
    if assessed.chosen:
        return (
            f"{words}. This cut was chosen on the validation images; the score shown is "
            "cross-chosen: each half of them is cut as is best for the other half."
        )
    return f"{words}. This cut was fixed beforehand."


def write_page(
    path: Path,
    results: Sequence[Result],
    assessed: Assessment,
    settings: Settings,
    sections: Sequence[Section],
) -> None:
    """Everything in one HTML file that opens without a network and runs no script."""
    best = best_of(results)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(PAGE).render(
        best=best,
        best_label=label(best[0].experiment).split(", fold")[0],
        selected_by=SELECTED_BY[best[0].selected_by],
        rows=sorted(results, key=lambda result: -result.value),
        label=label,
        assessed=assessed,
        images=len(assessed.validation),
        cut=cut_in_words(assessed),
        coverage=by_coverage(assessed),
        settings=_shown(settings),
        sections=sections,
    )
    write_text(path, text)


def _shown(settings: Settings) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in SHOWN_SETTINGS}
    values |= {name: getattr(settings.training, name) for name in ("learning_rate", "weight_decay")}
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
<title>Salt: {{ best_label }}, score {{ "%.4f"|format(assessed.score) }}</title>
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
<h1>{{ best_label }} finds salt with a score of {{ "%.4f"|format(assessed.score) }}</h1>
<p>The best of the runs by {{ selected_by }}. Validation images: {{ images }}, each predicted by a
network that was not trained on it.</p>
<nav><a href="#runs">Runs</a>
{% for section in sections %}
<a href="#section{{ loop.index }}">{{ section.title }}</a>
{% endfor %}
<a href="#settings">Settings</a></nav>
<dl class="facts">
<div><dt>Competition's score</dt><dd>{{ "%.4f"|format(assessed.score) }}</dd></div>
<div><dt>IoU</dt><dd>{{ "%.4f"|format(assessed.iou) }}</dd></div>
<div><dt>Networks averaged</dt><dd>{{ best|length }}</dd></div>
<div><dt>Threshold</dt><dd>{{ "%.2f"|format(assessed.cut.threshold) }}</dd></div>
<div><dt>Smallest region</dt><dd>{{ assessed.cut.smallest or "none" }}\
{% if assessed.cut.smallest %} px{% endif %}</dd></div>
</dl>
<p>{{ cut }}</p>

<h2 id="runs">All runs</h2>
<div class="wide" tabindex="0" role="region" aria-label="All runs">
<table>
<caption>IoU and score are of the epoch whose weights are kept, cut at one half.</caption>
<thead><tr><th>run</th><th>selected by</th><th class="number">value</th>
<th class="number">IoU</th><th class="number">score</th><th class="number">at epoch</th>
<th class="number">epochs</th><th>ended</th></tr></thead>
<tbody>
{% for run in rows %}
<tr{% if run in best %} class="best"{% endif %}>
<td>{{ label(run.experiment) }}
{% if run in best %}<span class="mark">&#9733; best</span>{% endif %}</td>
<td>{{ run.selected_by }}</td>
<td class="number">{{ "%.4f"|format(run.value) }}</td>
<td class="number">{{ "%.4f"|format(run.best.val_iou) }}</td>
<td class="number">{{ "%.4f"|format(run.best.val_score) }}</td>
<td class="number">{{ run.best.epoch }}</td>
<td class="number">{{ run.history|length }}</td>
{% if run.ended %}
<td class="ended">early: {{ run.ended }}</td>
{% else %}
<td>complete</td>
{% endif %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% for section in sections %}

<h2 id="section{{ loop.index }}">{{ section.title }}</h2>
{% for picture in section.pictures %}
<figure>
<div class="wide" tabindex="0" role="region" aria-label="{{ picture.alt }}">
<img src="{{ picture.data_url }}" alt="{{ picture.alt }}"></div>
<figcaption>{{ picture.caption }}</figcaption>
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
