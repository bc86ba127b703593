"""Runs of notebooks: what they see, and how they end. These runs are never replayed."""

import hashlib
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.local_kaggle import TIMED_OUT

LINUX = sys.platform.startswith("linux")
ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "KAGGLE_USERNAME": "real-user",
    "KAGGLE_KEY": "real-key",
    "KAGGLE_API_TOKEN": "real-token",
    "AWS_SECRET_ACCESS_KEY": "real-secret",
    "KERNELKIT_ENDPOINT": "x",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
}

LOOK_AROUND = """
import importlib.util, json, os, pathlib, socket, subprocess, sys

def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return "done"

def reach(port):
    socket.create_connection(("127.0.0.1", port), 2).close()

def write(path):
    pathlib.Path(path).write_text("x")

def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*"))
"""


@pytest.fixture
def emulator(emulator):
    """The shared emulator with an account whose runs are real."""
    return emulator.as_account(f"live-{emulator.account}")


def require_namespaces(emulator):
    """Skip if this machine has no namespaces; fail if it has and the sandbox does not work."""
    if emulator.ready["isolation"] != "namespace":
        allowed = ["unshare", "-Urmpinf", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
        able = shutil.which("unshare") and not subprocess.run(allowed, check=False).returncode
        assert not able, "namespaces work here, but not the sandbox"
        pytest.skip("this machine has no namespaces")


def living(marker):
    """The processes with `marker` in their command line."""
    command = ["ps", "-A", "-ww", "-o", "args="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if marker in line]


def gone(marker, seconds=10):
    """Whether they all end within the time."""
    deadline = time.monotonic() + seconds
    while living(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not living(marker)


@pytest.fixture
def port():
    """A server on this machine that a notebook can try to reach."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_run_sees_kaggles_folders_and_environment(launch, tmp_path, port):
    """Folders, environment, network and write protection, in one run."""
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    (home / ".kaggle" / "kaggle.json").write_text("secret")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **SECRETS}
    emulator = launch(environment=environment)
    require_namespaces(emulator)
    had_kaggle = Path("/kaggle").exists()
    marker = ROOT / "written-by-a-run"
    seen = json.loads(
        emulator.run(
            "look-around",
            LOOK_AROUND,
            f"""
print(json.dumps({{
    "cwd": os.getcwd(), "uid": os.getuid(), "environment": dict(os.environ),
    "kaggle": sorted(os.listdir("/kaggle")), "input": tree("/kaggle/input"),
    "data": pathlib.Path("/kaggle/input/competitions/some-competition/data.txt").read_text(),
    "home": os.listdir({str(home)!r}) if os.path.exists({str(home)!r}) else [],
    "shm": os.listdir("/dev/shm"),
    "processes": max(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "importable": [n for n in ("kernelkit", "src_salt") if importlib.util.find_spec(n)],
    "network": attempt(reach, {port}),
    "write": {{p: attempt(write, p) for p in (
        "/kaggle/input/competitions/some-competition/data.txt",
        "/kaggle/input/competitions/some-competition/deep/new", "/kaggle/input/new",
        {str(marker)!r}, "/etc/new", "/proc/sys/vm/swappiness",
        "/kaggle/working/own", "/kaggle/temp/own", "/tmp/own", "/root/own", "/dev/shm/own")}},
    "remount": subprocess.run(["mount", "-o", "remount,bind,rw", "/kaggle/input"],
                              capture_output=True).returncode,
}}))""",
            competitionDataSources=["some-competition", "none-such"],
            datasetDataSources=["someone/some-dataset"],
        )
    )
    assert (seen["cwd"], seen["uid"]) == ("/kaggle/working", 0)
    assert seen["kaggle"] == ["input", "temp", "working"]
    assert [path for path in seen["input"] if path.endswith("data.txt")] == [
        "competitions/some-competition/data.txt",
        "datasets/someone/some-dataset/data.txt",
    ]
    assert (seen["data"], seen["home"], seen["shm"]) == ("rows", [], [])
    assert seen["processes"] < 100
    assert seen["importable"] == []
    assert seen["network"] == "Connection refused"
    own = ("/kaggle/working", "/kaggle/temp", "/tmp", "/root", "/dev/shm")
    for path, outcome in seen["write"].items():
        assert outcome == ("done" if path.startswith(own) else "Read-only file system"), path
    assert seen["remount"] != 0

    variables = seen["environment"]
    assert variables["HOME"] == "/root"
    assert variables["KAGGLE_KERNEL_RUN_TYPE"] == "Batch"
    assert (variables["OMP_NUM_THREADS"], variables["LC_ALL"]) == ("1", "C.UTF-8")
    assert "MKL_NUM_THREADS" not in variables
    assert variables["CUDA_VISIBLE_DEVICES"] == ""  # a CPU session has no GPU
    assert not {name for name in SECRETS if name not in ("OMP_NUM_THREADS", "LC_ALL")} & set(
        variables
    )
    assert not [value for value in variables.values() if value.startswith("real-")]
    assert not [name for name in variables if name.endswith("_DIR")]  # only in the fallback

    assert list(emulator.outputs("look-around")) == ["own"]
    assert Path("/kaggle").exists() == had_kaggle
    assert not marker.exists()
    assert not (emulator.folder("look-around") / "scratch").exists()
    executed = json.loads((emulator.folder("look-around") / "executed.ipynb").read_text())
    assert "Connection refused" in "".join(executed["cells"][1]["outputs"][0]["text"])


@pytest.mark.slow
def test_runs_with_internet_old_mounts_and_other_kernels(launch, port):
    emulator = launch("--mounts", "old")
    require_namespaces(emulator)
    emulator.run("the-writer", "open('made.txt', 'w').write('made')")
    seen = emulator.run(
        "the-reader",
        LOOK_AROUND,
        f"print(attempt(reach, {port}), tree('/kaggle/input'))\n"
        "print(attempt(write, '/kaggle/input/the-writer/x'))",
        enableInternet=True,
        competitionDataSources=["some-competition"],
        kernelDataSources=[f"{emulator.account}/the-writer"],
    )
    assert seen.startswith("done ['some-competition', ")
    assert "'the-writer/made.txt'" in seen
    assert seen.endswith("Read-only file system\n")


def test_a_failing_cell_ends_the_run(emulator):
    emulator.push(
        "it-fails",
        "open('before', 'w'); print('before')",
        "import sys; print('warned', file=sys.stderr)\nraise ValueError('broken ü')",
        "open('after', 'w'); print('after')",
    )
    status, log = emulator.finish("it-fails")
    assert status == {"status": "ERROR", "failureMessage": "ValueError: broken ü"}
    texts = {
        name: "".join(e["data"] for e in log if e["stream_name"] == name)
        for name in ("stdout", "stderr")
    }
    assert texts["stdout"] == "before\n"
    assert texts["stderr"].startswith("warned\npapermill.exceptions.PapermillExecutionError:")
    assert 'Exception encountered at "In [2]":' in texts["stderr"]
    assert "----> 2 raise ValueError('broken ü')" in texts["stderr"]
    assert "\x1b[" not in texts["stderr"]
    assert list(emulator.outputs("it-fails")) == ["before"]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ({"kernelspec": None}, "No kernel name found in notebook"),
        ({"kernelspec": {"name": "ir", "display_name": "R"}}, "No such kernel named ir"),
        ("not json", "NotJSONError"),
        ("{}", "Error"),
    ],
)
def test_a_notebook_that_papermill_rejects_fails(emulator, text, failure):
    source = text if isinstance(text, str) else emulator.notebook("print('ran')", **text)
    emulator.push("no-kernel", text=source)
    status, log = emulator.finish("no-kernel")
    assert status["status"] == "ERROR"
    assert failure in status["failureMessage"]
    assert "ran" not in [entry["data"].strip() for entry in log]


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        ("import sys; sys.exit(0)", {"status": "COMPLETE"}),
        ("import sys; sys.exit(3)", {"status": "ERROR", "failureMessage": "SystemExit: 3"}),
        (
            "import os; os._exit(0)",
            {"status": "ERROR", "failureMessage": "DeadKernelError: Kernel died"},
        ),
        (
            "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
            {
                "status": "ERROR",
                "failureMessage": "The session died; see system.log in the run's folder.",
            },
        ),
    ],
)
@pytest.mark.slow
def test_a_run_can_end_early(emulator, cell, status):
    emulator.push("early-end", cell, "print('went on')")
    seen, log = emulator.finish("early-end")
    assert seen == status
    assert "went on\n" not in [entry["data"] for entry in log]


@pytest.mark.slow
def test_a_long_log_and_a_large_file_are_complete(emulator):
    size = 30_000_000
    printed = emulator.run(
        "much-output",
        f"""
import hashlib, random, subprocess, sys
data = random.Random(1).randbytes({size}); open('big.bin', 'wb').write(data)
print(hashlib.sha256(data).hexdigest())
for i in range(3000): print('line', i, '盐')
_ = subprocess.run(['echo', 'from a child'])
print('x' * 200_000)""",
    )
    digest, *lines = printed.splitlines()
    assert [line for line in lines if line.startswith("line")] == [
        f"line {i} 盐" for i in range(3000)
    ]
    assert "from a child" in lines
    assert "x" * 200_000 in lines
    whole = emulator.fetch(emulator.outputs("much-output")["big.bin"]).content
    assert hashlib.sha256(whole).hexdigest() == digest
    log = (emulator.folder("much-output") / "log.jsonl").read_text().splitlines()
    assert sum(len(json.loads(line)["data"]) for line in log) == len(printed)


@pytest.mark.slow
def test_a_run_can_spawn_workers(emulator):
    printed = emulator.run(
        "the-workers",
        "%%writefile job.py\ndef square(x):\n    return x * x\n",
        "import job, multiprocessing\n"
        "with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "    print(pool.map(job.square, range(4)))",
    )
    assert "[0, 1, 4, 9]" in printed


@pytest.mark.slow
def test_exit_handlers_run(emulator):
    cell = "import atexit; atexit.register(lambda: open('at-exit', 'w').close())"
    emulator.run("exit-handler", cell)
    assert list(emulator.outputs("exit-handler")) == ["at-exit"]


STRAY = """
import os, subprocess, sys, time
wait = "import time; time.sleep(600)"
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + wait
daemon = "import os; os.fork() and os._exit(0); os.setsid(); " + wait
again = "import subprocess, sys\\nwhile True: subprocess.run([sys.executable, *sys.argv[1:]])"
for command in ([wait], [deaf], [daemon], [again, "-c", wait]):
    apart = command[0] == again
    command = [sys.executable, "-c", *command, {marker!r}]
    subprocess.Popen(command, start_new_session=apart)
command = [sys.executable, "-c", wait, {marker!r}]
subprocess.Popen(command, start_new_session=True, env={{}})
while subprocess.run(["pgrep", "-fc", {marker!r}], capture_output=True, text=True).stdout < "6":
    time.sleep(0.1)
open("saved", "w").write("so far")
if {died}:
    os._exit(0)
print("up")
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("isolation", "end"),
    [
        ("namespace", "died"),
        ("namespace", "SIGTERM"),
        ("folders", "SIGKILL"),
        ("folders", "timeout"),
        *(
            pytest.param(isolation, end, marks=pytest.mark.slow)
            for isolation, end in [
                ("namespace", "timeout"),
                ("namespace", "SIGKILL"),
                ("folders", "died"),
                ("folders", "SIGTERM"),
            ]
        ),
    ],
)
def test_nothing_outlives_a_run(launch, isolation, end):
    if isolation == "namespace" and not LINUX:
        pytest.skip("no namespaces here")
    marker = f"stray-{os.getpid()}-{isolation}-{end}"
    options = ["--time-limit", "2"] if end == "timeout" else []
    emulator = launch("--isolation", isolation, *options)
    emulator.push("the-stray", STRAY.format(marker=marker, died=end == "died"))
    if end == "died":  # a kernel that ends normally stops its children; this one cannot
        assert emulator.finish("the-stray")[0]["status"] == "ERROR"
        assert gone(marker)
        return
    events = emulator.events("the-stray")
    assert next(events)["data"] == "up\n"
    assert living(marker)
    if end == "timeout":
        assert list(events) == []
        status = emulator.ask("GetKernelSessionStatus", "the-stray")
        assert status == TIMED_OUT
        assert list(emulator.outputs("the-stray")) == ["saved"]
        assert gone(marker)
        return
    events.close()
    code, _ = emulator.stop(signal.Signals[end])
    assert code == (0 if end == "SIGTERM" else -signal.SIGKILL)
    assert gone(marker)
    assert gone(str(emulator.state))
    if end == "SIGTERM":
        record = json.loads((emulator.folder("the-stray") / "status.json").read_text())
        assert record["status"] == "CANCEL_ACKNOWLEDGED"


def test_runs_without_namespaces_use_folders(launch):
    emulator = launch("--isolation", "folders", environment={**os.environ, **SECRETS})
    assert emulator.ready["isolation"] == "folders"
    assert "folders" in emulator.lines[0]
    seen = json.loads(
        emulator.run(
            "in-folders",
            LOOK_AROUND,
            """
names = ("KAGGLE_INPUT_DIR", "KAGGLE_WORKING_DIR", "KAGGLE_TEMP_DIR", "HOME", "TMPDIR")
folders = {name: os.environ[name] for name in names}
write(folders["KAGGLE_TEMP_DIR"] + "/own"); write("result")
source = pathlib.Path(folders["KAGGLE_INPUT_DIR"], "competitions", "some-competition", "data.txt")
seen = {"cwd": os.getcwd(), "data": source.read_text(), "environment": dict(os.environ)}
print(json.dumps(seen | folders))
""",
            competitionDataSources=["some-competition"],
        )
    )
    folder = str(emulator.folder("in-folders"))
    assert seen["data"] == "rows"
    assert seen["cwd"] == seen["KAGGLE_WORKING_DIR"] == f"{folder}/working"
    assert all(seen[name].startswith(folder) for name in ("HOME", "TMPDIR", "KAGGLE_TEMP_DIR"))
    assert not [value for value in seen["environment"].values() if value.startswith("real-")]
    assert list(emulator.outputs("in-folders")) == ["result"]
    assert "No namespace" in (emulator.folder("in-folders") / "system.log").read_text()
    assert "No namespace" not in json.dumps(list(emulator.events("in-folders")))


@pytest.mark.slow
@pytest.mark.skipif(not LINUX or not shutil.which("unshare"), reason="needs unshare")
def test_missing_namespaces_are_noticed(launch):
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    wrapped = ("unshare", "-Ur", "sh", "-c", forbid, "sh")
    if subprocess.run([*wrapped, "true"], capture_output=True).returncode:
        pytest.skip("cannot forbid namespaces here")
    emulator = launch(prefix=wrapped)
    assert emulator.ready["isolation"] == "folders"
    assert emulator.run("still-runs", "print(1)") == "1\n"
    assert "No namespace on this machine (" in emulator.stop()[1]


AS_NOBODY = """
# $1: the interpreter's folder, which may be in /root; $2: an empty folder that keeps it meanwhile
mount --bind "$1" "$2"
case "$1" in /root/*)
    mount -t tmpfs -o mode=755 tmpfs /root; mkdir -p "$1"; mount --bind "$2" "$1";;
esac
shift 2
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --inh-caps=-all "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="becomes another user, so needs root")
def test_an_ordinary_user_gets_a_namespace_too(launch, tmp_path):
    for name in ("home", "base", "emulator0"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents[:3]):  # one more when tests run in parallel
        if folder.name != "tmp":
            folder.chmod(0o755)
    base = str(Path(sys.base_prefix).resolve())
    prefix = ("unshare", "-m", "sh", "-ec", AS_NOBODY, "sh", base, str(tmp_path / "base"))
    trial = [*prefix, sys.executable, "-c", "import kernelkit.emulator"]
    if subprocess.run(trial, cwd=ROOT, capture_output=True).returncode:
        pytest.skip("nobody cannot read the checkout, or there is no setpriv")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    emulator = launch("--isolation", "namespace", prefix=prefix, environment=environment)
    printed = emulator.run(
        "as-nobody",
        LOOK_AROUND,
        "write('own')\n"
        "print(os.getuid(), attempt(write, '/kaggle/input/x'), os.stat('own').st_uid)",
    )
    assert printed == "0 Read-only file system 0\n"
    assert (emulator.folder("as-nobody") / "working" / "own").stat().st_uid == 65534
