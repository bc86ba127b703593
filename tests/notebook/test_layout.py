"""Which files are compressed, and what a notebook that is too large is told."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config
from kernelkit.errors import PreflightError
from kernelkit.notebook.layout import SIZE_LIMIT_BYTES
from kernelkit.notebook.preflight import check
from kernelkit.notebook.problems import ProblemList
from kernelkit.notebook.render import Kernel

Make = Callable[..., Path]
Files = dict[str, str | bytes]


def kernel_of(project: Path, **more: object) -> Kernel:
    config = load_config(project, environment={})
    return workflow.render_kernel(config.model_copy(update=more))


def compressed(kernel: Kernel) -> int:
    return sum(entry.form == "compressed" for entry in kernel.budget)


def similar(count: int, size: int) -> Files:
    """Files that compress well together and badly alone."""
    text = random.Random(1).randbytes(size).hex() + "\n"
    return {f"pkg/copy_{i}.txt": f"{i}\n{text}" for i in range(count)}


@pytest.mark.parametrize(
    ("files", "atleast"),
    [
        (similar(30, 60_000), 20),
        pytest.param(
            {f"pkg/data/{i}.json": f'{{"x": {i}}}\n' for i in range(2300)},
            500,
            marks=pytest.mark.slow,
        ),
        ({f"pkg/data/{i}.txt": "" for i in range(2300)}, 500),
        ({"pkg/zeros.bin": bytes(8_000_000)}, 1),
        ({"pkg/zeros.txt": "0\n" * 1_000_000, **similar(12, 50_000)}, 1),
    ],
)
def test_auto_carries_what_compressed_carries(
    make_project: Make, files: Files, atleast: int
) -> None:
    project = make_project(files)
    assert kernel_of(project, layout="compressed").size <= SIZE_LIMIT_BYTES
    kernel = kernel_of(project)
    assert kernel.size == len(kernel.payload) <= SIZE_LIMIT_BYTES
    assert check(kernel) == []
    assert compressed(kernel) >= atleast


def test_a_compressed_file_costs_little_more_than_its_line_in_the_manifest(
    make_project: Make,
) -> None:
    def size(count: int) -> int:
        files: Files = {f"pkg/data/{i:04}.json": f'{{"x": {i}}}\n' for i in range(count)}
        return kernel_of(make_project(files), layout="compressed").size

    assert (size(600) - size(100)) / 500 < 150


def test_the_notebook_names_compressed_files_without_a_heading_for_each(
    make_project: Make,
) -> None:
    files: Files = {f"pkg/m{i:02}.py": f'"""Number {i}."""\n' for i in range(40)}
    kernel = kernel_of(make_project(files), layout="compressed")
    assert "The compressed cell after the last file holds 42: `pkg/__init__.py`" in kernel.payload
    assert "and 22 more" in kernel.payload
    assert "Number 7" not in kernel.payload
    assert kernel.manifest.files[-1].path == "pkg/main.py"


@pytest.mark.parametrize("layout", ["auto", "compressed", "cells"])
@pytest.mark.slow
def test_a_refusal_names_the_compressed_size(make_project: Make, layout: str) -> None:
    project = make_project({"pkg/a.bin": os.urandom(600_000), "pkg/b.bin": os.urandom(600_000)})
    kernel = kernel_of(project, layout=layout)
    (problem,) = check(kernel)
    archive = sum(entry.sent for entry in kernel.budget if entry.form == "archive")
    assert "600,000 B  pkg/a.bin" in problem.message
    assert (archive > 0) == (layout != "cells") == (f"{archive:,} B as" in problem.message)
    assert f"{kernel.size:,} B as it is sent" in problem.message


SLOW = [pytest.param(layout, marks=pytest.mark.slow) for layout in ("compressed", "cells")]


@pytest.mark.parametrize("layout", ["auto", *SLOW])
def test_a_package_far_beyond_the_limit_is_refused_at_once(make_project: Make, layout: str) -> None:
    project = make_project({"pkg/weights.bin": os.urandom(6_000_000)})
    with pytest.raises(PreflightError) as caught:
        kernel_of(project, layout=layout)
    assert "6,000,000 B  pkg/weights.bin" in str(caught.value)
    assert "Kaggle dataset" in str(caught.value)
    assert isinstance(caught.value.details, ProblemList)


def test_many_small_files_are_named_as_the_cause(make_project: Make) -> None:
    files: Files = {f"pkg/data/{i}.json": f'{{"x": {i}}}\n' for i in range(2500)}
    (problem,) = check(kernel_of(make_project(files), layout="cells"))
    assert "2,502 files" in problem.message
    assert "No file is large" in problem.message


@pytest.mark.parametrize(
    ("include", "kept"),
    [
        ("pkg/plugins/", {"pkg/plugins/__init__.py", "pkg/plugins/one.py", "pkg/used.py"}),
        ("one.py", {"pkg/plugins/__init__.py", "pkg/plugins/one.py", "pkg/used.py"}),
        ("pkg/plugins/table.csv", {"pkg/plugins/table.csv"}),
        ("test_it.py", {"pkg/test_it.py"}),
    ],
)
def test_what_include_names_is_carried_though_nothing_reaches_it(
    make_project: Make, include: str, kept: set[str]
) -> None:
    project = make_project(
        {
            "pkg/plugins/__init__.py": "",
            "pkg/plugins/one.py": "from pkg import used\n",
            "pkg/plugins/table.csv": "",
            "pkg/used.py": "",
            "pkg/unused.py": "",
            "pkg/test_it.py": "",
        },
        keys=f'only_reachable = true\ninclude = ["{include}"]',
    )
    carried = {file.path for file in kernel_of(project).bundle.files}
    table = {"pkg/plugins/table.csv"} if "pkg/plugins/__init__.py" in kept else set()
    assert carried == {"pkg/__init__.py", "pkg/main.py"} | kept | table
