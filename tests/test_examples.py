"""The examples are what `kernelkit init` makes of their code, and each runs on a local Kaggle."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Cli

EXAMPLES = Path(__file__).parent.parent / "examples"
INIT = {"script": [], "tabular": ["--competition", "house-prices-demo"]}


@pytest.fixture(params=INIT)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one example."""
    return Path(shutil.copytree(EXAMPLES / request.param, tmp_path / request.param))


def test_init_writes_the_section_of_an_example(cli: Cli, example: Path) -> None:
    path = example / "pyproject.toml"
    written = path.read_text()
    before, _, _ = written.partition("[tool.kernelkit]")
    path.write_text(before) if before else path.unlink()
    cli("init", "--yes", *INIT[example.name], cwd=example)
    assert tomllib.loads(path.read_text()) == tomllib.loads(written)
    cli("preflight", cwd=example)


def inputs_of(example: Path, folder: Path) -> Path:
    """The made-up data of an example."""
    folder.mkdir()
    if example.name == "tabular":
        command = [sys.executable, "-m", "prices.data", str(folder / "house-prices-demo")]
        subprocess.run(command, cwd=example, check=True)
    return folder


@pytest.mark.slow
def test_an_example_ends_verified(cli: Cli, example: Path, tmp_path: Path) -> None:
    inputs = inputs_of(example, tmp_path / "inputs")
    done = cli("rehearse", "--profile", "smoke", "--inputs", inputs, cwd=example)
    assert done.stdout.rstrip().rpartition("\n")[2].startswith("verified: ")


@pytest.mark.slow
def test_the_tests_of_the_tabular_example_are_proven(cli: Cli) -> None:
    assert "proved: 1 test" in cli("prove", cwd=EXAMPLES / "tabular").stdout
