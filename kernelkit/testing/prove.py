"""Runs the project's own tests with the package and with the files that the notebook writes.

kernelkit makes two copies of the project in temporary folders. The first has the package in its
place. The second lacks the package; instead, the import path has the folder that the notebook
wrote: its cells up to the source check really run, in a fresh Jupyter kernel that knows nothing
about the project. The same pytest command runs in both copies, and every test must have the same
outcome. Files outside the package that it reads are missing in the second copy, as on Kaggle.

Tests inside the package run where the notebook wrote it. If a conftest.py above the package serves
them, that folder is copied next to the package's place, so that pytest finds the same files above
it. A file at a fixed distance from the package is still missing there.

Not covered: what the notebook's `pip` cell would install, the versions of Kaggle's image, its
hardware, and the metadata of an installed package (`importlib.metadata` finds what is installed for
`--python`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from kernelkit.bundle.bundle import RUNTIME_MODULE, Bundle
from kernelkit.bundle.files import TEST
from kernelkit.bundle.git import listed_files
from kernelkit.config import Config
from kernelkit.errors import (
    ConfigError,
    DeadlineError,
    LocalError,
    TemplateError,
    VerificationError,
)
from kernelkit.notebook.code_dataset import write_code
from kernelkit.notebook.manifest import Manifest
from kernelkit.notebook.render import Kernel
from kernelkit.storage import counted, sha256_of
from kernelkit.testing.remedies import DifferingTest, PackagePlaces, remedy, remedy_of_stop

DEADLINE_SECONDS = 600.0  # for the notebook, and for each of the two test runs
KERNEL_START_SECONDS = 300  # on a machine that is busy
ANSWER_SECONDS = 60  # for a Python to say what it has installed, on a cold disk
LAST_CELL = "check"  # the tag of the cell that compares the sources with the manifest
INSTALLING_CELL = "pip"  # it would change the environment of this machine
PLUGIN = "kernelkit_pytest_plugin"
NEXT_TO_PACKAGE = "kernelkit_written"
_LEAVING_OUT = ("--deselect", "--ignore", "--ignore-glob")
SHOWN = 20  # differences in a message; --json has all
TAIL_LINES = 15

LEFT_OUT_FOLDERS = frozenset({"__pycache__", "node_modules"})
OUTPUT_FOLDERS = frozenset({"build", "dist", "runs"})  # of the project, where git lists them

# pytest's own exit codes.
_TESTS_RAN = (0, 1, 2)  # 2 when a file could not be collected, too
_INTERRUPTED, _USAGE, _NO_TESTS = 2, 4, 5

_FACTS = (
    "import importlib.util, json, platform; print(json.dumps([platform.python_version()] + "
    "[importlib.util.find_spec(name) is not None for name in ('pytest', 'ipykernel')]))"
)


@dataclass(frozen=True)
class RecordedOutcome:
    """The outcome of one test."""

    outcome: str
    """passed, failed, error (outside the test itself), skipped, xfailed or xpassed."""

    error: str
    """The type of the exception; empty where there was none."""

    reason: str
    """One line."""

    report: str = ""
    """The whole report of a failure, with the paths of its run."""

    def __str__(self) -> str:
        failed = self.outcome in ("failed", "error") and self.error
        return f"{self.outcome} ({self.error})" if failed else self.outcome


@dataclass(frozen=True)
class Proof:
    """Every test had the same outcome with the package and with what the notebook wrote."""

    source_digest: str
    """SHA-256 over the path and content of every file, as in bundle.json."""

    arguments: tuple[str, ...]
    """The arguments for pytest."""

    outcomes: Mapping[str, str]
    """Test → its outcome, both times. A file that cannot be collected is listed by its name."""

    python: str
    """The interpreter that ran the tests."""

    notebook_python: str
    """The interpreter that ran the notebook."""

    seconds: Mapping[str, float]
    """Step → how long it took."""

    @property
    def numbers(self) -> dict[str, int]:
        """Outcome → how many tests."""
        return dict(Counter(outcome.partition(" ")[0] for outcome in self.outcomes.values()))

    @property
    def words(self) -> str:
        """Such as "120 passed, 2 skipped, 1 failed in both"."""
        return _words(self.numbers, failed="failed in both")


@dataclass(frozen=True)
class _Python:
    path: str
    version: str
    has_ipykernel: bool

    def __str__(self) -> str:
        return f"{self.path} ({self.version})"


def without_accelerator(config: Config) -> Config:
    """The same configuration without a GPU or TPU, so that the notebook runs here."""
    fields = {"enable_gpu": False, "enable_tpu": False, "machine_shape": ""}
    return config.model_copy(update={"kernel": config.kernel.model_copy(update=fields)})


def prove(
    kernel: Kernel,
    project: Path,
    arguments: Sequence[str] = (),
    *,
    python: str | None = None,
    deadline: float = DEADLINE_SECONDS,
    on_event: Callable[[str], None],
) -> Proof:
    """Run the tests of `project` with its package, and with what the notebook of `kernel` writes.

    `arguments` are pytest's. `python` runs the tests, and the notebook where it has ipykernel
    (default: the interpreter that runs this). `deadline` is in seconds, for each of three steps.

    Raises:
        VerificationError: a test has another outcome, the notebook does not write the package, or
            the tests imported another copy of it or none.
        ConfigError: there are no tests, or none passes with the package itself.
        TemplateError: the notebook has no cell that checks its sources.
        LocalError: pytest, nbclient or ipykernel is missing.
        DeadlineError: a step took too long.
    """
    with tempfile.TemporaryDirectory(prefix="kernelkit-", ignore_cleanup_errors=True) as name:
        here = Path(name).resolve()
        runner = _python_of_tests(python)
        notebook_runner = _python_of_notebook(runner)
        on_event(f"Python: {runner}" + _unless_same(notebook_runner, runner))
        layout = _Layout(project, kernel.bundle)
        command = _Command(runner.path, tuple(arguments), _install_plugin(here / "w"), deadline)
        watch = _Stopwatch()

        first = _stage_with_package(layout, here / "a")
        with watch("tests with the package"):
            package = _run_tests(command, first, "the package")
        _require_tests(package, runner)
        _require_own_copy(package, first, "the package")
        on_event(f"with the package: {_summary(package)}")

        with watch("notebook"):
            written = _run_notebook(kernel, notebook_runner, here / "n", deadline)
            _check_written(written, kernel.manifest)
        on_event(f"the notebook wrote {counted(len(kernel.manifest.files), 'file')}")

        second = _stage_with_notebook(layout, here / "b", written, package, command.arguments)
        with watch("tests with the notebook"):
            notebook = _run_tests(_moved(command, package, first, second), second, "the notebook")
        _require_ran(notebook, second)
        on_event(f"with what the notebook wrote: {_summary(notebook)}")
        _require_same(package, notebook, second)
        _require_own_copy(notebook, second, "the notebook")
        return Proof(
            source_digest=kernel.manifest.source_digest,
            arguments=tuple(arguments),
            outcomes={test: str(outcome) for test, outcome in sorted(package.tests.items())},
            python=str(runner),
            notebook_python=str(notebook_runner),
            seconds=watch.seconds,
        )


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - started, 3)


# The interpreters.


def _python_of_tests(wanted: str | None) -> _Python:
    path = shutil.which(wanted) if wanted else sys.executable
    if path is None:
        raise ConfigError(f"--python {wanted}: no such program", "Name a Python interpreter.")
    path = str(Path(path).absolute())  # not resolved: the link identifies a virtual environment
    try:
        done = subprocess.run(
            [path, "-c", _FACTS],
            capture_output=True,
            text=True,
            check=True,
            cwd=tempfile.gettempdir(),
            env=_environment(),
            timeout=ANSWER_SECONDS,
        )
        version, has_pytest, has_ipykernel = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ConfigError(
            f"{path} is not a Python interpreter", "Name an interpreter: --python PATH."
        ) from None
    if not has_pytest:
        raise LocalError(
            f"{path} has no pytest",
            f"Install it there: {path} -m pip install pytest; or name the Python that runs the "
            "project's tests: --python PATH.",
        )
    return _Python(path, version, has_ipykernel)


def _unless_same(notebook: _Python, tests: _Python) -> str:
    return "" if notebook == tests else f"; for the notebook {notebook}: the first has no ipykernel"


def _python_of_notebook(tests: _Python) -> _Python:
    """The Python of the tests, or this one where that has no ipykernel."""
    ours = _Python(sys.executable, platform.python_version(), find_spec("ipykernel") is not None)
    chosen = tests if tests.has_ipykernel else ours
    missing = [] if find_spec("nbclient") else ["nbclient"]
    missing += [] if chosen.has_ipykernel else ["ipykernel"]
    if missing:
        raise LocalError(
            f"a notebook cannot run here: {' and '.join(missing)} not installed",
            "Install what the local Kaggle needs: pip install '.[emulator]'",
        )
    return chosen


# The notebook.


def _run_notebook(kernel: Kernel, python: _Python, folder: Path, deadline: float) -> Path:
    """Run the notebook up to the source check; returns the folder that it wrote."""
    for name in ("cwd", "tmp", "jupyter/kernels/prove"):
        (folder / name).mkdir(parents=True)
    notebook = folder / "cwd" / "notebook.ipynb"
    notebook.write_text(_up_to_check(kernel.notebook), encoding="utf-8")
    specification = {
        "argv": [python.path, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "prove",
        "language": "python",
    }
    (folder / "jupyter/kernels/prove/kernel.json").write_text(json.dumps(specification))
    # In its own process, because nbclient installs signal handlers.
    command = [sys.executable, "-c", "from nbclient.cli import main; main()"]
    command += ["--inplace", "--allow-errors", f"--startup_timeout={KERNEL_START_SECONDS}"]
    command += ["--kernel_name=prove", str(notebook)]
    environment = _environment(folder / "tmp") | {
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),  # a user's profile may change what cells do
        "KAGGLE_WORKING_DIR": str(folder / "cwd"),
    }
    if slug := kernel.manifest.code_dataset:
        write_code(kernel.bundle, folder / "input" / slug)
        environment["KAGGLE_INPUT_DIR"] = str(folder / "input")
    ended = _run(command, notebook.parent, environment, folder / "log", deadline)
    if ended.code is None:
        raise DeadlineError(
            f"the notebook did not finish within {deadline:.0f} s", "Give it more time: --deadline."
        )
    if ended.code:
        raise LocalError(f"the notebook could not be run:\n{ended.tail}")
    _require_no_error(notebook.read_text(encoding="utf-8"))
    return next((folder / "tmp").rglob(f"{RUNTIME_MODULE}/__init__.py")).parent.parent


def _up_to_check(text: str) -> str:
    """A notebook without its `pip` cell and everything after the source check."""
    notebook = json.loads(text)
    checks = [
        position
        for position, cell in enumerate(notebook["cells"])
        if LAST_CELL in cell["metadata"].get("tags", [])
    ]
    if not checks:
        raise TemplateError(
            f'the notebook has no cell with the tag "{LAST_CELL}"',
            f"Keep kernelkit's template 50-{LAST_CELL}.py.j2: it checks what the cells wrote.",
        )
    kept = notebook["cells"][: checks[-1] + 1]
    cells = [cell for cell in kept if INSTALLING_CELL not in cell["metadata"].get("tags", [])]
    return json.dumps({**notebook, "cells": cells})


def _require_no_error(text: str) -> None:
    for cell in json.loads(text)["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                raise VerificationError(
                    f"the notebook's cell {cell['id']} fails: {output['ename']}: "
                    f"{output['evalue']}",
                    "It does not write its sources: look at that cell of the rendered notebook.",
                )


def _check_written(folder: Path, manifest: Manifest) -> None:
    """Read every file again, whatever the notebook itself reported."""
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or sha256_of(path) != file.sha256:
            raise VerificationError(
                f"{file.path} differs from the package",
                "That is a bug of kernelkit or of a template: please report it.",
            )


# The two copies of the project.


class _Layout:
    """Where the package's files are in the project, and where the notebook writes them."""

    def __init__(self, project: Path, bundle: Bundle) -> None:
        self.project = project
        self.carried = [PurePosixPath(file.path) for file in bundle.files]
        self.tests_inside = [PurePosixPath(p) for p, why in bundle.left_out.items() if why == TEST]
        """Tests inside the package's folder that are not carried."""

        self.import_folders = bundle.import_folders
        roots = sorted(bundle.roots.items())
        self.tops = {PurePosixPath(root, top): top for top, root in roots}
        """Folder or file in the project → its name where the notebook writes it."""

        listed = _project_files(project)
        carried = {self.in_project(path) for path in self.carried}
        present = {path for path in listed if (project / path).is_file()}
        self.inside = sorted(carried | {p for p in present if self.in_notebook(p) is not None})
        """The package's files in the project, whether carried or not."""

        self.outside = [path for path in listed if self.in_notebook(path) is None]

    @property
    def places(self) -> PackagePlaces:
        """Where the package is in the project, to explain tests that name it by its path."""
        carried = frozenset(map(self.in_project, self.carried))
        return PackagePlaces(self.project, tuple(self.tops), carried)

    def in_project(self, path: PurePosixPath) -> PurePosixPath:
        """`pkg/mod.py` → `src/pkg/mod.py`."""
        home = next(home for home, top in self.tops.items() if top == path.parts[0])
        return home.parent / path

    def in_notebook(self, path: PurePosixPath) -> PurePosixPath | None:
        """`src/pkg/mod.py` → `pkg/mod.py`; None for a path outside the package."""
        for home in self.tops:
            if path.is_relative_to(home):
                return path.relative_to(home.parent)
        return None

    def served_from_above(
        self, tests: Iterable[str], arguments: Sequence[str]
    ) -> PurePosixPath | None:
        """The folder around the packages that contain some of the tests.

        None if neither a conftest.py there or above, nor an option with a path, is about them.
        """
        files = {PurePosixPath(test.partition("::")[0]) for test in tests}
        homes = [home for home in self.tops if any(file.is_relative_to(home) for file in files)]
        if not homes:
            return None
        around = PurePosixPath(os.path.commonpath([home.parent for home in homes]) or ".")
        above = {folder / "conftest.py" for folder in (around, *around.parents)}
        named = any(self.in_notebook(path) for _, path, _ in _path_options(arguments))
        return around if named or above.intersection(self.outside) else None

    def is_own(self, module: str) -> bool:
        """Whether a module is carried, or belongs to a regular package that is carried."""
        parts = module.split(".")
        around = {".".join(parts[:depth]) for depth in range(1, len(parts))}
        return module in self._modules or bool(around & self._packages)

    @cached_property
    def _packages(self) -> set[str]:
        return {self._name(p.parent) for p in self.carried if p.name == "__init__.py"}

    @cached_property
    def _modules(self) -> set[str]:
        modules = (path.with_suffix("") for path in self.carried if path.suffix == ".py")
        return self._packages | {self._name(path) for path in modules}

    def _name(self, path: PurePosixPath) -> str:
        """The dotted name of a path without its suffix, from the innermost import folder."""
        around = [folder for folder in self.import_folders if path.is_relative_to(folder)]
        return ".".join(path.relative_to(max(around, key=len, default="")).parts)


