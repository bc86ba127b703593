"""The metadata of the project's own distribution, which the notebook installs with the sources.

A program reads it with `importlib.metadata` or `pkg_resources`: its version, its requirements, its
entry points. It is made from what the project states, so that it is the same whether the project is
installed here or not. Only what a build computes, such as the version with setuptools-scm, comes
from the installation. Nothing is built or imported.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kernelkit.bundle import image, syntax
from kernelkit.bundle.imports import Module
from kernelkit.bundle.requires import Header, headers, of_poetry
from kernelkit.config import PROJECT_FILE
from kernelkit.storage import decoded, read_file

_LIBRARIES = frozenset({"importlib.metadata", "importlib_metadata", "pkg_resources"})
_READS = frozenset(
    {"version", "metadata", "distribution", "files", "requires", "from_name", "entry_points"}
    | {"get_distribution", "require", "get_provider", "iter_entry_points", "load_entry_point"}
    | {"get_entry_map", "get_entry_info"}
)
"""Functions of these libraries that read what is installed."""

_COMPUTED = frozenset({"entry-points", "dependencies", "optional-dependencies"})

_NAME = re.compile(r"[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?", re.IGNORECASE)  # of a distribution
_UNKNOWN = (OSError, ValueError, SyntaxError, RecursionError)  # of files that may be anything


@dataclass(frozen=True)
class Distribution:
    """What an installation of the project says about itself."""

    name: str
    version: str
    headers: tuple[Header, ...] = ()
    """Of METADATA, after name and version."""

    entry_points: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """Group → name → object, all sorted."""

    @property
    def folder(self) -> str:
        """The name of its folder next to the sources."""
        return f"{canonicalize_name(self.name).replace('-', '_')}-{self.version}.dist-info"

    def files(self, tops: Iterable[str]) -> dict[str, str]:
        """The files of that folder; `tops` are the modules that it installs."""
        first = (("Metadata-Version", "2.4"), ("Name", self.name), ("Version", self.version))
        files = {
            "METADATA": "".join(f"{name}: {value}\n" for name, value in (*first, *self.headers)),
            "top_level.txt": "".join(f"{top}\n" for top in sorted(set(tops))),
        }
        if self.entry_points:
            files["entry_points.txt"] = "\n".join(
                f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points)
                for group, points in self.entry_points
            )
        return files


@dataclass(frozen=True)
class NoDistribution:
    """A project whose distribution is not known."""

    name: str
    """Empty where the project states none."""

    reason: str


def _plain(points: object) -> dict[str, str]:
    """The entry points of a group that are one line of text each."""
    if not isinstance(points, dict):
        raise ValueError("is not a table")
    found = {}
    for name, value in points.items():
        if isinstance(value, dict):  # of poetry
            value = value.get("reference", "") if value.get("type") != "file" else ""
        if isinstance(value, str) and value.isprintable() and name.isprintable() and value:
            found[name.strip()] = value.strip()
    return found


_Points = Annotated[dict[str, str], BeforeValidator(_plain)]
"""Name → object, of one group of entry points."""


def _texts(lines: object) -> list[str]:
    """The lines of a text or a list that are one line each."""
    if isinstance(lines, str):
        lines = [line for line in lines.splitlines() if line.strip()]
    found = lines if isinstance(lines, list) else []
    return [line.strip() for line in found if isinstance(line, str) and line.isprintable()]


def _table(values: object) -> dict[str, str]:
    """The entries of a table that are one line of text each."""
    found = values if isinstance(values, dict) else {}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, str) and value.isprintable() and key.isprintable()
    }


def _tables(values: object) -> list[dict[str, str]]:
    return [_table(value) for value in values] if isinstance(values, list) else []


_Texts = Annotated[list[str], BeforeValidator(_texts)]


class Stated(BaseModel):
    """What a project states about its distribution: `[project]` or `[tool.poetry]`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = ""
    version: str | None = None
    description: str = ""
    dynamic: list[str] = Field(default_factory=list)
    """What only a build knows."""

    license: str | dict[str, str] | None = Field(default=None, union_mode="left_to_right")
    keywords: _Texts = Field(default_factory=list)
    authors: Annotated[list[dict[str, str]], BeforeValidator(_tables)] = Field(default_factory=list)
    classifiers: _Texts = Field(default_factory=list)
    urls: Annotated[dict[str, str], BeforeValidator(_table)] = Field(default_factory=dict)
    requires_python: str = Field(default="", alias="requires-python")
    dependencies: _Texts = Field(default_factory=list)
    optional_dependencies: dict[str, _Texts] = Field(
        default_factory=dict, alias="optional-dependencies"
    )

    scripts: _Points = Field(default_factory=dict)
    gui_scripts: _Points = Field(default_factory=dict, alias="gui-scripts")
    entry_points: dict[str, _Points] = Field(default_factory=dict, alias="entry-points")
    plugins: dict[str, _Points] = Field(default_factory=dict)
    """As poetry calls entry points."""

    @property
    def groups(self) -> dict[str, _Points]:
        """The entry points by group."""
        scripts = {"console_scripts": self.scripts, "gui_scripts": self.gui_scripts}
        return {**scripts, **self.entry_points, **self.plugins}

    def completed(self, installed: importlib.metadata.Distribution | None) -> Stated:
        """With what an installation knows and the project does not state."""
        if installed is None:
            return self
        points: dict[str, _Points] = {}
        for point in installed.entry_points if not any(self.groups.values()) else ():
            points.setdefault(point.group, {})[point.name] = point.value
        return self.model_copy(
            update={
                "name": self.name or installed.name,
                "version": self.version or installed.version,
                **self._installed_requirements(installed),
                "entry_points": {
                    **self.entry_points,
                    **{group: _plain(found) for group, found in points.items()},
                },
            }
        )

    def _installed_requirements(
        self, installed: importlib.metadata.Distribution
    ) -> dict[str, object]:
        """The requirements that only a build knows, extras included."""
        extras: dict[str, list[str]] = {}
        plain: list[str] = []
        for line in installed.requires or ():
            named = re.search(r"\s*(?:;|and)\s*extra\s*==\s*['\"]([^'\"]+)['\"]", line)
            lines = extras.setdefault(named[1], []) if named else plain
            lines.append(line.replace(named[0], "") if named else line)
        found: dict[str, object] = {}
        if "dependencies" in self.dynamic and not self.dependencies:
            found["dependencies"] = plain
        if "optional-dependencies" in self.dynamic:
            found["optional_dependencies"] = extras
        return found


