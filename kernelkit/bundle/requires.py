"""The headers of a distribution's METADATA beyond its name and version, as a build writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from kernelkit.bundle.metadata import Stated

Header = tuple[str, str]


def headers(stated: Stated) -> list[Header]:
    """Name and value of each header, in the order of a build; what is not valid is left out."""
    return [(name, value) for name, value in _headers(stated) if value.isprintable()]


def _headers(stated: Stated) -> Iterator[Header]:
    if description := " ".join(stated.description.split()):
        yield "Summary", description
    if isinstance(stated.license, str) and stated.license:
        yield "License-Expression", stated.license
    elif isinstance(stated.license, dict) and stated.license.get("text"):
        yield "License", stated.license["text"]
    if stated.keywords:
        yield "Keywords", ",".join(stated.keywords)
    for author in stated.authors:
        name, email = author.get("name", ""), author.get("email", "")
        if email:
            yield "Author-email", f"{name} <{email}>" if name else email
        elif name:
            yield "Author", name
    yield from (("Classifier", line) for line in stated.classifiers)
    yield from (("Project-URL", f"{label}, {url}") for label, url in stated.urls.items())
    if stated.requires_python:
        yield "Requires-Python", stated.requires_python
    yield from (("Requires-Dist", line) for line in _requirements(stated.dependencies))
    for extra, lines in stated.optional_dependencies.items():
        name = canonicalize_name(extra)
        yield "Provides-Extra", name
        yield from (("Requires-Dist", line) for line in _requirements(lines, name))


def _requirements(lines: Iterable[str], extra: str = "") -> Iterator[str]:
    for line in lines:
        try:
            found = Requirement(line)
            if extra:
                above = f"({found.marker}) and " if found.marker else ""
                above = above if " or " in above else above.replace("(", "").replace(")", "")
                found.marker = Marker(f'{above}extra == "{extra}"')
        except (InvalidRequirement, InvalidMarker):
            continue
        yield str(found)


def of_poetry(table: object) -> object:
    """`[tool.poetry]` in the words of `[project]`."""
    if not isinstance(table, dict):
        return table
    stated = table.get("dependencies")
    stated = stated if isinstance(stated, dict) else {}
    tables = {name: v if isinstance(v, dict) else {"version": v} for name, v in stated.items()}
    python = tables.pop("python", {"version": ""})
    extras = table.get("extras")
    authors = [
        dict(zip(("name", "email"), re.split(r"\s*<", author.rstrip("> ")), strict=False))
        for author in table.get("authors", [])
        if isinstance(author, str)
    ]
    pages = ("homepage", "repository", "documentation")
    urls = {name.title(): table[name] for name in pages if name in table}
    return {
        **table,
        "requires-python": poetry_versions(str(python.get("version", ""))),
        "dependencies": [
            poetry_requirement(name, one) for name, one in tables.items() if not one.get("optional")
        ],
        "optional-dependencies": {
            extra: [poetry_requirement(name, tables[name]) for name in names if name in tables]
            for extra, names in (extras.items() if isinstance(extras, dict) else ())
            if isinstance(names, list)
        },
        "authors": authors,
        "urls": {**urls, **(table["urls"] if isinstance(table.get("urls"), dict) else {})},
    }


def poetry_requirement(name: str, table: Mapping[str, object]) -> str:
    """One requirement of poetry as PEP 508 has it."""
    extras = table.get("extras")
    inside = f"[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else ""
    place = table.get("url") or (f"git+{table['git']}" if "git" in table else "")
    what = f" @ {place}" if place else poetry_versions(str(table.get("version", "*")))
    marker = f" ; {table['markers']}" if table.get("markers") else ""
    return f"{name}{inside}{what}{marker}"


def poetry_versions(text: str) -> str:
    """Versions as PEP 440 has them: `^1.2` becomes `>=1.2,<2.0`, and `~1.2.3` `>=1.2.3,<1.3.0`."""
    return ",".join(filter(None, (_poetry_version(one.strip()) for one in text.split(","))))


def _poetry_version(one: str) -> str:
    if one in ("*", ""):
        return ""
    found = re.fullmatch(r"([\^~])\s*(\d+(?:\.\d+)*)(.*)", one)
    if found is None or one.startswith("~="):
        return one if re.match(r"[<>=!~]", one) else f"=={one}"
    sign, release, rest = found.groups()
    parts = [int(part) for part in release.split(".")]
    at = min(1, len(parts) - 1)
    if sign == "^":  # the first part that is not zero may not grow
        at = next((n for n, part in enumerate(parts) if part), len(parts) - 1)
    above = [*parts[:at], parts[at] + 1, *[0] * (len(parts) - at - 1)]
    return f">={release}{rest},<{'.'.join(map(str, above))}"
