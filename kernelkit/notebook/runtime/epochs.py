"""The epochs of a run, from its events: a bounded number of them, and the best of each number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .events import RunEvent
from .metric import goal_of, metric_among

MAX_EPOCHS = 1000  # kept of one experiment; of more, every second
MAX_EXPERIMENTS = 200
NOT_RESULTS = ("epoch", "epochs")


@dataclass(frozen=True)
class Epoch:
    """One epoch of an experiment."""

    number: float
    """As the event states it, else the how many-th it is."""

    numbers: Mapping[str, float]
    """What it reports besides."""


@dataclass
class Experiment:
    """The epochs of one experiment, in their order."""

    epochs: list[Epoch] = field(default_factory=list)
    total: int = 0
    """How many there were, also those that are not kept."""

    lowest: dict[str, Epoch] = field(default_factory=dict)
    highest: dict[str, Epoch] = field(default_factory=dict)

    def add(self, numbers: Mapping[str, float]) -> None:
        """Keep one epoch."""
        self.total += 1
        reported = {name: value for name, value in numbers.items() if name not in NOT_RESULTS}
        epoch = Epoch(numbers.get("epoch", self.total), reported)
        self.epochs.append(epoch)
        if len(self.epochs) > 2 * MAX_EPOCHS:
            self.epochs = self.epochs[::2]
        for name, value in reported.items():
            if name not in self.lowest or value < self.lowest[name].numbers[name]:
                self.lowest[name] = epoch
            if name not in self.highest or value > self.highest[name].numbers[name]:
                self.highest[name] = epoch

    def best(self, metric: str, goal: str) -> Epoch | None:
        """The epoch with the best value of a metric; None if no epoch reports it."""
        return (self.lowest if goal == "minimize" else self.highest).get(metric)


class EpochHistory:
    """The epochs of all experiments; without names they are one experiment."""

    def __init__(self, metric: str = "", goal: str | None = None) -> None:
        self._declared = metric
        self._goal = goal
        self.experiments: dict[str, Experiment] = {}

    def add(self, event: RunEvent) -> None:
        """Keep an event "epoch"."""
        if event.kind != "epoch":
            return
        if event.label in self.experiments or len(self.experiments) < MAX_EXPERIMENTS:
            self.experiments.setdefault(event.label, Experiment()).add(event.numbers)

    @property
    def names(self) -> list[str]:
        """The names of all numbers, in the order in which they were first reported."""
        return list(dict.fromkeys(n for one in self.experiments.values() for n in one.highest))

    @property
    def metric(self) -> str:
        """The declared metric, else the one that looks like it; empty where none is reported."""
        name = self._declared or metric_among(self.names)
        return name if name in self.names else ""

    @property
    def goal(self) -> str:
        """Whether the lowest or the highest value is the best: "minimize" or "maximize"."""
        return self._goal if self._goal and self._declared else goal_of(self.metric)

    @property
    def ranked(self) -> list[tuple[str, Epoch]]:
        """Each experiment that reports the metric with its best epoch, the best one first."""
        metric, goal = self.metric, self.goal
        found = [
            (name, best)
            for name, one in list(self.experiments.items())
            if (best := one.best(metric, goal)) is not None
        ]
        sign = 1 if goal == "minimize" else -1
        return sorted(found, key=lambda one: sign * one[1].numbers[metric])
