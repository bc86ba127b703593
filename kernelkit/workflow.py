"""The table of contents: `run` and each of its steps, alone and together.

    render → preflight → push → watch → pull → verify

A step takes what it needs, a `Config`, a connection or the record of a run, and says what it does
through `tell`; none of them prints.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import math
import os
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
from kernelkit.bundle import image
from kernelkit.bundle.bundle import read_bundle
from kernelkit.bundle.secrets import own_credentials
from kernelkit.config import Config
from kernelkit.diagnosis.diagnose import Diagnosis, diagnose
from kernelkit.errors import (
    CapacityError,
    ConfigError,
    KernelkitError,
    LocalError,
    NotFoundError,
    PreflightError,
    RefusedError,
    RunFailedError,
    VerificationError,
)
from kernelkit.kaggle import (
    LOCAL_CREDENTIALS,
    Competition,
    Credentials,
    Kaggle,
    KernelInfo,
    LogEntry,
    Quota,
    Scoring,
    State,
    Status,
    connect,
)
from kernelkit.notebook import edits as syncing
from kernelkit.notebook.edits import SyncPlan
from kernelkit.notebook.preflight import Problem, check
from kernelkit.notebook.preflight import advise as preflight_advice
from kernelkit.notebook.reader import embedded_manifest, read_cells
from kernelkit.notebook.render import Kernel, write_kernel
from kernelkit.notebook.render import render as render_kernel
from kernelkit.runs import download as outputs
from kernelkit.runs import push as pushing
from kernelkit.runs import store as ledger
from kernelkit.runs import watch as remote
from kernelkit.runs.download import EVERYTHING, DownloadResult, Progress, Selection
from kernelkit.runs.push import Outcome
from kernelkit.runs.store import Record
from kernelkit.runs.submit import PIXELS
from kernelkit.runs.submit import check as check_submission
from kernelkit.runs.unpack import unpack as unpack_zip
from kernelkit.runs.verify import Verdict, unpacked_name
from kernelkit.runs.verify import verify as verify_folder
from kernelkit.runs.watch import RequestedHardware, Run
from kernelkit.testing.prove import DEADLINE_SECONDS, Proof, without_accelerator
from kernelkit.testing.prove import prove as prove_kernel

EMULATOR_START_SECONDS = 30  # it imports nbclient; a cold disk takes some seconds
EMULATOR_STOP_SECONDS = 20  # it ends its runs first

Event = Status | LogEntry | Quota | Progress | str
"""What a step tells: a new state, a piece of the log, the quota, bytes that came, or words."""

OnEvent = Callable[[Event], None]


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
    def details(self) -> dict[str, Any]:
        """All of it for a script."""
        verdict = {**asdict(self.verdict), "verified": self.verdict.verified}
        rest = {
            "left_behind": dict(self.left_behind),
            "refused": dict(self.refused),
            "partial": self.partial,
        }
        return {"folder": str(self.folder), "state": self.state, **verdict, **rest}


def run(
    config: Config,
    kaggle: Kaggle,
    *,
    again: bool = False,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = quiet,
) -> Pulled:
    """Push, watch, pull and verify: returns only when the results are here and proven.

    `again` and `wait` are those of `push`; `deadline` is in seconds, for the watch.
    """
    root = config.project / "runs"
    return _run(config, kaggle, root, deadline, on_event, again=again, wait=wait)


def rehearse(
    config: Config,
    inputs: Path | None,
    out: Path,
    *,
    deadline: float | None = None,
    mounts: str = "new",
    on_event: OnEvent = quiet,
) -> Pulled:
    """`run` on a fresh local Kaggle, through the same client, into `out`/<slug>/v1.

    `inputs` is a folder of folders named by the slugs of the kernel's sources.

    Raises:
        ConfigError: `out` is the folder of real runs, or holds something else than a rehearsal.
    """
    require_no_problems(
        preflight(render(config), config.project)
    )  # a slip must not cost the rehearsal before
    with _alone(out):
        _empty_rehearsal(out / config.kernel.slug, config.project / "runs")
        with local_kaggle(inputs, mounts) as endpoint:
            on_event(f"local Kaggle at {endpoint}")
            user = config.kernel.owner or LOCAL_CREDENTIALS[0]
            credentials = Credentials(user, "the rehearsal", key=LOCAL_CREDENTIALS[1])
            return _run(config, Kaggle(credentials, endpoint), out, deadline, on_event)


def _run(
    config: Config,
    kaggle: Kaggle,
    root: Path,
    deadline: float | None,
    on_event: OnEvent,
    *,
    again: bool = False,
    wait: bool = False,
) -> Pulled:
    started = time.monotonic()
    record, outcome = push(
        config, kaggle, root, again=again, wait=wait, deadline=deadline, on_event=on_event
    )
    if deadline is not None:
        deadline = max(1.0, deadline - (time.monotonic() - started))
    if outcome != Outcome.REUSED:
        watch(kaggle, record, deadline=deadline, on_event=on_event)
    pulled = pull(kaggle, record, on_event=on_event)
    require_success(pulled, config.project)
    return pulled


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two rehearsals in one folder would take each other's place."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise LocalError(f"{out} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LocalError(
                f"another rehearsal is using {out}", "Wait for it, or name another folder: --out."
            ) from None
        yield


def _empty_rehearsal(folder: Path, runs: Path) -> None:
    """Remove the rehearsal before this one, and nothing that is not one."""
    if folder.resolve().is_relative_to(runs.resolve()):
        raise ConfigError(f"--out {folder.parent}: real runs lie there", "Name another folder.")
    if not folder.exists():
        return
    strange = [
        path.name
        for path in folder.iterdir()
        if not (path / "push.json").is_file() and path.name != ledger.PUSH_LOCK
    ]
    if strange or folder.is_symlink():
        raise ConfigError(
            f"{folder} holds what no rehearsal has left ({', '.join(sorted(strange)) or 'a link'})",
            "Move it away, or name another folder with --out.",
        )
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise LocalError(f"{folder} cannot be emptied: {error.strerror}") from error


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


def preflight(kernel: Kernel, project: Path) -> list[Problem]:
    """Everything that stands against a push of the kernel, this machine's credentials in it too."""
    return check(kernel, own_credentials(os.environ, Path.home(), project))


