"""What the folders alone say about the runs: a row for each, all of one, how two differ.

Only files that belong to the run count: outputs of an incomplete folder and the manifest of another
digest are ignored. A damaged file is reported as a problem, and the rest is still shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, computed_field

from kernelkit.errors import LocalError
from kernelkit.kaggle.types import state_word
from kernelkit.notebook.manifest import BUNDLE_NAME, Manifest
from kernelkit.notebook.runtime import RunEvent
from kernelkit.runs import store
from kernelkit.runs.events import read_events
from kernelkit.runs.identity import Identity, identity
from kernelkit.runs.manifest import (
    END_NAME,
    RUN_MANIFEST_NAME,
    OutputEntry,
    RunEnd,
    RunFacts,
    RunManifest,
    RunRecord,
    SubmissionRecord,
    Verdict,
)
from kernelkit.runs.metric import Metric, best_metric
from kernelkit.runs.store import RunFolder
from kernelkit.storage import DocumentError, MissingDocumentError, read_model

ENDED_WORDS = ("stalled", "deleted")
"""Words of run.json that Kaggle's state and message do not show."""

_CAMPAIGN = re.compile(r"[a-z]+-[0-9a-f]{12}")
"""Begins the mark of each of its sessions."""

HALF_WRITTEN, DAMAGED, NOT_PULLED = "half-written", "damaged", "not pulled"

Pair = tuple[JsonValue, JsonValue]
"""A value of the first run and of the second; None if a run has none."""

