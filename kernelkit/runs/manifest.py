"""The JSON files of a run's folder as typed, frozen models.

    push.json           RunRecord          the run's address, written at the push
    run.json            RunEnd             how the run ended, and what was pulled
    run-manifest.json   RunManifest        written by the run itself, from its start to its end
    submissions/*.json  SubmissionRecord   what was submitted of a version, and its scores

The keys are a contract with scripts: keys are added, never renamed or removed. A model keeps keys
that it does not know, so that a file of a newer version survives being written again. `bundle.json`
is `kernelkit.notebook.manifest.Manifest`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from kernelkit.kaggle.types import Scoring, State
from kernelkit.notebook.manifest import Document
from kernelkit.runs.identity import Identity
from kernelkit.storage import UnsafePathError, safe_path

RUN_MANIFEST_NAME = "run-manifest.json"
NO_MANIFEST = f"{RUN_MANIFEST_NAME}: missing"
"""The problem of a folder without one."""

PUSH_NAME, END_NAME = "push.json", "run.json"


def _or_none(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """None for a value of the wrong type: for facts that a run reports and nothing depends on."""
    try:
        return handler(value)
    except ValidationError:
        return None


def _objects(value: object) -> object:
    return value if isinstance(value, Mapping | BaseModel) else {}


Reported = WrapValidator(_or_none)


class RunFacts(Document):
    """What a run reports by name, for people: any JSON values, and nothing depends on them."""


ReportedFacts = Annotated[RunFacts, BeforeValidator(_objects)]


class RunAddress(Document):
    """Which run on which Kaggle, and the digest of the kernel that was sent."""

    owner: str
    slug: str
    version: StrictInt
    url: str
    digest: str
    endpoint: str
    push_id: Annotated[str | None, Reported] = None
    """Of its push; None if another client or an older kernelkit has pushed it."""

    @property
    def name(self) -> str:
        """For people: `owner/slug v3`."""
        return f"{self.owner}/{self.slug} v{self.version}"

    @property
    def address(self) -> RunAddress:
        """The address alone."""
        names = set(RunAddress.model_fields)
        return RunAddress.model_validate(self.model_dump(include=names, exclude_none=True))


class RunRecord(RunAddress):
    """push.json: the run's address, and how it came to be recorded."""

    pushed: Annotated[str | None, Reported] = None
    """When, in UTC (ISO 8601); None for a run that was adopted."""

    profile: Annotated[str | None, Reported] = None
    outcome: Annotated[str | None, Reported] = None
    """How the push came to this version: a value of `runs.push.Outcome`."""

    differences: Annotated[tuple[str, ...] | None, Reported] = None
    """Settings that Kaggle changed; absent where it changed none."""

    session: Annotated[str | None, Reported] = None
    """The mark of a campaign's session; absent in other runs."""

    code_dataset: Annotated[str | None, Reported] = None
    """`owner/slug/3`: the version of the dataset with the packages, published for this push."""


class OutputEntry(BaseModel):
    """One declared output, as the run described it when it wrote it."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    path: str
    size: int = Field(ge=0)
    """In bytes."""

    sha256: str
    rows: int | None = None
    """Of a csv, below its header; None if the run could not read it as a csv."""

    ids_sha256: str | None = None
    """Over the first column of a csv, with a newline after each id."""

    @field_validator("path")
    @classmethod
    def _safe(cls, path: str) -> str:
        try:
            safe_path(path)
        except UnsafePathError as error:
            raise ValueError(f"{path!r}: {error}") from None
        return path

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, sha256: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("is not a SHA-256 in hexadecimal")
        return sha256


class TrialPart(BaseModel):
    """What a run says about one trial of a sweep that it ran in a process of its own."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    number: int
    status: Annotated[str | None, Reported] = None
    """ "running", "complete", "failed" or "pruned": the run ended it early."""

    error: Annotated[str | None, Reported] = None
    traceback: Annotated[str | None, Reported] = None
    seconds: Annotated[float | None, Reported] = None
    parameters: ReportedFacts = RunFacts()

    @property
    def folder(self) -> str:
        """Of its outputs, below the working folder."""
        return f"trial-{self.number}/"

    @property
    def complete(self) -> bool:
        """Whether it has done everything."""
        return self.status == "complete"


