from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelkit import workflow
from kernelkit.bundle.bundle import Bundle, SourceFile, digest_of, read_bundle
from kernelkit.bundle.git import GitIgnore, Provenance
from kernelkit.config import load_config
from kernelkit.errors import BundleError, KernelkitError
from kernelkit.project.init import plan_init

Make = Callable[..., Path]


def bundle_of(project: Path, **more: object) -> Bundle:
    """The bundle of the project file, with some of its keys changed."""
    return read_bundle(load_config(project, environment={}).model_copy(update=more))


def paths(bundle: Bundle) -> list[str]:
    return [file.path for file in bundle.files]


IMPORTS_A = {"pkg/main.py": "from pkg import a\ndef run(): ...\n"}


def test_modules_follow_the_modules_that_they_import(make_project: Make) -> None:
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


def test_import_cycles_lose_no_module(make_project: Make) -> None:
    project = make_project({"pkg/a.py": "from pkg import b\n", "pkg/b.py": "import pkg.a\n"})
    assert sorted(paths(bundle_of(project)))[1:3] == ["pkg/a.py", "pkg/b.py"]


def test_a_long_chain_of_imports_does_not_exhaust_the_stack(make_project: Make) -> None:
    files = {f"pkg/m{i:04}.py": f"import pkg.m{i + 1:04}\n" for i in range(1500)}
    bundle = bundle_of(make_project({**files, "pkg/m1500.py": ""}))
    assert paths(bundle)[1] == "pkg/m1500.py"


def test_source_is_never_imported(make_project: Make) -> None:
    project = make_project({"pkg/trap.py": "raise SystemExit('imported')\n"})
    assert "pkg/trap.py" in paths(bundle_of(project))


def test_an_unresolved_internal_import_names_file_and_line(make_project: Make) -> None:
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
        "try:\n    x = 1\nexcept ImportError:\n    from .gone import y\n",
        "x = 1\n\ndef f():\n    from pkg.gone import y\n",
        "try:\n    import os\nexcept ImportError:\n    pass\nelse:\n    import pkg.gone\n",
    ],
)
def test_an_import_that_the_run_may_never_reach_is_a_note(make_project: Make, source: str) -> None:
    notes = bundle_of(make_project({"pkg/a.py": source})).notes
    assert any(
        'imports "pkg.gone", which the package does not hold: the run must not' in note
        for note in notes
    )


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    from . import fast\n    from .fast import x\nexcept ImportError:\n    x = 1\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .stubs import X\n",
        "from pkg.lazy import anything\nfrom pkg import use, __version__\n",
        "from pkg.vendored.six.moves import urllib\n",
        "import sys\nif sys.version_info < (3, 8):\n    from .old import x\n",
        "import contextlib\nwith contextlib.suppress(ImportError):\n    from . import fast\n",
        "from pkg.space import deep\nimport pkg.space.deep\n",
    ],
)
def test_optional_and_resolvable_imports_are_accepted(make_project: Make, source: str) -> None:
    bundle_of(
        make_project(
            {
                "pkg/use.py": source,
                "pkg/space/deep.py": "",
                "pkg/lazy/__init__.py": "def __getattr__(name): ...\n",
                "pkg/vendored/__init__.py": "",
                "pkg/vendored/six.py": "import sys\nsys.modules[__name__ + '.moves'] = sys\n",
            }
        )
    )


SOME_NAMES = "class Model: ...\nlimit: int = 3\nif limit:\n    from os import sep\n"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (
            "from .names import Modle\n",
            '"pkg.names.Modle", which pkg/names.py does not define; did',
        ),
        ("from pkg.stars import nothing\n", "which pkg/stars.py does not define"),
        ("from .names import sep, limits\n", '"pkg.names.limits"'),
        ("from .names import Model, sep, limit, __doc__\nfrom .stars import Model\n", ""),
        ("def f():\n    from .names import later\n", ""),
        ("try:\n    from .names import later\nexcept ImportError:\n    later = None\n", ""),
        ("from .names import given\nfrom .made import anything\nfrom .outside import x\n", ""),
    ],
)
def test_a_name_that_an_own_module_lacks(make_project: Make, source: str, part: str) -> None:
    project = make_project(
        {
            "pkg/names.py": SOME_NAMES,
            "pkg/stars.py": "from .names import *\n",
            "pkg/made.py": "globals().update(anything=1)\n",
            "pkg/outside.py": "from numpy import *\n",
            "pkg/__init__.py": "from . import names\nnames.given = 1\n",
            "pkg/use.py": source,
        }
    )
    if not part:
        bundle_of(project)
        return
    with pytest.raises(BundleError) as caught:
        bundle_of(project)
    assert part in str(caught.value)


