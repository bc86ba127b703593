"""The state of the local Kaggle: kernels, their versions, and the rules of a push.

No HTTP and no processes here. The life of a version, and what moves it:

    QUEUED --start()--> RUNNING --finish()--> COMPLETE | ERROR | CANCEL_ACKNOWLEDGED
       `-------------------------finish()------^

One lock guards everything. `EmulatedKaggle.changed` is notified of every log line and every step,
so that a log stream can wait for the next line. Single fields of a `KernelVersion` are read without
the lock, because they only move forward.
"""

from __future__ import annotations

import enum
import itertools
import json
import math
import re
import secrets
import shutil
import threading
import time
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypedDict

from kernelkit.emulator.datasets import Datasets
from kernelkit.emulator.limits import (
    HOUR,
    TIME_LIMITS,
    AccountLimits,
    Machine,
    SessionTime,
    Usage,
    usage,
)
from kernelkit.emulator.responses import RequestRefused
from kernelkit.emulator.storage import read_json, reading, write_json

MAX_SOURCE = 1_000_000
"""Bytes; a source must be smaller. Kaggle accepted 878,947 and refused 1,353,126 [A]."""
MIN_NAME = 5
"""Characters of a slug or title [D]."""
DEFAULT_SHAPES = {Machine.GPU: "NvidiaTeslaP100", Machine.TPU: "TpuV5E8"}
"""The machines that `enableGpu` [D] and `enableTpu` [?] without a machine shape get."""

DELETED_LISTED = 5.0
"""Seconds that a deleted kernel stays in lists; Kaggle does the same "for a while" [A]."""

Mounts = Literal["new", "old"]
"""2026: /kaggle/input/{competitions,datasets,notebooks}/…; before that /kaggle/input/<slug> [A]."""

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,200}[a-z0-9])?")
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class KaggleSettings:
    """Settings of the local Kaggle that concern kernels.

    `own_output`: whether a kernel may have its own earlier output as an input [?]; otherwise that
    source is dropped. `deleted_listed`: seconds that a deleted kernel stays in lists.
    """

    mounts: Mounts = "new"
    rules_not_accepted: frozenset[str] = frozenset()
    limits: AccountLimits = field(default_factory=AccountLimits)
    own_output: bool = True
    deleted_listed: float = DELETED_LISTED


class WorkerStatus(enum.StrEnum):
    """The values of KernelWorkerStatus that a batch run goes through [V]."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    CANCEL_ACKNOWLEDGED = "CANCEL_ACKNOWLEDGED"

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self not in (WorkerStatus.QUEUED, WorkerStatus.RUNNING)


class LogLine(TypedDict):
    """An entry of a run's log, as Kaggle sends it. `time`: seconds since the session began."""

    stream_name: str
    time: float
    data: str


@dataclass(frozen=True)
class SaveRequest:
    """A SaveKernel request. `owner` is the caller if the slug does not name one."""

    owner: str
    slug: str
    kernel_id: int | None
    title: str
    text: str
    language: str
    kernel_type: str
    execution: str
    competitions: tuple[str, ...]
    datasets: tuple[str, ...]
    kernels: tuple[str, ...]
    models: tuple[str, ...]
    tags: tuple[str, ...]
    is_private: bool
    enable_gpu: bool
    enable_tpu: bool
    enable_internet: bool
    machine_shape: str
    docker_image: str
    timeout: float | None

    @property
    def machine(self) -> Machine:
        """`enable_gpu` is deprecated: a machine shape that names an accelerator is enough [V]."""
        if self.enable_tpu or self.machine_shape.startswith("Tpu"):
            return Machine.TPU
        if self.enable_gpu or self.machine_shape.startswith("Nvidia"):
            return Machine.GPU
        return Machine.CPU

    @property
    def accelerator(self) -> str:
        """The machine shape of the session; empty for a CPU."""
        return self.machine_shape or DEFAULT_SHAPES.get(self.machine, "")


@dataclass(frozen=True)
class Mount:
    """A folder of this machine and its place below /kaggle/input."""

    target: PurePosixPath
    source: Path


@dataclass(frozen=True)
class StoredFile:
    """A file that can be listed and downloaded. `modified`: seconds since the epoch."""

    name: str
    size: int
    modified: float