def _parts(value: object) -> tuple[TrialPart, ...]:
    """Those that can be read."""
    found = []
    for one in value if isinstance(value, list) else []:
        with suppress(ValidationError):
            found.append(TrialPart.model_validate(one))
    return tuple(found)


TrialParts = Annotated[tuple[TrialPart, ...], BeforeValidator(_parts)]
UNFINISHED = ("running", "stalled")
"""The status of a manifest that was written while files may still have changed."""


class ReadableManifest(Document):
    """What can be used of a run-manifest.json although some of its values are malformed."""

    digest: Annotated[str | None, Reported] = None
    push_id: Annotated[str | None, Reported] = None
    status: Annotated[str | None, Reported] = None
    incomplete: Annotated[bool, Reported] = False
    outputs: tuple[OutputEntry, ...] = ()
    trials: TrialParts = ()
    checkpoints: tuple[OutputEntry, ...] = ()
    error: Annotated[str | None, Reported] = None
    refreshed: Annotated[str | None, Reported] = None
    last_event: ReportedFacts = RunFacts()

    @field_validator("outputs", "checkpoints", mode="before")
    @classmethod
    def _valid(cls, outputs: object) -> tuple[OutputEntry, ...]:
        found: dict[str, OutputEntry] = {}
        for value in outputs if isinstance(outputs, list) else []:
            with suppress(ValidationError):
                entry = OutputEntry.model_validate(value)
                found.setdefault(entry.path, entry)
        return tuple(found.values())

    @property
    def failed(self) -> bool:
        """Whether the run ended with an error."""
        return self.status in ("failed", "stalled")

    @property
    def unfinished(self) -> bool:
        """Whether files may have changed since it was written."""
        return self.status in UNFINISHED


class RunManifest(Document):
    """run-manifest.json: what the run says about itself.

    Digest, status and outputs are checked strictly, because the verdict depends on them. All other
    values are facts for people: one of the wrong type counts as not reported.
    """

    digest: str
    push_id: Annotated[str | None, Reported] = None
    status: Literal["running", "complete", "failed", "stalled"]
    """`running` in the manifest of a run that was ended from outside."""

    incomplete: Annotated[bool, Reported] = False
    """Whether the program said that another session must continue its work."""

    outputs: tuple[OutputEntry, ...]
    trials: TrialParts = ()
    """Of a sweep, if the run was one of several trials side by side."""
    checkpoints: tuple[OutputEntry, ...] = ()
    """Files that are not declared as outputs, and look like what a program resumes from."""

    refreshed: Annotated[str | None, Reported] = None
    """When it was written, in UTC."""

    last_event: ReportedFacts = RunFacts()
    """The last event that the program printed."""

    error: Annotated[str | None, Reported] = None
    traceback: Annotated[str | None, Reported] = None
    parameters: ReportedFacts = RunFacts()
    versions: ReportedFacts = RunFacts()
    hardware: ReportedFacts = RunFacts()
    started: Annotated[str | None, Reported] = None
    seconds: Annotated[float | None, Reported] = None

    @field_validator("outputs", "checkpoints")
    @classmethod
    def _distinct(cls, outputs: tuple[OutputEntry, ...]) -> tuple[OutputEntry, ...]:
        if len({output.path for output in outputs}) < len(outputs):
            raise ValueError("names a path twice")
        return outputs

    @field_validator("seconds", mode="before")
    @classmethod
    def _number(cls, seconds: object) -> object:
        return finite(seconds)


