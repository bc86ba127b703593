"""Finds out with one tiny kernel how the real Kaggle behaves, and records it without secrets.

Much of what kernelkit assumes about Kaggle is not documented. `probe` runs a private kernel on a
CPU twice, the second time to fail, and compares what it sees with these assumptions. It records
each call in a transcript: field names and types, and the values of a few harmless fields.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import parse_qsl, urlsplit

import requests
from pydantic import BaseModel, JsonValue

import kernelkit
from kernelkit import workflow
from kernelkit.bundle.image import Snapshot, load_snapshot, snapshot
from kernelkit.config import load_config
from kernelkit.doctor.checks import CheckResult, Health
from kernelkit.errors import ConfigError, RefusedError
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, State, Status, ignore
from kernelkit.notebook.render import Kernel
from kernelkit.runs.download import pull_run
from kernelkit.runs.store import RunFolder, find
from kernelkit.storage import DocumentError, read_model, write_atomically, write_json

if TYPE_CHECKING:
    from kernelkit.workflow import OnEvent

SLUG = "kernelkit-probe"
DEADLINE_SECONDS = 3600  # for each of the two runs; a queue may be long
STREAM_SECONDS = 30  # for the log of a run that has ended
ORDINARY_VALUES = frozenset(
    [
        *("status", "failureMessage", "error", "message", "code", "versionNumber", "versionLabel"),
        *("currentVersionNumber", "machineShape", "dockerImage", "dockerImagePinningType"),
        *("language", "kernelType", "isPrivate", "enableGpu", "enableTpu", "enableInternet"),
        *("totalTimeAllowed", "quotaRefreshTime", "pageSize", "fileName"),
    ]
)
"""Fields whose values are recorded. Of all others, such as tokens and sources, only the types."""

HEADERS = (
    *("content-type", "content-encoding", "content-length", "accept-ranges", "cache-control"),
    *("date", "expires", "last-modified", "retry-after", "transfer-encoding", "server"),
)
PLAN = f"""\
This pushes one tiny private kernel, {SLUG}, to {{account}} at {{endpoint}}:
  - two new versions run on a CPU without internet, for about a minute each; they use no GPU quota
  - the second version fails on purpose, to see what Kaggle keeps of a failed run, and asks for the
    output of the first one as an input, to see whether a chain of sessions needs two kernels
  - each version attaches {{sources}}, and writes down what is installed, the tree of
    /kaggle/input, the names (not the values) in its environment, and whether it has internet
  - the probe reads the quota, and the kernel's metadata, source, status, log and outputs
It changes nothing else and submits nothing. The kernel stays private until you delete it.
The calls are recorded in {{folder}}, without credentials, user names and signatures."""


class Exchange(TypedDict):
    """One call to Kaggle in transcript.json; `fields` and `body` are shapes (see `shape`)."""

    step: str
    seconds: float
    call: str
    host: str | None
    query: list[str]
    fields: JsonValue
    status: int
    headers: dict[str, str]
    body: JsonValue
    values: dict[str, JsonValue]
    """The values of ORDINARY_VALUES by their paths in the body."""


class TranscriptDocument(TypedDict):
    """What transcript.json holds."""

    schema: int
    kernelkit: str
    exchanges: list[Exchange]


class _SessionDocument(BaseModel):
    """session.json: what the probe's run found on its machine."""

    internet: bool
    python: str
    image: dict[str, str]
    mounts: list[str]
    environment: list[str]
    container_name: str | None


@dataclass(frozen=True)
class Report:
    """What a probe found: good means as kernelkit assumes, bad means different."""

    folder: Path
    """It contains transcript.json, report.json, image.json and the folders of both runs."""

    image: Path | None
    """A snapshot as `image.load_snapshot` reads it; None if the run wrote none."""

    findings: tuple[CheckResult, ...]


@dataclass(frozen=True)
class _Attempt:
    """One version of the probe, from its push to its end."""

    kernel: Kernel
    folder: RunFolder
    differences: tuple[str, ...]
    source: str
    end: Status
    outputs: tuple[str, ...]
    log: str

    @property
    def step(self) -> str:
        return f"v{self.folder.version}"

    @property
    def image_path(self) -> Path:
        """Where the run's snapshot of the image is, if it wrote one."""
        return self.folder.path / "image.json"

    @property
    def image(self) -> Snapshot | None:
        """The run's snapshot of the image; None if it wrote none that can be read."""
        with suppress(ConfigError):
            return load_snapshot(self.image_path)
        return None

    @property
    def session(self) -> _SessionDocument | None:
        """What the run found on its machine; None if it wrote nothing that can be read."""
        with suppress(DocumentError):
            return read_model(self.folder.path / "session.json", _SessionDocument)
        return None

    @property
    def status(self) -> str | None:
        """The status in the run's manifest; None if it wrote none that can be read."""
        with suppress(DocumentError):
            return self.folder.read_manifest().status
        return None


