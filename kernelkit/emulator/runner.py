"""Runs pushed versions: one child process each, watched by a thread of its own.

A run sees Kaggle's folders and environment, and nothing of the caller: see `sandbox`. Without
namespaces, runs get `folders` instead: the same folders under other names, which the notebook
reads from KAGGLE_INPUT_DIR, KAGGLE_WORKING_DIR and KAGGLE_TEMP_DIR. Then the inputs are links that
a run could write through, and the network stays open.

However a run ends, nothing that it has started outlives it. A run that reaches its time limit ends
as on Kaggle: cancelled, with a message that says why, and with what it has saved.

A run that asks for a GPU gets the GPU of this machine, or none if there is none; the notebook has
to notice. A run that does not ask for one sees none, as on Kaggle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from kernelkit.emulator import sandbox
from kernelkit.emulator.environment import create_environment
from kernelkit.emulator.limits import AccountLimits, Machine
from kernelkit.emulator.session import SessionOrder, kill_run_of
from kernelkit.emulator.state import EmulatedKaggle, KernelVersion, StoredFile, WorkerStatus

Isolation = Literal["namespace", "folders"]

QUEUE_POLL = 0.2
"""Seconds until a run that waits for a machine notices that it was cancelled."""
STOPPING = 10.0
"""Seconds to wait for killed runs; killing takes milliseconds."""

_PASSED_NAMES = {"LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH"}
_PASSED_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_", "VECLIB_")
_PASSED_GPU = ("CUDA_", "CUBLAS_", "NVIDIA_")
"""The variables that a run inherits: language, GPU, and numbers of threads, because another number
changes the last bits of results. Credentials and PYTHONPATH do not pass."""

_PASSED_NET = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST", "PIP_CERT"),
    *("PIP_CONSTRAINT", "PIP_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""How this machine reaches package indexes; only for a run with internet, and without credentials:
an address with a user name does not pass."""

_OPENMP = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait sleep, where OpenMP would let them spin. On a machine that does other work too,
a training step is then several times faster (two runs at once on two cores: 130 ms an image instead
of 640) with the same bits. The caller's own setting takes precedence."""

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ScratchFolders:
    """Folders that live as long as the run."""

    folder: Path

    @property
    def root(self) -> Path:
        """The mount point of the sandbox's root."""
        return self.folder / "root"

    @property
    def temp(self) -> Path:
        """/kaggle/temp."""
        return self.folder / "temp"

    @property
    def tmp(self) -> Path:
        """/tmp."""
        return self.folder / "tmp"

    @property
    def home(self) -> Path:
        """HOME."""
        return self.folder / "home"

    @property
    def environment(self) -> Path:
        """The run's own Python environment."""
        return self.folder / "environment"

    @property
    def inputs(self) -> Path:
        """Links to the declared inputs; only used without a namespace."""
        return self.folder / "input"

    def make(self) -> None:
        """Create them all, empty."""
        folders = (self.root, self.temp, self.tmp, self.home, self.environment, self.inputs)
        for folder in folders:
            folder.mkdir(parents=True)

    def layout(
        self, inputs: dict[str, Path], working: Path, internet: bool
    ) -> sandbox.SandboxLayout:
        """The sandbox made of these folders."""
        keep = sandbox.interpreter_folders()
        return sandbox.SandboxLayout(
            root=self.root,
            inputs=inputs,
            working=working,
            temp=self.temp,
            tmp=self.tmp,
            home=self.home,
            environment=self.environment,
            hide=tuple(sandbox.folders_to_hide(Path.home(), sys.path, keep)),
            keep=tuple(keep),
            internet=internet,
        )


@dataclass(frozen=True)
class ForcedEnd:
    """How a run ends if its notebook does not decide that."""

    status: WorkerStatus
    failure: str = ""
    keeps_outputs: bool = True


CANCELLED = ForcedEnd(WorkerStatus.CANCEL_ACKNOWLEDGED)
TIMED_OUT = ForcedEnd(
    WorkerStatus.CANCEL_ACKNOWLEDGED,
    "Your notebook was stopped because it exceeded the max allowed execution duration.",
)
"""Kaggle's state and words [A]: only the message distinguishes it from a user's cancellation."""


