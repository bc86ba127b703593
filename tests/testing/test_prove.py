"""`prove`: what it accepts, what it rejects, and its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config
from kernelkit.errors import ConfigError, DeadlineError, TemplateError, VerificationError

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "samples"

PROJECT_FILE = """
[tool.kernelkit]
package = "pkg"
entry = "pkg:run"
outputs = ["out.txt"]
[tool.kernelkit.kernel]
id = "some-kernel"
title = "Some kernel"
machine_shape = "NvidiaTeslaT4"
enable_gpu = true
"""
PACKAGE = "def run():\n    return 1\n"
TEST = "import pkg\n\n\ndef test_it():\n    assert pkg.run() == 1\n"

WAIT_SECONDS = 300  # several Pythons start one after the other, and the machine may be busy

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make({"tests/test_a.py": "…"})` writes a project around the package `pkg`."""

    def project(files: dict[str, str]) -> Path:
        folder = tmp_path / "project"
        common = {"pyproject.toml": PROJECT_FILE, "pkg/__init__.py": PACKAGE}
        for name, text in {**common, **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder

    return project


def prove(project: Path, *arguments: str, **options) -> workflow.Proof:
    return workflow.prove(load_config(project), arguments, **options)


@pytest.mark.slow
def test_a_file_next_to_the_package_is_missing_in_the_notebook(cli) -> None:
    done = cli("prove", "--project", SAMPLES / "reads_outside", "--json", expect=8)
    report = json.loads(done.stdout)
    assert [found["test"] for found in report["differences"]] == [
        "tests/test_nosy.py::test_its_settings"
    ]
    (difference,) = report["differences"]
    assert difference["package"] == "passed"
    assert difference["notebook"] == "failed (FileNotFoundError)"
    assert "settings.json" in difference["reason"]
    assert "tests/test_nosy.py::test_its_settings: passed with the package" in report["error"]
    assert report["next"]


@pytest.mark.slow
def test_tests_that_never_import_the_package_prove_nothing() -> None:
    with pytest.raises(VerificationError, match="never import the package"):
        prove(SAMPLES / "never_imported")


@pytest.mark.slow
def test_a_failure_in_both_runs_is_not_a_difference(cli) -> None:
    arguments = ["-k", "not nothing", "--maxfail=9"]
    done = cli("prove", *arguments, "--project", SAMPLES / "failing")
    assert " ".join(done.stdout.split()).endswith(
        "proved: 6 tests, the same results from the package and from the notebook "
        "(1 passed, 1 failed in both, 2 broken in both, 1 skipped, 1 xfailed)"
    )
    report = json.loads(cli("prove", *arguments, "--project", SAMPLES / "failing", "--json").stdout)
    assert report["arguments"] == arguments  # pytest's, not ours
    assert report["outcomes"]["tests/test_humble.py::test_fails"] == "failed (AssertionError)"
    assert report["outcomes"]["tests/test_unreadable.py"] == "error (AttributeError)"


@pytest.mark.slow
def test_each_difference_is_reported(make: Make) -> None:
    """A different exception is a different result; an unimportable file counts as one."""
    paths = "import sys\nfrom pathlib import Path\n\nHERE = Path(__file__).parents[1]\n"
    differing = (
        "import pkg\n\n\ndef test_fails_otherwise():\n"
        "    assert (pkg.HERE / 'settings').read_text() == 'b'\n\n\n"
        "def test_writes():\n    open('pkg/new.py', 'w').close()\n"
    )
    project = make(
        {
            "pkg/__init__.py": f"{paths}sys.path.append(str(HERE / 'extras'))\n{PACKAGE}",
            "pkg/late.py": "import importlib\n\nimportlib.import_module('helper_of_mine')\n",
            "extras/helper_of_mine.py": "",
            "settings": "a",
            "tests/test_a.py": TEST,
            "tests/test_b.py": TEST.replace("import pkg", "import pkg, pkg.late"),
            "tests/test_c.py": differing,
        }
    )
    before = sorted(project.rglob("*"))
    with pytest.raises(VerificationError, match="4 of 5 tests") as raised:
        prove(project)
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        "tests/test_b.py: collected with the package, error with the notebook",
        "ModuleNotFoundError: No module named 'helper_of_mine'",
        "tests/test_c.py::test_fails_otherwise: failed (AssertionError) with the package, "
        "failed (FileNotFoundError) with the notebook",
        "FileNotFoundError: [Errno 2] No such file or directory: '…/settings'",
        "tests/test_c.py::test_writes: passed with the package, "
        "failed (FileNotFoundError) with the notebook",
        "FileNotFoundError: [Errno 2] No such file or directory: 'pkg/new.py'",
    ]
    assert sorted(project.rglob("*")) == before, "the project itself is left alone"