def plan(kaggle: Kaggle, folder: Path, competitions: Sequence[str]) -> str:
    """What `probe` is going to do; the user has to agree."""
    return PLAN.format(
        account=kaggle.credentials.username,
        endpoint=kaggle.endpoint,
        sources=", ".join(competitions) or "no data",
        folder=folder,
    )


def probe(
    kaggle: Kaggle, folder: Path, competitions: Sequence[str] = (), *, on_event: OnEvent = ignore
) -> Report:
    """Push, watch and pull the probe twice into `folder`; the transcript is always written.

    Raises:
        RefusedError: Kaggle refuses the push, or makes the kernel public; the probe then stops.
    """
    transcript = Transcript(kaggle.credentials)
    kaggle.listen(transcript)
    try:
        kaggle.quota()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        good = _attempt(kaggle, folder, competitions, stamp, False, transcript, on_event)
        bad = _attempt(kaggle, folder, competitions, stamp, True, transcript, on_event)
        transcript.step = "labels"
        earlier = workflow.status(kaggle, good.folder)
    finally:
        kaggle.listen(None)
        write_json(folder / "transcript.json", transcript.document)
    findings = tuple(_results(good, bad, earlier, competitions, transcript))
    write_json(folder / "report.json", transcript.redacted([asdict(found) for found in findings]))
    image = folder / "image.json" if good.image else None
    if image:
        write_atomically(image, good.image_path.read_bytes())
    return Report(folder, image, findings)


def _attempt(
    kaggle: Kaggle,
    folder: Path,
    competitions: Sequence[str],
    stamp: str,
    then_fail: bool,
    transcript: Transcript,
    on_event: OnEvent,
) -> _Attempt:
    transcript.step = "a run that fails" if then_fail else "a run"
    settings = [
        f'stamp="{stamp}"',
        f"then_fail={json.dumps(then_fail)}",
        f"kernel.competition_sources={json.dumps(list(competitions))}",
    ]
    if then_fail:  # the kernel exists now
        own = f"{kaggle.credentials.username}/{SLUG}"
        settings.append(f"kernel.kernel_sources={json.dumps([own])}")
    local = kaggle.endpoint if urlsplit(kaggle.endpoint).scheme == "http" else None
    config = load_config(project_folder(), settings=settings, endpoint=local, environment={})
    differences: list[str] = []
    try:
        run = workflow.push(config, kaggle, folder, again=True, on_event=on_event).folder
    except RefusedError as error:
        differences = list(getattr(error.details, "differences", None) or [])
        if not differences or any("is_private" in difference for difference in differences):
            raise
        run = find(folder, SLUG)
    owner = kaggle.credentials.username
    source = kaggle.kernel(owner, SLUG).source
    end = workflow.watch(kaggle, run, deadline=DEADLINE_SECONDS, on_event=on_event)
    kaggle.kernel(owner, SLUG)  # its machine shape and image, after the run
    for _ in kaggle.log_stream(owner, SLUG, run.version, STREAM_SECONDS):
        pass  # the transcript records the format of the log
    pull_run(kaggle, run, on_event=on_event)
    outputs = tuple(file.name for file in kaggle.outputs(owner, SLUG, run.version)[0])
    log = run.log.read_text(encoding="utf-8")
    kernel = workflow.render_kernel(config).as_pushed(run.read().push_id)
    return _Attempt(kernel, run, tuple(differences), source, end, outputs, log)


def project_folder() -> Path:
    """The probe's project: in an installed wheel within the package, else in examples/."""
    package = Path(kernelkit.__file__).parent
    inside = package / "probe_kernel"
    return inside if inside.is_dir() else package.parent / "examples" / "image"