def test_third_party_imports_are_listed_with_their_places(make_project: Make) -> None:
    project = make_project({"pkg/a.py": "import torch.nn as nn, os\nfrom numpy import x\n"})
    assert bundle_of(project).third_party == {"numpy": ("pkg/a.py:2",), "torch": ("pkg/a.py:1",)}


@pytest.mark.parametrize(
    ("files", "entry", "part"),
    [
        ({"pkg/main.py": "def runn(): ...\n"}, "pkg.main:run", 'did you mean "runn"?'),
        ({}, "pkg.mian:run", 'did you mean "pkg.main"?'),
        ({"pkg/main.py": "def f():\n    def run(): ...\n"}, "pkg.main:run", "defines no"),
        ({"pkg/a.py": "def broken(:\n", **IMPORTS_A}, "pkg.main:run", "pkg/a.py:1: "),
        ({"pkg/a.py": b"x = '\xff'\n", **IMPORTS_A}, "pkg.main:run", "pkg/a.py"),
        ({"pkg/main.py": "async def run(): ...\n"}, "pkg.main:run", "is a coroutine"),
        ({"pkg/main.py": "def run():\n    yield 1\n"}, "pkg.main:run", "or a generator"),
        ({"pkg/fast.so": b"\x7fELF"}, "pkg.main:run", "compiled extension"),
    ],
)
def test_files_that_cannot_be_carried_are_rejected(
    make_project: Make, files: dict[str, str | bytes], entry: str, part: str
) -> None:
    with pytest.raises(BundleError) as caught:
        bundle_of(make_project(files), entry=entry)
    assert part in str(caught.value)


def test_the_entry_may_be_imported_from_another_module(make_project: Make) -> None:
    project = make_project({"pkg/b.py": "def run(): ...\n", "pkg/main.py": "from .b import run\n"})
    assert bundle_of(project).entry == "pkg.main:run"
    (project / "pkg/main.py").write_text("from .b import *\n")
    assert bundle_of(project).entry == "pkg.main:run"


def test_caches_hidden_files_and_notebooks_are_left_out(make_project: Make) -> None:
    left = ["pkg/.env", "pkg/__pycache__/x.pyc", "pkg/.git/config", "pkg/n.ipynb", "pkg/.x/y.py"]
    assert paths(bundle_of(make_project(dict.fromkeys(left, "secret")))) == [
        "pkg/__init__.py",
        "pkg/main.py",
    ]


def test_a_missing_package_is_an_error(make_project: Make) -> None:
    project = make_project({"empty/data.txt": "x"})
    with pytest.raises(BundleError, match="there is no package gone"):
        bundle_of(project, package=("gone",))
    with pytest.raises(BundleError, match="no Python module"):
        bundle_of(project, package=("empty",))