@pytest.mark.slow
def test_tests_inside_the_package_are_run(make: Make) -> None:
    """Also by the workers of xdist."""
    inside = (
        "from .. import run\nfrom . import place\n\n\n"
        "def test_it(one, two, request):\n    assert run() == one == two - 1\n"
        "    assert request.config.getoption('--extra') == 'given'\n"
        "    assert place.read() == 'data'\n"
    )
    project = make(
        {
            "conftest.py": "import pytest\n\n\n@pytest.fixture\ndef one():\n    return 1\n",
            "pkg/tests/__init__.py": "",
            "pkg/tests/conftest.py": (
                "import pytest\n\n\ndef pytest_addoption(parser):\n"
                "    parser.addoption('--extra')\n\n\n@pytest.fixture\ndef two():\n    return 2\n"
            ),
            "pkg/tests/place.py": (
                "from pathlib import Path\n\n\ndef read():\n"
                "    return (Path(__file__).parent / 'data.txt').read_text()\n"
            ),
            "pkg/tests/data.txt": "data",
            "pkg/tests/test_inside.py": inside,
            "tests/test_a.py": TEST,
        }
    )
    arguments = ["pkg/tests/test_inside.py::test_it", "--extra=given", "tests", "-n", "1"]
    proof = prove(project, *arguments)
    assert proof.outcomes == {
        "pkg/tests/test_inside.py::test_it": "passed",
        "tests/test_a.py::test_it": "passed",
    }


@pytest.mark.slow
def test_tests_inside_the_package_see_what_is_above_it(make: Make) -> None:
    """Fixtures, hooks and options of each conftest.py, settings, plugins, and tests elsewhere."""
    conftest = (
        "import pytest\nfrom pathlib import Path\n\n\n"
        "def pytest_addoption(parser):\n    parser.addoption('--top', default='unset')\n\n\n"
        "def pytest_runtest_setup(item):\n    item.prepared = True\n\n\n"
        "@pytest.fixture(autouse=True)\ndef reset():\n"
        "    import pkg\n    pkg.PRECISION = 53\n\n\n"
        "@pytest.fixture\ndef samples():\n"
        "    return (Path(__file__).parent / 'samples' / 'a.txt').read_text()\n"
    )
    middle = "import pytest\n\n\n@pytest.fixture\ndef middle():\n    return 'middle'\n"
    inside = (
        "import pytest\nimport pkg\n\n\n"
        "def test_it(samples, middle, made, request):\n"
        "    assert pkg.PRECISION == 53\n"
        "    assert request.node.prepared\n"
        "    assert (samples, middle, made) == ('sample', 'middle', 'made')\n"
        "    assert request.config.getoption('--top') == 'given'\n"
        "    assert request.config.getini('xfail_strict') is True\n\n\n"
        "@pytest.mark.special\ndef test_marked():\n    pass\n"
    )
    project = make(
        {
            "pyproject.toml": PROJECT_FILE.replace('"pkg"', '"src/pkg"', 1),
            "pytest.ini": "[pytest]\naddopts = -p our_plugin --strict-markers --top=given\n"
            "markers = special\nxfail_strict = true\ntestpaths = src/pkg/tests tests\n"
            "pythonpath = tools\n",
            "tools/our_plugin.py": middle.replace("middle", "made"),
            "conftest.py": conftest,
            "samples/a.txt": "sample",
            "src/conftest.py": middle,
            "src/pkg/__init__.py": PACKAGE + "\n\nPRECISION = 15\n",
            "src/pkg/tests/test_inside.py": inside,
            "tests/test_a.py": TEST,
            "pkg/__init__.py": "raise AssertionError('this is not the package')\n",
        }
    )
    (project / "pkg" / "__init__.py").unlink()
    assert prove(project).outcomes == {
        "src/pkg/tests/test_inside.py::test_it": "passed",
        "src/pkg/tests/test_inside.py::test_marked": "passed",
        "tests/test_a.py::test_it": "passed",
    }


