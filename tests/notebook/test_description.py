"""What the first cell says: the project's own words, or its docstring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config
from kernelkit.errors import ConfigError
from kernelkit.notebook.description import docstring_as_markdown
from kernelkit.notebook.render import Kernel

Make = Callable[..., Path]


def with_line(project: Path, line: str) -> Path:
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("[tool.kernelkit]\n", f"[tool.kernelkit]\n{line}\n"))
    return project


def rendered(project: Path) -> Kernel:
    return workflow.render_kernel(load_config(project, environment={}))


def title(project: Path) -> str:
    cells = json.loads(rendered(project).notebook)["cells"]
    return "".join(cells[0]["source"])


def test_the_project_file_describes_the_notebook(make_project: Make) -> None:
    project = with_line(make_project({}), 'description = "Finds *salt*. <b>"')
    assert "\n\nFinds *salt*. <b>\n\n**[Parameters](#Parameters)" in title(project)
    kernel = rendered(project)
    assert kernel.manifest.description == "Finds *salt*. <b>"


def test_a_file_of_the_project_describes_the_notebook(make_project: Make) -> None:
    project = make_project({"docs/about.md": "About **it**.\r\n\r\nMore {{ braces }}.\n"})
    with_line(project, 'description = "docs/about.md"')
    assert "\n\nAbout **it**.\n\nMore {{ braces }}.\n\n" in title(project)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('description = "missing.md"', "no such file"),
        ('description = "../out.md"', "description"),
        ('description = "link.md"', "a link that leads out of the project"),
        ('description = "latin.md"', "cannot be read"),
        ('description = "long.md"', "has 20,001 characters"),
        ("description = 3", "description"),
    ],
)
def test_a_description_that_cannot_be_used_is_an_error(
    make_project: Make, tmp_path: Path, line: str, message: str
) -> None:
    project = make_project({"latin.md": b"\xe9", "long.md": "x" * 20_001})
    (tmp_path / "out.md").write_text("secret")
    (project / "link.md").symlink_to(tmp_path / "out.md")
    with pytest.raises(ConfigError, match=message):
        rendered(with_line(project, line))


def test_without_a_description_the_docstring_speaks(make_project: Make) -> None:
    files = {"pkg/__init__.py": '"""Finds salt.\n\nWith `a_b` and a_b.\n\n    code\n"""\n'}
    assert "\n\nFinds salt.\n\nWith `a_b` and a\\_b.\n\n**[" in title(make_project(files))


def test_without_any_docstring_the_entrys_speaks(make_project: Make) -> None:
    files = {"pkg/main.py": '"""Trains it."""\nimport json\ndef run(**parameters): ...\n'}
    assert "\n\nTrains it.\n\n**[" in title(make_project(files))


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("One line.", "One line."),
        ("One.\n\nmain   columns\nb      c", "One."),
        ("One.\n\n>>> prompt", "One."),
        ("One.\n\npython train.py --epochs 2", "One."),
        ("One.\n\n$ train", "One."),
        ("# no heading\n1. no list", "\\# no heading\n\\1. no list"),
        ("- a*b*\n- `c*d*`", "- a\\*b\\*\n- `c*d*`"),
        ("a <b> $c$", "a \\<b\\> \\$c\\$"),
        ("", ""),
    ],
)
def test_a_docstring_is_text_with_code(docstring: str, markdown: str) -> None:
    assert docstring_as_markdown(docstring) == markdown