class _Build(BaseModel):
    """Where a build finds the version."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    attr: str = ""
    path: str = ""
    file: str | list[str] = ""


class _BuildBackend(BaseModel):
    """The table of setuptools, hatch or pdm."""

    version: _Build | None = None
    dependencies: _Build | None = None
    dynamic: _BuildBackend | None = None
    """Where setuptools has the version and the dependencies."""


class _Tools(BaseModel):
    """The tables `[tool.…]` that state something about the distribution."""

    poetry: Annotated[Stated | None, BeforeValidator(of_poetry)] = None
    setuptools: _BuildBackend = _BuildBackend()
    hatch: _BuildBackend = _BuildBackend()
    pdm: _BuildBackend = _BuildBackend()

    @property
    def build(self) -> _Build:
        """Where the build finds the version."""
        dynamic = self.setuptools.dynamic and self.setuptools.dynamic.version
        return dynamic or self.hatch.version or self.pdm.version or _Build()

    @property
    def requirement_files(self) -> list[str]:
        """The files in which setuptools finds the dependencies."""
        found = self.setuptools.dynamic and self.setuptools.dynamic.dependencies
        names = found.file if found else []
        return [names] if isinstance(names, str) else names


class _ProjectDocument(BaseModel):
    """What pyproject.toml states about the distribution."""

    project: Stated | None = None
    tool: _Tools = _Tools()


def read_distribution(project: Path, packages: Iterable[str]) -> Distribution | NoDistribution:
    """The project's distribution, or why there is none; `packages` are paths in the project."""
    stated, build = _stated(project)
    if stated.version is None:
        stated = stated.model_copy(update={"version": _built_version(project, packages, build)})
    if stated.version is None or not stated.name or _COMPUTED & {*stated.dynamic}:
        stated = stated.completed(_installed(project, stated.name))
    if not _NAME.fullmatch(stated.name):
        return NoDistribution("", f"{PROJECT_FILE} states no name in [project]")
    if stated.version is None:
        reason = f"no version of {stated.name} is stated, and it is not installed here"
        return NoDistribution(stated.name, reason)
    try:
        version = str(Version(stated.version))
    except InvalidVersion:
        return NoDistribution(stated.name, f'the version "{stated.version}" is not valid')
    return Distribution(
        name=stated.name,
        version=version,
        headers=tuple(headers(stated)),
        entry_points=tuple(
            (group, tuple(sorted(points.items())))
            for group, points in sorted(stated.groups.items())
            if points
        ),
    )


def readers(modules: Iterable[Module], names: Iterable[str]) -> list[str]:
    """The places `path:line` that may read the metadata of a distribution of one of these names."""
    canonical = frozenset(map(canonicalize_name, names))
    return [
        f"{module.path}:{line}"
        for module in modules
        if b"metadata" in module.content or b"pkg_resources" in module.content
        for line in _reading_lines(module, canonical)
    ]


