"""`kernelkit collect` on another machine than the push: only Kaggle knows what was pushed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernelkit.campaigns.collect import CollectedRun, note_continued
from kernelkit.config import derived_name, is_kernel_of
from kernelkit.kaggle.kernels import connect
from tests.conftest import Cli
from tests.local_kaggle import LocalKaggle

SLUG = "plain-parcel"


@dataclass
class Machines:
    """A project on two machines with one account."""

    here: Path
    there: Path
    emulator: LocalKaggle
    cli: Cli

    def push(self, *options: str, suffix: str = "") -> None:
        """Push there, as the project's kernel or as one of its lanes."""
        named = [f"kernel.id={SLUG}-{suffix}", f"kernel.title=Plain parcel {suffix}"]
        settings = [word for one in named if suffix for word in ("--set", one)]
        command = ["push", *settings, *options]
        self.cli(*command, cwd=self.there, env=self.emulator.environment)

    def collect(self, *options: str, expect: int = 0) -> dict[str, dict[str, Any]]:
        """Collect here; the runs by name."""
        command = ["collect", "--json", *options]
        done = self.cli(*command, cwd=self.here, env=self.emulator.environment, expect=expect)
        found = json.loads(done.stdout)
        assert found["exit_code"] == expect
        assert found["account"] == self.emulator.account
        return {run["run"]: run for run in found["runs"]}

    def finish(self, *slugs: str) -> None:
        for slug in slugs or (SLUG,):
            self.emulator.finish(slug)


@pytest.fixture
def machines(plain: Path, emulator: LocalKaggle, cli: Cli) -> Machines:
    there = plain.with_name("there")
    shutil.copytree(plain, there)
    return Machines(plain, there, emulator, cli)


def test_the_kernels_of_a_project_are_told_by_their_names() -> None:
    names = [SLUG, f"{SLUG}-b", f"{SLUG}-lane-1", f"{SLUG}-lane-12"]
    assert all(is_kernel_of(SLUG, name) for name in names)
    others = ["plain", f"{SLUG}-c", f"{SLUG}-lane-", f"{SLUG}-lane-0", f"{SLUG}-b-2", f"x-{SLUG}-b"]
    assert not any(is_kernel_of(SLUG, name) for name in others)
    long = "a-very-long-name-of-a-kernel-that-fills-the-title-"[:49]
    assert is_kernel_of(long, derived_name(long, "lane-2"))


def test_runs_of_all_kernels_are_adopted_and_verified(machines: Machines) -> None:
    machines.push()
    machines.push(suffix="lane-1")
    machines.emulator.push(f"{SLUG}-b", "print('a notebook of somebody else')")
    machines.emulator.push("another-kernel", "print('not of this project')")
    machines.finish(SLUG, f"{SLUG}-lane-1")
    found = machines.collect()
    assert list(found) == [f"{SLUG}/v1", f"{SLUG}-lane-1/v1"]
    for run in found.values():
        assert (run["state"], run["verified"], run["new"]) == ("complete", True, True)
        assert (Path(run["folder"]) / "table.csv").is_file()
    assert found[f"{SLUG}/v1"]["folder"] == str(machines.here / "runs" / SLUG / "v1")
    push = json.loads((machines.here / "runs" / SLUG / "v1" / "push.json").read_text())
    assert push["outcome"] == "adopted"

    before = len(machines.emulator.journal("requests"))
    again = machines.collect()
    assert [run["new"] for run in again.values()] == [False, False]
    calls = [call["method"] for call in machines.emulator.journal("requests")[before:]]
    assert sorted(set(calls)) == ["GetKernel", "ListKernels"]


def test_the_last_session_of_a_chain_decides(tmp_path: Path) -> None:
    chain, other = "chain-0123456789ab", "sweep-0123456789ab"
    marks = [f"{chain}-9", f"{chain}-10", f"{chain}-10-2", f"{other}-0001", f"{other}-0002", None]
    runs = []
    for version, mark in enumerate(marks, start=1):
        folder = tmp_path / SLUG / f"v{version}"
        folder.mkdir(parents=True)
        push = {"owner": "me", "slug": SLUG, "version": version, "url": "", "digest": "d"}
        push |= {"endpoint": "http://127.0.0.1:1", "session": mark, "push_id": "p"}
        (folder / "push.json").write_text(json.dumps(push))
        run = CollectedRun("me", SLUG, version, "timed out", folder, exit_code=6, error="e")
        runs.append(run)
    assert [(run.continued, run.exit_code) for run in note_continued(runs)] == [
        *[(True, 0), (True, 0), (False, 6)],
        *[(False, 6), (False, 6), (False, 6)],
    ]


@pytest.mark.slow
def test_the_worst_run_decides_and_running_ones_stay(machines: Machines) -> None:
    machines.push("--profile", "failing")
    machines.push(suffix="lane-1")
    machines.finish(SLUG, f"{SLUG}-lane-1")
    machines.emulator.inject(f"queued,times=0,kernel={SLUG}-lane-1")
    found = machines.collect(expect=6)
    failed, queued = found.values()
    assert (failed["state"], failed["exit_code"], failed["verified"]) == ("failed", 6, False)
    assert "asked to fail" in failed["error"]
    assert (queued["state"], queued["exit_code"], queued["new"]) == ("queued", 7, False)
    shown = machines.cli("collect", cwd=machines.here, env=machines.emulator.environment, expect=6)
    assert f"error: {SLUG}/v1: the run failed" in shown.stderr
    assert f"not ended: {SLUG}-lane-1/v1" in shown.stderr


