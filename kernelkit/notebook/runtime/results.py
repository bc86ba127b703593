"""Shows the results of a run in the notebook: its metric, epochs, tables and images, bounded.

Each display has a text for terminals, which papermill also writes into Kaggle's log. What cannot be
shown is named and never ends the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from .charts import MAX_CURVES, as_image, line_chart
from .epochs import Epoch, EpochHistory, Experiment
from .files import files_below
from .outputs import declared_outputs
from .recording import bounded, error_text
from .tables import Table, csv_head, number_text

MAX_RESULTS = 20  # Markdown files and images shown
MAX_IMAGE_BYTES = 1_000_000  # a larger one would bloat the executed notebook
MAX_IMAGES_BYTES = 5_000_000  # of all images
MAX_MARKDOWN_CHARACTERS = 20_000
MAX_HEADS = 5  # csv files of which the first rows are shown
MAX_ROWS = 25
MAX_COLUMNS = 8
IMAGES = (".png", ".jpg", ".jpeg", ".gif")

STYLE = (
    "<style>"
    ".celltag_hide-input .jp-Cell-inputWrapper{max-height:2.6em;overflow:auto}"
    ".celltag_hide-output .jp-Cell-outputWrapper{max-height:8em;overflow:auto}"
    ".celltag_hide-input.celltag_hide-output .jp-Cell-outputWrapper{display:none}"
    "</style>"
)
"""For the HTML of nbconvert, which gives cells classes for their tags and collapses nothing."""


def show_results(working_dir: Path, declared: Sequence[str], history: EpochHistory) -> None:
    """Show the metric, the epochs, the heads of declared csv files, Markdown files and images."""
    _attempt("the epochs", lambda: _show_epochs(history))
    outputs = declared_outputs(working_dir, declared)
    named = list(dict.fromkeys(file for files in outputs.values() for file in files))
    tables = [name for name in named if name.endswith(".csv")]
    for name in tables[:MAX_HEADS]:
        _attempt(name, partial(_show_head, working_dir / name, name))
    _say_rest(len(tables) - MAX_HEADS, "csv files")
    _show_files(working_dir)


def _show_epochs(history: EpochHistory) -> None:
    if not history.experiments:
        _show(STYLE, "")
        return
    ranked = history.ranked
    parts = [_headline(history), *_charts(history)]
    texts = [_headline_text(history)] if ranked else []
    tables = [_experiments_table(history)] if len(ranked) > 1 else []
    name = ranked[0][0] if ranked else next(iter(history.experiments))
    tables.append(_epochs_table(history, name))
    _show(
        "".join([STYLE, *parts, *(table.html for table in tables)]),
        "\n".join([*texts, *(table.text for table in tables)]),
    )


def _headline(history: EpochHistory) -> str:
    if not history.metric:
        return ""
    name, best = history.ranked[0]
    place = f"epoch {number_text(best.number)}" + (f" of <b>{escape(name)}</b>" if name else "")
    value = number_text(best.numbers[history.metric])
    goal = "lowest" if history.goal == "minimize" else "highest"
    return (
        f'<p style="font-size:120%"><b>{escape(history.metric)} {value}</b></p>'
        f"<p>The {goal} of {_count(history)}: {place}.</p>"
    )


def _headline_text(history: EpochHistory) -> str:
    name, best = history.ranked[0]
    place = f"epoch {number_text(best.number)}" + (f" of {name}" if name else "")
    goal = "lowest" if history.goal == "minimize" else "highest"
    value = number_text(best.numbers[history.metric])
    return f"{history.metric} {value}: the {goal} of {_count(history)}, {place}"


def _count(history: EpochHistory) -> str:
    epochs = sum(one.total for one in history.experiments.values())
    several = len(history.experiments)
    text = f"{epochs:,} epoch" + ("s" if epochs != 1 else "")
    return f"{text} in {several} experiments" if several > 1 else text


def _charts(history: EpochHistory) -> list[str]:
    metric, images = history.metric, []
    ranked = history.ranked
    order = [name for name, _ in ranked] or list(history.experiments)
    curves = {name or metric: _curve(history.experiments[name], metric) for name in order}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if metric and curves:
        best = ranked[0][1]
        svg = line_chart(metric, curves, (best.number, best.numbers[metric]))
        images.append(as_image(svg, f"{metric} of each epoch"))
    found = _losses(history.experiments[order[0]], metric) if order else {}
    losses = dict(itertools.islice(found.items(), MAX_CURVES))
    if losses:
        title = f"losses of {order[0]}" if order[0] else "losses"
        images.append(as_image(line_chart(title, losses), f"{title}, of each epoch"))
    return [f"<p>{image}</p>" for image in images]


def _curve(experiment: Experiment, name: str) -> list[tuple[float, float]]:
    return [(one.number, one.numbers[name]) for one in experiment.epochs if name in one.numbers]


def _losses(experiment: Experiment, metric: str) -> dict[str, list[tuple[float, float]]]:
    """The curves of all losses in one pass: a program may report any number of names."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in experiment.epochs:
        for name, value in one.numbers.items():
            if "loss" in name.lower() and name != metric:
                curves.setdefault(name, []).append((one.number, value))
    return {name: curve for name, curve in curves.items() if len(curve) > 1}


