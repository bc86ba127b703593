"""Which number of the epochs says how good a run is, and whether more of it is better."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, JsonValue

from kernelkit.config import MetricGoal
from kernelkit.runs.watch import LogEvent

PREFERRED = ("val_iou", "val_score", "val_f1", "val_auc", "val_accuracy", "val_loss")
"""Before any other number that looks like one of the validation."""

_VALIDATION = re.compile(
    r"(?:val|valid|validation|eval|dev|cv|oof|test)[_./-].+|.+[_./-](?:val|cv)"
)
_LOWER_IS_BETTER = re.compile(
    r"(?:^|[_./-])(?:\w*loss|error|err|\w*rmse|rmsle|mae|mape|\w*mse|log_?loss|nll|ppl|perplexity|wer|cer|fid|"
    r"brier|bce|deviance|distance)(?:$|[_./-])"
)


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


def goal_of(name: str) -> MetricGoal:
    """The direction that the name of a metric suggests."""
    return "minimize" if _LOWER_IS_BETTER.search(name.lower()) else "maximize"


def best_metric(
    events: Sequence[LogEvent], declared: str = "", goal: MetricGoal | None = None
) -> Metric | None:
    """The best epoch; None if no epoch reports the metric.

    The project file declares the metric and its goal. Without that, it is the first of PREFERRED,
    or else the first number whose name looks like one of the validation.
    """
    reported = list(dict.fromkeys(name for event in events for name in event.numbers))
    guessed = [name for name in PREFERRED if name in reported]
    guessed += [name for name in reported if _VALIDATION.fullmatch(name.lower())]
    name = declared or next(iter(guessed), "")
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
