"""The child process of one run: enters the sandbox, executes the notebook, reports.

`runner` starts it as `python -m kernelkit.emulator.session`. It reads its order, one line of JSON,
from stdin and writes lines of JSON to stdout: log entries as they are printed, and
`{"event": "running" | "end", ...}`. Its stderr is the system log of the run.

Stdin stays open: when it is closed, the emulator has ended, and the run ends too. This works on
every system, however the emulator died.

A notebook runs as papermill runs it, which is what Kaggle uses [A]: a kernelspec is required, the
first failing cell ends the run, and its traceback goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from kernelkit.emulator import sandbox

if TYPE_CHECKING:
    from nbformat import NotebookNode

PARTIAL_LINE = 1.0
"""Seconds after which an unfinished line is logged as it is (progress bars)."""
STARTUP = 300
"""Seconds that a Jupyter kernel may take to start on a busy machine."""
SWEEPS = 50
"""Searches for the processes of a run: each can have started another one meanwhile."""

_TRIAL = """
import importlib.util, sys
if not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))):
    sys.exit("nbclient and ipykernel cannot be found in the sandbox")
"""
"""Finding them shows that the interpreter works; importing them would take 0.3 s."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class SessionOrder:
    """What the child has to do. Without a notebook it only checks that a kernel could start."""

    notebook: str = ""
    executed: str = os.devnull
    """Where the executed notebook is written."""
    cwd: str = ""
    python: str = ""
    """The interpreter of the notebook's kernel, as the run sees it."""
    layout: sandbox.SandboxLayout | None = None

    def to_json(self) -> str:
        """One line for the child."""
        return json.dumps(asdict(self), default=os.fspath)

    @classmethod
    def from_json(cls, line: bytes) -> SessionOrder:
        """The order that a line holds."""
        record = json.loads(line)
        layout = record.pop("layout")
        return cls(**record, layout=sandbox.SandboxLayout.from_json(layout) if layout else None)


class SessionLog:
    """The log of the run on the control channel: whole lines, and partial ones after a while."""

    def __init__(self, control: BinaryIO) -> None:
        self._control = control
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._partial: dict[str, tuple[str, float]] = {}

    def send(self, **record: object) -> None:
        """Write one line of JSON at once."""
        self._control.write(json.dumps(record).encode() + b"\n")
        self._control.flush()

    def write(self, stream: str, text: str) -> None:
        """Add printed text: whole lines become entries, the rest waits for its end."""
        with self._lock:
            begun, _ = self._partial.pop(stream, ("", 0.0))
            *lines, rest = (begun + text).split("\n")
            for line in lines:
                self._entry(stream, line + "\n")
            if rest:
                self._partial[stream] = (rest, time.monotonic())

    def flush(self, age: float = 0.0) -> None:
        """Log the partial lines that have not grown for `age` seconds."""
        with self._lock:
            for stream, (text, touched) in list(self._partial.items()):
                if time.monotonic() - touched >= age:
                    del self._partial[stream]
                    self._entry(stream, text)

    def flush_forever(self) -> None:
        """Body of a thread."""
        while True:
            time.sleep(PARTIAL_LINE / 2)
            self.flush(PARTIAL_LINE)

    def _entry(self, stream: str, data: str) -> None:
        elapsed = round(time.monotonic() - self._began, 6)
        self.send(stream_name=stream, time=elapsed, data=data)


