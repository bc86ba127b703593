"""What the built wheel contains, and that it works in an environment without the workload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEMPLATES = sorted(path.name for path in (ROOT / "templates").glob("*.j2"))
UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that nothing old in build/ gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "--quiet", "--out-dir", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with `kernelkit[emulator]` from the wheel, nothing else."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    python = folder / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run(
        [
            *(UV, "pip", "install", "--quiet", "--python", python),
            *("--constraint", ROOT / "requirements" / "all.txt", f"{wheel}[emulator]"),
        ],
        check=True,
    )
    return python


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}


def render(python: Path, project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "kernelkit", "render"],
        cwd=project,
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )


def test_the_wheel_contains_the_tool_and_its_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = [n.removeprefix("kernelkit/templates/") for n in names if "/templates/" in n]
    assert sorted(inside) == TEMPLATES
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kernelkit").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"kernelkit/bundle/image.json", "kernelkit/campaigns/sweep.html.j2"} <= files
    assert files <= set(names)
    assert "kernelkit/probe_kernel/pyproject.toml" in names
    assert not [name for name in names if name.startswith(("src_salt", "tests", "templates"))]


def test_an_installed_wheel_renders_as_the_checkout_does(installed: Path, plain: Path) -> None:
    assert subprocess.run([installed, "-c", "import torch"], capture_output=True).returncode == 1
    from_wheel = render(installed, plain)
    notebook = (plain / "build" / "kernel" / "notebook.ipynb").read_bytes()
    from_checkout = render(Path(sys.executable), plain)
    assert from_wheel.stdout == from_checkout.stdout
    assert (plain / "build" / "kernel" / "notebook.ipynb").read_bytes() == notebook


def test_an_installed_wheel_renders_the_probe(installed: Path) -> None:
    probe = next(installed.parent.parent.rglob("probe_kernel"))
    assert "image_snapshot/__init__.py" in render(installed, probe).stdout


def test_an_installed_wheel_starts_the_emulator(installed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [installed, "-m", "kernelkit", "emulator", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert "Local Kaggle at http://127.0.0.1:" in process.stdout.readline()
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


MESSAGES = '[tool.kernelkit]\nmetric = "val_iou"\nnotify_env = "MESSAGES"\n'


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        ("runs export --to tensorboard", "tensorboard"),
        ("runs export --to mlflow", "mlflow-skinny"),
        ("sweep", "optuna"),
        ("run", "apprise"),
    ],
)
def test_a_missing_extra_ends_with_the_command_that_installs_it(
    arguments: str, package: str, installed: Path, plain: Path
) -> None:
    path = plain / "pyproject.toml"
    section = MESSAGES if package == "apprise" else MESSAGES.replace("notify_env", "# notify_env")
    text = path.read_text().replace("[tool.kernelkit]\n", section)
    path.write_text(f"{text}\n[tool.kernelkit.sweep]\ntrials = 2\nparameters.epochs = [1, 2]\n")
    done = subprocess.run(
        [installed, "-m", "kernelkit", *arguments.split()],
        cwd=plain,
        capture_output=True,
        text=True,
        env={**environment(), "MESSAGES": "json://127.0.0.1:9"},
    )
    assert done.returncode == 2, done.stderr
    advice = done.stderr.replace("\n", " ")
    assert f"{installed} -m pip install" in advice
    assert package in advice.partition("pip install")[2]


def test_an_editable_install_hides_the_rest_of_the_checkout(tmp_path: Path) -> None:
    """Otherwise a rehearsal would find in the checkout a file that the notebook does not carry."""
    done = subprocess.run(
        [sys.executable, "-c", "import kernelkit; print(kernelkit.__file__); import src_salt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert Path(done.stdout.strip()) == ROOT / "kernelkit" / "__init__.py"
    assert "No module named 'src_salt'" in done.stderr
