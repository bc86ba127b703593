"""One push, one version, even if Kaggle loses responses or has no free session."""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from kernelkit import workflow
from kernelkit.config import Config, load_config
from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    ConfigError,
    KernelkitError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    RefusedError,
    SessionCapError,
)
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, State, Timeouts
from kernelkit.runs import push, store
from kernelkit.runs.download import pull_run
from kernelkit.runs.push import Outcome
from tests.local_kaggle import LocalKaggle

QUICK = Timeouts(
    retry=0.5, grace=2, outage=5, first_pause=0.05, longest_pause=0.3, quota=60, cancelling=20
)
SLOW = "seconds=30.0"  # seconds per epoch: long enough to be cancelled; ends with the local Kaggle


class Case:
    """A kernel on the local Kaggle, with injected faults."""

    slug = "some-push"  # the same in all tests, so that they share recorded runs

    def __init__(self, project: Path, owner: str, endpoint: str) -> None:
        self.project, self.owner, self.endpoint = project, owner, endpoint
        credentials = Credentials(self.owner, "the test", key="k")
        self.kaggle = Kaggle(credentials, endpoint, timeouts=QUICK)
        self.messages: list[str] = []

    def config(self, *settings: str) -> Config:
        title = self.slug.replace("-", " ")
        named = [f"kernel.id={self.owner}/{self.slug}", f"kernel.title={title}"]
        return load_config(
            self.project, settings=[*named, *settings], endpoint=self.endpoint, environment={}
        )

    def inject(self, *faults: str) -> None:
        about = [f"{fault},account={self.owner}" for fault in faults]
        reported = requests.post(f"{self.endpoint}/emulator/faults", json=about, timeout=10)
        assert reported.ok, reported.text

    def be_honest(self) -> None:
        requests.delete(f"{self.endpoint}/emulator/faults", timeout=10)

    @property
    def versions(self) -> int:
        """The number of versions, according to the local Kaggle's journal."""
        reported = requests.get(f"{self.endpoint}/emulator/journal", timeout=10).json()
        name = f"{self.owner}/{self.slug}"
        return sum(effect.get("kernel") == name for effect in reported["effects"])

    def push(self, *settings: str, **options: Any) -> Outcome:
        return workflow.push(
            self.config(*settings),
            self.kaggle,
            on_event=lambda e: self.messages.append(str(e)),
            **options,
        ).outcome

    def record(self, version: int = 1) -> store.RunFolder:
        return store.find(self.project / "runs", self.slug, version)

    def watch(self, version: int = 1) -> State:
        on_event = self.messages.append
        return workflow.watch(
            self.kaggle, self.record(version), on_event=lambda e: on_event(str(e))
        ).state


@pytest.fixture
def case(plain: Path, local_kaggle: str, request: pytest.FixtureRequest) -> Case:
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:40].strip("-")
    return Case(plain, f"{name}-{zlib.crc32(request.node.name.encode()):x}", local_kaggle)


def test_a_lost_response_to_a_successful_push_is_recovered(case: Case) -> None:
    case.inject("lost-after", "stale-kernel,lasting=1")
    assert case.push() is Outcome.ADOPTED
    assert case.versions == 1
    assert case.record().read().outcome == "adopted"


@pytest.mark.parametrize("times", [1, 2])
def test_a_push_that_was_accepted_and_answered_with_429_is_found(case: Case, times: int) -> None:
    case.inject(f"rate-limit,call=SaveKernel,form=none,when=after,times={times}")
    assert case.push() is Outcome.ADOPTED
    assert case.versions == 1


def test_a_push_that_was_answered_with_429_is_not_sent_again_unseen(case: Case) -> None:
    case.inject(
        "rate-limit,call=SaveKernel,form=none,when=after",
        "server-error,call=GetKernel,at=2,times=0,code=503",
    )
    with pytest.raises(AnswerLostError, match=r"too many calls.*cannot be read"):
        case.push()
    case.be_honest()
    assert case.push() is Outcome.ADOPTED
    assert case.versions == 1