def test_the_digest_changes_with_any_content_or_name(make_project: Make) -> None:
    project = make_project({"pkg/a.txt": "one"})
    first = bundle_of(project).digest
    assert bundle_of(project).digest == first
    (project / "pkg/a.txt").write_text("two")
    second = bundle_of(project).digest
    (project / "pkg/a.txt").rename(project / "pkg/b.txt")
    assert len({first, second, bundle_of(project).digest}) == 3


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4, unique_by=lambda part: part[0]))
def test_different_parts_have_different_digests(parts: list[tuple[str, str]]) -> None:
    joined = [("".join(name + value for name, value in parts), "")]
    same = sorted(parts) == joined
    assert (digest_of(parts) == digest_of(joined)) == same
    assert digest_of(parts) == digest_of(parts[::-1])


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"pkg/a.py": "import helpers\n", "helpers.py": ""}, "is next to the package"),
        ({"pkg/a.py": "from pkg import anything\n"}, 'pkg/a.py:1: imports "pkg.anything"'),
        ({"pkg/a.py": "\nif not TYPE_CHECKING:\n    from . import x\n"}, "pkg/a.py:3"),
        (
            {"pkg/a.py": "try:\n    from ._version import v\nexcept ImportError:\n    v = 0\n"}
            | {"pkg/_version.py": "v = 1\n", ".gitignore": "_version.py\n"},
            "is left out (named in .gitignore): pkg/_version.py",
        ),
        ({"pkg/a.py": "\nfrom .. import zz\n"}, "pkg/a.py:2: a relative import beyond"),
        (
            {"pkg/a.py": f"x = {'+'.join(['1'] * 5000)}\n", **IMPORTS_A},
            "pkg/a.py: cannot be read as Python",
        ),
        ({"pkg/a.py": "import helpers\n", "helpers/util.py": ""}, "is next to the package"),
        (
            {"pkg/__init__.py": "def f(x): global x\n", "pkg/a.py": "from pkg import b\n"}
            | {"pkg/c.py": "from pkg.gone import b\n"},
            'pkg/c.py:1: imports "pkg.gone"',
        ),
    ],
)
def test_files_that_would_be_lost_are_rejected(
    make_project: Make, files: dict[str, str | bytes], part: str
) -> None:
    with pytest.raises(BundleError) as caught:
        bundle_of(make_project(files))
    assert part in str(caught.value)


def test_linked_folders_are_followed_and_broken_links_rejected(make_project: Make) -> None:
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


def test_provenance_reports_uncommitted_files(make_project: Make) -> None:
    project = make_project({})
    assert bundle_of(project).provenance.commit is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(project), *identity, *arguments], check=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert bundle_of(project).provenance.dirty is False
    (project / "pkg" / "more.txt").write_text("not in git, and carried")
    assert bundle_of(project).provenance.dirty is True
    (project / "pkg" / "more.txt").unlink()
    (project / "pkg" / "main.py").write_text("def run(): pass\n")
    assert bundle_of(project).provenance.dirty is True
    git("checkout", "--quiet", ".")
    (project / "notes.txt").write_text("elsewhere")
    assert bundle_of(project).provenance.dirty is False
    (project / "pkg" / "__init__.py").unlink()
    assert bundle_of(project).provenance.dirty is True


@pytest.mark.parametrize("name", ["json", "kernelkit_runtime", "my-package", "os.py"])
def test_an_invalid_package_name_is_rejected(make_project: Make, name: str) -> None:
    with pytest.raises(BundleError, match="the package is called"):
        bundle_of(make_project({}), package=(name,))


def carried(project: Path, **more: object) -> set[str]:
    return set(paths(bundle_of(project, **more))) - {"pkg/__init__.py", "pkg/main.py"}