def test_wait_waits_for_the_end_and_no_longer_than_the_deadline(machines: Machines) -> None:
    machines.push()
    machines.finish()
    machines.emulator.inject("queued,times=0")
    assert machines.collect("--wait", "--deadline", "1", expect=7)[f"{SLUG}/v1"]["new"] is False
    machines.emulator.remove_faults()
    machines.emulator.inject("queued,times=2")
    assert machines.collect("--wait")[f"{SLUG}/v1"]["new"] is True


@pytest.mark.slow
def test_all_versions_are_collected_on_request(machines: Machines) -> None:
    machines.push()
    machines.finish()
    machines.push("--set", "epochs=1")
    machines.finish()
    assert list(machines.collect()) == [f"{SLUG}/v2"]
    assert list(machines.collect("--all")) == [f"{SLUG}/v1", f"{SLUG}/v2"]


def test_a_deleted_kernel_that_is_still_listed_is_no_error(machines: Machines) -> None:
    kaggle = connect(machines.emulator.endpoint, machines.emulator.environment)
    machines.push()
    machines.push(suffix="b")
    machines.finish(SLUG, f"{SLUG}-b")
    kaggle.delete(SLUG)
    found = machines.collect()
    deleted = found[f"{SLUG}/v1"]
    assert (deleted["state"], deleted["exit_code"], deleted["folder"]) == ("deleted", 0, None)
    assert found[f"{SLUG}-b/v1"]["verified"] is True


@pytest.mark.slow
def test_a_run_that_was_deleted_before_it_was_pulled_is_lost(machines: Machines) -> None:
    """It is recorded here; `cancel --delete` says that this is known."""
    kaggle = connect(machines.emulator.endpoint, machines.emulator.environment)
    machines.push()
    machines.finish()
    machines.emulator.inject("queued,times=1")
    assert machines.collect(expect=7)[f"{SLUG}/v1"]["state"] == "queued"  # adopted
    kaggle.delete(SLUG)
    run = machines.collect(expect=4)[f"{SLUG}/v1"]
    assert (run["state"], run["verified"], run["exit_code"]) == ("deleted", False, 4)
    assert run["error"].endswith("and was never pulled: its results are lost")
    assert run["next_step"].endswith(f"kernelkit cancel --delete {SLUG}/v1")
    command = ("cancel", "--delete", "--yes", f"{SLUG}/v1")
    environment = machines.emulator.environment
    gone = machines.cli(*command, cwd=machines.here, env=environment, expect=4)
    assert "it was deleted before" in gone.stderr
    shown = machines.cli("collect", cwd=machines.here, env=environment, expect=0)
    assert "deleted" in shown.stdout


@pytest.mark.slow
def test_a_damaged_record_is_replaced_or_named(machines: Machines) -> None:
    kaggle = connect(machines.emulator.endpoint, machines.emulator.environment)
    machines.push()
    machines.finish()
    machines.collect()
    push = machines.here / "runs" / SLUG / "v1" / "push.json"
    push.write_text("{")
    assert machines.collect()[f"{SLUG}/v1"]["verified"] is True  # adopted again
    push.write_text("{")
    (push.parent / "run.json").unlink()
    kaggle.delete(SLUG)
    run = machines.collect(expect=10)[f"{SLUG}/v1"]
    assert (run["state"], run["verified"]) == ("unknown", False)
    assert "push.json" in run["error"]
    assert "move the folder away" in run["next_step"]


@pytest.mark.slow
def test_a_kernel_that_was_created_again_does_not_count_as_the_old_one(machines: Machines) -> None:
    kaggle = connect(machines.emulator.endpoint, machines.emulator.environment)
    machines.push()
    machines.finish()
    assert machines.collect()[f"{SLUG}/v1"]["new"] is True
    kaggle.delete(SLUG)
    machines.push("--again")
    machines.finish()
    assert machines.collect()[f"{SLUG}/v1"]["new"] is True
    assert (machines.here / "runs" / SLUG / "v1.1" / "run.json").is_file()


def test_an_account_without_a_run_is_an_error(machines: Machines) -> None:
    done = machines.cli("collect", cwd=machines.here, env=machines.emulator.environment, expect=4)
    assert (
        f"{machines.emulator.account} has no kernel {SLUG} that kernelkit has pushed" in done.stderr
    )


@pytest.mark.slow
def test_an_unreachable_kaggle_ends_the_collection_with_what_is_known(
    machines: Machines,
) -> None:
    machines.push()
    machines.push(suffix="b")
    machines.finish(SLUG, f"{SLUG}-b")
    machines.emulator.inject("server-error,call=GetKernelSessionStatus,times=0,code=503")
    environment = {**machines.emulator.environment, "KERNELKIT_RETRY_SECONDS": "0"}
    done = machines.cli("collect", "--json", cwd=machines.here, env=environment, expect=9)
    assert [run["exit_code"] for run in json.loads(done.stdout)["runs"]] == [9, 9]
