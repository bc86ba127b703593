"""A chain that Kaggle has and this machine does not know: its sessions were pushed elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit.campaigns.lanes import lane_config
from kernelkit.campaigns.sessions import place_in_chain
from kernelkit.config import CHAIN_SUFFIX, load_config
from kernelkit.errors import ConfigError, KernelkitError, UnreachableError
from kernelkit.notebook.reader import embedded_manifest, read_cells
from kernelkit.runs.download import Selection, pull_run
from kernelkit.runs.manifest import RUN_MANIFEST_NAME
from kernelkit.runs.push import adopt, current_kernel
from kernelkit.runs.resume import command_to_resume, endpoint_option
from kernelkit.runs.watch import state_of

if TYPE_CHECKING:
    from kernelkit.config import Config
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.notebook.manifest import Manifest
    from kernelkit.runs.store import RunFolder

AGAIN = "To begin from the start: --again."


@dataclass(frozen=True)
class _Found:
    """The latest session of a chain in one kernel."""

    slug: str
    version: int
    chain: str
    place: tuple[int, ...]
    manifest: Manifest

    @property
    def name(self) -> str:
        """Of its run: `slug/v3`."""
        return f"{self.slug}/v{self.version}"


def require_no_chain_elsewhere(
    config: Config,
    kaggle: Kaggle,
    root: Path,
    *,
    source_digest: str,
    known: Collection[str],
    on_event: Callable[[str], None],
) -> None:
    """Check that no chain of the same work was pushed from another machine; before a new one.

    `known` are the names of the chains that are recorded here.

    Raises:
        ConfigError: there is one that runs, can be continued, or is done with the same source.
        KernelkitError: Kaggle does not say which kernels there are.
    """
    found = [one for one in _sessions(config, kaggle) if one.chain not in known]
    for latest in _latest_first(kaggle, found):
        folder = adopt(kaggle, root, None, latest.slug, latest.version)
        state = state_of(kaggle, folder)
        where = f"session {latest.place[0]} of a chain that was started elsewhere: {latest.name}"
        plain = load_config(config.project, profile=config.profile, endpoint=None, environment={})
        resume = command_to_resume(latest.name, plain, latest.manifest, kaggle.endpoint)
        at = shlex.join([latest.name, *endpoint_option(kaggle.endpoint)])
        if not state.state.finished:
            raise ConfigError(
                f"Kaggle runs {where}",
                f"{AGAIN} Wait for it: `kernelkit watch {at}`. Then go on: {resume}",
            )
        if state.word == "timed out" or _is_incomplete(kaggle, folder):
            ended = "incomplete" if state.word == "complete" else state.word
            raise ConfigError(
                f"Kaggle has {where}, which ended {ended}",
                f"{AGAIN} To go on from there: {resume}",
            )
        if state.word == "complete" and latest.manifest.source_digest == source_digest:
            raise ConfigError(
                f"Kaggle has {where}, which is complete",
                f"{AGAIN} To get its results: kernelkit pull {at}",
            )
        on_event(f"note: {latest.name} is {where.partition(':')[0]}, and ended {state.word}")


def _sessions(config: Config, kaggle: Kaggle) -> Iterator[_Found]:
    """The current version of each kernel of a chain, if it is a session of the same work."""
    lanes = ["", CHAIN_SUFFIX] if config.chain == "two kernels" else [""]
    for suffix in lanes:
        slug = lane_config(config, suffix).kernel.slug
        info = current_kernel(kaggle, slug)
        if info is None:
            continue
        try:
            manifest = embedded_manifest(read_cells(info.source))
        except ConfigError:  # it was not made by kernelkit
            continue
        place = place_in_chain(manifest.session)
        if place is not None and info.version is not None and _same_work(config, manifest):
            yield _Found(slug, info.version, *place, manifest)


def _latest_first(kaggle: Kaggle, found: list[_Found]) -> list[_Found]:
    """Sessions in the order in which they were pushed; those of two chains by when they ran."""
    if len({one.chain for one in found}) > 1:
        listed = {one.slug: one.last_run for one in kaggle.list_own_kernels()}
        began = {
            one.slug: listed.get(one.slug) or datetime.min.replace(tzinfo=UTC) for one in found
        }
        return sorted(found, key=lambda one: (began[one.slug], one.place), reverse=True)
    return sorted(found, key=lambda one: one.place, reverse=True)


def _same_work(config: Config, manifest: Manifest) -> bool:
    name = config.resume_parameter
    sent = {key: value for key, value in manifest.parameters.items() if key != name}
    wanted = {key: value for key, value in config.parameters.items() if key != name}
    return (sent, manifest.outputs) == (wanted, config.outputs)


def _is_incomplete(kaggle: Kaggle, folder: RunFolder) -> bool:
    """Whether the manifest of an ended run says that another session must continue its work."""
    only = Selection(names=(RUN_MANIFEST_NAME,))
    try:
        return pull_run(kaggle, folder, only).verdict.incomplete
    except UnreachableError:
        raise
    except KernelkitError:  # it has left none
        return False
