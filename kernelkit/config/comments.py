"""The comments of the project file about the parameters, which the notebook repeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.items

from kernelkit.config.project_file import PROJECT_FILE, project_text, python_name
from kernelkit.errors import ConfigError


def parameter_comments(
    project: Path, profile: str | None
) -> dict[str, tuple[tuple[str, ...], str]]:
    """The comments of a valid project file about each parameter: above it, and on its line.

    A profile's word goes before.

    Raises:
        ConfigError: its values are nested deeper than tomlkit reads.
    """
    text = project_text(project)
    try:
        table: Any = tomlkit.parse(text)["tool"]
    except (ValueError, RecursionError) as error:  # tomllib accepts deeper nesting
        raise ConfigError(f"{project / PROJECT_FILE} cannot be read: {error}") from None
    table = table["kernelkit"]
    layers = [table.get("parameters", {})]
    if profile is not None:
        layers.append(table.get("profiles", {}).get(profile, {}).get("parameters", {}))
    comments: dict[str, tuple[tuple[str, ...], str]] = {}
    for layer in layers:
        for name, above, beside in _commented_keys(layer):
            if above or beside:
                comments[python_name(name)] = above, beside
    return comments


def _commented_keys(table: Any) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Keys with the comments directly above and behind them."""
    above: list[str] = []
    for key, item in getattr(getattr(table, "value", None), "body", []):
        if isinstance(item, tomlkit.items.Comment):
            above.append(_words(item.trivia.comment))
            continue
        if key is not None:
            yield key.key, tuple(above), _words(item.trivia.comment)
        above = []


def _words(comment: str) -> str:
    return comment.lstrip("#").strip()