def test_left_out_files_are_listed_with_the_reason(make_project: Make) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
    project = make_project(
        {
            ".gitignore": "*.log\n/pkg/cache/\n!keep.log\n",
            "pkg/sub/.gitignore": "!all.log\nlocal.txt\n",
            "pkg/x.log": "",
            "pkg/keep.log": "",
            "pkg/sub/all.log": "",
            "pkg/sub/local.txt": "",
            "pkg/cache/deep/a.bin": "",
            "pkg/tests/test_a.py": "",
            "pkg/tests/data/expected.json": "",
            "pkg/test_b.py": "",
            "pkg/b_test.py": "",
            "pkg/testing.py": "",
            "pkg/.env": "",
            "pkg/kaggle.json": "",
            "pkg/server.pem": key,
            "pkg/authorities.pem": "-----BEGIN CERTIFICATE-----\n",
            "pkg/look.ipynb": "{}",
        }
    )
    assert carried(project) == {
        "pkg/authorities.pem",
        "pkg/keep.log",
        "pkg/sub/all.log",
        "pkg/testing.py",
    }
    assert bundle_of(project).left_out == {
        "pkg/sub/.gitignore": "hidden",
        "pkg/x.log": "named in .gitignore",
        "pkg/sub/local.txt": "named in .gitignore",
        "pkg/cache/": "named in .gitignore",
        "pkg/tests/test_a.py": "a test",
        "pkg/tests/data/expected.json": "a test",
        "pkg/test_b.py": "a test",
        "pkg/b_test.py": "a test",
        "pkg/.env": "a key",
        "pkg/kaggle.json": "a key",
        "pkg/server.pem": "a key",
        "pkg/look.ipynb": "a notebook",
    }
    named = ("pkg/tests/data/", "*.log", "look.ipynb", "/pkg/cache/**")
    assert carried(project, include=named, exclude=("x.log", "*.pem")) == {
        "pkg/keep.log",
        "pkg/sub/all.log",
        "pkg/testing.py",
        "pkg/look.ipynb",
        "pkg/tests/data/expected.json",
        "pkg/cache/deep/a.bin",
    }


def test_tracked_files_are_carried_even_if_ignored(make_project: Make) -> None:
    project = make_project({"pkg/a.csv": "1", "pkg/b.csv": "2", ".gitignore": "*.csv\n"})
    for command in (["init", "--quiet"], ["add", "--force", "pkg/a.csv"]):
        subprocess.run(["git", "-C", str(project), *command], check=True)
    assert carried(project) == {"pkg/a.csv"}


def test_a_test_that_the_package_imports_is_carried_and_reported(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/__init__.py": "def check():\n    from .tests import all_of_them\n",
            "pkg/tests/__init__.py": "from .test_a import all_of_them\n",
            "pkg/tests/test_a.py": "all_of_them = 1\n",
            "pkg/tests/test_b.py": "",
        }
    )
    bundle = bundle_of(project)
    assert set(paths(bundle)) >= {"pkg/tests/__init__.py", "pkg/tests/test_a.py"}
    assert "pkg/tests/test_b.py" not in paths(bundle)
    assert "pkg/tests/__init__.py is carried: pkg/__init__.py:2 imports it" in bundle.notes


def test_packages_of_every_layout_are_bundled_together(make_project: Make) -> None:
    project = make_project(
        {
            "src/alpha/__init__.py": "import beta, solo\n",
            "src/alpha/inner/deep.py": "",
            "src/alpha/py.typed": "",
            "src/alpha/types.pyi": "",
            "lib/beta/core.py": "from beta import more\n",
            "lib/beta/more.py": "",
            "solo.py": "import alpha.inner.deep\ndef run(): ...\n",
        }
    )
    bundle = bundle_of(project, package=("src/alpha", "lib/beta", "solo.py"), entry="solo:run")
    assert bundle.roots == {"alpha": "src", "beta": "lib", "solo.py": "."}
    modules = {file.path: file.module for file in bundle.files}
    assert modules == {
        "alpha/__init__.py": "alpha",
        "alpha/inner/deep.py": "alpha.inner.deep",
        "beta/core.py": "beta.core",
        "beta/more.py": "beta.more",
        "solo.py": "solo",
        "alpha/py.typed": None,
        "alpha/types.pyi": None,
    }


def test_a_module_next_to_the_package_is_suggested(make_project: Make) -> None:
    project = make_project({"pkg/main.py": "import extra\ndef run(): ...\n", "extra.py": ""})
    with pytest.raises(BundleError) as caught:
        bundle_of(project)
    assert 'Add "extra.py" to "package"' in caught.value.next_step
    assert "extra.py" in carried(project, package=("pkg", "extra.py"))


def test_a_subpackage_is_rejected_as_a_package(make_project: Make) -> None:
    project = make_project({"pkg/sub/__init__.py": ""})
    with pytest.raises(BundleError, match="a part of the package pkg"):
        bundle_of(project, package=("pkg/sub",))


