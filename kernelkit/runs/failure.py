"""Whether a pulled run has succeeded, and the error with the cause if it has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import JsonValue

from kernelkit.errors import KernelkitError, RunFailedError
from kernelkit.kaggle.types import State
from kernelkit.runs.download import PulledRun, require_everything_sent
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
        RunFailedError: the run failed or was cancelled; with a diagnosis if there is a log.
        VerificationError: the files do not match the run's manifest.
        RefusedError: Kaggle did not send everything that it lists.
    """
    verdict = pulled.verdict
    failed = verdict.run_error is not None and not verdict.problems
    if not failed and pulled.state == State.COMPLETE:
        require_verified(verdict, pulled.folder, pulled)
        require_everything_sent(pulled)
        return
    if pulled.state == State.CANCEL_ACKNOWLEDGED:
        raise RunFailedError(
            "the run was cancelled",
            f"To run it again: kernelkit push. Its outputs so far are in {pulled.folder}",
            pulled,
        )
    message = f"the run failed: {verdict.run_error}"
    if not failed:
        problems = "; ".join(verdict.problems) or "none"
        message = f"Kaggle says {pulled.state}. Problems of the folder: {problems}"
    try:
        found = explain(pulled.folder)
    except KernelkitError:  # there is no log: report the failure itself
        found = None
    if found is None:
        raise RunFailedError(message, f"Read its log in {pulled.folder}.", pulled)
    headline = f"the run failed: {found.error}" if failed else f"{message}\n{found.headline}"
    raise RunFailedError(
        f"{headline}\n{found.summary}",
        f"{found.next_step} All details: kernelkit diagnose {pulled.folder}",
        FailedRun(pulled, found),
    )
