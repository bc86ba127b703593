"""The structure of the package: the direction of its imports, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import src_salt

PACKAGE = Path(src_salt.__file__).parent

ORDER = [
    "config",
    "outputs",
    "budget",
    "checkpoint",
    "transforms",
    "device",
    "data",
    "weights",
    "model",
    "losses",
    "metrics",
    "muon",
    "train",
    "launch",
    "experiments",
    "predict",
    "evaluate",
    "submission",
    "plots",
    "report",
    "main",
    "__main__",
]
"""A module imports only modules that come before it."""

INDEPENDENT = {
    "model": {"losses", "metrics"},
    "losses": {"model", "data"},
    "metrics": {"losses", "data"},
}
"""Modules that must not import each other."""

FILES = sorted(PACKAGE.glob("*.py"))


@cache
def imports(path: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            module = node.module or ""
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that the file imports."""
    names = {
        name.removeprefix("src_salt.").split(".")[0]
        for name in imports(path)
        if "src_salt." in name
    }
    return names & {file.stem for file in FILES}


def test_every_module_is_in_the_order() -> None:
    assert {file.stem for file in FILES} == {*ORDER, "synthetic", "__init__"}


@pytest.mark.parametrize("name", ORDER)
def test_imports_have_one_direction(name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name)]) - INDEPENDENT.get(name, set())
    assert imported_modules(PACKAGE / f"{name}.py") <= allowed


def test_no_module_imports_the_synthetic_competition() -> None:
    assert imported_modules(PACKAGE / "synthetic.py") == {"config", "outputs", "submission"}
    assert not [file for file in FILES if "synthetic" in imported_modules(file)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_module_can_be_written_by_a_notebook_cell(path: Path) -> None:
    content = path.read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf")
    assert content.endswith(b"\n")
    text = content.decode("utf-8")
    assert not re.search(r"^[ \t]+$", text, re.MULTILINE)
    first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    assert 10 < len(first) < 90
    assert first.endswith(".")


def test_package_does_not_know_kernelkit_or_kaggle() -> None:
    for path in FILES:
        assert not {name for name in imports(path) if name.startswith(("kernelkit", "kaggle"))}
        assert "getenv" not in path.read_text(encoding="utf-8")
        assert "/kaggle" not in path.read_text(encoding="utf-8")


def test_plots_do_not_use_pyplot() -> None:
    """It would change the backend of a notebook that imports the package."""
    assert not [path for path in FILES if "matplotlib.pyplot" in imports(path)]


def test_one_helper_for_each_low_level_job() -> None:
    """Atomic writes, JSON files and SHA-256 are in `outputs` only."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if path.stem != "outputs":
            assert not {"json", "hashlib", "tempfile.NamedTemporaryFile"} & imports(path), path
            assert ".replace(path)" not in text, path
            assert "os.replace" not in text, path


def test_importing_the_package_loads_no_libraries() -> None:
    program = (
        "import sys; before = set(sys.modules); import src_salt, src_salt.config; "
        "print({'torch', 'numpy', 'cv2', 'matplotlib'} & (set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
