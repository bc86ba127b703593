"""Well-known packages, carried by a notebook and tested there with `prove`.

Each runs its own tests, or a script from `use/` if it ships none.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config

USE = Path(__file__).parent / "use"


@dataclass(frozen=True)
class Known:
    """One installed distribution."""

    name: str
    entry: str
    shipped: tuple[str, ...] = ()
    """Its own tests, relative to the package; without them the script of the same name runs."""

    more: tuple[str, ...] = ()
    """More packages or modules of the same distribution."""

    bundled: int = 0
    """The least number of bytes of its source."""

    @property
    def packages(self) -> tuple[str, ...]:
        return (self.name, *self.more)


KNOWN = [
    Known("attrs", "attr._make:evolve", more=("attr",)),
    Known("jaraco", "jaraco.text:unwrap"),
    Known("jinja2", "jinja2.compiler:generate"),
    Known("jsonschema", "jsonschema.validators:validate", ("tests/test_types.py",)),
    Known("mpmath", "mpmath.libmp.libmpf:mpf_add", ("tests/test_basic_ops.py",)),
    Known("nbformat", "nbformat.reader:reads"),
    Known("referencing", "referencing.jsonschema:lookup_recursive_ref", ("tests/test_core.py",)),
    Known("rich", "rich.emoji:Emoji", bundled=1_000_000),
    Known("six", "six:ensure_str"),
    Known("text_unidecode", "text_unidecode:unidecode"),
]
QUICK = ("six",)


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(known, id=known.name, marks=() if known.name in QUICK else pytest.mark.slow)
        for known in KNOWN
    ],
)
def test_a_known_package_is_proven(known: Known, tmp_path: Path) -> None:
    project = tmp_path / known.name
    for package in known.packages:
        copy_installed(package, project, known.shipped)
    if not known.shipped:
        (project / "tests").mkdir()
        shutil.copy(USE / f"{known.name}.py", project / "tests" / f"test_{known.name}.py")
    (project / "pyproject.toml").write_text(project_file(known))
    source = sum(len(path.read_bytes()) for path in project.rglob("*.py"))
    arguments = [f"{known.name}/{test}" for test in known.shipped]
    proof = workflow.prove(load_config(project), arguments)
    assert set(proof.numbers) <= {"passed", "skipped", "xfailed"}
    assert proof.numbers["passed"] > 2
    assert source >= known.bundled


def copy_installed(package: str, project: Path, shipped: tuple[str, ...]) -> None:
    """Without the test folders that are not run, to save time."""
    spec = find_spec(package)
    assert spec is not None
    if spec.submodule_search_locations is None:
        assert spec.origin is not None
        project.mkdir(exist_ok=True)
        shutil.copy(spec.origin, project)
        return
    source = Path(next(iter(spec.submodule_search_locations)))
    kept = {(source / test).parent for test in shipped}

    def left_out(folder: str, names: list[str]) -> list[str]:
        tests = [name for name in names if name == "tests" and Path(folder, name) not in kept]
        return [*tests, *(name for name in names if name == "__pycache__")]

    shutil.copytree(source, project / package, ignore=left_out)


def project_file(known: Known) -> str:
    packages = [
        f"{name}.py" if find_spec(name).submodule_search_locations is None else name  # type: ignore[union-attr]
        for name in known.packages
    ]
    package = repr(packages[0] if len(packages) == 1 else packages)
    return f"""
[tool.kernelkit]
package = {package}
entry = "{known.entry}"
outputs = ["out.txt"]
[tool.kernelkit.kernel]
id = "known-package"
title = "Known package"
"""