@pytest.mark.parametrize("fault", ["lost-before", "server-error,call=SaveKernel,code=502"])
def test_a_lost_request_is_sent_again(case: Case, fault: str) -> None:
    case.inject(fault)
    assert case.push() is Outcome.PUSHED
    assert case.versions == 1
    assert any("sending it again" in line for line in case.messages)


def test_an_unconfirmed_version_is_adopted_by_the_next_push(case: Case) -> None:
    case.inject("lost-after", "server-error,call=GetKernel,at=2,times=0,code=503")
    with pytest.raises(AnswerLostError) as caught:
        case.push()
    assert "adopts the run" in caught.value.next_step
    assert not list(store.folders(case.project / "runs"))
    case.be_honest()
    assert case.push() is Outcome.ADOPTED
    assert case.versions == 1


def test_two_lost_requests_are_an_error_without_a_run(case: Case) -> None:
    case.inject("lost-before,times=2")
    with pytest.raises(AnswerLostError):
        case.push()
    assert case.versions == 0


def test_an_older_identical_run_is_not_mistaken_for_the_lost_one(case: Case) -> None:
    case.push()
    case.inject("lost-before")
    assert case.push(again=True) is Outcome.PUSHED
    assert case.versions == 2


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
def test_rate_limits_wait_for_retry_after(case: Case, form: str) -> None:
    case.inject(f"rate-limit,call=SaveKernel,form={form},retry_after=30")
    slept: list[float] = []
    case.kaggle.timeouts = Timeouts(**{**vars(QUICK), "grace": 100, "sleep": slept.append})
    assert case.push(SLOW) is Outcome.PUSHED
    assert case.versions == 1
    assert any(pause > 25 for pause in slept) is (form != "none")


def test_persistent_rate_limits_exit_with_5(case: Case) -> None:
    case.inject("rate-limit,call=SaveKernel,retry_after=900")
    with pytest.raises(RateLimitedError) as caught:
        case.push()
    assert (caught.value.exit_code, caught.value.retry_after) == (5, 900)
    assert case.versions == 0


