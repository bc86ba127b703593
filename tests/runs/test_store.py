"""The run folders are the store: several processes write to it, and damage is reported."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelkit import console
from kernelkit.cli import app
from kernelkit.errors import ConfigError, LocalError
from kernelkit.notebook.manifest import Manifest
from kernelkit.runs import history, store
from kernelkit.runs.manifest import RunEnd, RunRecord, SubmissionRecord
from kernelkit.runs.store import RunName, parse_name

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
DIGEST = "d" * 64


def push(version: int = 1, **more: Any) -> RunRecord:
    address = {"owner": "ann", "slug": "some-kernel", "version": version, "url": "u"}
    record = {**address, "digest": DIGEST, "endpoint": "http://127.0.0.1:1", "pushed": "2026"}
    return RunRecord.model_validate({**record, **more})


def bundle(**more: Any) -> Manifest:
    files = [{"path": "pkg/a.py", "sha256": "1", "size": 1}]
    commit = {"commit": "abcdef0123456789", "dirty": True}
    document = {
        **{"slug": "some-kernel", "digest": DIGEST, "parameters": {"epochs": 2}, "files": files},
        **{"provenance": commit, "outputs": ["out.txt"], "kernel": {"title": "Some"}, **more},
    }
    return Manifest.model_validate(document)


def complete(root: Path, version: int = 1, **more: Any) -> store.RunFolder:
    """A run on disk after its pull."""
    record = store.record_push(root, push(version, **more), bundle())
    events = [
        {"event": "epoch", "experiment": "one", "epoch": epoch, "epochs": 3, "val_iou": value}
        for epoch, value in enumerate((0.25, 0.75, float("nan")), 1)
    ]
    lines = [{"stream_name": "stdout", "time": 1, "data": json.dumps(e) + "\n"} for e in events]
    (record.path / "some-kernel.log").write_text(json.dumps(lines))
    manifest = {
        **{"digest": DIGEST, "status": "complete", "seconds": 90.5, "versions": {"torch": "2.10"}},
        **{"hardware": {"gpus": ["Tesla T4"]}, "parameters": {"epochs": 2}},
        "outputs": [{"path": "out.txt", "size": 3, "sha256": "0" * 64}],
    }
    (record.path / "run-manifest.json").write_text(json.dumps(manifest))
    store.record_end(record, RunEnd(state="complete", verified=True))
    return record


def submission(version: int = 1, ref: int = 7, **more: Any) -> SubmissionRecord:
    document = {
        **{"slug": "some-kernel", "version": version, "ref": ref, "competition": "salt"},
        **{"endpoint": "http://127.0.0.1:1", "sha256": "5", "submitted": "2026", **more},
    }
    return SubmissionRecord.model_validate(document)


def test_a_row_shows_the_result_of_a_run(tmp_path: Path) -> None:
    complete(tmp_path, profile="smoke")
    store.record_submission(tmp_path, submission(status="pending"))
    store.record_submission(
        tmp_path, submission(status="complete", public_score="0.7", private_score="0.8")
    )
    store.record_submission(tmp_path, submission(version=2, ref=8))
    store.record_submission(tmp_path, submission(ref=9, endpoint="another", public_score="1"))
    (row,) = history.rows(tmp_path)
    assert row.model_dump(mode="json") == {
        **{"run": "ann/some-kernel", "version": 1, "digest": DIGEST[:12], "commit": "abcdef012+"},
        **{
            "profile": "smoke",
            "pushed": "2026",
            "state": "complete",
            "state_word": "complete",
            "failure": None,
        },
        "verified": True,
        "metric": {
            **{"name": "val_iou", "value": 0.75, "goal": "maximize", "experiment": "one"},
            **{"epoch": 2, "numbers": {}},
        },
        **{"submission": "complete", "public_score": "0.7", "private_score": "0.8"},
        **{"gpu_seconds": 90.5, "campaign": None, "next": None},
    }


def test_the_newest_push_is_the_last_row(tmp_path: Path) -> None:
    for version, when in ((1, "2026-03"), (2, "2026-01"), (3, "2026-02")):
        store.record_push(tmp_path, push(version, pushed=when), bundle())
    assert [row.version for row in history.rows(tmp_path)] == [2, 3, 1]


def test_a_manifest_with_another_digest_is_ignored(tmp_path: Path) -> None:
    record = complete(tmp_path)
    path = record.path / "run-manifest.json"
    path.write_text(path.read_text().replace(DIGEST, "e" * 64))
    (row,) = history.rows(tmp_path)
    assert (row.metric, row.gpu_seconds) == (None, None)


def test_two_runs_are_compared(tmp_path: Path) -> None:
    a, b = complete(tmp_path), complete(tmp_path, 2, digest="e" * 64)
    files = [{"path": "pkg/a.py", "sha256": "2"}, {"path": "pkg/b.py", "sha256": "1"}]
    other = bundle(files=files, parameters={"epochs": 3, "new": None}, kernel={"title": "Other"})
    (b.path / "bundle.json").write_text(json.dumps(other.document))
    found = history.diff(a, b).model_dump(mode="json")
    assert (found["before"], found["after"]) == ("ann/some-kernel/v1", "ann/some-kernel/v2")
    assert found["parameters"] == {"epochs": [2, 3]}
    assert found["kernel"] == {"title": ["Some", "Other"]}
    assert found["code"] == {"added": ["pkg/b.py"], "removed": [], "changed": ["pkg/a.py"]}
    assert not found["same"]
    assert found["results"]["gpu_seconds"] == [90.5, None]
    assert history.diff(a, a).same
    assert not any(
        getattr(history.diff(a, a), name) for name in ("parameters", "kernel", "results")
    )


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("push.json", None, history.HALF_WRITTEN),
        ("push.json", b'{"owner": "ann"', history.HALF_WRITTEN),
        ("push.json", b"[]", history.HALF_WRITTEN),
        ("push.json", b"\xff", history.HALF_WRITTEN),
        ("push.json", json.dumps(push(2).document).encode(), history.HALF_WRITTEN),
        (
            "push.json",
            json.dumps({**push().document, "version": True}).encode(),
            history.HALF_WRITTEN,
        ),
        ("run.json", b'{"state": "comp', history.DAMAGED),
        ("run.json", b"{}", history.DAMAGED),
        ("run.json", None, history.NOT_PULLED),
        ("bundle.json", b'{"slug', "complete"),
    ],
)
def test_an_incomplete_folder_is_recognized(
    tmp_path: Path, name: str, content: bytes | None, state: str
) -> None:
    record = complete(tmp_path)
    path = record.path / name
    path.unlink() if content is None else path.write_bytes(content)
    (record.path / "run.json.0123abcd.partial").write_text('{"state": "complete"}')
    (row,) = history.rows(tmp_path)
    assert row.state == state
    assert (row.next is None) == (content is None and name == "run.json")
    assert record.is_complete() == (name != "run.json")
    if state == history.HALF_WRITTEN:
        assert list(store.folders(tmp_path)) == []
        with pytest.raises(LocalError, match=r"half-written|push\.json"):
            store.find(tmp_path, "some-kernel")
    else:
        assert store.find(tmp_path, "some-kernel").path == record.path


def test_an_older_run_is_not_mistaken_for_an_incomplete_one(tmp_path: Path) -> None:
    complete(tmp_path)
    (tmp_path / "some-kernel" / "v2").mkdir()
    with pytest.raises(LocalError, match="v2 is half-written") as caught:
        store.find(tmp_path, "some-kernel")
    assert "move the folder away" in caught.value.next_step
    assert store.find(tmp_path, "some-kernel", 1).version == 1
    with pytest.raises(ConfigError, match=r"only v1"):
        store.find(tmp_path, "some-kernel", 3)


def test_recording_a_run_again_keeps_its_folder(tmp_path: Path) -> None:
    record = store.record_push(tmp_path, push(profile="smoke"), bundle())
    (record.path / "out.txt.partial").write_text("partial content")
    store.record_push(tmp_path, push(outcome="adopted"), bundle())
    assert (record.path / "out.txt.partial").exists()
    assert record.read().profile == "smoke"
    store.record_end(record, RunEnd(state="complete"))
    before = (record.path / "push.json").read_bytes()
    store.record_push(tmp_path, push(outcome="adopted"), bundle())
    assert (record.path / "push.json").read_bytes() == before
    # A new local Kaggle at the same address counts from 1 again, so this is another run.
    store.record_push(tmp_path, push(outcome="pushed"), bundle())
    assert not record.is_complete()
    assert (record.path.with_name("v1.1") / "run.json").exists()


def _write_much(root: Path, who: int, at_once: Any) -> None:
    at_once.wait()
    for turn in range(12):
        version, owner = turn % 3 + 1, f"ann{who % 2}"
        address = push(version, owner=owner, turn=turn)
        with store.push_lock(root, "some-kernel", lambda _: None):
            record = store.record_push(root, address, bundle(who=who))
        store.record_submission(root, submission(version, ref=who, turn=turn))
        if turn % 4 == 3:
            with contextlib.suppress(LocalError):  # another run may have replaced it
                store.record_end(record, RunEnd(state="complete", run=address.address))


def test_many_processes_can_record_runs_at_once(tmp_path: Path) -> None:
    """Each folder is complete at every moment, and none is lost; at most it is moved."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    at_once = context.Barrier(5)
    writers = [context.Process(target=_write_much, args=(tmp_path, n, at_once)) for n in range(4)]
    for writer in writers:
        writer.start()
    at_once.wait()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        for row in history.rows(tmp_path):
            assert row.state in ("complete", history.NOT_PULLED), row
            seen += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert seen
    folders = list((tmp_path / "some-kernel").glob("v*"))
    assert {path.name for path in folders} >= {"v1", "v2", "v3"}
    for folder in folders:
        assert json.loads((folder / "push.json").read_bytes())["slug"] == "some-kernel"
        assert json.loads((folder / "bundle.json").read_bytes())["slug"] == "some-kernel"
        if (folder / "run.json").exists():
            ended = json.loads((folder / "run.json").read_bytes())["run"]
            assert ended["owner"] == json.loads((folder / "push.json").read_bytes())["owner"]
    assert any((folder / "run.json").exists() for folder in folders)
    assert len(store.submissions(tmp_path)) == 12
    assert not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob(".probe*"))


