"""Train with src_salt in other versions of its libraries: `make environments`.

Kaggle's image changes its versions several times a year. For each environment of the list below,
this creates a virtual environment with uv, trains with each recipe on a synthetic competition, and
compares submission and weights with those of the first environment. Only wheels are installed. An
environment that cannot be created is named with the installer's reason.

Exits with 1 if a training (or, with --tests, a test) fails where the installation succeeded, or if
no environment can be created.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.measure import ROOT, last_line
from benchmarks.report import circumstances, markdown_table

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = {
    requirement.name: str(requirement.specifier)
    for text in PROJECT["project"]["optional-dependencies"]["workload"]
    for requirement in [Requirement(text)]
}
"""The versions of Kaggle's image of src_salt's libraries: `torch` → `==2.10.0`."""

NEWEST = ""
"""No condition, so that the newest version is installed."""

RECIPES = ("baseline", "fast", "best")
TRAIN, TEST = 80, 20
"""Images of the synthetic competition."""

TEST_TOOLS = ("hypothesis", "pytest", "pytest-timeout")
LIMIT = 3600.0
"""Seconds that an installation, the trainings or the tests may take, on a busy machine."""


@dataclass(frozen=True)
class Environment:
    """A Python version and conditions on the versions of libraries."""

    name: str
    python: str = "3.12"
    torch: str = PINS["torch"]
    numpy: str = PINS["numpy"]
    pandas: str = PINS["pandas"]
    augmentation: str = f"albumentations{PINS['albumentations']}"
    """AlbumentationsX succeeds albumentations under another licence (AGPL) and the same import."""

    opencv: str = PINS["opencv-python"]
    others: str = "pinned"
    """The other libraries: `pinned` to Kaggle's versions, or `newest`."""

    @property
    def requirements(self) -> list[str]:
        """What to install. torchvision's version follows from torch's."""
        others = ("scikit-learn", "matplotlib", "jinja2", "tqdm")
        pinned = self.others == "pinned"
        return [
            f"torch{self.torch}",
            "torchvision",
            f"numpy{self.numpy}",
            f"pandas{self.pandas}",
            self.augmentation,
            f"opencv-python{self.opencv}",
            *(f"{name}{PINS[name] if pinned else NEWEST}" for name in others),
        ]


NEWEST_OF_ALL = {"torch": NEWEST, "numpy": NEWEST, "pandas": NEWEST, "opencv": NEWEST}

ENVIRONMENTS = (
    Environment("Kaggle's image"),
    Environment("this project's", python="3.11"),
    Environment("Python 3.13", python="3.13"),
    Environment(
        "Colab's image of 2026-08",
        python="3.13",
        torch="==2.11.0",
        numpy="==2.1.3",
        pandas="==2.2.3",
        opencv="==5.*",
    ),
    Environment("NumPy 2.1", numpy="==2.1.*"),
    Environment("NumPy 2.2", numpy="==2.2.*"),
    Environment("NumPy 2.3, pandas 2.3", numpy="==2.3.*", pandas="==2.3.*"),
    Environment("NumPy 2.4, pandas 2.3", numpy="==2.4.*", pandas="==2.3.*"),
    Environment("pandas 3", pandas="==3.*"),
    Environment("OpenCV 4, newest", opencv="==4.*"),
    Environment("OpenCV 5", opencv="==5.*"),
    Environment("AlbumentationsX", augmentation="albumentationsx"),
    Environment("newest PyTorch", torch=NEWEST),
    Environment("newest, Python 3.12", others="newest", **NEWEST_OF_ALL),
    Environment("newest, Python 3.13", python="3.13", others="newest", **NEWEST_OF_ALL),
    Environment(
        "newest, AlbumentationsX",
        python="3.13",
        augmentation="albumentationsx",
        others="newest",
        **NEWEST_OF_ALL,
    ),
    Environment("newest, Python 3.14", python="3.14", others="newest", **NEWEST_OF_ALL),
)
"""The first one is the reference."""


