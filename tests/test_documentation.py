"""README and docs describe what exists: commands, keys, make targets, links, messages, outputs."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomlkit
import typer.main
import yaml

from kernelkit import errors
from kernelkit.cli import app
from kernelkit.config import load_config
from tests.local_kaggle import LocalKaggle

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    *(README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted(DOCS.glob("*.md")),
]
BIN = Path(sys.executable).parent


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name)


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


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The hook that writes the generated parts of the pages."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "tools" / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1500


def test_the_readme_lists_every_command(cli: Cli) -> None:
    existing = re.findall(r"^  ([a-z]+)  ", cli("--help").stdout, re.MULTILINE)
    listed = [name for name in first_column(section(README, "## Commands")) if " " not in name]
    assert sorted(listed) == sorted(existing)


def test_every_page_is_in_the_navigation() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for below in entry.values() if isinstance(entry, dict) else entry:
            yield from () if isinstance(entry, str) else pages(below)

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_pictures_load_nothing_from_elsewhere() -> None:
    pictures = list((DOCS / "images").glob("*.svg"))
    assert pictures
    for picture in pictures:
        text = picture.read_text(encoding="utf-8")
        assert not re.search(r"url\(\W*http|href=|@import|<script", text), picture.name


def test_the_architecture_names_every_module_of_the_package() -> None:
    listed = first_column(section(DOCS / "architecture.md", "## Layout"))
    assert [path for path in listed if not (ROOT / path).exists()] == []
    modules = [path.relative_to(ROOT / "kernelkit") for path in (ROOT / "kernelkit").rglob("*.py")]
    inside = {path.parts[0] + "/" * (len(path.parts) > 1) for path in modules}
    assert {f"kernelkit/{one}" for one in inside if one[0] != "_"} <= set(listed)


def test_the_site_is_built_from_pinned_versions() -> None:
    def pinned(file: str) -> dict[str, str]:
        text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
        assert "://" not in text
        entries = re.findall(r"^([a-z][\w.-]*)==(\S+)(.*(?:\n    .*)+)", text, re.MULTILINE)
        assert len(entries) == len(re.findall(r"^\w", text, re.MULTILINE))
        assert all("--hash=sha256:" in rest for *_, rest in entries)
        return {package: version for package, version, _ in entries}

    site, everything = pinned("docs.txt"), pinned("all.txt")
    assert "mkdocs-material" in site
    shared = site.keys() & everything.keys()
    assert {one: site[one] for one in shared} == {one: everything[one] for one in shared}


# The generated parts


def test_the_reference_has_every_command_and_option(reference: ModuleType) -> None:
    text = reference.command_reference()
    assert "| `FOLDER` | A run folder: runs/&lt;slug>/v&lt;version>. |" in text
    for words, command in commands().items():
        assert f"## {' '.join(words)}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}" in text, parameter.opts


def test_the_tables_of_the_configuration_are_those_of_the_models(reference: ModuleType) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    made = reference.with_models(page)
    assert "| `only_reachable`<br>true or false<br>default: `false` |" in made
    assert "| `package`<br>text or list of text<br>required |" in made
    assert "| `outputs`<br>list of text<br>required |" in made
    assert not re.search(r"(\||<br>) *(\||<br>)", made), (
        "a type, a default or an explanation is missing"
    )
    assert (
        '<br>`"auto"` or `"cells"` or `"compressed"` or `"dataset"`<br>default: `"auto"` |' in made
    )
    for heading, model in reference.SECTIONS.items():
        table = re.search(r"(?:^\|.*\n)+", section(DOCS / "configuration.md", heading), re.M)
        assert table
        fields = getattr(reference.config, model).model_fields
        written = reference.defaults(table[0])
        assert set(written) <= set(fields)
        for key, default in written.items():
            if default.startswith("`"):  # not in words, such as "built in"
                assert default == reference.default_words(fields[key]), key


def test_a_key_without_an_explanation_gets_its_docstring(reference: ModuleType) -> None:
    table = reference.model_table(reference.config.KernelSettings, {"title": "shown"})
    assert "| `title`<br>text<br>required | shown |" in table
    assert "Deprecated by Kaggle" in table


def test_an_explained_key_that_does_not_exist_is_an_error(reference: ModuleType) -> None:
    with pytest.raises(ValueError, match="colour"):
        reference.model_table(reference.config.SubmissionSettings, {"colour": "none"})


# What the pages name


@each_page
def test_every_documented_make_target_exists(page: Path) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    named = re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
    assert set(named) <= targets


@each_page
def test_documented_modules_and_variables_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ([\w.]+)", text):
        folders = [ROOT, ROOT / "examples" / "tabular", page.parent]
        places = [folder / module.replace(".", "/") for folder in folders]
        is_own = any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)
        is_example = module in {"package.train", "pip"}
        assert is_own or is_example or importlib.util.find_spec(module), module
    source = "".join(path.read_text() for path in (ROOT / "kernelkit").rglob("*.py"))
    for variable in set(re.findall(r"\bKERNELKIT_[A-Z_]+\b", text)):
        assert f'"{variable}"' in source, variable


def anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in re.findall(
        r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")
    ):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """Every command and sub-command by its words."""
    root: Any = typer.main.get_command(app)
    found = {(name,): command for name, command in root.commands.items()}
    for name, group in root.commands.items():
        for below, command in getattr(group, "commands", {}).items():
            found[name, below] = command
    return found


def unknown_words(line: str) -> list[str]:
    """The command and options of a command line that kernelkit does not have."""
    known = commands()
    root: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    path: tuple[str, ...] = ()
    for word in words:
        if (*path, word) in known:
            path = (*path, word)
    if not path:
        stated = [word for word in words if not word.startswith("-")]
        return stated[:1] if stated and stated[0].isalpha() and stated[0].islower() else []
    passed_on = path in {("emulator",), ("prove",)}
    options = {
        flag
        for one in [*known[path].params, *root.params]
        for flag in [*one.opts, *one.secondary_opts]
    }
    used = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [] if passed_on else [flag for flag in used if flag not in {*options, "-h", "--help"}]


@each_page
def test_documented_commands_and_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^\$ (kernelkit .*)", text, re.MULTILINE)
    lines += re.findall(r"`(kernelkit [^`\n]+)`", text)
    lines += re.findall(r"^ +(?:run: )?(kernelkit [a-z].*?)(?: \|\| .*)?$", text, re.M)
    assert [(line, unknown_words(line)) for line in lines if unknown_words(line)] == []


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("kernelkit sweeps --set a=1", ["sweeps"]),
        ("kernelkit push --now --again", ["--now"]),
        ("kernelkit --json runs show v3 --profile=best", []),
        ("kernelkit runs diff v3 v4 --long", ["--long"]),
    ],
)
def test_words_that_do_not_exist_are_found(line: str, unknown: list[str]) -> None:
    assert unknown_words(line) == unknown


CONFIGURATION = [
    pytest.param(block, id=name(page))
    for page in PAGES
    for block in blocks(page, "toml")
    if "[tool.kernelkit" in block
]

PROJECT = """
[tool.kernelkit]
package = "."
entry = "train.py"
outputs = ["model.pt"]
[tool.kernelkit.kernel]
id = "my-training"
title = "My Training"
"""


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict):
            both[key] = merged(below[key], above[key])
    return both


@pytest.mark.parametrize("block", CONFIGURATION)
def test_documented_configuration_is_accepted(block: str, tmp_path: Path) -> None:
    table = merged(tomllib.loads(PROJECT), tomllib.loads(block.replace("OWNER", "owner")))
    (tmp_path / "pyproject.toml").write_text(tomlkit.dumps(table), encoding="utf-8")
    for profile in [None, *table["tool"]["kernelkit"].get("profiles", {})]:
        load_config(tmp_path, profile=profile)


def literals() -> list[str]:
    """Every text in the source, with `…` for what is put in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(value) for value in node.values)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        return "…"

    trees = [ast.parse(path.read_text()) for path in (ROOT / "kernelkit").rglob("*.py")]
    return [
        " ".join(text(node).split())
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]


