"""The table of contents: `run` and each of its steps, alone and together.

    render → preflight → push → watch → pull → verify

Every step takes a `Config` and says what it does through `tell`; none of them prints.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kernelkit
from kernelkit import ledger, remote
from kernelkit.bundle import read_bundle
from kernelkit.client import Kaggle, LogEntry, State, Status, connect
from kernelkit.config import Config
from kernelkit.errors import (
    ConfigError,
    KernelkitError,
    MachineError,
    PreflightError,
    RefusedError,
    RunFailedError,
    VerificationError,
)
from kernelkit.ledger import Record
from kernelkit.preflight import Problem, check
from kernelkit.remote import Run
from kernelkit.render import Kernel, write_kernel
from kernelkit.render import render as render_kernel
from kernelkit.verify import Verdict
from kernelkit.verify import verify as verify_folder

EMULATOR_START_SECONDS = 30  # it imports nbclient; a cold disk takes some seconds
EMULATOR_STOP_SECONDS = 20  # it ends its runs first

Event = Status | LogEntry | str
"""What a step tells while it goes on: a new state, a piece of the log, or words."""

Tell = Callable[[Event], None]


def quiet(event: Event) -> None:
    """A listener that hears nothing."""


@dataclass(frozen=True)
class Pulled:
    """A folder with everything that a run left, and what was found about it."""

    folder: Path
    state: State
    verdict: Verdict


def run(config: Config, *, deadline: float | None = None, tell: Tell = quiet) -> Pulled:
    """Push, watch, pull and verify: returns only when the results are here and proven.

    `deadline` is in seconds, for the watch.
    """
    record = push(config, tell=tell)
    watch(config, record, deadline=deadline, tell=tell)
    pulled = pull(config, record, tell=tell)
    require_success(pulled)
    return pulled


def rehearse(
    config: Config,
    inputs: Path | None,
    out: Path,
    *,
    deadline: float | None = None,
    mounts: str = "new",
    tell: Tell = quiet,
) -> Pulled:
    """`run` on a fresh local Kaggle, through the same client, into `out`/<slug>/v1.

    `inputs` is a folder of folders named by the slugs of the kernel's sources.
    """
    slug_folder = out / config.kernel.slug
    if slug_folder.exists():
        shutil.rmtree(slug_folder)
    with local_kaggle(inputs, mounts) as endpoint:
        tell(f"local Kaggle at {endpoint}")
        local = config.model_copy(update={"endpoint": endpoint})
        record = push(local, root=out, tell=tell)
        watch(local, record, deadline=deadline, tell=tell)
        pulled = pull(local, record, tell=tell)
    require_success(pulled)
    return pulled


def render(config: Config) -> Kernel:
    """The kernel as it would be pushed; nothing is written."""
    return render_kernel(read_bundle(config.project / config.package, config.entry), config)


def render_to(config: Config, folder: Path) -> Kernel:
    """Render into a folder that the official client can push as well."""
    kernel = render(config)
    write_kernel(kernel, folder)
    return kernel


def preflight(config: Config) -> list[Problem]:
    """Everything that stands against a push of the kernel as it is now."""
    return check(render(config))


def push(config: Config, *, root: Path | None = None, tell: Tell = quiet) -> Record:
    """Render, check, send once, read back, record under `root` (default: the project's runs/).

    Raises:
        PreflightError: with every problem; nothing was sent.
        RefusedError: Kaggle gave other than asked; the version runs and is recorded all the same.
    """
    kernel = render(config)
    require_no_problems(check(kernel))
    kaggle = connect(config.endpoint)
    tell(f"pushing {kernel.slug} as {kaggle.username} ({len(kernel.payload):,} B)")
    pushed = remote.push(kaggle, kernel)
    record = ledger.record_push(
        root or config.project / "runs",
        kernel.slug,
        pushed.run.version,
        {**asdict(pushed.run), "pushed": _now(), "profile": config.profile},
        kernel.manifest,
    )
    tell(f"{pushed.run.name} is pushed: {pushed.run.url}")
    if pushed.differences:
        raise RefusedError(
            "Kaggle gave other than was asked:\n" + "\n".join(pushed.differences),
            f"Version {pushed.run.version} runs all the same; mend the cause and push anew.",
        )
    return record


def watch(
    config: Config, record: Record, *, deadline: float | None = None, tell: Tell = quiet
) -> Status:
    """Follow a run to its end and return the state in which it ended."""
    last = Status(State.QUEUED)
    for event in remote.watch(_connect(config, record), _run(record), deadline=deadline):
        tell(event)
        if isinstance(event, Status):
            last = event
    return last


def status(config: Config, record: Record) -> Status:
    """Where a run is now."""
    run = _run(record)
    return _connect(config, record).status(run.owner, run.slug, run.version)


def logs(config: Config, record: Record) -> list[LogEntry]:
    """The log of a run, as far as Kaggle keeps it."""
    return remote.log(_connect(config, record), _run(record))


def pull(
    config: Config, record: Record, *, deadline: float | None = None, tell: Tell = quiet
) -> Pulled:
    """Bring home and judge what a run left; waits for its end. A complete folder stays as it is."""
    if record.complete:
        tell(f"{record.folder} is complete already")
        return Pulled(record.folder, State(record.run["state"]), verify_folder(record.folder))
    kaggle, run = _connect(config, record), _run(record)
    end = kaggle.status(run.owner, run.slug, run.version)
    if not end.state.finished:
        end = watch(config, record, deadline=deadline, tell=tell)
    started = time.monotonic()
    names, left_behind = remote.pull(kaggle, run, record.folder, tell)
    verdict = verify_folder(record.folder)
    ledger.record_end(
        record,
        {
            "run": asdict(run),
            "endpoint": run.endpoint,
            "kernelkit": kernelkit.__version__,
            "state": end.state,
            "failure": end.failure,
            "pushed": record.push.get("pushed"),
            "pulled": _now(),
            "pull_seconds": round(time.monotonic() - started, 3),
            "files": names,
            "left_behind": left_behind,
            "verified": verdict.verified,
            "verdict": asdict(verdict),
        },
    )
    return Pulled(record.folder, end.state, verdict)


def submit(config: Config, record: Record, message: str) -> tuple[int, str]:
    """Enter the submission of a verified run of the real competition; its number and an answer.

    Raises:
        VerificationError: the run is not complete, or not verified.
        ConfigError: there is no competition, or no csv among the outputs.
        RefusedError: the run was made elsewhere than where it would be submitted.
    """
    verdict = verify_folder(record.folder)
    if not record.complete or not verdict.verified:
        raise VerificationError(
            f"{record.folder} is not a complete and verified run", "Pull it first: kernelkit pull."
        )
    competitions = config.kernel.competition_sources
    tables = [name for name in config.outputs if name.endswith(".csv")]
    if len(competitions) != 1 or len(tables) != 1:
        raise ConfigError(
            "a submission needs exactly one competition source and one csv among the outputs"
        )
    kaggle = _connect(config, record)
    return kaggle.submit(competitions[0], record.folder / tables[0], message)


def find_record(config: Config, version: int | None = None) -> Record:
    """The record of a version pushed from this project, or of its latest."""
    return ledger.find(config.project / "runs", config.kernel.slug, version)


def require_no_problems(problems: list[Problem]) -> None:
    """Raise a PreflightError that names every problem, if there is one."""
    if problems:
        lines = [f"{p.subject}: {p.message}. {p.remedy}" for p in problems]
        raise PreflightError("\n".join(lines), "Nothing was sent.")


def require_success(pulled: Pulled) -> None:
    """Raise what a pulled run deserves, if it is not a verified success."""
    verdict = pulled.verdict
    if verdict.run_error is not None and not verdict.problems:
        raise RunFailedError(
            f"the run failed: {verdict.run_error}", f"Its log and manifest are in {pulled.folder}."
        )
    if pulled.state != State.COMPLETE:
        raise RunFailedError(
            f"Kaggle says {pulled.state}; and the folder: {'; '.join(verdict.problems)}",
            f"Its log is in {pulled.folder}.",
        )
    require_verified(verdict, pulled.folder)


def require_verified(verdict: Verdict, folder: Path) -> None:
    """Raise a VerificationError that names every problem, if there is one."""
    if verdict.problems:
        raise VerificationError(
            f"{folder} does not verify:\n" + "\n".join(verdict.problems),
            "Do not use these files; pull the version into a new folder.",
        )
    if verdict.run_error is not None:
        raise RunFailedError(f"the run in {folder} failed: {verdict.run_error}")


@contextmanager
def local_kaggle(inputs: Path | None, mounts: str = "new") -> Iterator[str]:
    """Start a local Kaggle of our own, give its address, and stop it with all its runs.

    It holds on to a pipe from here, so that it ends as well when this process is killed.
    """
    with tempfile.TemporaryDirectory(prefix="kernelkit-emulator-") as folder:
        ready = Path(folder, "ready.json")
        command = emulator_command(
            ["--port", "0", "--state", str(Path(folder, "state")), "--mounts", mounts]
            + ["--lifeline", "--ready-file", str(ready)]
            + (["--inputs", str(inputs)] if inputs else [])
        )
        with Path(folder, "emulator.log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.PIPE)
            try:
                yield _endpoint_of(process, ready, Path(log.name))
            finally:
                _stop(process)


def emulator_command(arguments: list[str]) -> list[str]:
    """How the local Kaggle is started: as a process of its own, which nobody imports."""
    return [sys.executable, "-m", "kernelkit.emulator", *arguments]


def doctor(config: Config) -> list[tuple[str, bool | None, str]]:
    """Read-only checks of this machine, the account and the project: (what, good?, words)."""
    findings: list[tuple[str, bool | None, str]] = []

    def look(what: str, question: Callable[[], str]) -> None:
        try:
            findings.append((what, True, question()))
        except KernelkitError as fault:
            findings.append((what, False, f"{fault} {fault.next_step}".strip()))

    look("project", lambda: f"{config.package}, {len(render(config).payload):,} B as it is sent")
    look("preflight", lambda: _no_problems(config))
    look("disk", lambda: _disk(config.project))
    try:
        kaggle = connect(config.endpoint)
    except KernelkitError as fault:
        findings.append(("credentials", False, f"{fault} {fault.next_step}".strip()))
        findings.append(("quota", None, "not asked: no credentials"))
        return findings
    findings.append(("credentials", True, f"{kaggle.username} ({kaggle.origin})"))
    look("quota", lambda: _quota(kaggle))
    return findings


def _no_problems(config: Config) -> str:
    require_no_problems(preflight(config))
    return "no problems"


def _quota(kaggle: Kaggle) -> str:
    quota = kaggle.quota()
    return f"{quota.used:.1f} of {quota.allowed:.1f} GPU hours used"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        raise MachineError(f"{free >> 20} MiB free", "Make room for the outputs.")
    return f"{free >> 30} GiB free"


def _connect(config: Config, record: Record) -> Kaggle:
    """Connect where the run is: a run of one Kaggle means nothing to another."""
    kaggle = connect(config.endpoint)
    if kaggle.endpoint != record.push["endpoint"]:
        raise RefusedError(
            f"{record.folder} is a run of {record.push['endpoint']}, not of {kaggle.endpoint}",
            "Give its --endpoint, or name another run.",
        )
    return kaggle


def _run(record: Record) -> Run:
    push = record.push
    names = Run.__dataclass_fields__
    try:
        return Run(**{name: push[name] for name in names})
    except KeyError as fault:
        raise MachineError(f"{record.folder}/push.json lacks {fault}") from None


def _endpoint_of(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + EMULATOR_START_SECONDS
    while time.monotonic() < deadline:
        if ready.is_file():
            facts: Mapping[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
            return str(facts["endpoint"])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise MachineError(
        f"the local Kaggle did not start: {log.read_text(encoding='utf-8').strip()[-2000:]}",
        "Is kernelkit installed with its extra: pip install 'kernelkit[emulator]'?",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.terminate()
    try:
        process.wait(EMULATOR_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
