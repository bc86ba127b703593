"""How far a session of a chain has come, and whether it came further than the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kernelkit.notebook.runtime import INCOMPLETE
from kernelkit.runs.events import read_events
from kernelkit.runs.manifest import RunFacts
from kernelkit.runs.resume import has_left_files
from kernelkit.runs.store import RunFolder
from kernelkit.storage import as_json, digest_of_bytes, sha256_of

if TYPE_CHECKING:
    from kernelkit.runs.download import PulledRun

IDLE_SESSIONS = 2  # in a row that come no further, after which a chain pushes no more

_SAYS_NO_POINT = frozenset({INCOMPLETE, "deadline"})
_TIME = re.compile(r"second|minute|hour|time|duration|elapsed|per_|speed|eta\b|memory|_mb|_gb")
"""Numbers of an event that differ between two sessions that do the same."""


def last_point(pulled: PulledRun) -> RunFacts:
    """The last event of a session that says how far it is.

    The log has all of them; the manifest is up to 30 seconds older where the run was ended.
    """
    last = None
    for one in read_events(RunFolder(pulled.folder).log):
        if one.event.kind not in _SAYS_NO_POINT:
            last = one.event
    return RunFacts.model_validate(last.document) if last else pulled.verdict.last_event


def fingerprint(pulled: PulledRun) -> str:
    """What the next session would start from, as a SHA-256; empty if that is nothing.

    It is the same for two sessions that have reported the same last event, and have left the same
    checkpoints and outputs. Of a session without any, all its files count.
    """
    facts = last_point(pulled).document
    point = {name: value for name, value in facts.items() if not _TIME.search(name)}
    kind = point.get("event")
    if kind in _SAYS_NO_POINT:
        point = {}
    if not point and not has_left_files(pulled.verdict):
        return ""
    return digest_of_bytes(as_json([point, sorted(_files(pulled))]).encode())


def _files(pulled: PulledRun) -> Iterator[tuple[str, str]]:
    """The files that carry the state of a session, each with its SHA-256."""
    verdict = pulled.verdict
    described = (*verdict.outputs, *verdict.checkpoints)
    if described:
        yield from ((one.path, one.sha256) for one in described)
        return
    for path in verdict.undeclared:
        try:
            yield path, sha256_of(pulled.folder / path)
        except OSError:  # it was left on Kaggle
            yield path, ""
