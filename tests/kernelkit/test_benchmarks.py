"""What the benchmark rests on: packages whose notebooks answer as they do. No time is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from benchmarks.__main__ import SIXTEEN
from benchmarks.packages import LINES, write_package
from benchmarks.tools import Outcome, Package, Project, run_notebook
from kernelkit import pipeline
from kernelkit.config import load_config

ROOT = Path(__file__).parent.parent.parent


def run_rendered(project: Path, folder: Path) -> Outcome:
    folder.mkdir()
    kernel = pipeline.render(load_config(project, environment={}))
    return run_notebook(nbformat.reads(kernel.notebook, 4), folder)


def test_a_made_up_package_and_its_notebook_give_one_number(tmp_path: Path) -> None:
    write_package(tmp_path / "project", 10)
    expected = Package().run(Project(tmp_path / "project"))
    assert isinstance(expected.result, int)
    assert run_rendered(tmp_path / "project", tmp_path / "run") == expected


def test_made_up_packages_are_the_same_each_time_and_have_the_stated_lines(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_package(tmp_path / name, 23)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.py")}
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    modules = [path for path in files if "part_" in str(path) and path.name != "__init__.py"]
    assert len(modules) == 23
    for path in modules:
        assert len((tmp_path / "one" / path).read_text().splitlines()) == LINES


@pytest.mark.parametrize("carried", [False, True], ids=["as the package", "as a notebook"])
def test_all_sixteen_checks_pass(carried: bool, tmp_path: Path) -> None:
    project = SIXTEEN.folder
    found = run_rendered(project, tmp_path / "run") if carried else Package().run(SIXTEEN)
    assert found.fault == ""
    assert len(found.result) == 16
    assert [name for name, passed in found.result.items() if not passed] == []


def test_what_a_notebook_ran_into_is_said(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    found = run_notebook(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert found == Outcome(fault="ZeroDivisionError: division by zero")


def test_both_ways_of_pulling_bring_the_same_files_home(tmp_path: Path) -> None:
    small = ["--files", "2", "--megabytes", "1", "--rounds", "1", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.pull", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "2 files, 0.00 GB" in done.stdout
    assert "| kaggle kernels output |" in done.stdout
