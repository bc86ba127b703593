"""The table of contents: `run` and each of its steps, alone and together.

    render → preflight → push → watch → pull → verify

A step takes what it needs, a `Config`, a connection or the record of a run, and says what it does
through `tell`; none of them prints.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import kernelkit
from kernelkit import image, ledger, outputs, remote
from kernelkit import sync as syncing
from kernelkit.bundle import read_bundle
from kernelkit.client import (
    LOCAL_CREDENTIALS,
    Competition,
    Credentials,
    Kaggle,
    LogEntry,
    State,
    Status,
    connect,
)
from kernelkit.config import Config
from kernelkit.diagnose import Diagnosis, diagnose
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
from kernelkit.outputs import EVERYTHING, Brought, Progress, Selection
from kernelkit.preflight import Problem, check
from kernelkit.preflight import advise as preflight_advice
from kernelkit.prove import DEADLINE_SECONDS, Proof, without_accelerator
from kernelkit.prove import prove as prove_kernel
from kernelkit.remote import Run
from kernelkit.render import Kernel, write_kernel
from kernelkit.render import render as render_kernel
from kernelkit.sync import Plan
from kernelkit.unpack import unpack as unpack_zip
from kernelkit.verify import Verdict, unpacked_name
from kernelkit.verify import verify as verify_folder

EMULATOR_START_SECONDS = 30  # it imports nbclient; a cold disk takes some seconds
EMULATOR_STOP_SECONDS = 20  # it ends its runs first

Event = Status | LogEntry | Progress | str
"""What a step tells while it goes on: a new state, a piece of the log, bytes, or words."""

Tell = Callable[[Event], None]


def quiet(event: Event) -> None:
    """A listener that hears nothing."""


@dataclass(frozen=True)
class Pulled:
    """A folder with everything that a run left, and what was found about it."""

    folder: Path
    state: State
    verdict: Verdict

    left_behind: Mapping[str, str] = field(default_factory=dict)
    """Files that stay on Kaggle, for their names have no place here, and why."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """Files that Kaggle lists and does not give, and what it gave instead."""

    partial: bool = False
    """Whether a part of the outputs was asked for, and nothing is said of the others."""

    @property
    def about(self) -> dict[str, Any]:
        """All of it for a script."""
        verdict = {**asdict(self.verdict), "verified": self.verdict.verified}
        rest = {
            "left_behind": dict(self.left_behind),
            "refused": dict(self.refused),
            "partial": self.partial,
        }
        return {"folder": str(self.folder), "state": self.state, **verdict, **rest}


def run(
    config: Config, kaggle: Kaggle, *, deadline: float | None = None, tell: Tell = quiet
) -> Pulled:
    """Push, watch, pull and verify: returns only when the results are here and proven.

    `deadline` is in seconds, for the watch.
    """
    return _run(config, kaggle, config.project / "runs", deadline, tell)


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

    Raises:
        ConfigError: `out` is the folder of real runs, or holds something else than a rehearsal.
    """
    require_no_problems(preflight(render(config)))  # a slip must not cost the rehearsal before
    with _alone(out):
        _empty_rehearsal(out / config.kernel.slug, config.project / "runs")
        with local_kaggle(inputs, mounts) as endpoint:
            tell(f"local Kaggle at {endpoint}")
            user = config.kernel.owner or LOCAL_CREDENTIALS[0]
            credentials = Credentials(user, "the rehearsal", key=LOCAL_CREDENTIALS[1])
            return _run(config, Kaggle(credentials, endpoint), out, deadline, tell)


def _run(config: Config, kaggle: Kaggle, root: Path, deadline: float | None, tell: Tell) -> Pulled:
    record = push(config, kaggle, root, tell=tell)
    watch(kaggle, record, deadline=deadline, tell=tell)
    pulled = pull(kaggle, record, tell=tell)
    require_success(pulled, config.project)
    return pulled


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two rehearsals in one folder would take each other's place."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as fault:
        raise MachineError(f"{out} cannot be written: {fault.strerror}") from fault
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MachineError(
                f"another rehearsal is using {out}", "Wait for it, or name another folder: --out."
            ) from None
        yield