@dataclass(frozen=True)
class _Stage:
    """A copy of the project in which the tests run."""

    folder: Path
    layout: _Layout
    imports: tuple[Path, ...]
    """The folders from which the package comes."""

    written: Path | None = None
    """Where the notebook wrote the package; None where it is in the project."""

    @property
    def nested(self) -> PurePosixPath | None:
        """The folder with the written package, where it is in the project."""
        if self.written is None or not self.written.is_relative_to(self.folder):
            return None
        return PurePosixPath(self.written.relative_to(self.folder).as_posix())

    @property
    def temp(self) -> Path:
        return self.folder.with_name("tmp")

    @property
    def records(self) -> Path:
        return self.folder.with_name("records")

    @property
    def home(self) -> Path:
        """Where the package's modules must come from."""
        return self.written or self.folder

    def in_project(self, path: Path) -> str:
        """The name of a file, the same in both stages."""
        if self.written is not None and path.is_relative_to(self.written):
            below = PurePosixPath(path.relative_to(self.written).as_posix())
            return str(self.layout.in_project(below))
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return str(path)

    def without_paths(self, text: str) -> str:
        """A text without the names of temporary folders."""
        for folder in (self.written, self.folder, self.temp):
            text = text.replace(str(folder), "…") if folder else text
        return text


