"""A push: look ahead, send exactly once, and hold what Kaggle made of it against what was asked.

The answer to a push can be lost after its effect, and a push is a run that costs hours. So it is
never simply sent again: the kernel is read back, by version and by the digest in its source.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from kernelkit.errors import (
    AnswerLostError,
    KernelkitError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    RefusedError,
    SessionCapError,
    UnreachableError,
)
from kernelkit.kaggle import Kaggle, KernelInfo, Timeouts
from kernelkit.notebook.reader import read_cells
from kernelkit.notebook.render import Kernel
from kernelkit.runs.watch import Run

DATASET_SECONDS = 600  # for a dataset to become ready
QUEUE_PAUSES = (30.0, 300.0)  # seconds between two tries for a free session: the first, the longest
LIMITED_TRIES = 5  # of a push that is refused for too many calls

OnEvent = Callable[[str], None]


class Outcome(StrEnum):
    """How a push has come to its version."""

    PUSHED = "pushed"
    ADOPTED = "adopted"
    """It was on Kaggle already: from another machine, or by a push whose answer was lost."""

    REATTACHED = "reattached"
    """A version pushed from here holds the same, and still runs."""

    REUSED = "reused"
    """A version pushed from here holds the same, and is complete and verified."""


@dataclass(frozen=True)
class Pushed:
    """A version that is now queued or running, and how it came about."""

    run: Run
    outcome: Outcome
    dropped: tuple[str, ...] = ()
    """Sources that Kaggle left out at once."""


def check_owner(kaggle: Kaggle, kernel: Kernel) -> None:
    """A kernel can be pushed by its owner alone.

    Raises:
        RefusedError: its id names another owner than the credentials.
    """
    owner = kernel.metadata.id.rpartition("/")[0]
    who = kaggle.credentials
    if owner and owner.lower() != who.username.lower():
        raise RefusedError(
            f"the kernel belongs to {owner}, and the credentials ({who.origin}) to {who.username}",
            "Leave the owner out of id, or use the owner's credentials.",
        )


def current(kaggle: Kaggle, slug: str) -> KernelInfo | None:
    """The account's kernel of this name as Kaggle has it; None where there is none yet."""
    try:
        return kaggle.kernel(kaggle.credentials.username, slug)
    except NotFoundError:
        return None


def check_remote(kaggle: Kaggle, kernel: Kernel, reserve: float, on_event: OnEvent) -> None:
    """Ask for what would make the run fail, or run without its data, before it costs anything.

    `reserve` is in GPU hours, and is left untouched. A dataset that is being processed is waited
    for. Where Kaggle does not answer that is told, and the push has the last word.

    Raises:
        QuotaError: no more than the reserve is left.
        RefusedError: a source is not there, or not ours to use, or has failed.
    """
    for what, question in _questions(kaggle, kernel, reserve, on_event):
        try:
            question()
        except (QuotaError, _SourceError):
            raise
        except (RefusedError, RateLimitedError) as error:
            on_event(f"note: {what} could not be checked: {error}")
        except UnreachableError as error:  # each further question would cost as long again
            on_event(f"note: {what} and what follows could not be checked: {error}")
            return


def send(
    kaggle: Kaggle,
    kernel: Kernel,
    known: int,
    *,
    wait: bool = False,
    deadline: float | None = None,
    on_event: OnEvent,
) -> Pushed:
    """Push, so that one version comes of it, and return that.

    `known` is the highest version that was there before: what is above it, with our digest, is
    ours. With `wait` a full house is waited for, up to `deadline` seconds.

    Raises:
        AnswerLostError: nobody knows whether it was taken.
        CapacityError, RefusedError: Kaggle's answer; nothing was started.
    """
    pushed = _until_taken(kaggle, kernel, known, _Queue(wait, deadline, on_event, kaggle.timeouts))
    for version in range(known + 1, pushed.run.version):
        if _holds(kaggle, kernel, version):
            on_event(
                f"warning: v{version} has the same digest: it was pushed elsewhere meanwhile, and "
                f"runs as well; kernelkit cancel {kernel.slug}/v{version} ends it"
            )
    return pushed


def run_of(kaggle: Kaggle, kernel: Kernel, version: int) -> Run:
    """The run of a version that is on Kaggle already."""
    owner = kaggle.credentials.username
    url = f"{kaggle.web}/code/{owner}/{kernel.slug}"
    return Run(owner, kernel.slug, version, url, kernel.digest, kaggle.endpoint)


