"""The parts of the benchmarks: generated packages, checks, comparisons. No time is measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from benchmarks.__main__ import SIXTEEN
from benchmarks.packages import LINES, write_package
from benchmarks.tools import Outcome, Package, Project, run_notebook
from benchmarks.training import Row, sections
from kernelkit import workflow
from kernelkit.config import load_config

ROOT = Path(__file__).parent.parent


def run_rendered(project: Path, folder: Path) -> Outcome:
    folder.mkdir()
    kernel = workflow.render_kernel(load_config(project, environment={}))
    return run_notebook(nbformat.reads(kernel.notebook, 4), folder)


def test_a_generated_package_and_its_notebook_return_the_same_number(tmp_path: Path) -> None:
    write_package(tmp_path / "project", 10)
    expected = Package().run(Project(tmp_path / "project"))
    assert isinstance(expected.result, int)
    assert run_rendered(tmp_path / "project", tmp_path / "run") == expected


def test_generated_packages_are_reproducible_and_have_the_requested_size(tmp_path: Path) -> None:
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
    assert found.error == ""
    assert len(found.result) == 16
    assert [name for name, passed in found.result.items() if not passed] == []


def test_the_error_of_a_notebook_is_reported(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    found = run_notebook(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert found == Outcome(error="ZeroDivisionError: division by zero")


@pytest.mark.slow
def test_both_ways_of_pulling_download_the_same_files(tmp_path: Path) -> None:
    small = ["--files", "2", "--megabytes", "1", "--rounds", "1", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.pull", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "2 files, 0.00 GB" in done.stdout
    assert "| kaggle kernels output |" in done.stdout


@pytest.mark.slow
def test_recipes_are_compared_with_the_baseline(tmp_path: Path) -> None:
    tiny = ["--images", "4", "--size", "32", "--batch-size", "2", "--workers", "0"]
    chosen = ["--backbones", "resnet34", "--losses", "BCEDice", "--recipes", "baseline"]
    file = tmp_path / "tables.md"
    once = ["--repetitions", "1", "--markdown", str(file)]
    command = [sys.executable, "-m", "benchmarks.training", *tiny, *chosen, *once]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    text = file.read_text(encoding="utf-8")
    assert text == done.stdout[:-1]
    assert "- dtypes: baseline float32" in text
    assert "- each measurement: 4 synthetic images of 32x32, 2 for validation, batches of 2" in text
    for title in ("Training", "Validation", "Prediction"):
        (line,) = re.findall(rf"## {title}\n.*?\n(\| resnet34 .*?)\n", text, re.DOTALL)
        assert "1.00 (1.00 to 1.00)" in line
        assert float(line.split("|")[4 + (title == "Training")].replace(",", "")) > 0


def turn(rate: float, **others: object) -> dict[str, object]:
    """The output of a process with one constant rate."""
    rates = dict.fromkeys(("training", "validation", "prediction"), rate)
    rest = {"writing": 10 * rate, "loading": 20 * rate, "first_step": 0.5, "peak_bytes": 7_000_000}
    rest |= {"copying": 0.2, "saving": 0.9}
    means = {"flops": 1_000_000, "peak_flops": 1e9, "dtype": "float32", "device": "CPU"}
    return rates | rest | means | others


def test_rates_are_compared_per_turn_and_with_the_measured_peak() -> None:
    baseline = Row("resnet34", "Lovasz", "baseline", (turn(10), turn(20), turn(30, peak_flops=5e8)))
    fast = Row("resnet34", "Lovasz", "fast", (turn(50), turn(60), turn(60, writing=90.0)))
    broken = Row("resnet34", "Lovasz", "best", (), "out of memory")
    training, validation, prediction, faults = sections([baseline, fast, broken])
    # Turn by turn 5, 3 and 2 times the baseline's; 60 images of 1 Mflop are 6% of 1 Gflop.
    assert "| 60.0              | 50.0 to 60.0 | 3.00 (2.00 to 5.00) | 0.001" in training
    assert "| 6%            | 5.0%   | 0.50         | 0.90   | 0.20   | 7       |" in training
    assert "at most 5.0% of a step, within the 10%" in training
    assert "| 60.0              | 50.0 to 60.0 | 3.00 (2.00 to 5.00) |" in validation
    assert "| 500           | network |" in prediction
    assert "- resnet34 Lovasz best: out of memory" in faults
    slow = Row("resnet34", "Lovasz", "fast", (turn(50, loading=100.0, writing=60.0),))
    training, _, prediction = sections([slow])
    assert "at most 50.0% of a step, **over** the 10%" in training
    assert "| 60            | writing |" in prediction
