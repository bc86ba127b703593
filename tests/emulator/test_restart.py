"""The state outlives the emulator: stopped, killed in the middle of a run, and its folder."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_one_state_one_emulator(launch):
    first = launch()
    words = f"kernelkit emulator: --state {first.state} is in use by another emulator\n"
    assert refuse(first.state) == (10, words)
    assert first.call("GetAcceleratorQuotaStatistics").ok


def test_a_spoilt_state(launch):
    first = launch()
    first.run("my-kernel", "1")
    first.stop()
    (first.state / "alice" / "my-kernel" / "kernel.json").write_text("{}")
    code, words = refuse(first.state)
    assert code == 10
    assert "my-kernel cannot be read" in words
    assert "Traceback" not in words