def _empty_rehearsal(folder: Path, runs: Path) -> None:
    """Remove the rehearsal before this one, and nothing that is not one."""
    if folder.resolve().is_relative_to(runs.resolve()):
        raise ConfigError(f"--out {folder.parent}: real runs lie there", "Name another folder.")
    if not folder.exists():
        return
    strange = [path.name for path in folder.iterdir() if not (path / "push.json").is_file()]
    if strange or folder.is_symlink():
        raise ConfigError(
            f"{folder} holds what no rehearsal has left ({', '.join(sorted(strange)) or 'a link'})",
            "Move it away, or name another folder with --out.",
        )
    try:
        shutil.rmtree(folder)
    except OSError as fault:
        raise MachineError(f"{folder} cannot be emptied: {fault.strerror}") from fault


def connect_to(config: Config) -> Kaggle:
    """The Kaggle of this configuration, with the credentials that are found."""
    return connect(config.endpoint, local_user=config.kernel.owner)


def render(config: Config) -> Kernel:
    """The kernel as it would be pushed; nothing is written."""
    return render_kernel(read_bundle(config), config)


def render_to(config: Config, folder: Path) -> Kernel:
    """Render into a folder that the official client can push as well."""
    kernel = render(config)
    write_kernel(kernel, folder)
    return kernel


def preflight(kernel: Kernel) -> list[Problem]:
    """Everything that stands against a push of the kernel."""
    return check(kernel)


def advise(kernel: Kernel) -> list[str]:
    """What a person should know before a push, and what stops nothing."""
    return preflight_advice(kernel)


def compare_with_image(kernel: Kernel) -> list[image.Availability]:
    """How everything that is imported from elsewhere stands to Kaggle's image."""
    found = {**kernel.bundle.optional, **kernel.bundle.third_party}
    return image.compare(dict(sorted(found.items())), kernel.manifest["pip"])


def prove(
    config: Config,
    arguments: Sequence[str] = (),
    *,
    python: str | None = None,
    deadline: float = DEADLINE_SECONDS,
    tell: Tell = quiet,
) -> Proof:
    """Run the project's own tests with the package and with what the notebook writes.

    `arguments` are pytest's; `python` runs the tests (default: this interpreter); `deadline` is in
    seconds, for the notebook and for each of the two test runs.

    Raises:
        VerificationError: a test ends otherwise, or another copy of the package was tested.
        ConfigError: no tests, or none that passes with the package itself.
    """
    kernel = render(without_accelerator(config))
    return prove_kernel(
        kernel, config.project, arguments, python=python, deadline=deadline, tell=tell
    )


def push(config: Config, kaggle: Kaggle, root: Path | None = None, *, tell: Tell = quiet) -> Record:
    """Render, check, send once, record under `root` (default: the project's runs/), read back.

    Raises:
        PreflightError: with every problem; nothing was sent.
        RefusedError: Kaggle gave other than asked; the version runs and is recorded all the same.
        UnreachableError: the push was taken and recorded, and could not be read back.
    """
    root = root or config.project / "runs"
    kernel = render(config)
    require_no_problems(check(kernel))
    ledger.require_writable(root)
    for note in advise(kernel):
        tell(f"note: {note}")
    tell(f"pushing {kernel.slug} as {kaggle.credentials.username} ({len(kernel.payload):,} B)")
    pushed = remote.push(kaggle, kernel)
    run = pushed.run
    address = {**asdict(run), "pushed": _now(), "profile": config.profile}
    record = ledger.record_push(root, run.slug, run.version, address, kernel.manifest)
    tell(f"{run.name} is pushed: {run.url}")
    differences = [*_read_back(kaggle, kernel, run, address), *pushed.dropped]
    if differences:
        raise RefusedError(
            "Kaggle gave other than was asked:\n" + "\n".join(differences),
            f"Version {run.version} runs all the same; mend the cause and push anew.",
            {**address, "differences": differences},
        )
    return record


