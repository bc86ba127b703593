"""Which outputs a project may declare: files, folders and patterns below the working folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kernelkit.errors import ConfigError
from kernelkit.storage import PathAllocator, UnsafePathError, safe_path

OWN_OUTPUTS = frozenset(
    {"bundle.json", "push.json", "run.json", "run-manifest.json", "run-manifest.partial"}
    | {"run-stalled.txt"}
    | {"__notebook__.ipynb", "__notebook_source__.ipynb", "__results__.html", "__results___files"}
    | {"__output__.json", "__script__.py", "custom.css", ".partial"}
)
"""Files that kernelkit or Kaggle itself writes next to a run's outputs."""


def checked_outputs(outputs: Sequence[str], slug: str) -> tuple[str, ...]:
    """The outputs in the form of a listing: `results/` is a folder, `*.csv` a pattern.

    Raises:
        ConfigError: with every output that can never exist, or that no pull could write here.
    """
    own = {*OWN_OUTPUTS, f"{slug}.log"}
    own |= {f"{name.removesuffix('.zip')}.unpacked" for name in outputs if name.endswith(".zip")}
    paths = PathAllocator(Path(os.devnull), own)  # below it is nothing
    complaints, found = [], []
    folders: dict[str, PurePosixPath] = {}
    for output in outputs:
        try:
            path = _output_path(output)
            for folder in [*path.parents, *([path] if output.endswith("/") else [])]:
                if folders.setdefault(str(folder).casefold(), folder) != folder:
                    raise UnsafePathError("another output has that folder in other letters")
            is_folder = output.endswith("/")
            paths.take(f"{path}/*" if is_folder else str(path))
            found.append(f"{path}/" if is_folder else str(path))
        except UnsafePathError as error:
            complaints.append(
                f'[tool.kernelkit] "outputs": {output!r} cannot be an output: {error}'
            )
    if not outputs:
        complaints = ['[tool.kernelkit] "outputs" = []: a run without outputs cannot be verified']
    if complaints:
        raise ConfigError(
            "\n".join(complaints),
            'List files, folders ("results/") and patterns ("*.csv") below the working folder.',
        )
    return tuple(found)


def is_several(output: str) -> bool:
    """Whether a declared output is a folder or a pattern."""
    return output.endswith("/") or any(mark in output for mark in "*?[")


def _output_path(output: str) -> PurePosixPath:
    """The path of a file, folder or pattern below the working folder.

    Raises:
        UnsafePathError: it means no such path.
    """
    inside = re.match(r"(?:kaggle://working|/kaggle/working)/+(?P<path>.+)", output)
    if inside:
        raise UnsafePathError(f'write it as the run sees it from there: "{inside["path"]}"')
    if "://" in output:
        raise UnsafePathError("it is an address, and Kaggle keeps only the working folder")
    if output != output.strip() or output.startswith(("~", "!")):
        raise UnsafePathError("it begins or ends with a character that only a shell understands")
    if re.search(r"\{[^{}]*,[^{}]*\}", output):
        raise UnsafePathError("braces are not understood: list a pattern for each")
    return safe_path(output)