def test_only_reachable_carries_what_the_entry_imports(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/main.py": "from typing import TYPE_CHECKING\nimport importlib\n"
            "if TYPE_CHECKING:\n    from . import types_only\n"
            "def run(name='x'):\n    from .used import inner\n"
            "    importlib.import_module('pkg.named')\n"
            "    return importlib.import_module(name)\n",
            "pkg/types_only.py": "",
            "pkg/named.py": "",
            "pkg/used/__init__.py": "",
            "pkg/used/inner.py": "",
            "pkg/used/table.csv": "",
            "pkg/used/deep/more.csv": "",
            "pkg/unused/__init__.py": "import nothing_of_ours\n",
            "pkg/unused/table.csv": "",
            "pkg/top.csv": "",
        }
    )
    assert carried(project, only_reachable=True) == {
        "pkg/named.py",
        "pkg/used/__init__.py",
        "pkg/used/inner.py",
        "pkg/used/table.csv",
        "pkg/used/deep/more.csv",
        "pkg/top.csv",
    }
    bundle = bundle_of(project, only_reachable=True)
    assert bundle.third_party == {}
    assert bundle.left_out["pkg/unused/table.csv"] == "not reachable"
    (note,) = bundle.notes
    assert note.startswith("pkg/main.py:8 imports a module whose name only the run knows")


def test_unreachable_files_may_be_invalid(make_project: Make) -> None:
    project = make_project({"pkg/samples/py2.py": "print 'x'\n", "pkg/null.py": "\0"})
    bundle = bundle_of(project)
    assert {"pkg/samples/py2.py", "pkg/null.py"} <= set(paths(bundle))
    assert sum("carried as data" in note for note in bundle.notes) == 2


def test_a_package_takes_precedence_over_a_module_of_the_same_name(make_project: Make) -> None:
    """As in Python. The module is still carried as a file."""
    bundle = bundle_of(make_project({"pkg/mod.py": "", "pkg/mod/__init__.py": ""}))
    modules = {file.path: file.module for file in bundle.files}
    assert modules["pkg/mod/__init__.py"] == "pkg.mod"
    assert modules["pkg/mod.py"] is None


def test_data_files_are_never_left_out_as_tests(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/data/train/a.csv": "",
            "pkg/data/test/a.csv": "",
            "pkg/cache/.gitkeep": "",
            "pkg/tests/helper.py": "",
            "pkg/tests/expected.csv": "",
        }
    )
    assert carried(project) == {
        "pkg/data/train/a.csv",
        "pkg/data/test/a.csv",
        "pkg/cache/.gitkeep",
    }
    (project / "pkg" / "main.py").write_text("def run():\n    from .tests import helper\n")
    assert {"pkg/tests/helper.py", "pkg/tests/expected.csv"} <= carried(project)


def test_key_files_are_carried_only_by_their_full_name(make_project: Make) -> None:
    pem = "-----BEGIN PGP PRIVATE KEY BLOCK-----\n"
    names = ["id_ecdsa", "prod.env", "deep/access_token", "deep/.env"]
    files = dict.fromkeys([f"pkg/conf/{name}" for name in names], "x")
    project = make_project({**files, "pkg/conf/server.pem": pem})
    (project / "pkg" / "conf" / "settings.json").symlink_to(project / "pkg/conf/deep/access_token")
    assert carried(project) == set()
    assert carried(project, include=("pkg/conf/", "*")) == set()
    named = ("pkg/conf/server.pem", "prod.env")
    assert carried(project, include=named) == {"pkg/conf/server.pem", "pkg/conf/prod.env"}


def test_a_pattern_that_matches_nothing_is_reported(make_project: Make) -> None:
    notes = bundle_of(
        make_project({"pkg/secret.txt": ""}), exclude=("pkg/secrt.txt",), include=("conf/",)
    ).notes
    assert notes == (
        'include = "conf/" fits no file of the packages',
        'exclude = "pkg/secrt.txt" fits no file of the packages',
    )