def test_documented_messages_are_in_the_source() -> None:
    source = literals()
    messages = re.findall(
        r"^- `([^`]+)`\.", section(DOCS / "troubleshooting.md", "## Messages"), re.M
    )
    assert len(messages) >= 20
    assert [one for one in messages if not any(one.rstrip(".") in text for text in source)] == []


def test_every_exit_code_is_documented() -> None:
    codes = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.KernelkitError)
    }
    listed = re.findall(
        r"^\| (\d+) \|", section(DOCS / "troubleshooting.md", "## Exit codes"), re.M
    )
    assert [int(code) for code in listed] == sorted({0, 1, 130} | codes)


# What the pages show is what happens

SCRIPT = """
import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()
torch.save({}, "model.pt")
"""


def test_init_writes_the_readme_example(cli: Cli, tmp_path: Path) -> None:
    text = section(README, "## Your own project")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"\$ kernelkit (init .*)", text)
    project = tmp_path / "my-training"
    project.mkdir()
    (project / "train.py").write_text(SCRIPT)
    cli(*command.split(), "--yes", cwd=project)
    assert tomllib.loads((project / "pyproject.toml").read_text()) == tomllib.loads(example)
    cli("preflight", cwd=project)


@pytest.mark.slow
def test_the_readme_example_is_rehearsed(tmp_path: Path) -> None:
    project = tmp_path / "my-training"
    (project / "inputs" / "my-competition").mkdir(parents=True)
    (project / "train.py").write_text(SCRIPT)
    for command, shown in sessions(README, "## Your own project")[:2]:
        agreed = command.replace("kernelkit init", "kernelkit init --yes")
        output = run_in(project, agreed)
        if shown:
            before, after = shown[-1].removeprefix("verified: ").split("…")
            assert output.splitlines()[-1] == f"verified: {before}{project}{after}"


