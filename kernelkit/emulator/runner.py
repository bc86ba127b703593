"""Runs the versions that were pushed: one child process each, watched by a thread of its own.

A run sees Kaggle's folders and environment, and nothing of the caller: see `sandbox`. Where
namespaces cannot be had, `folders` is the fallback: the same folders under other names, which
KAGGLE_INPUT_DIR, KAGGLE_WORKING_DIR and KAGGLE_TEMP_DIR tell the notebook. There the inputs are
links and can be written to, the network stays open, and a process that makes itself a session of
its own outlives a stopped run.

A run that asks for a GPU gets this machine's, or none where there is none: it is for the notebook
to notice. A run that asks for none sees none, as on Kaggle.
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from kernelkit.emulator import sandbox
from kernelkit.emulator.state import Kaggle, OutputFile, Status, Version

Isolation = Literal["namespace", "folders"]

TIME_LIMIT = 12 * 3600.0
"""Seconds: Kaggle's limit for CPU and GPU sessions [A]."""
STOPPING = 10.0
"""Seconds until all killed runs must be gone; it takes milliseconds."""

_PASSED_NAMES = {"LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH"}
_PASSED_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_", "VECLIB_")
_PASSED_GPU = ("CUDA_", "CUBLAS_", "NVIDIA_")
"""What a run inherits of the environment: numbers of threads (other counts give other last bits),
language and GPU. No credentials and no PYTHONPATH, because nothing else passes."""

