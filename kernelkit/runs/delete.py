"""Delete a kernel: the stop that works before a run has printed anything.

Kaggle ends the session at once, and with the kernel all its versions and their outputs are gone. So
what Kaggle lists of the run is saved first, and only a kernel that kernelkit has pushed from this
project is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue

import kernelkit
from kernelkit.errors import (
    ConfigError,
    KernelkitError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle.types import State, Status, ignore
from kernelkit.notebook.reader import embedded_manifest, read_cells
from kernelkit.runs import store
from kernelkit.runs.download import EVERYTHING, download_outputs, pull_ended_run
from kernelkit.runs.manifest import RUN_MANIFEST_NAME, RunAddress, RunEnd
from kernelkit.runs.push import current_kernel
from kernelkit.runs.store import RunFolder
from kernelkit.runs.verify import OWN_NAMES, verify
from kernelkit.runs.watch import state_of

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

DELETED = "deleted"
REASON = "its kernel was deleted with `kernelkit cancel --delete`"
GONE = "its kernel is no longer on Kaggle"


@dataclass(frozen=True)
class Deletion:
    """What deleting the kernel of a run means, and what was saved of it."""

    folder: RunFolder
    run: RunAddress
    end: Status | None
    """How the run has ended; None if it has not."""

    saved: tuple[str, ...]
    """Files of the run that are on this disk now."""

    problem: str
    """Why not everything that Kaggle lists could be saved; empty if it could."""

    lost: tuple[str, ...]
    """The versions whose outputs will be gone, with the reason."""

    newest: int
    """The newest version that this was read from."""

    @property
    def kernel(self) -> str:
        """`owner/slug`."""
        return f"{self.run.owner}/{self.run.slug}"

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {
            **self.run.document,
            "deleted": self.kernel,
            "folder": str(self.folder.path),
            "saved": list(self.saved),
            "problem": self.problem,
            "lost": list(self.lost),
        }


def prepare_deletion(
    kaggle: Kaggle, folder: RunFolder, *, on_event: Callable[..., None] = ignore
) -> Deletion:
    """Save what Kaggle lists of a run now, without waiting; nothing is deleted on Kaggle.

    Raises:
        NotFoundError: there is no such kernel any more; the run's folder says so from now on.
        RefusedError: it is another account's, or not proven to be pushed from this project.
    """
    run = folder.address_at(kaggle.endpoint)
    try:
        newest = _require_ours(kaggle, run)
    except NotFoundError as error:
        if folder.is_complete() or folder.age() <= kaggle.timeouts.grace:
            raise  # it is recorded, or Kaggle may not show it yet
        gone = Status(State.CANCEL_ACKNOWLEDGED, GONE)
        _record_deleted(folder, run, gone, _saved(folder))
        raise error.with_message(
            f"{error}; {folder.path} now records the run as {DELETED}"
        ) from None
    now: Status | None = None
    problem = ""
    try:
        now = state_of(kaggle, folder)
        if now.state.finished:
            pulled = pull_ended_run(kaggle, folder, now, EVERYTHING, on_event=on_event)
            problem = "; ".join(f"{name}: {why}" for name, why in pulled.refused.items())
        else:
            declared = folder.read_bundle().outputs
            result = download_outputs(kaggle, run, folder.path, declared, on_event=on_event)
            problem = "; ".join(f"{name}: {why}" for name, why in result.refused.items())
    except KernelkitError as error:  # it must be possible to stop a run that Kaggle cannot show
        problem = str(error)
    end, saved = now if now and now.state.finished else None, _saved(folder)
    return Deletion(folder, run, end, saved, problem, tuple(_lost(folder, run, newest)), newest)


def _saved(folder: RunFolder) -> tuple[str, ...]:
    """The files of a run that are on this disk."""
    files = (path for path in folder.path.rglob("*") if path.is_file() and path.stat().st_size)
    names = (path.relative_to(folder.path).as_posix() for path in files)
    return tuple(sorted(name for name in names if name not in OWN_NAMES - {RUN_MANIFEST_NAME}))


def delete_kernel(kaggle: Kaggle, deletion: Deletion) -> None:
    """Delete the kernel, and complete the folder of the run that was named.

    Raises:
        RefusedError: Kaggle does not delete it, or it is not what the user has agreed to.
        UnreachableError: whether Kaggle has deleted it is not known.
    """
    if (newest := _require_ours(kaggle, deletion.run)) != deletion.newest:
        raise RefusedError(
            f"{deletion.kernel} has a new version, v{newest}, which would be lost as well",
            "Nothing was deleted. Run the same command again to see what will be lost.",
        )
    try:
        kaggle.delete(deletion.run.slug)
    except UnreachableError:  # it was there a moment ago: if it is not now, the answer was lost
        if current_kernel(kaggle, deletion.run.slug) is not None:
            raise
    end = deletion.end or Status(State.CANCEL_ACKNOWLEDGED, REASON)
    _record_deleted(deletion.folder, deletion.run, end, deletion.saved)


def _record_deleted(
    folder: RunFolder, run: RunAddress, end: Status, saved: tuple[str, ...]
) -> None:
    """Complete the folder of a run whose kernel is gone."""
    if folder.is_complete():
        return
    verdict = verify(folder.path, end=end)
    record = RunEnd(
        run=run,
        endpoint=run.endpoint,
        kernelkit=kernelkit.__version__,
        state=end.state,
        state_word=DELETED,
        failure=end.failure or REASON,
        pushed=folder.read().pushed,
        pulled=store.now(),
        files=saved,
        verified=False,
        files_verified=verdict.files_verified,
        identity_proven=verdict.identity_proven,
        verdict=verdict,
    )
    store.record_end(folder, record)


def _require_ours(kaggle: Kaggle, run: RunAddress) -> int:
    """Check that slug and manifest prove the kernel to be ours; returns its newest version."""
    name = f"{run.owner}/{run.slug}"
    advice = f"Nothing was deleted. Look at {run.url}, and delete it there."
    if run.owner.lower() != kaggle.credentials.username.lower():
        who = kaggle.credentials.username
        raise RefusedError(f"{name} does not belong to {who}", advice)
    try:
        current = kaggle.kernel(run.owner, run.slug)
    except NotFoundError as error:
        raise error.with_message(
            f"{name} is not on Kaggle: it was deleted before",
            f"What was saved of it is listed by: kernelkit runs show {run.slug}/v{run.version}",
        ) from None
    newest = current.version or run.version
    sources = [current.source]
    if newest != run.version:
        sources.append(kaggle.kernel(run.owner, run.slug, run.version).source)
    for source in sources:
        try:
            manifest = embedded_manifest(read_cells(source))
        except ConfigError as error:
            raise RefusedError(f"{name} was not pushed by kernelkit: {error}", advice) from error
        if manifest.slug != run.slug:
            raise RefusedError(
                f"{name} holds the notebook of another kernel, {manifest.slug!r}", advice
            )
    if (manifest.digest, manifest.push_id) != (run.digest, run.push_id):
        raise RefusedError(f"{run.name} on Kaggle is not what was pushed from here", advice)
    return newest


def _lost(folder: RunFolder, run: RunAddress, newest: int) -> list[str]:
    """The versions whose outputs are not all on this disk."""
    lost = []
    for version in range(newest, 0, -1):
        here = RunFolder(folder.path.with_name(f"v{version}"))
        try:
            known = here.read()
        except KernelkitError:
            lost.append(f"v{version} (not pushed from here)")
            continue
        if known.endpoint != run.endpoint or known.owner.lower() != run.owner.lower():
            lost.append(f"v{version} (not pushed from here)")
        elif not here.is_complete():
            what = "what it has not saved yet" if here == folder else "never pulled"
            lost.append(f"v{version} ({what})")
    return lost
