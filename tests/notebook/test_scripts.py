"""Scripts, and files next to the package, behave in the notebook as they do in the project."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kernelkit import workflow
from kernelkit.bundle.bundle import Bundle
from kernelkit.config import load_config
from kernelkit.errors import BundleError
from kernelkit.notebook.preflight import check
from kernelkit.notebook.render import Kernel

Write = Callable[[dict[str, str]], Path]

FACTS = """
    from pathlib import Path
    facts = {
        "name": __name__,
        "script": Path(sys.argv[0]).name,
        "arguments": sys.argv[1:],
        "same file": Path(sys.argv[0]).resolve() == Path(__file__).resolve(),
        "by working directory": Path("configs/a.yaml").read_text(),
        "by file": (Path(__file__).resolve().parents[UP] / "configs/a.yaml").read_text(),
    }
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        facts["spawned"] = pool.map(double, [1, 2])
    Path("facts.json").write_text(json.dumps(facts))
"""

SCRIPT = f"""
import json, multiprocessing, sys
import helper

def double(x):
    return helper.TWO * x

if __name__ == "__main__":
{FACTS}"""

MODULE = SCRIPT.replace("import helper\n", "from . import helper\n")

PROJECTS = {
    "a flat folder": (
        {"train.py": SCRIPT.replace("UP", "0"), "helper.py": "TWO = 2\n"},
        'package = "."\nentry = "train.py"\nfiles = ["configs/"]',
        ["train.py", "--epochs", "3", "--word", "a b"],
    ),
    "scripts in a folder": (
        {"src/train.py": SCRIPT.replace("UP", "1"), "src/helper.py": "TWO = 2\n"},
        'package = "src"\nentry = "src/train.py"\nfiles = "configs/*.yaml"\n'
        'arguments = "--key=value"',
        ["src/train.py", "--epochs=3", "--word=a b"],
    ),
    "a module in src": (
        {
            "src/pkg/__init__.py": "",
            "src/pkg/train.py": MODULE.replace("UP", "2"),
            "src/pkg/helper.py": "TWO = 2\n",
        },
        'package = "src/pkg"\nentry = "pkg.train"\nfiles = ["configs/a.yaml"]\n'
        'arguments = "key=value"',
        ["-m", "pkg.train", "epochs=3", "word='a b'"],
    ),
}

SETTINGS = """
outputs = ["facts.json"]
[tool.kernelkit.kernel]
id = "some-kernel"
title = "Some kernel"
[tool.kernelkit.parameters]
epochs = 3
word = "a b"
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the files of a project."""

    def write_files(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "project" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "project"

    return write_files


def project_of(write: Write, kind: str, **more: str) -> Path:
    files, keys, _ = PROJECTS[kind]
    settings = {"pyproject.toml": f"[tool.kernelkit]\n{keys}\n{SETTINGS}"}
    return write({**files, **settings, "configs/a.yaml": "a: 1\n", **more})


def kernel_of(project: Path, **options: object) -> Kernel:
    return workflow.render_kernel(load_config(project, environment={}, **options))  # type: ignore[arg-type]


def bundle_of(project: Path) -> Bundle:
    return kernel_of(project).bundle


@pytest.mark.parametrize("kind", PROJECTS)
def test_a_program_finds_in_the_notebook_what_it_finds_in_the_project(
    write: Write, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_of(write, kind)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    working = tmp_path / "working"
    working.mkdir()
    notebook = nbformat.reads(kernel_of(project).notebook, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(working)}}).execute()
    environment = {**os.environ, "PYTHONPATH": "src"}
    subprocess.run([sys.executable, *PROJECTS[kind][2]], cwd=project, env=environment, check=True)
    facts = json.loads((working / "facts.json").read_text())
    assert facts == json.loads((project / "facts.json").read_text())
    assert facts["spawned"] == [2, 4]
    assert facts["name"] == "__main__"
    left = sorted(path.name for path in working.iterdir())
    assert left == ["facts.json", "run-manifest.json"]  # and not the carried files


def test_a_whole_project_is_its_python_files(write: Write) -> None:
    project = project_of(
        write,
        "a flat folder",
        **{
            "other.py": "",
            "lib/tools.py": "",
            "pkg/__init__.py": "",
            "pkg/words.txt": "data of a package",
            "data/rows.csv": "",
            "readme.md": "",
            "lib/notes.txt": "",
            "test_train.py": "",
            "tests/helper_of_tests.py": "",
            "tests/test_more.py": "",
            "build/old.py": "",
            "runs/x/train.py": "",
            "env/pyvenv.cfg": "",
            "env/lib.py": "",
            ".hidden/a.py": "",
            "configs/.env": "SECRET=1",
            "configs/deep/b.yaml": "",
        },
    )
    bundle = bundle_of(project)
    assert sorted(file.path for file in bundle.files) == [
        *("configs/a.yaml", "configs/deep/b.yaml", "helper.py", "lib/tools.py", "other.py"),
        *("pkg/__init__.py", "pkg/words.txt", "train.py"),
    ]
    assert bundle.working_files == ("configs/a.yaml", "configs/deep/b.yaml")
    assert bundle.left_out["data/"] == 'data outside of packages: name it in "files"'
    assert bundle.left_out["test_train.py"] == "a test"
    assert bundle.left_out["env/"] == bundle.left_out["build/"] == "not source code"
    assert bundle.left_out["configs/.env"] == "a key"


def test_what_git_ignores_is_left_out_unless_files_names_it(write: Write) -> None:
    project = project_of(
        write,
        "a flat folder",
        **{".gitignore": "scratch.py\nconfigs/\n", "scratch.py": ""},
    )
    subprocess.run(["git", "init", "-q", project], check=True)
    bundle = bundle_of(project)
    assert sorted(file.path for file in bundle.files) == ["configs/a.yaml", "helper.py", "train.py"]


def test_a_script_next_to_its_package_is_carried(write: Write) -> None:
    files = {
        "run-me.py": "import sys, pkg.a\n",
        "pkg/__init__.py": "",
        "pkg/a.py": "",
        "pyproject.toml": f'[tool.kernelkit]\npackage = "pkg"\nentry = "run-me.py"{SETTINGS}',
    }
    kernel = kernel_of(write(files))
    assert [file.path for file in kernel.bundle.files][-1] == "run-me.py"
    assert kernel.manifest.command is not None
    assert kernel.manifest.command.path == "run-me.py"


def test_missing_files_are_named(write: Write) -> None:
    project = project_of(write, "a flat folder")
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("configs/", "config/"))
    with pytest.raises(BundleError, match='"files": there is no config'):
        bundle_of(project)


ARGPARSE = (
    "import argparse\np = argparse.ArgumentParser()\np.add_argument('--epoch', type=int)\n"
    "p.add_argument('--word', action='store_true')\np.add_argument('path')\np.parse_args()\n"
)


def test_parameters_that_a_script_does_not_take_are_problems(write: Write) -> None:
    project = project_of(write, "a flat folder", **{"train.py": ARGPARSE})
    problems = {p.subject: p.message for p in check(kernel_of(project))}
    assert problems == {
        "parameters.epochs": 'train.py has no such option; did you mean "epoch"?',
        "parameters.word": "--word of train.py is on or off, and takes no value",
        "parameters.path": "train.py does not start without it",
    }


def test_hydra_needs_its_own_form(write: Write) -> None:
    source = "import hydra\n@hydra.main()\ndef main(config): ...\nmain()\n"
    project = project_of(write, "a flat folder", **{"train.py": source})
    assert "arguments" in {p.subject for p in check(kernel_of(project))}
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("files", 'arguments = "key=value"\nfiles'))
    assert "arguments" not in {p.subject for p in check(kernel_of(project))}


@pytest.mark.parametrize("entry", ["trian.py", "helper.train", "nothing"])
def test_an_entry_that_is_not_there_is_named(write: Write, entry: str) -> None:
    project = project_of(write, "a flat folder")
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("train.py", entry))
    with pytest.raises(BundleError, match=entry.replace(".", r"\.")):
        bundle_of(project)


@pytest.mark.parametrize("key", ["arguments", "files"])
def test_the_digest_covers_how_a_script_starts(write: Write, key: str) -> None:
    project = project_of(write, "a flat folder")
    before = kernel_of(project).digest
    path = project / "pyproject.toml"
    changes = {
        "arguments": ("files", 'arguments = "--key=value"\nfiles'),
        "files": ('files = ["configs/"]', ""),
    }
    path.write_text(path.read_text().replace(*changes[key]))
    assert kernel_of(project).digest != before