def advise(kernel: Kernel) -> list[str]:
    """What a person should know before a push, and what stops nothing."""
    return preflight_advice(kernel)


def compare_with_image(kernel: Kernel) -> list[image.Availability]:
    """How everything that is imported from elsewhere stands to Kaggle's image."""
    found = {**kernel.bundle.optional, **kernel.bundle.third_party}
    return image.compare(dict(sorted(found.items())), kernel.manifest.pip, kernel.image)


def prove(
    config: Config,
    arguments: Sequence[str] = (),
    *,
    python: str | None = None,
    deadline: float = DEADLINE_SECONDS,
    on_event: OnEvent = quiet,
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
        kernel, config.project, arguments, python=python, deadline=deadline, on_event=on_event
    )


def push(
    config: Config,
    kaggle: Kaggle,
    root: Path | None = None,
    *,
    again: bool = False,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = quiet,
) -> tuple[Record, Outcome]:
    """Render, check, send once, record under `root` (default: the project's runs/), read back.

    What is on Kaggle already, by its digest, is not pushed again: a complete and verified run is
    used as it is, one that goes on is followed; `again` pushes all the same. `wait` waits for a
    free session, up to `deadline` seconds.

    Raises:
        PreflightError: with every problem; nothing was sent.
        CapacityError: no session, no quota, or too many calls; nothing was sent.
        RefusedError: Kaggle gave other than asked; the version runs and is recorded all the same.
        UnreachableError: the push was taken and recorded, and could not be read back.
    """
    root = root or config.project / "runs"
    kernel = render(config)
    require_no_problems(preflight(kernel, config.project))
    for note in advise(kernel):
        on_event(f"note: {note}")
    pushing.check_owner(kaggle, kernel)
    with ledger.pushing(root, kernel.slug, on_event):
        given = pushing.current(kaggle, kernel.slug)
        if not again and (found := _same(kaggle, kernel, root, given, on_event)):
            return found
        pushing.check_remote(kaggle, kernel, config.gpu_reserve_hours, on_event)
        on_event(
            f"pushing {kernel.slug} as {kaggle.credentials.username} ({len(kernel.payload):,} B)"
        )
        known = max([given.version or 0, *_not_shown_yet(kaggle, kernel, root)]) if given else 0
        pushed = pushing.send(
            kaggle, kernel, known, wait=wait, deadline=deadline, on_event=on_event
        )
        record = _record(root, kernel, pushed.run, pushed.outcome, config.profile, pushed=_now())
    on_event(f"{pushed.run.name} is pushed: {pushed.run.url}")
    _require_as_asked(kaggle, kernel, pushed.run, record, pushed.dropped)
    if unconfirmed := [name for name in UNCONFIRMED if getattr(kernel.manifest.kernel, name)]:
        on_event(
            f"not yet confirmed: {', '.join(unconfirmed)} (Kaggle tells once the run has started)"
        )
    return record, pushed.outcome


