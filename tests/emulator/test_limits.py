"""Weeks and quotas, and runs that wait, run out of time or of quota."""

import datetime as dt

import pytest

from kernelkit.emulator.limits import HOUR, WEEK, Clock, SessionTime, usage
from tests.local_kaggle import TIMED_OUT

FRIDAY = dt.datetime(2026, 11, 27, 23, tzinfo=dt.UTC).timestamp()
"""One hour before the quota is refreshed."""


def test_the_quota_is_refreshed_on_saturday_at_midnight():
    assert Clock(began=FRIDAY).week(FRIDAY) == (FRIDAY + HOUR - WEEK, FRIDAY + HOUR)
    assert Clock(began=FRIDAY).week(FRIDAY + HOUR) == (FRIDAY + HOUR, FRIDAY + HOUR + WEEK)


@pytest.mark.parametrize("passed", [0, 59, 60, 61, 168 * 60, 1000 * 60])
def test_weeks_follow_each_other_on_a_faster_clock(passed):
    clock, now = Clock(60, began=FRIDAY), FRIDAY + passed
    begin, end = clock.week(now)
    assert begin <= now < end
    assert end - begin == pytest.approx(WEEK / 60)
    assert (end - FRIDAY - 60) % (WEEK / 60) == pytest.approx(0, abs=1e-3)


def test_only_this_week_counts():
    """A run over the refresh uses both weeks; what a run may still use is reserved."""
    runs = [
        SessionTime(12 * HOUR, FRIDAY - 2 * HOUR, FRIDAY - HOUR),
        SessionTime(12 * HOUR, FRIDAY, None),
        SessionTime(9 * HOUR),
    ]
    before = usage(runs, 30 * HOUR, Clock(began=FRIDAY), FRIDAY + HOUR / 2)
    assert (before.used, before.reserved) == (1.5 * HOUR, 20.5 * HOUR)
    after = usage(runs, 30 * HOUR, Clock(began=FRIDAY), FRIDAY + 2 * HOUR)
    assert (after.used, after.reserved) == (HOUR, 19 * HOUR)
    assert not after.is_used_up
    assert usage(runs, HOUR, Clock(began=FRIDAY), FRIDAY + 2 * HOUR).is_used_up


@pytest.mark.slow
def test_runs_wait_for_a_machine_and_end_with_the_quota(launch):
    """One machine: the second run waits. 36 s of quota last 0.6 s, then the run ends."""
    emulator = launch("--machines", "1", "--clock", "60", "--gpu-quota", "0.01")
    waits = "print('begun', flush=True)\nimport time; time.sleep(600)"
    emulator.push("first-kernel", waits, machineShape="NvidiaTeslaT4")
    emulator.push("second-kernel", "print('mine')")
    emulator.push("third-kernel", "print('never')")
    assert emulator.ask("GetKernelSessionStatus", "second-kernel") == {}  # queued
    number = emulator.session_id("third-kernel")
    assert emulator.call("CancelKernelSession", kernelSessionId=number).json() == {}
    ended, log = emulator.finish("first-kernel")
    assert (ended, [entry["data"] for entry in log]) == (TIMED_OUT, ["begun\n"])
    assert emulator.finish("second-kernel")[0] == {"status": "COMPLETE"}
    cancelled, log = emulator.finish("third-kernel")
    assert (cancelled, log) == ({"status": "CANCEL_ACKNOWLEDGED"}, [])
    quota = emulator.call("GetAcceleratorQuotaStatistics").json()["gpuQuota"]
    assert 36 <= int(quota["timeUsed"][:-1]) < 200
    assert (quota["timeReserved"], quota["totalTimeAllowed"]) == ("0s", "36s")
    refused = emulator.push("first-kernel", waits, machineShape="NvidiaTeslaT4")
    assert refused == {"error": "Maximum weekly GPU quota of 0.01 hours reached."}
