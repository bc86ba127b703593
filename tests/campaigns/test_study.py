"""The study of a sweep: what it remembers, also of a process that was killed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import optuna
import pytest

from kernelkit.campaigns.space import Choices, Space
from kernelkit.campaigns.study import Assignment, Search, SweepStudy, open_study
from kernelkit.config import Sampler


@pytest.fixture
def space() -> Space:
    return Space({"rate": Choices((0.1, 0.2, 0.3)), "recipe": Choices(("fast", "best"))})


@pytest.fixture
def search(space: Space) -> Search:
    return Search(
        slug="some-sweep",
        space=space.text,
        metric="score",
        goal="maximize",
        parameters={},
        profile=None,
        endpoint="http://127.0.0.1:9",
    )


def test_a_session_has_a_number_of_its_own(tmp_path: Path, search: Search, space: Space) -> None:
    """Also after its trial was given to another session, and after a restart."""
    with open_study(tmp_path / "sweep", search, space) as study:
        trial = study.ask("grid", 0)
        assert trial is not None
        first = study.next_session()
        study.assign(trial.number, Assignment(session=first, lane=1, run="lane-1/v1"))
        study.assign(trial.number, Assignment(earlier_runs=("lane-1/v1",)))
        assert study.next_session() == first + 1
    with open_study(tmp_path / "sweep", search, space) as study:
        assert study.next_session() == first + 2


def test_a_sweep_of_changed_source_is_noticed(tmp_path: Path, search: Search, space: Space) -> None:
    for source, changed in [("a", False), ("a", False), ("b", True), ("a", False)]:
        with open_study(tmp_path / "sweep", search, space) as study:
            assert study.note_source(source) is changed


@pytest.mark.parametrize(("sampler", "killed_at"), [("grid", 0), ("grid", 1), ("tpe", 1)])
def test_a_trial_whose_process_was_killed_gets_its_parameters(
    tmp_path: Path,
    search: Search,
    space: Space,
    sampler: Sampler,
    killed_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Optuna writes down a trial, then one parameter after the other."""
    with open_study(tmp_path / "sweep", search, space) as study:
        _kill_in_ask(study, sampler, killed_at, monkeypatch)
        study.finish_asking(sampler, 0)
        (trial,) = study.trials
        assert trial.parameters.keys() == {"rate", "recipe"}
        if sampler == "grid":
            assert trial.parameters == {"rate": 0.1, "recipe": "fast"}


def _kill_in_ask(
    study: SweepStudy, sampler: Sampler, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ask for a trial, and end after so many of its parameters."""
    suggest, left = optuna.trial.Trial._suggest, [parameters]

    def killed(trial: object, *arguments: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return suggest(trial, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "_suggest", killed)
        with contextlib.suppress(KeyboardInterrupt):
            study.ask(sampler, 0)
