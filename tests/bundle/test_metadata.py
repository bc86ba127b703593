"""The metadata of the project's distribution, as the notebook installs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.bundle.metadata import Distribution, NoDistribution, read_distribution
from kernelkit.config import load_config
from kernelkit.notebook.preflight import advise
from kernelkit.notebook.render import Kernel
from kernelkit.notebook.runtime import NotebookRun

Make = Callable[..., Path]
STATED = '[project]\nname = "My.Pkg"\nversion = "1.0-rc1"\ndescription = "Does\\nthis."\n'


def kernel_of(project: Path) -> Kernel:
    return workflow.render_kernel(load_config(project, environment={}))


def with_lines(project: Path, lines: str) -> Path:
    path = project / "pyproject.toml"
    path.write_text(path.read_text() + lines)
    return project


@pytest.mark.parametrize(
    ("lines", "files", "version"),
    [
        ('[project]\nname = "a-b"\nversion = "2"\n', {}, "2"),
        ('[tool.poetry]\nname = "a-b"\nversion = "v2.0"\n', {}, "2.0"),
        (
            '[project]\nname = "a-b"\ndynamic = ["version"]\n'
            '[tool.setuptools.dynamic]\nversion = {attr = "pkg.about.V"}\n',
            {"pkg/about.py": 'V: str = "3.1"\n'},
            "3.1",
        ),
        (
            '[project]\nname = "a-b"\ndynamic = ["version"]\n'
            '[tool.setuptools.dynamic]\nversion = {file = ["VERSION"]}\n',
            {"VERSION": "3.2\n"},
            "3.2",
        ),
        (
            '[project]\nname = "a-b"\ndynamic = ["version"]\n'
            '[tool.hatch.version]\npath = "pkg/_v.py"\n',
            {"pkg/_v.py": '__version__ = "3.3"\n'},
            "3.3",
        ),
        (
            '[project]\nname = "a-b"\ndynamic = ["version"]\n',  # as flit does
            {"pkg/__init__.py": '"""x"""\n__version__ = "3.4"\n'},
            "3.4",
        ),
        ("", {"setup.cfg": "[metadata]\nname = a-b\nversion = 4.1\n"}, "4.1"),
        (
            "",
            {"setup.cfg": "[metadata]\nname = a-b\nversion = attr: pkg.__version__\n"}
            | {"pkg/__init__.py": '__version__ = "4.2"\n'},
            "4.2",
        ),
        ("", {"a_b.egg-info/PKG-INFO": "Name: a-b\nVersion: 5\n"}, "5"),
        (
            '[project]\nname = "a-b"\ndynamic = ["version"]\n',
            {"src/a_b.egg-info/PKG-INFO": "Name: a-b\nVersion: 5.1.dev2+g1\n"},
            "5.1.dev2+g1",
        ),
    ],
)
def test_name_and_version_are_read_where_the_project_states_them(
    make_project: Make, lines: str, files: dict[str, str | bytes], version: str
) -> None:
    project = with_lines(make_project(files), lines)
    found = read_distribution(project, ["pkg"])
    assert isinstance(found, Distribution)
    assert (found.name, found.version) == ("a-b", version)
    assert found.folder == f"a_b-{version}.dist-info"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "states no name"),
        ('[project]\nname = "a b"\nversion = "1"\n', "states no name"),
        ('[project]\nname = "no-such-thing-x"\ndynamic = ["version"]\n', "no version of"),
        ('[project]\nname = "x"\nversion = "one"\n', "is not valid"),
        ("[project]\nname = 3\n", "states no name"),
        ("[tool.poetry]\nname = []\n", "states no name"),
    ],
)
def test_a_project_without_metadata_says_why(make_project: Make, lines: str, reason: str) -> None:
    found = read_distribution(with_lines(make_project({}), lines), ["pkg"])
    assert isinstance(found, NoDistribution)
    assert reason in found.reason


ASKS = """
import importlib.metadata as m, json, sys
from importlib.metadata import entry_points, version

def run(pip=False):
    found = {
        "package": [version(__package__.replace("pkg", "my-pkg")), m.version("my_pkg")],
        "name": m.distribution("MY-PKG").metadata["Name"],
        "summary": m.metadata("my.pkg")["Summary"],
        "models": [p.load()() for p in entry_points(group="my.models")],
        "scripts": [p.name for p in entry_points(group="console_scripts") if p.module == "pkg.a"],
        "modules": m.packages_distributions()["pkg"],
    }
    print(json.dumps(found))