@pytest.mark.slow
def test_a_file_next_to_the_package_is_missing_for_tests_inside_it_too(make: Make) -> None:
    reads = "from pathlib import Path\n\nHERE = Path(__file__).parents[1]\n\n\n"
    reads += "def run():\n    return len(open(HERE / 'settings').read())\n"
    inside = "import pkg\n\n\ndef test_it():\n    assert pkg.run() == 1\n"
    project = make(
        {
            "conftest.py": "",
            "settings": "a",
            "pkg/__init__.py": reads,
            "pkg/tests/__init__.py": "",
            "pkg/tests/test_inside.py": inside,
        }
    )
    with pytest.raises(VerificationError, match="settings") as raised:
        prove(project)
    assert "files outside the package" in raised.value.next_step
    left_out = "pkg/tests/test_inside.py::test_it"
    (project / "conftest.py").unlink()
    (project / "pkg" / "tests" / "test_more.py").write_text(
        "import pkg\n\n\ndef test_it():\n    pass\n"
    )
    (project / "pkg" / "tests" / "test_broken.py").write_text("1 / 0")
    ignored = ["--ignore", "pkg/tests/test_broken.py"]
    proof = prove(project, f"--deselect={left_out}", *ignored, "pkg/tests")
    assert list(proof.outcomes) == ["pkg/tests/test_more.py::test_it"]


NAMES_THE_PACKAGE = {
    "absolute": "assert (Path(__file__).parents[1] / 'pkg' / '__init__.py').read_text()",
    "relative": "assert open('pkg/data.txt').read()",
    "listed": "assert list(Path('pkg').glob('*.py'))",
    "joined": "assert os.path.exists(os.path.join(os.getcwd(), 'pkg', 'data.txt'))",
    "program": "subprocess.run([sys.executable, 'pkg/__init__.py'], check=True)",
    "silent": "assert not subprocess.run([sys.executable, 'pkg/__init__.py']).returncode",
    "loaded": "importlib.util.spec_from_file_location('a', 'pkg/__init__.py').loader.get_code('a')",
    "changed": "os.chdir('pkg')",
    "found_there": "assert (ROOT / 'pkg' / 'data.txt').is_file()",
    "walked": "assert [names for _, _, names in os.walk(ROOT / 'pkg')]",
}


@pytest.mark.slow
def test_tests_that_name_the_package_by_its_path_get_that_advice(make: Make) -> None:
    tests = "".join(
        f"def test_{name}():\n    {line}\n\n\n" for name, line in NAMES_THE_PACKAGE.items()
    )
    head = "import importlib.util, os, subprocess, sys\nfrom pathlib import Path\nimport pkg\n\n"
    head += "ROOT = Path(__file__).parents[1]\n\n\n"
    files = {"pkg/data.txt": "data", "tests/test_paths.py": head + tests, "tests/test_a.py": TEST}
    project = make(files)
    with pytest.raises(VerificationError, match="10 of 11 tests") as raised:
        prove(project)
    advice = raised.value.next_step
    assert "name the package by its path" in advice
    assert "tests/test_paths.py:" in advice
    assert "and 9 more" in advice
    assert 'importlib.resources.files("pkg")' in advice
    assert "files outside the package" not in advice


@pytest.mark.slow
def test_tests_with_changing_names_get_that_advice(make: Make) -> None:
    changing = (
        "import pytest, tempfile, time, uuid\nimport pkg\n\n\n"
        "@pytest.mark.parametrize('x', [time.time_ns()])\ndef test_time(x):\n    pass\n\n\n"
        "@pytest.mark.parametrize('x', [str(uuid.uuid4())])\ndef test_id(x):\n    pass\n\n\n"
        "@pytest.mark.parametrize('x', [object()], ids=repr)\ndef test_address(x):\n    pass\n\n\n"
        "@pytest.mark.parametrize('x', [tempfile.mktemp()])\ndef test_temporary(x):\n    pass\n"
    )
    project = make({"tests/test_changing.py": changing, "tests/test_a.py": TEST})
    with pytest.raises(VerificationError, match="8 of 9 tests") as raised:
        prove(project)
    assert raised.value.next_step.startswith("The names of 8 tests change from run to run")
    assert "outside the package" not in raised.value.next_step
    assert "by its path" not in raised.value.next_step


