"""A project without templates of its own gets ours, from a built wheel and from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEMPLATES = sorted(path.name for path in (ROOT / "templates").glob("*.j2"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    # By way of the source distribution: nothing stale of the checkout's build/ gets in.
    subprocess.run([uv, "build", "--quiet", "--out-dir", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def render(python: Path, project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "kernelkit", "render"],
        cwd=project,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
        check=True,
    )


def test_the_wheel_holds_the_tool_and_its_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = [n.removeprefix("kernelkit/templates/") for n in names if "/templates/" in n]
    assert sorted(inside) == TEMPLATES
    assert "kernelkit/emulator/server.py" in names
    assert "kernelkit/kaggle/kernels.py" in names
    assert "kernelkit/bundle/image.json" in names
    assert "kernelkit/probe_kernel/pyproject.toml" in names
    assert not [name for name in names if name.startswith(("src_salt", "tests", "templates"))]


def test_an_installed_wheel_renders_as_the_checkout_does(
    wheel: Path, plain: Path, tmp_path: Path
) -> None:
    uv = Path(sys.executable).with_name("uv")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True
    )
    pins = ["--constraint", ROOT / "requirements" / "tool.txt"]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *pins, wheel], check=True)
    from_wheel = render(python, plain)
    notebook = (plain / "build" / "kernel" / "notebook.ipynb").read_bytes()
    probe = next((tmp_path / "env").rglob("probe_kernel"))
    assert "image_snapshot/__init__.py" in render(python, probe).stdout
    from_checkout = render(Path(sys.executable), plain)
    assert from_wheel.stdout == from_checkout.stdout
    assert (plain / "build" / "kernel" / "notebook.ipynb").read_bytes() == notebook


def test_an_editable_install_hides_the_rest_of_the_checkout(tmp_path: Path) -> None:
    """Else a rehearsal would find in the checkout what the notebook forgot to carry."""
    done = subprocess.run(
        [sys.executable, "-c", "import kernelkit; print(kernelkit.__file__); import src_salt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert Path(done.stdout.strip()) == ROOT / "kernelkit" / "__init__.py"
    assert "No module named 'src_salt'" in done.stderr