@dataclass
class KernelVersion:
    """One push and its one run. `folder` holds all of it in readable files.

    `limit`: seconds of Kaggle's clock that the run may take.
    """

    number: int
    session_id: int
    push: SaveRequest
    folder: Path
    mounts: tuple[Mount, ...]
    dropped: dict[str, list[str]]
    limit: float
    status: WorkerStatus = WorkerStatus.QUEUED
    failure: str = ""
    started: float | None = None
    ended: float | None = None
    log: list[LogLine] = field(default_factory=list)
    outputs: tuple[StoredFile, ...] = ()
    created: float = field(default_factory=time.time)
    download_key: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def working(self) -> Path:
        """The folder that the run sees as /kaggle/working."""
        return self.folder / "working"

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, or took."""
        if self.started is None:
            return 0.0
        return (self.ended or time.time()) - self.started


@dataclass
class EmulatedKernel:
    """A notebook with its history. `folder` keeps its name when the notebook is renamed.

    `deleted`: seconds since the epoch; None while it exists.
    """

    kernel_id: int
    owner: str
    slug: str
    title: str
    folder: Path
    versions: list[KernelVersion] = field(default_factory=list)
    deleted: float | None = None

    @property
    def latest(self) -> KernelVersion:
        """The version that a request without a label means."""
        return self.versions[-1]

    @property
    def latest_output(self) -> KernelVersion | None:
        """The version whose outputs other kernels can use.

        A run that was cancelled or timed out counts if it has left outputs [?]: Kaggle keeps them
        in most reports [A].
        """
        for version in reversed(self.versions):
            kept = version.status is WorkerStatus.CANCEL_ACKNOWLEDGED and version.outputs
            if kept or version.status is WorkerStatus.COMPLETE:
                return version
        return None

    @property
    def last_session(self) -> KernelVersion | None:
        """The last version whose run has started: GetKernel shows its machine [V]."""
        return next((v for v in reversed(self.versions) if v.started is not None), None)

    @property
    def last_run(self) -> float:
        """When its latest run began [A]; while that is queued, when it was pushed [?]."""
        return self.latest.started or self.latest.created


@dataclass(frozen=True)
class SaveResult:
    """The result of a push: a version, or Kaggle's `error` inside a 200."""

    kernel: EmulatedKernel | None = None
    version: KernelVersion | None = None
    error: str = ""


