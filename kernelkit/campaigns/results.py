"""What the sessions of a sweep say about their trials: value, reports, or why there is no value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelkit import workflow
from kernelkit.campaigns.sessions import Ending, ending_of
from kernelkit.errors import KernelkitError
from kernelkit.runs.identity import Identity
from kernelkit.runs.verify import missing_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from kernelkit.campaigns.study import Search
    from kernelkit.notebook.runtime import RunEvent
    from kernelkit.runs.download import PulledRun
    from kernelkit.runs.manifest import TrialPart
    from kernelkit.runs.store import RunFolder

_ENDED_BY_KAGGLE = re.compile(
    r"preempt|evict|reclaim|maintenance|infrastructure|internal (?:server )?error|capacity"
    r"|failed to (?:start|launch|provision|schedule)|could not (?:be )?start|unable to start"
    r"|no (?:available )?(?:machine|worker|resource)s?|lost (?:connection|contact)",
    re.IGNORECASE,
)
"""Kaggle's words for a run that it cancelled itself [A]."""

_TRIAL_FOLDER = re.compile(r"trial-\d+/")


@dataclass(frozen=True)
class TrialResult:
    """How one trial of a session has ended."""

    value: float | None = None
    """The best value of the metric; None without a verified run that reports it."""

    reports: tuple[float, ...] = ()
    """Every value of the metric, in the order of the run."""

    failure: str = ""
    """Why there is no value, in one line."""

    ended_by_kaggle: bool = False
    """Whether the code is not to blame, so that another try makes sense."""

    pruned: bool = False
    """Whether the session has ended the trial, because it was hopeless."""


def read_results(
    pulled: PulledRun, search: Search, trials: Collection[int], side_by_side: bool, project: Path
) -> dict[int, TrialResult]:
    """The result of each trial of a pulled session.

    `side_by_side`: each trial was a process of its own; else the session was the one trial.
    """
    from kernelkit.runs.events import read_events
    from kernelkit.runs.store import RunFolder

    folder = RunFolder(pulled.folder)
    events = [one.event for one in read_events(folder.log) if one.event.kind == "epoch"]
    failure = _failure_of_run(pulled, project)
    found = {}
    for number in trials:
        own = [event for event in events if event.trial == number] if side_by_side else events
        if side_by_side:
            found[number] = _of_process(pulled, folder, number, own, search, failure)
        else:
            found[number] = _of_run(pulled, own, search, failure)
    return found


def _of_run(
    pulled: PulledRun, events: Sequence[RunEvent], search: Search, failure: KernelkitError | None
) -> TrialResult:
    """The result of a session that was one trial."""
    reports = _reports(events, search.metric)
    if failure is None:
        return _valued(events, reports, search)
    return TrialResult(
        reports=reports,
        failure=_one_line(failure),
        ended_by_kaggle=_is_ended_by_kaggle(pulled),
    )


def _of_process(
    pulled: PulledRun,
    folder: RunFolder,
    number: int,
    events: Sequence[RunEvent],
    search: Search,
    failure: KernelkitError | None,
) -> TrialResult:
    """The result of one of several trials: it counts even if the session failed after it."""
    reports = _reports(events, search.metric)
    part, verdict = _part(folder, number), pulled.verdict
    if part is None or part.status == "running" or verdict.identity == Identity.MISMATCH:
        reason = _one_line(failure) if failure else "its session says nothing about it"
        return TrialResult(
            reports=reports, failure=reason, ended_by_kaggle=_is_ended_by_kaggle(pulled)
        )
    if part.status == "pruned":
        return TrialResult(reports=reports, pruned=True)
    if not part.complete:
        return TrialResult(reports=reports, failure=part.error or "no reason given")
    if problems := list(_problems(pulled, folder, part)):
        return TrialResult(
            reports=reports,
            failure=f"its outputs are not verified: {problems[0]}",
            ended_by_kaggle=_is_ended_by_kaggle(pulled),
        )
    return _valued(events, reports, search)


def _problems(pulled: PulledRun, folder: RunFolder, part: TrialPart) -> Iterator[str]:
    """Why the outputs of a trial are not verified, also of a session that was ended after it."""
    verdict = pulled.verdict
    for problem in verdict.problems:
        if problem.startswith(part.folder) or not _TRIAL_FOLDER.match(problem):
            yield problem
    described = [one for one in verdict.outputs if one.path.startswith(part.folder)]
    for one in described:
        if one.path not in verdict.vouched_for:
            yield f"{one.path}: it was changed after the run last described it"
    for name in missing_outputs(folder.read_bundle(), described):
        if name.startswith(part.folder):
            yield f"{name}: not in the manifest"


def _part(folder: RunFolder, number: int) -> TrialPart | None:
    try:
        parts = folder.read_manifest().trials
    except KernelkitError:
        return None
    return next((part for part in parts if part.number == number), None)


def _valued(events: Sequence[RunEvent], reports: tuple[float, ...], search: Search) -> TrialResult:
    from kernelkit.runs.metric import best_metric

    best = best_metric(events, search.metric, search.goal)
    if best is not None:
        return TrialResult(value=best.value, reports=reports)
    seen = sorted({name for event in events for name in event.numbers})
    return TrialResult(
        failure=f"its run is verified, and no epoch of it reports {search.metric} "
        f"(only {', '.join(seen) if seen else 'nothing: it prints no epochs'})"
    )


def _reports(events: Sequence[RunEvent], metric: str) -> tuple[float, ...]:
    return tuple(float(event.numbers[metric]) for event in events if metric in event.numbers)


def _failure_of_run(pulled: PulledRun, project: Path) -> KernelkitError | None:
    """Why a run has not succeeded; None if it is complete and verified."""
    try:
        workflow.require_success(pulled, project)
    except KernelkitError as error:
        return error
    return None


def _is_ended_by_kaggle(pulled: PulledRun) -> bool:
    """Whether Kaggle ended a run that had neither an error of its own nor reached its limit."""
    ending = ending_of(pulled)
    said = _ENDED_BY_KAGGLE.search(pulled.end.failure) is not None
    return ending == Ending.DIED or (ending == Ending.CANCELLED and said)


def _one_line(error: KernelkitError) -> str:
    return str(error).split("\n", 1)[0]
