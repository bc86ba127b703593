"""What a person reads about a dataset that was published, and about wheels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kernelkit.console.output import as_called, detail, document, mode, print_line, say, warn
from kernelkit.console.project_views import requirements
from kernelkit.storage import counted, human_size

if TYPE_CHECKING:
    from kernelkit.config import KernelSettings
    from kernelkit.project.datasets import DatasetVersion
    from kernelkit.project.wheels import PreparedWheels


def published(result: DatasetVersion, kernel: KernelSettings | None) -> None:
    """The version, its address in a run, and the line that gives it to the project's runs."""
    files = f"{counted(result.files, 'file')}, {human_size(result.size)}"
    privacy = "private" if result.is_private else "public"
    print_line(f"{result.source} version {result.version} is current ({files}, {privacy})")
    detail(result.url, style="dim")
    print_line(f"address: {result.address}")
    declared = kernel.dataset_sources if kernel else ()
    names = [name.lower() for name in declared]
    if result.source.lower() not in names:
        line = f"dataset_sources = {json.dumps([*declared, result.source])}"
        say("next:  add to [tool.kernelkit.kernel]:", indent=7)
        print_line(line)
    if kernel is not None:
        _note_rules(kernel)
    document(result.document)


def _note_rules(kernel: KernelSettings) -> None:
    if kernel.competition_sources:
        say(
            "note: a code competition may forbid datasets of your own, or ask you to share them: "
            f"read the rules of {', '.join(kernel.competition_sources)}",
            indent=6,
        )


def wheels_ready(
    prepared: PreparedWheels, published: DatasetVersion | None, kernel: KernelSettings
) -> None:
    """The wheels of a project, what they replace, and where they are."""
    lock = prepared.lock
    if lock is None:
        say("Kaggle's image has every requirement: no wheels are needed")
        document({"needed": False, "wheels": [], "dataset": None})
        return
    if not mode.quiet:
        requirements(prepared.plan, in_full=True)
        if kernel.enable_internet:
            warn("enable_internet is true, so a run installs from PyPI and does not use the wheels")
    print_line(
        f"{counted(len(lock.wheels), 'wheel')} ({human_size(prepared.size)}) in {prepared.folder}"
    )
    if published is not None:
        print_line(
            f"published: {published.source} version {published.version}, private and current"
        )
        _note_rules(kernel)
    changed = "Commit kernelkit-wheels.json, then try" if prepared.changed else "Try"
    say(f"next:  {changed}: {as_called('kernelkit rehearse')}", indent=7)
    document(
        {
            "needed": True,
            "folder": str(prepared.folder),
            "size": prepared.size,
            "lock_changed": prepared.changed,
            "wheels": [wheel.model_dump(mode="json") for wheel in lock.wheels],
            "requirements": [vars(one) for one in prepared.plan.requirements],
            "dataset": published.document if published else None,
        }
    )