_POLITE = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait sleep, where OpenMP lets them spin: on a machine that is shared with anything
else a training step is then several times faster (two at once on two cores: 130 ms an image
instead of 640), with the same bits. Whoever sets it otherwise is heard."""

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Scratch:
    """Folders that live as long as the run."""

    folder: Path

    @property
    def layout(self) -> dict[str, str]:
        """The folders by their names in `sandbox.Layout`."""
        return {name: str(self.folder / name) for name in ("root", "temp", "tmp", "home")}

    @property
    def inputs(self) -> Path:
        """Only for the fallback: links to the declared inputs."""
        return self.folder / "input"

    def make(self) -> None:
        """All of them, empty."""
        for folder in (*map(Path, self.layout.values()), self.inputs):
            folder.mkdir(parents=True)


@dataclass(frozen=True)
class Fate:
    """An end that was decided elsewhere than in the notebook."""

    status: Status
    failure: str = ""
    keeps_outputs: bool = True


CANCELLED = Fate(Status.CANCEL_ACKNOWLEDGED)


class Run:
    """One version's child process, from its start to its end."""

    def __init__(self, version: Version, isolation: Isolation, limit: float) -> None:
        self.version = version
        self.ended: dict[str, str] | None = None
        self._doomed = False
        self._isolation = isolation
        self._limit = limit
        self._scratch = Scratch(version.folder / "scratch")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._kernel_group: int | None = None
        self._fate: Fate | None = None

    def execute(self, kaggle: Kaggle, endpoint: str) -> None:
        """Run the notebook to its end, whichever that is. Body of a thread."""
        end = Fate(Status.ERROR, "The session could not be started")
        try:
            self._scratch.make()
            self._converse(kaggle, endpoint)
            end = self._outcome()
        finally:
            shutil.rmtree(self._scratch.folder, ignore_errors=True)
            outputs = list_outputs(self.version.working) if end.keeps_outputs else ()
            kaggle.finish(self.version, end.status, end.failure, outputs)

    def kill(self, fate: Fate) -> None:
        """End the run and everything it has started; `fate` is then its end."""
        with self._lock:
            if self.ended is None:
                self._fate, self._doomed = self._fate or fate, True
            if self._process is not None:
                self._kill_groups(self._process.pid)

    def condemn(self, fate: Fate) -> None:
        """Let the notebook go on; whatever becomes of it, `fate` will be its end."""
        with self._lock:
            self._fate = self._fate or fate

    def _converse(self, kaggle: Kaggle, endpoint: str) -> None:
        """Give the child its order and follow its report until it and all of its own are gone."""
        words = f"Your notebook exceeded the time limit of {self._limit:g} seconds."
        timer = threading.Timer(self._limit, self.kill, (Fate(Status.ERROR, words),))
        timer.daemon = True  # starts with the kernel; how long that may take, the session limits
        with (self.version.folder / "system.log").open("wb") as system_log:
            process = self._spawn(system_log, endpoint)
            with process, (self.version.folder / "log.jsonl").open("w") as log:
                self._follow(process, timer, kaggle, log)
        timer.cancel()
        self._bury(process)

    def _spawn(self, system_log: IO[bytes], endpoint: str) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._isolation == "folders":
                system_log.write(b"No namespace: folders, open network, inputs not protected.\n")
                system_log.flush()
            environment = self._environment(endpoint)
            process = spawn_session(self._order(), environment, system_log)
            self._process = process
            if self._doomed:
                self._kill_groups(process.pid)
        return process

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        timer: threading.Timer,
        kaggle: Kaggle,
        log: IO[str],
    ) -> None:
        for line in process.stdout or ():
            if not line.endswith(b"\n"):  # killed while it spoke
                return
            record = json.loads(line)
            match record.get("event"):
                case "running":
                    self._kernel_group = record["kernel"]
                    kaggle.start(self.version)
                    timer.start()
                case "end":
                    self.ended = record
                case _:
                    log.write(line.decode())
                    log.flush()
                    kaggle.add_log(self.version, record)

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """After the end: what a session that did not end by itself may have left."""
        with self._lock:
            self._process = None
            if self.ended is None:
                self._kill_groups(process.pid)

    def _kill_groups(self, session: int) -> None:
        """The session, and in the fallback its kernel too, which leads a group of its own.

        In a namespace the kernel's number means nothing out here, and the session's death is
        enough. The kernel goes last, so that the session cannot report its end as a failure.
        """
        groups = [session]
        if self._isolation == "folders" and self._kernel_group is not None:
            groups.append(self._kernel_group)
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def _outcome(self) -> Fate:
        if self._fate:
            return self._fate
        if self.ended:
            return Fate(Status(self.ended["status"]), self.ended["failure"])
        return Fate(Status.ERROR, "The session died; see system.log in the run's folder.")

    def _order(self) -> dict[str, Any]:
        folder = self.version.folder
        order: dict[str, Any] = {
            "notebook": str(folder / "source.ipynb"),
            "executed": str(folder / "executed.ipynb"),
        }
        if self._isolation == "folders":
            self._link_inputs()
            return order | {"cwd": str(self.version.working)}
        inputs = {str(mount.target): str(mount.source) for mount in self.version.mounts}
        working, internet = str(self.version.working), self.version.push.enable_internet
        layout = {**self._scratch.layout, **_machine(), "inputs": inputs, "working": working}
        return order | {"cwd": "/kaggle/working", "layout": layout | {"internet": internet}}

    def _link_inputs(self) -> None:
        for mount in self.version.mounts:
            link = self._scratch.inputs / mount.target
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(mount.source)

    def _environment(self, endpoint: str) -> dict[str, str]:
        """Kaggle's variables [A], but for those that are secrets there."""
        own = {
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": endpoint,
            "KAGGLE_CONTAINER_NAME": f"kaggle-local-{self.version.session_id}",
        }
        if self._isolation == "namespace":
            own |= {"HOME": "/root", "USER": "root"}
        else:
            folders = self._scratch.layout
            own |= {"HOME": folders["home"], "TMPDIR": folders["tmp"]}
            own |= {"KAGGLE_TEMP_DIR": folders["temp"]}
            own |= {"KAGGLE_INPUT_DIR": str(self._scratch.inputs)}
            own |= {"KAGGLE_WORKING_DIR": str(self.version.working)}
        return _inherited(gpu=self.version.push.wants_gpu) | own


