"""Submit a verified run: check the file against the competition's sample, submit once, get a score.

A submission costs one of the day's, so the file is checked first (`submission_check`), and a file
that was submitted before is not sent again. A team shares its list of submissions: the description
of each names the run with its owner, and the SHA-256 of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from kernelkit.errors import (
    CapacityError,
    ConfigError,
    KernelkitError,
    LocalError,
    RefusedError,
    VerificationError,
)
from kernelkit.kaggle.types import Scoring
from kernelkit.runs import store
from kernelkit.runs.manifest import RunAddress, SubmissionRecord
from kernelkit.runs.store import RunFolder
from kernelkit.runs.submission_check import check
from kernelkit.runs.verify import verify
from kernelkit.storage import one_line

if TYPE_CHECKING:
    from kernelkit.kaggle.competitions import Competition
    from kernelkit.kaggle.kernels import Kaggle

DESCRIPTION_CHARACTERS = 500
"""Of a submission [?]: a longer one could lose its end, and with it the mark."""

OnEvent = Callable[[str], None]


@dataclass(frozen=True)
class SubmitOptions:
    """What to submit of a run, and how."""

    message: str = ""
    """Shown next to the score."""

    file: str = ""
    """Which output; by default the only csv."""

    competition: str = ""
    """By default the only competition source of the run."""

    sample: Path | None = None
    """The competition's sample submission; by default the one in `data`, else Kaggle's."""

    data: Path | None = None
    """A folder with one folder for each competition."""

    pixels: int | None = None
    """Of one image, if the submission contains run lengths."""

    code: bool = False
    """Submit the version of the kernel and not the file, as a code competition requires."""

    again: bool = False
    """Submit even if the same file was submitted before."""


@dataclass(frozen=True)
class Submitted:
    """A submission as it is recorded, and whether it was sent just now."""

    record: SubmissionRecord
    sent: bool
    identity_proven: bool
    """Whether exactly the named run has made the file."""

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        known = {"sent": self.sent, "identity_proven": self.identity_proven}
        return {**self.record.document, **known}


@dataclass(frozen=True)
class _SubmissionFile:
    """An output that is to be submitted, and where to."""

    run: RunAddress
    competition: str
    file: Path
    name: str
    """Of the file among the run's outputs."""
    sha256: str
    identity_proven: bool

    @property
    def mark(self) -> str:
        """A part of the description, by which a submission of this file is found again."""
        run = self.run
        name = f"{run.owner}/{run.slug} v{run.version}"
        return f"kernelkit {name} {run.digest[:12]} sha256 {self.sha256}"

    @property
    def old_mark(self) -> str:
        """That of an older kernelkit: a team mate's run can have the same."""
        return f"kernelkit {self.run.slug} v{self.run.version} {self.run.digest[:12]}"

    def description(self, message: str) -> str:
        """What Kaggle shows next to the score: the message, as much as there is room for."""
        if not message:
            return self.mark
        room = DESCRIPTION_CHARACTERS - len(f" ({self.mark})")
        shown = message if len(message) <= room else f"{message[: room - 1]}…"
        return f"{shown} ({self.mark})"

    def record(self, ref: int, description: str) -> SubmissionRecord:
        """The submission as it is recorded while it has no score."""
        return SubmissionRecord.model_validate(
            {
                "ref": ref,
                "competition": self.competition,
                **self.run.address.document,
                "file": self.name,
                "sha256": self.sha256,
                "description": description,
                "submitted": store.now(),
                "status": Scoring.PENDING,
                "public_score": "",
                "private_score": "",
                "error": "",
            }
        )


def submit_once(
    kaggle: Kaggle, folder: RunFolder, options: SubmitOptions, *, on_event: OnEvent
) -> Submitted:
    """Submit an output of a verified run, and record the submission.

    A file that was submitted before is not sent again, unless `options.again` is set.

    Raises:
        VerificationError: the run is not complete and verified, or its file would get no score.
        ConfigError: it is not clear which file is submitted, or where to.
        CapacityError: the day's submissions are used up.
        RefusedError: Kaggle refuses, or the run is on another Kaggle.
    """
    candidate = _candidate(folder.address_at(kaggle.endpoint), folder, options)
    if not candidate.identity_proven:
        on_event(f"note: that {candidate.run.name} has made this file is not proven: no push_id")
    competition = kaggle.competition(candidate.competition)
    with store.submission_lock(folder.root, on_event):
        before = None
        if not options.again:
            before = _submitted_before(competition, folder.root, candidate, on_event)
        if before is not None:
            on_event(f"{candidate.name} was already submitted, as {before.ref}: nothing is sent")
        record = before or _submit(competition, candidate, options, on_event)
        store.record_submission(folder.root, record)
    return Submitted(record, before is None, candidate.identity_proven)


def wait_for_score(
    kaggle: Kaggle,
    root: Path,
    submitted: Submitted,
    *,
    deadline: float | None = None,
    on_event: OnEvent,
) -> Submitted:
    """Wait until Kaggle has scored a submission, and record the score.

    Raises:
        DeadlineError: it has no score after `deadline` seconds; the scoring continues.
    """
    record = submitted.record
    on_event(f"waiting for the score of submission {record.ref}")
    found = kaggle.competition(record.competition).scored(record.ref, deadline)
    record = record.updated(
        status=found.status,
        public_score=found.public_score,
        private_score=found.private_score,
        error=found.error,
        asked=store.now(),
    )
    store.record_submission(root, record)
    return replace(submitted, record=record)