class Verdict(Document):
    """Whether a folder contains the results of exactly the run that was pushed."""

    problems: tuple[str, ...]
    """What does not match; empty if everything does."""

    run_error: str | None
    """The error with which the run ended: from its own manifest, or else from Kaggle."""

    outputs: tuple[OutputEntry, ...]
    """The declared outputs that were asked for, as the manifest describes them."""

    undeclared: tuple[str, ...]
    """Other files of the folder; they are not verified."""

    notes: tuple[str, ...] = ()
    """What could not be checked, although nothing is wrong."""

    run_status: str | None = None
    """The status in the run's manifest; None if it has none that can be read."""

    incomplete: bool = False
    """Whether the program said that another session must continue its work."""

    checkpoints: tuple[OutputEntry, ...] = ()
    """Undeclared files that the manifest lists, each as the run wrote it."""

    not_vouched_for: tuple[str, ...] = ()
    """Files that a run which was ended from outside has changed after it last described them."""

    described: str | None = None
    """When the run last described its files, in UTC."""

    last_event: ReportedFacts = RunFacts()
    """The last event before that."""

    identity: Identity = Identity.UNPROVEN
    """Whether exactly this run has made the files, and not another one with the same digest."""

    def is_undeclared(self, file: PurePath) -> bool:
        """Whether a file of the folder is undeclared."""
        return file.as_posix() in self.undeclared

    @property
    def verified(self) -> bool:
        """Whether the run succeeded and every output is as the run wrote it."""
        return self.files_verified and self.run_error is None

    @property
    def files_verified(self) -> bool:
        """Whether every output is as the run wrote it; the run may have failed afterwards.

        Of a run that was ended from outside, that is known of the files in `vouched_for` only.
        """
        return not self.problems and not self.unfinished

    @property
    def unfinished(self) -> bool:
        """Whether the run was ended from outside, and described its files some time before."""
        return self.run_status in UNFINISHED

    @property
    def stalled(self) -> bool:
        """Whether the run ended itself because nothing had happened for too long."""
        return self.run_status == "stalled"

    @property
    def vouched_for(self) -> tuple[str, ...]:
        """The paths of all files that are as the run described them."""
        entries = (*self.outputs, *self.checkpoints)
        return tuple(one.path for one in entries if one.path not in self.not_vouched_for)

    @property
    def left_no_manifest(self) -> bool:
        """Whether the run was stopped before it could write one: its files cannot be verified."""
        return self.run_error is not None and self.problems == (NO_MANIFEST,)

    @property
    def identity_proven(self) -> bool:
        """Whether the files have the push_id of this run."""
        return self.identity == Identity.PROVEN

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {
            **super().document,
            "verified": self.verified,
            "files_verified": self.files_verified,
            "identity_proven": self.identity_proven,
        }


class RunEnd(Document):
    """run.json: how a run ended, and what was pulled. Its presence means a complete folder."""

    state: str
    """A value of `kaggle.types.State`."""

    state_word: Annotated[str | None, Reported] = None
    """The state in one word: only Kaggle's message distinguishes a time-out from a cancellation."""

    run: Annotated[RunAddress | None, Reported] = None
    endpoint: Annotated[str | None, Reported] = None
    kernelkit: Annotated[str | None, Reported] = None
    failure: Annotated[str | None, Reported] = None
    """Kaggle's message, if the run failed."""

    pushed: Annotated[str | None, Reported] = None
    pulled: Annotated[str | None, Reported] = None
    pull_seconds: Annotated[float | None, Reported] = None
    files: Annotated[tuple[str, ...] | None, Reported] = None
    left_behind: Annotated[dict[str, str] | None, Reported] = None
    verified: Annotated[StrictBool | None, Reported] = None
    """Whether the run succeeded, and its files are verified."""

    files_verified: Annotated[StrictBool | None, Reported] = None
    identity_proven: Annotated[StrictBool | None, Reported] = None
    verdict: Annotated[Verdict | None, Reported] = None

    @property
    def succeeded(self) -> bool:
        """Whether Kaggle reports success."""
        return self.state == State.COMPLETE


class SubmissionRecord(Document):
    """A submission that was made from here; its scores are Kaggle's text, empty until it shows any.

    The file is rewritten when the score is known.
    """

    ref: StrictInt
    competition: str
    owner: Annotated[str | None, Reported] = None
    slug: str
    version: StrictInt
    url: Annotated[str | None, Reported] = None
    digest: Annotated[str | None, Reported] = None
    endpoint: str
    file: Annotated[str | None, Reported] = None
    sha256: str
    description: Annotated[str | None, Reported] = None
    submitted: str
    status: Annotated[str | None, Reported] = Scoring.PENDING.value
    public_score: Annotated[str | None, Reported] = ""
    private_score: Annotated[str | None, Reported] = ""
    error: Annotated[str | None, Reported] = ""
    asked: Annotated[str | None, Reported] = None
    """When the score was read, in UTC; absent until then."""


def finite(value: object) -> float | None:
    """A finite number, None for anything else: the value comes from a notebook."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
