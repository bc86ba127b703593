"""The state folder survives the emulator: stopped, or killed in the middle of a run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]


def refuse(state):
    """Start an emulator with a state folder that it must refuse: its exit code and message."""
    done = subprocess.run(
        [sys.executable, "-m", "kernelkit.emulator", "--state", state, "--isolation", "folders"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.slow
def test_ended_runs_are_there_after_a_restart(launch, replay_options):
    first = launch(*replay_options)
    text = first.notebook("print('one')\r\n", "open('a.txt', 'w').write('A' * 9)")
    first.run("my-kernel", text=text, competitionDataSources=["some-competition", "none-such"])
    first.push("my-kernel", "print('two'); 1 / 0")
    first.finish("my-kernel")
    first.run(
        "uses-output",
        "print(open('/kaggle/input/notebooks/alice/my-kernel/a.txt').read())"
        if first.ready["isolation"] == "namespace"
        else "print('A' * 9)",
        kernelDataSources=["alice/my-kernel"],
    )
    asked = {
        "GetKernel": {},
        "GetKernelSessionStatus": {},
        "ListKernelFiles": {"versionLabel": "v1"},
    }
    before = {m: first.ask(m, "my-kernel", **fields) for m, fields in asked.items()}
    logs = [list(first.events("my-kernel", f"v{n}")) for n in (1, 2)]
    used = first.call("GetAcceleratorQuotaStatistics").json()
    entries = {kind: first.journal(kind) for kind in ("requests", "effects")}
    assert first.stop() == (0, "")

    second = launch(*replay_options, state=first.state)
    assert {m: second.ask(m, "my-kernel", **fields) for m, fields in asked.items()} == before
    assert [list(second.events("my-kernel", f"v{n}")) for n in (1, 2)] == logs
    assert second.fetch(second.outputs("my-kernel", versionLabel="v1")["a.txt"]).text == "A" * 9
    assert second.call("GetAcceleratorQuotaStatistics").json() == used
    requests_, effects = second.journal("requests"), second.journal("effects")
    assert requests_[: len(entries["requests"])] == entries["requests"]
    assert [r["n"] for r in requests_] == list(range(1, len(requests_) + 1))
    assert effects == entries["effects"]

    pushed = second.push("my-kernel", "print(1)")
    assert (pushed["versionNumber"], pushed["kernelId"]) == (
        3,
        before["GetKernel"]["metadata"]["id"],
    )
    assert second.push("another-one", "print(1)")["kernelId"] > pushed["kernelId"] + 1
    sessions = [
        json.loads(path.read_text())["session_id"]
        for path in second.state.glob("alice/*/v*/version.json")
    ]
    assert len(set(sessions)) == 5


def test_an_interrupted_run_starts_again(launch, replay_options):
    first = launch(*replay_options)
    cell = (
        "import os, time; print(sorted(os.listdir('.')), flush=True)\n"
        "open('half', 'w').write('x'); time.sleep({})"
    )
    first.run("ended-before", "print(1)")
    first.push("cut-short", cell.format(600))
    next(first.events("cut-short"))
    half = first.folder("cut-short") / "working" / "half"
    deadline = time.monotonic() + 30
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (first.folder("cut-short") / "source.ipynb").write_text(first.notebook(cell.format(0)))
    lost = first.folder("cut-short", 2)
    lost.mkdir()  # like a push that was not finished: no client knows of it
    (lost / "source.ipynb").write_text("{")
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()

    second = launch(*replay_options, state=first.state)
    status, log = second.finish("cut-short")
    assert status == {"status": "COMPLETE"}
    assert [entry["data"] for entry in log] == ["[]\n"]
    assert list(second.outputs("cut-short")) == ["half"]
    assert second.ask("GetKernelSessionStatus", "ended-before") == {"status": "COMPLETE"}
    assert [e["data"] for e in second.events("ended-before")] == ["1\n"]
    assert second.push("cut-short", "print(1)")["versionNumber"] == 2


def test_submissions_and_datasets_survive_a_kill(launch, replay_options, tmp_path):
    """An upload fails, is cut and resumed; a response is lost: each submission counts once."""
    competitions, about = (
        "competitions.CompetitionApiService",
        {"competitionName": "some-competition"},
    )
    (tmp_path / "solutions" / "some-competition").mkdir(parents=True)
    solution = tmp_path / "solutions" / "some-competition" / "solution.csv"
    solution.write_text("id,rle_mask,Usage\na,1 5,Public\n")
    settings = [
        *replay_options,
        "--solutions",
        str(tmp_path / "solutions"),
        "--scoring-seconds",
        "0",
    ]
    faults = ["server-error,call=Upload,code=503,account=alice", "lost-after,call=CreateSubmission"]
    first = launch(*settings, *(word for fault in faults for word in ("--fault", fault)))
    data = b"id,rle_mask\na,1 5\n"
    size = {"contentLength": len(data)}

    def begun(service, method, **fields):
        answer = first.call(method, service, **size, **fields).json()
        return answer["createUrl"], answer["token"]

    def put(url, body=b"", place=""):
        return requests.put(url, body, headers={"Content-Range": place} if place else {}, timeout=9)

    url, token = begun(competitions, "StartSubmissionUpload", fileName="s.csv", **about)
    assert put(url, data).status_code == 503
    assert "Range" not in put(url, place=f"bytes */{len(data)}").headers
    assert put(url, data[:4], f"bytes 0-3/{len(data)}").status_code == 503
    assert put(url, place=f"bytes */{len(data)}").headers["Range"] == "bytes=0-3"
    assert put(url, data[4:], f"bytes 4-{len(data) - 1}/{len(data)}").status_code == 200
    fields = {**about, "blobFileTokens": token}
    with pytest.raises(requests.ConnectionError):
        first.call("CreateSubmission", competitions, **fields)
    # Every slug of a dataset is different from the files of a kernel.
    url, token = begun("blobs.BlobApiService", "StartBlobUpload", type="DATASET", name="a.csv")
    assert put(url, data).status_code == 200
    named = {"ownerSlug": "alice", "slug": "kernel.json", "title": "kernel json"}
    made = first.call(
        "CreateDataset", "datasets.DatasetApiService", **named, files=[{"token": token}]
    )
    assert made.json()["status"] == "ok"
    (before,) = first.call("ListSubmissions", competitions, **about).json()["submissions"]
    half, token = begun(competitions, "StartSubmissionUpload", fileName="t.csv", **about)
    put(half, data[:4], f"bytes 0-3/{len(data)}")
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()

    second = launch(*settings, state=first.state)
    (after,) = second.call("ListSubmissions", competitions, **about).json()["submissions"]
    assert after == before | {"url": after["url"]}  # at another port
    assert (before["status"], before["publicScore"]) == ("COMPLETE", "1.00000")
    half = half.replace(first.endpoint, second.endpoint)
    assert put(half, data[4:], f"bytes 4-{len(data) - 1}/{len(data)}").status_code == 200
    again = second.call("CreateSubmission", competitions, **about, blobFileTokens=token).json()
    assert again["ref"] == before["ref"] + 1
    effects = [e["ref"] for e in second.journal("effects") if e["effect"] == "submission"]
    assert effects == [before["ref"], again["ref"]]
    uploads = [r for r in second.journal() if r["method"] == "Upload"]
    assert [r["faults"] for r in uploads] == [["server-error"]] + [[]] * 7
    assert {r["account"] for r in uploads} == {second.account}
    dropped = second.push("my-kernel", "print(1)", datasetDataSources=["alice/kernel.json"])
    assert "invalidDatasetSources" not in dropped


def test_a_state_folder_is_used_by_one_emulator(launch):
    first = launch()
    message = f"kernelkit emulator: --state {first.state} is in use by another emulator\n"
    assert refuse(first.state) == (10, message)
    assert first.call("GetAcceleratorQuotaStatistics").ok


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alice/my-kernel/kernel.json", "{}"),
        ("_submissions/500000001/submission.json", "[]"),
        ("_uploads/a0/upload.json", "{"),
        ("_datasets/alice/my-points/dataset.json", "{}"),
    ],
)
def test_a_damaged_state_is_reported(tmp_path, name, text):
    (tmp_path / "emulator.json").write_text("{}")
    record = tmp_path / name
    record.parent.mkdir(parents=True)
    record.write_text(text)
    code, message = refuse(tmp_path)
    assert code == 10
    assert f"{record.parent} cannot be read" in message
    assert "Traceback" not in message