def test_a_push_reports_or_waits_for_the_session_limit(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.inject("session-cap,times=3")
    with pytest.raises(SessionCapError) as caught:
        case.push()
    assert "--wait" in caught.value.next_step
    with pytest.raises(SessionCapError):
        case.push(wait=True, deadline=1)  # the first pause is longer
    monkeypatch.setattr(push, "QUEUE_PAUSES", (0.1, 0.1))
    assert case.push(SLOW, wait=True) is Outcome.PUSHED
    assert any("trying again" in line for line in case.messages)


@pytest.mark.parametrize(
    ("fault", "error", "reported"),
    [
        ("quota", QuotaError, "quota"),
        ("save-error,message=The title is taken", RefusedError, "title"),
        ("error-in-200,call=SaveKernel,code=400,message=no", RefusedError, "no"),
        ("server-error,call=SaveKernel,code=500,times=2", AnswerLostError, "500"),
        ("html,call=SaveKernel,times=2", AnswerLostError, "not the API's"),
    ],
)
def test_every_refusal_has_its_error_and_starts_no_run(
    case: Case, fault: str, error: type[KernelkitError], reported: str
) -> None:
    case.inject(fault)
    with pytest.raises(error, match=reported):
        case.push()
    assert case.versions == 0


@pytest.mark.parametrize(
    ("kind", "name", "reported"),
    [
        ("competition", "no-such-competition", "gives you no data"),
        ("dataset", "ann/no-such-dataset", "there is no dataset"),
        ("kernel", "ann/no-such-kernel", "there is no kernel"),
        ("model", "ann/no-such-model/pytorch/small/1", "there is no model"),
    ],
)
def test_a_missing_source_is_reported_before_anything_is_sent(
    case: Case, kind: str, name: str, reported: str
) -> None:
    slug = name.split("/")[-1 if kind != "model" else 1]
    settings = [f'kernel.{kind}_sources=["{name}"]', f"data_dir=kaggle://input/{slug}"]
    with pytest.raises(RefusedError, match=reported) as caught:
        case.push(*settings)
    assert "Nothing was sent" in caught.value.next_step
    assert case.versions == 0


def test_the_quota_is_checked_before_anything_is_sent(case: Case) -> None:
    gpu = ["kernel.enable_gpu=true", "kernel.machine_shape=NvidiaTeslaT4"]
    (case.project / "pyproject.toml").write_text(
        (case.project / "pyproject.toml")
        .read_text()
        .replace("[tool.kernelkit]\n", "[tool.kernelkit]\ngpu_reserve_hours = 31\n")
    )
    with pytest.raises(QuotaError, match=r"of 30 GPU hours left, until .* gpu_reserve_hours = 31"):
        case.push(*gpu)
    assert case.versions == 0


GPU = ("kernel.enable_gpu=true", "kernel.machine_shape=NvidiaTeslaT4")


def test_a_run_that_does_not_fit_into_the_quota_says_so(case: Case) -> None:
    kernel = workflow.render_kernel(case.config(*GPU))
    push.check_remote(case.kaggle, kernel, 2.0, case.messages.append, hours=29.5)
    assert "needs 29.5 GPU hours, and may use 28.0" in case.messages[-1]
    case.messages.clear()
    push.check_remote(case.kaggle, kernel, 2.0, case.messages.append, hours=27.0)
    assert case.messages[0].startswith("30.0 of 30 GPU hours left, until ")
    assert not any("warning" in line for line in case.messages)


def test_a_push_waits_for_the_refresh_of_the_quota(case: Case) -> None:
    kernel = workflow.render_kernel(case.config(*GPU))
    slept: list[float] = []
    case.kaggle.timeouts = replace(QUICK, sleep=slept.append)
    case.inject("quota-used,times=2")
    waiting = push.Waiting(None, case.kaggle.timeouts)
    push.check_remote(case.kaggle, kernel, 0.0, case.messages.append, hours=1.0, waiting=waiting)
    assert len(slept) == 2
    assert all(1 <= seconds <= 3600 for seconds in slept)
    assert ["waiting for the refresh" in line for line in case.messages[:2]] == [True, False]
    assert case.messages[1].startswith("30.0 of 30 GPU hours left")

    case.inject("quota-used,times=1")
    waiting = push.Waiting(1.0, case.kaggle.timeouts)  # the refresh is later than the deadline
    with pytest.raises(QuotaError, match=r"0\.0 of 30 GPU hours left"):
        push.check_remote(case.kaggle, kernel, 0.0, case.messages.append, waiting=waiting)
    assert len(slept) == 2
    case.inject("quota-used,times=1")
    with pytest.raises(QuotaError):  # a sweep waits for sessions only, and ends for lack of quota
        push.push_once(
            case.kaggle,
            kernel,
            case.project / "runs",
            session="sweep-1",
            wait=True,
            wait_for_quota=False,
            on_event=case.messages.append,
        )
    assert len(slept) == 2


@pytest.mark.slow
def test_a_push_waits_until_the_quota_is_refreshed(
    plain: Path, launch: Callable[..., LocalKaggle]
) -> None:
    """A week of this local Kaggle takes 20 s."""
    emulator = launch("--clock", "30240", "--gpu-quota", "2")
    case = Case(plain, "ann", emulator.endpoint)
    refresh = case.kaggle.quota().refresh
    assert refresh
    if (left := refresh.timestamp() - time.time()) < 12:
        time.sleep(left + 1)  # so that the quota is used up and asked for within one week
    case.push(*GPU)
    emulator.as_account("ann").finish(case.slug)
    case.messages.clear()
    assert case.push(*GPU, "epochs=1", wait=True, deadline=60) is Outcome.PUSHED
    assert any("0.0 of 2 GPU hours left" in line for line in case.messages)
    assert any("waiting for the refresh" in line for line in case.messages)


def test_complete_runs_are_reused_and_active_runs_followed(case: Case) -> None:
    assert case.push() is Outcome.PUSHED
    assert case.push() is Outcome.REATTACHED
    pulled = workflow.run(case.config(), case.kaggle)
    assert pulled.verdict.verified
    assert case.push() is Outcome.REUSED
    assert case.versions == 1
    assert case.push("epochs=1", SLOW) is Outcome.PUSHED  # other parameters, another digest
    assert case.versions == 2
    (case.record().path / "table.csv").write_text("tampered")
    assert case.push(again=False) is Outcome.PUSHED  # a run that does not verify is not reused
    assert case.versions == 3


def test_a_failed_run_is_pushed_again(case: Case) -> None:
    case.push("fail=true")
    assert case.watch() is State.ERROR
    assert case.push("fail=true") is Outcome.PUSHED
    assert case.versions == 2


def test_two_simultaneous_pushes_start_one_run(case: Case) -> None:
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(case.push(SLOW))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [Outcome.PUSHED, Outcome.REATTACHED, Outcome.REATTACHED]
    assert case.versions == 1


def test_a_simultaneous_push_from_another_machine_is_reported(case: Case) -> None:
    case.push(SLOW)
    kernel = workflow.render_kernel(case.config(SLOW))
    pushed = push.send(
        case.kaggle, kernel, known=0, on_event=case.messages.append
    )  # it had seen no version before
    assert pushed.run.version == 2
    assert any("v1 has the same digest" in line for line in case.messages)


@pytest.mark.parametrize("lost", ["lost-before", "server-error,call=SaveKernel,code=502"])
def test_a_version_of_another_push_is_not_mistaken_for_the_lost_one(case: Case, lost: str) -> None:
    """Although it has the same digest, and was pushed at the same moment."""
    case.push(SLOW)
    kernel = workflow.render_kernel(case.config(SLOW))
    case.inject(lost)
    sent = push.send(case.kaggle, kernel, known=0, on_event=case.messages.append)
    assert (sent.run.version, sent.outcome) == (2, Outcome.PUSHED)
    assert any("sending it again" in line for line in case.messages)
    assert sent.run.push_id in case.kaggle.kernel(case.owner, case.slug, 2).source


def test_each_push_has_an_identity_and_the_digest_stays(case: Case) -> None:
    case.push("epochs=1")
    case.watch()
    case.push("epochs=1", again=True)
    first, second = (case.record(version).read() for version in (1, 2))
    assert first.digest == second.digest
    assert first.push_id != second.push_id
    for version, record in ((1, first), (2, second)):
        case.watch(version)
        pulled = pull_run(case.kaggle, case.record(version))
        assert pulled.verdict.identity_proven
        assert case.record(version).read_manifest().push_id == record.push_id
    assert case.push("epochs=1") is Outcome.REUSED


def test_a_run_pushed_from_another_machine_is_adopted_watched_and_pulled(
    case: Case, tmp_path: Path
) -> None:
    case.push()
    there = Case(tmp_path / "clone", case.owner, case.endpoint)
    there.project.mkdir()
    for path in case.project.rglob("*"):
        if path.is_file() and "runs" not in path.parts:
            target = there.project / path.relative_to(case.project)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    _, record = workflow.attach(there.config(), f"{case.owner}/{case.slug}")
    assert record.read().digest == case.record().read().digest
    assert pull_run(there.kaggle, record).verdict.verified
    assert there.push() is Outcome.REUSED
    with pytest.raises(ConfigError, match="not the name of a run"):
        workflow.attach(there.config(), "a/b/c/d")
    with pytest.raises(NotFoundError):
        workflow.attach(there.config(), f"{case.owner}/no-such-kernel")
    assert case.versions == 1


def test_changed_settings_are_reported_most_serious_first(case: Case) -> None:
    case.inject("public", "internet-flipped", "dropped-source,reported=false")
    with pytest.raises(RefusedError) as caught:
        case.push(SLOW)
    first, *others = caught.value.details.document["differences"]
    assert first == "is_private: requested True, got False"
    assert [line.partition(":")[0] for line in others] == ["enable_internet", "competition_sources"]
    assert case.record().read().version == 1  # the run is active and recorded


def test_an_unavailable_check_is_tried_once_before_the_push(case: Case) -> None:
    fault = f"server-error,call=GetDatasetStatus,times=0,account={case.owner}"
    assert requests.post(f"{case.endpoint}/emulator/faults", json=[fault], timeout=10).ok
    sources = ["someone/letters", "someone/more", "someone/else"]
    named = ", ".join(f'"{source}"' for source in sources)
    with pytest.raises(RefusedError):  # Kaggle drops the last two
        case.push(f"kernel.dataset_sources=[{named}]")
    assert sum("could not be checked" in line for line in case.messages) == 1


def test_a_missing_model_is_reported_before_the_push(case: Case) -> None:
    with pytest.raises(RefusedError, match="there is no model no/such"):
        case.push('kernel.model_sources=["no/such/pytorch/default/1"]')
    assert case.versions == 0


@pytest.mark.parametrize("fault", ["public", "dropped-source,kind=dataset,reported=true"])
def test_a_run_with_changed_settings_is_not_reused(case: Case, fault: str) -> None:
    sources = ['kernel.dataset_sources=["someone/letters"]'] if "dropped" in fault else []
    case.inject(fault)
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            case.push(*sources)
        assert caught.value.details.document["differences"]
        assert "--again" in caught.value.next_step
    workflow.watch(case.kaggle, case.record())
    pull_run(case.kaggle, case.record())
    with pytest.raises(RefusedError, match="Kaggle changed"):
        case.push(*sources)
    assert case.versions == 1
    case.be_honest()
    assert case.push(*sources, again=True) is Outcome.PUSHED


def test_a_recreated_kernel_is_pushed_once(case: Case) -> None:
    case.push()
    bundle, record = case.record().read_bundle(), case.record().read()
    case.watch()
    for version, digest in ((7, "0" * 64), (8, record.digest)):  # of the deleted kernel
        old = record.updated(version=version, digest=digest)
        folder = store.record_push(case.project / "runs", old, bundle)
        os.utime(folder.path / "push.json", (0, 0))
    case.inject("lost-after")
    assert case.push("epochs=3") is Outcome.ADOPTED
    assert case.versions == 2
    assert case.push() is Outcome.REATTACHED
    assert any("v8 is no longer on Kaggle" in line for line in case.messages)


def test_a_changed_cell_is_named(case: Case) -> None:
    case.push(SLOW)
    run = case.record().read().address
    kernel = workflow.render_kernel(case.config(SLOW)).as_pushed(run.push_id)
    assert push.verify_push(case.kaggle, kernel, run) == []
    other = replace(kernel, notebook=kernel.notebook.replace("To run it:", "To run it all:", 1))
    assert other.notebook != kernel.notebook
    (reported,) = push.verify_push(case.kaggle, other, run)
    assert re.fullmatch(r"cell \d+ on Kaggle differs from what was sent", reported)


def test_the_watch_reports_a_different_machine(case: Case) -> None:
    gpu = ["kernel.enable_gpu=true", "kernel.machine_shape=NvidiaTeslaT4", SLOW]
    case.inject("other-machine,shape=NvidiaTeslaP100")
    case.push(*gpu)
    assert any("not yet confirmed: machine_shape" in line for line in case.messages)
    with pytest.raises(
        RefusedError, match="requested NvidiaTeslaT4, got NvidiaTeslaP100"
    ) as caught:
        case.watch()
    assert caught.value.exit_code == 4


def test_the_end_of_the_previous_version_is_ignored(case: Case) -> None:
    case.push("epochs=1")
    assert case.watch() is State.COMPLETE
    case.inject("stale-status,times=3")
    case.push("epochs=1", "fail=true")
    case.messages.clear()
    assert case.watch(2) is State.ERROR
    assert not re.search(r"\bcomplete\b", " ".join(case.messages))


def test_a_run_is_cancelled_or_the_reason_is_reported(case: Case) -> None:
    case.push(SLOW)
    watching = threading.Thread(target=lambda: case.watch())
    watching.start()
    refused: list[str] = []
    while True:
        try:
            end = workflow.cancel(case.kaggle, case.record())
            break
        except RefusedError as fault:
            refused.append(str(fault))
    assert all("cannot be cancelled from here" in words for words in refused)
    assert end.state is State.CANCEL_ACKNOWLEDGED
    watching.join(20)
    with pytest.raises(RefusedError, match="has already ended"):
        workflow.cancel(case.kaggle, case.record())


def test_all_capacity_errors_have_one_exit_code() -> None:
    kinds: list[Callable[[str], KernelkitError]] = [SessionCapError, QuotaError, RateLimitedError]
    assert {kind("").exit_code for kind in kinds} == {CapacityError.exit_code}
