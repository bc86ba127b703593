"""Says what to do about tests that have another outcome with what the notebook wrote.

Three kinds of tests differ although nothing is wrong with the package, and each needs its own
advice: tests that name the package by its path in the project, tests whose own names change from
run to run, and tests that read files outside the package.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kernelkit.storage import read_file

OUTSIDE = (
    "The notebook mostly lacks files outside the package: move them into the package's folder, or "
    "mount them as a dataset. If a test fails only sometimes, run it again, or leave it out with "
    "--deselect."
)
_PATH_CALLS = frozenset(
    {"Path", "PurePath", "PosixPath", "PurePosixPath", "open", "join", "joinpath", "glob", "iglob"}
    | {"rglob", "listdir", "scandir", "walk", "exists", "isfile", "isdir", "run", "check_call"}
    | {"chdir", "copy", "copytree", "check_output", "call", "Popen", "spec_from_file_location"}
    | {"run_path", "path"}
)
"""Functions and methods whose text arguments are paths or command lines."""

_CHANGING = re.compile(r"tmp\w+|[0-9a-fA-F]{4,}|\d+")
"""Parts of names that depend on the time, on chance, or on addresses in memory."""

_QUOTED = re.compile(r"'([^']+)'")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class DifferingTest:
    """A test with two outcomes."""

    name: str
    """`tests/test_a.py::test_it`, or a file that cannot be collected."""

    sides: frozenset[str]
    """Where it exists: "package", "notebook"."""

    report: str = ""
    """pytest's whole report with the notebook; paths in the project begin with the stage."""


@dataclass(frozen=True)
class PackagePlaces:
    """Where the package is in the project, and what of it is carried; all paths as in it."""

    project: Path
    homes: tuple[PurePosixPath, ...]
    carried: frozenset[PurePosixPath]


def remedy(tests: Sequence[DifferingTest], places: PackagePlaces, stage: Path) -> str:
    """What to do. `stage` is the copy of the project in which the tests ran."""
    changing = _with_changing_names(tests)
    rest = [one for one in tests if one.name not in changing]
    found = {one.name: named for one in rest if (named := _names_package(one, places, stage))}
    advice = []
    if found:
        advice.append(_by_path(list(dict.fromkeys(found.values())), places))
    if changing:
        example = min(changing)
        advice.append(
            f"The names of {len(changing)} tests change from run to run, such as {example}: they "
            "contain a time, a random value, a temporary folder or an address. Give them fixed "
            'names, with pytest.param(…, id="…") or ids=…, or leave them out with --deselect.'
        )
    if len(found) < len(rest):
        advice.append(OUTSIDE)
    return " ".join(advice)


def remedy_of_stop(report: str, files: Iterable[str], places: PackagePlaces, stage: Path) -> str:
    """The same for a test run that stops early: because of a conftest.py, as a rule."""
    for file in (*(one for one in files if one.endswith("conftest.py")), ""):
        named = _names_package(DifferingTest(file, frozenset(), report), places, stage)
        if named:
            return _by_path([named], places)
    return OUTSIDE


@dataclass(frozen=True)
class _Named:
    """Who names the package by which path."""

    where: str
    path: PurePosixPath


def _by_path(found: Sequence[_Named], places: PackagePlaces) -> str:
    first = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    home = next(home for home in places.homes if first.path.is_relative_to(home))
    name = home.stem
    is_folder = any(one.is_relative_to(first.path) for one in places.carried)
    if first.path not in places.carried and not is_folder:
        state = f"{first.path} is not carried: add it to `include` in [tool.kernelkit]. And"
    else:
        state = f"{first.path} is carried, but"
    verb = "name" if more else "names"
    return (
        f"{first.where}{more} {verb} the package by its path. {state} the notebook writes the "
        "package to another folder, so it is not at its place in the project, on Kaggle neither. "
        f'Take files from the package itself: importlib.resources.files("{name}"), '
        f"{name}.__file__, or python -m {name}. Or leave such tests out with --deselect."
    )


def _with_changing_names(tests: Sequence[DifferingTest]) -> set[str]:
    """Tests that exist in one run only, and in the other with other numbers in their names."""
    sides = {side: [t.name for t in tests if t.sides == {side}] for side in ("package", "notebook")}
    shapes = {side: Counter(map(_shape, names)) for side, names in sides.items()}
    both = shapes["package"] & shapes["notebook"]
    return {
        name for names in sides.values() for name in names if "[" in name and _shape(name) in both
    }