class NotebookExecution:
    """A notebook that nbclient executes."""

    def __init__(self, notebook: NotebookNode, order: SessionOrder, log: SessionLog) -> None:
        self._notebook = notebook
        self._order = order
        self._log = log
        self._kernel_group: int | None = None

    def run(self) -> tuple[str, str]:
        """Execute all cells. Returns Kaggle's status and the failure in one line."""
        from nbclient.exceptions import CellExecutionError

        try:
            asyncio.run(self._client().async_execute())
        except CellExecutionError as error:
            # papermill accepts sys.exit(0)
            if error.ename == "SystemExit" and error.evalue in ("", "0"):
                return "COMPLETE", ""
            return self._failed(f"{error.ename}: {error.evalue}", self._traceback())
        except Exception as error:  # the kernel died or did not start: the run has failed
            return self._failed(f"{type(error).__name__}: {error}", "")
        finally:
            self._log.flush()
            self.kill()
        return "COMPLETE", ""

    def kill(self) -> None:
        """Kill what the cells have left running."""
        if self._kernel_group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._kernel_group, signal.SIGKILL)
        if working := os.environ.get("KAGGLE_WORKING_DIR"):  # no namespace ends with this process
            kill_run_of(Path(working), os.getpid())

    def _client(self) -> Any:
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient

        execution = self

        class LoggingClient(NotebookClient):
            """Logs in the same place as papermill's client."""

            def process_message(
                self, msg: Any, cell: NotebookNode, cell_index: int
            ) -> NotebookNode | None:
                if msg["msg_type"] == "stream":
                    execution._log.write(msg["content"]["name"], msg["content"]["text"])
                return super().process_message(msg, cell, cell_index)

        # Without kernel folders, "python3" always means the interpreter that we name.
        manager = AsyncKernelManager(
            kernel_name=self._kernel_name(), kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
        )
        spec = manager.kernel_spec  # raises if there is no such kernel
        assert spec is not None
        spec.argv[0] = self._order.python
        client = LoggingClient(
            self._notebook,
            km=manager,
            timeout=None,
            startup_timeout=STARTUP,
            resources={"metadata": {"path": self._order.cwd}},
            on_notebook_start=lambda **_: self._started(manager),
        )
        client.owns_km = True  # it then shuts the kernel down, and exit handlers run
        return client

    def _kernel_name(self) -> str:
        name = self._notebook.metadata.get("kernelspec", {}).get("name")
        if not name:
            raise ValueError("No kernel name found in notebook and no override provided.")
        return str(name)

    def _started(self, manager: Any) -> None:
        self._kernel_group = manager.provisioner.pid
        self._log.send(event="running")

    def _failed(self, failure: str, traceback: str) -> tuple[str, str]:
        self._log.write("stderr", traceback or f"{failure}\n")
        self._log.flush()
        return "ERROR", failure

    def _traceback(self) -> str:
        """The failing cell as papermill shows it."""
        rule = "-" * 75
        for cell in self._notebook.cells:
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    lines = "\n".join(output.traceback)
                    head = f'Exception encountered at "In [{cell.execution_count}]":'
                    text = f"\n{rule}\n{head}\n{lines}\n"
                    return "papermill.exceptions.PapermillExecutionError: " + _ANSI.sub("", text)
        return ""


def kill_run_of(working: Path, session: int) -> None:
    """Without a namespace: kill the processes of the run that has this folder, until none is left.

    A process that has started its own session cannot be found by its group. But it descends from
    the run's session, which adopts orphans on Linux, or has inherited the variable that names the
    folder. The session itself is spared.
    """
    import psutil  # not earlier: it is only needed without a namespace

    for _ in range(SWEEPS):
        found = set()
        with contextlib.suppress(psutil.Error):
            found |= set(psutil.Process(session).children(recursive=True))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("KAGGLE_WORKING_DIR") == str(working):
                    found |= {process, *process.children(recursive=True)}
        found = {one for one in found if one.pid != session and _is_alive(one)}
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not found:
            return
        psutil.wait_procs(found, 0.1)


def _is_alive(process: Any) -> bool:
    """Whether it still runs; a killed one remains as a zombie until its parent has noticed."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def main() -> None:
    """Carry out one order. Exit status 0 means that an `end` was reported."""
    line = open(0, "rb", buffering=0, closefd=False).readline()  # noqa: SIM115
    order = SessionOrder.from_json(line)
    control = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the kernel's process prints itself goes to the system log
    log = SessionLog(control)
    text = Path(order.notebook).read_text(encoding="utf-8") if order.notebook else ""
    with Path(order.executed).open("w", encoding="utf-8") as executed:
        if order.layout:
            sandbox.enter(order.layout)
        elif sys.platform.startswith("linux"):
            sandbox.adopt_orphans()
        if not order.notebook:  # a trial: can a kernel start in here?
            os.execv(sys.executable, [sys.executable, "-c", _TRIAL])
        status, failure = _execute(text, order, log, executed)
        log.send(event="end", status=status, failure=failure)


def _execute(text: str, order: SessionOrder, log: SessionLog, executed: TextIO) -> tuple[str, str]:
    import nbformat  # not earlier: the process must not have threads when it enters the sandbox

    try:
        notebook = nbformat.reads(text, as_version=4)
    except Exception as error:  # nbformat raises many types; each means an unreadable source
        return "ERROR", f"{type(error).__name__}: {error}"
    execution = NotebookExecution(notebook, order, log)
    threading.Thread(target=_end_with_stdin, args=(execution,), daemon=True).start()
    threading.Thread(target=log.flush_forever, daemon=True).start()
    try:
        return execution.run()
    finally:
        nbformat.write(notebook, executed)


def _end_with_stdin(execution: NotebookExecution) -> None:
    while os.read(0, 1):
        pass
    execution.kill()
    os._exit(1)


if __name__ == "__main__":
    main()