def _results(
    good: _Attempt,
    bad: _Attempt,
    earlier: Status,
    competitions: Sequence[str],
    transcript: Transcript,
) -> Iterator[CheckResult]:
    yield _result("run", good.end.state == State.COMPLETE, f"it ended {good.end.state}")
    yield _result("requested settings", not good.differences, "; ".join(good.differences) or "kept")
    yield CheckResult("status", Health.GOOD, "; ".join(_statuses(transcript)))
    yield _result(
        "version label",
        earlier.state == good.end.state,
        f"after v{bad.folder.version} had ended {bad.end.state}, "
        f"{good.step} is still reported as {earlier.state}",
    )
    yield from _session_results(good, competitions)
    yield from _read_back_results(good, transcript)
    yield from _log_and_output_results(good, transcript)
    yield from _failure_results(bad)
    yield _own_output(bad)


def _session_results(good: _Attempt, competitions: Sequence[str]) -> Iterator[CheckResult]:
    session = good.session
    if session is None:
        yield CheckResult("session", Health.UNKNOWN, "the run wrote no session.json")
        return
    yield _result(
        "internet",
        session.internet is False,
        f"reached: {session.internet}, wanted: False",
    )
    known = snapshot().python
    yield _result(
        "python",
        session.python.startswith(known),
        f"{session.python}; expected {known}",
    )
    stamps = ", ".join(f"{name} {value}" for name, value in session.image.items())
    yield CheckResult(
        "image", Health.GOOD if stamps else Health.UNKNOWN, stamps or "no versions in /etc"
    )
    yield _freeze(good.image)
    for slug in competitions:
        yield _mount(slug, session.mounts)
    names = [name for name in session.environment if name.startswith("KAGGLE_")]
    yield CheckResult("environment", Health.GOOD, ", ".join(names) or "no KAGGLE_ variables")
    form = session.container_name
    yield _result(
        "session id", bool(form and "9" in form), f"KAGGLE_CONTAINER_NAME has the format {form}"
    )


def _freeze(image: Snapshot | None) -> CheckResult:
    if image is None:
        return CheckResult("freeze", Health.UNKNOWN, "the run wrote no image.json")
    found, assumed = image.distributions, snapshot().distributions
    other = [
        f"{name} {found.get(name, 'absent')} for {version}"
        for name, version in assumed.items()
        if version is not None and (found.get(name) or "").partition("+")[0] != version
    ]
    words = f"{len(found)} distributions; of the assumed versions, "
    return _result(
        "freeze",
        not other,
        words + (f"different: {', '.join(other)}" if other else "all"),
    )


def _mount(slug: str, mounts: Sequence[str]) -> CheckResult:
    layouts = {"2026": f"/competitions/{slug}/", "former": f"/input/{slug}/"}
    seen = [name for name, end in layouts.items() if any(path.endswith(end) for path in mounts)]
    if seen:
        return CheckResult(f"mount {slug}", Health.GOOD, f"in the layout of {' and '.join(seen)}")
    return CheckResult(
        f"mount {slug}", Health.BAD, f"in no known layout: {', '.join(mounts) or 'none'}"
    )


def _read_back_results(good: _Attempt, transcript: Transcript) -> Iterator[CheckResult]:
    yield compare_sources(good.kernel.payload, good.source)
    answers = [e["values"] for e in transcript.of("GetKernel", "a run") if e["status"] == 200]
    for name in ("machineShape", "dockerImage"):
        seen = [str(values.get(f"metadata.{name}", "not reported")) for values in answers]
        words = f"after the push {seen[0]}, after the end {seen[-1]}" if seen else "never reported"
        reported = bool(seen) and seen[-1] != "not reported"
        yield CheckResult(name, Health.GOOD if reported else Health.UNKNOWN, words)


def compare_sources(sent: str, given: str) -> CheckResult:
    """How the notebook that Kaggle returns differs from the one that was sent."""
    if sent == given:
        return CheckResult("read-back", Health.GOOD, "the same bytes")
    try:
        ours, theirs = json.loads(sent), json.loads(given)
        mine, yours = ours["cells"], theirs["cells"]
        sources = [["".join(c["source"]) for c in cells] for cells in (mine, yours)]
        ids = [[cell.get("id") for cell in cells] for cells in (mine, yours)]
        added = sorted(theirs["metadata"].keys() - ours["metadata"].keys())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return CheckResult("read-back", Health.BAD, f"Kaggle returned something else ({error!r})")
    words = [
        "different bytes",
        f"cells {'equal' if sources[0] == sources[1] else 'CHANGED'}",
        f"cell ids {'kept' if ids[0] == ids[1] else 'changed'}",
        f"metadata added: {', '.join(added) or 'none'}",
    ]
    return _result("read-back", sources[0] == sources[1], "; ".join(words))


