"""Runs one seed: each terminal is a process; checks kernelkit's promises at the end."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import requests
import tenacity

from kernelkit import workflow
from kernelkit.config import Config, load_config
from kernelkit.errors import KernelkitError
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, Timeouts
from kernelkit.runs import store
from kernelkit.runs.download import PulledRun
from tests.chaos.plan import MAY_BE_REFUSED, Plan, plan

PROJECT = Path(__file__).parent / "project"
EXIT_CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 9, 10})
PATIENCE = Timeouts(
    connect=2,
    read=3,
    retry=2,
    grace=6,
    stale=6,
    outage=8,
    first_pause=0.05,
    longest_pause=0.3,
    cancelling=5,
)
"""Longer than any fault in the plans, as the real timeouts are longer than Kaggle's."""

LIMIT = 240.0  # seconds; a terminal that takes longer hangs

_fork = multiprocessing.get_context(
    "fork"
)  # a new interpreter for each terminal would take a second


@dataclass
class TerminalEnd:
    """How a terminal has ended."""

    code: int
    """kernelkit's exit code; -9 if it was killed, 1 after an unexpected exception."""

    message: str = ""
    verified: str = ""
    """The folder that it reports as verified."""


@dataclass
class Case:
    """One seed against one local Kaggle."""

    plan: Plan
    folder: Path
    endpoint: str
    state: Path
    messages: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        return f"cargo-{self.plan.seed}"

    @property
    def owner(self) -> str:
        return f"live-owner-{self.plan.seed}"  # its runs are never replayed

    def kaggle(self) -> Kaggle:
        return Kaggle(
            Credentials(self.owner, "the plan", key="k"), self.endpoint, timeouts=PATIENCE
        )

    def config(self, machine: str) -> Config:
        project = self.folder / machine
        if not project.exists():
            shutil.copytree(PROJECT, project)
        fields = {
            "kernel.id": f"{self.owner}/{self.slug}",
            "kernel.title": f"cargo {self.plan.seed}",
        }
        fields |= {"seed": self.plan.seed, "size": self.plan.size}
        fields |= {"fail": str(self.plan.fails).lower()}
        settings = [f"{key}={value}" for key, value in fields.items()]
        return load_config(project, settings=settings, endpoint=self.endpoint, environment={})

    def versions(self) -> list[Version]:
        """The versions that have run, oldest first."""
        folder = self.state / self.owner / self.slug
        numbers = sorted(int(path.name[1:]) for path in folder.glob("v*"))
        return [Version(folder / f"v{number}") for number in numbers]


@dataclass(frozen=True)
class Version:
    """One version in the local Kaggle's files."""

    folder: Path

    @property
    def status(self) -> str:
        try:
            return str(json.loads((self.folder / "status.json").read_text())["status"])
        except (OSError, ValueError, KeyError):
            return "RUNNING"

    @property
    def began(self) -> float:
        return (self.folder / "request.json").stat().st_mtime

    @property
    def ended(self) -> float:
        return (self.folder / "status.json").stat().st_mtime

    @property
    def failed(self) -> bool:
        return self.status in ("ERROR", "CANCEL_ACKNOWLEDGED")


def run_seed(
    seed: int, folder: Path, endpoint: str, state: Path
) -> tuple[Plan, list[TerminalEnd], list[str]]:
    """Run a seed: its plan, how each terminal has ended, and the promises that were broken."""
    case = Case(plan(seed), folder, endpoint, state)
    _set_faults(case)
    ends = _users(case)
    control("DELETE", f"{endpoint}/emulator/faults")
    last = wait_for_terminal(start_terminal(case.messages, lambda: _pull_or_run(case, "here")))
    return case.plan, [*ends, last], list(broken(case, ends, last))


def _set_faults(case: Case) -> None:
    faults = [f"{fault},account={case.owner}" for fault in case.plan.faults]
    control("POST", f"{case.endpoint}/emulator/faults", faults)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(requests.ConnectionError),
    stop=tenacity.stop_after_delay(60),
    wait=tenacity.wait_fixed(0.2),
)
def control(method: str, address: str, content: Any = None) -> requests.Response:
    """Call the emulator's plugin; retry while the server is down."""
    response = requests.request(method, address, json=content, timeout=60)
    assert response.ok, response.text
    return response