class EmulatedSession:
    """One run of a version, from its start to its end."""

    def __init__(self, version: KernelVersion, isolation: Isolation, limit: float) -> None:
        """`limit`: seconds of this machine after which the run is ended at the latest."""
        self.version = version
        self.isolation: Isolation = isolation
        self._limit = limit
        self._scratch = ScratchFolders(version.folder / "scratch")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: ForcedEnd | None = None
        self._forced_end: ForcedEnd | None = None
        self._stopping = threading.Event()

    def execute(self, kaggle: EmulatedKaggle, endpoint: str) -> None:
        """Run the notebook to its end, however it ends. Body of a thread."""
        end = ForcedEnd(WorkerStatus.ERROR, "The session could not be started")
        try:
            if not self.is_killed:  # in the queue
                self.run_notebook(kaggle, endpoint)
            died = "The session died; see system.log in the run's folder."
            end = self._forced_end or self._end or ForcedEnd(WorkerStatus.ERROR, died)
        finally:
            outputs = list_outputs(self.version.working) if end.keeps_outputs else ()
            kaggle.finish(self.version, end.status, end.failure, outputs)

    def kill(self, end: ForcedEnd) -> None:
        """End the run and everything that it has started."""
        with self._lock:
            if self._end is None:
                self._forced_end = self._forced_end or end
                self._stopping.set()
            if self._process is not None:
                self._kill_groups(self._process.pid)

    def override_end(self, end: ForcedEnd) -> None:
        """Let the notebook go on, but report `end` when it has ended."""
        with self._lock:
            self._forced_end = self._forced_end or end

    @property
    def is_killed(self) -> bool:
        """Whether the run has to end now."""
        return self._stopping.is_set()

    def wait_killed(self, seconds: float) -> bool:
        """Wait until the run has to end, at most so long; whether it has to."""
        return self._stopping.wait(min(seconds, threading.TIMEOUT_MAX))

    def run_notebook(self, kaggle: EmulatedKaggle, endpoint: str) -> None:
        """Execute the notebook and report its start, log and end (`follow`). May be overridden.

        Writes outputs to `version.working`. Returns when nothing of the run is left.
        """
        try:
            self._scratch.make()
            create_environment(self._scratch.environment, self._python.parents[1])
            with (self.version.folder / "system.log").open("wb") as system_log:
                self._run_child(kaggle, endpoint, system_log)
        finally:
            shutil.rmtree(self._scratch.folder, ignore_errors=True)

    def follow(self, report: Iterable[bytes], kaggle: EmulatedKaggle) -> None:
        """Take over a report, line by line: the start of the run, its log and its end.

        A line is JSON: {"event": "running"}, {"event": "end", "status": …, "failure": …}, or an
        entry of the log.
        """
        over = threading.Event()
        timer = threading.Thread(target=self._end_in_time, args=(kaggle, over), daemon=True)
        with (self.version.folder / "log.jsonl").open("w") as log:
            for line in report:
                if not line.endswith(b"\n"):  # killed while it wrote
                    break
                record = json.loads(line)
                match record.get("event"):
                    case "running":
                        kaggle.start(self.version)
                        timer.start()  # now: how long a kernel may take to start, `session` limits
                    case "end":
                        self._end = ForcedEnd(WorkerStatus(record["status"]), record["failure"])
                    case _:
                        log.write(line.decode())
                        log.flush()
                        kaggle.add_log(self.version, record)
        over.set()

    def _end_in_time(self, kaggle: EmulatedKaggle, over: threading.Event) -> None:
        """End the run at its limit, or when the quota is used up, unless it is `over` before."""
        while (
            left := min(self._limit - self.version.seconds, kaggle.seconds_left(self.version))
        ) > 0:
            if over.wait(min(left, threading.TIMEOUT_MAX)):
                return
        if not over.is_set():
            self.kill(TIMED_OUT)

    def _run_child(self, kaggle: EmulatedKaggle, endpoint: str, system_log: IO[bytes]) -> None:
        """Start the child and follow it until it and all its processes are gone."""
        with self._lock:
            if self.isolation == "folders":
                system_log.write(b"No namespace: folders, open network, inputs not protected.\n")
                system_log.flush()
            process = spawn_session(self._order(), self._environment(endpoint), system_log)
            self._process = process
            if self.is_killed:
                self._kill_groups(process.pid)
        with process:
            self.follow(process.stdout or (), kaggle)
        with self._lock:
            self._process = None
            if self._end is None:  # it did not end by itself, and may have left processes
                self._kill_groups(process.pid)

    def _kill_groups(self, session: int) -> None:
        """Kill the session and, without a namespace, everything that descends from it.

        In a namespace the death of the session is enough. Otherwise it is stopped before its
        processes are killed, so that it cannot report the end of its kernel as a failure.
        """
        if self.isolation == "folders":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(session, signal.SIGSTOP)
            kill_run_of(self.version.working, session)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)

    def _order(self) -> SessionOrder:
        folder, working = self.version.folder, self.version.working
        notebook, executed = str(folder / "source.ipynb"), str(folder / "executed.ipynb")
        if self.isolation == "folders":
            self._link_inputs()
            return SessionOrder(notebook, executed, str(working), str(self._python))
        inputs = {str(mount.target): mount.source for mount in self.version.mounts}
        layout = self._scratch.layout(inputs, working, self.version.push.enable_internet)
        return SessionOrder(notebook, executed, "/kaggle/working", str(self._python), layout)

    @property
    def _python(self) -> Path:
        """The interpreter of the notebook's kernel, as the run sees it."""
        folder = self._scratch.environment if self.isolation == "folders" else sandbox.ENVIRONMENT
        return folder / "bin" / "python"

    def _link_inputs(self) -> None:
        for mount in self.version.mounts:
            link = self._scratch.inputs / mount.target
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(mount.source)

    def _environment(self, endpoint: str) -> dict[str, str]:
        """Kaggle's variables [A], except those that are secrets there."""
        own = {
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": endpoint,
            "KAGGLE_CONTAINER_NAME": f"kaggle-local-{self.version.session_id}",
        }
        if self.isolation == "namespace":
            own |= {"HOME": "/root", "USER": "root"}
        else:
            own |= {"HOME": str(self._scratch.home), "TMPDIR": str(self._scratch.tmp)}
            own |= {"KAGGLE_TEMP_DIR": str(self._scratch.temp)}
            own |= {"KAGGLE_INPUT_DIR": str(self._scratch.inputs)}
            own |= {"KAGGLE_WORKING_DIR": str(self.version.working)}
        push = self.version.push
        gpu = push.machine is Machine.GPU
        inherited = _inherited(gpu=gpu, internet=push.enable_internet)
        # `!python`, `!pip` and the commands of packages mean the interpreter of the kernel.
        own |= {"PATH": os.pathsep.join([str(self._python.parent), inherited["PATH"]])}
        return inherited | own