class Runner:
    """All runs of one local Kaggle."""

    def __init__(
        self, kaggle: Kaggle, isolation: Isolation, endpoint: str, time_limit: float = TIME_LIMIT
    ) -> None:
        self._kaggle = kaggle
        self._isolation: Isolation = isolation
        self._endpoint = endpoint
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._runs: dict[Run, threading.Thread] = {}
        self._stopped = False

    def launch(self, version: Version) -> None:
        """Start the version's run and return at once."""
        limit = min(self._time_limit, version.push.timeout or self._time_limit)
        run = Run(version, self._isolation, limit)
        thread = threading.Thread(target=self._execute, args=(run,), name=str(version.folder))
        thread.daemon = True
        with self._lock:
            self._runs[run] = thread
            if self._stopped:
                run.kill(CANCELLED)
            thread.start()

    def cancel(self, version: Version) -> bool:
        """End the version's run; False where there is none to end."""
        run = self._find(version)
        if run is not None:
            run.kill(CANCELLED)
        return run is not None

    def condemn(self, version: Version, fate: Fate, seconds: float = 0) -> None:
        """Decide how the version's run ends: after `seconds`, or (0) when its notebook does."""
        run = self._find(version)
        if run is None:
            return
        if not seconds:
            run.condemn(fate)
            return
        timer = threading.Timer(seconds, run.kill, (fate,))
        timer.daemon = True
        timer.start()

    def _find(self, version: Version) -> Run | None:
        with self._lock:
            return next((run for run in self._runs if run.version is version), None)

    def stop(self) -> None:
        """End all runs, and return when they are gone; say so if one is not, which none can be."""
        with self._lock:
            self._stopped = True
            runs = dict(self._runs)
        for run in runs:
            run.kill(CANCELLED)
        deadline = time.monotonic() + STOPPING
        for run, thread in runs.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                print(f"still not gone: {run.version.folder}", file=sys.stderr)

    def _execute(self, run: Run) -> None:
        try:
            run.execute(self._kaggle, self._endpoint)
        finally:
            with self._lock:
                del self._runs[run]


def spawn_session(
    order: dict[str, Any], environment: dict[str, str], system_log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A child that carries out `order` (see `session`). Its stdin stays open: its lifeline."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelkit.emulator.session"],
        cwd=_PACKAGE_ROOT,  # -m looks there first: no need for PYTHONPATH, which cells would see
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=system_log,
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # died at once: the end of its report will tell
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def why_no_namespace() -> str:
    """Try the sandbox for real; the reason if this machine does not allow it, else nothing."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no namespaces"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as system_log:
        scratch = Scratch(Path(folder) / "scratch")
        scratch.make()
        layout = {**scratch.layout, **_machine(), "inputs": {}, "internet": False}
        layout["working"] = str(scratch.inputs)
        process = spawn_session({"layout": layout}, _inherited(gpu=False), system_log)
        with process:
            process.wait()
        system_log.seek(0)
        words = system_log.read().decode(errors="replace").strip().splitlines()
    return "" if process.returncode == 0 else (words or ["the sandbox failed"])[-1]


def list_outputs(working: Path) -> tuple[OutputFile, ...]:
    """Every regular file below, by its relative name, sorted. Links are neither files nor ways."""
    found = []
    for folder, _, names in os.walk(working):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # in a folder that the run has closed to us
                facts = path.lstat()
                if stat.S_ISREG(facts.st_mode):
                    name = path.relative_to(working).as_posix()
                    found.append(OutputFile(name, facts.st_size, facts.st_mtime))
    return tuple(sorted(found, key=lambda output: output.name))


def _machine() -> dict[str, list[str]]:
    keep = sandbox.interpreter_folders()
    hide = sandbox.folders_to_hide(Path.home(), sys.path, keep)
    return {"hide": list(map(str, hide)), "keep": list(map(str, keep))}


def _inherited(*, gpu: bool) -> dict[str, str]:
    prefixes = _PASSED_PREFIXES + (_PASSED_GPU if gpu else ())
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_NAMES or name.startswith(prefixes)
    }
    # The kernel's interpreter is also what `!python` and `!pip` mean, as on Kaggle.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**_POLITE, **passed, "PATH": path, **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
