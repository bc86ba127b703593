"""Templates of somebody else's project: they run no code, read no other file, and end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config
from kernelkit.errors import TemplateError
from kernelkit.notebook import sandbox
from kernelkit.notebook.preflight import check


@pytest.fixture
def project(plain: Path) -> Path:
    """The sample project with a folder of templates, `nb`."""
    (plain / "nb").mkdir()
    path = plain / "pyproject.toml"
    path.write_text(
        path.read_text().replace("[tool.kernelkit]\n", '[tool.kernelkit]\ntemplates = "nb"\n')
    )
    return plain


def rendered(project: Path, text: str | None = None) -> str:
    if text is not None:
        (project / "nb" / "65-look.md.j2").write_text(text)
    kernel = workflow.render_kernel(load_config(project, environment={}))
    check(kernel)
    return kernel.notebook


def refusal(project: Path, text: str | None = None) -> str:
    with pytest.raises(TemplateError) as caught:
        rendered(project, text)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{% set _ = cycler.__init__.__globals__.os.system('touch ran') %}",
        "{{ lipsum | attr('__globals__') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ [1] | selectattr('__class__') | list }}",
        "{{ kernel.parse_file('pyproject.toml') }}",
        "{{ kernel.parse_raw('x', proto='pickle', allow_pickle=True) }}",
        "{{ manifest.update({'digest': ''}) }}",
        "{{ modules.clear() }}",
    ],
)
def test_a_template_cannot_run_code_or_change_its_variables(project: Path, text: str) -> None:
    assert refusal(project, f"\n{text}").startswith("65-look.md.j2:2: ")
    assert not (project / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a' * 10**8 }}",
        "{{ 10 ** (10**9) }}",
        "{{ 5 | round(-10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'x' | center(3000000000) }}",
        "{{ range(99999) | join('a' * 99999) }}",
        '{% set n = namespace(x="a") %}{% for i in range(99) %}{% set n.x=n.x~n.x %}{% endfor %}',
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '65-look.md.j2' %}",
    ],
)
def test_a_template_that_would_fill_the_memory_ends_with_an_error(project: Path, text: str) -> None:
    assert refusal(project, text).startswith("65-look.md.j2")


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_without_an_end_is_stopped(
    project: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 0.3)
    assert refusal(project, text) == "65-look.md.j2:1: the templates take more than 0.3 s"
    assert "fine" in rendered(project, "fine")


@pytest.mark.parametrize(
    "text",
    [
        "{% include '../pyproject.toml' %}",
        "{% include '/etc/passwd' %}",
        "{% import '../parcel/main.py' as main %}",
        "{% extends '/etc/hostname' %}",
        "{% include 'outside/secret.txt' %}",
    ],
)
def test_a_template_includes_only_templates(project: Path, text: str) -> None:
    assert refusal(project, text).startswith("65-look.md.j2:1: there is no template ")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "secret.md.j2"
    path.parent.mkdir()
    path.write_text("PRIVATE")
    return path


def a_file(project: Path, secret: Path) -> None:
    (project / "nb" / "66-x.md.j2").symlink_to(secret)


def an_included_file(project: Path, secret: Path) -> None:
    (project / "nb" / "part.txt").symlink_to(os.path.relpath(secret, project / "nb"))


def a_link_to_a_link(project: Path, secret: Path) -> None:
    (project / "hop").symlink_to(secret)
    (project / "nb" / "66-x.md.j2").symlink_to("../hop")


def a_folder_in_a_folder(project: Path, secret: Path) -> None:
    (project / "nb" / "parts").mkdir()
    (project / "nb" / "parts" / "more").symlink_to(secret.parent)


def the_folder(project: Path, secret: Path) -> None:
    (project / "nb").rmdir()
    (project / "nb").symlink_to(secret.parent)


@pytest.mark.parametrize(
    "link", [a_file, an_included_file, a_link_to_a_link, a_folder_in_a_folder, the_folder]
)
def test_a_link_out_of_the_project_is_refused(
    project: Path, secret: Path, link: Callable[[Path, Path], None]
) -> None:
    link(project, secret)
    assert "is a link that leads out of the project" in refusal(project)


def test_a_folder_above_the_templates_must_not_be_such_a_link(project: Path, secret: Path) -> None:
    (project / "up").symlink_to(secret.parent.parent)
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('"nb"', '"up/outside"'))
    assert "is a link that leads out of the project" in refusal(project)


def test_links_inside_the_project_are_followed(project: Path) -> None:
    (project / "shared").mkdir()
    (project / "shared" / "part.txt").write_text("shared text")
    (project / "nb" / "shared").symlink_to("../shared")
    (project / "nb" / "again").symlink_to("../nb")
    assert "shared text" in rendered(project, "{% include 'shared/part.txt' %}")


def test_only_regular_files_are_read(project: Path) -> None:
    os.mkfifo(project / "nb" / "66-x.md.j2")
    assert refusal(project) == "the template 66-x.md.j2 cannot be read: not a file"