class SessionQueue:
    """The runs that have a machine, and the waiting ones, sorted by their pushes."""

    def __init__(self, machines: int | None) -> None:
        self._machines = machines
        self._changed = threading.Condition()
        self._sessions: list[EmulatedSession] = []

    def enter(self, session: EmulatedSession) -> None:
        """Take the last place."""
        with self._changed:
            self._sessions.append(session)

    def wait(self, session: EmulatedSession) -> None:
        """Wait until the run has a machine, or has to end."""
        with self._changed:
            while not session.is_killed and not self._has_machine(session):
                self._changed.wait(QUEUE_POLL)

    def leave(self, session: EmulatedSession) -> None:
        """Give the place, or the machine, back."""
        with self._changed:
            self._sessions.remove(session)
            self._changed.notify_all()

    def _has_machine(self, session: EmulatedSession) -> bool:
        return self._machines is None or session in self._sessions[: self._machines]


NewSession = Callable[[KernelVersion, Isolation, float], EmulatedSession]


class SessionRunner:
    """All runs of one local Kaggle."""

    def __init__(
        self,
        kaggle: EmulatedKaggle,
        isolation: Isolation,
        endpoint: str,
        limits: AccountLimits | None = None,
        new_session: NewSession = EmulatedSession,
    ) -> None:
        self._kaggle = kaggle
        self._isolation: Isolation = isolation
        self._endpoint = endpoint
        self._limits = limits or AccountLimits()
        self._queue = SessionQueue(self._limits.machines)
        self._new_session = new_session
        self._lock = threading.Lock()
        self._sessions: dict[EmulatedSession, threading.Thread] = {}
        self._stopped = False

    def launch(self, version: KernelVersion) -> None:
        """Start the run of a version and return at once."""
        limit = version.limit / self._limits.clock.speed
        session = self._new_session(version, self._isolation, limit)
        self._queue.enter(session)
        thread = threading.Thread(target=self._execute, args=(session,), name=str(version.folder))
        thread.daemon = True
        with self._lock:
            self._sessions[session] = thread
            if self._stopped:
                session.kill(CANCELLED)
            thread.start()

    def cancel(self, version: KernelVersion) -> bool:
        """End the run of a version; False if it does not run."""
        session = self._find(version)
        if session is not None:
            session.kill(CANCELLED)
        return session is not None

    def end_all(self, versions: Iterable[KernelVersion]) -> None:
        """End the runs of these versions and wait until nothing of them is left."""
        wanted = {id(version) for version in versions}
        with self._lock:
            sessions = {s: t for s, t in self._sessions.items() if id(s.version) in wanted}
        self._end(sessions)

    def force_end(self, version: KernelVersion, end: ForcedEnd, seconds: float = 0) -> None:
        """Decide how a run ends: after `seconds`, or (0) when its notebook has ended."""
        session = self._find(version)
        if session is None:
            return
        if not seconds:
            session.override_end(end)
            return
        timer = threading.Timer(seconds, session.kill, (end,))
        timer.daemon = True
        timer.start()

    def _find(self, version: KernelVersion) -> EmulatedSession | None:
        with self._lock:
            return next((s for s in self._sessions if s.version is version), None)

    def stop(self) -> None:
        """End all runs and wait until they are gone; print a message for one that is not."""
        with self._lock:
            self._stopped = True
            sessions = dict(self._sessions)
        self._end(sessions)

    def _end(self, sessions: dict[EmulatedSession, threading.Thread]) -> None:
        for session in sessions:
            session.kill(CANCELLED)
        deadline = time.monotonic() + STOPPING
        for session, thread in sessions.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                print(f"still running: {session.version.folder}", file=sys.stderr)

    def _execute(self, session: EmulatedSession) -> None:
        try:
            session.wait_killed(self._limits.queue / self._limits.clock.speed)
            self._queue.wait(session)
            session.execute(self._kaggle, self._endpoint)
        except FileNotFoundError:
            if not self._stopped:  # a second signal does not wait, and removes a temporary state
                raise
        finally:
            self._queue.leave(session)
            with self._lock:
                del self._sessions[session]


