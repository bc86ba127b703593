"""The notebook in other tools: two generations of IPython, papermill, nbconvert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from kernelkit import workflow
from kernelkit.config import load_config
from tests.notebook.test_render import AWKWARD

UV = Path(sys.executable).parent / "uv"
SAMPLES = Path(__file__).parent.parent / "samples"

RUN_UNTIL_CHECKED = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"]), store_history=True).raise_error()
    if "check" in cell["metadata"]["tags"]:
        break
"""


@pytest.mark.parametrize("version", ["8.12.3", "9.0.2", "9.8.0"])
@pytest.mark.slow
def test_every_ipython_version_writes_the_same_bytes(
    make_project: Callable[..., Path], tmp_path: Path, version: str
) -> None:
    """IPython 9.8 and later empties whitespace-only lines in `%%writefile`."""
    project = make_project({f"pkg/{name}": content for name, content in AWKWARD.items()})
    workflow.render_to(load_config(project, environment={}), tmp_path / "kernel")
    folder = tmp_path / "environment"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "IPYTHONDIR": str(tmp_path / "home")}
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    install = [UV, "pip", "install", "--quiet", "--python", python, f"ipython=={version}"]
    subprocess.run(install, check=True)
    done = subprocess.run(
        [python, "-c", RUN_UNTIL_CHECKED, tmp_path / "kernel" / "notebook.ipynb"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each with the sha256 of the package" in done.stdout
    (written,) = tmp_path.glob("kernelkit-*")
    for name in AWKWARD:
        assert (written / "pkg" / name).read_bytes() == (project / "pkg" / name).read_bytes(), name


@pytest.mark.parametrize(
    "command",
    [
        ["papermill", "-p", "epochs", "1", "notebook.ipynb", "out.ipynb"],
        pytest.param(
            [
                "nbconvert",
                "--to",
                "notebook",
                "--execute",
                "--output",
                "out.ipynb",
                "notebook.ipynb",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["papermill", "nbconvert"],
)
def test_other_tools_run_the_notebook_unchanged(
    plain: Path, tmp_path: Path, command: list[str]
) -> None:
    working = tmp_path / "working"
    workflow.render_to(load_config(plain, environment={}), working)
    program, *arguments = command
    inputs = {"KAGGLE_INPUT_DIR": str(SAMPLES / "inputs"), "TMPDIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=working,
        env={**os.environ, **inputs, "KAGGLE_WORKING_DIR": str(working)},
        check=True,
        capture_output=True,
    )
    manifest = json.loads((working / "run-manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["parameters"]["epochs"] == (1 if program == "papermill" else 2)
    executed = nbformat.read(working / "out.ipynb", as_version=4)
    shown = [o for cell in executed.cells for o in cell.get("outputs", [])]
    assert any("letters" in str(output.get("data")) for output in shown)