def require_no_scoring_error(submitted: Submitted) -> None:
    """Check that Kaggle found no error in a submission.

    Raises:
        RefusedError: with Kaggle's reason.
    """
    record = submitted.record
    if record.status == Scoring.ERROR:
        reason = one_line(record.error or "") or "Kaggle gives no reason"
        raise RefusedError(
            f"submission {record.ref} was not scored: {reason}",
            "Fix the submission and run again, or submit the same file again with --again.",
            submitted,
        )


def _candidate(run: RunAddress, folder: RunFolder, options: SubmitOptions) -> _SubmissionFile:
    verdict = verify(folder.path)
    end = folder.read_end()
    if end is None or not verdict.verified or not end.succeeded:
        if end is not None:
            store.recorded_state(folder)  # an unknown state is the more precise error
        raise VerificationError(
            f"{folder.path} is not a complete and verified run", "Pull it first: kernelkit pull."
        )
    sources = folder.read_bundle().kernel.competition_sources
    names = [options.competition] if options.competition else list(sources)
    if len(names) != 1:
        raise ConfigError(
            f"the run has {len(names)} competition sources: {', '.join(names) or 'none'}",
            "Name the competition: --competition SLUG.",
        )
    outputs = {entry.path: entry.sha256 for entry in verdict.outputs}
    wanted = options.file
    files = [name for name in outputs if (name == wanted if wanted else name.endswith(".csv"))]
    if len(files) != 1:
        raise ConfigError(
            f"which output is the submission? The run has: {', '.join(outputs) or 'none'}",
            "Name it: --file NAME.",
        )
    file, sha256 = folder.path / files[0], outputs[files[0]]
    return _SubmissionFile(run, names[0], file, files[0], sha256, verdict.identity_proven)


def _submitted_before(
    competition: Competition, root: Path, candidate: _SubmissionFile, on_event: OnEvent
) -> SubmissionRecord | None:
    """A submission of the same bytes from here, or of the same run and file from elsewhere."""
    same = (candidate.competition, candidate.run.endpoint, candidate.sha256)
    for record in reversed(store.submissions(root)):
        if (record.competition, record.endpoint, record.sha256) == same:
            return record
    sizes = (None, candidate.file.stat().st_size)  # a description can be copied by hand
    for found in competition.submissions():
        if candidate.mark in found.description and found.size in sizes:
            return candidate.record(found.ref, found.description)
        if candidate.mark in found.description or candidate.old_mark in found.description:
            on_event(
                f"note: submission {found.ref} names the same run, and not this file for certain: "
                "its score is not taken for this file's"
            )
    return None


def _submit(
    competition: Competition, candidate: _SubmissionFile, options: SubmitOptions, on_event: OnEvent
) -> SubmissionRecord:
    name, run = candidate.competition, candidate.run
    terms = competition.terms()
    if not terms.entered:
        on_event(f"note: Kaggle does not say that this account has joined {name}")
    if terms.closed:
        on_event(f"note: Kaggle says that {name} accepts no submissions")
    left = competition.left_today(terms.daily)
    if left == 0:
        raise CapacityError(
            f"{name}: the submissions of today (UTC) are used up"
            + (f" ({terms.daily} per day)" if terms.daily else ""),
            f"Nothing was sent. Try again in {_until_midnight()}, after midnight UTC.",
        )
    on_event(
        "the number of submissions left today is unknown" if left is None else f"{left} left today"
    )
    _require_scorable(competition, candidate, options, on_event)
    mark, description = candidate.mark, candidate.description(options.message)
    if options.message and options.message not in description:
        on_event(
            f"note: the message was shortened: Kaggle shows {DESCRIPTION_CHARACTERS} characters"
        )
    if options.code or terms.code_only:
        on_event(f"submitting {candidate.name} of {run.name} to {name}")
        ref = competition.submit_version(
            run.owner, run.slug, run.version, candidate.name, description, mark
        )
    else:
        on_event(f"submitting {candidate.name} to {name}")
        ref = competition.submit_file(candidate.file, description, mark)
    return candidate.record(ref, description)


def _require_scorable(
    competition: Competition, candidate: _SubmissionFile, options: SubmitOptions, on_event: OnEvent
) -> None:
    """Check the file against the competition's sample."""
    with tempfile.TemporaryDirectory(prefix="kernelkit-sample-") as folder:
        sample = _find_sample(competition, options, Path(folder))
        try:
            found = check(candidate.file, sample, options.pixels)
        except OSError as error:
            raise LocalError(f"{error.filename} cannot be read: {error.strerror}") from error
    for note in found.notes:
        on_event(f"note: {candidate.name}: {note}")
    if found.problems:
        raise VerificationError(
            f"{candidate.file} would not be scored:\n" + "\n".join(found.problems),
            "Nothing was sent. Fix the package, and run again.",
            found,
        )
    on_event(f"{candidate.name}: {found.rows:,} rows, with the ids and columns of the sample")


def _find_sample(competition: Competition, options: SubmitOptions, folder: Path) -> Path:
    if options.sample is not None:
        return options.sample
    if options.data is not None:
        local = options.data / competition.name / "sample_submission.csv"
        if local.is_file():
            return local
    try:
        return competition.sample(folder)
    except KernelkitError as error:
        raise error.with_message(
            f"the submission cannot be checked without the competition's sample: {error}",
            f"Nothing was sent. Name the file: --sample FILE. {error.next_step}".strip(),
        ) from error


def _until_midnight() -> str:
    now = datetime.now(UTC)
    minutes = 24 * 60 - now.hour * 60 - now.minute
    return f"{minutes // 60} h {minutes % 60} min"