def _reading_lines(module: Module, names: frozenset[str]) -> list[int]:
    loaded = {name for found in module.imports for name in found.candidates}
    if loaded.isdisjoint(_LIBRARIES) and b"importlib.metadata" not in module.content:
        return []
    nodes = list(ast.walk(module.tree()))
    renamed = {a.asname for a in nodes if isinstance(a, ast.alias) and a.name in _READS}
    lines = []
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        function = syntax.called_name(node)
        if function not in _READS and function not in renamed:
            continue
        words = [*node.args[:1], *(keyword.value for keyword in node.keywords[:1])]
        name = getattr(words[0], "value", None) if words else None
        is_other = isinstance(name, str) and canonicalize_name(name) not in names
        if not is_other or "entry" in function:
            lines.append(node.lineno)
    return sorted(set(lines))


def _stated(project: Path) -> tuple[Stated, _Build]:
    """What the first file says that names the distribution, and where a build has the version."""
    try:
        text = decoded(read_file(project / PROJECT_FILE))
        found = _ProjectDocument.model_validate(tomllib.loads(text))
        if found.project is not None:
            lines = [
                line
                for name in found.tool.requirement_files
                for line in _without_comments(decoded(read_file(project / name)))
            ]
            update = {"dependencies": lines} if lines else {}
            return found.project.model_copy(update=update), found.tool.build
        if found.tool.poetry is not None:
            return found.tool.poetry, _Build()
        return _of_setup_cfg(project)
    except _UNKNOWN:
        return Stated(), _Build()


def _without_comments(text: str) -> list[str]:
    lines = (re.sub(r"(?:^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _of_setup_cfg(project: Path) -> tuple[Stated, _Build]:
    import configparser  # takes 6 ms, and few projects have a setup.cfg

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(decoded(read_file(project / "setup.cfg")).lstrip("\ufeff"))
    except (configparser.Error, OSError, ValueError):
        return Stated(), _Build()
    section = dict(parser["metadata"]) if parser.has_section("metadata") else {}
    version = section.pop("version", "")
    kind, colon, place = version.partition(":")
    build = _Build.model_validate({kind.strip(): place.strip()} if colon else {})
    stated = {**section, "version": None if colon else version or None}
    points: dict[str, dict[str, str]] = {}
    if parser.has_section("options.entry_points"):
        for group, lines in parser["options.entry_points"].items():
            pairs = (line.split("=", 1) for line in lines.splitlines() if "=" in line)
            points[group] = {name.strip(): value.strip() for name, value in pairs}
    options = dict(parser["options"]) if parser.has_section("options") else {}
    extras = "options.extras_require"
    found: dict[str, object] = {
        **stated,
        "entry-points": points,
        "dependencies": options.get("install_requires", ""),
        "requires-python": options.get("python_requires", ""),
        "optional-dependencies": dict(parser[extras]) if parser.has_section(extras) else {},
        "license": {"text": section.get("license", "")},
        "authors": [{"name": section.get("author"), "email": section.get("author_email")}],
        "urls": {"Homepage": section.get("url")},
    }
    return Stated.model_validate(found), build


def _built_version(project: Path, packages: Iterable[str], build: _Build) -> str | None:
    """The version that a build would read from a file of the project."""
    places = [build.file] if isinstance(build.file, str) else build.file
    for place in filter(None, places):
        try:
            return decoded(read_file(project / place)).lstrip("\ufeff").strip()
        except _UNKNOWN:
            return None
    if build.path:
        return _assigned(project / build.path, ("__version__", "VERSION"))
    module, _, attribute = build.attr.rpartition(".")
    for package in packages:
        root = (project / package).parent
        path = root / (module.replace(".", "/") or Path(package).name)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if found := _assigned(file, (attribute or "__version__",)):
                return found
    return None


def _assigned(path: Path, names: tuple[str, ...]) -> str | None:
    """The text that a Python file assigns to the first of these names that it has."""
    try:
        body = syntax.parse(read_file(path), path.name, image.snapshot().release).tree.body
    except _UNKNOWN:
        return None
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        is_named = any(getattr(target, "id", None) in names for target in targets)
        if is_named and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    return None


def _installed(project: Path, name: str) -> importlib.metadata.Distribution | None:
    """What a build has left in the project's folder, or what is installed by that name."""
    folders = [str(project), str(project / "src")]
    for found in importlib.metadata.distributions(path=folders):
        if found.name and (not name or canonicalize_name(found.name) == canonicalize_name(name)):
            return found
    try:
        return importlib.metadata.distribution(name) if name else None
    except importlib.metadata.PackageNotFoundError:
        return None