def verify_push(kaggle: Kaggle, kernel: Kernel, run: Run) -> list[str]:
    """Where Kaggle gave other than was asked, the gravest first; waits until it shows the run."""
    started = kaggle.timeouts.clock()
    for pause in kaggle.timeouts.pauses():
        try:
            given = kaggle.kernel(run.owner, run.slug)
            if (given.version or 0) > run.version:
                given = kaggle.kernel(run.owner, run.slug, run.version)
            if (given.version or 0) >= run.version:
                return list(_differences(kernel, run, given))
        except NotFoundError:
            pass  # a fresh kernel may take a while to show
        if kaggle.timeouts.clock() - started > kaggle.timeouts.grace:
            break
        kaggle.timeouts.sleep(pause)
    return [f"version {run.version} did not show within {kaggle.timeouts.grace:.0f} s of the push"]


class _SourceError(RefusedError):
    """A source that the run would have to do without."""


class _Queue:
    """How often, and how long apart, a push that was refused for want of room is tried again."""

    def __init__(
        self, wait: bool, deadline: float | None, on_event: OnEvent, timeouts: Timeouts
    ) -> None:
        self.on_event, self.timeouts = on_event, timeouts
        self._wait = wait
        self._end = None if deadline is None else timeouts.clock() + deadline
        self._pause, self._longest = QUEUE_PAUSES
        self._limited = 0

    def after(self, error: SessionCapError | RateLimitedError) -> None:
        """Sleep for as long as is polite; or raise the fault, where it is not waited for."""
        if isinstance(error, RateLimitedError):
            self._limited += 1
            pause = (error.retry_after or 0.0) + random.uniform(1, 4) * self._limited
            patient = self._limited < LIMITED_TRIES and (self._wait or pause < self.timeouts.grace)
        else:
            pause, patient = random.uniform(0.8, 1.2) * self._pause, self._wait
            self._pause = min(self._pause * 1.5, self._longest)
        if not patient or (self._end is not None and self.timeouts.clock() + pause > self._end):
            raise error
        self.on_event(f"{error}; trying again in {pause:.0f} s")
        self.timeouts.sleep(pause)


def _until_taken(kaggle: Kaggle, kernel: Kernel, known: int, queue: _Queue) -> Pushed:
    lost = False
    while True:
        try:
            saved = kaggle.save_kernel(kernel.slug, kernel.payload, kernel.metadata.document)
        except (SessionCapError, RateLimitedError) as error:
            queue.after(error)
        except AnswerLostError as error:
            grace = kaggle.timeouts.grace
            queue.on_event(f"{error}; reading the kernel back, for up to {grace:.0f} s")
            version = _version_taken(kaggle, kernel, known, error)
            if version is not None:
                queue.on_event(f"it was taken, as version {version}")
                return Pushed(run_of(kaggle, kernel, version), Outcome.ADOPTED)
            if lost:
                raise
            lost = True
            queue.on_event("it was not taken: sending it again")
        else:
            run = run_of(kaggle, kernel, saved.version)
            dropped = (
                f"{kind}: Kaggle dropped {name!r}, and runs without it"
                for kind, names in saved.dropped.items()
                for name in names
            )
            return Pushed(replace(run, url=saved.url or run.url), Outcome.PUSHED, tuple(dropped))


def _version_taken(kaggle: Kaggle, kernel: Kernel, known: int, lost: AnswerLostError) -> int | None:
    """The version that a push without an answer has made; None where, after the grace, none has."""
    started = kaggle.timeouts.clock()
    for pause in kaggle.timeouts.pauses():
        error: KernelkitError | None = None
        try:
            given = current(kaggle, kernel.slug)
            newest = (given.version or 0) if given else 0
            if given and not newest and kernel.digest in given.source:
                raise AnswerLostError(
                    f"{lost}, and Kaggle names no version of what it has",
                    "Look at the kernel's page before sending anything again.",
                )
            if given and newest > known and kernel.digest in given.source:
                return newest
            for version in range(newest - 1, known, -1):
                if _holds(kaggle, kernel, version):
                    return version
        except AnswerLostError:
            raise
        except KernelkitError as caught:
            error = caught
        if kaggle.timeouts.clock() - started > kaggle.timeouts.grace:
            if error is None:
                return None
            raise AnswerLostError(
                f"{lost}, and it cannot be read back ({error})",
                "Give the same command again once Kaggle answers: it adopts the run if there is "
                "one, and sends the kernel only if there is none.",
            ) from error
        kaggle.timeouts.sleep(pause)
    raise AssertionError("the pauses never end")


def _holds(kaggle: Kaggle, kernel: Kernel, version: int) -> bool:
    """Whether a version carries the kernel's digest."""
    try:
        given = kaggle.kernel(kaggle.credentials.username, kernel.slug, version)
    except NotFoundError:
        return False
    return kernel.digest in given.source