UNCONFIRMED = ("machine_shape", "docker_image")  # until `watch` sees them


def _same(
    kaggle: Kaggle, kernel: Kernel, root: Path, given: KernelInfo | None, on_event: OnEvent
) -> tuple[Record, Outcome] | None:
    """The newest run of the very same digest that has not failed, if there is one.

    Raises:
        RefusedError: it has other than was asked for: it is not what an own push would be.
    """
    records = list(_of_account(kaggle, root, kernel.slug))
    if found := _from_elsewhere(kaggle, kernel, root, given, records, on_event):
        return found
    unseen = [kind for kind in INPUT_KINDS if getattr(kernel.metadata, kind)]
    beside = f" (what is in {' and '.join(unseen)} now is not compared)" if unseen else ""
    for record in reversed(records):
        if record.push["digest"] != kernel.digest:
            continue
        name = f"{kernel.slug} v{record.version}"
        if record.complete:
            done = _recorded_state(record) == State.COMPLETE
            if done and verify_folder(record.folder).verified:
                _require_no_differences(record)
                on_event(
                    f"{name} is this very kernel, complete and verified: nothing is pushed{beside}"
                )
                return record, Outcome.REUSED
            continue
        try:
            now = status(kaggle, record)
        except NotFoundError:
            if given is not None and (given.version or 0) >= record.version:
                raise
            on_event(f"{name} is not on Kaggle any more")  # deleted, or a fresh local Kaggle
            continue
        if not _failed(now):
            _require_no_differences(record)
            _require_as_asked(kaggle, kernel, _address(kaggle, record), record)
            on_event(f"{name} is this very kernel, and was pushed already")
            return record, Outcome.REATTACHED
    return None


INPUT_KINDS = ("dataset_sources", "kernel_sources", "model_sources")  # which change of themselves


def _from_elsewhere(
    kaggle: Kaggle,
    kernel: Kernel,
    root: Path,
    given: KernelInfo | None,
    records: Sequence[Record],
    on_event: OnEvent,
) -> tuple[Record, Outcome] | None:
    """The current version, where it is the very same and not known here, and has not failed."""
    if given is None or not given.version or kernel.digest not in given.source:
        return None
    if given.version in {record.version for record in records}:
        return None
    run = pushing.run_of(kaggle, kernel, given.version)
    if _failed(remote.status(kaggle, run, fresh=False)):
        return None
    on_event(f"{run.name} is this very kernel, pushed from elsewhere: nothing is pushed")
    record = _record(root, kernel, run, Outcome.ADOPTED, None, pushed=None)
    _require_as_asked(kaggle, kernel, run, record)
    return record, Outcome.ADOPTED