def _stage_with_package(layout: _Layout, folder: Path) -> _Stage:
    stage = folder / "project"
    for path in layout.outside:
        _copy(layout.project, path, stage / path)
    for path in layout.inside:
        _copy_content(layout.project / path, stage / path)
    homes = dict.fromkeys(stage / home.parent for home in layout.tops)
    if layout.import_folders != ("",):
        homes = dict.fromkeys(stage / folder for folder in layout.import_folders)
    return _with_folders(_Stage(stage, layout, tuple(homes)))


def _stage_with_notebook(
    layout: _Layout, folder: Path, written: Path, package: _Session, arguments: Sequence[str]
) -> _Stage:
    stage = folder / "project"
    stage.mkdir(parents=True)
    if (around := layout.served_from_above(package.tests, arguments)) is not None:
        ignored = shutil.ignore_patterns(RUNTIME_MODULE, *LEFT_OUT_FOLDERS)
        target = stage / around / NEXT_TO_PACKAGE
        written = Path(shutil.copytree(written, target, ignore=ignored))
    for path in layout.outside:
        _copy(layout.project, path, stage / path)
    for path in layout.tests_inside:
        below = layout.in_notebook(path)
        assert below is not None
        if not (written / below).exists():
            _copy_content(layout.project / path, written / below)
    imports = tuple(written / folder for folder in layout.import_folders)
    return _with_folders(_Stage(stage, layout, imports, written))


