"""A run's life after the button: push it, read back what Kaggle made of it, watch it, pull it.

Clock and sleep are arguments. What belongs to one version is asked for by that version; the log
stream alone knows only the latest one, so a stream that begins with another digest is not ours.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kernelkit.client import Given, Kaggle, LogEntry, OutputFile, State, Status, parse_log
from kernelkit.errors import DeadlineError, MachineError, NotFoundError, RefusedError
from kernelkit.render import Kernel

GRACE_SECONDS = 120
"""How long after a push Kaggle may answer 403, 404 or with the version before."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0  # between two questions for the status

_DIGEST_LINE = re.compile(r"kernelkit digest ([0-9a-f]{64})")


@dataclass(frozen=True)
class Run:
    """The address of one run, and what was asked to run there."""

    owner: str
    slug: str
    version: int
    url: str
    digest: str
    endpoint: str

    @property
    def name(self) -> str:
        """For people: `owner/slug v3`."""
        return f"{self.owner}/{self.slug} v{self.version}"


@dataclass(frozen=True)
class Pushed:
    """A push that Kaggle took: a version that is now queued or running."""

    run: Run
    differences: tuple[str, ...]
    """Where Kaggle gave other than was asked, the gravest first."""


def push(
    kaggle: Kaggle,
    kernel: Kernel,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Send the kernel once, then read back what Kaggle holds now.

    Raises:
        AnswerLostError: nobody knows whether it was taken.
        CapacityError, RefusedError: Kaggle's answer.
    """
    _check_owner(kaggle, kernel)
    saved = kaggle.save_kernel(kernel.slug, kernel.payload, kernel.metadata)
    run = Run(
        kaggle.username, kernel.slug, saved.version, saved.url, kernel.digest, kaggle.endpoint
    )
    dropped = [
        f"{kind}: Kaggle dropped {name!r}, and runs without it"
        for kind, names in saved.dropped.items()
        for name in names
    ]
    given = _read_back(kaggle, run, clock, sleep)
    return Pushed(run, tuple(_differences(kernel, run, given) + dropped))


def watch(
    kaggle: Kaggle,
    run: Run,
    *,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Status | LogEntry]:
    """Follow a run to its end: each change of its state, each line of its log once.

    `deadline` is in seconds from now.

    Raises:
        DeadlineError: it passed; the run goes on.
    """
    started = clock()
    status, seen, pause = None, 0, FIRST_PAUSE_SECONDS
    while True:
        current = _status(kaggle, run, within_grace=clock() - started < GRACE_SECONDS)
        if current != status:
            status = current
            yield status
        if status.state.finished:
            yield from log(kaggle, run)[seen:]
            return
        if status.state == State.RUNNING:
            for entry in _live_log(kaggle, run, skip=seen):
                seen += 1
                yield entry
                _check_deadline(run, deadline, clock() - started)
        _check_deadline(run, deadline, clock() - started)
        sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def log(kaggle: Kaggle, run: Run) -> list[LogEntry]:
    """The log of exactly this version, as far as Kaggle keeps it."""
    return parse_log(kaggle.outputs(run.owner, run.slug, run.version)[1])


def pull(
    kaggle: Kaggle, run: Run, folder: Path, tell: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Download every output and the log of a run that has ended into `folder`.

    Returns the names that were pulled, and those left behind because the folder has files of its
    own by that name.

    Raises:
        RefusedError: an output's name would leave the folder.
        MachineError: the folder cannot be written.
    """
    files, log_text = kaggle.outputs(run.owner, run.slug, run.version)
    own_names = {"bundle.json", "push.json", "run.json", f"{run.slug}.log"}
    targets = [(file, _target(folder, file)) for file in files if file.name not in own_names]
    try:
        for file, target in targets:
            kaggle.download(file, target)
            tell(file.name)
        (folder / f"{run.slug}.log").write_text(log_text, encoding="utf-8")
    except OSError as fault:
        raise MachineError(
            f"{folder} cannot be written: {fault.strerror}",
            "Nothing there counts as complete. Make room, then pull again.",
        ) from fault
    return [file.name for file, _ in targets], [f.name for f in files if f.name in own_names]


def progress(entry: LogEntry) -> Mapping[str, Any] | None:
    """The event that a line of the log reports (`{"event": "epoch", …}`), None for other lines."""
    text = entry.text.strip()
    if not text.startswith("{"):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _check_owner(kaggle: Kaggle, kernel: Kernel) -> None:
    owner = str(kernel.metadata["id"]).rpartition("/")[0]
    if owner and owner.lower() != kaggle.username.lower():
        raise RefusedError(
            f"the kernel belongs to {owner}, and the credentials ({kaggle.origin}) to "
            f"{kaggle.username}",
            "Leave the owner out of id, or use the owner's credentials.",
        )


def _read_back(
    kaggle: Kaggle, run: Run, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Given | None:
    """What Kaggle holds, once it shows our version; None when the grace has passed before."""
    started, pause = clock(), FIRST_PAUSE_SECONDS
    while clock() - started < GRACE_SECONDS:
        try:
            given = kaggle.kernel(run.owner, run.slug)
        except NotFoundError:
            given = None
        if given and (given.version or 0) >= run.version:
            return given
        sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
    return None


def _differences(kernel: Kernel, run: Run, given: Given | None) -> list[str]:
    """What was asked against what was given; a privacy wider than asked comes first."""
    if given is None:
        return [f"version {run.version} did not show within {GRACE_SECONDS} s of the push"]
    asked = kernel.metadata
    found = []
    if given.is_private != asked["is_private"]:
        found.append(f"is_private: asked {asked['is_private']}, given {given.is_private}")
    if given.version == run.version and run.digest not in given.source:
        found.append(f"the notebook on Kaggle does not carry the digest {run.digest}")
    if given.enable_internet != asked["enable_internet"]:
        found.append(
            f"enable_internet: asked {asked['enable_internet']}, given {given.enable_internet}"
        )
    for kind, names in given.sources.items():
        lost = sorted({name.lower() for name in asked[kind]} - {name.lower() for name in names})
        found += [f"{kind}: asked {name!r}, not given" for name in lost]
    return found


def _status(kaggle: Kaggle, run: Run, *, within_grace: bool) -> Status:
    try:
        return kaggle.status(run.owner, run.slug, run.version)
    except NotFoundError:
        if not within_grace:
            raise
        return Status(State.QUEUED)


def _live_log(kaggle: Kaggle, run: Run, skip: int) -> Iterator[LogEntry]:
    """Lines of the stream from number `skip` on, once the digest shows that it is this run's."""
    waiting: list[LogEntry] = []
    ours = False
    try:
        for entry in kaggle.log_stream(run.owner, run.slug):
            waiting.append(entry)
            found = _DIGEST_LINE.search(entry.text)
            if found and found[1] != run.digest:
                return
            ours = ours or found is not None
            if ours:
                yield from waiting[skip:]
                skip = max(0, skip - len(waiting))
                waiting = []
    except NotFoundError:
        return  # the session has no log yet


def _check_deadline(run: Run, deadline: float | None, elapsed: float) -> None:
    if deadline is not None and elapsed > deadline:
        raise DeadlineError(
            f"{run.name} has not ended within {deadline:.0f} s; it goes on running",
            "Come back with `kernelkit watch`, or give a longer --deadline.",
        )


def _target(folder: Path, file: OutputFile) -> Path:
    """Where an output goes; its name may come from anybody's notebook."""
    path = PurePosixPath(file.name)
    odd = PureWindowsPath(file.name).drive or "\\" in file.name or "\0" in file.name
    if not file.name or path.is_absolute() or ".." in path.parts or odd:
        raise RefusedError(f"the output {file.name!r} would be written outside the run's folder")
    return folder / path