"""


def test_a_program_finds_its_metadata_in_the_run(
    make_project: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project({"pkg/main.py": ASKS, "pkg/a.py": "def net(): return 'a net'\n"})
    with_lines(
        project,
        f'{STATED}[project.scripts]\ntrain = "pkg.a:net"\n'
        '[project.entry-points."my.models"]\nnet = "pkg.a:net"\n',
    )
    kernel = kernel_of(project)
    assert kernel_of(project).notebook == kernel.notebook
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("KAGGLE_WORKING_DIR", str(tmp_path))
    source = tmp_path / "src"
    (source / "my_pkg-0.9.dist-info").mkdir(parents=True)  # of an earlier rehearsal
    run = NotebookRun(json.loads(json.dumps(kernel.manifest.document)), source)
    for file in kernel.bundle.files:
        run.write_source(file.path, file.content)
    run.check_sources()
    run.check_sources()
    done = subprocess.run(
        [sys.executable, "-c", "from pkg.main import run; run()"],
        env={"PYTHONPATH": str(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "package": ["1.0rc1", "1.0rc1"],
        "name": "My.Pkg",
        "summary": "Does this.",
        "models": ["a net"],
        "scripts": ["train"],
        "modules": ["My.Pkg"],
    }


@pytest.mark.parametrize("loaded_before", [True, False])
def test_pkg_resources_finds_the_metadata(
    make_project: Make, tmp_path: Path, loaded_before: bool
) -> None:
    kernel = kernel_of(with_lines(make_project({}), STATED))
    code = (
        f"import sys, json\n{'import pkg_resources' if loaded_before else ''}\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from kernelkit.notebook.runtime.installation import install_metadata\n"
        "from pathlib import Path\n"
        "install_metadata(json.loads(sys.argv[2]), Path(sys.argv[1]))\n"
        "import pkg_resources\nprint(pkg_resources.get_distribution('my_pkg').version)\n"
    )
    pytest.importorskip("pkg_resources")
    document = json.dumps(kernel.manifest.document["distribution"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), document],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1.0rc1\n", done.stderr


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("from importlib.metadata import version\nV = version('my_pkg')\n", True),
        ("from importlib.metadata import version as v\nV = v('my-pkg')\n", True),
        ("import importlib.metadata\nV = importlib.metadata.version(__package__)\n", True),
        ("from importlib import metadata\nV = metadata.version(__name__)\n", True),
        ("try:\n    import importlib_metadata as m\nexcept ImportError:\n    import "
         "importlib.metadata as m\nV = m.metadata(distribution_name='My.Pkg')\n", True),
        ("import pkg_resources\nV = pkg_resources.require('my-pkg')[0]\n", True),
        ("from pkg_resources import iter_entry_points\nX = list(iter_entry_points('g'))\n", True),
        ("from importlib.metadata import entry_points\nX = entry_points(group='x')\n", True),
        ("from importlib.metadata import version\nV = version('torch')\n", False),
        ("from importlib.metadata import PackageNotFoundError\n", False),
        ('"""About metadata of my-pkg."""\nmetadata = {"my-pkg": 1}\nversion = str\n', False),
        ("def version(x): ...\nmetadata = version('my-pkg')\n", False),
    ],
)  # fmt: skip
def test_one_note_says_whether_metadata_is_found(
    make_project: Make, source: str, asks: bool
) -> None:
    project = make_project({f"pkg/m{i}.py": source for i in range(5)})
    notes = [note for note in advise(kernel_of(project)) if "may ask for the metadata" in note]
    if "torch" not in source and "my" not in source.lower():
        assert len(notes) == asks
    kernel = kernel_of(with_lines(project, STATED))
    notes = [note for note in advise(kernel) if "may ask for the metadata" in note]
    assert [("pkg/m0.py:" in note, "and 4 more" in note) for note in notes] == [(True, True)] * asks
    assert all("installs that of My.Pkg 1.0rc1" in note for note in notes)


def test_no_text_of_a_project_breaks_the_lines_of_its_metadata(make_project: Make) -> None:
    lines = (
        '[project]\nname = "x"\nversion = "1"\ndescription = "a\\nName: y"\n'
        '[project.scripts]\n"a\\n[other]" = "pkg:a"\ngood = "pkg:run"\nbad = "pkg:b\\nc = d"\n'
    )
    found = read_distribution(with_lines(make_project({}), lines), ["pkg"])
    assert isinstance(found, Distribution)
    files = found.files(["pkg"])
    assert files["METADATA"].count("\n") == 4
    assert files["entry_points.txt"] == "[console_scripts]\ngood = pkg:run\n"


WHOLE = """[project]
name = "my-pkg"
version = "1.0"
description = "Does this."
license = "MIT"
requires-python = ">=3.11"
keywords = ["a", "b"]
authors = [{name = "Ann", email = "ann@example.org"}, {name = "Bob"}]
classifiers = ["Programming Language :: Python :: 3"]
dependencies = ["numpy >= 1.26", "pandas[parquet]>=2; python_version < '4'", "x @ https://a.test/x.whl"]
[project.optional-dependencies]
dev = ["pytest>=8", "torch>=2; sys_platform == 'linux' or python_version > '3'"]
"Big_Extra" = ["scipy"]
[project.urls]
Homepage = "https://a.test"
"Bug Tracker" = "https://a.test/bugs"
"""


def test_the_metadata_is_what_a_build_writes(make_project: Make, tmp_path: Path) -> None:
    project = with_lines(make_project({}), WHOLE)
    found = read_distribution(project, ["pkg"])
    assert isinstance(found, Distribution)
    code = (
        "import sys; from setuptools import build_meta; "
        "print(build_meta.prepare_metadata_for_build_wheel(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    built = (tmp_path / done.stdout.splitlines()[-1] / "METADATA").read_text().partition("\n\n")[0]
    assert sorted(found.files(["pkg"])["METADATA"].splitlines()) == sorted(built.splitlines())


@pytest.mark.parametrize(
    ("lines", "files", "requires"),
    [
        (
            '[tool.poetry]\nname = "a"\nversion = "1"\n[tool.poetry.dependencies]\n'
            'python = "^3.11"\n'
            'numpy = "^1.26"\nzero = "^0.2.3"\ntilde = "~1.2"\nexact = "1.0"\nstar = "*"\n'
            'both = ">=1,<3"\nlate = {version = "^2", optional = true}\n'
            'some = {version = "~2.1.3", extras = ["x"], markers = "sys_platform == \'linux\'"}\n'
            '[tool.poetry.extras]\nmore = ["late"]\n',
            {},
            [
                *("numpy<2.0,>=1.26", "zero<0.3.0,>=0.2.3", "tilde<1.3,>=1.2", "exact==1.0"),
                *("star", "both<3,>=1", 'some[x]<2.2.0,>=2.1.3; sys_platform == "linux"'),
                'late<3,>=2; extra == "more"',
            ],
        ),
        (
            '[project]\nname = "a"\nversion = "1"\ndynamic = ["dependencies"]\n'
            '[tool.setuptools.dynamic]\ndependencies = {file = ["needs.txt"]}\n',
            {"needs.txt": "numpy>=1  # why\n\n# nothing\nscipy\n-r other.txt\n"},
            ["numpy>=1", "scipy"],
        ),
        (
            '[project]\nname = "a"\nversion = "1"\ndynamic = ["dependencies"]\n',
            {"a.egg-info/PKG-INFO": "Name: a\nVersion: 5\n", "a.egg-info/requires.txt": "numpy\n"},
            ["numpy"],
        ),
        (
            "",
            {
                "setup.cfg": "[metadata]\nname = a\nversion = 1\n[options]\ninstall_requires =\n"
                "    numpy>=1\n    scipy\n[options.extras_require]\ndev =\n    pytest\n"
            },
            ["numpy>=1", "scipy", 'pytest; extra == "dev"'],
        ),
    ],
)
def test_requirements_are_read_where_the_project_states_them(
    make_project: Make, lines: str, files: dict[str, str | bytes], requires: list[str]
) -> None:
    found = read_distribution(with_lines(make_project(files), lines), ["pkg"])
    assert isinstance(found, Distribution)
    assert [value for name, value in found.headers if name == "Requires-Dist"] == requires
