"""A short chaos test, and tests that the checks notice each broken promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.__main__ import figures, report, run_seeds
from tests.chaos.case import Case, TerminalEnd, broken
from tests.chaos.plan import CAMPAIGN_FAULTS, FAULTS, Chance, plan

SEEDS = (2, 7, 11, 17, 23, 31, 41, 53)
NOT_ABOUT_ONE_KERNEL = {"quota-used", "expired-credentials"}  # the client's tests cover them


@pytest.mark.slow
def test_no_promise_is_broken() -> None:
    results = list(run_seeds(SEEDS, jobs=2, kinds=["run"]))
    assert [report(one) for one in results if one.broken] == []
    assert len(results) == len(SEEDS)
    assert "promises broken: 0" in figures(results, 1.0)


def test_a_seed_always_has_the_same_plan() -> None:
    assert plan(17) == plan(17) != plan(18)


def test_the_plans_use_every_fault() -> None:
    known = set(re.findall(r"^    ([a-z][a-z0-9-]+)  +\S", str(faults.__doc__), re.M)) - {"fault"}
    chance = Chance(1)
    planned = {make(chance).partition(",")[0] for make in (*FAULTS, *CAMPAIGN_FAULTS)}
    assert planned == known - NOT_ABOUT_ONE_KERNEL


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Two versions of one kernel in the files of a local Kaggle: the first has failed."""
    case = Case(plan(2), tmp_path, "http://127.0.0.1:9", tmp_path / "state")
    for number, status in ((1, "ERROR"), (2, "COMPLETE")):
        folder = case.state / case.owner / case.slug / f"v{number}"
        (folder / "working" / "sub").mkdir(parents=True)
        (folder / "request.json").write_text("{}")
        (folder / "status.json").write_text(f'{{"status": "{status}"}}')
        for name in ("table.csv", "models.zip", "sub/weights.bin"):
            (folder / "working" / name).write_text("true")
    return case


def pulled(case: Case, version: int, text: str) -> TerminalEnd:
    folder = case.folder / "here" / f"v{version}"
    (folder / "sub").mkdir(parents=True)
    for name in ("table.csv", "models.zip", "sub/weights.bin"):
        (folder / name).write_text(text)
    return TerminalEnd(0, verified=str(folder))


def test_a_kept_promise_is_not_reported(case: Case) -> None:
    assert list(broken(case, [TerminalEnd(-9)], pulled(case, 2, "true"))) == []


@pytest.mark.parametrize(
    ("version", "text", "message"),
    [(2, "tampered", "differs from the run's file"), (1, "true", "but its run ended ERROR")],
)
def test_a_false_success_is_reported(case: Case, version: int, text: str, message: str) -> None:
    assert any(message in line for line in broken(case, [], pulled(case, version, text)))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (TerminalEnd(1, "Traceback"), "not an exit code of kernelkit"),
        (TerminalEnd(4, "no"), "nothing was refused"),
        (TerminalEnd(3, "no"), "a problem of the project is reported"),
        (TerminalEnd(9, "down"), "were not downloaded"),
    ],
)
def test_a_false_failure_is_reported(case: Case, end: TerminalEnd, message: str) -> None:
    assert any(message in line for line in broken(case, [], end))


def test_a_second_push_is_reported(case: Case) -> None:
    last = pulled(case, 2, "true")
    (case.state / case.owner / case.slug / "v1" / "status.json").write_text(
        '{"status": "COMPLETE"}'
    )
    assert any("pushed twice" in line for line in broken(case, [], last))


def test_a_failure_that_did_not_happen_is_reported(case: Case) -> None:
    (case.state / case.owner / case.slug / "v1" / "status.json").write_text(
        '{"status": "COMPLETE"}'
    )
    failed = TerminalEnd(6, "failed")
    assert any("no run has failed" in line for line in broken(case, [failed], failed))
