"""The command line: output, exit codes, and the files it leaves."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import kernelkit.emulator

ROOT = Path(__file__).resolve().parents[2]


def refuse(*arguments):
    """Run a command line that must fail: its exit code and message."""
    done = subprocess.run(
        [sys.executable, "-m", "kernelkit.emulator", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_address_is_announced(launch):
    emulator = launch("--user", "somebody")
    assert emulator.ready == {
        "endpoint": f"http://127.0.0.1:{emulator.port}",
        "port": emulator.port,
        "pid": emulator.process.pid,
        "user": "somebody",
        "isolation": emulator.ready["isolation"],
        "reason": emulator.ready["reason"],
    }
    assert bool(emulator.ready["reason"]) == (emulator.ready["isolation"] == "folders")
    assert emulator.endpoint in emulator.lines[0]
    assert emulator.lines[1] == f"export KERNELKIT_ENDPOINT={emulator.endpoint}\n"
    assert (
        f"KAGGLE_API_ENVIRONMENT=LOCALHOST http_proxy={emulator.endpoint} no_proxy= "
        in emulator.lines[2]
    )
    assert "KAGGLE_USERNAME=somebody KAGGLE_KEY=" in emulator.lines[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_emulator_cleans_up(launch, tmp_path, number):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(temporary)}
    emulator = launch(state=False, environment=environment)
    emulator.push("left-running", "import time; time.sleep(600)")
    assert len(list(temporary.iterdir())) == 1
    assert emulator.stop(number) == (0, "")
    assert list(temporary.iterdir()) == []
    assert not emulator.ready_file.exists()


@pytest.mark.parametrize("module", ["kernelkit", "kernelkit.emulator"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_every_signal_ends_both_commands(tmp_path, module, number):
    """Sent to the process alone, as `kill $!` does, which no terminal is involved in."""
    command = [sys.executable, "-m", module, *(["emulator"] if module == "kernelkit" else [])]
    process = subprocess.Popen(
        [*command, "--port", "0", "--isolation", "folders"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    endpoint = process.stdout.readline().split()[3]
    assert list(tmp_path.glob("local-kaggle-*"))
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), 5)


def test_nohup_keeps_it_alive(launch):
    emulator = launch("--isolation", "folders", prefix=("nohup",))
    emulator.process.send_signal(signal.SIGHUP)
    assert emulator.call("GetAcceleratorQuotaStatistics").ok
    code, message = emulator.stop()
    assert (code, message.replace("nohup: ignoring input\n", "")) == (0, "")


SLOW_START = """
import os, signal, sys, threading
from kernelkit.emulator import __main__ as command

def interrupted(*_):
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    threading.Event().wait(60)  # the signal ends this, or the test fails

command.{step} = interrupted
sys.exit(command.main(["--isolation", "folders"]))
"""


@pytest.mark.parametrize("step", ["_isolation", "_server"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_during_the_start_ends_it_at_once(tmp_path, step, name):
    done = subprocess.run(
        [sys.executable, "-c", SLOW_START.format(step=step), name],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (128 + signal.Signals[name], "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="tgkill is Linux's")
def test_a_signal_to_another_thread_stops_it_too(launch):
    """The system may deliver a signal to any thread, while the main thread sleeps."""
    emulator = launch()
    tasks = Path(f"/proc/{emulator.process.pid}/task").iterdir()
    server = max(int(task.name) for task in tasks)
    assert server != emulator.process.pid
    assert ctypes.CDLL(None).tgkill(emulator.process.pid, server, signal.SIGTERM) == 0
    _, stderr = emulator.process.communicate(timeout=30)
    assert (emulator.process.returncode, stderr) == (0, "")


def test_the_state_folder_is_readable(launch):
    emulator = launch()
    emulator.run("my-kernel", "print('hi'); open('out', 'w').write('x')", machineShape="")
    folder = emulator.state / emulator.account / "my-kernel" / "v1"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "executed.ipynb",
        "log.jsonl",
        "request.json",
        "source.ipynb",
        "status.json",
        "system.log",
        "version.json",
        "working",
    ]
    assert json.loads((folder / "source.ipynb").read_text())["nbformat"] == 4
    assert json.loads((folder / "request.json").read_text())["title"] == "my-kernel"
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], [o[:2] for o in status["outputs"]]) == ("COMPLETE", [["out", 1]])
    assert (folder / "working" / "out").read_text() == "x"


def test_a_used_port_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, message = refuse("--port", str(port), "--isolation", "folders")
    assert code == 10
    assert (
        message
        == f"kernelkit emulator: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--state", str(ROOT)], "is neither empty nor a state folder"),
        (["--port", "70000"], "70000 is not a port"),
        (["--port", "many"], "--port"),
        (["--mounts", "future"], "invalid choice"),
        (["--user", "../me"], "is not an account"),
        (["--time-limit", "0"], "more than 0 seconds"),
        (["--plugin", "nonsense"], "--plugin 'nonsense' is not MODULE:CLASS"),
        (["--plugin", "no.such:Plugin"], "--plugin no.such cannot be imported"),
        (["--plugin", "pathlib:Path"], "is not a subclass of kernelkit.emulator.plugin"),
        (["--fault", "lost-after"], "unrecognized arguments: --fault"),
    ],
)
def test_wrong_arguments_are_reported(arguments, message):
    code, stderr = refuse(*arguments)
    assert code == 2
    assert message in stderr


def test_it_listens_on_loopback_only(launch):
    emulator = launch()
    hexadecimal = f":{emulator.port:04X}"
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not tables[0].exists():
        pytest.skip("no /proc/net")
    listening = [
        line.split()[1]
        for table in tables
        if table.exists()
        for line in table.read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert [a for a in listening if a.endswith(hexadecimal)] == ["0100007F" + hexadecimal]


def test_control_addresses_need_a_plugin(launch):
    emulator = launch()
    for method, path in [("GET", "journal"), ("POST", "faults"), ("DELETE", "faults")]:
        answer = emulator.fetch(f"{emulator.endpoint}/emulator/{path}", method)
        message = f"unimplemented: {method} /emulator/{path}"
        assert (answer.status_code, answer.json()["message"]) == (501, message)


def test_verbose_logs_requests(launch):
    emulator = launch("--verbose")
    emulator.call("GetKernel")
    assert 'GetKernel HTTP/1.1" 404' in emulator.stop()[1]


def test_it_shares_no_code_with_the_client():
    """Shared code would hide a shared mistake: it imports nothing of kernelkit or kaggle."""
    program = (
        "import sys, kernelkit.emulator.__main__, kernelkit.emulator.session as s;"
        "print([m for m in sys.modules if m.split('.')[0] in ('kaggle', 'kagglesdk', 'kernelkit')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    package = Path(kernelkit.emulator.__file__).parent
    own = {f"kernelkit.emulator.{path.stem}" for path in package.glob("*.py")}
    own -= {"kernelkit.emulator.__init__"}
    assert set(eval(done.stdout)) == {"kernelkit", "kernelkit.emulator", *own}
