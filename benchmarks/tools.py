"""kernelkit and similar tools: how each is called, and how its result is run.

Each tool is used as its README says. Its result runs in an empty folder, with a new interpreter or
kernel that finds no other copy of the package. The package writes its answer to `result.json`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import kernelkit
from benchmarks.measure import last_line
from benchmarks.packages import RESULT

RUN_SECONDS = 600
REPO2NB_FOLDER = "/kaggle/working/"  # where its notebook writes
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Outcome:
    """The outcome of running a tool's result."""

    result: Any = None
    """The package's answer; None if it failed."""

    error: str = ""
    """The reason for the failure, in one line."""


@dataclass(frozen=True)
class Project:
    """A folder with a project file, a package, and `run.py` that starts it."""

    folder: Path
    hidden_modules: tuple[str, ...] = ()
    """Modules that no import statement names, for a tool that accepts a list of them."""

    data_suffixes: tuple[str, ...] = ()
    """Suffixes of package data, for a tool that needs a list of them."""


class Package:
    """The package itself, for comparison."""

    name = "the package itself"

    def run(self, project: Project) -> Outcome:
        """Start it by its own script."""
        with _empty_folder() as folder:
            return _run_script(project.folder / "run.py", folder)


class Kernelkit:
    """This project, with one of its layouts ("" for the default)."""

    suffix = ".ipynb"

    def __init__(self, layout: str = "") -> None:
        self.layout = layout
        self.name = f"kernelkit, {layout}" if layout else "kernelkit"
        self.version = kernelkit.__version__

    def command(self, project: Project, out: Path) -> list[str]:
        """The command that makes the folder `out`."""
        options = ["--project", str(project.folder), "--out", str(out)]
        return [sys.executable, "-m", "kernelkit", "render", *options]

    def artefact(self, out: Path) -> Path:
        """The file to run."""
        return out / "notebook.ipynb"

    def run(self, out: Path) -> Outcome:
        """Run the result unchanged."""
        with _empty_folder() as folder:
            return run_notebook(nbformat.read(self.artefact(out), 4), folder)


class Stickytape:
    """One script that contains the modules that it imports."""

    name = "stickytape"
    layout = ""

    def __init__(self, python: Path, version: str) -> None:
        self._program = python.parent / "stickytape"
        self.version = version

    def command(self, project: Project, out: Path) -> list[str]:
        """The command that makes the file `out`."""
        folder = str(project.folder)
        options = ["--add-python-path", folder, "--output-file", str(out)]
        for module in project.hidden_modules:
            options += ["--add-python-module", module]
        return [str(self._program), str(project.folder / "run.py"), *options]

    def artefact(self, out: Path) -> Path:
        """The file to run."""
        return out

    def run(self, out: Path) -> Outcome:
        """Run the result unchanged."""
        with _empty_folder() as folder:
            return _run_script(out, folder)


class Repo2nb:
    """A notebook with one cell per file; users have to add a cell that starts the code."""

    name = "repo2nb"
    layout = ""

    def __init__(self, python: Path, version: str) -> None:
        self._python = python
        self.version = version

    def command(self, project: Project, out: Path) -> list[str]:
        """The command that makes the file `out`."""
        options = ["--output", str(out)]
        if project.data_suffixes:
            options += ["--include", " ".join(project.data_suffixes)]
        return [str(self._python), "-m", "repo2nb", str(project.folder), *options]

    def artefact(self, out: Path) -> Path:
        """The file to run."""
        return out

    def run(self, out: Path) -> Outcome:
        """Run it, with an added last cell that starts the package."""
        with _empty_folder() as folder:
            notebook = self._notebook(out, folder)
            return run_notebook(notebook, folder)

    def run_by_hand(self, out: Path) -> Outcome:
        """The same, with folders created first and failing cells skipped."""
        with _empty_folder() as folder:
            notebook = self._notebook(out, folder)
            for cell in notebook.cells:
                path = cell.metadata.get("repo2nb", {}).get("path")
                if path:
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
            return run_notebook(notebook, folder, go_on=True)

    def _notebook(self, out: Path, folder: Path) -> nbformat.NotebookNode:
        """With `folder` in the place of Kaggle's, and the cell that starts the package."""
        notebook: nbformat.NotebookNode = nbformat.read(out, 4)
        for cell in notebook.cells:
            head = f"%%writefile {REPO2NB_FOLDER}"
            if cell.source.startswith(head):
                cell.source = f"%%writefile {folder}/{cell.source.removeprefix(head)}"
        notebook.cells.append(nbformat.v4.new_code_cell("!python run.py"))
        return notebook


Tool = Kernelkit | Stickytape | Repo2nb


def peers(python: Path) -> list[Tool]:
    """The other tools that are installed for this interpreter."""
    found: list[Tool] = []
    for name, tool in (("stickytape", Stickytape), ("repo2nb", Repo2nb)):
        code = f"from importlib.metadata import version; print(version({name!r}))"
        try:
            asked = [str(python), "-c", code]
            done = subprocess.run(asked, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        found.append(tool(python, done.stdout.strip()))
    return found


def run_notebook(notebook: nbformat.NotebookNode, folder: Path, *, go_on: bool = False) -> Outcome:
    """Run a notebook in `folder` with a new kernel; `go_on` skips cells that fail."""
    # No kernel folders: "python3" is the interpreter that runs this, whatever is installed.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=RUN_SECONDS,
        allow_errors=go_on,
        resources={"metadata": {"path": str(folder)}},
    )
    client.owns_km = True  # so that it ends the kernel
    with tempfile.TemporaryDirectory() as outside:
        environment = {**_environment(Path(outside)), "KAGGLE_WORKING_DIR": str(folder)}
        try:
            client.execute(env=environment, stderr=subprocess.DEVNULL)
        except CellExecutionError:
            return Outcome(error=_fault(notebook, folder))
    return _outcome(folder) or Outcome(error=_fault(notebook, folder) or f"it leaves no {RESULT}")


def _fault(notebook: nbformat.NotebookNode, folder: Path) -> str:
    """The last line of the last failing cell, with Kaggle's folder in place of the local one."""
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", []):
            words = ""
            if output.output_type == "error":
                words = f"{output.ename}: {output.evalue}"
            elif output.get("name") == "stderr":
                words = last_line(output.text)
            if words:
                words = " ".join(_ANSI.sub("", words).split())
                return words.replace(f"{folder}/", REPO2NB_FOLDER)
    return ""


def _run_script(script: Path, folder: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as outside:
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env=_environment(Path(outside)),
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        return Outcome(error=last_line(done.stderr))
    return _outcome(folder) or Outcome(error=f"it leaves no {RESULT}")


def _outcome(folder: Path) -> Outcome | None:
    path = folder / RESULT
    return Outcome(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _environment(outside: Path) -> dict[str, str]:
    """The environment of a run that finds only the interpreter; home and scratch are `outside`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    named = {"PATH": path, "HOME": str(outside), "TMPDIR": str(outside)}
    return {**named, "LANG": os.environ.get("LANG", "C.UTF-8")}


@contextmanager
def _empty_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()