def _not_shown_yet(kaggle: Kaggle, kernel: Kernel, root: Path) -> Iterator[int]:
    """Versions of this digest that were pushed just now: the kernel may be told without them.

    No older ones: a kernel that is deleted and made anew counts from 1 again.
    """
    for record in _of_account(kaggle, root, kernel.slug):
        same = record.push["digest"] == kernel.digest
        if same and _age(record) < kaggle.timeouts.grace:
            yield record.version


def _failed(end: Status) -> bool:
    return end.state.finished and end.state != State.COMPLETE


def _of_account(kaggle: Kaggle, root: Path, slug: str) -> Iterator[Record]:
    """The recorded versions that this account has pushed to this Kaggle."""
    for record in ledger.records(root, slug):
        push = record.push
        owner = str(push["owner"]).lower()
        if push["endpoint"] == kaggle.endpoint and owner == kaggle.credentials.username.lower():
            yield record


def _record(
    root: Path,
    kernel: Kernel,
    run: Run,
    outcome: Outcome,
    profile: str | None,
    *,
    pushed: str | None,
) -> Record:
    address = {**asdict(run), "pushed": pushed, "profile": profile, "outcome": outcome}
    return ledger.record_push(root, run.slug, run.version, address, kernel.manifest.document)


def _require_as_asked(
    kaggle: Kaggle,
    kernel: Kernel,
    run: Run,
    record: Record,
    dropped: Sequence[str] = (),
) -> None:
    """Hold what Kaggle made of a push against what was asked; differences are kept with it."""
    try:
        differences = [*pushing.verify_push(kaggle, kernel, run), *dropped]
    except KernelkitError as error:
        raise type(error)(
            f"{run.name} is pushed and runs, but what Kaggle made of it could not be read back: "
            f"{error}",
            "Do not push again; follow it with `kernelkit watch`.",
            record.push,
        ) from error
    if differences:
        details = {**record.push, "differences": differences}
        ledger.record_push(
            record.folder.parent.parent, run.slug, run.version, details, record.bundle
        )
        raise RefusedError(
            "Kaggle gave other than was asked:\n" + "\n".join(differences),
            f"Version {run.version} runs all the same. {PUSH_ANEW}",
            details,
        )


def _require_no_differences(record: Record) -> None:
    """What was given otherwise stays so: the same kernel is not used in place of a push."""
    push = record.push
    if differences := push.get("differences"):
        raise RefusedError(
            f"{push['slug']} v{record.version} is this very kernel, and Kaggle gave it other than "
            "was asked:\n" + "\n".join(map(str, differences)),
            f"Nothing was sent. {PUSH_ANEW}",
            push,
        )


PUSH_ANEW = "Mend the cause, then push anew: `kernelkit push --again`."


def attach(config: Config, name: str = "") -> tuple[Kaggle, Record]:
    """A run by its name and the way to it; one that was pushed from elsewhere is taken up here.

    Raises:
        ConfigError: the name is none, or means nothing here, and nothing that kernelkit has made
            there.
        NotFoundError: Kaggle knows no such kernel or version.
    """
    wanted = ledger.parse_name(name) if name else ledger.Name()
    try:
        record = find_record(config, name)
    except ConfigError:
        if not wanted.slug:
            raise
        kaggle = connect_to(config)
        return kaggle, _take_up(config, kaggle, wanted.owner, wanted.slug, wanted.version)
    return connect_to(config), record