def _log_and_output_results(good: _Attempt, transcript: Transcript) -> Iterator[CheckResult]:
    kinds = [
        e["headers"].get("content-type", "").partition(";")[0] or str(e["status"])
        for e in transcript.of("logs/stream", "a run")
    ]
    forms = list(dict.fromkeys(kinds))
    assumed = {"text/event-stream", "application/json"}
    health = Health.GOOD if set(forms) == assumed else Health.BAD
    if set(forms) < assumed:  # a run of seconds may end before the first look
        health = Health.UNKNOWN
    seen = f"formats, in this order: {', '.join(forms) or 'none'}"
    yield CheckResult("log stream", health, seen)
    try:
        entries = json.loads(good.log)
        keys = sorted({key for entry in entries for key in entry})
        yield _result("saved log", keys == ["data", "stream_name", "time"], f"an array of {keys}")
    except (ValueError, TypeError):
        yield _result(
            "saved log", not good.log, "not saved" if not good.log else "not a JSON array"
        )
    expected = {"image.json", "session.json", "run-manifest.json"}
    yield _result("outputs", expected <= set(good.outputs), ", ".join(good.outputs) or "none")
    addresses = [e for e in transcript.of("GET file", "a run") if e["status"] == 200]
    hosts = sorted({str(e["host"]) for e in addresses})
    queries = sorted({name for e in addresses for name in e["query"]})
    words = f"from {', '.join(hosts)}, signed by {', '.join(queries) or 'nothing'}"
    yield CheckResult("downloads", Health.GOOD if hosts else Health.UNKNOWN, words)


def _failure_results(bad: _Attempt) -> Iterator[CheckResult]:
    yield _result("failed run", bad.end.state == State.ERROR, f"it ended {bad.end.state}")
    yield CheckResult("failure message", Health.GOOD, bad.end.failure or "none")
    yield _result(
        "outputs of a failed run",
        "image.json" in bad.outputs,
        (f"saved: {', '.join(bad.outputs) or 'none'}"),
    )
    saved = "this run was asked to fail" in bad.log
    yield _result("log of a failed run", saved, "saved, with the error" if saved else "not saved")
    words, health = {"failed": ("not run", Health.GOOD), "complete": ("run", Health.BAD)}.get(
        bad.status or "", ("unknown", Health.UNKNOWN)
    )
    yield CheckResult("cells after the failing one", health, words)


def _own_output(second: _Attempt) -> CheckResult:
    """Whether a kernel can have its own earlier output as an input; see `chain`."""
    subject = "own output as an input"
    lost = [line for line in second.differences if line.startswith("kernel_sources")]
    if lost:
        words = f"{'; '.join(lost)}: a chain needs its two kernels"
        return CheckResult(subject, Health.GOOD, words)
    mounts = second.session.mounts if second.session else []
    if any(path.rstrip("/").endswith(f"/{SLUG}") for path in mounts):
        return CheckResult(subject, Health.GOOD, 'mounted: chain = "one kernel" works')
    words = "attached, and mounted nowhere" if mounts else "attached; the run has left no mounts"
    return CheckResult(subject, Health.UNKNOWN, f"{words}: leave chain as it is")


def _statuses(transcript: Transcript) -> Iterator[str]:
    """Each change of the first run's status, with the seconds since its push."""
    pushed = [e["seconds"] for e in transcript.of("SaveKernel", "a run")]
    last = None
    for exchange in transcript.of("GetKernelSessionStatus", "a run"):
        good = exchange["status"] < 400
        seen = exchange["values"].get("status", "{}") if good else f"HTTP {exchange['status']}"
        if seen != last:
            yield f"{seen} {exchange['seconds'] - pushed[-1]:.1f} s after the push"
        last = seen


def _result(subject: str, good: bool, words: str) -> CheckResult:
    return CheckResult(subject, Health.GOOD if good else Health.BAD, words)