def _read_back(kaggle: Kaggle, kernel: Kernel, run: Run, address: Mapping[str, Any]) -> list[str]:
    try:
        return remote.read_back(kaggle, kernel, run)
    except KernelkitError as fault:
        raise type(fault)(
            f"{run.name} is pushed and runs, but what Kaggle made of it could not be read back: "
            f"{fault}",
            "Do not push again; follow it with `kernelkit watch`.",
            address,
        ) from fault


def watch(
    kaggle: Kaggle, record: Record, *, deadline: float | None = None, tell: Tell = quiet
) -> Status:
    """Follow a run to its end and return the state in which it ended."""
    last = Status(State.QUEUED)
    for event in remote.watch(kaggle, _address(kaggle, record), deadline=deadline):
        tell(event)
        if isinstance(event, Status):
            last = event
    return last


def status(kaggle: Kaggle, record: Record) -> Status:
    """Where a run is now."""
    age = time.time() - (record.folder / "push.json").stat().st_mtime
    fresh = age < remote.GRACE_SECONDS
    return remote.status(kaggle, _address(kaggle, record), within_grace=fresh)


def logs(kaggle: Kaggle, record: Record) -> list[LogEntry]:
    """The log of a run, as far as Kaggle keeps it."""
    return remote.log(kaggle, _address(kaggle, record))


def pull(
    kaggle: Kaggle,
    record: Record,
    selection: Selection = EVERYTHING,
    *,
    deadline: float | None = None,
    tell: Tell = quiet,
) -> Pulled:
    """Bring home and judge what a run left; waits for its end. A complete folder stays as it is.

    A selection of the outputs is judged alone, and does not make the folder complete.

    Raises:
        ConfigError: the run left nothing of the names that were asked for.
        UnreachableError, CapacityError: not everything came; the next pull goes on there.
        MachineError: the disk is full, or the folder cannot be written.
    """
    run = _address(kaggle, record)
    if record.complete:
        return _as_it_is(record, tell)
    end = status(kaggle, record)
    if not end.state.finished:
        end = watch(kaggle, record, deadline=deadline, tell=tell)
    with outputs.alone(record.folder, tell):
        if record.complete:  # by the pull that was waited for
            return _as_it_is(record, tell)
        return _pull(kaggle, record, run, end, selection, tell)


def _as_it_is(record: Record, tell: Tell) -> Pulled:
    tell(f"{record.folder} is complete already")
    return Pulled(record.folder, _recorded_state(record), verify_folder(record.folder))


def _pull(
    kaggle: Kaggle, record: Record, run: Run, end: Status, selection: Selection, tell: Tell
) -> Pulled:
    started = time.monotonic()
    declared = [str(name) for name in record.bundle.get("outputs", [])]
    brought = outputs.pull(kaggle, run, record.folder, declared, selection, tell=tell)
    _require_known(selection, brought, declared, end)
    names = None if selection.everything else [name for name in declared if selection.takes(name)]
    missing = {**brought.left_behind, **brought.refused}
    verdict = verify_folder(record.folder, names, missing)
    account = {
        "run": asdict(run),
        "endpoint": run.endpoint,
        "kernelkit": kernelkit.__version__,
        "state": end.state,
        "failure": end.failure,
        "pushed": record.push.get("pushed"),
        "pulled": _now(),
        "pull_seconds": round(time.monotonic() - started, 3),
        "files": brought.names,
        "left_behind": brought.left_behind,
        "verified": verdict.verified,
        "verdict": asdict(verdict),
    }
    # A complete run that does not verify may be a bad download: the next pull tries anew.
    sound = not verdict.problems or end.state != State.COMPLETE
    if sound and selection.everything and not brought.refused:
        ledger.record_end(record, account)
    partial = not selection.everything
    return Pulled(record.folder, end.state, verdict, brought.left_behind, brought.refused, partial)


