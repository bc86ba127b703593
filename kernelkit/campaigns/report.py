"""The report of a sweep: one HTML page with pictures, which loads nothing from elsewhere."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
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
    page = resources.files("kernelkit.campaigns") / f"{REPORT_NAME}.j2"
    text = environment.from_string(page.read_text(encoding="utf-8")).render(
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
