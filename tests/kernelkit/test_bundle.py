from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelkit.bundle import Bundle, digest_of, read_bundle
from kernelkit.errors import BundleError

Make = Callable[..., Path]


def bundle_of(project: Path, entry: str = "pkg.main:run") -> Bundle:
    return read_bundle(project / "pkg", entry)


def paths(bundle: Bundle) -> list[str]:
    return [file.path for file in bundle.files]


def test_modules_come_after_what_they_import(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/a.py": "from pkg import c\n",
            "pkg/b.py": "from . import a\n",
            "pkg/c.py": '"""The base.\n\nMore."""\n',
            "pkg/main.py": "from .b import *\ndef run(): ...\n",
            "pkg/data.json": "{}",
        }
    )
    bundle = bundle_of(project)
    assert paths(bundle) == [
        "pkg/__init__.py",
        "pkg/c.py",
        "pkg/a.py",
        "pkg/b.py",
        "pkg/main.py",
        "pkg/data.json",
    ]
    assert bundle.files[1].summary == "The base."


def test_a_cycle_is_cut_and_nothing_is_lost(make_project: Make) -> None:
    project = make_project({"pkg/a.py": "from pkg import b\n", "pkg/b.py": "import pkg.a\n"})
    assert sorted(paths(bundle_of(project)))[1:3] == ["pkg/a.py", "pkg/b.py"]


def test_a_long_chain_of_imports_does_not_exhaust_the_stack(make_project: Make) -> None:
    files = {f"pkg/m{i:04}.py": f"import pkg.m{i + 1:04}\n" for i in range(1500)}
    bundle = bundle_of(make_project({**files, "pkg/m1500.py": ""}))
    assert paths(bundle)[1] == "pkg/m1500.py"


def test_source_is_never_imported(make_project: Make) -> None:
    project = make_project({"pkg/trap.py": "raise SystemExit('imported')\n"})
    assert "pkg/trap.py" in paths(bundle_of(project))


def test_an_own_import_that_leads_nowhere_names_file_and_line(make_project: Make) -> None:
    project = make_project({"pkg/modle.py": "", "pkg/use.py": "import os\nfrom .model import x\n"})
    with pytest.raises(BundleError) as caught:
        bundle_of(project)
    assert str(caught.value) == (
        'pkg/use.py:2: imports "pkg.model", which the package does not hold'
        '; did you mean "pkg.modle"?'
    )


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    from . import fast\n    from .fast import x\nexcept ImportError:\n    x = 1\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .stubs import X\n",
        "from pkg import anything\n",
        "from pkg.space import deep\nimport pkg.space.deep\n",
    ],
)
def test_imports_that_may_fail_or_do_lead_somewhere(make_project: Make, source: str) -> None:
    bundle_of(make_project({"pkg/use.py": source, "pkg/space/deep.py": ""}))


def test_third_party_imports_are_listed_with_their_places(make_project: Make) -> None:
    project = make_project({"pkg/a.py": "import torch.nn as nn, os\nfrom numpy import x\n"})
    assert bundle_of(project).third_party == {"numpy": ("pkg/a.py:2",), "torch": ("pkg/a.py:1",)}