def unpack(pulled: Pulled, *, tell: Tell = quiet) -> list[Path]:
    """Unpack each zip that its run's manifest vouches for into a folder beside it.

    Raises:
        VerificationError: a zip does what an honest one does not; nothing of it is kept.
        MachineError: the disk is full, or cannot be written.
    """
    zips = [str(output["path"]) for output in pulled.verdict.outputs]
    folders = []
    for name in (name for name in zips if name.endswith(".zip")):
        archive, folder = pulled.folder / name, pulled.folder / unpacked_name(name)
        if not archive.is_file():
            continue  # not among the outputs that were asked for
        if folder.exists():
            tell(f"{folder} is there already")
        else:
            unpack_zip(archive, folder)
            tell(f"unpacked {folder}")
        folders.append(folder)
    return folders


def _require_known(
    selection: Selection, brought: Brought, declared: Sequence[str], end: Status
) -> None:
    """Of a run that came to its end: each name, and any pattern, must mean something."""
    missing = {**brought.left_behind, **brought.refused}
    known = {*brought.names, *brought.left_out, *missing, *declared}
    unknown = [name for name in selection.names if name not in known]
    unknown += [p for p in selection.patterns if not any(fnmatchcase(name, p) for name in known)]
    if unknown and end.state == State.COMPLETE:
        near = difflib.get_close_matches(unknown[0], known, 3) or sorted(known)[:10]
        raise ConfigError(
            f"the run left no {', '.join(unknown)}", f"Is it one of these: {', '.join(near)}?"
        )


def diagnose_folder(folder: Path, project: Path | None = None) -> Diagnosis | None:
    """Why the run that left a pulled folder failed; None where nothing tells of a failure.

    Raises:
        ConfigError: the folder holds no log.
        MachineError: the log cannot be read.
    """
    bundle, run = _document(folder / "bundle.json"), _document(folder / "run.json")
    logs = [folder / f"{bundle.get('slug')}.log", *sorted(folder.glob("*.log"))]
    log = next((path for path in logs if path.is_file()), None)
    if log is None:
        raise ConfigError(f"{folder} holds no log", "Bring it home first: `kernelkit pull`.")
    manifest = _document(folder / "run-manifest.json")
    state = str(run.get("state", State.COMPLETE))
    if run and state == State.COMPLETE and manifest.get("status") != "failed":
        return None
    failed = state != State.COMPLETE
    failure = str(run.get("failure") or f"Kaggle says {state}") if failed else ""
    return diagnose(
        _read_log(log), manifest=manifest, bundle=bundle, project=project, failure=failure
    )


def diagnose_log(path: Path, project: Path | None = None) -> Diagnosis | None:
    """The same by a log file alone: Kaggle's JSON, or its text."""
    return diagnose(_read_log(path), bundle=_document(path.parent / "bundle.json"), project=project)


def diagnose_end(
    kaggle: Kaggle, record: Record, end: Status, project: Path | None = None
) -> Diagnosis | None:
    """The same for a run that has just ended on Kaggle, as far as its log can be had."""
    try:
        text, bundle = "".join(entry.text for entry in logs(kaggle, record)), record.bundle
    except KernelkitError:  # the run's failure is what matters, not that its log is out of reach
        text, bundle = "", {}
    return diagnose(
        text, bundle=bundle, project=project, failure=end.failure or f"Kaggle says {end.state}"
    )