RULES = (
    *("*", "!*/", "!*.py", "pkg/*", "!pkg/*.py", "a*", "sub/", "/pkg/sub/*", "!*.txt", "pkg/sub"),
    *("\ufeffa.txt", "[z-a]", "!", "# x", "**/b.txt", "!b.txt", "*.txt", "!sub/"),
)
GIT_RULES = st.lists(st.sampled_from(RULES), max_size=4)


@settings(max_examples=40)
@given(GIT_RULES, GIT_RULES)
def test_ignored_files_match_those_of_git(top: list[str], below: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder).resolve()
        for name in ("a.txt", "b.txt", "m.py", "sub/a.txt", "sub/b.txt", "sub/m.py"):
            (project / "pkg" / name).parent.mkdir(parents=True, exist_ok=True)
            (project / "pkg" / name).touch()
        (project / ".gitignore").write_text("\n".join(top))
        (project / "pkg" / "sub" / ".gitignore").write_text("\n".join(below))
        found = sorted(path for path in (project / "pkg").rglob("*.[tp]*"))
        files = [path.relative_to(project).as_posix() for path in found]
        alone = GitIgnore(project, ["pkg"])  # not a repository: reads the files
        subprocess.run(["git", "init", "--quiet", str(project)], check=True)
        listed = subprocess.run(
            ["git", "ls-files", "--others", "--exclude-standard"],
            cwd=project,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        kept = [path for path in files if path in listed]
        # Without git, more files may be left out, but an ignored file is never carried.
        assert {path for path in files if not alone.ignores(path)} <= set(kept)
        with_git = GitIgnore(project, ["pkg"])
        assert [path for path in files if not with_git.ignores(path)] == kept


def test_a_git_timeout_is_reported(make_project: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project({"pkg/token.txt": "", ".gitignore": "token.txt\n"})
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    assert carried(project) == set()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert carried(project) == set()
    (note,) = bundle_of(project).notes
    assert "git does not answer" in note


def test_the_executable_bit_is_carried(make_project: Make) -> None:
    project = make_project({"pkg/tool.sh": "#!/bin/sh\n"})
    before = bundle_of(project).digest
    (project / "pkg" / "tool.sh").chmod(0o755)
    bundle = bundle_of(project)
    assert [file.path for file in bundle.files if file.executable] == ["pkg/tool.sh"]
    assert bundle.digest != before


def test_a_named_pipe_in_the_package_is_rejected(make_project: Make) -> None:
    project = make_project({})
    os.mkfifo(project / "pkg" / "pipe")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle_of(project)


@pytest.mark.parametrize(
    "line",
    [
        "from importlib import import_module as im\nim(name)\n",
        "exec('import pkg.b')\n",
        "import subprocess\nsubprocess.run(['python', '-m', 'pkg.b'])\n",
        "import pkgutil\npkgutil.resolve_name(name)\n",
    ],
)
def test_only_reachable_warns_about_dynamic_imports(make_project: Make, line: str) -> None:
    project = make_project({"pkg/main.py": f"def run(): ...\n{line}", "pkg/b.py": ""})
    (note,) = bundle_of(project, only_reachable=True).notes
    assert "imports a module whose name only the run knows" in note


def test_a_star_import_reaches_the_names_in_all(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/main.py": "from pkg.sub import *\ndef run(): ...\n",
            "pkg/sub/__init__.py": '__all__ = ["a"]\n',
            "pkg/sub/a.py": "",
            "pkg/sub/b.py": "",
        }
    )
    assert carried(project, only_reachable=True) == {"pkg/sub/__init__.py", "pkg/sub/a.py"}


@pytest.mark.parametrize(
    "source",
    [
        "E = (ImportError,)\ntry:\n    from . import gone\nexcept E:\n    pass\n",
        "import contextlib as c\nwith a, c.suppress(ImportError):\n    from . import gone\n",
        "from typing import TYPE_CHECKING as TC\nif TC and True:\n    from .gone import x\n",
        "if False:\n    from .gone import x\n",
        "import os\nif os.path.exists('x'):\n    from .gone import x\n",
        "from .__init__ import __doc__\n",
        "import pkg\npkg.loaded = 1\ndef f():\n    from pkg import loaded\n",
        "try:\n    from ... import x\nexcept ImportError:\n    pass\n",
    ],
)
def test_a_guarded_import_may_be_missing(make_project: Make, source: str) -> None:
    bundle_of(make_project({"pkg/use.py": source}))


def test_modules_that_the_user_excludes_may_be_imported(make_project: Make) -> None:
    source = "def fast():\n    from . import _fast\n    from .old.more import x\n"
    project = make_project(
        {"pkg/a.py": source, "pkg/_fast.cpython-311.so": "", "pkg/old/more.py": ""}
    )
    assert carried(project, exclude=("*.so", "pkg/old/")) == {"pkg/a.py"}


def test_a_compiled_extension_can_be_excluded_by_name(make_project: Make) -> None:
    project = make_project({"pkg/_fast.so": b"\x7fELF"})
    with pytest.raises(BundleError, match=r"pkg/_fast\.so is a compiled extension"):
        bundle_of(project)
    assert carried(project, exclude=("*.so",)) == set()


NAMES = st.sampled_from(["a.py", "b.py", "sub/a.py", "sub/__init__.py", "data.bin", "x y.txt"])
CONTENTS = st.sampled_from([b"", b"x = 1\n", b"\n", b"# \xc3\xa9\n"])
TREES = st.dictionaries(NAMES, CONTENTS, max_size=5)


@given(TREES, TREES)
def test_the_digest_changes_only_with_the_content(
    one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    digests = []
    for tree in (one, other):
        files = tuple(SourceFile(name, content, None) for name, content in tree.items())
        digests.append(Bundle({}, "", files, {}, Provenance()).digest)
    assert (digests[0] == digests[1]) == (one == other)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import torch\n",
        "if 1: import torch\n",
        "if 1:\\\n import torch\n",
        "class A:\n\tfrom torch import x\n",
        "if 1:\r    import torch\r",
        "x = 1; import torch\n",
        "match 1:\n    case 1:\n        import torch\n",
        "for i in []:\n    pass\nelse:\n    import torch\n",
        "try:\n    pass\nfinally:\n    import torch\n",
        "async def f():\n    async with a:\n        import torch\n",
        "if 1:\n\x0c    import torch\n",
    ],
)
def test_an_import_is_found_in_every_statement(make_project: Make, source: str) -> None:
    bundle = bundle_of(make_project({"pkg/a.py": source.encode()}))
    assert list(bundle.third_party | bundle.optional) == ["torch"]


