"""Whether a pulled run has succeeded, and the error with the cause if it has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import JsonValue

from kernelkit.errors import KernelkitError, RunFailedError
from kernelkit.kaggle.types import PRODUCTION, State
from kernelkit.runs.download import PulledRun, require_everything_sent
from kernelkit.runs.identity import Identity
from kernelkit.runs.store import RunFolder
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
    if end.word == "cancelled":
        raise RunFailedError(
            "the run was cancelled", f"To run it again: kernelkit push. {_saved(pulled)}", pulled
        )
    problems = "\n".join(["problems of the folder:", *verdict.problems])
    problems = f"\n{problems}" if verdict.problems and not verdict.left_no_manifest else ""
    try:
        found = explain(pulled.folder)
    except KernelkitError:  # there is no log: report the failure itself
        found = None
    if end.word == "timed out":
        raise RunFailedError(
            f"the run timed out: {end.failure}{problems}",
            f"{_saved(pulled)} {_how_to_resume(pulled)}",
            FailedRun(pulled, found) if found else pulled,
        )
    if found is None:
        message = f"the run failed: {verdict.run_error}{problems}"
        raise RunFailedError(message, f"Read its log in {pulled.folder}.", pulled)
    raise RunFailedError(
        f"the run failed: {found.error}{problems}\n{found.summary}",
        f"{found.next_step} All details: kernelkit diagnose {pulled.folder}",
        FailedRun(pulled, found),
    )


def _saved(pulled: PulledRun) -> str:
    """Where the files are that a run has saved before it ended, and what is known about them."""
    verdict = pulled.verdict
    if not _has_saved(pulled):
        return "It has saved no outputs."
    doubts = [
        *(["without a manifest they are not verified"] if verdict.left_no_manifest else []),
        *(["that exactly this run made them is not proven"] if not verdict.identity_proven else []),
    ]
    return f"Its outputs so far are in {pulled.folder}{'; '.join(['', *doubts])}."


def _has_saved(pulled: PulledRun) -> bool:
    return bool(pulled.verdict.outputs or pulled.verdict.undeclared)


def _how_to_resume(pulled: PulledRun) -> str:
    """The command that gives the next version the outputs of this run.

    A kernel can be a source of its own next version. The command names it, and sets the parameter
    for the folder to resume from, which src_salt calls `resume_dir`.
    """
    if not _has_saved(pulled):
        return "Make the run shorter, or let it save its state to kaggle://working and resume."
    folder = RunFolder(pulled.folder)
    try:
        record, sent = folder.read(), folder.read_bundle()
    except KernelkitError:
        return "The next version can read them if kernel_sources names this kernel."
    rehearsed = record.endpoint != PRODUCTION and folder.root.name != "runs"
    owner = "OWNER" if rehearsed else record.owner
    sources = dict.fromkeys([*sent.kernel.kernel_sources, f"{owner}/{record.slug}"])
    profile = f"--profile {record.profile} " if record.profile else ""
    options = f"{profile}--set 'kernel.kernel_sources={json.dumps(list(sources))}'"
    known = next((name for name in sent.parameters if "resume" in name.lower()), "")
    place = f"{known or 'resume_dir'}=kaggle://input/{record.slug}"
    explained = " (resume_dir: the package's parameter for a folder with earlier results)"
    return (
        "To resume " + ("such a run on Kaggle" if rehearsed else "from them") + ": "
        f"kernelkit push {options} --set {place}{'' if known else explained}"
    )
