"""`cancel --delete`: what is there is saved, and only a kernel of this project is deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelkit.errors import NotFoundError, RefusedError
from kernelkit.kaggle.kernels import connect
from kernelkit.runs.delete import delete_kernel, prepare_deletion
from kernelkit.runs.store import RunFolder
from tests.conftest import Cli
from tests.local_kaggle import LocalKaggle

SETTINGS = ("--set", "kernel.id=some-push", "--set", "kernel.title=Some Push")
SLOW = ("--set", "seconds=30.0")


@pytest.fixture
def pushed(cli: Cli, emulator: LocalKaggle, plain: Path) -> Path:
    """The project, of which a long run was just pushed."""
    cli("push", *SETTINGS, *SLOW, cwd=plain, env=emulator.environment)
    return plain


def deleted(emulator: LocalKaggle) -> bool:
    answer = emulator.call("GetKernel", userName=emulator.account, kernelSlug="some-push")
    return answer.status_code == 404


def test_a_run_is_stopped_before_it_prints_anything(
    cli: Cli, emulator: LocalKaggle, pushed: Path
) -> None:
    done = cli(
        *("cancel", "--delete", "--yes", "--json", *SETTINGS), cwd=pushed, env=emulator.environment
    )
    document = json.loads(done.stdout)
    assert document["deleted"] == f"{emulator.account}/some-push"
    assert document["lost"] == ["v1 (what it has not saved yet)"]
    assert deleted(emulator)
    end = json.loads((pushed / "runs" / "some-push" / "v1" / "run.json").read_text())
    assert (end["state"], end["state_word"], end["verified"]) == (
        "cancel_acknowledged",
        "deleted",
        False,
    )
    (row,) = json.loads(cli("runs", "--json", cwd=pushed).stdout)
    assert row["state_word"] == "deleted"
    now = cli("status", *SETTINGS, cwd=pushed, env=emulator.environment, expect=6)
    assert "some-push v1: cancelled" in now.stdout
    arguments = ("cancel", "--delete", "--yes", *SETTINGS)
    twice = cli(*arguments, cwd=pushed, env=emulator.environment, expect=4)
    assert "it was deleted before" in twice.stderr
    again = cli("push", *SETTINGS, cwd=pushed, env=emulator.environment)  # counts from 1 again
    assert "some-push v1 is pushed" in again.stderr + again.stdout


def test_a_kernel_that_is_gone_is_recorded_and_the_error_says_so(
    emulator: LocalKaggle, pushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle = connect(emulator.endpoint, emulator.environment)
    monkeypatch.setattr(RunFolder, "age", lambda _: kaggle.timeouts.grace + 1)
    kaggle.delete("some-push")
    folder = RunFolder(pushed / "runs" / "some-push" / "v1")
    with pytest.raises(NotFoundError, match="v1 now records the run as deleted"):
        prepare_deletion(kaggle, folder)
    assert folder.is_complete()
    with pytest.raises(NotFoundError, match=r"it was deleted before$"):
        prepare_deletion(kaggle, folder)


def test_nothing_is_deleted_without_consent(cli: Cli, emulator: LocalKaggle, pushed: Path) -> None:
    done = cli("cancel", "--delete", *SETTINGS, cwd=pushed, env=emulator.environment, expect=2)
    assert "lost: v1" in done.stderr
    assert "--delete --yes" in done.stderr
    assert not deleted(emulator)


def test_a_kernel_that_kernelkit_did_not_push_is_not_deleted(
    cli: Cli, emulator: LocalKaggle, pushed: Path
) -> None:
    emulator.push("some-push", "print('from a browser')")
    arguments = ("cancel", "v1", "--delete", "--yes", *SETTINGS)
    done = cli(*arguments, cwd=pushed, env=emulator.environment, expect=4)
    assert "was not pushed by kernelkit" in done.stderr
    assert not deleted(emulator)


def test_a_version_that_was_pushed_meanwhile_is_not_deleted_unseen(
    emulator: LocalKaggle, pushed: Path, cli: Cli
) -> None:
    kaggle = connect(emulator.endpoint, emulator.environment)
    deletion = prepare_deletion(kaggle, RunFolder(pushed / "runs" / "some-push" / "v1"))
    cli("push", "--again", *SETTINGS, cwd=pushed, env=emulator.environment)
    with pytest.raises(RefusedError, match="has a new version, v2"):
        delete_kernel(kaggle, deletion)
    assert not deleted(emulator)


def test_it_is_deleted_although_nothing_can_be_saved(
    cli: Cli, emulator: LocalKaggle, pushed: Path
) -> None:
    emulator.inject("server-error,call=ListKernelSessionOutput,times=0,code=503")
    environment = {**emulator.environment, "KERNELKIT_RETRY_SECONDS": "0"}
    done = cli("cancel", "--delete", "--yes", *SETTINGS, cwd=pushed, env=environment)
    assert "not everything could be saved" in done.stdout + done.stderr
    assert deleted(emulator)


@pytest.mark.slow
def test_a_lost_answer_to_the_deletion_is_noticed(
    cli: Cli, emulator: LocalKaggle, pushed: Path
) -> None:
    """The network fails after the files were saved; Kaggle has deleted the kernel all the same."""
    emulator.inject("lost-after,call=DeleteKernel,times=0")
    environment = {**emulator.environment, "KERNELKIT_RETRY_SECONDS": "0"}
    cli(*("cancel", "--delete", "--yes", *SETTINGS), cwd=pushed, env=environment)
    assert deleted(emulator)
    end = json.loads((pushed / "runs" / "some-push" / "v1" / "run.json").read_text())
    assert end["state_word"] == "deleted"


@pytest.mark.slow
def test_a_deletion_that_kaggle_does_not_get_is_no_success(
    cli: Cli, emulator: LocalKaggle, pushed: Path
) -> None:
    emulator.inject("server-error,call=DeleteKernel,times=0,code=503")
    arguments = ("cancel", "--delete", "--yes", *SETTINGS)
    environment = {**emulator.environment, "KERNELKIT_RETRY_SECONDS": "0"}
    cli(*arguments, cwd=pushed, env=environment, expect=9)
    assert not deleted(emulator)
    assert not (pushed / "runs" / "some-push" / "v1" / "run.json").exists()
    emulator.remove_faults()
    cli(*arguments, cwd=pushed, env=emulator.environment)
    assert deleted(emulator)