def spawn_session(
    order: SessionOrder, environment: dict[str, str], system_log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A child that carries out `order`. It ends when its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelkit.emulator.session"],
        cwd=_PACKAGE_ROOT,  # -m looks there first, so cells need not see a PYTHONPATH
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=system_log,
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its missing report shows that
        process.stdin.write(order.to_json().encode() + b"\n")
        process.stdin.flush()
    return process


def why_no_namespace() -> str:
    """Try the sandbox; the reason if this machine does not allow it, else an empty string."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no namespaces"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as system_log:
        scratch = ScratchFolders(Path(folder) / "scratch")
        scratch.make()
        order = SessionOrder(layout=scratch.layout({}, scratch.inputs, internet=False))
        process = spawn_session(order, _inherited(gpu=False, internet=False), system_log)
        with process:
            process.wait()
        system_log.seek(0)
        lines = system_log.read().decode(errors="replace").strip().splitlines()
    return "" if process.returncode == 0 else (lines or ["the sandbox failed"])[-1]


def list_outputs(working: Path) -> tuple[StoredFile, ...]:
    """Every regular file of a folder by its relative name, sorted. Links are left out."""
    found = []
    for folder, _, names in os.walk(working):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # in a folder that the run has made unreadable
                details = path.lstat()
                if stat.S_ISREG(details.st_mode):
                    name = path.relative_to(working).as_posix()
                    found.append(StoredFile(name, details.st_size, details.st_mtime))
    return tuple(sorted(found, key=lambda output: output.name))


def _inherited(*, gpu: bool, internet: bool) -> dict[str, str]:
    prefixes = _PASSED_PREFIXES + (_PASSED_GPU if gpu else ())
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_NAMES or name.startswith(prefixes)
    }
    if internet:
        network = {name: os.environ.get(name, "") for name in _PASSED_NET}
        passed |= {name: value for name, value in network.items() if value and "@" not in value}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**_OPENMP, **passed, "PATH": path, **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