def _experiments_table(history: EpochHistory) -> Table:
    metric, ranked = history.metric, history.ranked
    rows = [
        (
            name or "(without a name)",
            number_text(best.numbers[metric]),
            number_text(best.number),
            str(history.experiments[name].total),
        )
        for name, best in ranked[:MAX_ROWS]
    ]
    more = len(ranked) - MAX_ROWS
    note = f"and {more} more experiments" if more > 0 else ""
    return Table("Experiments", ("experiment", metric, "at epoch", "epochs"), rows, 0, note)


def _epochs_table(history: EpochHistory, name: str) -> Table:
    experiment, metric = history.experiments[name], history.metric
    best = experiment.best(metric, history.goal)
    epochs = _selected(experiment.epochs, best)
    reported = list(dict.fromkeys(n for epoch in epochs for n in epoch.numbers))
    names = sorted(reported, key=lambda one: one != metric)
    rows = [
        [number_text(e.number), *(number_text(e.numbers.get(n)) for n in names[:MAX_COLUMNS])]
        for e in epochs
    ]
    notes = []
    if experiment.total > len(epochs):
        notes.append(f"{len(epochs)} of {experiment.total:,} epochs")
    if len(names) > MAX_COLUMNS:
        notes.append(f"without {', '.join(names[MAX_COLUMNS:][:MAX_COLUMNS])}")
    caption = f"Epochs of {name}" if name else "Epochs"
    marked = epochs.index(best) if best is not None else None
    columns = ("epoch", *names[:MAX_COLUMNS])
    return Table(caption, columns, rows, marked, "; ".join(notes))


def _selected(epochs: Sequence[Epoch], best: Epoch | None) -> list[Epoch]:
    """At most `MAX_ROWS`, evenly spaced, with the first, the last and the best one."""
    step = max(-(-len(epochs) // (MAX_ROWS - 2)), 1)
    chosen = [*epochs[::step]]
    if epochs[-1] is not chosen[-1]:
        chosen.append(epochs[-1])
    if best is not None and best not in chosen:
        chosen.append(best)
    return sorted(chosen, key=lambda epoch: epoch.number)


def _show_head(path: Path, name: str) -> None:
    table = csv_head(path, bounded(name))
    if table is not None:
        _show(table.html, table.text)


def _show_files(working_dir: Path) -> None:
    """Markdown files and images, wherever they are in the working folder."""
    from IPython.display import Image, Markdown, display

    suffixes = (".md", *IMAGES)
    found = [name for name in files_below(working_dir) if name.lower().endswith(suffixes)]
    bytes_left = MAX_IMAGES_BYTES
    for name in found[:MAX_RESULTS]:
        path = working_dir / name

        def show(path: Path = path, name: str = name) -> None:
            nonlocal bytes_left
            if path.suffix.lower() == ".md":
                text = path.read_text(encoding="utf-8", errors="replace")
                cut = text[:MAX_MARKDOWN_CHARACTERS]
                display(Markdown(cut if cut == text else f"{cut}\n\n…"))
                return
            size = path.stat().st_size
            if size > min(MAX_IMAGE_BYTES, bytes_left):
                print(f"{bounded(name)} is not shown: {size:,} B")
                return
            bytes_left -= size
            _show(f"<p><code>{escape(bounded(name))}</code></p>", bounded(name))
            display(Image(path.read_bytes()))

        _attempt(bounded(name), show)
    _say_rest(len(found) - MAX_RESULTS, "tables and images")


def _show(html: str, text: str) -> None:
    from IPython.display import display

    content: Mapping[str, str] = {"text/html": html, "text/plain": text}
    display(dict(content), raw=True)


def _attempt(subject: str, show: Callable[[], Any]) -> None:
    try:
        show()
    except Exception as error:  # whatever a program has written into its files
        print(f"{subject} cannot be shown: {error_text(error)}")


def _say_rest(count: int, what: str) -> None:
    if count > 0:
        print(f"… and {count} more {what}")
