"""The architecture: allowed imports, public names, unique class names, and sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kernelkit"
RUNTIME = PACKAGE / "notebook" / "runtime"

LAYERS = [  # each row imports only from the rows above it
    {"errors"},
    {"storage"},
    {"config"},
    {"bundle"},
    {"kaggle", "notebook"},
    {"runs", "testing", "diagnosis", "project"},
    {"workflow"},
    {"campaigns", "doctor"},
    {"console"},
    {"cli"},
    {"__main__"},
]
ALONE = {"emulator"}
FACADES = {"cli", "config", "console"}
"""Packages that others use as one module: their `__init__` imports the public names."""

NEVER = {  # part → modules that it must not import, anywhere in its code
    "errors": {"pydantic"},
    "bundle": {"jinja2", "kagglesdk", "requests", "socket"},
    "notebook": {"kagglesdk", "requests"},
    "runs": {"kagglesdk", "requests", "rich"},
    "diagnosis": {"kagglesdk", "requests", "rich"},
    "testing": {"kagglesdk", "requests"},
    "workflow": {"kagglesdk", "requests", "rich", "typer"},
    "console": {"kagglesdk", "requests"},
    "cli": {"kagglesdk", "requests"},
}

TOP_NAMES = 17
WORKFLOW_LINES = 400  # it must have fewer
UNTYPED_PER_1000_LINES = 1.0
MAPPINGS = {"dict", "Mapping", "MutableMapping"}
ANYTHING = {"Any", "object", "JsonValue"}


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    """The top-level module or package of kernelkit that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def attributes(path: Path, package: str) -> Iterator[tuple[str, str]]:
    """Module and name of every `module.name` in a file whose module belongs to a package."""
    tree = tree_of(path)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == f"kernelkit.{package}":
            modules.update({alias.asname or alias.name: alias.name for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and (PACKAGE / package / f"{module}.py").is_file():
                yield module, node.attr


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of every import in a file; the name is empty for `import module`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent == RUNTIME, f"{path} imports relatively"
            if node.level:  # only within the runtime, whose package has two names
                continue
            yield from ((str(node.module), alias.name) for alias in node.names)


def used_parts(path: Path) -> set[str]:
    """The other parts of kernelkit that a file imports."""
    found = set()
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] == "kernelkit" and (len(parts) > 1 or name):
            found.add(parts[1] if len(parts) > 1 else name)
    return {part for part in found if is_part(part)} - {part_of(path)}


def is_part(name: str) -> bool:
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file()


def test_every_module_has_a_layer() -> None:
    assert {part_of(path) for path in files()} <= set().union(*LAYERS, ALONE)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_to_lower_layers(path: Path) -> None:
    part = part_of(path)
    if part in ALONE:
        assert used_parts(path) == set()
        return
    level = next(number for number, layer in enumerate(LAYERS) if part in layer)
    assert used_parts(path) <= set().union(*LAYERS[:level])


@pytest.mark.parametrize("part", sorted(NEVER))
def test_no_module_has_a_forbidden_import(part: str) -> None:
    for path in files():
        if part_of(path) == part:
            used = {module.split(".")[0] for module, _ in imports(path)}
            assert not used & NEVER[part], path


def test_only_kaggle_imports_the_sdk() -> None:
    for path in files():
        if any(module.split(".")[0] in ("kaggle", "kagglesdk") for module, _ in imports(path)):
            assert part_of(path) == "kaggle", path


@pytest.mark.parametrize(
    "path",
    [*sorted(RUNTIME.glob("*.py")), PACKAGE / "testing" / "pytest_plugin.py"],
    ids=lambda path: path.name,
)
def test_code_that_runs_elsewhere_imports_nothing_from_kernelkit(path: Path) -> None:
    assert not [module for module, _ in imports(path) if module.startswith("kernelkit")]


def test_the_workload_and_the_tool_do_not_import_each_other() -> None:
    for path in (ROOT / "src_salt").glob("*.py"):
        assert not [m for m, _ in imports(path) if m.startswith(("kernelkit", "kaggle"))], path
    for path in files():
        assert not [module for module, _ in imports(path) if module.startswith("src_salt")], path
        if part_of(path) != "emulator":  # it scores submissions by the competition's own metric
            assert "101" not in re.findall(r"\b\d+\b", path.read_text(encoding="utf-8")), path


def public_names(package: str) -> set[str]:
    """The modules and the names in backticks of a package's docstring; all names of a facade."""
    tree = tree_of(PACKAGE / package / "__init__.py")
    docstring = ast.get_docstring(tree) or ""
    modules = re.findall(r"^(\w+) {2,}\S", docstring, re.MULTILINE)
    last = tree.body[-1]
    listed = ast.literal_eval(last.value) if isinstance(last, ast.Assign) else []
    return {*modules, *re.findall(r"`(\w+)`", docstring), *listed}


PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_other_packages_import_only_public_names(package: str) -> None:
    public = public_names(package)
    for path in files():
        if part_of(path) == package:
            continue
        for module, name in imports(path):
            if module.split(".")[:2] == ["kernelkit", package]:
                assert name in public, f"{path} imports {module}.{name}"
        for module, name in attributes(path, package):
            assert name in public, f"{path} uses {module}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_init_documents_its_modules_and_imports_only_them(package: str) -> None:
    source = (PACKAGE / package / "__init__.py").read_text(encoding="utf-8")
    _, *rest = ast.parse(source).body
    if package in FACADES:
        *rest, _ = rest  # __all__
    own = f"kernelkit.{package}"
    for node in rest:
        assert package in FACADES
        assert isinstance(node, ast.ImportFrom)
        assert str(node.module).startswith(own)
    for path in (PACKAGE / package).glob("*.py"):
        if not path.stem.startswith("__"):
            assert re.search(rf"^ *{path.stem} {{2,}}\S", source, re.MULTILINE), path


def test_class_names_are_unique() -> None:
    names = defaultdict(list)
    for path in files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                names[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


def test_the_package_has_few_top_level_modules() -> None:
    names = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(names) <= TOP_NAMES + 2, names  # __init__.py and __main__.py do not count
    lines = (PACKAGE / "workflow.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < WORKFLOW_LINES


def is_untyped_mapping(node: ast.AST) -> bool:
    """`dict[str, Any]` and the like."""
    if not (isinstance(node, ast.Subscript) and ast.unparse(node.value) in MAPPINGS):
        return False
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return ast.unparse(arguments[-1]) in ANYTHING


def untyped_aliases() -> set[str]:
    """Names for untyped mappings: aliases of them and classes derived from them."""
    names = set()
    for path in files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Assign) and is_untyped_mapping(node.value):
                names.update(ast.unparse(target) for target in node.targets)
            if isinstance(node, ast.AnnAssign) and node.value and is_untyped_mapping(node.value):
                names.add(ast.unparse(node.target))
            if isinstance(node, ast.ClassDef) and any(map(is_untyped_mapping, node.bases)):
                names.add(node.name)
    return names


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns


def untyped_mappings(tree: ast.AST, aliases: set[str]) -> int:
    """How many untyped mappings a module's annotations name, bare `dict` and aliases included."""
    count = 0
    for annotation in annotations(tree):
        inner = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
        for node in ast.walk(annotation):
            bare = isinstance(node, ast.Name) and id(node) not in inner
            count += is_untyped_mapping(node)
            count += bare and ast.unparse(node) in MAPPINGS | aliases
    return count


def test_few_untyped_dictionaries_remain() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in files()}
    aliases = untyped_aliases()
    counts = {path: untyped_mappings(ast.parse(text), aliases) for path, text in texts.items()}
    lines = sum(len(text.splitlines()) for text in texts.values())
    found = {str(path.relative_to(PACKAGE)): count for path, count in counts.items() if count}
    assert 1000 * sum(found.values()) / lines < UNTYPED_PER_1000_LINES, found


@pytest.mark.parametrize("module", ["kernelkit.cli", "kernelkit.workflow"])
def test_the_sdk_is_imported_only_to_connect(module: str) -> None:
    heavy = ["kagglesdk", "requests", "rich.markdown"]
    heavy += ["pydantic", "nbformat"] if module == "kernelkit.cli" else []
    code = f"import sys, {module}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kaggles_address_is_the_one_in_the_sdk() -> None:
    from kagglesdk import kaggle_env

    from kernelkit.kaggle.types import PRODUCTION

    assert kaggle_env.get_endpoint(kaggle_env.KaggleEnv.PROD) == PRODUCTION
