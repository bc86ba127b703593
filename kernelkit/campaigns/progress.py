"""How far a session of a chain has come, and whether it came further than the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_TIME = re.compile(
    r"(?<![a-z0-9])(?:"
    r"(?:seconds|secs?|minutes|hours|duration|elapsed|runtime|per)(?![a-z0-9])"
    r"|(?:time|timestamp|date|speed|throughput|eta|memory|ms|mb|gb)(?:_(?:left|used|total))?$)"
)
"""Names, in lower case, of what differs in the events of two sessions that do the same."""

_COUNTS = ("epoch", "global_step", "iteration", "step")
"""Whole numbers that say how far a session is; one before another counts for more."""

_PART = re.compile(r"(?:^|_)(?:fold|stage|phase|round|cycle|trial|seed|split|part|run)(?:_|$)")
"""Names of whole numbers that say of what an event is, as a text does."""


@dataclass(frozen=True)
class Reached:
    """How far a session has come."""

    point: RunFacts
    """See `last_point`."""

    left: str
    """See `fingerprint`."""


def came_no_further(now: Reached, earlier: Sequence[Reached]) -> bool:
    """Whether a session came no further than those before it, in their order.

    If another one has counted the same, only the number counts: training that starts again gives
    other losses and other files each time. Otherwise it is compared with the last one.
    """
    if not now.left:
        return True
    counted, count = _counted(now.point)
    counts = [_counted(one.point) for one in earlier]
    if count and (known := [number for what, number in counts if what == counted]):
        return count <= max(known)
    return bool(earlier) and now.left == earlier[-1].left


def _counted(point: RunFacts) -> tuple[list[tuple[str, str]], tuple[int, ...]]:
    """What an event counts, and how far it has counted."""
    facts = {name: value for name, value in point.document.items() if not _is_time(name)}
    whole = {name: value for name, value in facts.items() if type(value) is int}
    what = [(name, "") for name in _COUNTS if name in whole]
    what += [(name, value) for name, value in facts.items() if isinstance(value, str)]
    what += [(name, str(number)) for name, number in whole.items() if _PART.search(name)]
    return sorted(what), tuple(whole[name] for name in _COUNTS if name in whole)


def _is_time(name: str) -> bool:
    return _TIME.search(name.lower()) is not None


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
    point = {name: value for name, value in facts.items() if not _is_time(name)}
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