Model = TypeVar("Model", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RunRow(_Frozen):
    """One version in the table of all runs. A value that is unknown is None."""

    run: str
    """`owner/slug`."""

    version: int
    digest: str | None
    """The first 12 characters, or all of them in `RunDetails`."""

    commit: str | None
    profile: str | None
    pushed: str
    """In UTC, ISO 8601."""

    state: str
    """Kaggle's state, or HALF_WRITTEN, DAMAGED or NOT_PULLED."""

    failure: str | None
    """Kaggle's message, if the run failed."""

    verified: bool | None
    metric: Metric | None
    submission: str | None
    public_score: str | None
    private_score: str | None
    gpu_seconds: float | None
    campaign: str | None = None
    """Of a chain's or a sweep's session: `sweep-3f81c0de2a77`."""

    next: str | None
    """What to do about a damaged folder."""

    recorded_word: str | None = Field(default=None, exclude=True)
    """What Kaggle's state does not show: that the run stalled, or that its kernel was deleted."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state_word(self) -> str:
        """The state in one word for people: only Kaggle's message shows a time-out."""
        return self.recorded_word or state_word(self.state, self.failure or "")


class RunDetails(RunRow):
    """Everything that is known about one run."""

    url: str | None
    endpoint: str | None
    folder: str
    dirty: bool | None
    failure: str | None
    pulled: str | None
    started: str | None
    """When the notebook's first cell ran, in UTC, ISO 8601."""

    seconds: float | None
    push_id: str | None
    """None if another client or an older kernelkit has pushed it."""

    code_dataset: str | None = None
    """`owner/slug/3`: the version of the dataset with the package, if a push has published it."""

    identity_proven: bool | None
    files_verified: bool | None
    parameters: RunFacts
    kernel: RunFacts
    hardware: RunFacts
    versions: RunFacts
    outputs: tuple[OutputEntry, ...]
    verdict: Verdict | None
    submissions: tuple[SubmissionRecord, ...]
    files: dict[str, str]
    """Path → SHA-256 of every file of the package."""

    problems: tuple[str, ...]

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {
            **self.model_dump(mode="json"),
            "outputs": [o.model_dump(mode="json", exclude_unset=True) for o in self.outputs],
            "verdict": self.verdict.document if self.verdict else {},
            "submissions": [submission.document for submission in self.submissions],
        }


class CodeDifference(_Frozen):
    """Paths of the package's files that differ between two runs."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def any(self) -> bool:
        """Whether any file differs."""
        return bool(self.added or self.removed or self.changed)


class RunDifference(_Frozen):
    """How two runs differ."""

    before: str
    after: str
    same: bool
    """Whether both have the same digest."""

    commits: tuple[str | None, str | None]
    parameters: dict[str, Pair]
    kernel: dict[str, Pair]
    settings: dict[str, Pair]
    code: CodeDifference
    versions: dict[str, Pair]
    results: dict[str, Pair]
    problems: tuple[str, ...] = Field(default=())


def rows(root: Path) -> list[RunRow]:
    """Every version below `root` as a row of a table, newest last.

    The sessions of a campaign stand together, where its first one belongs.
    """
    submissions = store.submissions(root)
    found = [_read(folder, submissions) for folder in store.versions(root)]
    rows = [known.row() for known in sorted(found, key=lambda known: known.pushed)]
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row.campaign or str(number), number)
    places = [first[row.campaign or str(number)] for number, row in enumerate(rows)]
    return [row for _, row in sorted(zip(places, rows, strict=True), key=lambda one: one[0])]


def show(folder: RunFolder) -> RunDetails:
    """Everything that is known about one run."""
    known = _read(folder)
    record, bundle, end, manifest = known.record, known.bundle, known.end, known.manifest
    provenance = bundle.provenance if bundle else None
    row = known.row().model_dump()
    used = _facts(manifest and manifest.parameters)
    return RunDetails.model_validate(
        {
            **row,
            "digest": record.digest if record else None,
            "commit": provenance.commit if provenance else None,
            "url": record.url if record else None,
            "endpoint": record.endpoint if record else None,
            "folder": str(folder.path),
            "dirty": provenance.dirty if provenance else None,
            "failure": end.failure if end else None,
            "pulled": end.pulled if end else None,
            "started": manifest.started if manifest else None,
            "seconds": manifest.seconds if manifest else None,
            "push_id": record.push_id if record else None,
            "code_dataset": record.code_dataset if record else None,
            "identity_proven": end.identity_proven if end else None,
            "files_verified": end.files_verified if end else None,
            "parameters": used if used.document else _sent(bundle),
            "kernel": _facts(bundle and bundle.kernel),
            "hardware": _facts(manifest and manifest.hardware),
            "versions": _facts(manifest and manifest.versions),
            "outputs": manifest.outputs if manifest else (),
            "verdict": end.verdict if end else None,
            "submissions": known.submissions,
            "files": known.files,
            "problems": known.problems,
        }
    )


def diff(before: RunFolder, after: RunFolder) -> RunDifference:
    """How two runs differ."""
    a, b = _read(before), _read(after)
    versions = [known.manifest.versions if known.manifest else None for known in (a, b)]
    parameters = [_sent(known.bundle) for known in (a, b)]
    kernels = [known.bundle.kernel if known.bundle else None for known in (a, b)]
    return RunDifference(
        before=a.name,
        after=b.name,
        same=a.digest == b.digest,
        commits=(a.commit, b.commit),
        parameters=_pairs(*parameters),
        kernel=_pairs(*kernels),
        settings=_pairs(a.bundle, b.bundle, names=_SETTINGS),
        code=_code(a.files, b.files),
        versions=_pairs(*versions),
        results=_pairs(a.row(), b.row(), names=_RESULTS),
        problems=(*a.problems, *b.problems),
    )


_RESULTS = ("metric", "submission", "public_score", "private_score", "gpu_seconds")
_SETTINGS = ("kernelkit", "profile", "entry", "outputs", "pip", "layout")


class _Known:
    """The files of a folder; None for a file that is missing, damaged, or of another run."""

    def __init__(self, folder: RunFolder, submissions: Iterable[SubmissionRecord]) -> None:
        self.folder, self.problems = folder, list[str]()
        self.record: RunRecord | None = None
        try:
            self.record = folder.read()
        except LocalError as error:
            self.problems.append(f"{error} {error.next_step}")
        self.bundle = self._read(BUNDLE_NAME, Manifest)
        self.end: RunEnd | None = folder.read_end()
        manifest = self._read(RUN_MANIFEST_NAME, RunManifest) if self.end else None
        self.manifest = manifest if manifest and self._is_own(manifest) else None
        if self.record is None:
            self.state = HALF_WRITTEN
        elif self.end is not None:
            self.state = self.end.state
        elif (folder.path / END_NAME).exists():
            self.state = DAMAGED
            self.problems.append(f"{folder.path / END_NAME} is damaged. Pull this version again.")
        else:
            self.state = NOT_PULLED
        endpoint = self.record.endpoint if self.record else None
        self.submissions = [
            submission
            for submission in submissions
            if (submission.slug, submission.version) == (folder.slug, folder.version)
            and submission.endpoint == endpoint
        ]

    def _is_own(self, manifest: RunManifest) -> bool:
        if self.record is None:
            return False
        whose, difference = identity(self.record, manifest.digest, manifest.push_id)
        if difference:
            self.problems.append(f"{RUN_MANIFEST_NAME} is {difference}. Pull this version again.")
        return whose != Identity.MISMATCH

    @property
    def name(self) -> str:
        return f"{self._kernel_name}/v{self.folder.version}"

    @property
    def digest(self) -> str | None:
        return self.record.digest if self.record else None

    @property
    def pushed(self) -> str:
        """When, in UTC; the folder's own date if nothing is recorded."""
        if self.record and self.record.pushed:
            return self.record.pushed
        try:
            seconds = self.folder.path.stat().st_mtime
        except OSError:
            seconds = 0.0
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

    @property
    def commit(self) -> str | None:
        """The commit of the sources, with a `+` if they had uncommitted changes."""
        provenance = self.bundle.provenance if self.bundle else None
        if provenance is None or not provenance.commit:
            return None
        return f"{provenance.commit[:9]}{'+' if provenance.dirty else ''}"

    @property
    def files(self) -> dict[str, str]:
        return {file.path: file.sha256 for file in self.bundle.files} if self.bundle else {}

    @property
    def gpu_seconds(self) -> float | None:
        """How long the run says that it had a GPU; Kaggle counts the session around it."""
        if self.manifest is None or self.manifest.seconds is None:
            return None
        return self.manifest.seconds if self.manifest.hardware.document.get("gpus") else 0.0

    def row(self) -> RunRow:
        last = self.submissions[-1] if self.submissions else None
        return RunRow(
            run=self._kernel_name,
            version=self.folder.version,
            digest=self.digest[:12] or None if self.digest else None,
            commit=self.commit,
            profile=self.record.profile if self.record else None,
            pushed=self.pushed,
            state=self.state,
            failure=self.end.failure or None if self.end else None,
            verified=self.end.succeeded and self.end.verified if self.end else None,
            metric=self._metric(),
            submission=last.status if last else None,
            public_score=last.public_score or None if last else None,
            private_score=last.private_score or None if last else None,
            gpu_seconds=self.gpu_seconds,
            campaign=self._campaign,
            next=self.problems[0] if self.problems else None,
            recorded_word=self._recorded_word,
        )

    @property
    def _recorded_word(self) -> str | None:
        word = self.end.state_word if self.end else None
        return word if word in ENDED_WORDS else None

    @property
    def _campaign(self) -> str | None:
        mark = self.record.session if self.record else None
        found = _CAMPAIGN.match(mark) if mark else None
        return found[0] if found else None

    @property
    def _kernel_name(self) -> str:
        return f"{self.record.owner}/{self.folder.slug}" if self.record else self.folder.slug

    def _read(self, name: str, model: type[Model]) -> Model | None:
        try:
            return read_model(self.folder.path / name, model)
        except MissingDocumentError:
            return None
        except DocumentError as error:
            self.problems.append(str(error))
            return None

    def _metric(self) -> Metric | None:
        """The best epoch in the log."""
        if self.bundle is None:
            return best_metric(self._epochs())
        return best_metric(self._epochs(), self.bundle.metric, self.bundle.metric_goal)

    def _epochs(self) -> Sequence[RunEvent]:
        timed = read_events(self.folder.log) if self.manifest else iter(())
        return [one.event for one in timed if one.event.kind == "epoch"]


def _read(folder: RunFolder, submissions: Iterable[SubmissionRecord] | None = None) -> _Known:
    if submissions is None:
        submissions = store.submissions(folder.root, folder.slug)
    with folder.reading():
        return _Known(folder, submissions)


def _code(before: Mapping[str, str], after: Mapping[str, str]) -> CodeDifference:
    common = before.keys() & after.keys()
    return CodeDifference(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(sorted(path for path in common if before[path] != after[path])),
    )


def _pairs(
    before: BaseModel | None, after: BaseModel | None, *, names: Sequence[str] = ()
) -> dict[str, Pair]:
    """The values that differ, by name; `names` restricts them."""
    a, b = _facts(before).document, _facts(after).document
    return {
        name: (a.get(name), b.get(name))
        for name in names or sorted({*a, *b})
        if a.get(name) != b.get(name)
    }


def _sent(bundle: Manifest | None) -> RunFacts:
    """The parameters as they were sent."""
    return RunFacts.model_validate(bundle.parameters if bundle else {})


def _facts(model: BaseModel | None) -> RunFacts:
    document = model.model_dump(mode="json", exclude_unset=True) if model else {}
    return RunFacts.model_validate(document)
