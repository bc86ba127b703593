"""One session of a campaign: pushed exactly once, found again after a kill, followed to its end.

Two sessions of a campaign may be the same kernel with the same parameters, so the digest does not
tell them apart. Each session has a `mark`, which its notebook carries. A campaign writes the mark
down before it pushes: a later process then finds the version with this mark, here or on Kaggle,
and pushes only if there is none.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelkit import workflow
from kernelkit.kaggle.types import ignore

if TYPE_CHECKING:
    from pathlib import Path

    from kernelkit.config import Config
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.runs.download import PulledRun
    from kernelkit.runs.push import Pushed
    from kernelkit.runs.store import RunFolder
    from kernelkit.workflow import OnEvent


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


def push_session(
    session: Session,
    kaggle: Kaggle,
    root: Path,
    *,
    asked: float | None = None,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = ignore,
) -> Pushed:
    """Push a session, unless a version with its mark exists; returns that version's folder.

    `asked` is how long ago, in seconds, a process that was killed may have pushed this session;
    None if none has. Kaggle may not show such a version yet, so this waits for it for a while.
    `wait` waits for a free session, up to `deadline` seconds.

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
