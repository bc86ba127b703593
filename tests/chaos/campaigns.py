"""Chains and sweeps under faults: their plans, and kernelkit's promises at their end.

The command is killed and started again while there are faults. Then, without faults, the same
command must finish the campaign. Runs are replayed (see `tests/replay.py`): a seed takes seconds.

The promises: no session is pushed twice, none is forgotten, no work is lost or done twice, no more
sessions run at once than allowed, each value is that of the trial's parameters, each failure has
its reason in what Kaggle did.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tomlkit

from kernelkit.campaigns import sweep, sweep_plan
from kernelkit.config import Config, load_config
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials
from tests.chaos.case import (
    EXIT_CODES,
    PATIENCE,
    Terminal,
    TerminalEnd,
    Version,
    control,
    kill,
    start_terminal,
    wait_for_terminal,
)
from tests.chaos.plan import PREEMPTED, Chance, campaign_faults
from tests.chaos.relay.relay.main import score

if TYPE_CHECKING:
    from kernelkit.campaigns.study import SweepTrial
    from kernelkit.runs.download import PulledRun

PROJECT = Path(__file__).parent / "relay"
LONGEST_PAUSE = 0.3
"""Seconds: the pauses of campaigns, some of which last minutes, are cut to this."""
RATES, RECIPES = (0.1, 0.2, 0.3), ("fast", "best")
"""Few parameters, so that most runs are replayed."""
_MARK = re.compile(r"\bsession\W{1,12}((?:chain|sweep)-[0-9a-f]{12}[\w-]*)")

CampaignKind = Literal["chain", "sweep"]


@dataclass(frozen=True)
class CampaignPlan:
    """What happens in one seed."""

    seed: int
    kind: CampaignKind
    faults: tuple[str, ...]
    kills: tuple[float, ...]
    """When each command is killed (SIGKILL), in seconds after its start; then it starts again."""

    second: bool
    """Whether the command is started twice at the same time."""

    steps: int = 3
    """Of a chain."""

    per_session: int = 1
    trials: int = 4
    sessions: int = 2
    per_gpu: bool = False
    sampler: str = "grid"
    fails: bool = False
    """Whether a recipe of the sweep fails."""

    @property
    def kinds(self) -> frozenset[str]:
        """The names of its faults."""
        return frozenset(error.partition(",")[0] for error in self.faults)

    @property
    def users(self) -> str:
        """What users do, in some words."""
        killed = ", ".join(f"{seconds:.1f} s" for seconds in self.kills)
        words = f"killed after {killed}" if killed else "not killed"
        return words + (", started twice" if self.second else "")


def campaign_plan(seed: int, kind: CampaignKind) -> CampaignPlan:
    """The plan of a seed."""
    chance = Chance(f"{kind} {seed}")
    return CampaignPlan(
        seed,
        kind,
        faults=campaign_faults(chance),
        kills=tuple(chance.uniform(0.1, 5) for _ in range(chance.choice([0, 0, 1, 1, 2]))),
        second=chance.random() < 0.1,
        steps=chance.choice([2, 3, 4]),
        per_session=chance.choice([1, 1, 2]),
        trials=chance.choice([3, 4, 6]),
        sessions=chance.choice([1, 2, 2, 3]),
        per_gpu=chance.random() < 0.3,
        sampler=chance.choice(["grid", "grid", "random", "tpe"]),
        fails=chance.random() < 0.15,
    )


@dataclass
class Campaign:
    """One seed against one local Kaggle."""

    plan: CampaignPlan
    folder: Path
    endpoint: str
    state: Path
    messages: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The same for all seeds, because it is part of what is pushed."""
        return f"relay-{self.plan.kind}"

    @property
    def owner(self) -> str:
        return f"owner-{self.plan.seed}"

    @property
    def runs(self) -> Path:
        return self.folder / "project" / "runs"

    def kaggle(self) -> Kaggle:
        credentials = Credentials(self.owner, "the plan", key="k")
        pause = replace(PATIENCE, sleep=lambda seconds: time.sleep(min(seconds, LONGEST_PAUSE)))
        return Kaggle(credentials, self.endpoint, timeouts=pause)

    def config(self) -> Config:
        """The project, which is written at the first call."""
        project = self.folder / "project"
        if not project.exists():
            shutil.copytree(PROJECT, project)
            text = tomlkit.dumps({"tool": {"kernelkit": _settings(self)}})
            (project / "pyproject.toml").write_text(text, encoding="utf-8")
        return load_config(project, endpoint=self.endpoint, environment={})

    def command(self) -> PulledRun | None:
        """Run the campaign, or what is left of it."""
        if self.plan.kind == "chain":
            from kernelkit.campaigns import chain

            return chain.run_chain(
                self.config(), self.kaggle(), self.runs, wait=True, on_event=self._note
            )
        plan = sweep_plan.plan_sweep(self.config())
        sweep.run_sweep(plan, self.kaggle, self.runs, on_event=self._note)
        return None

    def _note(self, event: object) -> None:
        if isinstance(event, str):
            self.messages.append(event)

    def start(self) -> Terminal:
        """Start the command in another process."""
        return start_terminal(self.messages, self.command)

    def versions(self) -> list[Pushed]:
        """Everything that was pushed, oldest first."""
        folders = (self.state / self.owner).glob("*/v*/version.json")
        pushed = [Pushed(record.parent) for record in folders]
        return sorted(pushed, key=lambda version: version.number_of_session)


