"""A short chaos test of campaigns, and tests that the checks notice each broken promise."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.__main__ import Kind, report, run_seeds
from tests.chaos.campaigns import Campaign, broken_campaign, campaign_plan
from tests.chaos.case import TerminalEnd
from tests.chaos.relay.relay.main import run

NAME = "chain-0123456789ab"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seeds"), [("chain", (1, 3)), ("sweep", (8,))])
def test_no_promise_about_a_campaign_is_broken(kind: Kind, seeds: tuple[int, ...]) -> None:
    results = list(run_seeds(seeds, jobs=2, kinds=[kind]))
    assert [report(one) for one in results if one.broken] == []


def test_a_seed_always_has_the_same_plan() -> None:
    assert campaign_plan(3, "sweep") == campaign_plan(3, "sweep") != campaign_plan(4, "sweep")


@pytest.fixture
def chain(tmp_path: Path) -> Campaign:
    """A chain of three sessions, on this machine and in the files of a local Kaggle."""
    case = Campaign(campaign_plan(3, "chain"), tmp_path, "http://127.0.0.1:9", tmp_path / "state")
    case.plan = replace(case.plan, steps=3, per_session=1, second=False)
    for number, slug, version in (
        (1, "relay-chain", 1),
        (2, "relay-chain-b", 1),
        (3, "relay-chain", 2),
    ):
        push(case, f"{NAME}-{number}", slug, version)
    record = {"sessions": [{"mark": f"{NAME}-{number}"} for number in (1, 2, 3)]}
    (case.runs / case.slug / "v2").mkdir(parents=True)
    (case.runs / case.slug / "chain.json").write_text(json.dumps(record))
    run(case.runs / case.slug / "v2", steps=3, per_session=3)
    return case


def push(case: Campaign, mark: str, slug: str, version: int, status: str = "COMPLETE") -> Path:
    """Write what the local Kaggle writes about a version; each takes 10 seconds after the other."""
    folder = case.state / case.owner / slug / f"v{version}"
    folder.mkdir(parents=True)
    number = len(case.versions())
    source = json.dumps(json.dumps({"session": mark}))
    end = {"status": status, "failure": "", "outputs": []}
    for name, text, moment in (
        ("source.ipynb", source, 0),
        ("request.json", "{}", 20 * number),
        ("status.json", json.dumps(end), 20 * number + 10),
        ("version.json", json.dumps({"session_id": number}), 0),
    ):
        (folder / name).write_text(text)
        os.utime(folder / name, (moment, moment))
    return folder


def found(case: Campaign, code: int = 0, message: str = "") -> list[str]:
    verified = "" if code else str(case.runs / case.slug / "v2")
    return list(broken_campaign(case, [], TerminalEnd(code, message, verified)))


def test_a_kept_promise_is_not_reported(chain: Campaign) -> None:
    assert found(chain) == []


def test_a_session_that_was_pushed_twice_is_reported(chain: Campaign) -> None:
    push(chain, f"{NAME}-3", "relay-chain", 3)
    assert found(chain) == [
        f"pushed twice: {NAME}-3, 2 times",
        "4 sessions are complete, but the work is that of 3",
    ]


def test_a_forgotten_session_is_reported(chain: Campaign) -> None:
    push(chain, f"{NAME}-4", "relay-chain", 3, "ERROR")
    assert found(chain) == [f"forgotten: {NAME}-4 was pushed, and chain.json does not know it"]
    push(chain, "", "relay-chain", 4, "ERROR")
    assert "a version was pushed that belongs to no session" in found(chain)


def test_sessions_at_the_same_time_are_reported(chain: Campaign) -> None:
    os.utime(chain.versions()[0].folder / "status.json", (25, 25))
    assert found(chain) == ["2 sessions ran at once, but only 1 may"]


def test_lost_work_is_reported(chain: Campaign) -> None:
    path = chain.runs / chain.slug / "v2" / "steps.csv"
    path.write_text(path.read_text().replace("2,", "2,x"))
    assert "the work of the chain is wrong" in found(chain)[0]
    assert "the chain was not finished (9): down" in found(chain, 9, "down")


@pytest.mark.parametrize(
    ("code", "message"),
    [(1, "not an exit code of kernelkit"), (6, "no run has failed"), (3, "it has none")],
)
def test_a_false_failure_is_reported(chain: Campaign, code: int, message: str) -> None:
    assert any(message in line for line in found(chain, code, "words"))