OPTIONAL_X = "try:\n    from pkg.generated.x import X\nexcept ImportError:\n    X = None\n"


@pytest.mark.parametrize(
    ("ignored", "files"),
    [
        ("/pkg/generated/", {"pkg/generated/x.py": "X = 1\n"}),
        ("generated", {"pkg/generated/__init__.py": "", "pkg/generated/x.py": "X = 1\n"}),
    ],
)
def test_an_import_from_an_ignored_folder_is_rejected(
    make_project: Make, ignored: str, files: dict[str, str]
) -> None:
    project = make_project({**files, ".gitignore": ignored, "pkg/a.py": OPTIONAL_X})
    with pytest.raises(BundleError, match=r"pkg/a\.py:2: .* is left out \(named in \.gitignore\)"):
        bundle_of(project)
    assert "pkg/generated/x.py" in carried(project, include=("pkg/generated/",))
    assert "pkg/a.py" in carried(project, exclude=("pkg/generated/",))


def test_a_compiled_extension_is_rejected_even_if_git_ignores_it(make_project: Make) -> None:
    project = make_project({"pkg/_fast.cpython-311.so": "", ".gitignore": "*.so\n"})
    with pytest.raises(BundleError, match="is a compiled extension"):
        bundle_of(project)


def test_a_handler_that_raises_does_not_make_an_import_optional(make_project: Make) -> None:
    source = (
        "try:\n    import torch\nexcept ImportError as fault:\n    raise OSError('no') from fault\n"
    )
    bundle = bundle_of(make_project({"pkg/a.py": source}))
    assert (list(bundle.third_party), list(bundle.optional)) == (["torch"], [])


