"""One seed, played: terminals as processes of their own, and what must hold at their end."""

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
from tests.campaign.plan import GIVEN_OTHERWISE, Plan, plan

PROJECT = Path(__file__).parent / "project"
EXIT_CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 9, 10})
PATIENCE = Timeouts(
    connect=2, read=3, retry=2, grace=6, outage=8, first_pause=0.05, longest_pause=0.3, cancelling=5
)
"""Grace beyond the longest lie of the plans, as the real one is meant to be beyond Kaggle's."""

LIMIT = 240.0  # seconds for one terminal: beyond that it hangs

_fork = multiprocessing.get_context("fork")  # a fresh interpreter a terminal would cost a second


@dataclass
class Ended:
    """How a terminal has ended."""

    code: int
    """kernelkit's exit code; -9 where it was killed, 1 where it fell."""

    words: str = ""
    verified: str = ""
    """The folder that it calls verified."""


@dataclass
class Case:
    """One seed against one local Kaggle."""

    plan: Plan
    folder: Path
    endpoint: str
    state: Path
    said: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        return f"cargo-{self.plan.seed}"

    @property
    def owner(self) -> str:
        return f"owner-{self.plan.seed}"

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
        """What really ran, oldest first."""
        folder = self.state / self.owner / self.slug
        numbers = sorted(int(path.name[1:]) for path in folder.glob("v*"))
        return [Version(folder / f"v{number}") for number in numbers]


@dataclass(frozen=True)
class Version:
    """One version in the local Kaggle's own files."""

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


def play(
    seed: int, folder: Path, endpoint: str, state: Path
) -> tuple[Plan, list[Ended], list[str]]:
    """Play a seed: its plan, how each terminal has ended, and every promise that was broken."""
    case = Case(plan(seed), folder, endpoint, state)
    _set_faults(case)
    ended = _people(case)
    control("DELETE", f"{endpoint}/emulator/faults")
    home = _terminal(case, "here", _bring_home)
    home_ended = _wait(*home)
    return case.plan, [*ended, home_ended], list(broken(case, ended, home_ended))


def _set_faults(case: Case) -> None:
    details = [f"{error},account={case.owner}" for error in case.plan.faults]
    control("POST", f"{case.endpoint}/emulator/faults", details)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(requests.ConnectionError),
    stop=tenacity.stop_after_delay(60),
    wait=tenacity.wait_fixed(0.2),
)
def control(method: str, address: str, content: Any = None) -> requests.Response:
    """Tell the local Kaggle, which may just be dead, what is no part of Kaggle."""
    told = requests.request(method, address, json=content, timeout=60)
    assert told.ok, told.text
    return told


def _people(case: Case) -> list[Ended]:
    """Everybody who runs the kernel while the faults last."""
    started = time.monotonic()
    terminals = []
    for begins in sorted(case.plan.terminals):
        time.sleep(max(0.0, started + begins - time.monotonic()))
        terminals.append(_terminal(case, "here", _run))
    if case.plan.killed_after is not None:
        time.sleep(max(0.0, started + case.plan.killed_after - time.monotonic()))
        _kill(terminals[0][0])
    if case.plan.elsewhere:
        while any(t[0].is_alive() for t in terminals) and not case.versions():
            time.sleep(0.05)
        terminals.append(_terminal(case, "elsewhere", _run))
    return [_wait(*terminal) for terminal in terminals]


def _run(case: Case, machine: str) -> PulledRun:
    return workflow.run(
        case.config(machine), case.kaggle(), on_event=lambda e: case.said.append(str(e))
    )


def _bring_home(case: Case, machine: str) -> PulledRun:
    """What is pushed is pulled, whatever became of it; else it is run."""
    config, kaggle = case.config(machine), case.kaggle()
    records = list(store.folders(config.project / "runs", case.slug))
    if not records:
        return workflow.run(config, kaggle, on_event=lambda e: case.said.append(str(e)))
    pulled = workflow.pull(kaggle, records[-1], on_event=lambda e: case.said.append(str(e)))
    workflow.require_success(pulled)
    return pulled


def _terminal(
    case: Case, machine: str, action: Callable[[Case, str], PulledRun]
) -> tuple[Any, Connection]:
    ours, theirs = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_in_terminal, args=(theirs, case, machine, action))
    process.start()
    theirs.close()
    return process, ours


def _in_terminal(
    pipe: Connection, case: Case, machine: str, action: Callable[[Case, str], PulledRun]
) -> None:
    try:
        pulled = action(case, machine)
        ended = Ended(0, verified=str(pulled.folder))
    except KernelkitError as error:
        ended = Ended(error.exit_code, f"{type(error).__name__}: {error}")
    except Exception:
        ended = Ended(1, traceback.format_exc())
    pipe.send((asdict(ended), case.said))
    pipe.close()
    os._exit(0)


def _wait(process: Any, pipe: Connection) -> Ended:
    told = None
    try:
        if pipe.poll(LIMIT):
            told = pipe.recv()
        else:
            _kill(process)
            return Ended(1, f"it hung for {LIMIT:.0f} s")
    except EOFError:
        pass
    process.join()
    return Ended(**told[0]) if told else Ended(-9, "killed")


def _kill(process: Any) -> None:
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)


def broken(case: Case, ended: list[Ended], home: Ended) -> Iterator[str]:
    """Promises that were not kept."""
    versions = case.versions()
    for before, after in itertools.pairwise(versions):
        if not before.failed or before.ended > after.began:
            yield f"pushed twice: {after.folder.name} though {before.folder.name} had not failed"
    for one in [*ended, home]:
        if one.code not in EXIT_CODES and one.code != -9:
            yield f"no exit code of ours: {one.words}"
        if one.code == 0:
            yield from _untrue_success(case, Path(one.verified))
        if one.code == 6 and not any(version.failed for version in versions):
            yield f"a failure is claimed of a run that has none: {one.words}"
        if one.code == 4 and not case.plan.kinds & GIVEN_OTHERWISE:
            yield f"a refusal that nobody has made: {one.words}"
        if one.code in (2, 3):
            yield f"nothing was wrong with the project: {one.words}"
    if versions and not versions[-1].failed and home.code != 0:
        yield f"the outputs did not come home ({home.code}): {home.words}"
    if not versions and home.code == 0:
        yield "a success without a run"


def _untrue_success(case: Case, folder: Path) -> Iterator[str]:
    """What a verified folder holds must be what the run of its number has written."""
    version = Version(case.state / case.owner / case.slug / folder.name)
    if version.status != "COMPLETE":
        yield f"{folder.name} is called verified, and ended {version.status}"
    for name in ("table.csv", "models.zip", "sub/weights.bin"):
        true, pulled = version.folder / "working" / name, folder / name
        if not pulled.is_file() or pulled.read_bytes() != true.read_bytes():
            yield f"{folder.name}/{name} is called verified, and is not what the run wrote"