def _users(case: Case) -> list[TerminalEnd]:
    """All terminals that run the kernel while there are faults."""
    started = time.monotonic()
    terminals = []
    for begins in sorted(case.plan.terminals):
        time.sleep(max(0.0, started + begins - time.monotonic()))
        terminals.append(start_terminal(case.messages, lambda: _run(case, "here")))
    if case.plan.killed_after is not None:
        time.sleep(max(0.0, started + case.plan.killed_after - time.monotonic()))
        kill(terminals[0])
    if case.plan.elsewhere:
        while any(t.process.is_alive() for t in terminals) and not case.versions():
            time.sleep(0.05)
        terminals.append(start_terminal(case.messages, lambda: _run(case, "elsewhere")))
    return [wait_for_terminal(terminal) for terminal in terminals]


def _run(case: Case, machine: str) -> PulledRun:
    return workflow.run(
        case.config(machine), case.kaggle(), on_event=lambda e: case.messages.append(str(e))
    )


def _pull_or_run(case: Case, machine: str) -> PulledRun:
    """Pull the run of this machine, however it ended; without one, run."""
    config, kaggle = case.config(machine), case.kaggle()
    records = list(store.folders(config.project / "runs", case.slug))
    if not records:
        return workflow.run(config, kaggle, on_event=lambda e: case.messages.append(str(e)))
    return workflow.pull(kaggle, records[-1], on_event=lambda e: case.messages.append(str(e)))


@dataclass(frozen=True)
class Terminal:
    """A command that runs in a process of its own."""

    process: Any
    pipe: Connection


def start_terminal(messages: list[str], command: Callable[[], PulledRun | None]) -> Terminal:
    """Run a command in another process. It may return what it has verified."""
    ours, theirs = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_in_terminal, args=(theirs, messages, command))
    process.start()
    theirs.close()
    return Terminal(process, ours)


def _in_terminal(
    pipe: Connection, messages: list[str], command: Callable[[], PulledRun | None]
) -> None:
    try:
        pulled = command()
        end = TerminalEnd(0, verified=str(pulled.folder) if pulled else "")
    except KernelkitError as error:
        end = TerminalEnd(error.exit_code, f"{type(error).__name__}: {error}")
    except Exception:
        end = TerminalEnd(1, traceback.format_exc())
    pipe.send((asdict(end), messages))
    pipe.close()
    os._exit(0)


def wait_for_terminal(terminal: Terminal) -> TerminalEnd:
    """Wait until a command has ended; how it has."""
    result = None
    try:
        if terminal.pipe.poll(LIMIT):
            result = terminal.pipe.recv()
        else:
            kill(terminal)
            return TerminalEnd(1, f"it hung for {LIMIT:.0f} s")
    except EOFError:
        pass
    terminal.process.join()
    return TerminalEnd(**result[0]) if result else TerminalEnd(-9, "killed")


def kill(terminal: Terminal) -> None:
    """Kill the process of a command (SIGKILL)."""
    if terminal.process.is_alive():
        os.kill(terminal.process.pid, signal.SIGKILL)


def broken(case: Case, ends: list[TerminalEnd], last: TerminalEnd) -> Iterator[str]:
    """The promises that were broken. `last`: the pull after the faults were removed."""
    versions = case.versions()
    for before, after in itertools.pairwise(versions):
        if not before.failed or before.ended > after.began:
            yield f"pushed twice: {after.folder.name}, but {before.folder.name} had not failed"
    for end in [*ends, last]:
        if end.code not in EXIT_CODES and end.code != -9:
            yield f"not an exit code of kernelkit: {end.message}"
        if end.code == 0:
            yield from _false_success(case, Path(end.verified))
        if end.code == 6 and not any(version.failed for version in versions):
            yield f"a failure is reported, but no run has failed: {end.message}"
        if end.code == 4 and not case.plan.kinds & MAY_BE_REFUSED:
            yield f"a refusal is reported, but nothing was refused: {end.message}"
        if end.code in (2, 3):
            yield f"a problem of the project is reported, but it has none: {end.message}"
    if versions and not versions[-1].failed and last.code != 0:
        yield f"the outputs were not downloaded ({last.code}): {last.message}"
    if not versions and last.code == 0:
        yield "a success is reported, but nothing has run"


def _false_success(case: Case, folder: Path) -> Iterator[str]:
    """A verified folder must hold what the run of its version has written."""
    version = Version(case.state / case.owner / case.slug / folder.name)
    if version.status != "COMPLETE":
        yield f"{folder.name} is reported as verified, but its run ended {version.status}"
    for name in ("table.csv", "models.zip", "sub/weights.bin"):
        true, pulled = version.folder / "working" / name, folder / name
        if not pulled.is_file() or pulled.read_bytes() != true.read_bytes():
            yield f"{folder.name}/{name} is reported as verified, but differs from the run's file"