def test_a_process_killed_while_writing_leaves_an_incomplete_folder(tmp_path: Path) -> None:
    record = complete(tmp_path)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        real = os.fsync

        def last_moment(number: int) -> None:
            real(number)
            os.write(go, b"!")
            os.kill(os.getpid(), 9)

        os.fsync = last_moment
        store.record_end(store.record_push(tmp_path, push(2), bundle()), RunEnd(state="x"))
        os._exit(1)
    os.read(ready, 1)
    assert os.waitpid(child, 0)[1] == 9
    os.close(ready)
    os.close(go)
    states = {row.version: row.state for row in history.rows(tmp_path)}
    assert states == {1: "complete"}
    again = store.record_push(tmp_path, push(2), bundle())
    assert again.problem() == ""
    assert {path.name for path in (tmp_path / "some-kernel").iterdir()} == {"v1", "v2"}
    assert record.is_complete()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    *("owner", "slug", "version", "digest", "endpoint", "pushed", "profile", "state", "verified"),
    *("verdict", "provenance", "files", "parameters", "kernel", "outputs", "seconds", "hardware"),
    *("versions", "failure", "public_score", "status", "ref", "competition", "submitted", "error"),
)
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)
DOCUMENTS = (
    "push.json",
    "bundle.json",
    "run.json",
    "run-manifest.json",
    "../submissions/v1-7.json",
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
@pytest.mark.slow
def test_any_folder_can_be_listed(
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`runs`, `runs show` and `runs diff` describe any folder, or report what is wrong with it."""
    root = tmp_path_factory.mktemp("odd", numbered=True)
    sound, record = complete(root, 2), complete(root)
    store.record_submission(root, submission(status="complete", public_score="1"))
    for name in DOCUMENTS:
        path = record.path / name
        change = data.draw(st.none() | CHANGES | st.binary(max_size=20) | VALUES, label=name)
        if isinstance(change, bytes):
            path.write_bytes(path.read_bytes()[: len(change)] + change)
        elif isinstance(change, Mapping):
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        elif change is not None:
            path.write_text(json.dumps(change))
    log = data.draw(st.none() | st.text(max_size=40) | VALUES.map(json.dumps))
    if log is not None:
        text = log.encode("utf-8", "surrogatepass")
        (record.path / "some-kernel.log").write_bytes(text)
    console.runs(history.rows(root))
    json.dumps([row.model_dump(mode="json") for row in history.rows(root)])
    console.run(history.show(record))
    console.difference(history.diff(sound, record))
    json.dumps([history.show(record).document, history.diff(record, sound).model_dump(mode="json")])
    capsys.readouterr()


@pytest.mark.parametrize("name", [*DOCUMENTS, "some-kernel.log"])
def test_a_deeply_nested_document_counts_as_damaged(tmp_path: Path, name: str) -> None:
    record = complete(tmp_path)
    (record.path / ".." / "submissions").mkdir(exist_ok=True)
    (record.path / name).write_text("[" * 100_000)
    assert len(history.rows(tmp_path)) == 1
    history.show(record)


def test_the_runs_commands_print_and_exit_as_documented(
    cli: Cli, make_project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project({})

    def call(*arguments: str) -> str:
        app([*arguments, "--project", str(project)], standalone_mode=False)
        return capsys.readouterr().out

    assert "nothing was pushed" in call("runs")
    complete(project / "runs")
    complete(project / "runs", 2, digest="e" * 64)
    assert "best: val_iou 0.7500" in call("runs", "show", "some-kernel/v1")
    assert json.loads(call("runs", "diff", "v1", "--json"))["same"] is False
    shown = json.loads(call("runs", "show", "v1", "--json"))
    assert shown["outputs"] == [{"path": "out.txt", "size": 3, "sha256": "0" * 64}]
    with pytest.raises(ConfigError, match="has no run") as error:
        call("runs", "show", "v9")
    assert error.value.next_step == "List the runs: `kernelkit runs`."
    (project / "runs" / "some-kernel" / "v3").mkdir()
    reported = call("runs")
    lines = reported.splitlines()[1:4]
    assert [re.findall(r"\bv\d\b", line)[0] for line in lines] == ["v1", "v2", "v3"]
    assert "v3 is half-written" in reported
    cli("runs", "show", cwd=project, expect=10)
    assert json.loads(call("runs", "--json", "show", "v1"))["version"] == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("v3", RunName(None, None, 3)),
        ("3", RunName(None, None, 3)),
        ("some-kernel", RunName(None, "some-kernel", None)),
        ("some-kernel/v3", RunName(None, "some-kernel", 3)),
        ("Ann/Some-Kernel", RunName("Ann", "some-kernel", None)),
        ("ann/some-kernel/v12", RunName("ann", "some-kernel", 12)),
    ],
)
def test_every_form_of_a_run_name_is_accepted(text: str, name: RunName) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize(
    "text", ["", "/", "a/b/c", "../x", "a b", "a//v1", "runs/some-kernel/v1/x"]
)
def test_an_unknown_run_name_is_reported(text: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a run"):
        parse_name(text)
