"""`kernelkit plan`: hours, sessions and quota, by what real runs and rehearsals have left."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kernelkit.campaigns.plan import Plan, SweepShape
from kernelkit.kaggle.types import Quota
from kernelkit.runs.estimate import Certainty, Estimate, Wanted
from tests.conftest import Cli
from tests.local_kaggle import LocalKaggle

REFRESH = datetime(2026, 11, 28, tzinfo=UTC)
T4 = Wanted({}, "NvidiaTeslaT4", True)


def make(
    hours: float | None = 5.0,
    fixed: float = 0.0,
    left: float | None = 20.0,
    reserve: float = 0.0,
    wanted: Wanted = T4,
    sweep: SweepShape | None = None,
    limit: float = 12.0,
) -> Plan:
    seconds = None if hours is None else hours * 3600
    known = Certainty.UNKNOWN if hours is None else Certainty.MEASURED
    return Plan(
        kernel="my-training",
        wanted=wanted,
        estimate=Estimate(known, seconds, fixed_seconds=fixed * 3600, runs=("my-training/v1",)),
        session_hours=limit,
        session_origin="by most reports",
        reserve=reserve,
        quota=None if left is None else Quota(28.0 - left, 30.0, REFRESH, reserved=2.0),
        sweep=sweep,
    )


def test_a_run_fits_into_what_running_sessions_and_the_reserve_leave() -> None:
    assert make(20.0).fits is True
    assert make(20.1).fits is False
    assert make(15.0, reserve=5.0).fits is True
    assert make(15.1, reserve=5.0).fits is False
    assert make(None).fits is None
    assert make(left=None).fits is None
    assert make(None, left=None, wanted=Wanted({}, "", False)).fits is True
    assert make(1.0, wanted=Wanted({}, "TpuV5E8", False, True)).fits is None


@pytest.mark.parametrize(
    ("hours", "fixed", "sessions"),
    [(12.0, 0.0, 1), (12.1, 0.0, 2), (23.6, 0.0, 2), (23.7, 0.0, 3), (12.1, 6.0, 2), (20.0, 6, 3)],
)
def test_a_chain_repeats_the_fixed_part_in_each_session(
    hours: float, fixed: float, sessions: int
) -> None:
    plan = make(hours, fixed)
    assert plan.sessions == sessions
    assert plan.billed_hours == pytest.approx(hours + (sessions - 1) * fixed)


def test_a_session_that_is_shorter_than_the_fixed_part_makes_no_progress() -> None:
    plan = make(20.0, fixed=12.0)
    assert (plan.sessions, plan.billed_hours, plan.fits) == (None, None, None)


def test_refreshes_are_counted_until_there_was_enough() -> None:
    assert make(20.0).refreshes == 0
    assert make(20.0).enough_from is None
    assert make(11.0 + 20.0, limit=100).enough_from == REFRESH
    assert make(60.0, limit=100).refreshes == 2
    assert make(60.0, limit=100).enough_from == REFRESH + timedelta(weeks=1)
    assert make(60.0, limit=100, reserve=30.0).refreshes is None  # nothing may ever be used


def test_a_sweep_bills_each_session_once() -> None:
    plan = make(1.5, sweep=SweepShape(trials=13, sessions=2, per_session=2))
    assert plan.sweep is not None
    assert (plan.sweep.pushes, plan.sweep.rounds) == (7, 4)
    assert plan.billed_hours == pytest.approx(7 * 1.5)
    assert plan.wall_hours == pytest.approx(4 * 1.5)


def test_a_trial_must_fit_into_one_session() -> None:
    plan = make(13.0, left=100.0, sweep=SweepShape(trials=2))
    assert (plan.fits, plan.refreshes, plan.enough_from) == (False, None, None)
    assert make(13.0, left=100.0).fits is True  # a chain


def test_plan_reads_the_runs_of_the_project_and_the_quota_of_the_account(
    plain: Path, emulator: LocalKaggle, cli: Cli
) -> None:
    def plan(*options: str) -> object:
        done = cli("plan", "--json", *options, cwd=plain, env=emulator.environment)
        return json.loads(done.stdout)

    unknown = plan("--profile", "gpu")
    assert isinstance(unknown, dict)
    assert (unknown["certainty"], unknown["hours"], unknown["fits"]) == ("unknown", None, None)
    assert unknown["quota"]["left"] == 30
    assert unknown["quota"]["refresh"].endswith("T00:00:00Z")
    printed = cli("plan", "--profile", "gpu", cwd=plain, env=emulator.environment).stdout
    assert "unknown: no earlier run of this kernel" in printed
    assert "30 h left of 30 h, refreshed Sat " in printed

    cli("run", cwd=plain, env=emulator.environment)
    measured = plan("--set", "epochs=2000")
    assert isinstance(measured, dict)
    assert measured["certainty"] == "measured"
    assert measured["runs"] == ["plain-parcel/v1"]
    assert measured["epochs"] == 2000
    assert 0 < 2000 * measured["seconds_per_epoch"] / 3600 < measured["hours"]
    assert (measured["billed_hours"], measured["fits"]) == (0, True)
    other = plan("--set", "word=hello")
    assert isinstance(other, dict)
    assert (other["certainty"], other["differences"]) == ("similar", ["word"])


def test_a_sweep_is_planned_as_the_project_file_describes_it(plain: Path, cli: Cli) -> None:
    path = plain / "pyproject.toml"
    text = path.read_text().replace("[tool.kernelkit]\n", '[tool.kernelkit]\nmetric = "val_iou"\n')
    sweep = "[tool.kernelkit.sweep]\ntrials = 12\nper_gpu = true\n"
    path.write_text(
        f"{text}{sweep}[tool.kernelkit.sweep.parameters]\nseconds = {{ low = 0.0, high = 1.0 }}\n"
    )
    plan = json.loads(cli("plan", "--sweep", "--json", cwd=plain).stdout)
    assert plan["sweep"] == {"trials": 12, "sessions": 2, "per_session": 2, "pushes": 6}
    fewer = json.loads(cli("plan", "--trials", "3", "--json", cwd=plain).stdout)
    assert fewer["sweep"]["pushes"] == 2
    unknown = ("--set", "kernel.machine_shape=NvidiaNew9", "--set", "kernel.enable_gpu=true")
    shown = cli("plan", "--sweep", *unknown, cwd=plain).stdout
    assert 'a session of "NvidiaNew9" is taken to have one GPU (per_gpu)' in " ".join(shown.split())


def test_plan_without_an_account_says_that_the_quota_is_unknown(plain: Path, cli: Cli) -> None:
    plan = json.loads(cli("plan", "--json", "--profile", "gpu", cwd=plain).stdout)
    assert plan["quota"] is None
    assert "no Kaggle credentials" in plan["quota_problem"]
