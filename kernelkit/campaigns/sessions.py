"""One session of a campaign: pushed exactly once, found again after a kill, followed to its end.

Two sessions of a campaign may be the same kernel with the same parameters, and have the same
digest. Each session has a `mark`, which its notebook carries. A campaign writes the mark
down before it pushes: a later process then finds the version with this mark, here or on Kaggle,
and pushes only if there is none.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from kernelkit import workflow
from kernelkit.errors import KernelkitError
from kernelkit.kaggle.types import State, ignore
from kernelkit.runs.identity import Identity

if TYPE_CHECKING:
    from pathlib import Path

    from kernelkit.config import Config
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.runs.download import PulledRun
    from kernelkit.runs.push import Pushed
    from kernelkit.runs.store import RunFolder
    from kernelkit.workflow import OnEvent


LONGEST_PAUSE = 60.0  # seconds between two questions for the states of runs that go on
RETRIES = 2  # of a session that ended for a reason that is not the program's

_KERNEL_DIED = re.compile(r"Kernel died|DeadKernel")
"""What is said of a process that was killed, most often because memory ran out."""


class Ending(StrEnum):
    """How a session has ended."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    """The program said that another session must continue its work."""

    TIMED_OUT = "timed out"
    STALLED = "stalled"
    CANCELLED = "cancelled"
    DIED = "died"
    """Kaggle ended it, or never started it: preempted, no capacity, an error of its own."""

    FAILED = "failed"
    """An error of the program."""

    UNVERIFIED = "not verified"
    """Its files are not what it wrote, or are another run's."""

    @property
    def may_continue(self) -> bool:
        """Whether the next session can continue from what this one has left."""
        return self in (Ending.INCOMPLETE, Ending.TIMED_OUT, Ending.STALLED)


@dataclass(frozen=True)
class Session:
    """What one session of a campaign runs, and the mark by which it is found again."""

    config: Config
    """With the lane's kernel and the session's parameters."""

    mark: str
    """Different for each session, and for each new try of it: `<campaign>-3`, `<campaign>-3-2`."""


def new_campaign(kind: str) -> str:
    """A name for a campaign that no other one has: `chain-3f81c0de2a77`."""
    return f"{kind}-{secrets.token_hex(6)}"


def place_in_chain(mark: str | None) -> tuple[str, tuple[int, ...]] | None:
    """The chain of a session's mark, and the session's place in it: later ones are greater.

    None if it is the mark of no chain.
    """
    found = re.fullmatch(r"(chain-[0-9a-f]{12})-(\d+)(?:-(\d+))?", mark or "")
    return (found[1], (int(found[2]), int(found[3] or 1))) if found else None


def push_session(
    session: Session,
    kaggle: Kaggle,
    root: Path,
    *,
    asked: float | None = None,
    wait: bool = False,
    wait_for_quota: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> Pushed:
    """Push a session, unless a version with its mark exists; returns that version's folder.

    `asked` is how long ago, in seconds, a process that was killed may have pushed this session;
    None if none has. Kaggle may not show such a version yet, so this waits for it for a while.
    `wait` waits for a free session, and `wait_for_quota` for the refresh of the quota, up to
    `deadline` seconds.

    Raises:
        PreflightError: with every problem; nothing was sent.
        ConfigError: the project's templates hide the manifest, so that no session can be found.
        CapacityError: no session, no quota, or too many calls; nothing was sent.
        RefusedError: Kaggle changed the requested settings; the version runs and is recorded.
        UnreachableError: whether the push was accepted is unknown: call this again later.
    """
    from kernelkit.project.code import publish_code
    from kernelkit.runs.push import push_once

    config = session.config
    kernel = workflow.preflight(config)
    with kaggle.ends_in(deadline):
        return push_once(
            kaggle,
            kernel,
            root,
            profile=config.profile,
            reserve=config.gpu_reserve_hours,
            session=session.mark,
            asked=asked,
            wait=wait,
            wait_for_quota=wait_for_quota,
            deadline=deadline,
            publish=publish_code,
            on_event=on_event,
        )


def pull_session(
    kaggle: Kaggle,
    folder: RunFolder,
    *,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> PulledRun:
    """Follow a session to its end, download what it left, and verify it.

    The verdict may be bad: a run that failed is returned and not raised.

    Raises:
        DeadlineError: `deadline` seconds passed; the run continues.
        KernelkitError: what `runs.download.pull_run` raises.
    """
    from kernelkit.runs.download import pull_run

    with kaggle.ends_in(deadline):
        return pull_run(kaggle, folder, deadline=deadline, on_event=on_event)


def ending_of(pulled: PulledRun) -> Ending:
    """How a session has ended, from its files, its log, and what Kaggle says."""
    verdict, end = pulled.verdict, pulled.end
    if verdict.identity == Identity.MISMATCH:
        return Ending.UNVERIFIED
    if end.state == State.COMPLETE:
        if verdict.problems:
            return Ending.UNVERIFIED
        if verdict.incomplete:
            return Ending.INCOMPLETE
        return Ending.COMPLETE if verdict.verified else Ending.FAILED
    if pulled.word in ("timed out", "stalled", "cancelled"):
        return Ending(pulled.word)
    return Ending.DIED if _died(pulled) else Ending.FAILED


def _died(pulled: PulledRun) -> bool:
    """Whether nothing shows that an error of the program has ended a run."""
    from kernelkit.diagnosis.diagnose import diagnose_folder
    from kernelkit.diagnosis.rules import FailureCause

    if pulled.verdict.run_status == "failed" or _KERNEL_DIED.search(pulled.end.failure):
        return False
    try:
        found = diagnose_folder(pulled.folder)
    except KernelkitError:  # not even a log: it never started
        return True
    return found is None or found.cause == FailureCause.UNKNOWN
