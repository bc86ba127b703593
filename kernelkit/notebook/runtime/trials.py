"""Several trials of a sweep side by side: a process for each, and a GPU of its own where there are.

Each has its own parameters, its own working folder `trial-<number>` and its own part of the run's
manifest. What it prints carries its number. One that fails does not end the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from .documents import (
    BundleDocument,
    Parameter,
    PruningDocument,
    TrialBundleDocument,
    TrialDocument,
)
from .events import RunEvent, parse_event
from .faults import RuntimeFault
from .inputs import RunFolders
from .program import call_entry
from .recording import error_text, recorded, shown, traceback_text
from .sources import Sources

EXIT_SECONDS = 5.0  # for the last lines of an ended process, if a child of it holds the pipe
STOP_SECONDS = 10.0  # for a process that was asked to end
LAST_LINES = 30  # of a process that left no traceback


def run_trials(
    bundle: BundleDocument,
    source_dir: Path,
    folders: RunFolders,
    entry: str,
    parameters: Mapping[str, Parameter],
    gpus: int,
    documents: list[TrialDocument],
) -> None:
    """Run all trials of the manifest, as many at once as there are GPUs; on a CPU all at once.

    `parameters` are those of the run, with their addresses; each trial has its own on top. What the
    manifest says about each trial goes into `documents`, which always has the latest.
    """
    trials = bundle.get("trials", ())
    devices: list[str | None] = [None] * len(trials)
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = [*(visible.split(",") if visible else map(str, range(gpus)))]
    with tempfile.TemporaryDirectory(prefix="kernelkit-trials-") as jobs:
        waiting = [
            _Process(bundle, source_dir, folders, entry, parameters, one, Path(jobs))
            for one in trials
        ]
        documents += [process.document for process in waiting]
        lines: queue.SimpleQueue[tuple[_Process, str | None]] = queue.SimpleQueue()
        running: list[_Process] = []
        try:
            while waiting or running:
                while waiting and devices:
                    process = waiting.pop(0)
                    process.start(devices.pop(0), len(trials), lines)
                    running.append(process)
                with contextlib.suppress(queue.Empty):
                    process, line = lines.get(timeout=1.0)
                    if line is None:
                        process.closed = True
                    else:
                        process.read(line)
                for process in [one for one in running if one.has_ended()]:
                    running.remove(process)
                    devices.append(process.device)
        finally:
            for process in running:
                process.kill()


def require_results(trials: Sequence[TrialDocument]) -> None:
    """Check that a session has not failed as a whole.

    Raises:
        RuntimeFault: no trial is complete, and at least one has failed.
    """
    failed = [one for one in trials if one["status"] == "failed"]
    if failed and not any(one["status"] == "complete" for one in trials):
        first = failed[0]
        raise RuntimeFault(
            f"no trial is complete; trial {first['number']} failed:\n{first['traceback']}"
        )


class _Process:
    """One trial."""

    def __init__(
        self,
        bundle: BundleDocument,
        source_dir: Path,
        folders: RunFolders,
        entry: str,
        parameters: Mapping[str, Parameter],
        trial: TrialBundleDocument,
        jobs: Path,
    ) -> None:
        self.number: int = trial["number"]
        self.device: str | None = None
        self.closed = False
        self.document: TrialDocument = {
            "number": self.number,
            "status": "running",
            "error": None,
            "traceback": None,
            "seconds": 0.0,
            "parameters": {name: recorded(value) for name, value in trial["parameters"].items()},
        }
        name = f"trial-{self.number}"
        self._working, self._temp = folders.working / name, folders.temp / name
        self._job, self._report = jobs / f"{name}.pickle", jobs / f"{name}.json"
        self._source_dir = source_dir
        self._pruning: PruningDocument | None = bundle.get("pruning")
        self._values: list[float] = []
        self._last: list[str] = []
        self._ended_at: float | None = None
        self._pruned = False
        job = {
            "bundle": bundle,
            "source_dir": str(source_dir),
            "entry": entry,
            "parameters": {**parameters, **trial["parameters"]},
            "report": str(self._report),
        }
        try:
            self._job.write_bytes(pickle.dumps(job))
        except Exception as error:  # an object of any class may raise anything
            raise RuntimeFault(
                f"the parameters cannot be handed to another process: {error_text(error)}"
            ) from error

    def start(
        self, device: str | None, among: int, lines: queue.SimpleQueue[tuple[_Process, str | None]]
    ) -> None:
        """Start the process on a device; a thread puts its lines into the queue."""
        for folder in (self._working, self._temp):
            folder.mkdir(parents=True, exist_ok=True)
        own = {
            "KAGGLE_WORKING_DIR": str(self._working),
            "KAGGLE_TEMP_DIR": str(self._temp),
            "KERNELKIT_TRIAL": str(self.number),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        if device is not None:
            own["CUDA_VISIBLE_DEVICES"] = device
        elif "OMP_NUM_THREADS" not in os.environ:  # else each would use all cores
            own["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // among))
        self.device, self._started = device, time.time()
        place = f" on GPU {device}" if device is not None else ""
        print(f"[trial {self.number}] starts{place}", flush=True)
        # The name of the module that this file is: `kernelkit_runtime.trials` in a run.
        code = f"import sys; sys.path.insert(0, sys.argv[1]); import {__name__} as trials"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", f"{code}; trials.main(sys.argv[2])"),
                *(str(self._source_dir), str(self._job)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            cwd=self._working,
            env={**os.environ, **own},
            start_new_session=True,  # so that its own child processes end with it
        )

        def follow() -> None:
            assert self._process.stdout is not None
            with self._process.stdout as printed:
                for line in printed:
                    lines.put((self, line))
            lines.put((self, None))

        threading.Thread(target=follow, daemon=True).start()

    def read(self, line: str) -> None:
        """Print a line with the number of the trial: events as events, all else with a prefix."""
        line = line.rstrip("\r\n")
        event = parse_event(line)
        if event is None:
            self._last = [*self._last, line][-LAST_LINES:]
            print(f"[trial {self.number}] {line}", flush=True)
            return
        print(json.dumps({**json.loads(line), "trial": self.number}), flush=True)
        if self._pruning is not None and self._is_hopeless(event, self._pruning):
            self._pruned = True
            print(f"[trial {self.number}] ended: worse than the median of the others", flush=True)
            self.kill()

    def has_ended(self) -> bool:
        """Whether nothing more comes; its part of the manifest is then final."""
        code = self._process.poll()
        if code is None:
            return False
        self._ended_at = self._ended_at or time.time()
        if not self.closed and time.time() - self._ended_at < EXIT_SECONDS:
            return False
        self.kill()  # what it left behind
        self.document["seconds"] = round(self._ended_at - self._started, 3)
        self._conclude(code)
        return True

    def kill(self) -> None:
        """End the process with all its own child processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            if number == signal.SIGTERM:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)

    def _is_hopeless(self, event: RunEvent, pruning: PruningDocument) -> bool:
        """Whether its best value so far is worse than the median of the others at this point."""
        value = event.numbers.get(pruning["metric"])
        if self._pruned or event.kind != "epoch" or value is None:
            return False
        self._values.append(float(value))
        step = len(self._values) - 1
        if step >= len(pruning["medians"]):
            return False
        median = pruning["medians"][step]
        if pruning["goal"] == "minimize":
            return min(self._values) > median
        return max(self._values) < median

    def _conclude(self, code: int) -> None:
        """Fill in how it ended: as it says itself, or as its exit code says."""
        report: dict[str, Parameter] = {}
        with contextlib.suppress(OSError, ValueError):
            report = json.loads(self._report.read_text(encoding="ascii"))
        if self._pruned:
            report = {"status": "pruned", "error": "worse than the median of the other trials"}
        elif not report or (report["status"] == "complete" and code != 0):
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            printed = "\n".join(self._last)
            report = {
                "status": "failed",
                "error": f"the process of the trial ended with {reason}",
                "traceback": f"It printed last:\n{printed}" if printed else None,
            }
        for name in ("status", "error", "traceback", "parameters"):
            if name in report:
                self.document[name] = report[name]  # type: ignore[typeddict-item]
        error = self.document["error"]
        reason = f": {error.splitlines()[0]}" if error else ""
        seconds = self.document["seconds"]
        print(f"[trial {self.number}] {report['status']} after {seconds:.0f} s{reason}", flush=True)


def main(job_file: str) -> None:
    """In the process of a trial: call the entry, and write down how that ended."""
    job = pickle.loads(Path(job_file).read_bytes())
    folders = RunFolders()
    sources = Sources(job["bundle"], Path(job["source_dir"]))
    report: dict[str, Parameter] = {"status": "complete", "error": None, "traceback": None}
    try:
        parameters = {name: folders.resolve(value) for name, value in job["parameters"].items()}
        report["parameters"] = {name: recorded(value) for name, value in parameters.items()}
        for name, value in parameters.items():
            print(f"{name} = {shown(value)}")
        call_entry(sources, folders.working, job["entry"], parameters)
    except BaseException as error:
        traceback.print_exc()
        report |= {
            "status": "failed",
            "error": error_text(error),
            "traceback": traceback_text(error),
        }
    Path(job["report"]).write_text(json.dumps(report, allow_nan=False), encoding="ascii")
    with contextlib.suppress(ValueError):  # the program may have closed it
        sys.stdout.flush()
    sys.exit(0 if report["status"] == "complete" else 1)