class EmulatedKaggle:
    """All accounts, kernels and runs of one local Kaggle.

    `folder` may hold the state of an earlier emulator: kernels, versions, and ended runs with log
    and outputs (at new addresses). A run that had not ended starts again with an empty working
    folder and log: `unfinished` holds those versions, QUEUED, for the runner. Raises StateError
    if the folder cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Path | None,
        settings: KaggleSettings | None = None,
        datasets: Datasets | None = None,
    ) -> None:
        self.changed = threading.Condition()
        self._folder = folder
        self._inputs = inputs
        self._settings = settings or KaggleSettings()
        self._limits = self._settings.limits
        self._datasets = datasets or Datasets(folder / "_datasets", inputs)
        self._kernels: dict[tuple[str, str], EmulatedKernel] = {}
        self._deleted: list[EmulatedKernel] = []
        self._by_download_key: dict[str, KernelVersion] = {}
        self.unfinished: list[KernelVersion] = []
        # Different ranges, so that a mixed-up number shows.
        kernel_id, session_id = self._load()
        self._kernel_ids = itertools.count(kernel_id + 1)
        self._session_ids = itertools.count(session_id + 1)

    def save(self, account: str, push: SaveRequest) -> SaveResult:
        """Check a push and, if it is accepted, create its version (QUEUED, not yet started).

        Raises RequestRefused where Kaggle answers with an HTTP error. Too many sessions, or a used
        quota, is not an HTTP error but an `error` inside a 200, without a version.
        """
        _check_request(push)
        if push.owner != account:
            raise RequestRefused(403, "Permission 'kernels.update' was denied")
        with self.changed:
            known = self._known(push)
            slug, title = self._name(push, known)
            if error := self._no_capacity(account, push):
                return SaveResult(error=error)
            mounts, dropped = self._sources(account, push, known)
            kernel = known or self._new_kernel(push.owner, slug, title)
            self._rename(kernel, slug, title)
            version = self._new_version(kernel, push, mounts, dropped)
        return SaveResult(kernel, version)

    def listed(self) -> list[EmulatedKernel]:
        """All kernels, oldest first; a deleted one stays for a while [A]."""
        since = time.time() - self._settings.deleted_listed
        with self.changed:
            gone = [k for k in self._deleted if (k.deleted or 0.0) > since]
            return sorted([*self._kernels.values(), *gone], key=lambda k: k.kernel_id)

    def delete(self, account: str, owner: str, slug: str) -> EmulatedKernel:
        """Remove a kernel. The caller ends its runs, then removes its folder.

        What its runs have used stays used. Raises RequestRefused.
        """
        with self.changed:
            kernel, _ = self.find(account, owner, slug)
            if kernel.owner != account:
                raise RequestRefused(403, "Permission 'kernels.delete' was denied")
            (kernel.folder / "kernel.json").unlink()  # a restart does not find it any more
            kernel.deleted = time.time()
            del self._kernels[(kernel.owner.lower(), kernel.slug)]
            for version in kernel.versions:
                self._by_download_key.pop(version.download_key, None)
            self._deleted.append(kernel)
        return kernel

    def start(self, version: KernelVersion) -> None:
        """Move a version from QUEUED to RUNNING."""
        with self.changed:
            version.status = WorkerStatus.RUNNING
            version.started = time.time()
            self.changed.notify_all()

    def finish(
        self,
        version: KernelVersion,
        status: WorkerStatus,
        failure: str,
        outputs: tuple[StoredFile, ...],
    ) -> None:
        """End a run. Status and outputs become visible at the same moment."""
        with self.changed:
            version.ended = time.time()
            version.failure = failure
            version.outputs = outputs
            # On disk first: a restart must not undo an end that a client has seen.
            _write_status(version, status)
            version.status = status
            self.changed.notify_all()

    def add_log(self, version: KernelVersion, entry: LogLine) -> None:
        """Add an entry to the log and wake the streams that wait for it."""
        with self.changed:
            version.log.append(entry)
            self.changed.notify_all()

    def wait_log(
        self, version: KernelVersion, seen: int, timeout: float
    ) -> tuple[list[LogLine], bool]:
        """The entries after the first `seen`, and whether the run has ended.

        Waits up to `timeout` seconds for either; ([], False) means that nothing has happened.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: len(version.log) > seen or version.status.has_ended, timeout
            )
            return version.log[seen:], version.status.has_ended

    def find(
        self, account: str, owner: str, slug: str, label: str = ""
    ) -> tuple[EmulatedKernel, KernelVersion]:
        """A kernel and its version `label` ("v3"); without a label the latest version.

        "slug/3" names a version too: `kaggle kernels pull owner/slug/3` sends it [V].
        """
        slug, _, number = slug.partition("/")
        with self.changed:
            kernel = self._kernels.get((owner.lower(), slug.lower()))
            if kernel is None:
                raise RequestRefused(404, "Not found")
            if kernel.latest.push.is_private and kernel.owner.lower() != account.lower():
                raise RequestRefused(403, "Permission 'kernels.get' was denied")
            return kernel, _pinned(kernel, label or (number and f"v{number}"))

    def download(self, key: str, name: str) -> tuple[Path, StoredFile] | None:
        """The file of a download address, if the run has left such an output."""
        with self.changed:
            version = self._by_download_key.get(key)
        for output in version.outputs if version else ():
            if version and output.name == name:
                return version.working / name, output
        return None

    def owner_of_download(self, key: str) -> tuple[str, str]:
        """Owner and slug of the kernel that a download address belongs to; empty if unknown."""
        with self.changed:
            for kernel in self._kernels.values():
                if any(version.download_key == key for version in kernel.versions):
                    return kernel.owner, kernel.slug
        return "", ""

    def session(self, account: str, session_id: int) -> KernelVersion | None:
        """The version of a session. Raises RequestRefused if it belongs to another account."""
        with self.changed:
            for kernel in self._kernels.values():
                for version in kernel.versions:
                    if version.session_id == session_id:
                        if kernel.owner.lower() != account.lower():
                            raise RequestRefused(403, "Permission 'kernels.update' was denied")
                        return version
        return None

    def usage(self, account: str, machine: Machine) -> Usage:
        """What the runs of an account have used and reserved of an accelerator in this week."""
        with self.changed:
            runs = [v for v in self._runs(account) if v.push.machine is machine]
            times = [SessionTime(v.limit, v.started, v.ended) for v in runs]
        return usage(times, self._limits.quota.get(machine, math.inf), self._limits.clock)

    def seconds_left(self, version: KernelVersion) -> float:
        """Seconds of this machine after which a run may have to end; 0 if it has to end now.

        A run ends at its own limit, and when the account's quota is used up [?]. The runs that
        share the quota use it up together, so ask again when these seconds have passed.
        """
        speed, machine = self._limits.clock.speed, version.push.machine
        own = version.limit / speed - version.seconds
        if machine not in self._limits.quota:
            return max(0.0, own)
        account = version.push.owner
        used = self.usage(account, machine)
        with self.changed:
            runs = [v for v in self._runs(account) if v.push.machine is machine]
        active = sum(v.status is WorkerStatus.RUNNING for v in runs)
        shared = (used.allowed - used.used) / speed / max(1, active)
        return max(0.0, min(own, shared))

    def _load(self) -> tuple[int, int]:
        """Read the state of an earlier emulator; its greatest kernel id and session id."""
        kernel_id, session_id = 100_000_000, 300_000_000
        for path in sorted(self._folder.glob("[!_]*/*/kernel.json")):  # no account begins with _
            with reading(path):
                kernel = _read_kernel(path)
            if kernel is None:
                continue
            self._kernels[(kernel.owner.lower(), kernel.slug)] = kernel
            self._by_download_key |= {v.download_key: v for v in kernel.versions}
            self.unfinished += [v for v in kernel.versions if not v.status.has_ended]
            kernel_id = max(kernel_id, kernel.kernel_id)
            session_id = max(session_id, *(v.session_id for v in kernel.versions))
        self.unfinished.sort(key=lambda version: version.session_id)
        return kernel_id, session_id

    def _runs(self, account: str) -> list[KernelVersion]:
        known = (*self._kernels.values(), *self._deleted)
        mine = (k for k in known if k.owner == account)
        return [version for kernel in mine for version in kernel.versions]

    def _known(self, push: SaveRequest) -> EmulatedKernel | None:
        """The kernel that a push updates; the numeric id takes precedence over the slug [V]."""
        if push.kernel_id is None:
            return self._kernels.get((push.owner.lower(), push.slug))
        for kernel in self._kernels.values():
            if kernel.kernel_id == push.kernel_id and kernel.owner == push.owner:
                return kernel
        raise RequestRefused(404, "Not found")

    def _name(self, push: SaveRequest, known: EmulatedKernel | None) -> tuple[str, str]:
        """Slug and title after the push. Kaggle derives the slug from the title [D].

        A new kernel whose title does not resolve to its slug is therefore created under another
        slug, and a new title renames a kernel. Two kernels cannot have the same slug [?].
        """
        title = push.title or (known.title if known else push.slug)
        slug = slugify(title)
        _check_name("title", title)
        _check_name("slug", slug)
        other = self._kernels.get((push.owner.lower(), slug))
        if other is not None and other is not known:
            raise RequestRefused(409, f"A notebook with the title '{title}' already exists.")
        return slug, title

    def _no_capacity(self, account: str, push: SaveRequest) -> str:
        """Kaggle's message if the account has no session or quota left, else an empty string."""
        kind = push.machine
        active = [v for v in self._runs(account) if not v.status.has_ended]
        most = self._limits.sessions[kind]
        if sum(v.push.machine is kind for v in active) >= most:
            return f"Maximum batch {kind} session count of {most} reached."
        if (used := self.usage(account, kind)).is_used_up:
            return f"Maximum weekly {kind} quota of {used.allowed / HOUR:.2f} hours reached."  # [A]
        return ""

    def _sources(
        self, account: str, push: SaveRequest, known: EmulatedKernel | None
    ) -> tuple[tuple[Mount, ...], dict[str, list[str]]]:
        """The mounts, and the dropped sources by kind; the run starts without those [A]."""
        found: list[Mount] = []
        dropped: dict[str, list[str]] = {}
        finders = {
            "Competition": (push.competitions, self._competition),
            "Dataset": (push.datasets, lambda name: self._dataset(account, name)),
            "Kernel": (push.kernels, lambda name: self._output_of(account, name, known)),
            "Model": (push.models, self._model),
        }
        for kind, (names, find) in finders.items():
            for name in names:
                if mount := find(name):
                    found.append(mount)
                else:
                    dropped.setdefault(kind, []).append(name)
        return tuple({m.target: m for m in found}.values()), dropped

    def _competition(self, name: str) -> Mount | None:
        """A competition whose rules are not accepted is dropped like an unknown one [?]."""
        if (
            self._inputs is None
            or not _SLUG.fullmatch(name)
            or name in self._settings.rules_not_accepted
        ):
            return None
        source = self._inputs / name
        target = self._target(name, PurePosixPath("competitions", name))
        return Mount(target, source.resolve()) if source.is_dir() else None

    def _dataset(self, account: str, name: str) -> Mount | None:
        """`owner/slug` or `owner/slug/version`."""
        owner, _, rest = name.partition("/")
        slug, _, version = rest.partition("/")
        if not _ACCOUNT.fullmatch(owner) or not _SLUG.fullmatch(slug):
            return None
        source = self._datasets.attachable(account, owner, slug, version)
        target = self._target(slug, PurePosixPath("datasets", owner, slug))
        return Mount(target, source.resolve()) if source else None

    def _model(self, name: str) -> Mount | None:
        """`owner/model/framework/instance/version`; old mounts leave the owner out [A]."""
        found = self._datasets.model_folder(name)
        if found is None:
            return None
        path, source = PurePosixPath(found[0]), found[1]
        target = self._target(str(path.relative_to(path.parts[0])), PurePosixPath("models", path))
        return Mount(target, source.resolve())

    def _output_of(self, account: str, name: str, own: EmulatedKernel | None) -> Mount | None:
        """The latest outputs of another kernel, or a folder of the inputs that stands for them.

        `own`: the kernel that is pushed.
        """
        owner, _, rest = name.partition("/")
        slug = rest.partition("/")[0]
        try:
            kernel, _ = self.find(account, owner, slug)
        except RequestRefused:
            source = self.given_outputs(owner, slug)
        else:
            if kernel is own and not self._settings.own_output:
                return None
            owner, slug, done = kernel.owner, kernel.slug, kernel.latest_output
            source = done.working if done else None
        target = self._target(slug, PurePosixPath("notebooks", owner, slug))
        return Mount(target, source.resolve()) if source else None

    def given_outputs(self, owner: str, slug: str) -> Path | None:
        """A folder of the inputs that stands for the outputs of a kernel that was never pushed."""
        if self._inputs is None or not _ACCOUNT.fullmatch(owner) or not _SLUG.fullmatch(slug):
            return None
        source = self._inputs / slug
        return source if source.is_dir() else None

    def _target(self, slug: str, new: PurePosixPath) -> PurePosixPath:
        return new if self._settings.mounts == "new" else PurePosixPath(slug)

    def _new_kernel(self, owner: str, slug: str, title: str) -> EmulatedKernel:
        kernel = EmulatedKernel(
            next(self._kernel_ids), owner, slug, title, self._folder / owner / slug
        )
        # A renamed kernel frees its slug but keeps its folder.
        if kernel.folder.exists():
            kernel.folder = kernel.folder.with_name(f"{slug}.{kernel.kernel_id}")
        return kernel

    def _rename(self, kernel: EmulatedKernel, slug: str, title: str) -> None:
        self._kernels.pop((kernel.owner.lower(), kernel.slug), None)
        kernel.slug, kernel.title = slug, title
        self._kernels[(kernel.owner.lower(), slug)] = kernel

    def _new_version(
        self,
        kernel: EmulatedKernel,
        push: SaveRequest,
        mounts: tuple[Mount, ...],
        dropped: dict[str, list[str]],
    ) -> KernelVersion:
        number = len(kernel.versions) + 1
        folder = kernel.folder / f"v{number}"
        longest = self._limits.time[push.machine]
        limit = min(longest, push.timeout or longest)
        version = KernelVersion(
            number, next(self._session_ids), push, folder, mounts, dropped, limit
        )
        version.working.mkdir(parents=True)
        (folder / "source.ipynb").write_bytes(push.text.encode())
        request = asdict(push)
        del request["text"]  # source.ipynb
        write_json(folder / "request.json", request)
        names = ("kernel_id", "owner", "slug", "title")
        write_json(kernel.folder / "kernel.json", {name: getattr(kernel, name) for name in names})
        record = {
            "number": version.number,
            "session_id": version.session_id,
            "mounts": [[str(mount.target), str(mount.source)] for mount in mounts],
            "dropped": dropped,
            "created": version.created,
            "limit": version.limit,
        }
        write_json(folder / "version.json", record)  # last: it marks the version as complete
        kernel.versions.append(version)
        self._by_download_key[version.download_key] = version
        return version


