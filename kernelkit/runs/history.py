"""What is known of the runs by their folders alone: a row of each, all of one, how two differ.

Nothing is believed that does not belong: outputs of a folder that is not complete, and the manifest
of another digest, say nothing here. What is damaged is told, and never stops the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernelkit.errors import KernelkitError, LocalError
from kernelkit.kaggle import LogEntry, parse_log
from kernelkit.runs import store as ledger
from kernelkit.runs.store import Record
from kernelkit.runs.watch import progress

METRICS = (
    ("val_iou", max),
    ("val_score", max),
    ("val_f1", max),
    ("val_auc", max),
    ("val_accuracy", max),
    ("val_loss", min),
)
"""Keys of an epoch's event in the log, and the best of their values; the first found counts."""

LOG_BYTES = 64 << 20  # a larger log is not looked through for a table
HALF_WRITTEN, DAMAGED, NOT_PULLED = "half-written", "damaged", "not pulled"


def rows(root: Path) -> list[dict[str, Any]]:
    """Every version below `root` as a row of a table, the newest last.

    A value that is not known is None. `next` says what to do about a folder that is not as it
    should be.
    """
    submissions = ledger.submissions(root)
    found = [_known(record, submissions) for record in ledger.versions(root)]
    return [known.row() for known in sorted(found, key=lambda known: known.pushed)]


def show(record: Record) -> dict[str, Any]:
    """Everything that is known of one run."""
    known = _known(record)
    run, manifest = known.run, known.manifest
    return {
        **known.row(),
        "url": known.push.get("url"),
        "endpoint": known.push.get("endpoint"),
        "folder": str(record.folder),
        "digest": known.push.get("digest"),
        "commit": _mapping(known.bundle.get("provenance")).get("commit"),
        "dirty": _mapping(known.bundle.get("provenance")).get("dirty"),
        "failure": run.get("failure"),
        "pulled": run.get("pulled"),
        "seconds": _number(manifest.get("seconds")),
        "parameters": _mapping(manifest.get("parameters")) or known.parameters,
        "kernel": _mapping(known.bundle.get("kernel")),
        "hardware": _mapping(manifest.get("hardware")),
        "versions": _mapping(manifest.get("versions")),
        "outputs": known.outputs,
        "verdict": _mapping(run.get("verdict")),
        "submissions": known.submissions,
        "files": known.files,
        "problems": known.problems,
    }


def diff(before: Record, after: Record) -> dict[str, Any]:
    """How two runs differ: per value a pair, None where one of them has none; code by its files."""
    a, b = _known(before), _known(after)
    return {
        "before": a.name,
        "after": b.name,
        "same": a.push.get("digest") == b.push.get("digest"),
        "commits": [a.commit, b.commit],
        "parameters": _pairs(a.parameters, b.parameters),
        "kernel": _pairs(*(_mapping(known.bundle.get("kernel")) for known in (a, b))),
        "settings": _pairs(*({k: known.bundle.get(k) for k in _SETTINGS} for known in (a, b))),
        "code": _files(a.files, b.files),
        "versions": _pairs(*(_mapping(known.manifest.get("versions")) for known in (a, b))),
        "results": _pairs(a.results, b.results),
        "problems": [*a.problems, *b.problems],
    }


_SETTINGS = ("kernelkit", "profile", "entry", "outputs", "pip", "layout")