class Pushed(Version):
    """A version of a campaign in the local Kaggle's files."""

    @property
    def name(self) -> str:
        """`slug/v3`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def number_of_session(self) -> int:
        return int(json.loads((self.folder / "version.json").read_text())["session_id"])

    @property
    def mark(self) -> str:
        """Of the campaign's session; empty without one."""
        found = _MARK.search((self.folder / "source.ipynb").read_text(encoding="utf-8"))
        return found[1] if found else ""

    @property
    def failure(self) -> str:
        """Kaggle's message about the end of the run."""
        return str(json.loads((self.folder / "status.json").read_text())["failure"])

    @property
    def has_outputs(self) -> bool:
        """Whether the run has left files that can be downloaded."""
        return bool(json.loads((self.folder / "status.json").read_text())["outputs"])


def _settings(case: Campaign) -> dict[str, object]:
    """`[tool.kernelkit]` of the project."""
    plan = case.plan
    common: dict[str, object] = {
        "package": "relay",
        "kernel": {
            "id": f"{case.owner}/{case.slug}",
            "title": case.slug.replace("-", " "),
            "competition_sources": ["letters"],
        },
    }
    if plan.kind == "chain":
        work = {"steps": plan.steps, "per_session": plan.per_session}
        return common | {
            "entry": "relay.main:run",
            "outputs": ["steps.csv"],
            "parameters": {"output_dir": "kaggle://working", **work},
        }
    bad = "fast" if plan.fails else "none"
    return common | {
        "entry": "relay.main:measure",
        "outputs": ["result.csv"],
        "metric": "score",
        "metric_goal": "maximize",
        "parameters": {"output_dir": "kaggle://working", "epochs": 2, "bad": bad},
        "sweep": {
            "trials": plan.trials,
            "sampler": plan.sampler,
            "sessions": plan.sessions,
            "per_gpu": plan.per_gpu,
            "pruner": "none",
            "parameters": {"rate": list(RATES), "recipe": list(RECIPES)},
        },
    }


def run_campaign(
    seed: int, kind: CampaignKind, folder: Path, endpoint: str, state: Path
) -> tuple[CampaignPlan, list[TerminalEnd], list[str]]:
    """Run a seed: its plan, how each command has ended, and the promises that were broken."""
    case = Campaign(campaign_plan(seed, kind), folder, endpoint, state)
    case.config()
    faults = [f"{fault},account={case.owner}" for fault in case.plan.faults]
    control("POST", f"{endpoint}/emulator/faults", faults)
    ends = []
    for seconds in case.plan.kills:
        terminal = case.start()
        terminal.process.join(seconds)
        kill(terminal)
        ends.append(wait_for_terminal(terminal))
    terminals = [case.start() for _ in range(2 if case.plan.second else 1)]
    ends += [wait_for_terminal(terminal) for terminal in terminals]
    control("DELETE", f"{endpoint}/emulator/faults")
    last = wait_for_terminal(case.start())
    if last.code == 6 and not any(end.code == 6 for end in ends):
        # It is the first that could report a cancelled session; then the same command continues.
        ends.append(last)
        last = wait_for_terminal(case.start())
    return case.plan, [*ends, last], list(broken_campaign(case, ends, last))


def broken_campaign(case: Campaign, ends: list[TerminalEnd], last: TerminalEnd) -> Iterator[str]:
    """The promises that were broken. `last`: the same command after the faults were removed."""
    versions = case.versions()
    yield from _wrong_codes(case, [*ends, last], versions)
    for mark, count in Counter(version.mark for version in versions).items():
        if not mark:
            yield "a version was pushed that belongs to no session"
        elif count > 1:
            yield f"pushed twice: {mark}, {count} times"
    most = 1 if case.plan.kind == "chain" else case.plan.sessions
    if (at_once := _most_at_once(versions)) > most:
        yield f"{at_once} sessions ran at once, but only {most} may"
    check = _broken_chain if case.plan.kind == "chain" else _broken_sweep
    yield from check(case, last, versions)


def _wrong_codes(case: Campaign, ends: list[TerminalEnd], versions: list[Pushed]) -> Iterator[str]:
    for end in ends:
        if end.code not in EXIT_CODES and end.code != -9:
            yield f"not an exit code of kernelkit: {end.message}"
        if end.code == 6 and not any(version.failed for version in versions):
            yield f"a failure is reported, but no run has failed: {end.message}"
        refused_second = case.plan.second and "another process" in end.message
        if end.code in (2, 3, 4) and not refused_second:
            yield f"a problem of the project is reported, but it has none: {end.message}"


