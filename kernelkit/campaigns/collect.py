"""Collects the results of runs that were pushed elsewhere: another machine, or another CI job.

Kaggle's list of kernels and the manifest in each notebook are enough: a run that is not recorded
here is adopted. What has ended is downloaded and verified, what still runs stays. It can be
repeated: a complete folder is verified again and not downloaded again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from kernelkit import workflow
from kernelkit.campaigns.sessions import LONGEST_PAUSE, place_in_chain
from kernelkit.config import is_kernel_of
from kernelkit.errors import (
    ConfigError,
    CredentialsError,
    DeadlineError,
    KernelkitError,
    LocalError,
    NotFoundError,
    RefusedError,
    RunFailedError,
    UnreachableError,
)
from kernelkit.kaggle.types import ListedKernel, growing, ignore
from kernelkit.notebook.reader import embedded_manifest, read_cells
from kernelkit.runs import store
from kernelkit.runs.download import Progress, pull_run
from kernelkit.runs.push import adopt
from kernelkit.runs.watch import state_of

if TYPE_CHECKING:
    from kernelkit.campaigns.notify import Messenger
    from kernelkit.config import Config
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.runs.store import RunFolder

RUNNING = DeadlineError.exit_code
WORST = (8, 6, 4, 2, 10, 9, 5, RUNNING, 0)
"""Exit codes of single runs, the one that says most first."""

DELETED, UNKNOWN = "deleted", "unknown"

OnEvent = Callable[[Progress | str], None]


@dataclass(frozen=True)
class CollectedRun:
    """One run: its state, and where its results are."""

    owner: str
    slug: str
    version: int | None
    state: str
    """In one word: queued, running, complete, failed, cancelled, timed out, deleted or unknown."""

    folder: Path | None = None
    """None if there is none here: it was deleted before it was recorded."""

    verified: bool = False
    new: bool = False
    """Whether its folder was completed now."""

    continued: bool = False
    """Whether a later session of its chain has followed: how this one ended decides nothing."""

    exit_code: int = 0
    error: str = ""
    next_step: str = ""

    @property
    def name(self) -> str:
        """As other commands call it: `slug/v3`."""
        return self.slug if self.version is None else f"{self.slug}/v{self.version}"

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code == RUNNING

    def report(self) -> CollectedReport:
        """All of it for a script."""
        kernel = f"{self.owner}/{self.slug}"
        folder = str(self.folder) if self.folder else None
        own = {name: value for name, value in vars(self).items() if name != "folder"}
        return CollectedReport(run=self.name, kernel=kernel, folder=folder, **own)


class CollectedReport(BaseModel):
    """One run in the document of `collect --json`."""

    run: str
    kernel: str
    version: int | None
    state: str
    folder: str | None
    verified: bool
    new: bool
    continued: bool
    exit_code: int
    error: str
    next_step: str


@dataclass(frozen=True)
class CollectResult:
    """Everything that was found."""

    account: str
    runs: tuple[CollectedRun, ...]

    @property
    def exit_code(self) -> int:
        """The worst of all runs."""
        codes = {run.exit_code for run in self.runs}
        return next((code for code in WORST if code in codes), max(codes, default=0))


def collect(
    config: Config,
    kaggle: Kaggle,
    *,
    every_version: bool = False,
    wait: bool = False,
    deadline: float | None = None,
    messages: Messenger | None = None,
    on_event: OnEvent = ignore,
) -> CollectResult:
    """Adopt, download and verify the runs of this project that have ended on Kaggle.

    Of each kernel that counts the current version, and each that is recorded here and not complete;
    with `every_version` all of them. `wait` waits for those that still run, up to `deadline`
    seconds for everything.

    Raises:
        NotFoundError: this account has no kernel that kernelkit has pushed for this project.
        RefusedError: the project's kernel belongs to another account.
        UnreachableError, CredentialsError: the list of kernels could not be read.
    """
    with kaggle.ends_in(deadline):
        collector = _Collector(config, kaggle, messages, on_event)
        collector.find(every_version=every_version)
        collector.collect(wait=wait)
        return CollectResult(kaggle.credentials.username, tuple(note_continued(collector.runs)))


def note_continued(runs: Sequence[CollectedRun]) -> list[CollectedRun]:
    """The same runs, with a note on each session of a chain that another of them has followed."""
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    latest: dict[str, tuple[int, ...]] = {}
    for run in runs:
        with suppress(KernelkitError):
            mark = store.RunFolder(run.folder).read().session if run.folder else None
            if (found := place_in_chain(mark)) is not None:
                places[run.name] = found
                latest[found[0]] = max(found[1], latest.get(found[0], ()))
    noted = []
    for run in runs:
        chain, place = places.get(run.name, ("", ()))
        if run.exit_code == RunFailedError.exit_code and place < latest.get(chain, ()):
            run = replace(run, continued=True, exit_code=0, error="", next_step="")
        noted.append(run)
    return noted


class _Collector:
    """The runs of a project on Kaggle, and what became of each."""

    def __init__(
        self, config: Config, kaggle: Kaggle, messages: Messenger | None, on_event: OnEvent
    ) -> None:
        self._config, self._kaggle = config, kaggle
        self._messages, self._on_event = messages, on_event
        self._root = config.project / "runs"
        self.runs: list[CollectedRun] = []

    def find(self, *, every_version: bool) -> None:
        """Find the runs, and adopt those that are not recorded here."""
        account = self._kaggle.credentials.username
        owner, slug = self._config.kernel.owner, self._config.kernel.slug
        if owner and owner.lower() != account.lower():
            raise RefusedError(
                f"the kernel belongs to {owner}, and the credentials to {account}",
                "Use the owner's credentials.",
            )
        listed = [one for one in self._kaggle.list_own_kernels() if is_kernel_of(slug, one.slug)]
        known = {one.slug for one in listed}
        pending = {
            folder.slug
            for folder in store.versions(self._root)
            if is_kernel_of(slug, folder.slug) and not folder.is_complete()
        }
        listed += [ListedKernel(account, name) for name in pending - known]  # new, or deleted
        for kernel in sorted(listed, key=lambda one: one.slug):
            self.runs += self._runs_of(kernel, every_version, is_listed=kernel.slug in known)
        if not self.runs:
            raise NotFoundError(
                f"{account} has no kernel {slug} that kernelkit has pushed",
                "Push first, or check whose credentials these are: `kernelkit doctor`.",
            )

    def _runs_of(
        self, listed: ListedKernel, every_version: bool, *, is_listed: bool
    ) -> Iterator[CollectedRun]:
        """The runs of one kernel: nothing if kernelkit has not pushed it."""
        owner, slug = listed.owner, listed.slug
        recorded, damaged = self._recorded(owner, slug), self._damaged(slug)
        pending = [version for version, one in recorded.items() if not one.is_complete()]
        try:
            info = self._kaggle.kernel(owner, slug)
            manifest = embedded_manifest(read_cells(info.source))
        except NotFoundError:  # deleted kernels stay listed for a while [A]
            for version in pending:
                run = CollectedRun(owner, slug, version, DELETED, recorded[version].path)
                is_new = recorded[version].age() < self._kaggle.timeouts.grace  # not shown yet
                yield _going_on(replace(run, state=UNKNOWN)) if is_new else _lost(run)
            for version, error in damaged.items():
                yield _with_error(CollectedRun(owner, slug, version, UNKNOWN), error)
            if is_listed and not pending and not damaged:
                yield CollectedRun(owner, slug, listed.version, DELETED)
            return
        except ConfigError:
            self._on_event(f"note: {owner}/{slug} was not made by kernelkit, and is left alone")
            return
        if manifest.slug not in ("", slug):
            self._on_event(f"note: {owner}/{slug} is a copy of {manifest.slug}, and is left alone")
            return
        current = info.version or listed.version or 1
        replaced = current in recorded and manifest.push_id != recorded[current].read().push_id
        if replaced:  # the kernel was deleted, and created again: its versions count from 1
            for version in pending:
                yield _lost(CollectedRun(owner, slug, version, DELETED))
            recorded, pending = {}, []
        wanted = {current, *pending, *damaged}
        wanted |= set(range(1, current + 1)) if every_version else set()
        for version in sorted(wanted):
            yield self._adopted(owner, slug, version, recorded.get(version))

    def _recorded(self, owner: str, slug: str) -> dict[int, RunFolder]:
        """The versions of a kernel that are recorded here, of this account on this Kaggle."""
        found = {}
        for folder in store.folders(self._root, slug):
            record = folder.read()
            if (record.owner.lower(), record.endpoint) == (owner.lower(), self._kaggle.endpoint):
                found[folder.version] = folder
        return found

    def _damaged(self, slug: str) -> dict[int, KernelkitError]:
        """The versions of a kernel whose record here cannot be read, and why."""
        found: dict[int, KernelkitError] = {}
        for folder in store.versions(self._root, slug):
            try:
                folder.read()
            except LocalError as error:
                found[folder.version] = error
        return found

    def _adopted(
        self, owner: str, slug: str, version: int, folder: RunFolder | None
    ) -> CollectedRun:
        """A run with its folder; it counts as running until its state is known."""
        run = CollectedRun(owner, slug, version, UNKNOWN, exit_code=RUNNING)
        if folder is None:
            try:
                folder = adopt(self._kaggle, self._root, owner, slug, version)
            except NotFoundError:
                return replace(run, state=DELETED, exit_code=0)
            except KernelkitError as error:
                return _with_error(run, error)
            self._on_event(f"{run.name} was pushed from elsewhere: adopted")
        return replace(run, folder=folder.path)

    def collect(self, *, wait: bool) -> None:
        """Download and verify what has ended, again and again while something is waited for."""
        pauses = growing(self._kaggle.timeouts.first_pause, LONGEST_PAUSE)
        for round_number in itertools.count():
            down: KernelkitError | None = None
            for number, run in enumerate(self.runs):
                if not run.goes_on or run.folder is None:
                    continue
                if down is not None:  # each further call would take as long again
                    self.runs[number] = _with_error(run, down)
                    continue
                self.runs[number], down = self._collected(run, store.RunFolder(run.folder))
            going_on = [run.name for run in self.runs if run.goes_on]
            if not wait or not going_on or self._kaggle.is_late:
                return
            if round_number == 0:
                self._on_event(f"waiting for {', '.join(going_on)}")
            self._kaggle.timeouts.sleep(next(pauses))

    def _collected(
        self, run: CollectedRun, folder: RunFolder
    ) -> tuple[CollectedRun, KernelkitError | None]:
        """A run after another look at it; and the error if Kaggle cannot be reached."""
        was_complete = folder.is_complete()
        try:
            if not was_complete:
                state = state_of(self._kaggle, folder)
                if not state.state.finished:
                    return _going_on(replace(run, state=state.word)), None
                self._on_event(f"{run.name} is {state.word}: downloading")
            pulled = pull_run(self._kaggle, folder, on_event=self._pass_on)
        except NotFoundError:
            return _lost(run), None
        except KernelkitError as error:
            if self._kaggle.is_late:
                return _going_on(run), None
            is_down = isinstance(error, UnreachableError | CredentialsError)
            return _with_error(run, error), error if is_down else None
        is_new = folder.is_complete() and not was_complete
        run = replace(run, state=pulled.end.word, new=is_new, exit_code=0, error="", next_step="")
        if is_new and self._messages:
            self._messages.run_ended(folder, pulled.end)
        try:
            workflow.require_success(pulled, self._config.project)
        except KernelkitError as error:
            return _with_error(run, error), None
        return replace(run, verified=True), None

    def _pass_on(self, event: object) -> None:
        if isinstance(event, Progress | str):
            self._on_event(event)


def _going_on(run: CollectedRun) -> CollectedRun:
    step = "Collect again later, or wait: `kernelkit collect --wait`."
    return replace(run, exit_code=RUNNING, error=f"{run.name} has not ended", next_step=step)


def _lost(run: CollectedRun) -> CollectedRun:
    """A run that is recorded here, and was deleted on Kaggle before it was pulled."""
    error = NotFoundError(
        f"{run.owner}/{run.name} is no longer on Kaggle, and was never pulled: its results are "
        "lost",
        f"Push it again. If it was deleted on purpose: kernelkit cancel --delete {run.name}",
    )
    return replace(_with_error(run, error), state=DELETED)


def _with_error(run: CollectedRun, error: KernelkitError) -> CollectedRun:
    return replace(run, exit_code=error.exit_code, error=str(error), next_step=error.next_step)
