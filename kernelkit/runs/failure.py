"""Whether a pulled run has succeeded, and the error with the cause if it has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import JsonValue

from kernelkit.errors import Details, KernelkitError, RunFailedError
from kernelkit.kaggle.types import State
from kernelkit.runs.download import PulledRun, require_everything_sent
from kernelkit.runs.identity import Identity
from kernelkit.runs.resume import describe_files, has_left_files, how_to_resume
from kernelkit.runs.verify import require_verified


class Explanation(Protocol):
    """Why a run failed: a `Diagnosis`, of which this package knows no more than these words."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def error(self) -> str:
        """The last line of the traceback, or what stands for it."""

    @property
    def headline(self) -> str:
        """The cause and the error, in one line."""

    @property
    def summary(self) -> str:
        """The place and the notes."""

    @property
    def next_step(self) -> str:
        """What to do about it."""


@dataclass(frozen=True)
class FailedRun:
    """A pulled run that failed, and why."""

    pulled: PulledRun
    diagnosis: Explanation

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {**self.pulled.document, "diagnosis": asdict(self.diagnosis)}


def require_success(pulled: PulledRun, explain: Callable[[Path], Explanation | None]) -> None:
    """Check that a pulled run has succeeded and is verified.

    `explain` diagnoses the folder of a run that failed.

    Raises:
        RunFailedError: the run failed, timed out or was cancelled; with a diagnosis if possible.
        VerificationError: the files do not match the run's manifest, or are those of another run.
        RefusedError: Kaggle did not send everything that it lists.
    """
    verdict, end = pulled.verdict, pulled.end
    complete = end.state == State.COMPLETE and (verdict.run_error is None or verdict.problems)
    if complete or verdict.identity == Identity.MISMATCH:
        require_verified(verdict, pulled.folder, pulled)
        require_everything_sent(pulled)
        return
    if pulled.word == "cancelled":
        raise RunFailedError(
            f"the run was cancelled\n{describe_files(verdict)}",
            f"To run it again: kernelkit push. {_saved(pulled)}",
            pulled,
        )
    problems = "\n".join(["problems of the folder:", *verdict.problems])
    problems = f"\n{problems}" if verdict.problems and not verdict.left_no_manifest else ""
    if end.state == State.COMPLETE and verdict.incomplete:
        raise RunFailedError(
            f"the run ended, and {verdict.run_error}\n{describe_files(verdict)}",
            how_to_resume(pulled),
            pulled,
        )
    try:
        found = explain(pulled.folder)
    except KernelkitError:  # there is no log: report the failure itself
        found = None
    details: Details = FailedRun(pulled, found) if found else pulled
    if pulled.word in ("timed out", "stalled"):
        reason = end.failure
        if pulled.word == "stalled":
            reason = (verdict.run_error or "").removeprefix("Stalled: ")
        raise RunFailedError(
            f"the run {pulled.word}: {reason}{problems}\n{describe_files(verdict)}",
            f"{_saved(pulled)} {how_to_resume(pulled)}",
            details,
        )
    error, next_step = verdict.run_error, f"Read its log in {pulled.folder}."
    if found is not None:
        error, problems = found.error, f"{problems}\n{found.summary}"
        next_step = f"{found.next_step} All details: kernelkit diagnose {pulled.folder}"
    if verdict.unfinished and has_left_files(verdict):  # it was killed
        problems += f"\n{describe_files(verdict)}"
        advice = found.next_step if found else f"Read its log in {pulled.folder}."
        next_step = f"{advice} {how_to_resume(pulled)}"
    raise RunFailedError(f"the run failed: {error}{problems}", next_step, details)


def _saved(pulled: PulledRun) -> str:
    """Where the files are that a run has saved before it ended, and what is known about them."""
    verdict = pulled.verdict
    if not has_left_files(verdict):
        return "It has saved no outputs."
    doubts = [
        *(["without a manifest they are not verified"] if verdict.left_no_manifest else []),
        *(["that exactly this run made them is not proven"] if not verdict.identity_proven else []),
    ]
    return f"Its outputs so far are in {pulled.folder}{'; '.join(['', *doubts])}."
