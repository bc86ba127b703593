"""The trials of a sweep in a real database of Optuna."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kernelkit.campaigns.space import Choices, Range, Space
from kernelkit.campaigns.study import (
    DATABASE_NAME,
    Assignment,
    Search,
    SweepStudy,
    open_study,
    same_point,
)
from kernelkit.config import Sampler
from kernelkit.errors import LocalError

FINITE = Space({"word": Choices(("a", "b")), "layers": Choices(([8], [8, 8]))})
ENDLESS = Space(
    {"lr": Range(1e-4, 1e-2, log=True), "n": Range(1, 5), "p": Range(0.1, 0.5, step=0.1)}
)

Open = Callable[..., AbstractContextManager[SweepStudy]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies") / "some-kernel"


@pytest.fixture
def opened(folder: Path, request: pytest.FixtureRequest) -> Open:
    """Opens the study of this test, in a database that the tests share."""

    def open_one(space: Space, **other: object) -> AbstractContextManager[SweepStudy]:
        search = Search(
            slug="some-kernel",
            space=space.text,
            metric="val_loss",
            goal="minimize",
            parameters={"test": request.node.name},
            profile=None,
            endpoint="http://127.0.0.1:1",
        )
        return open_study(folder, search.model_copy(update=other), space)

    return open_one


def asked(study: SweepStudy, sampler: Sampler, count: int) -> list[dict[str, object]]:
    found = []
    for _ in range(count):
        trial = study.ask(sampler, 7)
        if trial is not None:
            found.append(trial.parameters)
    return found


def test_a_grid_is_walked_once_and_in_order(opened: Open) -> None:
    with opened(FINITE) as study:
        assert asked(study, "grid", 3) == list(FINITE.points())[:3]
    with opened(FINITE) as study:  # another process goes on
        assert asked(study, "grid", 5) == list(FINITE.points())[3:]
        assert [trial.number for trial in study.trials] == [0, 1, 2, 3]


def test_random_trials_of_a_finite_space_are_different_ones(opened: Open) -> None:
    with opened(FINITE) as study:
        found = asked(study, "random", 9)
    assert len(found) == 4
    assert sorted(map(str, found)) == sorted(map(str, FINITE.points()))
    assert found != list(FINITE.points())


def test_a_seed_gives_the_same_trials_in_one_process_and_in_several(opened: Open) -> None:
    with opened(ENDLESS, profile="one") as study:
        together = asked(study, "random", 4)
    apart = []
    for _ in range(4):
        with opened(ENDLESS, profile="two") as study:
            apart += asked(study, "random", 1)
    assert together == apart
    assert len({str(point) for point in together}) == 4
    for point in together:
        assert isinstance(point["n"], int)
        assert point["p"] in (0.1, 0.2, 0.3, 0.4, 0.5)


def test_another_search_is_another_study_in_the_same_database(opened: Open) -> None:
    with opened(FINITE) as study:
        asked(study, "grid", 1)
        first = study.campaign
    with opened(FINITE, metric="val_iou", goal="maximize") as study:
        assert study.trials == []
        assert study.campaign != first
    with opened(FINITE) as study:
        assert len(study.trials) == 1
        assert study.campaign == first


def test_a_trial_remembers_its_session_values_and_end(opened: Open) -> None:
    assignment = Assignment(session=1, lane=2)
    with opened(ENDLESS) as study:
        for number in range(4):
            study.ask("random", 1)
            study.assign(number, assignment)
        assert {trial.state for trial in study.trials} == {"waiting"}
        study.assign(0, assignment.model_copy(update={"run": "some-kernel-lane-2/v1"}))
        study.report(0, [0.5])
        study.report(0, [0.5, 0.4])
        study.complete(0, 0.4)
        study.fail(1, "ValueError: no")
        study.prune(2, "worse than the median of the others")
        study.complete(3, 0.3)
    with opened(ENDLESS) as study:
        first, failed, pruned, best = study.trials
        assert (first.state, first.value, first.run) == ("complete", 0.4, "some-kernel-lane-2/v1")
        assert dict(first.reports) == {0: 0.5, 1: 0.4}
        assert (failed.state, failed.value, failed.failure) == ("failed", None, "ValueError: no")
        assert pruned.state == "pruned"
        assert study.best == best
        assert study.next_session() == 2
        assert same_point(first.parameters, study.trials) == first


def test_parameters_that_were_tried_before_are_not_run_again(opened: Open) -> None:
    with opened(FINITE) as study:
        for number in range(2):
            study.ask("tpe", number)
            study.assign(number, Assignment(session=1, lane=1, run="some-kernel-lane-1/v1"))
        first, second = study.trials
        study.complete(0, 0.25)
        assert same_point(first.parameters, study.trials) == study.trials[0]
        study.repeat(second.number, study.trials[0])
        repeated = study.trials[1]
        assert (repeated.state, repeated.value, repeated.same_as) == ("complete", 0.25, 0)
        assert repeated.run == "some-kernel-lane-1/v1"
        assert same_point(second.parameters, [repeated]) is None  # only what was run counts


def test_a_hopeless_trial_is_worse_than_the_median(opened: Open) -> None:
    with opened(ENDLESS) as study:
        for number in range(7):
            study.ask("random", 1)
            study.assign(number, Assignment(session=1, lane=1, run="some-kernel-lane-1/v1"))
        for number in range(5):
            assert study.medians("median") == ()
            study.report(number, [1.0 + number, 0.5])
            study.complete(number, 0.5)
        assert study.medians("median") == (3.0, 0.5)
        assert study.medians("none") == ()
        study.report(5, [2.9])
        study.report(6, [3.1])
        assert not study.is_hopeless(5)
        assert study.is_hopeless(6)
        study.report(6, [3.1, 0.4])
        assert not study.is_hopeless(6)


def test_a_damaged_database_is_explained(tmp_path: Path, opened: Open) -> None:
    with opened(FINITE) as study:
        search = study.search
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / DATABASE_NAME).write_bytes(b"no database " * 100)
    with (
        pytest.raises(LocalError, match=r"sweep\.db cannot be used: .*not a database") as caught,
        open_study(tmp_path / "k", search, FINITE),
    ):
        pass
    assert "Move it away" in caught.value.next_step