def _most_at_once(versions: list[Pushed]) -> int:
    """How many sessions there were at once, at most."""
    now = time.time()
    changes = []
    for version in versions:
        ended = now if version.status == "RUNNING" else version.ended
        changes += [(version.began, 1), (ended, -1)]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def _broken_chain(case: Campaign, last: TerminalEnd, versions: list[Pushed]) -> Iterator[str]:
    record = json.loads((case.runs / case.slug / "chain.json").read_text(encoding="utf-8"))
    known = [session["mark"] for session in record["sessions"]]
    for mark in {version.mark for version in versions} - set(known):
        yield f"forgotten: {mark} was pushed, and chain.json does not know it"
    if last.code != 0:
        yield f"the chain was not finished ({last.code}): {last.message}"
        return
    pulled = (Path(last.verified) / "steps.csv").read_text(encoding="utf-8")
    if pulled != _expected_steps(case.plan.steps):
        yield f"the work of the chain is wrong:\n{pulled}"
    good = [version for version in versions if version.status == "COMPLETE"]
    wanted = -(-case.plan.steps // case.plan.per_session)
    cut_short = sum(version.failed for version in versions)
    if not wanted <= len(good) + cut_short or len(good) > wanted:
        yield f"{len(good)} sessions are complete, but the work is that of {wanted}"


def _expected_steps(steps: int) -> str:
    """The file that `relay.main.run` writes, calculated again."""
    rows = ["step,value"]
    for step in range(1, steps + 1):
        rows.append(f"{step},{hashlib.sha256(rows[-1].encode()).hexdigest()}")
    return "\n".join(rows) + "\n"


def _broken_sweep(case: Campaign, last: TerminalEnd, versions: list[Pushed]) -> Iterator[str]:
    view = sweep.read_sweep(case.config(), case.runs)
    pushed = {version.name: version for version in versions}
    recorded: Counter[str] = Counter()
    for trial in view.trials:
        yield from _broken_trial(case, trial, pushed)
        runs = _runs_of(trial)
        recorded.update(runs)
        yield from (
            f"trial {trial.number} has the unknown run {r}" for r in runs if r not in pushed
        )
    for name in pushed.keys() - recorded.keys():
        yield f"forgotten: {name} was pushed, and no trial knows it"
    if not case.plan.per_gpu:
        for name in (name for name, count in recorded.items() if count > 1):
            of = {trial.number: _runs_of(trial) for trial in view.trials if name in _runs_of(trial)}
            yield f"counted twice: {name} is a run of {of}"
    numbers = [trial.number for trial in view.trials]
    if numbers != list(range(view.planned)):
        yield f"the trials are {numbers}, but {view.planned} are planned"
    complete = [trial for trial in view.trials if trial.state == "complete"]
    if complete and last.code != 0:
        yield f"the sweep was not finished ({last.code}): {last.message}"
    if complete and view.best is not max(complete, key=lambda trial: trial.value or 0.0):
        best = max(trial.value or 0.0 for trial in complete)
        if view.best is None or view.best.value != best:
            yield "the best trial is not the one with the best value"


def _has_result(case: Campaign, run: Pushed) -> bool:
    """Whether the run of a trial can count: one of several trials can be complete in any run."""
    return run.status == "COMPLETE" or (case.plan.per_gpu and run.has_outputs)


def _runs_of(trial: SweepTrial) -> tuple[str, ...]:
    """Every run of a trial, the last one at the end; none for a repetition of another trial."""
    assignment = trial.assignment
    if assignment is None or trial.same_as is not None:
        return ()
    return (*assignment.earlier_runs, *([assignment.run] if assignment.run else []))


def _broken_trial(case: Campaign, trial: SweepTrial, pushed: dict[str, Pushed]) -> Iterator[str]:
    what = f"trial {trial.number} ({trial.state})"
    parameters = trial.parameters
    bad = case.plan.fails and parameters["recipe"] == "fast"
    runs = [pushed[name] for name in _runs_of(trial) if name in pushed]
    if trial.state == "complete":
        true = score(parameters["rate"], parameters["recipe"], 2)
        if trial.value != true or bad:
            yield f"{what} has the value {trial.value}, but its parameters give {true}"
        if trial.same_as is None and not (runs and _has_result(case, runs[-1])):
            yield f"{what} counts, but its run has not completed"
    elif trial.state == "failed":
        own = [run for run in runs if run.failed and run.failure != PREEMPTED]
        preempted = [run for run in runs if run.failed and run.failure == PREEMPTED]
        if not bad and not own and len(preempted) <= 2:
            yield f"{what} was not tried again, and nothing speaks against it: {trial.failure}"
    else:
        yield f"{what} was lost: {trial.failure or 'it has not ended'}"
