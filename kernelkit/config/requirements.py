"""The requirements that the key `pip` means: its own, those of [project], and those of files."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelkit.config.models import THIS_PROJECT, pip_requirement
from kernelkit.config.project_file import PROJECT_FILE, project_text
from kernelkit.errors import ConfigError
from kernelkit.storage import (
    decoded,
    read_file,
)

HASHES = ("sha256", "sha384", "sha512")
"""Those that pip accepts."""


@dataclass(frozen=True)
class StatedRequirement:
    """One requirement, with what a file for pip says about its files."""

    text: str
    """PEP 508."""

    hashes: tuple[str, ...] = ()
    """Of its files, each as "sha256:…"; empty where none are stated."""


def all_requirements(project: Path, stated: Sequence[str]) -> Iterator[StatedRequirement]:
    """The requirements themselves: of [project], and of the files that the project file names."""
    for line in stated:
        if line == THIS_PROJECT:
            yield from _project_dependencies(project)
        elif line.endswith(".txt"):
            yield from _requirements_file(project, (project / line).resolve(), ())
        else:
            yield StatedRequirement(line)


def _project_dependencies(project: Path) -> Iterator[StatedRequirement]:
    section = tomllib.loads(project_text(project)).get("project")
    stated = section.get("dependencies") if isinstance(section, dict) else None
    if not isinstance(stated, list) or not all(isinstance(line, str) for line in stated):
        raise ConfigError(
            f'[tool.kernelkit] "pip" = "{THIS_PROJECT}": [project] has no list of dependencies',
            'Write them there, or name a file: pip = "requirements.txt".',
        )
    for line in stated:
        yield _checked_requirement(line, f"{PROJECT_FILE}: [project] dependencies")


def _requirements_file(
    project: Path, path: Path, above: tuple[Path, ...]
) -> Iterator[StatedRequirement]:
    """The requirements of a file for pip, and of the files that it includes."""
    shown = os.path.relpath(path, project.resolve())
    try:
        text = decoded(read_file(path)).replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f'[tool.kernelkit] "pip": {shown} cannot be read: {reason}') from None
    for number, joined in _joined_lines(text):
        line = re.sub(r"(?:^|\s)#.*", "", joined).strip()
        hashes = tuple(re.findall(r"\s--hash[= ](\S+)", line))
        line = re.sub(r"\s--hash[= ]\S+", "", line).strip()
        place = f"{shown}:{number}"
        option = re.match(r"--[\w-]+|-\w", line)
        included = re.fullmatch(r"(?:-r|--requirement)[ =]?\s*(\"?)(.+)\1", line)
        if included and "://" not in included[2]:
            other = (path.parent / included[2]).resolve()
            if other not in (path, *above):
                yield from _requirements_file(project, other, (*above, path))
        elif option:
            raise ConfigError(
                f"{place}: the run cannot use {option[0]}"
                + (" with an address" if included else ""),
                "List the requirements themselves, for example in a file of their own.",
            )
        elif line:
            yield _checked_requirement(line, place, hashes)


def _joined_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines as pip joins them, each with the number of its first one.

    A backslash at the end continues a line, but not a comment.
    """
    start, parts = 1, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        start = start if parts else number
        is_comment = line.lstrip().startswith("#")
        parts.append(line if is_comment else line.removesuffix("\\"))
        if is_comment or not line.endswith("\\"):
            yield start, " ".join(parts)
            parts = []
    if parts:
        yield start, " ".join(parts)


def _checked_requirement(line: str, place: str, hashes: tuple[str, ...] = ()) -> StatedRequirement:
    for stated in hashes:
        algorithm, _, digest = stated.partition(":")
        if algorithm not in HASHES or not re.fullmatch(r"[0-9a-f]+", digest):
            raise ConfigError(f"{place}: --hash={stated} is not a hash", "Write sha256:DIGEST.")
    try:
        return StatedRequirement(pip_requirement(line), hashes)
    except ValueError as error:
        raise ConfigError(f"{place}: {line!r} {error}", "Write it as in PEP 508.") from None