def _take_up(
    config: Config, kaggle: Kaggle, owner: str | None, slug: str, version: int | None
) -> Record:
    """Record a run that was pushed from elsewhere, by what its notebook says of itself."""
    owner = owner or kaggle.credentials.username
    given = kaggle.kernel(owner, slug, version)
    version = version or given.version
    if version is None:
        raise RefusedError(f"Kaggle names no version of {owner}/{slug}")
    manifest = embedded_manifest(read_cells(given.source))
    url = f"{kaggle.web}/code/{owner}/{slug}"
    run = Run(owner, slug, version, url, manifest.digest, kaggle.endpoint)
    address = {**asdict(run), "outcome": Outcome.ADOPTED, "profile": manifest.profile}
    root = config.project / "runs"
    return ledger.record_push(root, run.slug, version, address, manifest.document)


def watch(
    kaggle: Kaggle, record: Record, *, deadline: float | None = None, on_event: OnEvent = quiet
) -> Status:
    """Follow a run to its end and return the state in which it ended."""
    last = Status(State.QUEUED)
    run, asked = _address(kaggle, record), RequestedHardware.of(record.bundle)
    for event in remote.watch(kaggle, run, asked, age=_age(record), deadline=deadline):
        on_event(event)
        if isinstance(event, Status):
            last = event
    return last


def status(kaggle: Kaggle, record: Record) -> Status:
    """Where a run is now."""
    fresh = _age(record) < kaggle.timeouts.grace
    return remote.status(kaggle, _address(kaggle, record), fresh=fresh)


def cancel(kaggle: Kaggle, record: Record) -> Status:
    """End a run, where that is possible; the state in which it has ended."""
    return remote.cancel(kaggle, _address(kaggle, record), age=_age(record))


def _age(record: Record) -> float:
    """Seconds since the push was recorded; of a run that was taken up nobody knows."""
    if record.push.get("pushed") is None:
        return math.inf
    return max(0.0, time.time() - (record.folder / "push.json").stat().st_mtime)


def logs(kaggle: Kaggle, record: Record) -> list[LogEntry]:
    """The log of a run, as far as Kaggle keeps it."""
    return remote.log(kaggle, _address(kaggle, record))