def _shape(name: str) -> str:
    function, bracket, parameters = name.partition("[")
    return function + bracket + _CHANGING.sub("#", parameters)


def _names_package(test: DifferingTest, places: PackagePlaces, stage: Path) -> _Named | None:
    """Where a path of the package is named: in the test's file, or only in its report."""
    file, _, name = test.name.partition("::")
    quoted = _paths_in_error(test.report, stage)
    about = [path for one in quoted if (path := _in_package(one, places))]
    written = [*about, *_paths_in_report(test.report, places, stage)]
    lines = list(_paths_in_source(places.project / file, name, places)) if file else []
    if not written and (quoted or not lines):
        return None
    if not lines:
        return _Named(file or "A conftest.py", written[0])
    line, path = next(((n, p) for n, p in lines if p in written), lines[0])
    return _Named(f"{file}:{line}", max([path, *written[:1]], key=lambda one: len(one.parts)))


def _paths_in_error(report: str, stage: Path) -> list[str]:
    """What the last line of a report names, if the error is that it was not found."""
    errors = (one for one in reversed(report.splitlines()) if one.startswith("E "))
    last = next(errors, "").replace(f"{stage}/", "")
    not_found = ("No such file or directory", "Not a directory", "No module named", "NotFound")
    return _QUOTED.findall(last) if any(words in last for words in not_found) else []


def _paths_in_report(report: str, places: PackagePlaces, stage: Path) -> Iterator[PurePosixPath]:
    """Paths of the package as they would be in the project, absolute or relative."""
    for home in places.homes:
        name = re.escape(str(home))
        below = r"(/[\w.@+-]+)*"
        absolute = rf"{re.escape(str(stage))}/({name}{below})(?![\w-])"
        relative = rf"(?<![\w./-])(?:\.{{1,2}}/)*({name}{below})(?![\w-])"
        for match in re.finditer(absolute, report):
            yield PurePosixPath(match[1].rstrip("."))
        for match in re.finditer(relative, report):
            if "/" in match[1] or home.suffix == ".py":
                yield PurePosixPath(match[1].rstrip("."))


def _paths_in_source(
    file: Path, test: str, places: PackagePlaces
) -> Iterator[tuple[int, PurePosixPath]]:
    """The lines of a test file that name the package's folder, and the path as far as it is text.

    Those of the test itself, or else those that are in no function. A text counts if it is joined
    to a path with `/`, or passed to a function that takes a path.
    """
    try:
        tree = ast.parse(read_file(file))
    except (OSError, SyntaxError, ValueError):
        return
    name = test.partition("[")[0].rpartition("::")[2]
    functions = [one for one in ast.walk(tree) if isinstance(one, _FUNCTIONS)]
    own = (node for one in functions if one.name == name for node in ast.walk(one))
    found = list(_in_nodes(own, places))
    inside = {id(node) for one in functions for node in ast.walk(one)}
    yield from found or _in_nodes((n for n in ast.walk(tree) if id(n) not in inside), places)


def _in_nodes(
    nodes: Iterable[ast.AST], places: PackagePlaces
) -> Iterator[tuple[int, PurePosixPath]]:
    for node in nodes:
        for text in _path_texts(node):
            if path := _in_package(text.value, places):
                yield text.lineno, path


def _path_texts(node: ast.AST) -> Iterator[ast.Constant]:
    operands: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        operands = [node.left, node.right]
    elif isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in _PATH_CALLS:
            lists = (one.elts for one in node.args if isinstance(one, ast.List | ast.Tuple))
            operands = [*node.args, *(element for elements in lists for element in elements)]
    for one in operands:
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one


def _in_package(text: object, places: PackagePlaces) -> PurePosixPath | None:
    """The path in the project that a text ends with; the beginning may be left out."""
    parts = [part for part in str(text).split("/") if part not in ("", ".", "..")]
    for home in places.homes:
        for start in range(len(home.parts)):
            known = home.parts[start:]
            if tuple(parts[: len(known)]) == known:
                return PurePosixPath(*home.parts, *parts[len(known) :])
    return None
