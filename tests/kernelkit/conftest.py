from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of the sample project `plain`, to be changed at will."""
    return Path(shutil.copytree(SAMPLES / "plain", tmp_path / "plain"))


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """`make_project({"pkg/a.py": "…"}, keys="layout = …", extra="[tool.…]…")` writes a project."""

    def make(
        files: dict[str, str | bytes],
        entry: str = "pkg.main:run",
        keys: str = "",
        extra: str = "",
    ) -> Path:
        folder = tmp_path / "project"
        files = {
            "pkg/__init__.py": "",
            "pkg/main.py": "def run(**parameters):\n    pass\n",
            "pyproject.toml": f"""
[tool.kernelkit]
package = "pkg"
entry = "{entry}"
outputs = ["out.txt"]
{keys}
[tool.kernelkit.kernel]
id = "some-kernel"
title = "Some kernel"
{extra}
""",
            **files,
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return make
