"""Which number of the epochs says how good a run is, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, JsonValue

from kernelkit.config import MetricGoal
from kernelkit.notebook.runtime import RunEvent, goal_of, metric_among


class Metric(BaseModel):
    """The best value of a metric among all epochs."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: float
    goal: MetricGoal
    """Whether the lowest or the highest value is the best."""

    experiment: JsonValue = None
    epoch: JsonValue = None
    numbers: dict[str, float] = {}
    """Everything else that this epoch reports."""


def best_metric(
    events: Sequence[RunEvent], declared: str = "", goal: MetricGoal | None = None
) -> Metric | None:
    """The best epoch; None if no epoch reports the metric.

    The project file declares the metric and its goal. Without that, it is the first number whose
    name looks like one of the validation (see `metric_among`).
    """
    reported = list(dict.fromkeys(name for event in events for name in event.numbers))
    name = declared or metric_among(reported)
    if name not in reported:
        return None
    chosen = goal if goal and declared else goal_of(name)
    found = [event for event in events if name in event.numbers]
    best = (min if chosen == "minimize" else max)(found, key=lambda one: one.numbers[name])
    return Metric(
        name=name,
        value=float(best.numbers[name]),
        goal=chosen,
        experiment=best.experiment,
        epoch=best.numbers.get("epoch"),
        numbers={
            k: float(v) for k, v in best.numbers.items() if k not in (name, "epoch", "epochs")
        },
    )
