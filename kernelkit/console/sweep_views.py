"""What a person reads about sweeps: the live table, the trials at the end, the best one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kernelkit.console.live import interruptible, quota_line
from kernelkit.console.output import (
    as_called,
    detail,
    document,
    mode,
    print_table,
    say,
    stdout,
)
from kernelkit.storage import counted, one_line, shortened

if TYPE_CHECKING:
    from rich.live import Live

    from kernelkit.campaigns.study import SweepTrial
    from kernelkit.campaigns.sweep_plan import SweepEvent, SweepView
    from kernelkit.config import Parameter
    from kernelkit.notebook.runtime import RunEvent

ROWS = 20  # of the live table: what runs, what waits and the latest that ended
FAILURE_CHARACTERS = 60  # of a reason in the table; `--json` has all of it
MESSAGES = 4  # under the live table
STYLES = {"complete": "green", "running": "cyan", "failed": "red", "pruned": "yellow"}


class SweepReporter:
    """Reports a sweep: one live table on a terminal, a line for each change elsewhere."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._view: SweepView | None = None
        self._messages: list[str] = []
        self._said: dict[int, str] = {}

    def __call__(self, event: SweepEvent) -> None:
        """Report a message, or what is known now."""
        if isinstance(event, str):
            self._messages = [*self._messages, one_line(event)][-MESSAGES:]
            if not self._live:
                detail(one_line(event))
        else:
            self._view = event
            if not self._live:
                self._say_changes(event)
        if self._live:
            self._live.update(self._table())

    def _say_changes(self, view: SweepView) -> None:
        """A line for each trial that has started or ended since the last one."""
        for trial in view.trials:
            words = f"{trial.state}{f' in {trial.run}' if trial.run else ''}"
            if trial.state == "waiting" or self._said.get(trial.number) == words:
                continue
            if trial.number in self._said or trial.state == "running":
                value = f": {view.metric} {trial.value:.6g}" if trial.value is not None else ""
                detail(f"trial {trial.number} is {words}{value}")
            self._said[trial.number] = words

    def _table(self) -> RenderableType:
        from rich.console import Group

        parts: list[RenderableType] = []
        if (view := self._view) is not None:
            parts += [trial_table(view, ROWS), Text(_summary(view))]
            if view.quota:
                parts.append(Text(quota_line(view.quota)))
        tail = "\n".join(shortened(line, 1000) for line in self._messages)
        return Group(*parts, Text(tail, style="dim", overflow="ellipsis", no_wrap=True))

    def finish(self) -> None:
        """Leave nothing of the live table: the whole table follows."""
        if self._live:
            self._live.update(Text())


@contextmanager
def sweeping(on_interrupt: str) -> Iterator[SweepReporter]:
    """A reporter for a sweep. Ctrl-C ends it with the message `on_interrupt`."""
    from rich.live import Live

    visible = stdout.is_terminal and not (mode.as_json or mode.quiet)
    live = Live(console=stdout, refresh_per_second=4, transient=True) if visible else None
    reporter = SweepReporter(live)
    with interruptible(on_interrupt), live or nullcontext():
        try:
            yield reporter
        finally:
            reporter.finish()


def swept(view: SweepView) -> None:
    """The trials of a sweep, the best one, and where the pictures are."""
    from kernelkit.campaigns.sweep_plan import set_options

    document(view.document)
    if not mode.quiet:
        print_table(*_columns(view, view.trials), right=("trial", view.metric))
    say(_summary(view))
    for trial in view.trials:
        if trial.state == "failed":
            say(f"trial {trial.number} failed: {one_line(trial.failure)}", "red")
    if view.report:
        say(f"report: {view.report}")
    if best := view.best:
        options = " ".join(set_options(best.parameters))
        say(f"best parameters: {options}")


def sweep_note(event: SweepEvent) -> None:
    """A note before the result of a command."""
    if isinstance(event, str):
        detail(event)