@pytest.mark.parametrize(
    ("files", "entry", "part"),
    [
        ({"pkg/main.py": "def runn(): ...\n"}, "pkg.main:run", 'did you mean "runn"?'),
        ({}, "pkg.mian:run", 'did you mean "pkg.main"?'),
        ({"pkg/main.py": "def f():\n    def run(): ...\n"}, "pkg.main:run", "defines no"),
        ({"pkg/a.py": "def broken(:\n"}, "pkg.main:run", "pkg/a.py:1: "),
        ({"pkg/a.py": b"x = '\xff'\n"}, "pkg.main:run", "pkg/a.py"),
        ({"pkg/fast.so": b"\x7fELF"}, "pkg.main:run", "compiled extension"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    make_project: Make, files: dict[str, str | bytes], entry: str, part: str
) -> None:
    with pytest.raises(BundleError) as caught:
        bundle_of(make_project(files), entry)
    assert part in str(caught.value)


def test_an_entry_may_come_from_elsewhere(make_project: Make) -> None:
    project = make_project({"pkg/b.py": "def run(): ...\n", "pkg/main.py": "from .b import run\n"})
    assert bundle_of(project).entry == "pkg.main:run"
    (project / "pkg/main.py").write_text("from .b import *\n")
    assert bundle_of(project).entry == "pkg.main:run"


def test_caches_hidden_files_and_notebooks_stay_behind(make_project: Make) -> None:
    left = ["pkg/.env", "pkg/__pycache__/x.pyc", "pkg/.git/config", "pkg/n.ipynb", "pkg/.x/y.py"]
    assert paths(bundle_of(make_project(dict.fromkeys(left, "secret")))) == [
        "pkg/__init__.py",
        "pkg/main.py",
    ]


def test_no_package(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no package folder"):
        read_bundle(tmp_path / "gone", "gone:x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no Python module"):
        read_bundle(tmp_path / "empty", "empty:x")


def test_the_digest_changes_with_any_content_or_name(make_project: Make) -> None:
    project = make_project({"pkg/a.txt": "one"})
    first = bundle_of(project).digest
    assert bundle_of(project).digest == first
    (project / "pkg/a.txt").write_text("two")
    second = bundle_of(project).digest
    (project / "pkg/a.txt").rename(project / "pkg/b.txt")
    assert len({first, second, bundle_of(project).digest}) == 3


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4, unique_by=lambda part: part[0]))
def test_no_two_sets_of_parts_share_a_digest(parts: list[tuple[str, str]]) -> None:
    joined = [("".join(name + value for name, value in parts), "")]
    same = sorted(parts) == joined
    assert (digest_of(parts) == digest_of(joined)) == same
    assert digest_of(parts) == digest_of(parts[::-1])


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"pkg/mod.py": "", "pkg/mod/__init__.py": ""}, "are both the module pkg.mod"),
        ({"pkg/a.py": "import helpers\n", "helpers.py": ""}, "lies beside the package"),
        ({"pkg/a.py": "\nfrom .. import zz\n"}, "pkg/a.py:2: a relative import beyond"),
        ({"pkg/a.py": f"x = {'+'.join(['1'] * 5000)}\n"}, "pkg/a.py: cannot be read as Python"),
        (
            {"pkg/a.py": "try:\n    x = 1\nexcept ImportError:\n    from .gone import y\n"},
            "pkg/a.py:4",
        ),
    ],
)
def test_what_would_be_lost_is_refused(
    make_project: Make, files: dict[str, str | bytes], part: str
) -> None:
    with pytest.raises(BundleError) as caught:
        bundle_of(make_project(files))
    assert part in str(caught.value)


def test_linked_folders_are_followed_and_broken_links_refused(make_project: Make) -> None:
    project = make_project({"elsewhere/data.txt": "x"})
    (project / "pkg" / "assets").symlink_to(project / "elsewhere")
    assert "pkg/assets/data.txt" in paths(bundle_of(project))
    (project / "pkg" / "self").symlink_to(project / "pkg")
    with pytest.raises(BundleError, match="a link to a folder above it"):
        bundle_of(project)
    (project / "pkg" / "self").unlink()
    (project / "pkg" / "gone.txt").symlink_to(project / "nowhere")
    with pytest.raises(BundleError, match=r"gone\.txt cannot be read"):
        bundle_of(project)


def test_provenance_knows_what_git_does_not_hold(make_project: Make) -> None:
    project = make_project({})
    assert bundle_of(project).provenance.commit is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(project), *identity, *arguments], check=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert bundle_of(project).provenance.dirty is False
    (project / ".gitignore").write_text("data.txt\n")
    (project / "pkg" / "data.txt").write_text("ignored, and carried")
    assert bundle_of(project).provenance.dirty is True


@pytest.mark.parametrize("name", ["json", "kernelkit_runtime", "my-package"])
def test_a_package_by_a_name_that_cannot_be_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    with pytest.raises(BundleError, match="the package is called"):
        read_bundle(tmp_path / name, f"{name}:run")