def _with_folders(stage: _Stage) -> _Stage:
    stage.temp.mkdir()
    stage.records.mkdir()
    return stage


def _copy(project: Path, path: PurePosixPath, target: Path) -> None:
    """Links out of the project stay links: they may lead to a whole environment or data set."""
    source = project / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and not source.resolve().is_relative_to(project):
            target.symlink_to(source.resolve())
        elif source.is_symlink() and source.is_dir():
            target.symlink_to(os.path.relpath(source.resolve(), source.parent.resolve()))
        elif source.is_dir():  # a submodule
            ignored = shutil.ignore_patterns(".git", *LEFT_OUT_FOLDERS)
            shutil.copytree(source, target, ignore=ignored, symlinks=True)
        elif source.is_file():
            shutil.copy2(source, target)
    except OSError as error:
        raise LocalError(f"{source} cannot be copied to {target.parent}: {error}") from error


def _copy_content(source: Path, target: Path) -> None:
    """Copy a file of the package; a link becomes a file, as in the notebook."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    except OSError as error:
        raise LocalError(f"{source} cannot be copied to {target.parent}: {error}") from error


def _project_files(project: Path) -> list[PurePosixPath]:
    """The project's files: as git lists them, or all except caches, environments and builds."""
    names = sorted(listed_files(project) or ()) or [path.as_posix() for path in _walk(project)]
    paths = (PurePosixPath(name) for name in names)
    return [path for path in paths if path.parts[0] not in OUTPUT_FOLDERS or len(path.parts) == 1]