class InstallationFailed(Exception):
    """uv cannot create the environment; the message is its reason."""


@dataclass(frozen=True)
class Training:
    """A training with one recipe, and the checks of its submission."""

    recipe: str
    seconds: float
    error: str = ""
    val_iou: float = 0.0
    masks: int = 0
    """Masks of the submission that are not empty."""

    submission: str = ""
    """SHA-256 of submission.csv."""

    weights: str = ""
    """SHA-256 of the names and values of the best weights."""


@dataclass(frozen=True)
class Outcome:
    """What happened in one environment."""

    environment: Environment
    not_installed: str = ""
    """The installer's reason; then everything below is empty."""

    versions: Mapping[str, str] = field(default_factory=dict)
    trainings: tuple[Training, ...] = ()
    warnings: tuple[str, ...] = ()
    """Deprecations that Python attributes to other modules than those of src_salt."""

    tests: str = ""
    """The last line of pytest, if it ran."""

    failures: tuple[str, ...] = ()


def main() -> int:
    """Try each environment, and print the table."""
    options = _options()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    chosen = [env for env in ENVIRONMENTS if not options.only or env.name in options.only]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="environments-") as name:
        folder = Path(name)
        _write_competition(folder / "data")
        outcomes: list[Outcome] = []
        for environment in chosen:
            outcomes.append(try_environment(environment, folder, with_tests=options.tests))
            text = f"{_facts()}\n\n{report(outcomes)}\n"
            if options.markdown:  # each time, since somebody may stop the command
                options.markdown.write_text(text, encoding="utf-8")
    print(text)
    return exit_code(outcomes)


def exit_code(outcomes: list[Outcome]) -> int:
    """1 if something failed in an environment, or if none could be created."""
    created = [outcome for outcome in outcomes if not outcome.not_installed]
    return 0 if created and not any(outcome.failures for outcome in created) else 1


def _facts() -> str:
    command = shlex.join(["python", "-m", "benchmarks.environments", *sys.argv[1:]])
    each = f"{TRAIN} synthetic images, {TEST} predicted, one thread, on the CPU"
    return circumstances([_uv_version()], command, {"each training": each})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    names = [env.name for env in ENVIRONMENTS]
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"try this environment (can be repeated): {', '.join(names)}",
    )
    parser.add_argument(
        "--tests", action="store_true", help="also run src_salt's tests that are not marked slow"
    )
    parser.add_argument("--folder", type=Path, help="make the environments here (default: /tmp)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write it to FILE")
    return parser.parse_args()


# --- one environment ----------------------------------------------------------------------------


def try_environment(environment: Environment, folder: Path, *, with_tests: bool) -> Outcome:
    """Create the environment in `folder`, train with the data in `folder`/data, and remove it."""
    began = time.monotonic()
    _say(f"{environment.name}: installing")
    try:
        with installed(environment, folder, TEST_TOOLS if with_tests else ()) as python:
            _say(f"{environment.name}: training ({time.monotonic() - began:.0f} s to install)")
            outcome = _train(environment, python, folder)
            if with_tests:
                _say(f"{environment.name}: testing")
                outcome = _test(outcome, python, folder)
    except InstallationFailed as error:
        _say(f"{environment.name}: cannot be installed: {error}")
        return Outcome(environment, not_installed=str(error))
    for failure in outcome.failures:
        _say(f"{environment.name}: {failure}")
    return outcome