def submit(kaggle: Kaggle, record: Record, message: str) -> tuple[int, str]:
    """Enter the submission of a verified run; its number and Kaggle's words.

    Raises:
        VerificationError: the run is not complete, or not verified.
        ConfigError: the run had no one competition, or left no one csv.
        RefusedError: the run was made elsewhere than where it would be submitted.
    """
    _address(kaggle, record)
    verdict = verify_folder(record.folder)
    good = record.complete and verdict.verified and _recorded_state(record) == State.COMPLETE
    if not good:
        raise VerificationError(
            f"{record.folder} is not a complete and verified run", "Pull it first: kernelkit pull."
        )
    competitions = record.bundle.get("kernel", {}).get("competition_sources", [])
    tables = [out["path"] for out in verdict.outputs if str(out["path"]).endswith(".csv")]
    if len(competitions) != 1 or len(tables) != 1:
        raise ConfigError(
            "a submission needs exactly one competition source and one csv among the outputs"
        )
    return Competition(kaggle, competitions[0]).submit(record.folder / tables[0], message)


def plan_sync(config: Config, notebook: Path) -> Plan:
    """What an edited notebook means for the package; nothing is written.

    Raises:
        ConfigError: the file is no notebook that was rendered from this package.
    """
    return syncing.plan(syncing.read_notebook(notebook), config)


def sync(plan: Plan, *, force: bool = False, dry_run: bool = False) -> None:
    """Write the changed files into the package, all or none; a dry run refuses the same.

    Raises:
        ConfigError: the notebook writes to a path that is no file of the package.
        VerificationError: a file was changed on disk as well; `force` lets the notebook win.
    """
    if dry_run:
        syncing.require_applicable(plan, force=force)
    else:
        syncing.apply(plan, force=force)


def find_record(config: Config, name: str = "") -> Record:
    """The record of a run of this project by its name (see `ledger.Name`), or of its latest.

    Raises:
        ConfigError: the name is none, or nothing was pushed from here by it.
    """
    wanted = ledger.parse_name(name) if name else ledger.Name()
    return ledger.find(
        config.project / "runs", wanted.slug or config.kernel.slug, wanted.version, wanted.owner
    )


def require_no_problems(problems: list[Problem]) -> None:
    """Raise a PreflightError that names every problem, if there is one."""
    if problems:
        lines = [_as_line(problem) for problem in problems]
        about = {"problems": [asdict(problem) for problem in problems]}
        raise PreflightError("\n".join(lines), "Nothing was sent.", about)


def _as_line(problem: Problem) -> str:
    after_table = problem.message.endswith("\n")
    return f"{problem.subject}: {problem.message}{'' if after_table else '. '}{problem.remedy}"


def require_success(pulled: Pulled, project: Path | None = None) -> None:
    """Raise what a pulled run deserves, if it is not a verified success.

    `project` is the folder against whose files a failure is diagnosed.
    """
    verdict, about = pulled.verdict, pulled.about
    failed = verdict.run_error is not None and not verdict.problems
    if not failed and pulled.state == State.COMPLETE:
        require_verified(verdict, pulled.folder, about)
        _require_given(pulled)
        return
    try:
        diagnosis = diagnose_folder(pulled.folder, project)
    except KernelkitError:  # no log: the failure itself is the news
        diagnosis = None
    words = (
        f"the run failed: {verdict.run_error}"
        if failed
        else f"Kaggle says {pulled.state}; and the folder: {'; '.join(verdict.problems) or 'fine'}"
    )
    if diagnosis is None:
        raise RunFailedError(words, f"Its log is in {pulled.folder}.", about)
    words = f"the run failed: {diagnosis.error}" if failed else f"{words}\n{diagnosis.headline}"
    raise RunFailedError(
        f"{words}\n{diagnosis.summary}",
        f"{diagnosis.next_step} All of it: kernelkit diagnose {pulled.folder}",
        {**about, "diagnosis": asdict(diagnosis)},
    )


def _require_given(pulled: Pulled) -> None:
    """What is declared is verified; what lies beside it must have come as well."""
    if pulled.refused:
        lines = [f"{name}: {reason}" for name, reason in pulled.refused.items()]
        raise RefusedError(
            "the declared outputs are verified, and Kaggle does not give what it lists beside "
            "them:\n" + "\n".join(lines),
            "Pull again; --only and --file bring a part.",
            pulled.about,
        )