def best_of_sweep(view: SweepView, stated: Mapping[str, Parameter]) -> None:
    """The best parameters as options, and the command that runs them again.

    `stated` are the parameters of the project file: the sweep may have had others.
    """
    from kernelkit.campaigns.sweep import best_sweep_trial
    from kernelkit.campaigns.sweep_plan import set_options

    best = best_sweep_trial(view)
    options = set_options(best.parameters)
    fixed = {k: v for k, v in view.search.parameters.items() if k not in stated or stated[k] != v}
    profile = view.search.profile
    named = [f"--profile {shlex.quote(profile)}"] if profile else []
    command = " ".join(["kernelkit run", *named, *set_options(fixed), *options])
    words = [word for option in options for word in shlex.split(option)]
    document(
        {
            **best.document,
            "metric": view.metric,
            "goal": view.search.goal,
            "options": words,
            "command": command,
        }
    )
    say(f"trial {best.number}: {view.metric} {best.value:.6g}, verified in {best.run}")
    for option in options:
        say(f"  {option}")
    say(as_called(f"To run it again: {command}"))


def sweep_reported(view: SweepView) -> None:
    """Where the report is."""
    document({"report": str(view.report)})
    say(f"report: {view.report}")


def trial_table(view: SweepView, most: int) -> Table:
    """The trials that run, wait or ended last, in their order, for the live view."""
    trials = sorted(sorted(view.trials, key=_importance)[:most], key=lambda trial: trial.number)
    headings, rows = _columns(view, trials)
    prefix = view.study.rpartition("-")[0] + "-"
    rows = [[*row[:-1], row[-1].removeprefix(prefix)] for row in rows]
    table = Table(box=None, pad_edge=False)
    whole = {"trial", "state", view.metric, "run"}
    for number, name in enumerate(headings):  # a narrow terminal cuts the parameters
        longest = max([len(name), *(len(row[number]) for row in rows)])
        table.add_column(name, no_wrap=True, min_width=longest if name in whole else None)
    for row, trial in zip(rows, trials, strict=True):
        table.add_row(*(Text(cell, style=STYLES.get(trial.state, "dim")) for cell in row))
    return table


def _importance(trial: SweepTrial) -> tuple[int, int]:
    return {"running": 0, "waiting": 1}.get(trial.state, 2), -trial.number


def _columns(
    view: SweepView, trials: list[SweepTrial] | tuple[SweepTrial, ...]
) -> tuple[tuple[str, ...], list[list[str]]]:
    names = list(dict.fromkeys(name for trial in view.trials for name in trial.parameters))
    headings = ("trial", "state", view.metric, *names, "run")
    best = view.best
    rows = [
        [
            str(trial.number),
            _state(trial, view.progress.get(trial.number), best),
            _value(view, trial),
            *(value_shown(trial.parameters.get(name)) for name in names),
            trial.run or "",
        ]
        for trial in trials
    ]
    return headings, rows


def _value(view: SweepView, trial: SweepTrial) -> str:
    """The value of a trial; of a running one what its last epoch has reported."""
    event = view.progress.get(trial.number)
    value = trial.value
    if value is None and event is not None:
        value = event.numbers.get(view.metric)
    return f"{value:.5g}" if value is not None else ""


def _state(trial: SweepTrial, event: RunEvent | None, best: SweepTrial | None) -> str:
    if trial.same_as is not None:
        return f"as trial {trial.same_as}"
    if trial.state == "running" and event is not None:
        epoch, epochs = event.numbers.get("epoch"), event.numbers.get("epochs")
        return f"epoch {epoch:g}{f'/{epochs:g}' if epochs else ''}" if epoch else "running"
    return "best" if best is not None and trial.number == best.number else trial.state


def value_shown(value: object) -> str:
    """A value of a parameter in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _summary(view: SweepView) -> str:
    states = [trial.state for trial in view.trials]
    parts = [f"{view.ended} of {counted(view.planned, 'trial')} ended"]
    for state in ("complete", "running", "waiting", "pruned", "failed"):
        if count := states.count(state):
            parts.append(f"{count} {state}")
    best = view.best
    if best is not None:
        parts.append(f"best: trial {best.number}, {view.metric} {best.value:.5g}")
    return " · ".join(parts)