@contextmanager
def installed(
    environment: Environment, folder: Path, extra: tuple[str, ...] = ()
) -> Iterator[Path]:
    """Yield the interpreter of a new virtual environment, which is removed afterwards.

    Raises:
        InstallationFailed: uv finds no such Python, or no wheels.
    """
    place = folder / "venv"
    try:
        _create(place, environment.python)
        python = place / "bin" / "python"
        override, constraint = folder / "override.txt", folder / "constraint.txt"
        override.write_text("\n".join(PROJECT["tool"]["uv"]["override-dependencies"]))
        pinned = environment.others == "pinned"
        constraints = PROJECT["tool"]["uv"]["constraint-dependencies"] if pinned else []
        # AlbumentationsX needs another albucore than albumentations.
        successor = environment.augmentation.startswith("albumentationsx")
        constraints = [text for text in constraints if not (successor and "albucore" in text)]
        constraint.write_text("\n".join(constraints))
        where = ["--python", str(python), "--override", str(override), "-c", str(constraint)]
        _uv("pip", "install", "--no-build", *where, *environment.requirements, *extra)
        yield python
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _create(place: Path, version: str) -> None:
    found = find_python(version)
    try:
        _uv("venv", "--clear", "--python", found, str(place))
    except InstallationFailed as error:
        if found != version:
            raise
        missing = f"this machine has no Python {version}, and uv cannot download it"
        raise InstallationFailed(f"{missing}: {error}") from error


def find_python(version: str) -> str:
    """The path of that Python, or its version, which uv then tries to download.

    uv does not find the versions of pyenv that are not active.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, map(str, filter(None, found))):
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return path
    return version


def _uv(*arguments: str) -> None:
    """Run uv, outside of the project, whose settings are for the project's own environment."""
    try:
        done = _finish([uv(), *arguments], Path(tempfile.gettempdir()), dict(os.environ))
    except subprocess.TimeoutExpired as error:
        raise InstallationFailed(f"uv {_too_long(error)}") from error
    if done.returncode != 0:
        raise InstallationFailed(reason(done.stderr))


def uv() -> str:
    """The uv of this environment, or the one on the path."""
    own = Path(sys.executable).with_name("uv")
    return str(own) if own.exists() else "uv"


def reason(text: str) -> str:
    """What uv says about a failure, on one line: from `error:` to the first hint.

    Addresses are left out, because they depend on the machine.
    """
    _, _, text = f"\n{text}".rpartition("\nerror: ")
    text = re.split(r"\n\s*hint: ", text)[0]
    text = re.sub(r"\S*://\S+", "…", " ".join(text.split()))
    causes = list(dict.fromkeys(part.strip(" .") for part in text.split("cause: ")))
    return ": ".join(filter(None, causes)) or "uv gives no reason"


def _train(environment: Environment, python: Path, folder: Path) -> Outcome:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    program = Path(__file__).with_name("environment_run.py")
    command = [str(python), str(program), str(folder / "data"), str(out), *RECIPES]
    try:
        done = _run(command, folder)
    except subprocess.TimeoutExpired as error:
        return Outcome(environment, failures=(f"the program {_too_long(error)}",))
    try:
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except OSError:
        reason = last_line(done.stderr) or f"exit status {done.returncode}"
        return Outcome(environment, failures=(f"the program ended: {reason}",))
    trainings = tuple(Training(**entry) for entry in found["trainings"])
    return Outcome(
        environment,
        versions=found["versions"],
        trainings=trainings,
        warnings=tuple(found["warnings"]),
        failures=tuple(f"{t.recipe}: {t.error}" for t in trainings if t.error),
    )


def _test(outcome: Outcome, python: Path, folder: Path) -> Outcome:
    """Run src_salt's tests without the fixtures of kernelkit's."""
    tests = str(ROOT / "tests" / "src_salt")
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--confcutdir", tests]
    command = [str(python), "-m", "pytest", *options, "--basetemp", str(folder / "tests"), tests]
    try:
        done = _run(command, ROOT)
    except subprocess.TimeoutExpired as error:
        failures = *outcome.failures, f"pytest {_too_long(error)}"
        return replace(outcome, tests="not done", failures=failures)
    shown = re.sub(r" in [\d.]+s.*", "", last_line(done.stdout) or last_line(done.stderr))
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    if done.returncode != 0 and not failed:
        failed = [f"pytest: {shown}"]
    return replace(outcome, tests=shown, failures=(*outcome.failures, *failed))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with src_salt of this repository, one thread and without a GPU.

    Raises:
        subprocess.TimeoutExpired: it takes longer than LIMIT.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KAGGLE_", "KERNELKIT_", "PYTHON", "VIRTUAL_ENV"))
    }
    own = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(folder)}
    own |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    return _finish(command, folder, {**kept, **own})