def slugify(title: str) -> str:
    """Lowercase ASCII letters and digits with single dashes between them.

    >>> slugify("TGS Salt: U-Net (v2)")
    'tgs-salt-u-net-v2'
    """
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def is_account(name: str) -> bool:
    """Whether `name` is a valid account name; it becomes the name of a folder."""
    return bool(_ACCOUNT.fullmatch(name))


def _check_request(push: SaveRequest) -> None:
    """Raise the refusals that do not depend on other kernels."""
    if push.language != "python" or push.kernel_type != "notebook":
        raise RequestRefused(
            501, f"unimplemented: SaveKernel of {push.language} {push.kernel_type}"
        )
    if push.execution not in ("", "KERNEL_EXECUTION_TYPE_UNSPECIFIED", "SAVE_AND_RUN_ALL"):
        raise RequestRefused(501, f"unimplemented: SaveKernel with {push.execution}")
    if not push.slug and push.kernel_id is None:
        raise RequestRefused(400, "One of id and slug is required")
    if push.timeout is not None and push.timeout <= 0:
        raise RequestRefused(400, "Invalid value for sessionTimeoutSeconds")
    try:
        size = len(push.text.encode())
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can express
        raise RequestRefused(400, "The kernel source is not valid text") from None
    if size >= MAX_SOURCE:
        raise RequestRefused(400, "The kernel source must be less than 1 megabytes in size.")  # [A]