class Transcript:
    """Records the shapes of all calls, without secrets; a listener for `Connection.listen`."""

    def __init__(
        self, credentials: Credentials, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.exchanges: list[Exchange] = []
        self.step = "before"
        """The current step; recorded with each exchange."""

        self._clock = clock
        self._started = clock()
        self._secrets = [s for s in (credentials.key, credentials.token) if s]
        self._user = re.compile(
            rf"(?<![A-Za-z0-9]){re.escape(credentials.username)}(?![A-Za-z0-9])", re.IGNORECASE
        )

    def __call__(self, response: requests.Response, streamed: bool) -> None:
        """Record one exchange; the body of a streamed response is left to its reader."""
        request = response.request
        url = urlsplit(str(request.url))
        fields = _document(request.body)
        body = None if streamed else _document(response.content)
        exchange: Exchange = {
            "step": self.step,
            "seconds": round(self._clock() - self._started, 2),
            "call": _call(str(request.method), url.path),
            "host": url.hostname,
            "query": sorted(name for name, _ in parse_qsl(url.query, keep_blank_values=True)),
            "fields": shape(fields),
            "status": response.status_code,
            "headers": {k.lower(): v for k, v in response.headers.items() if k.lower() in HEADERS},
            "body": shape(body),
            "values": dict(_values(body)),
        }
        self.exchanges.append(self.redacted(exchange))

    @property
    def document(self) -> TranscriptDocument:
        """The content of transcript.json."""
        return {"schema": 1, "kernelkit": kernelkit.__version__, "exchanges": self.exchanges}

    def of(self, call: str, step: str) -> list[Exchange]:
        """The exchanges of a step whose call ends with `call`."""
        return [e for e in self.exchanges if e["call"].endswith(call) and e["step"] == step]

    def redacted(self, value: Any) -> Any:
        """A document without the user's name, keys, addresses and long numbers."""
        if isinstance(value, dict):
            return {key: self.redacted(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.redacted(item) for item in value]
        if not isinstance(value, str):
            return value
        for secret in self._secrets:
            value = value.replace(secret, "<secret>")
        value = re.sub(r"(https?://[^/\s]+)/\S*", r"\1/…", value)
        return re.sub(r"\d{7,}", "<number>", self._user.sub("<user>", value))


def shape(value: Any) -> Any:
    """A JSON document with types instead of values; a list has the merged shape of its items."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        merged: Any = {}
        for item in map(shape, value):
            merged = {**merged, **item} if isinstance(item, dict) else item
        return [merged] if value else []
    if isinstance(value, bool) or value is None:
        return "boolean" if isinstance(value, bool) else None
    if isinstance(value, str):
        return "url" if value.startswith(("http://", "https://")) else "string"
    return "number"


def differences(theirs: TranscriptDocument, ours: TranscriptDocument) -> list[str]:
    """How the responses of two transcripts differ in shape, for each call and HTTP status.

    Reports fields that only one of them ever has; values, times and counts do not matter.
    """
    there, here = _summary(theirs), _summary(ours)
    found = []
    for call in sorted(there.keys() | here.keys()):
        if call not in here or call not in there:
            found.append(f"{call}: only {'there' if call in there else 'here'}")
            continue
        for path in sorted(there[call].keys() | here[call].keys()):
            kinds = [sorted(side[call].get(path, {"missing"})) for side in (there, here)]
            if kinds[0] != kinds[1]:
                found.append(f"{call}: {path} is {kinds[0]} there, {kinds[1]} here")
    return found


def _summary(transcript: TranscriptDocument) -> dict[str, dict[str, set[str]]]:
    """Call and status → path in the response → the types at that path."""
    summary: dict[str, dict[str, set[str]]] = {}
    for exchange in transcript["exchanges"]:
        paths = summary.setdefault(f"{exchange['call']} {exchange['status']}", {})
        kind = exchange["headers"].get("content-type", "").partition(";")[0]
        if not exchange["call"].startswith("GET file"):  # the type of an output depends on its name
            paths.setdefault("content-type", set()).add(kind)
        for path, leaf in _leaves(exchange["body"]):
            paths.setdefault(path, set()).add(leaf)
    return summary


def _leaves(value: Any, path: str = "body") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, f"{path}[]")
    elif value is not None:
        yield path, value


def _values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path → value, of the fields in ORDINARY_VALUES."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ORDINARY_VALUES and not isinstance(item, dict | list):
                yield f"{path}{key}", item
            else:
                yield from _values(item, f"{path}{key}.")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _values(item, f"{path}{number}.")


def _call(method: str, path: str) -> str:
    """The call's name: service and method, or the kind of address."""
    found = re.search(r"/v1/([A-Za-z.]+/[A-Za-z]+)$", path)
    if method == "POST" and found:
        return found[1]
    return f"{method} logs/stream" if "/v1/kernels/logs/stream/" in path else f"{method} file"


def _document(content: Any) -> Any:
    """The JSON of a body; None if it is not JSON."""
    try:
        return json.loads(content) if content else None
    except (ValueError, TypeError):
        return None
