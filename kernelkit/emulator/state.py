"""What the local Kaggle knows: kernels, their versions, and the rules of a push.

No HTTP and no processes here. The life of a version, and who moves it:

    QUEUED --start()--> RUNNING --finish()--> COMPLETE | ERROR | CANCEL_ACKNOWLEDGED
       `-------------------------finish()------^

One lock guards everything; `Kaggle.changed` is notified at every log line and every step, so that
a log stream can wait for the next line. A `Version` is read without the lock where one field is
enough: its fields only ever move forward.
"""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import json
import re
import secrets
import shutil
import threading
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypedDict

from kernelkit.emulator.library import Library

MAX_SOURCE = 1_000_000
"""Bytes; a source must be smaller. 878,947 was accepted and 1,353,126 refused [A]."""
MIN_NAME = 5
"""Characters of a slug or title [D]."""
MAX_SESSIONS = {"GPU": 2, "CPU": 5}
"""Batch sessions of one account at once, queued ones included [A]. TPU runs count as CPU [?]."""
DEFAULT_GPU = "NvidiaTeslaP100"
"""What `enableGpu` without a machine shape gives [D]."""
GPU_HOURS = 30.0
"""A week's GPU hours [A]."""
TPU_HOURS = 20.0
"""A week's TPU hours [A]."""
SATURDAY = 5
"""The weekday on which the quota starts anew, at midnight UTC [A]."""

Mounts = Literal["new", "old"]
"""2026: /kaggle/input/{competitions,datasets,notebooks}/…; before that /kaggle/input/<slug> [A]."""

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,200}[a-z0-9])?")
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Refusal(Exception):
    """Kaggle says no: an HTTP status and the message of the error body."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadState(Exception):
    """A folder is not what an emulator leaves; the words say what is wrong with it."""


class Status(enum.StrEnum):
    """The names of KernelWorkerStatus that a batch run goes through [V]."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    CANCEL_ACKNOWLEDGED = "CANCEL_ACKNOWLEDGED"

    @property
    def over(self) -> bool:
        """True when nothing will follow."""
        return self not in (Status.QUEUED, Status.RUNNING)


class LogEntry(TypedDict):
    """One piece of a run's log, as it travels. `time`: seconds since the session began."""

    stream_name: str
    time: float
    data: str


@dataclass(frozen=True)
class Push:
    """A SaveKernel request, typed. `owner` is the account's own where the slug names none."""

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
    def wants_gpu(self) -> bool:
        """`enable_gpu` is deprecated: a shape that names a GPU asks for one too [V]."""
        return self.enable_gpu or self.machine_shape.startswith("Nvidia")

    @property
    def accelerator(self) -> str:
        """The machine shape of the session; empty on a CPU."""
        return self.machine_shape or (DEFAULT_GPU if self.enable_gpu else "")


@dataclass(frozen=True)
class Mount:
    """A folder of this machine, and where it appears below /kaggle/input."""

    target: PurePosixPath
    source: Path


@dataclass(frozen=True)
class OutputFile:
    """A file below /kaggle/working when the run ended. `modified`: seconds since the epoch."""

    name: str
    size: int
    modified: float


@dataclass
class Version:
    """One push and its one run. `folder` holds all of it in a form a person can read."""

    number: int
    session_id: int
    push: Push
    folder: Path
    mounts: tuple[Mount, ...]
    dropped: dict[str, list[str]]
    status: Status = Status.QUEUED
    failure: str = ""
    started: float | None = None
    ended: float | None = None
    log: list[LogEntry] = field(default_factory=list)
    outputs: tuple[OutputFile, ...] = ()
    download_key: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def working(self) -> Path:
        """The folder that is /kaggle/working in the run."""
        return self.folder / "working"

    @property
    def seconds(self) -> float:
        """How long the run has taken, or took."""
        if self.started is None:
            return 0.0
        return (self.ended or time.time()) - self.started