class _Known:
    """The documents of a folder, each an empty one where it is missing or cannot be believed."""

    def __init__(self, record: Record, submissions: Iterable[Mapping[str, Any]]) -> None:
        self.record, self.problems = record, list[str]()
        self.push: Mapping[str, Any] = {}
        try:
            self.push = record.push
        except LocalError as error:
            self.problems.append(f"{error} {error.next_step}")
        complete = record.complete
        self.bundle = self._document("bundle.json")
        self.run = self._document("run.json") if complete else {}
        manifest = self._document("run-manifest.json") if complete else {}
        ours = manifest.get("digest") == self.push.get("digest")
        self.manifest = manifest if ours else {}
        if not self.push:
            self.state = HALF_WRITTEN
        elif complete:
            self.state = str(self.run.get("state"))
        elif (record.folder / "run.json").exists():
            self.state = DAMAGED
            self.problems.append(f"{record.folder}/run.json is damaged. Pull this version again.")
        else:
            self.state = NOT_PULLED
        slug = record.folder.parent.name
        self.submissions = [
            dict(entry)
            for entry in submissions
            if (entry["slug"], entry["version"]) == (slug, record.version)
            and entry["endpoint"] == self.push.get("endpoint")
        ]

    @property
    def name(self) -> str:
        owner = f"{self.push['owner']}/" if self.push else ""
        return f"{owner}{self.record.folder.parent.name}/v{self.record.version}"

    @property
    def pushed(self) -> str:
        """When, in UTC; by the folder's own date where nothing is recorded."""
        if isinstance(pushed := self.push.get("pushed"), str) and pushed:
            return pushed
        try:
            seconds = self.record.folder.stat().st_mtime
        except OSError:
            seconds = 0.0
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

    @property
    def commit(self) -> str | None:
        """Of the sources, and whether they were changed since."""
        provenance = _mapping(self.bundle.get("provenance"))
        commit = provenance.get("commit")
        if not isinstance(commit, str) or not commit:
            return None
        return f"{commit[:9]}{'+' if provenance.get('dirty') else ''}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """As they were sent."""
        return _mapping(self.bundle.get("parameters"))

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What the run says that it left."""
        return [dict(output) for output in _mappings(self.manifest.get("outputs"))]

    @property
    def files(self) -> dict[str, str]:
        """Path → sha256 of every file of the package."""
        listed = _mappings(self.bundle.get("files"))
        return {str(file.get("path")): str(file.get("sha256")) for file in listed}

    @property
    def gpu_seconds(self) -> float | None:
        """How long the run had a GPU, by its own account; Kaggle counts the session around it."""
        seconds = _number(self.manifest.get("seconds"))
        if seconds is None or _mapping(self.manifest.get("hardware")).get("gpus"):
            return seconds
        return 0.0

    @property
    def results(self) -> dict[str, Any]:
        """Metric, scores and GPU seconds."""
        last: Mapping[str, Any] = self.submissions[-1] if self.submissions else {}
        return {
            "metric": self._metric(),
            "submission": last.get("status"),
            "public_score": last.get("public_score") or None,
            "private_score": last.get("private_score") or None,
            "gpu_seconds": self.gpu_seconds,
        }

    def row(self) -> dict[str, Any]:
        verified = self.run.get("verified")
        return {
            "run": self.name.rpartition("/")[0],
            "version": self.record.version,
            "digest": str(self.push.get("digest", ""))[:12] or None,
            "commit": self.commit,
            "profile": self.push.get("profile"),
            "pushed": self.pushed,
            "state": self.state,
            "verified": verified if isinstance(verified, bool) else None,
            **self.results,
            "next": self.problems[0] if self.problems else None,
        }

    def _document(self, name: str) -> Mapping[str, Any]:
        path = self.record.folder / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.problems.append(f"{path} cannot be read: {type(error).__name__}")
            return {}
        return _mapping(document)

    def _metric(self) -> dict[str, Any] | None:
        """The best epoch of the log by the first of METRICS that it reports."""
        events = self._epochs()
        for name, best in METRICS:
            numbers = ((_number(event.get(name)), event) for event in events)
            found = [(value, event) for value, event in numbers if value is not None]
            if found:
                value, event = best(found, key=lambda pair: pair[0])
                where = {key: event.get(key) for key in ("experiment", "epoch")}
                return {"name": name, "value": value, **where}
        return None

    def _epochs(self) -> Sequence[Mapping[str, Any]]:
        path = self.record.folder / f"{self.record.folder.parent.name}.log"
        try:
            if not self.manifest or path.stat().st_size > LOG_BYTES:
                return []
            entries = parse_log(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, RecursionError, KernelkitError):
            return []
        text = "".join(entry.text for entry in entries)
        lines = (LogEntry("", 0.0, line) for line in text.splitlines() if '"epoch"' in line)
        events = (progress(line) for line in lines)
        return [event for event in events if event and event["event"] == "epoch"]


def _known(record: Record, submissions: Iterable[Mapping[str, Any]] | None = None) -> _Known:
    folder = record.folder.parent
    if submissions is None:
        submissions = ledger.submissions(folder.parent, folder.name)
    with ledger.reading(record):
        return _Known(record, submissions)


def _files(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    common = before.keys() & after.keys()
    return {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(path for path in common if before[path] != after[path]),
    }


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        str(name): [before.get(name), after.get(name)]
        for name in sorted({*before, *after}, key=str)
        if before.get(name) != after.get(name)
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """A finite number, None where it is none: the value comes from a notebook."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
