"""A package in a private dataset, from the push to the run, on the local Kaggle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local_kaggle import LocalKaggle

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
C_SOURCE = """
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
static PyObject *add(PyObject *self, PyObject *args) {
    long a, b;
    return PyArg_ParseTuple(args, "ll", &a, &b) ? PyLong_FromLong(a + b) : NULL;
}
static PyMethodDef methods[] = {{"add", add, METH_VARARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods};
PyMODINIT_FUNC PyInit__fast(void) { return PyModule_Create(&module); }
"""
MAIN = """
from pathlib import Path
from pkg._fast import add

def run(output_dir):
    table = Path(__file__).with_name("table.bin").read_bytes()
    Path(output_dir, "out.txt").write_text(str(add(len(table), 7)))
"""


@pytest.fixture
def project(make_project: Callable[..., Path], tmp_path: Path) -> Path:
    """A package of 5 MB with a compiled extension."""
    include = Path(sysconfig.get_path("include"))
    if not shutil.which("gcc") or not (include / "Python.h").is_file():
        pytest.skip("needs gcc and Python's headers")
    project = make_project(
        {"pkg/main.py": MAIN, "pkg/table.bin": bytes(range(250)) * 20_000},
        keys='layout = "dataset"',
        extra='[tool.kernelkit.parameters]\noutput_dir = "kaggle://working"',
    )
    (tmp_path / "fast.c").write_text(C_SOURCE)
    command = ["gcc", "-shared", "-fPIC", "-I", include, tmp_path / "fast.c", "-o"]
    subprocess.run([*command, project / "pkg/_fast.abi3.so"], check=True)
    return project


@pytest.mark.slow
def test_a_package_in_a_dataset_runs_and_an_altered_one_does_not(
    project: Path, emulator: LocalKaggle, cli: Cli
) -> None:
    live = emulator.as_account(f"live-{emulator.account}")
    ended = cli("run", cwd=project, env=live.environment)
    assert "verified:" in ended.stdout
    assert (project / "runs/some-kernel/v1/out.txt").read_text() == "5000007"
    assert cli("run", cwd=project, env=live.environment).stdout.count("nothing is pushed") == 1
    assert live.state
    pack = live.state / "_datasets" / live.account / "some-kernel-code/v1/sources.pack"
    content = pack.read_bytes()
    pack.write_bytes(content.replace(b"add(len(table), 7)", b"add(len(table), 8)"))
    failed = cli("run", "--again", cwd=project, env=live.environment, expect=6)
    assert "pkg/main.py: has different content" in failed.stderr
    created = [record for record in live.journal() if record["method"] == "CreateDatasetVersion"]
    assert not created


def test_a_changed_package_is_published_before_it_is_pushed(
    make_project: Callable[..., Path], emulator: LocalKaggle, cli: Cli
) -> None:
    """And an unchanged one is not, whatever else of the kernel has changed."""
    project = make_project({}, keys='layout = "dataset"')
    for setting, versions in (("title=Some kernel", 1), ('keywords=["a"]', 1)):
        cli("push", "--set", f"kernel.{setting}", cwd=project, env=emulator.environment)
        assert emulator.state
        home = emulator.state / "_datasets" / emulator.account / "some-kernel-code"
        assert len(list(home.glob("v*"))) == versions
    (project / "pkg/main.py").write_text("def run(**parameters):\n    print('new')\n")
    cli("push", cwd=project, env=emulator.environment)
    assert len(list(home.glob("v*"))) == 2
    record = json.loads((project / "runs/some-kernel/v3/push.json").read_text())
    assert record["code_dataset"] == f"{emulator.account}/some-kernel-code/2"
    assert f"code_dataset: {record['code_dataset']}" in cli("runs", "show", cwd=project).stdout
