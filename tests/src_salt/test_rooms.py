"""The shape of the package: who imports whom, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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
    "model",
    "losses",
    "metrics",
    "muon",
    "train",
    "launch",
    "experiments",
    "predict",
    "assess",
    "submission",
    "pictures",
    "report",
    "main",
    "__main__",
]
"""A module imports only what stands before it."""

ALONE = {"model": {"losses", "metrics"}, "losses": {"model", "data"}, "metrics": {"losses", "data"}}
"""Rooms beside one another that must not know each other."""

FILES = sorted(PACKAGE.glob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            module = node.module or ""
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def rooms(path: Path) -> set[str]:
    names = {
        name.removeprefix("src_salt.").split(".")[0]
        for name in imports(path)
        if "src_salt." in name
    }
    return names & {file.stem for file in FILES}


def test_every_module_has_its_place() -> None:
    assert {file.stem for file in FILES} == {*ORDER, "synthetic", "__init__"}


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name)]) - ALONE.get(name, set())
    assert rooms(PACKAGE / f"{name}.py") <= allowed


def test_the_synthetic_competition_stands_aside() -> None:
    assert rooms(PACKAGE / "synthetic.py") == {"config", "outputs", "submission"}
    assert not [file for file in FILES if "synthetic" in rooms(file)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_module_can_be_a_cell(path: Path) -> None:
    content = path.read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf")
    assert content.endswith(b"\n")
    text = content.decode("utf-8")
    assert not re.search(r"^[ \t]+$", text, re.MULTILINE)
    first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    assert 10 < len(first) < 90
    assert first.endswith(".")


def test_it_knows_nothing_of_what_carries_it() -> None:
    for path in FILES:
        assert not {name for name in imports(path) if name.startswith(("kernelkit", "kaggle"))}
        assert "getenv" not in path.read_text(encoding="utf-8")
        assert "/kaggle" not in path.read_text(encoding="utf-8")


def test_pictures_are_drawn_without_pyplot() -> None:
    """It would take over the backend of the notebook that imports it."""
    assert not [path for path in FILES if "matplotlib.pyplot" in imports(path)]


def test_importing_the_package_loads_nothing() -> None:
    program = (
        "import sys; before = set(sys.modules); import src_salt, src_salt.config; "
        "print({'torch', 'numpy', 'cv2', 'matplotlib'} & (set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
