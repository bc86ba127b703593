"""A short campaign, and that a broken promise is seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernelkit.emulator import faults
from tests.campaign.__main__ import campaign, figures, told
from tests.campaign.case import Case, Ended, broken
from tests.campaign.plan import FAULTS, Chance, plan

SEEDS = (2, 7, 11, 17, 23, 31, 41, 53)
NOT_OF_ONE_KERNEL = {"quota-used", "expired-credentials"}  # told of in the client's own tests


def test_no_promise_is_broken() -> None:
    played = list(campaign(SEEDS, jobs=2))
    assert [told(one) for one in played if one.broken] == []
    assert len(played) == len(SEEDS)
    assert "promises broken: 0" in figures(played, 1.0)


def test_the_same_seed_is_the_same_story() -> None:
    assert plan(17) == plan(17) != plan(18)


def test_every_fault_of_the_local_kaggle_has_its_part() -> None:
    known = set(re.findall(r"^    ([a-z][a-z0-9-]+)  +\S", str(faults.__doc__), re.M)) - {"fault"}
    chance = Chance(1)
    assert {make(chance).partition(",")[0] for make in FAULTS} == known - NOT_OF_ONE_KERNEL


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Two versions of one kernel in a local Kaggle's files: the first has failed."""
    case = Case(plan(2), tmp_path, "http://127.0.0.1:9", tmp_path / "state")
    for number, status in ((1, "ERROR"), (2, "COMPLETE")):
        folder = case.state / case.owner / case.slug / f"v{number}"
        (folder / "working" / "sub").mkdir(parents=True)
        (folder / "request.json").write_text("{}")
        (folder / "status.json").write_text(f'{{"status": "{status}"}}')
        for name in ("table.csv", "models.zip", "sub/weights.bin"):
            (folder / "working" / name).write_text("true")
    return case


def pulled(case: Case, version: int, text: str) -> Ended:
    folder = case.folder / "here" / f"v{version}"
    (folder / "sub").mkdir(parents=True)
    for name in ("table.csv", "models.zip", "sub/weights.bin"):
        (folder / name).write_text(text)
    return Ended(0, verified=str(folder))


def test_what_is_so_is_not_called_broken(case: Case) -> None:
    assert list(broken(case, [Ended(-9)], pulled(case, 2, "true"))) == []


@pytest.mark.parametrize(
    ("version", "text", "words"),
    [(2, "tampered", "is not what the run wrote"), (1, "true", "and ended ERROR")],
)
def test_an_untrue_success_is_seen(case: Case, version: int, text: str, words: str) -> None:
    assert any(words in line for line in broken(case, [], pulled(case, version, text)))


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Ended(1, "Traceback"), "no exit code of ours"),
        (Ended(4, "no"), "a refusal that nobody has made"),
        (Ended(3, "no"), "nothing was wrong with the project"),
        (Ended(9, "down"), "did not come home"),
    ],
)
def test_a_wrong_failure_is_seen(case: Case, ended: Ended, words: str) -> None:
    assert any(words in line for line in broken(case, [], ended))


def test_a_second_push_is_seen(case: Case) -> None:
    home = pulled(case, 2, "true")
    (case.state / case.owner / case.slug / "v1" / "status.json").write_text(
        '{"status": "COMPLETE"}'
    )
    assert any("pushed twice" in line for line in broken(case, [], home))


def test_a_failure_that_was_none_is_seen(case: Case) -> None:
    (case.state / case.owner / case.slug / "v1" / "status.json").write_text(
        '{"status": "COMPLETE"}'
    )
    assert any(
        "has none" in line for line in broken(case, [Ended(6, "failed")], Ended(6, "failed"))
    )