@dataclass
class Kernel:
    """A notebook with its history. `folder` keeps the first slug's name through a renaming."""

    kernel_id: int
    owner: str
    slug: str
    title: str
    folder: Path
    versions: list[Version] = field(default_factory=list)

    @property
    def latest(self) -> Version:
        """The version an unpinned request means."""
        return self.versions[-1]

    @property
    def latest_complete(self) -> Version | None:
        """The version whose outputs another kernel gets."""
        done = (v for v in reversed(self.versions) if v.status is Status.COMPLETE)
        return next(done, None)

    @property
    def last_session(self) -> Version | None:
        """The last version that really started: its machine is what GetKernel tells [V]."""
        return next((v for v in reversed(self.versions) if v.started is not None), None)


@dataclass(frozen=True)
class Saved:
    """The outcome of a push: a version, or Kaggle's `error` inside a 200."""

    kernel: Kernel | None = None
    version: Version | None = None
    error: str = ""


@dataclass(frozen=True)
class Quota:
    """An account's accelerator time. Seconds."""

    gpu_used: float
    gpu_allowed: float
    tpu_used: float
    tpu_allowed: float
    refresh: dt.datetime


class Kaggle:
    """All accounts, kernels and runs of one local Kaggle.

    What an earlier one has left in `folder` is there again: kernels, versions, and runs that had
    ended, with log and outputs (at new addresses). A run that had not ended is begun anew, with
    an empty working folder and log: `unfinished` holds those versions, QUEUED, for the runner.
    Raises BadState for a folder that cannot be read so.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Path | None,
        mounts: Mounts = "new",
        gpu_hours: float = GPU_HOURS,
        library: Library | None = None,
        rules_not_accepted: frozenset[str] = frozenset(),
    ) -> None:
        self.changed = threading.Condition()
        self._folder = folder
        self._inputs = inputs
        self._mounts = mounts
        self._gpu_hours = gpu_hours
        self._library = library or Library(folder / "_datasets", inputs)
        self._rules_not_accepted = rules_not_accepted
        self._kernels: dict[tuple[str, str], Kernel] = {}
        self._by_download_key: dict[str, Version] = {}
        self.unfinished: list[Version] = []
        # Apart from each other and from version numbers, so that mistaking one for another shows.
        kernel_id, session_id = self._load()
        self._kernel_ids = itertools.count(kernel_id + 1)
        self._session_ids = itertools.count(session_id + 1)

    def save(self, account: str, push: Push) -> Saved:
        """Judge a push and, where it is accepted, make its version (QUEUED, not yet started).

        Raises Refusal for what Kaggle answers with an HTTP error. A full house is no such error
        but an `error` inside a 200; no version is made then.
        """
        _check_request(push)
        if push.owner != account:
            raise Refusal(403, "Permission 'kernels.update' was denied")
        with self.changed:
            known = self._known(push)
            slug, title = self._name(push, known)
            if error := self._no_capacity(account, push):
                return Saved(error=error)
            mounts, dropped = self._sources(account, push)
            kernel = known or self._new_kernel(push.owner, slug, title)
            self._rename(kernel, slug, title)
            version = self._new_version(kernel, push, mounts, dropped)
        return Saved(kernel, version)

    def start(self, version: Version) -> None:
        """QUEUED → RUNNING."""
        with self.changed:
            version.status = Status.RUNNING
            version.started = time.time()
            self.changed.notify_all()

    def finish(
        self, version: Version, status: Status, failure: str, outputs: tuple[OutputFile, ...]
    ) -> None:
        """The end, together with what it left, and so never seen the one without the other."""
        with self.changed:
            version.ended = time.time()
            version.failure = failure
            version.outputs = outputs
            # First on disk: an end that was told must not be undone by a restart.
            _write_json(version.folder / "status.json", _status_record(version, status))
            version.status = status
            self.changed.notify_all()

    def add_log(self, version: Version, entry: LogEntry) -> None:
        """One more piece of the log; wakes the streams that wait for it."""
        with self.changed:
            version.log.append(entry)
            self.changed.notify_all()

    def wait_log(self, version: Version, seen: int, timeout: float) -> tuple[list[LogEntry], bool]:
        """The entries after the first `seen`, and whether the run is over.

        Waits up to `timeout` seconds for either; ([], False) means that nothing has happened.
        """
        with self.changed:
            self.changed.wait_for(lambda: len(version.log) > seen or version.status.over, timeout)
            return version.log[seen:], version.status.over

    def find(self, account: str, owner: str, slug: str, label: str = "") -> tuple[Kernel, Version]:
        """The kernel and the version that `label` ("v3") pins; without a label the latest.

        "slug/3" pins too: `kaggle kernels pull owner/slug/3` sends that [V].
        """
        slug, _, number = slug.partition("/")
        with self.changed:
            kernel = self._kernels.get((owner.lower(), slug.lower()))
            if kernel is None:
                raise Refusal(404, "Not found")
            if kernel.latest.push.is_private and kernel.owner.lower() != account.lower():
                raise Refusal(403, "Permission 'kernels.get' was denied")
            return kernel, _pinned(kernel, label or (number and f"v{number}"))

    def download(self, key: str, name: str) -> tuple[Path, OutputFile] | None:
        """The file a download address means, only if the run's end listed it."""
        with self.changed:
            version = self._by_download_key.get(key)
        for output in version.outputs if version else ():
            if version and output.name == name:
                return version.working / name, output
        return None

    def whose(self, key: str) -> tuple[str, str]:
        """The owner and the slug of the kernel whose outputs a download address means, or none."""
        with self.changed:
            for kernel in self._kernels.values():
                if any(version.download_key == key for version in kernel.versions):
                    return kernel.owner, kernel.slug
        return "", ""

    def session(self, account: str, session_id: int) -> Version | None:
        """The version whose run has this number. Raises Refusal for another's."""
        with self.changed:
            for kernel in self._kernels.values():
                for version in kernel.versions:
                    if version.session_id == session_id:
                        if kernel.owner.lower() != account.lower():
                            raise Refusal(403, "Permission 'kernels.update' was denied")
                        return version
        return None

    def quota(self, account: str) -> Quota:
        """What the account's runs have used, as if all of them fell into this week."""
        with self.changed:
            runs = self._runs(account)
            gpu = sum(v.seconds for v in runs if v.push.wants_gpu)
            tpu = sum(v.seconds for v in runs if v.push.enable_tpu)
        return Quota(gpu, self._gpu_hours * 3600, tpu, TPU_HOURS * 3600, _next_refresh())

    def _load(self) -> tuple[int, int]:
        """Read what an earlier emulator has left; the greatest kernel id and session id of it."""
        kernel_id, session_id = 100_000_000, 300_000_000
        for path in sorted(self._folder.glob("*/*/kernel.json")):
            try:
                kernel = _read_kernel(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BadState(f"{path.parent} cannot be read: {error!r}") from error
            if kernel is None:
                continue
            self._kernels[(kernel.owner.lower(), kernel.slug)] = kernel
            self._by_download_key |= {v.download_key: v for v in kernel.versions}
            self.unfinished += [v for v in kernel.versions if not v.status.over]
            kernel_id = max(kernel_id, kernel.kernel_id)
            session_id = max(session_id, *(v.session_id for v in kernel.versions))
        self.unfinished.sort(key=lambda version: version.session_id)
        return kernel_id, session_id

    def _runs(self, account: str) -> list[Version]:
        mine = (k for k in self._kernels.values() if k.owner == account)
        return [version for kernel in mine for version in kernel.versions]

    def _known(self, push: Push) -> Kernel | None:
        """The kernel a push is meant for; the numeric id wins over the slug [V]."""
        if push.kernel_id is None:
            return self._kernels.get((push.owner.lower(), push.slug))
        for kernel in self._kernels.values():
            if kernel.kernel_id == push.kernel_id and kernel.owner == push.owner:
                return kernel
        raise Refusal(404, "Not found")

    def _name(self, push: Push, known: Kernel | None) -> tuple[str, str]:
        """Slug and title after the push: the slug always follows the title [D].

        So a new kernel whose title does not resolve to its id appears under another slug than
        asked, and a new title renames a known one. Two kernels cannot have one slug [?].
        """
        title = push.title or (known.title if known else push.slug)
        slug = slugify(title)
        _check_name("title", title)
        _check_name("slug", slug)
        other = self._kernels.get((push.owner.lower(), slug))
        if other is not None and other is not known:
            raise Refusal(409, f"A notebook with the title '{title}' already exists.")
        return slug, title

    def _no_capacity(self, account: str, push: Push) -> str:
        """Kaggle's words for a full house, or nothing."""
        kind = "GPU" if push.wants_gpu else "CPU"
        active = [v for v in self._runs(account) if not v.status.over]
        same = [v for v in active if v.push.wants_gpu == push.wants_gpu]
        if len(same) >= MAX_SESSIONS[kind]:
            return f"Maximum batch {kind} session count of {MAX_SESSIONS[kind]} reached."
        if push.wants_gpu and self.quota(account).gpu_used >= self._gpu_hours * 3600:
            return f"Maximum weekly GPU quota of {self._gpu_hours:.2f} hours reached."  # [A]
        return ""

    def _sources(self, account: str, push: Push) -> tuple[tuple[Mount, ...], dict[str, list[str]]]:
        """What will be mounted, and what is dropped by kind; the run goes on without those [A]."""
        found: list[Mount] = []
        dropped: dict[str, list[str]] = {}
        finders = {
            "Competition": (push.competitions, self._competition),
            "Dataset": (push.datasets, lambda name: self._dataset(account, name)),
            "Kernel": (push.kernels, lambda name: self._output_of(account, name)),
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
        """One whose rules are not accepted is dropped like an unknown one [?]."""
        if self._inputs is None or not _SLUG.fullmatch(name) or name in self._rules_not_accepted:
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
        source = self._library.attachable(account, owner, slug, version)
        target = self._target(slug, PurePosixPath("datasets", owner, slug))
        return Mount(target, source.resolve()) if source else None

    def _model(self, name: str) -> Mount | None:
        """`owner/model/framework/instance/version`; the old mount leaves the owner out [A]."""
        found = self._library.model_folder(name)
        if found is None:
            return None
        path, source = PurePosixPath(found[0]), found[1]
        target = self._target(str(path.relative_to(path.parts[0])), PurePosixPath("models", path))
        return Mount(target, source.resolve())

    def _output_of(self, account: str, name: str) -> Mount | None:
        """The outputs of another kernel's latest complete version."""
        owner, _, rest = name.partition("/")
        try:
            kernel, _ = self.find(account, owner, rest.partition("/")[0])
        except Refusal:
            return None
        target = PurePosixPath("notebooks", kernel.owner, kernel.slug)
        done = kernel.latest_complete
        return Mount(self._target(kernel.slug, target), done.working) if done else None

    def _target(self, slug: str, new: PurePosixPath) -> PurePosixPath:
        return new if self._mounts == "new" else PurePosixPath(slug)

    def _new_kernel(self, owner: str, slug: str, title: str) -> Kernel:
        kernel = Kernel(next(self._kernel_ids), owner, slug, title, self._folder / owner / slug)
        # A slug that a renaming set free can be taken anew; its folder is not.
        if kernel.folder.exists():
            kernel.folder = kernel.folder.with_name(f"{slug}.{kernel.kernel_id}")
        return kernel

    def _rename(self, kernel: Kernel, slug: str, title: str) -> None:
        self._kernels.pop((kernel.owner.lower(), kernel.slug), None)
        kernel.slug, kernel.title = slug, title
        self._kernels[(kernel.owner.lower(), slug)] = kernel

    def _new_version(
        self,
        kernel: Kernel,
        push: Push,
        mounts: tuple[Mount, ...],
        dropped: dict[str, list[str]],
    ) -> Version:
        number = len(kernel.versions) + 1
        folder = kernel.folder / f"v{number}"
        version = Version(number, next(self._session_ids), push, folder, mounts, dropped)
        version.working.mkdir(parents=True)
        (folder / "source.ipynb").write_bytes(push.text.encode())
        _write_json(folder / "request.json", _request_record(push))
        _write_json(kernel.folder / "kernel.json", _kernel_record(kernel))
        _write_json(folder / "version.json", _version_record(version))  # last: it is whole
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
    """Whether `name` can be an account; it becomes the name of a folder."""
    return bool(_ACCOUNT.fullmatch(name))


def _check_request(push: Push) -> None:
    """The refusals that need no knowledge of other kernels."""
    if push.language != "python" or push.kernel_type != "notebook":
        raise Refusal(501, f"unimplemented: SaveKernel of {push.language} {push.kernel_type}")
    if push.execution not in ("", "KERNEL_EXECUTION_TYPE_UNSPECIFIED", "SAVE_AND_RUN_ALL"):
        raise Refusal(501, f"unimplemented: SaveKernel with {push.execution}")
    if not push.slug and push.kernel_id is None:
        raise Refusal(400, "One of id and slug is required")
    if push.timeout is not None and push.timeout <= 0:
        raise Refusal(400, "Invalid value for sessionTimeoutSeconds")
    try:
        size = len(push.text.encode())
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can express
        raise Refusal(400, "The kernel source is not valid text") from None
    if size >= MAX_SOURCE:
        raise Refusal(400, "The kernel source must be less than 1 megabytes in size.")  # [A]


def _check_name(what: str, name: str) -> None:
    if len(name) < MIN_NAME:
        raise Refusal(400, f"The kernel {what} must have at least {MIN_NAME} characters")


def _pinned(kernel: Kernel, label: str) -> Version:
    """The version that "v3" names. An unknown one is not found, and never means the latest."""
    if not label:
        return kernel.latest
    for version in kernel.versions:
        if label == f"v{version.number}":
            return version
    raise Refusal(404, "Not found")


def _next_refresh() -> dt.datetime:
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + dt.timedelta(days=(SATURDAY - today.weekday()) % 7 or 7)


def _request_record(push: Push) -> dict[str, Any]:
    return {key: value for key, value in vars(push).items() if key != "text"}


def _kernel_record(kernel: Kernel) -> dict[str, Any]:
    return {name: getattr(kernel, name) for name in ("kernel_id", "owner", "slug", "title")}


def _version_record(version: Version) -> dict[str, Any]:
    return {
        "number": version.number,
        "session_id": version.session_id,
        "mounts": [[str(mount.target), str(mount.source)] for mount in version.mounts],
        "dropped": version.dropped,
    }


def _status_record(version: Version, status: Status) -> dict[str, Any]:
    return {
        "status": status,
        "failure": version.failure,
        "session_id": version.session_id,
        "seconds": round(version.seconds, 3),
        "started": version.started,
        "ended": version.ended,
        "outputs": [[output.name, output.size, output.modified] for output in version.outputs],
    }


def _write_json(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_kernel(path: Path) -> Kernel | None:
    """A kernel with the versions that were made wholly; None if none was. Half of one goes."""
    kernel = Kernel(**_read_json(path), folder=path.parent)
    for folder in path.parent.glob("v*"):
        if not (folder / "version.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
    versions = map(_read_version, path.parent.glob("v*/version.json"))
    kernel.versions = sorted(versions, key=lambda version: version.number)
    if not kernel.versions:
        shutil.rmtree(path.parent, ignore_errors=True)
        return None
    return kernel


def _read_version(path: Path) -> Version:
    """A version as its run left it, or as if that had never begun."""
    record, folder = _read_json(path), path.parent
    mounts = tuple(Mount(PurePosixPath(t), Path(source)) for t, source in record["mounts"])
    push = _read_push(folder)
    number, session_id, dropped = record["number"], record["session_id"], record["dropped"]
    version = Version(number, session_id, push, folder, mounts, dropped)
    if (folder / "status.json").exists():
        end = _read_json(folder / "status.json")
        version.status, version.failure = Status(end["status"]), end["failure"]
        version.started, version.ended = end["started"], end["ended"]
        version.outputs = tuple(OutputFile(*output) for output in end["outputs"])
        if (log := folder / "log.jsonl").exists():
            version.log = list(map(json.loads, log.read_text(encoding="utf-8").splitlines()))
        return version
    for name in ("working", "scratch"):
        shutil.rmtree(folder / name, ignore_errors=True)
    version.working.mkdir(exist_ok=True)
    return version


def _read_push(folder: Path) -> Push:
    record = _read_json(folder / "request.json")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    return Push(text=(folder / "source.ipynb").read_bytes().decode(), **fields)
