"""Which run has made what Kaggle sends: its push_id proves it, its digest alone does not."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config
from kernelkit.errors import RunFailedError, VerificationError
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, State, Status, Timeouts
from kernelkit.notebook.cells import RenderedCell, notebook_json
from kernelkit.notebook.reader import embedded_manifest, read_cells, with_push
from kernelkit.runs import history, store
from kernelkit.runs.identity import Identity, log_identity
from kernelkit.runs.manifest import RunAddress
from kernelkit.runs.verify import require_verified, verify
from kernelkit.runs.watch import read_log
from tests.runs.test_download import DIGEST, Shelf

OURS, OTHER = "a" * 32, "b" * 32
DIGEST_LINE = f"kernelkit digest {DIGEST}\n"
TIME_OUT = "Your notebook was stopped because it exceeded the max allowed execution duration."


def log_of(*texts: str) -> str:
    return json.dumps([{"stream_name": "stdout", "time": 0, "data": text} for text in texts])


OUR_LOG = log_of(DIGEST_LINE, f"kernelkit push {OURS}\n")
OTHER_LOG = log_of(DIGEST_LINE + f"kernelkit push {OTHER}\n")
SILENT_LOG = log_of(DIGEST_LINE, "it ended before the runtime began\n")


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    server = Shelf()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def kaggle(shelf: Shelf) -> Kaggle:
    credentials = Credentials("ann", "the test", key="k")
    return Kaggle(credentials, shelf.endpoint, timeouts=Timeouts(retry=0))


def serve(shelf: Shelf, log: str, **identity: object) -> None:
    """A run with one declared output and one other file."""
    shelf.log, shelf.files = log, [("out.csv", b"id,x\na,1\n"), ("extra.bin", b"extra")]
    shelf.declare("out.csv", **identity)


@pytest.mark.parametrize("log", [OUR_LOG, SILENT_LOG, ""])
def test_outputs_with_the_push_id_are_proven_whatever_the_log_has(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, log: str
) -> None:
    serve(shelf, log, push_id=OURS)
    record = shelf.record(tmp_path / "v2", "out.csv", push_id=OURS)
    pulled = workflow.pull(kaggle, record)
    assert pulled.document["identity_proven"] is pulled.document["verified"] is True
    end = json.loads((record.path / "run.json").read_text())
    assert (end["identity_proven"], end["run"]["push_id"]) == (True, OURS)


@pytest.mark.parametrize(
    ("log", "identity"),
    [
        ("", {"push_id": OTHER}),  # the earlier version's outputs, with an empty log
        (OUR_LOG, {"push_id": OTHER}),
        (OUR_LOG, {}),  # pushed by another client
        (OUR_LOG, {"push_id": 3}),
        (OTHER_LOG, {"push_id": OURS}),
        (OTHER_LOG, {"push_id": OTHER}),
        (log_of(f"kernelkit digest {'e' * 64}\n"), {"push_id": OURS}),
    ],
)
@pytest.mark.parametrize("state", ["COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"])
def test_what_another_run_has_left_is_refused_and_can_be_pulled_later(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, log: str, identity: dict[str, object], state: str
) -> None:
    serve(shelf, log, **identity)
    shelf.state = state
    record = shelf.record(tmp_path / "v2", "out.csv", push_id=OURS)
    with pytest.raises(VerificationError, match="another run") as caught:
        workflow.pull(kaggle, record)
    assert caught.value.exit_code == 8
    assert caught.value.details is not None
    assert caught.value.details.document["verified"] is False
    assert not record.is_complete()
    assert not (record.path / "extra.bin").exists()  # its size alone could not tell it from ours
    serve(shelf, OUR_LOG, push_id=OURS)
    shelf.state = "COMPLETE"
    assert workflow.pull(kaggle, record).verdict.verified


def test_a_run_without_a_push_id_is_verified_and_not_proven(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    serve(shelf, SILENT_LOG)
    record = shelf.record(tmp_path / "v2", "out.csv")
    document = workflow.pull(kaggle, record).document
    assert (document["verified"], document["identity_proven"]) == (True, False)
    serve(shelf, OTHER_LOG, push_id=OTHER)  # kernelkit has pushed this one
    with pytest.raises(VerificationError, match="another run"):
        workflow.pull(kaggle, shelf.record(tmp_path / "again" / "v2", "out.csv"))


@pytest.mark.parametrize("log", [OTHER_LOG, log_of("kernelkit digest " + "e" * 64)])
def test_the_log_of_another_run_is_not_printed(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, log: str
) -> None:
    record = shelf.record(tmp_path / "v2", push_id=OURS)
    shelf.log = log
    with pytest.raises(VerificationError, match="the log of another run"):
        workflow.logs(kaggle, record)
    shelf.log = OUR_LOG
    assert len(read_log(kaggle, record.address_at(kaggle.endpoint))) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Identity.UNPROVEN),
        ("kernelkit push " + OTHER, Identity.UNPROVEN),  # without a digest it is the user's own
        (DIGEST_LINE, Identity.UNPROVEN),
        (DIGEST_LINE + f"kernelkit push {OURS}\n", Identity.PROVEN),
        (DIGEST_LINE + f"kernelkit push {OURS}\nkernelkit push {OTHER}\n", Identity.PROVEN),
        (DIGEST_LINE + f"kernelkit push {OTHER}\n", Identity.MISMATCH),
        ("x" * (1 << 21) + DIGEST_LINE + f"kernelkit push {OTHER}\n", Identity.UNPROVEN),
    ],
)
def test_a_log_shows_whose_it_is(text: str, expected: Identity) -> None:
    run = RunAddress(
        owner="a", slug="s", version=1, url="", digest=DIGEST, endpoint="", push_id=OURS
    )
    assert log_identity(run, text)[0] == expected


@pytest.mark.parametrize(
    ("state", "failure", "word"),
    [
        ("CANCEL_ACKNOWLEDGED", TIME_OUT, "timed out"),
        ("ERROR", "The notebook exceeded the time limit", "timed out"),
        ("CANCEL_ACKNOWLEDGED", "", "cancelled"),
        ("ERROR", "out of memory", "failed"),
    ],
)
@pytest.mark.parametrize("log", [OUR_LOG, ""])
@pytest.mark.parametrize("manifest", [True, False])
def test_what_a_run_that_did_not_complete_has_saved_is_kept(
    shelf: Shelf,
    kaggle: Kaggle,
    tmp_path: Path,
    state: str,
    failure: str,
    word: str,
    log: str,
    manifest: bool,
) -> None:
    serve(shelf, log, push_id=OURS, status="failed", error="KeyboardInterrupt")
    shelf.files = shelf.files if manifest else shelf.files[:-1]
    shelf.state, shelf.failure = state, failure
    folder = tmp_path / "runs" / "some-kernel" / "v2"
    record = shelf.record(folder, "out.csv", "late.zip", push_id=OURS)
    with pytest.raises(RunFailedError) as caught:
        workflow.pull(kaggle, record)
    document = dict(caught.value.details.document)  # type: ignore[union-attr]
    end = json.loads((record.path / "run.json").read_text())
    for known in (document, end):
        assert (known["state"], known["state_word"]) == (state.lower(), word)
        assert known["verified"] is False
        assert known["files_verified"] is manifest  # nothing else says what the run has written
        assert known["identity_proven"] is (manifest or log == OUR_LOG)
    assert (record.path / "extra.bin").read_bytes() == b"extra"
    assert word in str(caught.value)
    if word == "timed out":
        assert "if kernel_sources names this kernel" in caught.value.next_step  # no project here
    with pytest.raises(RunFailedError):  # also from the complete folder
        workflow.pull(kaggle, record)
    verdict = verify(record.path)
    assert verdict.run_error
    with pytest.raises(RunFailedError):
        require_verified(verdict, record.path)


@pytest.mark.parametrize(
    ("state", "failure"),
    [("CANCEL_ACKNOWLEDGED", ""), ("CANCEL_ACKNOWLEDGED", TIME_OUT), ("ERROR", "no disk")],
)
def test_a_run_that_has_just_ended_without_outputs_is_listed_as_pulled(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, state: str, failure: str
) -> None:
    shelf.state, shelf.failure, shelf.log = state, failure, OUR_LOG
    folder = shelf.record(tmp_path / "some-kernel" / "v2", "out.csv", push_id=OURS)
    record = {**folder.read().document, "pushed": store.now()}  # within the grace period
    (folder.path / "push.json").write_text(json.dumps(record))
    with pytest.raises(RunFailedError):
        workflow.pull(kaggle, folder)
    (row,) = history.rows(tmp_path)
    assert (row.state, row.state_word) == (state.lower(), Status(State(row.state), failure).word)
    assert row.verified is False


def test_an_old_verdict_does_not_hide_how_the_run_ended(shelf: Shelf, tmp_path: Path) -> None:
    """kernelkit 0.1.0 wrote `verified: true` if only Kaggle had reported the failure."""
    folder = shelf.record(tmp_path / "some-kernel" / "v2", "out.csv")
    end = {"state": "error", "failure": "out of memory", "verified": True}
    (folder.path / "run.json").write_text(json.dumps(end))
    (row,) = history.rows(tmp_path)
    assert row.verified is False
    assert history.show(folder).verified is False


def test_a_complete_manifest_does_not_hide_how_the_run_ended(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    serve(shelf, OUR_LOG, push_id=OURS)
    shelf.state, shelf.failure = "ERROR", "Your notebook tried to allocate more memory"
    record = shelf.record(tmp_path / "v2", "out.csv", push_id=OURS)
    with pytest.raises(RunFailedError, match="more memory") as caught:
        workflow.pull(kaggle, record)
    document = dict(caught.value.details.document)  # type: ignore[union-attr]
    assert (document["verified"], document["files_verified"]) == (False, True)
    end = json.loads((record.path / "run.json").read_text())
    assert (end["verified"], end["files_verified"], end["state"]) == (False, True, "error")


def test_a_time_out_names_the_command_to_resume_with(
    shelf: Shelf, kaggle: Kaggle, make_project: Callable[..., Path]
) -> None:
    shelf.state, shelf.failure = "CANCEL_ACKNOWLEDGED", TIME_OUT
    parameters = "[tool.kernelkit.parameters]\nepochs = 1\nname = 'a'\nold = 2\n"
    source = {"pkg/main.py": "def run(epochs, name, resume_dir=None):\n    pass\n"}
    project = make_project(source, extra=parameters)
    record = shelf.record(project / "runs" / "some-kernel" / "v2", push_id=OURS)
    with pytest.raises(RunFailedError, match="timed out") as caught:
        workflow.pull(kaggle, record)
    assert "It has saved no outputs" in caught.value.next_step
    (record.path / "run.json").unlink()
    shelf.files = [("checkpoints/one.pt", b"state")]
    bundle = json.loads((record.path / "bundle.json").read_text())
    sent = {"epochs": 7, "name": "a", "resume_dir": None, "removed": 1}
    bundle |= {"parameters": sent, "kernel": {"machine_shape": "NvidiaTeslaT4"}}
    (record.path / "bundle.json").write_text(json.dumps(bundle))
    with pytest.raises(RunFailedError, match="timed out") as caught:
        workflow.pull(kaggle, record)
    assert caught.value.next_step.endswith(
        "kernelkit run --until-done --resume some-kernel/v2 --set epochs=7 "
        f"--set 'kernel.machine_shape=\"NvidiaTeslaT4\"' --endpoint {kaggle.endpoint}"
    )
    (project / "pkg/main.py").write_text("def run(epochs, name):\n    pass\n")
    with pytest.raises(RunFailedError, match="timed out") as caught:
        workflow.pull(kaggle, record)
    assert 'add "resume_dir" to it' in caught.value.next_step


def test_a_run_that_stalled_says_so(shelf: Shelf, kaggle: Kaggle, tmp_path: Path) -> None:
    reason = "nothing was printed and no file changed for 30 minutes (stall_minutes)"
    serve(shelf, OUR_LOG, push_id=OURS, status="stalled", error=f"Stalled: {reason}")
    shelf.state, shelf.failure = "ERROR", "Kernel died"
    record = shelf.record(tmp_path / "some-kernel" / "v2", "out.csv", "late.zip", push_id=OURS)
    with pytest.raises(RunFailedError, match=r"the run stalled: nothing was printed") as caught:
        workflow.pull(kaggle, record)
    assert "verified, as the run described it: out.csv" in str(caught.value)
    assert dict(caught.value.details.document)["state_word"] == "stalled"  # type: ignore[union-attr]
    (row,) = history.rows(tmp_path)
    assert row.state_word == "stalled"


def test_a_run_that_was_killed_names_its_verified_files(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    serve(shelf, OUR_LOG, push_id=OURS, status="running")
    shelf.state, shelf.failure = "ERROR", "DeadKernelError: Kernel died"
    record = shelf.record(tmp_path / "some-kernel" / "v2", "out.csv", push_id=OURS)
    with pytest.raises(RunFailedError, match="Kernel died") as caught:
        workflow.pull(kaggle, record)
    assert "verified, as the run described it: out.csv" in str(caught.value)
    assert "To continue until it is done" in caught.value.next_step


def test_a_run_that_was_ended_vouches_for_what_it_has_described(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    event = {"event": "epoch", "epoch": 3, "epochs": 9, "experiment": "a"}
    serve(shelf, OUR_LOG, push_id=OURS, status="running", last_event=event)
    shelf.state, shelf.failure = "CANCEL_ACKNOWLEDGED", TIME_OUT
    shelf.files = [(name, b"changed" if name == "out.csv" else data) for name, data in shelf.files]
    record = shelf.record(tmp_path / "some-kernel" / "v2", "out.csv", push_id=OURS)
    with pytest.raises(RunFailedError, match="timed out") as caught:
        workflow.pull(kaggle, record)
    text = str(caught.value)
    assert "not vouched for, because changed afterwards: out.csv" in text
    assert "not vouched for, because not described: extra.bin" in text
    assert re.search(r"resume point: what it had saved.*; last event: epoch 3 of 9 of a", text)
    document = dict(caught.value.details.document)  # type: ignore[union-attr]
    assert document["not_vouched_for"] == ["out.csv"]
    assert (document["problems"], document["files_verified"]) == ([], False)
    assert (record.path / "run.json").exists()


MANIFEST = "{'digest': 'd', 'outputs': (), 'roots': {}, 'entry': '', 'parameters': {}, 'files': ()}"


@pytest.mark.parametrize(
    "source",
    [
        f"BUNDLE = {MANIFEST}\nprint(BUNDLE)",
        "# é\nBUNDLE = {\n 'digest': 'd', 'outputs': (), 'roots': {}, 'entry': 'ü',\n"
        " 'parameters': {}, 'files': (),\n}",
        f"x = 1; BUNDLE =   {MANIFEST}  # a comment with {{",
    ],
)
def test_a_push_id_is_added_to_the_embedded_manifest_alone(source: str) -> None:
    other = RenderedCell("b", "run", True, "x = {'digest': 1}")
    plain = notebook_json([RenderedCell("a", "start", True, source), other])
    pushed = with_push(plain, {"push_id": OURS})
    manifest = embedded_manifest(read_cells(pushed))
    assert manifest.push_id == OURS
    assert pushed.replace(f"    'push_id': '{OURS}',", "") != pushed
    joined = [cell.source.replace(f"\n    'push_id': '{OURS}',", "") for cell in read_cells(pushed)]
    assert joined == [cell.source for cell in read_cells(plain)]


def test_a_pushed_notebook_differs_from_the_rendered_one_in_the_push_id_alone(plain: Path) -> None:
    kernel = workflow.render_kernel(load_config(plain, environment={}))
    sent = kernel.as_pushed(OURS)
    entry = f"\\n    'push_id': '{OURS}',"
    assert sent.payload.replace(entry, "") == kernel.payload
    assert sent.payload.count(entry) == 1
    assert (sent.digest, sent.size) == (kernel.digest, len(sent.payload))
    assert sent.manifest.push_id == OURS
    assert workflow.render_kernel(load_config(plain, environment={})).notebook == kernel.notebook
    edited = plain / "pulled.ipynb"
    edited.write_text(sent.notebook)
    plan = workflow.plan_sync(load_config(plain, environment={}), edited)
    assert (plan.changes, plan.refused, plan.parameters, plan.notes) == ((), (), (), ())


def test_a_kernel_whose_templates_hide_the_manifest_is_pushed_without_an_identity(
    plain: Path,
) -> None:
    kernel = workflow.render_kernel(load_config(plain, environment={}))
    hidden = replace(kernel, notebook=kernel.notebook.replace("BUNDLE = {", "BUNDLE = dict({", 1))
    assert hidden.as_pushed(OURS) is hidden
    assert hidden.as_pushed(OURS).manifest.push_id is None
