"""Imports that a notebook cannot make as the package does, and those that it need not make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.bundle.bundle import Bundle, read_bundle
from kernelkit.config import load_config
from kernelkit.errors import BundleError, ConfigError, KernelkitError
from kernelkit.notebook.preflight import advise, check

Make = Callable[..., Path]
COMPLETE = {"complete": True, "python": "3.12.1", "distributions": {}, "modules": {}}


def bundle_of(project: Path, **more: object) -> Bundle:
    return read_bundle(load_config(project, environment={}).model_copy(update=more))


def words(project: Path) -> str:
    """Everything that preflight prints."""
    try:
        kernel = workflow.render_kernel(load_config(project, environment={}))
        problems = [f"{p.subject}: {p.message} {p.remedy}" for p in check(kernel)]
        return "\n".join([*problems, *advise(kernel)])
    except KernelkitError as error:
        return f"{error}\n{error.next_step}"


@pytest.mark.parametrize(
    ("files", "package", "place", "own"),
    [
        ({"src/a.py": "import utls\n", "src/utls.py": ""}, "src", "src/a.py:1", "src.utls"),
        ({"src/a.py": "\nfrom utls import *\n", "src/utls.py": ""}, "src", "a.py:2", "src.utls"),
        ({"src/a.py": "import utls.io\n", "src/utls/io.py": ""}, "src", "a.py:1", "src.utls.io"),
        (
            {"pkg/a.py": "from nets.one import x\n", "pkg/nets/one.py": "x = 1\n"},
            "pkg",
            "pkg/a.py:1",
            "pkg.nets.one",
        ),
        (
            {"pkg/deep/er/a.py": "from nets import one\n", "pkg/deep/nets/one.py": ""},
            "pkg",
            "pkg/deep/er/a.py:1",
            "pkg.deep.nets",
        ),
        (
            {"lib/org/pkg/a.py": "import org.pkg.b as b\n", "lib/org/pkg/b.py": ""},
            "lib/org/pkg",
            "lib/org/pkg/a.py:1",
            "pkg.b",
        ),
        ({"pkg/a.py": "import project.pkg.main\n"}, "pkg", "pkg/a.py:1", "pkg.main"),
        ({"src/pkg/a.py": "from src.pkg.b import x\n", "src/pkg/b.py": ""}, "src/pkg", ":1", "b"),
        (
            {"pkg/a.py": "class A:\n    import utls\n", "pkg/utls.py": "import os\n"},
            "pkg",
            "pkg/a.py:2",
            "pkg.utls",
        ),
    ],
)
def test_an_own_module_by_another_name_is_refused(
    make_project: Make, files: dict[str, str | bytes], package: str, place: str, own: str
) -> None:
    top = package.rpartition("/")[2]
    entry = {f"{package}/main.py": "def run(): ...\n", f"{package}/__init__.py": ""}
    project = make_project({**entry, **files}, entry=f"{top}.main:run")
    with pytest.raises(BundleError) as caught:
        bundle_of(project, package=(package,))
    assert place in str(caught.value)
    assert f'only as "{own}' in str(caught.value) or f'.{own}"' in str(caught.value)
    assert f'Import "{own}' in caught.value.next_step or f'.{own}"' in caught.value.next_step
    assert "pip" not in caught.value.next_step


@pytest.mark.parametrize(
    "files",
    [
        {"pkg/numpy.py": "", "pkg/a.py": "import numpy\n"},  # in the image
        {"pkg/pytest.py": "", "pkg/a.py": "import pytest\n"},  # installed here
        {"pkg/fuse_x.py": "import fuse_x\n"},  # never itself
        {"pkg/trees/shi.py": "", "pkg/a.py": "import shi.core\n"},  # no package
        {"pkg/json.py": "", "pkg/a.py": "import json\n"},  # Python's own
        {"pkg/utls.py": "", "pkg/a.py": "import sys\nsys.path.insert(0, 'x')\nimport utls\n"},
        {"pkg/utls.py": "", "pkg/a.py": "def f():\n    import utls\n"},
        {"pkg/utls.py": "", "pkg/a.py": "try:\n    from . import utls\nexcept:\n    import utls\n"},
        {"pkg/utls.py": "", "pkg/a.py": "if __name__ == '__main__':\n    import utls\n"},
    ],
)
def test_an_import_that_may_work_is_not_refused_as_an_own_module(
    make_project: Make, files: dict[str, str | bytes]
) -> None:
    printed = words(make_project(files))
    assert "is not carried" not in printed
    assert '"utls" to' not in printed
    assert 'pip = ["utls"]' not in printed


def test_a_declared_requirement_is_not_an_own_module(make_project: Make) -> None:
    files: dict[str, str | bytes] = {"pkg/nets.py": "", "pkg/a.py": "import nets\n"}
    bundle = bundle_of(make_project(files), pip=("nets==1",))
    assert list(bundle.third_party) == ["nets"]


def test_no_index_is_advised_for_the_name_of_an_own_module(make_project: Make) -> None:
    files: dict[str, str | bytes] = {
        "pkg/main.py": "import nets\ndef run(): ...\n",
        "pkg/models/nets.py": "",  # not in a folder around pkg/main.py
    }
    printed = words(make_project(files))
    assert 'Import "pkg.models.nets"' in printed
    assert "pip" not in printed
    files["image.json"] = json.dumps(COMPLETE)
    assert "pip" not in words(make_project(files, keys='image = "image.json"'))


def test_a_module_above_the_package_is_a_sibling(make_project: Make) -> None:
    files: dict[str, str | bytes] = {
        "src/pkg/main.py": "import settings_of_ours\ndef run(): ...\n",
        "settings_of_ours.py": "",
    }
    with pytest.raises(BundleError, match="in the project and is not carried") as caught:
        bundle_of(make_project(files), package=("src/pkg",))
    assert '"settings_of_ours.py" to "package"' in caught.value.next_step


ABSENT = "nobody_knows_it"
OPTIONAL = [
    f"def f():\n    import {ABSENT}\n",
    f"async def f():\n    from {ABSENT}.x import y\n",
    f"class A:\n    def f(self):\n        import {ABSENT}\n",
    f"try:\n    import numpy\nexcept ImportError:\n    import {ABSENT}\n",
    f"try:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    import {ABSENT}\n",
    f"import sys\nif sys.platform == 'x':\n    pass\nelse:\n    import {ABSENT}\n",
    f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {ABSENT}\n",
    f"import typing as t\nif not t.TYPE_CHECKING:\n    pass\nelse:\n    import {ABSENT}\n",
    f"from contextlib import suppress\nwith suppress(ModuleNotFoundError):\n    import {ABSENT}\n",
    f"from importlib.util import find_spec\nif find_spec('{ABSENT}'):\n    import {ABSENT}\n",
    f"try:\n    import {ABSENT}\nexcept Exception:\n    {ABSENT} = None\n",
    f"match 1:\n    case 2:\n        import {ABSENT}\n",
    f"def __getattr__(name):\n    import {ABSENT}\n",
    f"if __name__ == '__main__':\n    import {ABSENT}\n",
]
NEEDED = [
    f"import {ABSENT}\n",
    f"class A:\n    import {ABSENT}\n",
    f"with open('x'):\n    import {ABSENT}\n",
    f"try:\n    import {ABSENT}\nexcept ImportError as e:\n    raise RuntimeError from e\n",
    f"import sys\ntry:\n    import {ABSENT}\nexcept ImportError:\n    sys.exit('no')\n",
    f"try:\n    import {ABSENT}\nexcept ValueError:\n    pass\n",
    f"try:\n    import {ABSENT}\nfinally:\n    pass\n",
    f"import typing\nif not typing.TYPE_CHECKING and True:\n    import {ABSENT}\n",
]


@pytest.mark.parametrize("source", OPTIONAL)
@pytest.mark.parametrize("complete", [True, False])
def test_an_import_that_the_run_need_not_make_is_no_problem(
    make_project: Make, source: str, complete: bool
) -> None:
    files: dict[str, str | bytes] = {"pkg/main.py": f"{source}\ndef run(): ...\n"}
    image = json.dumps({**COMPLETE, "distributions": {"numpy": "2"}})
    keys = 'image = "image.json"' if complete else ""
    project = make_project({**files, "image.json": image}, keys=keys)
    kernel = workflow.render_kernel(load_config(project, environment={}))
    assert check(kernel) == []
    notes = advise(kernel)
    assert not any(note.startswith("warning: ") for note in notes)
    assert any(ABSENT in note for note in notes) == ("TYPE_CHECKING" not in source)


@pytest.mark.parametrize("source", NEEDED)
def test_a_needed_import_that_is_nowhere_is_refused_or_a_warning(
    make_project: Make, source: str
) -> None:
    files: dict[str, str | bytes] = {"pkg/main.py": f"{source}\ndef run(): ...\n"}
    line = source.count("\n", 0, source.index(f"import {ABSENT}")) + 1
    project = make_project({**files, "image.json": json.dumps(COMPLETE)})
    kernel = workflow.render_kernel(load_config(project, environment={}))
    assert check(kernel) == []
    warning, *_ = advise(kernel)
    assert warning.startswith(f'warning: pkg/main.py:{line} imports "{ABSENT}"')
    toml = (project / "pyproject.toml").read_text()
    complete = toml.replace("[tool.kernelkit]\n", '[tool.kernelkit]\nimage = "image.json"\n')
    (project / "pyproject.toml").write_text(complete)
    kernel = workflow.render_kernel(load_config(project, environment={}))
    assert [problem.subject for problem in check(kernel)] == [f"pkg/main.py:{line}"]
    declared = complete.replace("image = ", f'optional_imports = "{ABSENT}"\nimage = ')
    (project / "pyproject.toml").write_text(declared)
    assert check(workflow.render_kernel(load_config(project, environment={}))) == []


def test_a_warning_is_labelled_as_one(make_project: Make, cli: Callable[..., object]) -> None:
    project = make_project({"pkg/main.py": f"import {ABSENT}\ndef run(): ...\n"})
    for command in ("preflight", "render"):
        done = cli(command, "--project", project)
        printed = str(getattr(done, "stdout", "")) + str(getattr(done, "stderr", ""))
        assert f'warning: pkg/main.py:1 imports "{ABSENT}"' in printed
        assert "note: warning" not in printed


@pytest.mark.parametrize(
    ("source", "excluded"),
    [
        ("from pkg import plots\n", "pkg/plots.py"),
        ("import pkg.plots\n", "pkg/plots.py"),
        ("from .plots import draw\n", "plots.py"),
        ("from .plots.inner import draw\n", "pkg/plots/"),
        ("from . import _fast\n", "*.so"),
        ("from .sub import *\n", "pkg/sub/plots.py"),
    ],
)
def test_a_needed_module_that_is_excluded_is_refused(
    make_project: Make, source: str, excluded: str
) -> None:
    folder = {"pkg/plots/__init__.py": "", "pkg/plots/inner.py": ""}
    files: dict[str, str | bytes] = {
        "pkg/a.py": f"import os\n{source}",
        "pkg/_fast.so": b"\x7fELF",
        "pkg/sub/__init__.py": '__all__ = ["plots"]\n',
        "pkg/sub/plots.py": "",
        **(folder if "inner" in source else {"pkg/plots.py": "draw = 1\n"}),
    }
    project = make_project(files)
    exclude = (excluded, "*.so")
    with pytest.raises(BundleError, match=r"pkg/a\.py:2: imports .* is excluded"):
        bundle_of(project, exclude=exclude)
    names = ("pkg.plots", "pkg._fast", "pkg.sub")
    bundle_of(project, exclude=exclude, optional_imports=names)
    (project / "pkg" / "a.py").write_text(f"def f():\n    {source}".replace("*", "plots"))
    (note,) = bundle_of(project, exclude=exclude).notes
    assert note.startswith('pkg/a.py:2 imports "pkg.')
    assert "is excluded" in note


@pytest.mark.parametrize(
    ("files", "lost"),
    [
        ({"pkg/sub/__init__.py": "from .b import *\n", "pkg/sub/b.py": ""}, "pkg.sub.gone"),
        ({"pkg/sub/__init__.py": "from os import *\n", "pkg/sub/gone.py": "x"}, None),
        ({"pkg/sub/__init__.py": "from os import *\n"}, None),
        ({"pkg/sub/__init__.py": "from .b import *\n", "pkg/sub/b.py": "gone = 1\n"}, None),
        (
            {"pkg/sub/__init__.py": "from .b import *\n", "pkg/sub/b.py": "from .c import *\n"}
            | {"pkg/sub/c.py": "from .b import *\n"},
            "pkg.sub.gone",
        ),
    ],
)
def test_a_star_import_hides_no_lost_module(
    make_project: Make, files: dict[str, str | bytes], lost: str | None
) -> None:
    project = make_project({**files, "pkg/a.py": "from pkg.sub import gone\n"})
    if lost is None:
        bundle_of(project)
        return
    with pytest.raises(BundleError, match=rf'pkg/a\.py:1: imports "{lost}"'):
        bundle_of(project)


def test_a_name_in_all_must_exist(make_project: Make) -> None:
    files: dict[str, str | bytes] = {
        "pkg/sub/__init__.py": '__all__ = ("nett", "here")\nhere = 1\n',
        "pkg/sub/net.py": "",
        "pkg/a.py": "from pkg.sub import *\n",
    }
    with pytest.raises(BundleError, match=r'imports "pkg\.sub\.nett".*mean "pkg\.sub\.net"'):
        bundle_of(make_project(files))


@pytest.mark.parametrize(
    ("module", "python", "refused"),
    [
        ("imp", "3.12", True),
        ("asyncore", "3.12.1", True),
        ("cgi", "3.12", False),
        ("cgi", "3.13", True),
        ("imp", "3.11", False),
        ("distutils", "3.12", False),  # setuptools has one
    ],
)
def test_what_python_removed_is_not_third_party(
    make_project: Make, module: str, python: str, refused: bool
) -> None:
    image = {**COMPLETE, "python": python, "distributions": {"setuptools": "75"}}
    files: dict[str, str | bytes] = {
        "pkg/main.py": f"import {module}\ndef run(): ...\n",
        "pkg/b.py": f"try:\n    import {module}\nexcept ImportError:\n    pass\n",
        "image.json": json.dumps(image),
    }
    project = make_project(files, keys='image = "image.json"')
    kernel = workflow.render_kernel(load_config(project, environment={}))
    assert {**kernel.bundle.third_party, **kernel.bundle.optional} == {}
    assert [problem.subject for problem in check(kernel)] == ["pkg/main.py:1"] * refused
    assert "pip" not in words(project)


def test_the_declaration_of_optional_imports_is_checked(make_project: Make) -> None:
    files: dict[str, str | bytes] = {"pkg/a.py": f"import {ABSENT}.x\nfrom pkg import gone\n"}
    project = make_project(files)
    bundle = bundle_of(project, optional_imports=(f"{ABSENT}.x", "pkg.gone", "cupi"))
    assert (list(bundle.third_party), list(bundle.optional)) == ([], [ABSENT])
    assert bundle.notes == ('optional_imports = "cupi" fits no import',)
    invalid = make_project({}, keys='optional_imports = ["a b", "x"]')
    with pytest.raises(ConfigError, match="must be the name of a module"):
        load_config(invalid, environment={})


@pytest.mark.parametrize(
    ("files", "entry", "part"),
    [
        ({"pkg/test_it.py": "def run(): ...\n"}, "pkg.test_it:run", "(a test): pkg/test_it.py"),
        ({"pkg/tests/it.py": "def run(): ...\n"}, "pkg.tests.it:run", "(a test): pkg/tests/it.py"),
        (
            {"pkg/gen.py": "def run(): ...\n", ".gitignore": "gen.py\n"},
            "pkg.gen:run",
            "(named in .gitignore): pkg/gen.py",
        ),
        (
            {"pkg/gen/it.py": "def run(): ...\n", ".gitignore": "/pkg/gen/\n"},
            "pkg.gen.it:run",
            "(named in .gitignore): the whole folder",
        ),
    ],
)
def test_an_entry_that_is_left_out_says_why(
    make_project: Make, files: dict[str, str | bytes], entry: str, part: str
) -> None:
    project = make_project(files, entry=entry)
    with pytest.raises(BundleError) as caught:
        bundle_of(project)
    assert part in str(caught.value)
    pattern = caught.value.next_step.split('"')[1]
    assert bundle_of(project, include=(pattern,)).entry == entry
    with pytest.raises(BundleError, match=r"is left out \(excluded\)"):
        bundle_of(project, include=(pattern,), exclude=(pattern,))