def _questions(
    kaggle: Kaggle, kernel: Kernel, reserve: float, on_event: OnEvent
) -> Iterator[tuple[str, Callable[[], None]]]:
    fields = kernel.metadata
    if kernel.manifest.wants_gpu:
        yield "the quota", partial(_check_quota, kaggle, reserve, on_event)
    for slug in fields.competition_sources:
        yield f"the competition {slug}", partial(_check_competition, kaggle, slug)
    for source in fields.dataset_sources:
        yield f"the dataset {source}", partial(_check_dataset, kaggle, source, on_event)
    for source in fields.kernel_sources:
        yield f"the kernel {source}", partial(_check_kernel, kaggle, source)
    for source in fields.model_sources:
        yield f"the model {source}", partial(_check_model, kaggle, source)


def _check_quota(kaggle: Kaggle, reserve: float, on_event: OnEvent) -> None:
    quota = kaggle.quota()
    if not quota.allowed:
        on_event("note: Kaggle does not say how many GPU hours are left")
        return
    until = f", until {quota.refresh:%Y-%m-%d %H:%M} UTC" if quota.refresh else ""
    left = f"{quota.left:.1f} of {quota.allowed:.0f} GPU hours left{until}"
    if quota.left <= reserve:
        held = f", and gpu_reserve_hours = {reserve:g}" if reserve else ""
        raise QuotaError(f"{left}{held}", "Wait for the refresh, or use a CPU. Nothing was sent.")
    on_event(left)


@contextmanager
def _there(otherwise: str, remedy: str) -> Iterator[None]:
    """For asking after a source: where Kaggle does not find it, the words and what to do."""
    try:
        yield
    except NotFoundError as error:
        raise _SourceError(f"{otherwise}: {error}", f"{remedy} Nothing was sent.") from error


def _check_competition(kaggle: Kaggle, slug: str) -> None:
    rules = f"https://www.kaggle.com/c/{slug}/rules."
    with _there(
        f"the competition {slug} gives you no data", f"Join it and accept its rules: {rules}"
    ):
        kaggle.competition_access(slug)


def _check_dataset(kaggle: Kaggle, source: str, on_event: OnEvent) -> None:
    owner, slug = source.split("/")[:2]
    started, told = kaggle.timeouts.clock(), ""
    for pause in kaggle.timeouts.pauses():
        with _there(
            f"there is no dataset {source}, or it is not yours to see",
            "Mend dataset_sources, or ask its owner.",
        ):
            now = kaggle.dataset_status(owner, slug)
        if now == "READY":
            return
        if now in ("FAILED", "DELETED"):
            raise _SourceError(
                f"the dataset {source} is {now}", "Upload it anew. Nothing was sent."
            )
        if kaggle.timeouts.clock() - started > DATASET_SECONDS:
            raise _SourceError(
                f"the dataset {source} is still {now} after {DATASET_SECONDS} s",
                "Push again once it is ready. Nothing was sent.",
            )
        if now != told:
            on_event(f"waiting for the dataset {source}: {now}")
            told = now
        kaggle.timeouts.sleep(pause)


def _check_kernel(kaggle: Kaggle, source: str) -> None:
    owner, slug = source.split("/")[:2]
    missing = f"there is no kernel {source}, or it is not yours to see"
    with _there(missing, "Mend kernel_sources."):
        kaggle.kernel(owner, slug)


def _check_model(kaggle: Kaggle, source: str) -> None:
    missing = f"there is no model {source}, or it is not yours to use"
    with _there(missing, "Mend model_sources, or accept the model's terms on its page."):
        kaggle.model_access(source)


def _differences(kernel: Kernel, run: Run, given: KernelInfo) -> Iterator[str]:
    """What was asked against what was given; a privacy wider than asked comes first."""
    asked = kernel.metadata
    if given.is_private != asked.is_private:
        yield f"is_private: asked {asked.is_private}, given {given.is_private}"
    if run.digest not in given.source:
        yield f"the notebook on Kaggle does not carry the digest {run.digest}"
    else:
        yield from _other_cells(kernel.notebook, given.source)
    if given.enable_internet != asked.enable_internet:
        yield f"enable_internet: asked {asked.enable_internet}, given {given.enable_internet}"
    for kind, names in given.sources.items():
        lost = sorted(
            {name.lower() for name in getattr(asked, kind)} - {name.lower() for name in names}
        )
        yield from (f"{kind}: asked {name!r}, not given" for name in lost)


def _other_cells(sent: str, given: str) -> Iterator[str]:
    """Kaggle adds metadata of its own: only the cells can be compared."""
    try:
        theirs = [(cell.kind, cell.source.rstrip()) for cell in read_cells(given)]
    except KernelkitError as error:
        yield f"the notebook on Kaggle cannot be read: {error}"
        return
    ours = [(cell.kind, cell.source.rstrip()) for cell in read_cells(sent)]
    if len(ours) != len(theirs):
        yield f"the notebook on Kaggle has {len(theirs)} cells, {len(ours)} were sent"
        return
    for number, (mine, its) in enumerate(zip(ours, theirs, strict=True), start=1):
        if mine != its:
            yield f"cell {number} on Kaggle differs from what was sent"
