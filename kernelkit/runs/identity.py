"""Which run a log or a manifest belongs to: by its digest, and by the `push_id` of its push.

Two pushes of the same project have the same digest, so only the `push_id` distinguishes their runs.
A run that another client or an older kernelkit pushed has none: its digest must match, and its
identity stays unproven.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Protocol

HEAD_CHARACTERS = 1 << 20
"""Of a log: the notebook's first cells print the digest and the push_id."""

_DIGEST_LINE = re.compile(r"kernelkit digest ([0-9a-f]{64})")
_PUSH_LINE = re.compile(r"kernelkit push ([0-9a-f]{32})")


class Identity(StrEnum):
    """Whether something was made by exactly one run."""

    PROVEN = "proven"
    """It has the run's push_id."""

    UNPROVEN = "unproven"
    """It may be the run's: nothing contradicts it."""

    MISMATCH = "mismatch"
    """Another run made it."""


class Identified(Protocol):
    """A run, or what was sent."""

    @property
    def digest(self) -> str:
        """Of the kernel."""

    @property
    def push_id(self) -> str | None:
        """Of its push."""


def identity(run: Identified, digest: str, push_id: str | None) -> tuple[Identity, str]:
    """Whether a digest and a push_id are those of a run; with the difference if they are not."""
    if not run.digest or digest != run.digest:
        sent, found = f"{run.digest!r:.80}", f"{digest!r:.80}"
        return Identity.MISMATCH, f"of another bundle (sent {sent}, ran {found})"
    if push_id != run.push_id:
        sent, found = run.push_id or "none", push_id or "none"
        return Identity.MISMATCH, f"of another run (pushed with push_id {sent}, this has {found})"
    return (Identity.PROVEN if run.push_id else Identity.UNPROVEN), ""


def log_identity(run: Identified, text: str) -> tuple[Identity, str]:
    """Whether a log is that of a run; with the difference if it is not.

    A log can be empty, and can end before the digest or the push_id.
    """
    head = text[:HEAD_CHARACTERS]
    digest, push = _DIGEST_LINE.search(head), _PUSH_LINE.search(head)
    if digest is None:
        return Identity.UNPROVEN, ""
    if push is None and digest[1] == run.digest:
        return Identity.UNPROVEN, ""
    return identity(run, digest[1], push[1] if push else None)


def shows_run(run: Identified, text: str) -> bool:
    """Whether a log begins with everything by which a run can be recognized."""
    whose = log_identity(run, text)[0]
    if run.push_id is None:
        return whose == Identity.UNPROVEN and _DIGEST_LINE.search(text) is not None
    return whose == Identity.PROVEN