def sessions(page: Path, heading: str = "") -> list[tuple[str, list[str]]]:
    """Each command of a page, or of one section, with the lines that it prints."""
    text = section(page, heading) if heading else page.read_text(encoding="utf-8")
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def run_in(folder: Path, command: str, code: int = 0, **variables: str) -> str:
    """What a command prints in a terminal of 80 columns."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=folder,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def comparable(line: str) -> str:
    """A line without numbers, hashes and widths, which differ from run to run."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "HASH", line)
    return " ".join(re.sub(r"\d[\d,.]*", "N", line).split())


def follows(printed: Sequence[str], shown: Sequence[str]) -> bool:
    """Whether the lines `printed` are those `shown`, where `…` stands for any lines."""
    if not shown:
        return not printed
    if shown[0] == "…":
        return any(follows(printed[skipped:], shown[1:]) for skipped in range(len(printed) + 1))
    return bool(printed) and printed[0] == shown[0] and follows(printed[1:], shown[1:])


def assert_shown(output: str, shown: Sequence[str]) -> None:
    printed = [comparable(line) for line in output.rstrip().splitlines()]
    assert follows(printed, [line if line == "…" else comparable(line) for line in shown]), output


@pytest.mark.parametrize(
    "part",
    [slice(0, 3), pytest.param(slice(3, None), marks=pytest.mark.slow)],
    ids=["until render", "the rest"],
)
def test_getting_started_shows_what_the_commands_print(part: slice, tmp_path: Path) -> None:
    project = tmp_path / "house-prices"
    shutil.copytree(ROOT / "examples" / "tabular", project)
    file = project / "pyproject.toml"
    file.write_text(file.read_text().partition("[tool.kernelkit]")[0])
    to_set_up = ("pip ", "cp ", "cd ")
    steps = [
        one for one in sessions(DOCS / "getting-started.md") if not one[0].startswith(to_set_up)
    ]
    for number, (command, shown) in enumerate(steps):
        if number > 1 and number not in range(len(steps))[part]:  # the first two are needed
            continue
        failed = any(line.startswith("error: the run failed") for line in shown)
        output = run_in(project, command, code=6 if failed else 0)
        output = output.replace(str(project), "/home/ada/house-prices")
        assert_shown(output, shown)


@pytest.mark.slow
def test_prove_prints_what_the_page_of_commands_shows() -> None:
    ((command, shown),) = sessions(DOCS / "commands.md", "## prove")
    assert_shown(run_in(ROOT, command), shown)


def workflow_steps(job: str) -> list[str]:
    """What a documented workflow of GitHub Actions runs in a job, without its installation."""
    workflows = [
        yaml.safe_load(block) for block in blocks(DOCS / "continuous-integration.md", "yaml")
    ]
    (steps,) = [one["jobs"][job]["steps"] for one in workflows if job in one["jobs"]]
    return [step["run"] for step in steps if "run" in step and "pip install" not in step["run"]]


@pytest.mark.slow
def test_the_documented_workflow_pushes_and_collects(
    emulator: LocalKaggle, make_project: Callable[..., Path], tmp_path: Path
) -> None:
    project = make_project(
        {
            "pyproject.toml": PROJECT.replace("model.pt", "a.txt").replace('"."', '"train.py"'),
            "train.py": 'import time; time.sleep(1); open("a.txt", "w").write("a")\n',
        }
    )
    elsewhere = Path(shutil.copytree(project, tmp_path / "elsewhere"))
    outputs = tmp_path / "outputs"

    def run(job: str, folder: Path) -> str:
        (script,) = workflow_steps(job)
        return run_in(
            folder, script, KERNELKIT_ENDPOINT=emulator.endpoint, GITHUB_OUTPUT=str(outputs)
        )

    run("check", project)
    assert "is pushed" in run("push", project)
    assert "::notice::a run has not ended yet" in run("collect", elsewhere)
    emulator.as_account("rehearsal").finish("my-training")
    run("collect", elsewhere)
    assert outputs.read_text() == "verified=true\n"
    assert (elsewhere / "runs/my-training/v1/a.txt").read_text() == "a"
    run("collect", elsewhere)  # from the cache
