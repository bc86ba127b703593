"""The settings of a Hydra program: its YAML files, composed by their lists of defaults.

Hydra itself is not needed. What only running the program decides, such as interpolations, stays
as it is written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kernelkit.bundle.scripts import OptionValue
from kernelkit.bundle.syntax import called_name
from kernelkit.storage import read_file

if TYPE_CHECKING:
    from kernelkit.project.survey import Source

_PACKAGE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)
_ROOT = re.compile(r"^\$\{[^{}]*(?:root|cwd|ROOT|home|work)[^{}]*\}/+")
_DEEPEST = 20  # defaults that name each other
_MOST_FILES = 500  # that are read: files may name each other again and again
_LARGEST_BYTES = 1 << 20
_MOST_VALUES = 20_000  # of one file: a few lines of YAML can stand for billions

Tree = dict[str, "Tree | OptionValue"]


@dataclass(frozen=True)
class HydraSettings:
    """What the configuration files of a program say."""

    values: Mapping[str, OptionValue] = field(default_factory=dict)
    """Dotted key, as an override names it → value."""

    run_folder: str = "outputs/*/*"
    """The folder of a run below the working folder, as a pattern: its date, its time."""

    changes_folder: bool = False
    """Whether the program runs in that folder."""


def hydra_settings(project: Path, source: Source) -> HydraSettings:
    """The settings of a script with `@hydra.main`; empty where its files cannot be read."""
    given = _main_arguments(source.tree)
    if given is None:
        return HydraSettings()
    folder = project / PurePosixPath(source.path).parent / given.get("config_path", "")
    tree: Tree = {}
    if name := given.get("config_name"):
        tree = _composed(_Files(project, folder), name.removesuffix(".yaml"), 0)
    own = dict(_leaves({"hydra": tree.pop("hydra", {})}))
    leaves = dict(_leaves(tree))
    values = {key: v for key, v in leaves.items() if not (isinstance(v, str) and "${" in v)}
    folder_of_runs = str(own.get("hydra.run.dir", "outputs/*/*"))
    run_folder = re.sub(
        r"\$\{([^{}]*)\}", lambda name: str(values.get(name[1], "*")).strip("/"), folder_of_runs
    )
    for key, value in leaves.items():
        if value in ("${hydra:runtime.output_dir}", "${hydra:run.dir}"):
            values[key] = run_folder
    usual = given.get("version_base", "1.1") == "1.1"
    changes_folder = bool(own.get("hydra.job.chdir", usual))
    return HydraSettings(values, run_folder.strip("/"), changes_folder)


def _main_arguments(tree: ast.Module) -> dict[str, str] | None:
    """The texts that are given to `hydra.main`; `version_base=None` is an empty one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called_name(node) == "main" and node.keywords:
            return {
                str(one.arg): str(one.value.value or "")
                for one in node.keywords
                if isinstance(one.value, ast.Constant)
            }
    return None


def _composed(files: _Files, name: str, depth: int) -> Tree:
    """One file with the files of its defaults below it."""
    _, own = files.read(name)
    defaults = own.pop("defaults", [])
    lines = defaults if isinstance(defaults, list) and depth < _DEEPEST else []
    here = PurePosixPath(name).parent
    result: Tree = {}
    if "_self_" not in lines:
        lines = [*lines, "_self_"]
    for line in lines:
        if line == "_self_":
            _merge(result, own)
        elif isinstance(line, str):
            _merge(result, _composed(files, str(here / line), depth + 1))
        elif isinstance(line, dict):
            for group, choice in line.items():
                _merge(result, _group(files, here, str(group), choice, depth))
    return result


def _group(
    files: _Files, here: PurePosixPath, group: str, choice: Tree | OptionValue, depth: int
) -> Tree:
    """What `- group: choice` of a list of defaults adds."""
    words, _, package = group.removeprefix("optional ").partition("@")
    if words.startswith(("override ", "hydra/")):
        return {}
    result: Tree = {}
    for one in choice if isinstance(choice, list) else [choice]:
        if not isinstance(one, str):
            continue
        path = here / words.strip("/") / one
        text, _ = files.read(str(path))
        found = _composed(files, str(path), depth + 1)
        stated = _PACKAGE.search(text)
        place = package or (stated[1] if stated else "_group_")
        keys = [*here.parts, *words.strip("/").split("/")] if place == "_group_" else []
        if place not in ("_group_", "_global_"):
            keys = place.split(".")
        for key in reversed(keys):
            found = {key: found}
        _merge(result, found)
    return result


class _Files:
    """The YAML files below a folder of the project; a bounded number of them."""

    def __init__(self, project: Path, folder: Path) -> None:
        self._project, self._folder = project.resolve(), folder
        self._left = _MOST_FILES

    def read(self, name: str) -> tuple[str, Tree]:
        """The text and the content of a file; empty where it is not a mapping in the project."""
        import yaml

        self._left -= 1
        try:
            path = (self._folder / f"{name}.yaml").resolve()
            if self._left < 0 or not path.is_relative_to(self._project):
                return "", {}
            text = read_file(path, _LARGEST_BYTES).decode("utf-8-sig")
            content = yaml.safe_load(text)
        except (OSError, ValueError, RecursionError, RuntimeError, yaml.YAMLError):
            return "", {}
        return text, content if isinstance(content, dict) and _is_small(content) else {}


def _is_small(content: object) -> bool:
    """Whether a content has few values, also where aliases repeat some of it."""
    pending, left = [content], _MOST_VALUES
    while pending and left:
        left -= 1
        value = pending.pop()
        pending += value.values() if isinstance(value, dict) else ()
        pending += value if isinstance(value, list) else ()
        if len(pending) > _MOST_VALUES:
            return False
    return not pending


def _merge(into: Tree, more: Tree) -> None:
    for key, value in more.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = dict(value) if isinstance(value, dict) else value


def _leaves(tree: Tree, above: str = "") -> Iterator[tuple[str, OptionValue]]:
    for key, value in tree.items():
        name = f"{above}{key}"
        if not str(key).isidentifier():
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, str):
            yield name, _ROOT.sub("", value)  # what is below a folder that only the run knows
        elif isinstance(value, int | float):
            yield name, value