@pytest.mark.parametrize("kind", ["folder", "file", "package", "named file", "deep folder"])
def test_a_link_to_files_of_this_machine_is_refused(
    make_project: Make, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data.txt").touch()
    project = make_project({"pkg/sub/a.txt": ""}, keys='files = ["x.txt"]' * (kind == "named file"))
    link, target = {
        "folder": ("pkg/data", "elsewhere"),
        "file": ("pkg/data.txt", "elsewhere/data.txt"),
        "package": ("pkg", "elsewhere/pkg"),
        "named file": ("x.txt", "elsewhere/data.txt"),
        "deep folder": ("pkg/sub/data", "elsewhere"),
    }[kind]
    if kind == "package":
        (project / "pkg").rename(tmp_path / "elsewhere" / "pkg")
    (project / link).symlink_to(tmp_path / target)
    with pytest.raises(BundleError, match=f"{link} is a link to .*/{target}, which is not"):
        bundle_of(project)
    path = project / "pyproject.toml"
    path.write_text(
        path.read_text().replace("[tool.kernelkit]", f"[tool.kernelkit]\nexclude = '{link}'")
    )
    if kind not in ("package", "named file"):
        assert "pkg/sub/a.txt" in paths(bundle_of(project))


def test_a_link_to_another_part_of_the_repository_is_reported(
    make_project: Make, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    for name in ("data.txt", "untracked.txt"):
        (tmp_path / "shared" / name).touch()
    project = make_project({})
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "shared/data.txt", "project"], check=True)
    (project / "pkg" / "data.txt").symlink_to(tmp_path / "shared" / "data.txt")
    bundle = bundle_of(project)
    assert "pkg/data.txt" in paths(bundle)
    assert "pkg/data.txt: a link leads out of the project" in bundle.notes
    (project / "pkg" / "more.txt").symlink_to(tmp_path / "shared" / "untracked.txt")
    with pytest.raises(BundleError, match="more.txt is a link".replace(".", r"\.")):
        bundle_of(project)


def test_links_next_to_scripts_are_left_out(make_project: Make, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "helper.py").touch()
    project = make_project({"train.py": "print()\n"}, entry="train.py")
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('package = "pkg"', 'package = "."'))
    (project / "data").symlink_to(tmp_path / "elsewhere")
    (project / "helper.py").symlink_to(tmp_path / "elsewhere" / "helper.py")
    left = bundle_of(project).left_out
    assert left["data/"] == left["helper.py"] == "a link out of the project"
    (project / "train.py").write_text("import helper\n")
    with pytest.raises(BundleError, match="next to the package and is not carried"):
        bundle_of(project)


PIPES = (
    *(".gitignore", "pkg/.gitignore", "pyproject.toml", "needs.txt", "cells/00-title.md.j2"),
    *("image.json", "pkg/a.py", "pkg/data.txt", "pkg/_fast.abi3.so", "pkg/key.pem", "setup.cfg"),
    *("VERSION", ".git/info/exclude", "extra.txt"),
)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", PIPES)
def test_nothing_waits_for_a_pipe(make_project: Make, name: str) -> None:
    keys = {
        "needs.txt": 'pip = "needs.txt"',
        "cells/00-title.md.j2": 'templates = "cells"',
        "image.json": 'image = "image.json"',
        "extra.txt": 'files = ["extra.txt"]',
    }
    lines = '[project]\nname = "a"\ndynamic = ["version"]\n[tool.setuptools.dynamic]\n'
    lines += 'version = {file = "VERSION"}\n'
    project = make_project({}, keys=keys.get(name, ""), extra=lines if name == "VERSION" else "")
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    path = project / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with contextlib.suppress(KernelkitError):
        plan_init(project)
        workflow.render_kernel(load_config(project, environment={}))
    if ".git" in name:
        with pytest.raises(KernelkitError, match=f"{name} is not a regular file"):
            bundle_of(project)