def pull(
    kaggle: Kaggle,
    record: Record,
    selection: Selection = EVERYTHING,
    *,
    deadline: float | None = None,
    on_event: OnEvent = quiet,
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
        return _as_it_is(record, selection, on_event)
    end = status(kaggle, record)
    if not end.state.finished:
        end = watch(kaggle, record, deadline=deadline, on_event=on_event)
    with outputs.alone(record.folder, on_event):
        if record.complete:  # by the pull that was waited for
            return _as_it_is(record, selection, on_event)
        return _pull(kaggle, record, run, end, selection, on_event)


def _as_it_is(record: Record, selection: Selection, on_event: OnEvent) -> Pulled:
    on_event(f"{record.folder} is complete already")
    folder, state = record.folder, _recorded_state(record)
    here = (path for path in folder.rglob("*") if path.is_file())
    left_behind = dict(record.run.get("left_behind") or {})
    brought = DownloadResult(
        tuple(p.relative_to(folder).as_posix() for p in here), left_behind, {}, ()
    )
    declared = _declared(record)
    _require_known(selection, brought, declared, Status(state))
    verdict = verify_folder(folder, _names(selection, declared), left_behind)
    partial = not selection.everything
    return Pulled(folder, state, verdict, left_behind, partial=partial)


def _declared(record: Record) -> list[str]:
    return [str(name) for name in record.bundle.get("outputs", [])]


def _names(selection: Selection, declared: Sequence[str]) -> list[str] | None:
    """The declared outputs that are asked for; None for all."""
    return None if selection.everything else [name for name in declared if selection.takes(name)]


def _pull(
    kaggle: Kaggle, record: Record, run: Run, end: Status, selection: Selection, on_event: OnEvent
) -> Pulled:
    started = time.monotonic()
    declared = _declared(record)
    brought = outputs.pull(kaggle, run, record.folder, declared, selection, on_event=on_event)
    _require_known(selection, brought, declared, end)
    missing = {**brought.left_behind, **brought.refused}
    verdict = verify_folder(record.folder, _names(selection, declared), missing)
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
    # A complete run that does not verify may be a bad download, and of one that has just failed
    # the log may still come: the next pull tries anew.
    failed = end.state != State.COMPLETE
    told = bool(brought.names) or _age(record) > kaggle.timeouts.grace
    sound = not verdict.problems or (failed and told)
    if sound and selection.everything and not brought.refused:
        ledger.record_end(record, account)
    partial = not selection.everything
    return Pulled(record.folder, end.state, verdict, brought.left_behind, brought.refused, partial)


def unpack(pulled: Pulled, *, on_event: OnEvent = quiet) -> list[Path]:
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
            on_event(f"{folder} is there already")
        else:
            unpack_zip(archive, folder)
            on_event(f"unpacked {folder}")
        folders.append(folder)
    return folders


def _require_known(
    selection: Selection, brought: DownloadResult, declared: Sequence[str], end: Status
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


@dataclass(frozen=True)
class Entry:
    """What is to be submitted: an output of a run, and where to."""

    run: Run
    competition: str
    file: Path
    name: str
    """Of the file among the run's outputs."""
    sha256: str

    @property
    def mark(self) -> str:
        """What the description carries: by it a submission is found again."""
        return f"kernelkit {self.run.slug} v{self.run.version} {self.run.digest[:12]}"


@dataclass(frozen=True)
class Submitted:
    """A submission as it is recorded, and whether it was sent just now."""

    entry: Mapping[str, Any]
    sent: bool

    @property
    def details(self) -> dict[str, Any]:
        """All of it for a script."""
        return {**self.entry, "sent": self.sent}


def submit(
    kaggle: Kaggle,
    record: Record,
    *,
    message: str = "",
    file: str = "",
    competition: str = "",
    sample: Path | None = None,
    data: Path | None = None,
    code: bool = False,
    again: bool = False,
    wait: bool = True,
    deadline: float | None = None,
    on_event: OnEvent = quiet,
) -> Submitted:
    """Enter the submission of a verified run, once, and wait for its score.

    A file that was entered before is not sent again: its submission is asked for instead; `again`
    sends it all the same. `sample` is the competition's sample submission; without it that in
    `data`/<competition> is taken, or Kaggle is asked for it. `code` enters the version of the
    kernel rather than the file, which is what a code competition takes anyway.

    Raises:
        VerificationError: the run is not complete and verified, or its file would not be scored.
        ConfigError: it is not clear which file goes where.
        CapacityError: the day's submissions are used up.
        RefusedError: Kaggle refuses, has found an error in it, or the run is of another Kaggle.
        DeadlineError: it is entered, and was not scored in time.
    """
    entry = _entry(_address(kaggle, record), record, file, competition)
    contest, root = Competition(kaggle, entry.competition), record.folder.parent.parent
    with ledger.submitting(root, on_event):
        before = None if again else _entered_before(contest, root, entry)
        if before is not None:
            on_event(f"{entry.name} was submitted already, as {before['ref']}: nothing is sent")
        document = before or _submit(contest, entry, sample, data, code, message, on_event)
        ledger.record_submission(root, document)
    if wait:
        on_event(f"waiting for the score of submission {document['ref']}")
        found = contest.scored(document["ref"], deadline)
        document = {
            **document,
            "status": found.status,
            "public_score": found.public_score,
            "private_score": found.private_score,
            "error": found.error,
            "asked": _now(),
        }
        ledger.record_submission(root, document)
    submitted = Submitted(document, before is None)
    if document["status"] == Scoring.ERROR:
        raise RefusedError(
            f"submission {document['ref']} was not scored: "
            f"{document['error'] or 'Kaggle gives no reason'}",
            "Mend the submission and run anew, or send this one once more with --again.",
            submitted.details,
        )
    return submitted


def _entry(run: Run, record: Record, file: str, competition: str) -> Entry:
    verdict = verify_folder(record.folder)
    good = record.complete and verdict.verified and _recorded_state(record) == State.COMPLETE
    if not good:
        raise VerificationError(
            f"{record.folder} is not a complete and verified run", "Pull it first: kernelkit pull."
        )
    sources = record.bundle.get("kernel", {}).get("competition_sources", [])
    names = [competition] if competition else sources
    if len(names) != 1:
        raise ConfigError(
            f"the run has {len(names)} competition sources: {', '.join(names) or 'none'}",
            "Say which competition is meant: --competition SLUG.",
        )
    outputs = {str(output["path"]): str(output["sha256"]) for output in verdict.outputs}
    files = [name for name in outputs if (name == file if file else name.endswith(".csv"))]
    if len(files) != 1:
        raise ConfigError(
            f"which output is the submission? The run has: {', '.join(outputs) or 'none'}",
            "Say which: --file NAME.",
        )
    return Entry(run, names[0], record.folder / files[0], files[0], outputs[files[0]])


def _entered_before(contest: Competition, root: Path, entry: Entry) -> dict[str, Any] | None:
    """The submission of the same bytes from here, or of the same run from anywhere."""
    same = (entry.competition, entry.run.endpoint, entry.sha256)
    for known in reversed(ledger.submissions(root)):
        if (known["competition"], known["endpoint"], known["sha256"]) == same:
            return dict(known)
    found = contest.marked(entry.mark)
    return _document_of(entry, found[0].ref, found[0].description) if found else None


def _submit(
    contest: Competition,
    entry: Entry,
    sample: Path | None,
    data: Path | None,
    code: bool,
    message: str,
    on_event: OnEvent,
) -> dict[str, Any]:
    terms = contest.terms()
    if not terms.entered:
        on_event(f"note: Kaggle does not say that this account has entered {entry.competition}")
    if terms.closed:
        on_event(f"note: Kaggle says that {entry.competition} takes no submissions")
    left = contest.left_today(terms.daily)
    if left == 0:
        raise CapacityError(
            f"{entry.competition}: the submissions of today (UTC) are used up"
            + (f" ({terms.daily} a day)" if terms.daily else ""),
            f"Nothing was sent. Try again in {_until_midnight()}, after midnight UTC.",
        )
    left_words = "it is not known how many submissions are" if left is None else str(left)
    on_event(f"{left_words} left today")
    _require_scorable(contest, entry, sample, data, on_event)
    description = f"{message} ({entry.mark})" if message else entry.mark
    run = entry.run
    if code or terms.code_only:
        on_event(f"submitting {entry.name} of {run.name} to {entry.competition}")
        ref = contest.submit_version(
            run.owner, run.slug, run.version, entry.name, description, entry.mark
        )
    else:
        on_event(f"submitting {entry.name} to {entry.competition}")
        ref = contest.submit_file(entry.file, description, entry.mark)
    return _document_of(entry, ref, description)


def _document_of(entry: Entry, ref: int, description: str) -> dict[str, Any]:
    """A submission as the ledger keeps it; its score is not known yet."""
    return {
        "ref": ref,
        "competition": entry.competition,
        **asdict(entry.run),
        "file": entry.name,
        "sha256": entry.sha256,
        "description": description,
        "submitted": _now(),
        "status": Scoring.PENDING,
        "public_score": "",
        "private_score": "",
        "error": "",
    }


def _require_scorable(
    contest: Competition, entry: Entry, sample: Path | None, data: Path | None, on_event: OnEvent
) -> None:
    """Hold the file against the competition's sample, wherever that can be had."""
    here = data / entry.competition / "sample_submission.csv" if data else None
    with tempfile.TemporaryDirectory(prefix="kernelkit-sample-") as folder:
        if sample is None and here is not None and here.is_file():
            sample = here
        if sample is None:
            try:
                sample = contest.sample(Path(folder))
            except KernelkitError as error:
                raise type(error)(
                    f"the submission cannot be checked without the competition's sample: {error}",
                    f"Nothing was sent. Name the file: --sample FILE. {error.next_step}".strip(),
                ) from error
        try:
            found = check_submission(entry.file, sample, PIXELS.get(entry.competition))
        except OSError as error:
            raise LocalError(f"{error.filename} cannot be read: {error.strerror}") from error
    for note in found.notes:
        on_event(f"note: {entry.name}: {note}")
    if found.problems:
        raise VerificationError(
            f"{entry.file} would not be scored:\n" + "\n".join(found.problems),
            "Nothing was sent. Mend the package, and run anew.",
            {"problems": list(found.problems)},
        )
    on_event(f"{entry.name}: {found.rows:,} rows, with the ids and columns of the sample")


def _until_midnight() -> str:
    now = datetime.now(UTC)
    minutes = 24 * 60 - now.hour * 60 - now.minute
    return f"{minutes // 60} h {minutes % 60} min"


def plan_sync(config: Config, notebook: Path) -> SyncPlan:
    """What an edited notebook means for the package; nothing is written.

    Raises:
        ConfigError: the file is no notebook that was rendered from this package.
    """
    return syncing.plan(syncing.read_notebook(notebook), config)


def sync(plan: SyncPlan, *, force: bool = False, dry_run: bool = False) -> None:
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
        details = {"problems": [asdict(problem) for problem in problems]}
        raise PreflightError("\n".join(lines), "Nothing was sent.", details)


def _as_line(problem: Problem) -> str:
    after_table = problem.message.endswith("\n")
    return f"{problem.subject}: {problem.message}{'' if after_table else '. '}{problem.remedy}"


def require_success(pulled: Pulled, project: Path | None = None) -> None:
    """Raise what a pulled run deserves, if it is not a verified success.

    `project` is the folder against whose files a failure is diagnosed.
    """
    verdict, details = pulled.verdict, pulled.details
    failed = verdict.run_error is not None and not verdict.problems
    if not failed and pulled.state == State.COMPLETE:
        require_verified(verdict, pulled.folder, details)
        _require_given(pulled)
        return
    if pulled.state == State.CANCEL_ACKNOWLEDGED:
        raise RunFailedError(
            "the run was cancelled",
            f"What it had left is in {pulled.folder}. To run it again: kernelkit push",
            details,
        )
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
        raise RunFailedError(words, f"Its log is in {pulled.folder}.", details)
    words = f"the run failed: {diagnosis.error}" if failed else f"{words}\n{diagnosis.headline}"
    raise RunFailedError(
        f"{words}\n{diagnosis.summary}",
        f"{diagnosis.next_step} All of it: kernelkit diagnose {pulled.folder}",
        {**details, "diagnosis": asdict(diagnosis)},
    )


def _require_given(pulled: Pulled) -> None:
    """What is declared is verified; what lies beside it must have come as well."""
    if pulled.refused:
        lines = [f"{name}: {reason}" for name, reason in pulled.refused.items()]
        raise RefusedError(
            "the declared outputs are verified, and Kaggle does not give what it lists beside "
            "them:\n" + "\n".join(lines),
            "Pull again; --only and --file bring a part.",
            pulled.details,
        )


def require_verified(verdict: Verdict, folder: Path, details: Mapping[str, Any]) -> None:
    """Raise a VerificationError that names every problem, if there is one."""
    if verdict.problems:
        raise VerificationError(
            f"{folder} does not verify:\n" + "\n".join(verdict.problems),
            "Do not use these files. Remove run.json from there, if there is one, and pull again.",
            details,
        )
    if verdict.run_error is not None:
        raise RunFailedError(
            f"the run in {folder} failed: {verdict.run_error}", "The log in it says more.", details
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
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}") from error


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
    except (KeyError, ValueError) as error:
        raise LocalError(f"{record.folder}/run.json names no state: {error}") from error


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
    raise LocalError(f"the local Kaggle did not start: {said or 'it said nothing'}")


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
