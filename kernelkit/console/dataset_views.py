"""What a person reads about a dataset that was published."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kernelkit.console.output import detail, document, print_line, say
from kernelkit.storage import counted, human_size

if TYPE_CHECKING:
    from kernelkit.config import KernelSettings
    from kernelkit.project.datasets import DatasetVersion


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
        say(f"next:  in [tool.kernelkit.kernel] set {line}", indent=7)
    if kernel is not None and kernel.competition_sources:
        say(
            "note: a code competition may forbid datasets of your own, or ask you to share them: "
            f"read the rules of {', '.join(kernel.competition_sources)}",
            indent=6,
        )
    document(result.document)