@pytest.mark.slow
def test_a_conftest_that_reads_the_package_by_its_path_is_named(make: Make) -> None:
    """It stops pytest before the first test."""
    reads = "from pathlib import Path\n\nFILE = Path(__file__).parent / 'pkg' / '__init__.py'\n"
    project = make({"conftest.py": f"{reads}FILE.read_text()\n", "tests/test_a.py": TEST})
    with pytest.raises(VerificationError, match="stops early") as raised:
        prove(project)
    assert raised.value.next_step.startswith("conftest.py:3 names the package by its path")
    assert "pkg/__init__.py is carried" in raised.value.next_step


@pytest.mark.slow
def test_pytest_can_find_the_package_automatically(make: Make) -> None:
    """Without a path, pytest also searches the package; nothing is installed."""
    documented = 'def run():\n    """Gives one.\n\n    >>> run()\n    1\n    """\n    return 1\n'
    doctests = '[tool.pytest.ini_options]\naddopts = ["--doctest-modules"]\n'
    installs = PROJECT_FILE.replace("entry =", 'pip = ["no-such-thing-as-this==1"]\nentry =')
    project = make(
        {
            "pkg/__init__.py": documented,
            "tests/test_a.py": TEST,
            "pyproject.toml": installs + doctests,
        },
    )
    assert prove(project).outcomes == {
        "pkg/__init__.py::pkg.run": "passed",
        "tests/test_a.py::test_it": "passed",
    }


def test_another_copy_of_the_package_is_rejected(make: Make, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "pkg"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text(PACKAGE)
    conftest = f"import sys\n\nsys.path.insert(0, {str(elsewhere.parent)!r})\n"
    project = make({"conftest.py": conftest, "tests/test_a.py": TEST})
    with pytest.raises(VerificationError, match=r"another copy: pkg came from .*elsewhere"):
        prove(project)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "pytest finds no tests"),
        ({"tests/test_a.py": "def test_(:\n"}, "no test passes with the package itself"),
        ({"tests/test_a.py": "def test_it():\n    assert 0\n"}, "AssertionError"),
        ({"conftest.py": "import nothing_like_it\n", "tests/test_a.py": TEST}, "nothing_like_it"),
        ({"tests/test_a.py": TEST + "    import os\n    os._exit(3)\n"}, "stops early"),
    ],
    ids=["none", "syntax", "all-fail", "conftest", "exit"],
)
@pytest.mark.slow
def test_projects_without_usable_tests_are_reported(
    make: Make, files: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        prove(make(files))


@pytest.mark.slow
def test_a_hanging_test_is_named(make: Make) -> None:
    hanging = TEST + "\n\ndef test_waits():\n    import time\n    time.sleep(99)\n"
    with pytest.raises(
        DeadlineError, match=r"the last one that started was tests/test_a\.py::test_waits"
    ):
        prove(make({"tests/test_a.py": hanging}), deadline=10)


def test_an_interpreter_without_pytest_is_reported(make: Make, cli, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    project = make({"tests/test_a.py": TEST})
    done = cli("prove", "--project", project, "--python", bare / "bin" / "python", expect=10)
    assert f"{bare}/bin/python has no pytest" in done.stderr
    assert (
        "no such program"
        in cli("prove", "--python", "nowhere", "--project", project, expect=2).stderr
    )


def test_a_notebook_without_its_check_is_rejected(make: Make) -> None:
    project = make(
        {
            "tests/test_a.py": TEST,
            "mine/50-check.py.j2": "",
            "pyproject.toml": PROJECT_FILE.replace("entry =", 'templates = "mine"\nentry ='),
        }
    )
    with pytest.raises(TemplateError, match="no cell with the tag"):
        prove(project)


@pytest.mark.slow
def test_a_cell_that_changes_a_source_is_found(make: Make) -> None:
    project = make(
        {
            "tests/test_a.py": TEST,
            "mine/45-meddle.py.j2": "(SRC / 'pkg' / '__init__.py').write_text('')\n",
            "pyproject.toml": PROJECT_FILE.replace("entry =", 'templates = "mine"\nentry ='),
        }
    )
    with pytest.raises(VerificationError, match=r"pkg/__init__\.py: has different content"):
        prove(project)


def test_an_interrupt_ends_the_tests_too(make: Make, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    waiting = (
        "import os, time, pkg\n\n\ndef test_it():\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    time.sleep(999)\n"
    )
    project = make({"tests/test_a.py": waiting})
    command = [sys.executable, "-m", "kernelkit", "prove", "--project", str(project)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        wait_until(lambda: process.poll() is not None or (pid.exists() and pid.read_text() != ""))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == b"the tests were stopped and left nothing behind\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
