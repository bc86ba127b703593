"""The report of a sweep: one HTML page with pictures, which loads nothing from elsewhere."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit.errors import LocalError
from kernelkit.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna.study import Study

    from kernelkit.campaigns.study import SweepStudy, SweepTrial

REPORT_NAME = "sweep.html"
WIDTH, HEIGHT = 8.0, 3.6  # of a picture, in inches
MOST_NAMES = 20  # in the legend of a picture

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sweep of {{ slug }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #dde3ea;
  white-space: nowrap }
th { background: #f4f6f9 }
td.number { text-align: right }
tr.best { background: #e8f6ec; font-weight: 600 }
.complete { color: #17703a } .failed { color: #b3261e } .pruned { color: #8a5a00 }
pre { background: #f4f6f9; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
svg { width: 100%; height: auto }
p.note { color: #55606e }
</style>
<h1>Sweep of {{ slug }}</h1>
<p>{{ summary }} The {{ "highest" if goal == "maximize" else "lowest" }} <code>{{ metric }}</code>
is the best. Study <code>{{ study }}</code>.</p>
{% if best %}
<h2>Best: trial {{ best.number }}, {{ metric }} {{ best.value | number }}</h2>
<p>Its verified run is <code>{{ best.run }}</code>. As options:</p>
<pre>{{ options }}</pre>
{% endif %}
{% for picture in pictures %}
<h2>{{ picture.title }}</h2>
{% if picture.svg %}{{ picture.svg | safe }}
{% else %}<p class="note">{{ picture.note }}</p>{% endif %}
{% endfor %}
<h2>Trials</h2>
<div class="wide"><table>
<tr><th>trial</th><th>state</th><th>{{ metric }}</th>
{% for name in names %}<th>{{ name }}</th>{% endfor %}<th>run</th><th>note</th></tr>
{% for trial in trials %}
<tr{{ ' class="best"' | safe if best and trial.number == best.number }}>
<td class="number">{{ trial.number }}</td><td class="{{ trial.state }}">{{ trial.state }}</td>
<td class="number">{{ trial.value | number if trial.value is not none }}</td>
{% for name in names %}<td>{{ trial.parameters[name] | value }}</td>{% endfor %}
<td>{{ trial.run or "" }}</td><td>{{ trial | note }}</td></tr>
{% endfor %}
</table></div>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """One picture, or why there is none."""

    title: str
    svg: str = ""
    note: str = ""


def write_report(study: SweepStudy, folder: Path, options: Callable[[SweepTrial], str]) -> Path:
    """Write the report into a folder; `options` gives a trial's parameters as options.

    Raises:
        LocalError: it cannot be written.
    """
    import jinja2

    trials, best = study.trials, study.best
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "value": _value, "note": _note}
    text = environment.from_string(PAGE).render(
        slug=study.search.slug,
        study=study.name,
        metric=study.search.metric,
        goal=study.search.goal,
        summary=_summary(trials),
        best=best,
        options=options(best) if best else "",
        pictures=list(_pictures(study.optuna, study.search.metric)),
        names=list(study.space.dimensions),
        trials=trials,
    )
    path = folder / REPORT_NAME
    try:
        write_atomically(path, text)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _summary(trials: list[SweepTrial]) -> str:
    states = [trial.state for trial in trials]
    counts = (f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    return f"{len(trials)} trials: {', '.join(counts)}."


def _pictures(study: Study, metric: str) -> Iterator[Picture]:
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    varied = {name for trial in complete for name in trial.params}
    varied = {n for n in varied if len({str(trial.params.get(n)) for trial in complete}) > 1}

    def intermediate() -> Axes:
        axes = plots.plot_intermediate_values(study)
        axes.set_xlabel("reports of the metric before")
        axes.set_ylabel(metric)
        return axes

    several = len({trial.value for trial in complete}) > 1
    yield _picture(
        "History",
        lambda: plots.plot_optimization_history(study, target_name=metric),
        "" if complete else "No trial is complete yet.",
    )
    yield _picture(
        "Importance of the parameters",
        lambda: plots.plot_param_importances(study, params=sorted(varied), target_name=metric),
        "" if varied and several else "It takes two complete trials with different values.",
    )
    yield _picture(
        "Values during the trials",
        intermediate,
        "" if any(trial.intermediate_values for trial in complete) else "No trial reports any.",
    )


def _picture(title: str, plot: Callable[[], Axes], missing: str) -> Picture:
    """A picture as SVG, without what depends on the time and the machine."""
    import optuna
    from matplotlib import pyplot, rc_context

    if missing:
        return Picture(title, note=missing)
    settings = {"svg.hashsalt": title, "figure.figsize": (WIDTH, HEIGHT), "font.size": 9}
    with warnings.catch_warnings(), rc_context(settings), pyplot.style.context("default"):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of a legend that has no entries
        before = pyplot.get_backend()
        pyplot.switch_backend("agg")
        try:
            axes = plot()
            for place in ("left", "center"):  # the heading of the page says it
                axes.set_title("", loc=place)
            legend = axes.get_legend()
            if legend is not None and len(legend.get_texts()) > MOST_NAMES:
                legend.remove()
            figure = axes.figure
            figure.set_size_inches(WIDTH, HEIGHT)  # type: ignore[union-attr]
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})  # type: ignore[union-attr]
        except (RuntimeError, ValueError) as error:
            return Picture(title, note=f"It cannot be drawn: {error}")
        finally:
            pyplot.close("all")
            pyplot.switch_backend(before)
    return Picture(title, svg=re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL))


def _number(value: float) -> str:
    return f"{value:.6g}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _note(trial: SweepTrial) -> str:
    if trial.same_as is not None:
        return f"the same parameters as trial {trial.same_as}"
    return trial.failure