def require_verified(verdict: Verdict, folder: Path, about: Mapping[str, Any]) -> None:
    """Raise a VerificationError that names every problem, if there is one."""
    if verdict.problems:
        raise VerificationError(
            f"{folder} does not verify:\n" + "\n".join(verdict.problems),
            "Do not use these files. Remove run.json from there, if there is one, and pull again.",
            about,
        )
    if verdict.run_error is not None:
        raise RunFailedError(
            f"the run in {folder} failed: {verdict.run_error}", "The log in it says more.", about
        )


@contextmanager
def local_kaggle(inputs: Path | None, mounts: str = "new") -> Iterator[str]:
    """Start a local Kaggle of our own, give its address, and stop it with all its runs.

    It holds on to a pipe from here, so that it ends as well when this process is killed.
    """
    with tempfile.TemporaryDirectory(prefix="kernelkit-emulator-") as folder:
        ready = Path(folder, "ready.json")
        command = emulator_command(
            ["--port", "0", "--mounts", mounts]
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


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: good, bad (then `exit_code` is not 0), or unknown."""

    subject: str
    good: bool | None
    words: str
    exit_code: int = 0


def doctor(config: Config) -> list[Finding]:
    """Read-only checks of this machine, the project, the account and its quota."""
    questions: list[tuple[str, Callable[[], str]]] = [
        (
            "project",
            lambda: f"{', '.join(config.package)}, {len(render(config).payload):,} B as it is sent",
        ),
        ("preflight", lambda: _no_problems(config)),
        ("disk", lambda: _disk(config.project)),
    ]
    try:
        kaggle = connect_to(config)
    except KernelkitError as fault:
        account = [_bad("credentials", fault), Finding("quota", None, "not asked: no credentials")]
        return [*(_answer(*question) for question in questions), *account]
    questions += [
        ("credentials", lambda: f"{kaggle.credentials.username} ({kaggle.credentials.origin})"),
        ("quota", lambda: _quota(kaggle)),
    ]
    return [_answer(*question) for question in questions]


def _answer(subject: str, question: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, question())
    except KernelkitError as fault:
        return _bad(subject, fault)


def _bad(subject: str, fault: KernelkitError) -> Finding:
    return Finding(subject, False, f"{fault} {fault.next_step}".strip(), fault.exit_code)


def _no_problems(config: Config) -> str:
    require_no_problems(preflight(render(config)))
    return "no problems"


def _quota(kaggle: Kaggle) -> str:
    quota = kaggle.quota()
    return f"{quota.used:.1f} of {quota.allowed:.1f} GPU hours used"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        raise MachineError(f"{free >> 20} MiB free", "Make room for the outputs.")
    return f"{free >> 30} GiB free"


def _document(path: Path) -> Mapping[str, Any]:
    """A JSON object, empty where there is none: a failed run may have left anything."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_log(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as fault:
        raise MachineError(f"{path} cannot be read: {fault.strerror}") from fault


def _address(kaggle: Kaggle, record: Record) -> Run:
    """Where a run is; a run of one Kaggle means nothing to another."""
    push = record.push
    if kaggle.endpoint != push["endpoint"]:
        raise RefusedError(
            f"{record.folder} is a run of {push['endpoint']}, not of {kaggle.endpoint}",
            "Give its --endpoint, or name another run.",
        )
    return Run(**{name: push[name] for name in Run.__dataclass_fields__})


def _recorded_state(record: Record) -> State:
    try:
        return State(record.run["state"])
    except (KeyError, ValueError) as fault:
        raise MachineError(f"{record.folder}/run.json names no state: {fault}") from fault


def _endpoint_of(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + EMULATOR_START_SECONDS
    while time.monotonic() < deadline:
        if ready.is_file():
            facts: Mapping[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
            return str(facts["endpoint"])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    said = log.read_text(encoding="utf-8").strip()[-2000:]
    raise MachineError(f"the local Kaggle did not start: {said or 'it said nothing'}")


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