def _walk(project: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(project):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and name not in LEFT_OUT_FOLDERS
            and not Path(folder, name, "pyvenv.cfg").is_file()
        ]
        yield from (Path(folder, name).relative_to(project) for name in names)


# The test runs.


@dataclass(frozen=True)
class _Command:
    python: str
    arguments: tuple[str, ...]
    pytest_plugin: Path
    """The folder of the plugin."""

    deadline: float
    fixed: tuple[str, ...] = ()
    """Options that are needed because the package is not where pytest's settings expect it."""

    def line(self) -> list[str]:
        line = [self.python, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider"]
        # A file that cannot be collected must not keep the others from running.
        return [*line, "--continue-on-collection-errors", *self.fixed, *self.arguments]


@dataclass(frozen=True)
class _Session:
    """The result of one pytest run."""

    code: int
    tail: str
    seconds: float
    tests: dict[str, RecordedOutcome]
    modules: list[tuple[str, str]]
    arguments: list[str]
    """What pytest collected from, including its own settings."""

    rootdir: str
    inifile: str | None

    @property
    def numbers(self) -> dict[str, int]:
        return dict(Counter(outcome.outcome for outcome in self.tests.values()))


class _RecordedTest(BaseModel):
    file: str
    test: str
    outcome: str
    error: str
    reason: str
    report: str = ""


class _Record(BaseModel):
    """What the plugin writes for one process."""

    arguments: list[str] = []
    rootdir: str = ""
    inifile: str | None = None
    tests: list[_RecordedTest] = []
    modules: list[tuple[str, str]] = []


def _install_plugin(folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(Path(__file__).with_name("pytest_plugin.py"), folder / f"{PLUGIN}.py")
    return folder


def _run_tests(command: _Command, stage: _Stage, subject: str) -> _Session:
    path = (*stage.imports, command.pytest_plugin)
    environment = _environment(stage.temp, path) | {"KERNELKIT_OUTCOMES": str(stage.records)}
    log = stage.folder.with_name("log")
    ended = _run(command.line(), stage.folder, environment, log, command.deadline)
    if ended.code is None:
        begun = stage.records / "running"
        test = begun.read_text(encoding="utf-8") if begun.is_file() else ""
        raise DeadlineError(
            f"the tests with {subject} did not finish within {command.deadline:.0f} s"
            + (f"; the last one that started was {test}" if test else ""),
            "Give them more time (--deadline), or name fewer tests.",
        )
    return _read_records(stage, ended)


def _read_records(stage: _Stage, ended: _Ended) -> _Session:
    """Merge the records of all processes: each worker of xdist writes one."""
    tests: dict[str, RecordedOutcome] = {}
    modules: list[tuple[str, str]] = []
    record = _Record()
    for path in sorted(stage.records.glob("*.json")):
        record = _Record.model_validate_json(path.read_bytes())
        modules += record.modules
        for recorded in record.tests:
            file = stage.in_project(Path(recorded.file))
            test = stage.without_paths(f"{file}::{recorded.test}" if recorded.test else file)
            reason = stage.without_paths(recorded.reason)
            tests[test] = RecordedOutcome(recorded.outcome, recorded.error, reason, recorded.report)
    return _Session(
        code=ended.code or 0,
        tail=stage.without_paths(ended.tail),
        seconds=ended.seconds,
        tests=tests,
        modules=modules,
        arguments=record.arguments,
        rootdir=record.rootdir,
        inifile=record.inifile,
    )


def _moved(command: _Command, package: _Session, first: _Stage, second: _Stage) -> _Command:
    """The same command, with paths into the package replaced: it is in another folder now."""
    moved = {stated: _moved_path(stated, package, first, second) for stated in package.arguments}
    for option, path, rest in _path_options(command.arguments):
        if second.nested and (inside := first.layout.in_notebook(path)):
            moved[f"{option}{path}{rest}"] = [f"{option}{second.nested}/{inside}{rest}"]
    if all(paths == [stated] for stated, paths in moved.items()):
        return command
    arguments: list[str] = []
    before = ""
    for argument in command.arguments:
        is_text = before in ("-k", "-m")
        arguments += [argument] if is_text else moved.get(argument, [argument])
        before = argument
    if not set(moved).intersection(command.arguments):  # they came from pytest's settings
        arguments += [path for paths in moved.values() for path in paths]
    fixed = [f"--rootdir={_same_place(package.rootdir, first, second)}"]
    if package.inifile:
        fixed += ["-c", str(_same_place(package.inifile, first, second))]
    return _Command(
        command.python, tuple(arguments), command.pytest_plugin, command.deadline, tuple(fixed)
    )


def _path_options(arguments: Sequence[str]) -> Iterator[tuple[str, PurePosixPath, str]]:
    """The options that leave out tests: `--deselect=`, the path, and `::test_it`."""
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if before in _LEAVING_OUT and not argument.startswith("-"):
            option, equals, value = "", "", argument
        if value and (not option or option in _LEAVING_OUT):
            path, separator, test = value.partition("::")
            yield f"{option}{equals}", PurePosixPath(path), f"{separator}{test}"
        before = argument


def _same_place(path: str, first: _Stage, second: _Stage) -> Path:
    place = Path(path).resolve()
    if not place.is_relative_to(first.folder):
        return place
    below = PurePosixPath(place.relative_to(first.folder).as_posix())
    inside = first.layout.in_notebook(below)
    if inside is not None and second.written is not None and (second.written / inside).exists():
        return second.written / inside
    return second.folder / below


def _moved_path(stated: str, package: _Session, first: _Stage, second: _Stage) -> list[str]:
    name, separator, test = stated.partition("::")
    place = Path(os.path.normpath(first.folder / name))
    if not place.is_relative_to(first.folder) or not place.exists():
        return [stated]
    layout, written = first.layout, second.written
    below = PurePosixPath(place.relative_to(first.folder).as_posix())
    inside = layout.in_notebook(below)
    if inside is not None:
        return [f"{written}/{inside}{separator}{test}"]
    tops = [
        f"{written}/{top}"
        for home, top in layout.tops.items()
        if home.is_relative_to(below)
        and any(PurePosixPath(t.partition("::")[0]).is_relative_to(home) for t in package.tests)
    ]
    unmoved = str(second.folder / below) if Path(name).is_absolute() else stated
    others = any(path.is_relative_to(below) for path in layout.outside)
    return [*([unmoved] if others else []), *tops] if tops else [unmoved]


# The comparison.


def _require_tests(package: _Session, python: _Python) -> None:
    """Raise unless the tests run with the package itself and at least one passes."""
    if package.code == _NO_TESTS or (package.code in _TESTS_RAN and not package.tests):
        raise ConfigError(
            "pytest finds no tests", "Name their folder or file: kernelkit prove tests"
        )
    if package.code == _USAGE:
        raise ConfigError(
            f"pytest does not start:\n{package.tail}",
            "Fix its arguments, its settings or the conftest.py.",
        )
    broke_off = package.code == _INTERRUPTED and not any("::" not in t for t in package.tests)
    if package.code not in _TESTS_RAN or broke_off:
        raise ConfigError(
            f"pytest stops early with the package itself (exit {package.code}):\n{package.tail}",
            f"Fix that first: {python.path} -m pytest",
        )
    if not package.numbers.keys() & {"passed", "xpassed"}:
        failures = [f"{t}: {o} {o.reason}" for t, o in sorted(package.tests.items())[:SHOWN]]
        raise ConfigError(
            "no test passes with the package itself, so there is nothing to compare:\n  "
            + "\n  ".join(failures),
            f"Fix the tests first: {python.path} -m pytest. If they need another environment, name "
            "its Python: --python PATH.",
        )


def _require_ran(notebook: _Session, stage: _Stage) -> None:
    if notebook.code not in (*_TESTS_RAN, _NO_TESTS):
        files = map(str, stage.layout.outside)
        log = stage.folder.with_name("log").read_text(encoding="utf-8", errors="replace")
        raise VerificationError(
            "pytest stops early with what the notebook wrote, and not with the package:\n"
            f"{notebook.tail}",
            remedy_of_stop(log, files, stage.layout.places, stage.folder),
        )


@dataclass(frozen=True)
class TestDifference:
    """A test with two outcomes, and the reason for that in the notebook."""

    __test__ = False  # for pytest

    test: str
    package: str
    notebook: str
    reason: str


@dataclass(frozen=True)
class ProofDifferences:
    """The tests that differ, and the end of pytest's output, for the details of an error."""

    differences: tuple[TestDifference, ...]
    pytest: str

    @property
    def document(self) -> dict[str, str | list[dict[str, str]]]:
        """All of it for a script."""
        return {"differences": [vars(one) for one in self.differences], "pytest": self.pytest}


def _require_same(package: _Session, notebook: _Session, stage: _Stage) -> None:
    names = sorted(package.tests.keys() | notebook.tests.keys())
    differing = [name for name in names if _end(package, name) != _end(notebook, name)]
    if not differing:
        return
    # A file that cannot be collected replaces the tests in it.
    lines = [
        f"{name}: {_end(package, name)} with the package, {_end(notebook, name)} with the notebook"
        + _reason(notebook.tests.get(name))
        for name in differing
        if name.partition("::")[0] not in differing or "::" not in name
    ]
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    differences = [
        TestDifference(
            test=name,
            package=_end(package, name),
            notebook=_end(notebook, name),
            reason=notebook.tests[name].reason if name in notebook.tests else "",
        )
        for name in differing
    ]
    runs = {"package": package.tests, "notebook": notebook.tests}
    explained = [
        DifferingTest(
            name,
            frozenset(side for side, tests in runs.items() if name in tests),
            notebook.tests[name].report if name in notebook.tests else "",
        )
        for name in differing
    ]
    raise VerificationError(
        f"{len(differing)} of {len(names)} tests have another outcome with what the notebook "
        "wrote:\n  " + "\n  ".join([*lines[:SHOWN], *more]),
        remedy(explained, stage.layout.places, stage.folder),
        ProofDifferences(tuple(differences), notebook.tail),
    )


def _end(session: _Session, test: str) -> str:
    file = test.partition("::")[0]
    if test in session.tests:
        return str(session.tests[test])
    collected = any(name.startswith(f"{file}::") for name in session.tests)
    return "not there" if "::" in test or not collected else "collected"


def _reason(outcome: RecordedOutcome | None) -> str:
    return f"\n      {outcome.reason}" if outcome is not None and outcome.reason else ""


def _require_own_copy(session: _Session, stage: _Stage, subject: str) -> None:
    """Raise unless the tests imported the package, and from its own folder."""
    own = {(name, file) for name, file in session.modules if stage.layout.is_own(name)}
    if not own:
        raise VerificationError(
            "these tests never import the package",
            "Name tests that import it. Imports in other processes are not recorded.",
        )
    for name, file in sorted(own):
        if not Path(file).resolve().is_relative_to(stage.home):
            raise VerificationError(
                f"the tests with {subject} imported another copy: {name} came from {file}",
                "Find what puts that folder on sys.path: a conftest.py, pytest's "
                '"pythonpath", or a .pth file of the environment.',
            )


def _summary(session: _Session) -> str:
    return f"{_words(session.numbers)} in {session.seconds:.1f} s"


def _words(numbers: Mapping[str, int], failed: str = "failed") -> str:
    kinds = {"passed": "passed", "failed": failed, "error": failed.replace("failed", "broken")}
    kinds |= {name: name for name in ("skipped", "xfailed", "xpassed")}
    return ", ".join(f"{numbers[kind]} {word}" for kind, word in kinds.items() if kind in numbers)


# Processes.


@dataclass(frozen=True)
class _Ended:
    code: int | None
    """None when the deadline passed."""

    tail: str
    seconds: float


def _environment(temp: Path | None = None, path: Sequence[Path] = ()) -> dict[str, str]:
    """This process's environment, without PYTHONPATH and the variables of an outer pytest."""
    outer = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(outer)
    }
    if path:
        kept["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | ({"TMPDIR": str(temp)} if temp else {})


def _run(
    command: list[str], cwd: Path, environment: Mapping[str, str], log: Path, deadline: float
) -> _Ended:
    """Run to the end or the deadline, then end every process that it started."""
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    code: int | None = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(deadline)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return _Ended(code, "\n".join(lines[-TAIL_LINES:]), time.monotonic() - started)