def _finish(
    command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command. If it takes longer than LIMIT, end it and all processes that it started.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except BaseException:  # also Ctrl-C, which the new session does not receive
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _too_long(error: subprocess.TimeoutExpired) -> str:
    return f"was ended, because it was not done after {error.timeout:.0f} s"


def _write_competition(folder: Path) -> None:
    size = ["--train", str(TRAIN), "--test", str(TEST)]
    command = [sys.executable, "-m", "src_salt.synthetic", str(folder), *size]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def _uv_version() -> str:
    done = subprocess.run([uv(), "--version"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split()[:2])


# --- the table ----------------------------------------------------------------------------------


def report(outcomes: list[Outcome]) -> str:
    """The table of the environments that were created, and lists of what is not in it."""
    created = [outcome for outcome in outcomes if not outcome.not_installed]
    reference = outcomes[0] if outcomes[0] in created else None
    parts = [_description(reference), _table(created, reference)] if created else []
    lists = {
        "Cannot be installed:": [
            f"{o.environment.name} (Python {o.environment.python}): {o.not_installed}."
            for o in outcomes
            if o.not_installed
        ],
        "Failed:": [f"{o.environment.name}: {text}" for o in created for text in o.failures],
        "Deprecations inside of libraries:": sorted(
            {f"`{text}`" for o in created for text in o.warnings}
        ),
    }
    for title, items in lists.items():
        if items:
            parts.append("\n".join([title, "", *(f"- {item}" for item in items)]))
    return "\n\n".join(parts)


def _description(reference: Outcome | None) -> str:
    if reference is None:
        return "The reference environment could not be created, so nothing was compared with it."
    return (
        "Every recipe trained, and its submission is valid, unless the table says otherwise. "
        "Equal: submission.csv has the same bytes, and the best weights the same values, as in the "
        "first environment. Otherwise the cell shows the validation IoU, and how many masks of the "
        "submission are not empty."
    )


def _table(outcomes: list[Outcome], reference: Outcome | None) -> str:
    tested = any(outcome.tests for outcome in outcomes)
    head = ["environment", "Python", "torch", "NumPy", "pandas", "albumentations", "OpenCV"]
    head += [*RECIPES, "training s", *(["tests"] if tested else [])]
    lines = []
    for outcome in outcomes:
        versions = outcome.versions
        library = versions.get("albumentations") or f"X {versions.get('albumentationsx', '')}"
        lines.append(
            [
                outcome.environment.name,
                versions.get("python", ""),
                versions.get("torch", ""),
                versions.get("numpy", ""),
                versions.get("pandas", ""),
                library if versions else "",
                versions.get("opencv-python", ""),
                *(_compared(outcome, reference, recipe) for recipe in RECIPES),
                f"{sum(training.seconds for training in outcome.trainings):.0f}",
                *([outcome.tests] if tested else []),
            ]
        )
    return markdown_table(head, lines)


def _compared(outcome: Outcome, reference: Outcome | None, recipe: str) -> str:
    """What came of a recipe, compared with the reference."""
    ours = _training(outcome, recipe)
    theirs = reference and _training(reference, recipe)
    if ours is None or ours.error:
        return "**failed**"
    shown = f"IoU {ours.val_iou:.4f}, {ours.masks} of {TEST} masks"
    if theirs is None or theirs.error or outcome is reference:
        return shown
    same = [ours.submission == theirs.submission, ours.weights == theirs.weights]
    if all(same):
        return "equal"
    return f"equal submission, {shown}" if same[0] else shown


def _training(outcome: Outcome, recipe: str) -> Training | None:
    return next((found for found in outcome.trainings if found.recipe == recipe), None)


def _say(message: str) -> None:
    """Print progress on stderr, since this takes minutes."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
