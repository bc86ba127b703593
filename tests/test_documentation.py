"""README and docs describe what exists: commands, keys, make targets, links, the example."""

from __future__ import annotations

import inspect
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.config import Config, KernelSettings

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def section(page: Path, heading: str) -> str:
    """The text below a heading, up to the next heading of the same level."""
    level = heading.partition(" ")[0]
    _, _, rest = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    assert rest, f"{page.name} has no section {heading!r}"
    return rest.partition(f"\n{level} ")[0]


def first_column(text: str) -> list[str]:
    """The words in backticks in the first column of the tables."""
    rows = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_the_readme_lists_every_command(cli: Cli) -> None:
    existing = re.findall(r"^  ([a-z]+)  ", cli("--help").stdout, re.MULTILINE)
    listed = [name for name in first_column(section(README, "## Commands")) if " " not in name]
    assert sorted(listed) == sorted(existing)


def test_every_documented_key_exists() -> None:
    page = ROOT / "docs" / "configuration.md"
    keys = first_column(section(page, "## `[tool.kernelkit]`"))
    assert set(keys) <= set(inspect.signature(Config).parameters)
    fields = first_column(section(page, "## `[tool.kernelkit.kernel]`"))
    assert sorted(fields) == sorted(inspect.signature(KernelSettings).parameters)


def test_every_documented_make_target_exists() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
        assert set(named) <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in re.findall(
        r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")
    ):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, f"{path}#{anchor}"


SCRIPT = """
import argparse, json, torch
parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()
settings = open("config.yaml").read()
torch.save({}, "model.pt")
json.dump({}, open("metrics.json", "w"))
"""


def test_init_writes_the_readme_example(cli: Cli, tmp_path: Path) -> None:
    text = section(README, "## Your own project")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"\$ kernelkit (init .*)", text)
    project = tmp_path / "my-training"
    project.mkdir()
    (project / "train.py").write_text(SCRIPT)
    (project / "config.yaml").write_text("")
    cli(*command.split(), "--yes", cwd=project)
    assert tomllib.loads((project / "pyproject.toml").read_text()) == tomllib.loads(example)
    cli("preflight", cwd=project)