def _check_name(what: str, name: str) -> None:
    if len(name) < MIN_NAME:
        raise RequestRefused(400, f"The kernel {what} must have at least {MIN_NAME} characters")


def _pinned(kernel: EmulatedKernel, label: str) -> KernelVersion:
    """The version of a label such as "v3". An unknown label never means the latest version."""
    if not label:
        return kernel.latest
    for version in kernel.versions:
        if label == f"v{version.number}":
            return version
    raise RequestRefused(404, "Not found")


def _write_status(version: KernelVersion, status: WorkerStatus) -> None:
    record = {
        "status": status,
        "failure": version.failure,
        "session_id": version.session_id,
        "seconds": round(version.seconds, 3),
        "started": version.started,
        "ended": version.ended,
        "outputs": [[output.name, output.size, output.modified] for output in version.outputs],
    }
    write_json(version.folder / "status.json", record)


def _read_kernel(path: Path) -> EmulatedKernel | None:
    """A kernel with its complete versions; None if there are none. Incomplete ones are removed."""
    kernel = EmulatedKernel(**read_json(path), folder=path.parent)
    for folder in path.parent.glob("v*"):
        if not (folder / "version.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
    versions = map(_read_version, path.parent.glob("v*/version.json"))
    kernel.versions = sorted(versions, key=lambda version: version.number)
    if not kernel.versions:
        shutil.rmtree(path.parent, ignore_errors=True)
        return None
    return kernel


def _read_version(path: Path) -> KernelVersion:
    """A version as its run has left it, or as it was before a run that did not end."""
    record, folder = read_json(path), path.parent
    mounts = tuple(Mount(PurePosixPath(t), Path(source)) for t, source in record["mounts"])
    push = _read_push(folder)
    number, session_id, dropped = record["number"], record["session_id"], record["dropped"]
    limit = record.get("limit", TIME_LIMITS[push.machine])
    version = KernelVersion(number, session_id, push, folder, mounts, dropped, limit)
    version.created = record.get("created", path.stat().st_mtime)
    if (folder / "status.json").exists():
        end = read_json(folder / "status.json")
        version.status, version.failure = WorkerStatus(end["status"]), end["failure"]
        version.started, version.ended = end["started"], end["ended"]
        version.outputs = tuple(StoredFile(*output) for output in end["outputs"])
        if (log := folder / "log.jsonl").exists():
            version.log = [
                json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()
            ]
        return version
    for name in ("working", "scratch"):
        shutil.rmtree(folder / name, ignore_errors=True)
    version.working.mkdir(exist_ok=True)
    return version


def _read_push(folder: Path) -> SaveRequest:
    record = read_json(folder / "request.json")
    fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    return SaveRequest(text=(folder / "source.ipynb").read_bytes().decode(), **fields)
