"""The state outlives the emulator: stopped, killed in the middle of a run, and its folder."""

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
    """Start an emulator on a state that it cannot have: its exit code and words."""
    done = subprocess.run(
        [sys.executable, "-m", "kernelkit.emulator", "--state", state, "--isolation", "folders"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_what_had_ended_is_there_again(launch):
    first = launch()
    text = first.notebook("print('one')\r\n", "open('a.txt', 'w').write('A' * 9)")
    first.run("my-kernel", text=text, competitionDataSources=["some-competition", "none-such"])
    first.push("my-kernel", "print('two'); 1 / 0")
    first.finish("my-kernel")
    first.run(
        "uses-output",
        "print(open('/kaggle/input/notebooks/alice/my-kernel/a.txt').read())"
        if first.facts["isolation"] == "namespace"
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
    entries = first.fetch(f"{first.endpoint}/emulator/journal").json()
    assert first.stop() == (0, "")

    second = launch(state=first.state)
    assert {m: second.ask(m, "my-kernel", **fields) for m, fields in asked.items()} == before
    assert [list(second.events("my-kernel", f"v{n}")) for n in (1, 2)] == logs
    assert second.fetch(second.outputs("my-kernel", versionLabel="v1")["a.txt"]).text == "A" * 9
    assert second.call("GetAcceleratorQuotaStatistics").json() == used
    journal = second.fetch(f"{second.endpoint}/emulator/journal").json()
    assert journal["requests"][: len(entries["requests"])] == entries["requests"]
    assert [r["n"] for r in journal["requests"]] == list(range(1, len(journal["requests"]) + 1))
    assert journal["effects"] == entries["effects"]

    pushed = second.push("my-kernel", "print('three')")
    assert (pushed["versionNumber"], pushed["kernelId"]) == (
        3,
        before["GetKernel"]["metadata"]["id"],
    )
    assert second.push("another-one", "1")["kernelId"] > pushed["kernelId"] + 1
    sessions = [
        json.loads(path.read_text())["session_id"]
        for path in second.state.glob("alice/*/v*/version.json")
    ]
    assert len(set(sessions)) == 5


def test_killed_in_the_middle_of_a_run(launch):
    first = launch()
    cell = (
        "import os, time; print(sorted(os.listdir('.')), flush=True)\n"
        "open('half', 'w').write('x'); time.sleep({})"
    )
    first.run("ended-before", "print('kept')")
    first.push("cut-short", cell.format(600))
    next(first.events("cut-short"))
    half = first.folder("cut-short") / "working" / "half"
    deadline = time.monotonic() + 30
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (first.folder("cut-short") / "source.ipynb").write_text(first.notebook(cell.format(0)))
    lost = first.folder("cut-short", 2)
    lost.mkdir()  # as a push that was being made: nobody was told of it
    (lost / "source.ipynb").write_text("{")
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()

    second = launch(state=first.state)
    status, log = second.finish("cut-short")
    assert status == {"status": "COMPLETE"}
    assert [entry["data"] for entry in log] == ["[]\n"]
    assert list(second.outputs("cut-short")) == ["half"]
    assert second.ask("GetKernelSessionStatus", "ended-before") == {"status": "COMPLETE"}
    assert [e["data"] for e in second.events("ended-before")] == ["kept\n"]
    assert second.push("cut-short", "1")["versionNumber"] == 2


def test_submissions_and_datasets_after_a_kill(launch, tmp_path):
    """An upload is struck, cut and resumed, a submission's answer lost: all of it counts once."""
    contest, about = "competitions.CompetitionApiService", {"competitionName": "some-competition"}
    (tmp_path / "solutions" / "some-competition").mkdir(parents=True)
    solution = tmp_path / "solutions" / "some-competition" / "solution.csv"
    solution.write_text("id,rle_mask,Usage\na,1 5,Public\n")
    knobs = ["--solutions", str(tmp_path / "solutions"), "--scoring-seconds", "0"]
    lies = ["server-error,call=Upload,code=503,account=alice", "lost-after,call=CreateSubmission"]
    first = launch(*knobs, *(word for lie in lies for word in ("--fault", lie)))
    data = b"id,rle_mask\na,1 5\n"
    size = {"contentLength": len(data)}

    def begun(service, method, **fields):
        answer = first.call(method, service, **size, **fields).json()
        return answer["createUrl"], answer["token"]

    def put(url, body=b"", place=""):
        return requests.put(url, body, headers={"Content-Range": place} if place else {}, timeout=9)

    url, token = begun(contest, "StartSubmissionUpload", fileName="s.csv", **about)
    assert put(url, data).status_code == 503
    assert "Range" not in put(url, place=f"bytes */{len(data)}").headers
    assert put(url, data[:4], f"bytes 0-3/{len(data)}").status_code == 503
    assert put(url, place=f"bytes */{len(data)}").headers["Range"] == "bytes=0-3"
    assert put(url, data[4:], f"bytes 4-{len(data) - 1}/{len(data)}").status_code == 200
    fields = {**about, "blobFileTokens": token}
    with pytest.raises(requests.ConnectionError):
        first.call("CreateSubmission", contest, **fields)
    # Every name that a dataset may have is none of a kernel's.
    url, token = begun("blobs.BlobApiService", "StartBlobUpload", type="DATASET", name="a.csv")
    assert put(url, data).status_code == 200
    named = {"ownerSlug": "alice", "slug": "kernel.json", "title": "kernel json"}
    made = first.call(
        "CreateDataset", "datasets.DatasetApiService", **named, files=[{"token": token}]
    )
    assert made.json()["status"] == "ok"
    (before,) = first.call("ListSubmissions", contest, **about).json()["submissions"]
    half, token = begun(contest, "StartSubmissionUpload", fileName="t.csv", **about)
    put(half, data[:4], f"bytes 0-3/{len(data)}")
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()

    second = launch(*knobs, state=first.state)
    (after,) = second.call("ListSubmissions", contest, **about).json()["submissions"]
    assert after == before | {"url": after["url"]}  # at another port
    assert (before["status"], before["publicScore"]) == ("COMPLETE", "1.00000")
    half = half.replace(first.endpoint, second.endpoint)
    assert put(half, data[4:], f"bytes 4-{len(data) - 1}/{len(data)}").status_code == 200
    again = second.call("CreateSubmission", contest, **about, blobFileTokens=token).json()
    assert again["ref"] == before["ref"] + 1
    journal = second.fetch(f"{second.endpoint}/emulator/journal").json()
    effects = [e["ref"] for e in journal["effects"] if e["effect"] == "submission"]
    assert effects == [before["ref"], again["ref"]]
    uploads = [r for r in journal["requests"] if r["method"] == "Upload"]
    assert {r["account"] for r in uploads} == {"alice"}
    assert [r["faults"] for r in uploads] == [["server-error"]] + [[]] * 7
    dropped = second.push("my-kernel", "1", datasetDataSources=["alice/kernel.json"])
    assert "invalidDatasetSources" not in dropped


def test_one_state_one_emulator(launch):
    first = launch()
    words = f"kernelkit emulator: --state {first.state} is in use by another emulator\n"
    assert refuse(first.state) == (10, words)
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
def test_a_spoilt_state(tmp_path, name, text):
    (tmp_path / "emulator.json").write_text("{}")
    record = tmp_path / name
    record.parent.mkdir(parents=True)
    record.write_text(text)
    code, words = refuse(tmp_path)
    assert code == 10
    assert f"{record.parent} cannot be read" in words
    assert "Traceback" not in words
