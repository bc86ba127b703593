"""`kernelkit init` in folders as people have them."""

import json
import os
import pty
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from kernelkit.config import load_config
from kernelkit.errors import KernelkitError
from kernelkit.notebook.preflight import check
from kernelkit.notebook.runtime.command_line import command_line
from kernelkit.notebook.runtime.documents import OptionDocument
from kernelkit.project.hydra import hydra_settings
from kernelkit.project.init import open_points, plan_init, write_init
from kernelkit.project.survey import FileUse, Source, file_uses
from kernelkit.workflow import render_kernel
from tests.conftest import SAMPLES, Cli

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the files of a project."""

    def write_files(files: dict[str, str], folder: str = "my-project") -> Path:
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / folder

    return write_files


def initialized(project: Path, **options: Any) -> dict[str, Any]:
    """The section that init writes; it must be one that a push accepts."""
    write_init(plan_init(project, **options))
    assert open_points(project) == []
    assert list(check(render_kernel(load_config(project, profile="smoke")))) == []
    return tomllib.loads((project / "pyproject.toml").read_text())["tool"]["kernelkit"]


SCRIPT = """
import argparse, json, os
from pathlib import Path
import pandas as pd
import torch
import helper

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output-dir", default="outputs")
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    rows = pd.read_csv(os.path.join(args.data_dir, "train.csv"))
    out = Path(args.output_dir)
    torch.save({}, out / "model.pt")
    for fold in range(5):
        torch.save({}, f"{args.output_dir}/fold_{fold}.pt")
    with open(out / "metrics.json", "w") as stream:
        json.dump({}, stream)
    rows.to_csv("submission.csv")

if __name__ == "__main__":
    main()
"""
OTHER = """
import argparse
parser = argparse.ArgumentParser()
if __name__ == "__main__":
    parser.parse_args()
"""


def test_a_folder_of_scripts(write: Write) -> None:
    project = write(
        {
            "train.py": SCRIPT,
            "helper.py": "",
            "evaluate.py": OTHER,
            "predict.py": "open('never.txt', 'w')\n",
            "config.yaml": "x: 1\n",
        }
    )
    assert initialized(project, competition="some-competition") == {
        "package": ".",
        "entry": "train.py",
        "files": ["config.yaml"],
        "outputs": [
            *("outputs/model.pt", "outputs/fold_*.pt", "outputs/metrics.json", "submission.csv"),
        ],
        "kernel": {
            "id": "my-project",
            "title": "My Project",
            "machine_shape": "NvidiaTeslaT4",
            "enable_gpu": True,
            "competition_sources": ["some-competition"],
        },
        "parameters": {
            "data_dir": "kaggle://input/some-competition",
            "output_dir": "outputs",
            "config": "config.yaml",
            "num_epochs": 20,
            "device": "cuda:0",
            "num_workers": 4,
        },
        "profiles": {
            "smoke": {
                "parameters": {"num_epochs": 1, "device": "cpu", "num_workers": 0},
                "kernel": {"machine_shape": "", "enable_gpu": False},
            }
        },
    }


TABULAR = """
from pathlib import Path
import joblib
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from .features import features

def run(data_dir, output_dir, n_estimators=300, columns=["a", "b"], sizes=(1, 2)):
    rows = pd.read_csv(Path(data_dir) / "train.csv")
    model = RandomForestRegressor(n_estimators).fit(features(rows), rows["y"])
    joblib.dump(model, Path(output_dir) / "model.joblib")
    Path(output_dir, "metrics.json").write_text("{}")
"""


@pytest.mark.parametrize("folder", ["", "src/"])
def test_a_tabular_package_with_tests(write: Write, folder: str) -> None:
    project = write(
        {
            f"{folder}prices/__init__.py": "",
            f"{folder}prices/train.py": TABULAR,
            f"{folder}prices/features.py": "def features(rows): return rows\n",
            "tests/test_features.py": "def test(): pass\n",
            "pyproject.toml": '# kept\n[project]\nname = "Prices"  # kept\nversion = "1"\n',
        }
    )
    section = initialized(project, competition="house-prices")
    assert section["package"] == f"{folder}prices"
    assert section["entry"] == "prices.train:run"
    assert section["outputs"] == ["model.joblib", "metrics.json"]
    assert section["kernel"] == {
        "id": "prices",
        "title": "Prices",
        "competition_sources": ["house-prices"],
    }
    assert section["parameters"] == {
        "data_dir": "kaggle://input/house-prices",
        "output_dir": "kaggle://working",
        "n_estimators": 300,
        "columns": ["a", "b"],
    }
    assert section["profiles"]["smoke"]["parameters"] == {"n_estimators": 10}
    text = (project / "pyproject.toml").read_text()
    assert text.startswith('# kept\n[project]\nname = "Prices"  # kept\nversion = "1"\n\n[tool.')


HYDRA = """
import hydra
import torch

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    torch.save({}, "model.pt")

if __name__ == "__main__":
    main()
"""


def test_a_hydra_project(write: Write) -> None:
    project = write(
        {"train.py": HYDRA, "conf/config.yaml": "lr: 1\n", "conf/model/net.yaml": "width: 3\n"}
    )
    section = tomllib.loads(plan_init(project).text)["tool"]["kernelkit"]
    assert section["arguments"] == "key=value"
    assert section["files"] == ["conf/"]
    assert section["outputs"] == ["model.pt"]


CONFIGURATOR = """
import os
out_dir = "out"
learning_rate = 6e-4
exec(open("configurator.py").read())
os.makedirs(out_dir, exist_ok=True)
with open(os.path.join(out_dir, "ckpt.pt"), "wb") as stream:
    stream.write(b"")
"""


def test_a_script_that_reads_sys_argv_itself(write: Write) -> None:
    project = write(
        {"train.py": CONFIGURATOR, "configurator.py": "import sys\nfor a in sys.argv[1:]: pass\n"}
    )
    section = initialized(project)
    assert (section["entry"], section["outputs"]) == ("train.py", ["out/ckpt.pt"])
    assert section["files"] == ["configurator.py"]  # which it opens by its name


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A script whose command line sets its globals, as its author runs it."""
    project = Path(shutil.copytree(SAMPLES / "configurator", tmp_path / "letters"))
    runpy.run_path(str(project / "data" / "letters" / "prepare.py"))
    return project


def test_a_script_whose_command_line_sets_its_globals(letters: Path) -> None:
    section = initialized(letters)
    assert section["arguments"] == "--key=value"
    assert section["positional"] == ["config_file"]
    assert section["parameters"] == {"config_file": "config/train_letters.py"}
    data = [f"data/letters/{name}" for name in ("train.bin", "val.bin", "meta.pkl")]
    assert section["files"] == ["config/", "configurator.py", *data]
    assert section["outputs"] == ["out-letters/ckpt.pt"]
    assert section["profiles"]["smoke"]["parameters"] == {
        **{"eval_interval": 5, "eval_iters": 2, "max_iters": 10},
        **{"device": "cpu", "compile": False},
    }
    config = load_config(letters, profile="smoke", settings=["max_iters=3"])
    command = render_kernel(config).manifest.command
    assert command is not None
    options = [cast(OptionDocument, option.model_dump()) for option in command.options]
    assert command_line(config.parameters, command.arguments, options) == [
        *("config/train_letters.py", "--eval_interval=5", "--eval_iters=2", "--max_iters=3"),
        *("--device=cpu", "--compile=False"),
    ]


def test_globals_are_parameters_where_no_file_of_settings_is_needed(letters: Path) -> None:
    shutil.rmtree(letters / "data")
    plan = plan_init(letters)
    parameters = tomllib.loads(plan.text)["tool"]["kernelkit"]["parameters"]
    assert (parameters["max_iters"], parameters["learning_rate"]) == (500_000, 6e-4)
    assert "dtype" not in parameters  # only running the script shows its value
    assert "config_keys" not in parameters
    assert any("3 files can set the variables of train.py" in note for note in plan.notes)
    write_init(plan)
    misspelled = load_config(letters, settings=["max_iters=3"]).parameters | {"max_iter": 3}
    kernel = render_kernel(load_config(letters).model_copy(update={"parameters": misspelled}))
    assert [problem.subject for problem in check(kernel)] == ["parameters.max_iter"]


@pytest.mark.parametrize(
    ("size", "layout"), [(1 << 20, "auto"), (17 << 20, "dataset"), (201 << 20, "auto")]
)
def test_data_of_the_project_is_carried_as_its_size_allows(
    letters: Path, size: int, layout: str
) -> None:
    os.truncate(letters / "data" / "letters" / "train.bin", size)
    plan = plan_init(letters)
    section = tomllib.loads(plan.text)["tool"]["kernelkit"]
    assert section.get("layout", "auto") == layout
    assert ("data/letters/train.bin" in section["files"]) == (size < 200 << 20)
    assert any("too large for a notebook" in note for note in plan.notes) == (layout != "auto")
    assert any("kernelkit dataset push" in note for note in plan.notes) == (size > 200 << 20)


def test_files_of_hydra_cannot_keep_init_busy_or_lead_out_of_the_project(write: Write) -> None:
    bomb = "".join(f"a{n + 1}: &a{n + 1} {{x: *a{n}, y: *a{n}}}\n" for n in range(40))
    files = {
        "train.py": HYDRA,
        "conf/config.yaml": "defaults: [again, bomb, ../../outside, _self_]\nlr: 0.5\n",
        "conf/again.yaml": "defaults: [again, again, again]\n",
        "conf/bomb.yaml": f"a0: &a0 {{x: 1}}\n{bomb}",
    }
    project = write(files)
    (project.parent / "outside.yaml").write_text("token: secret\n")
    source = Source("train.py", HYDRA.encode())
    assert hydra_settings(project, source).values == {"lr": 0.5}


def test_data_that_only_the_files_of_hydra_name(tmp_path: Path) -> None:
    project = Path(shutil.copytree(SAMPLES / "hydra", tmp_path / "line"))
    for path, text in {
        "conf/config.yaml": "defaults:\n- data: table\n- optional x: none\n- trainer: fast\n"
        "- /model@net: line\npaths: {output_dir: outputs/model}\nhydra: {job: {chdir: true}}\n",
        "conf/trainer/fast.yaml": "# @package _global_\ndefaults: [default]\nmax_epochs: 7\n",
        "conf/data/table.yaml": "dir: data/raw\nfile: train.csv\ntest_csv: ???\nother: ???\n",
    }.items():
        (project / path).write_text(text)
    section = initialized(project, competition="demo")
    assert section["parameters"] == {
        "data": {"dir": "kaggle://input/demo", "test_csv": "kaggle://input/demo/test.csv"}
    }
    assert section["profiles"]["smoke"]["parameters"] == {"max_epochs": 1}
    assert section["outputs"] == ["outputs/*/*/outputs/model/model.json"]
    assert any("data.other is required" in note for note in plan_init_again(project))


@pytest.mark.parametrize(
    ("lines", "folder"),
    [
        ("", "outputs/*/*"),
        ("hydra: {run: {dir: '${paths.logs}/${now:%Y}_${now:%H}/x'}}\n", "logs/*_*/x"),
        ("hydra: {run: {dir: runs}}\n", "runs"),
    ],
)
def test_outputs_in_the_folder_of_a_hydra_run(write: Write, lines: str, folder: str) -> None:
    source = HYDRA.replace('"conf"', '"../conf"').replace(
        '"model.pt"', 'f"{config.paths.out}/model.pt"'
    )
    project = write(
        {
            "job/__init__.py": "",
            "job/train.py": source,
            "conf/config.yaml": "defaults: [_self_, paths: usual]\n" + lines,
            "conf/paths/usual.yaml": "root: ${oc.env:PROJECT_ROOT}\nlogs: ${paths.root}/logs/\n"
            "data_dir: ${paths.root}/data/\nout: ${hydra:runtime.output_dir}\n",
        }
    )
    section = initialized(project, competition="demo")
    assert (section["entry"], section["files"]) == ("job.train", ["conf/"])
    assert section["outputs"] == [f"{folder}/model.pt"]
    assert section["parameters"] == {"paths": {"data_dir": "kaggle://input/demo"}}


def plan_init_again(project: Path) -> tuple[str, ...]:
    (project / "pyproject.toml").unlink()
    return plan_init(project, competition="demo").notes


@pytest.mark.parametrize("broken", ["a: [", "- a", "a: 1\n" * 2 + "\tb", "defaults: [config]\n"])
def test_settings_of_hydra_that_nobody_can_read(tmp_path: Path, broken: str) -> None:
    project = Path(shutil.copytree(SAMPLES / "hydra", tmp_path / "line"))
    (project / "conf" / "config.yaml").write_text(broken)
    assert "parameters" not in initialized(project, competition="demo")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["configurator", "hydra"])
def test_programs_of_every_kind_run_unchanged(
    letters: Path, kind: str, tmp_path: Path, cli: Cli
) -> None:
    project = letters
    options: list[str] = []
    if kind == "hydra":
        project = Path(shutil.copytree(SAMPLES / "hydra", tmp_path / "line"))
        (tmp_path / "inputs" / "demo").mkdir(parents=True)
        (tmp_path / "inputs" / "demo" / "train.csv").write_text("x,y\n1,2\n2,4\n")
        options = ["--inputs", str(tmp_path / "inputs")]
    competition = ["--competition", "demo"] if options else []
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    cli("init", "--yes", *competition, "--project", str(project))
    cli("rehearse", "--profile", "smoke", *options, "--project", str(project))
    assert all(path.read_bytes() == content for path, content in before.items())


DATACLASS = """
import argparse, os
from dataclasses import dataclass
@dataclass
class Settings:
    data_path: str = "data/train.csv"
    output_dir: str = "./results"
parser = argparse.ArgumentParser()
for name, value in vars(Settings()).items():
    parser.add_argument("--" + name, default=value)
settings = parser.parse_args()
open(os.path.join(settings.output_dir, "metrics.json"), "w").write("{}")
"""


def test_an_output_folder_that_a_dataclass_names(write: Write) -> None:
    assert initialized(write({"train.py": DATACLASS}))["outputs"] == ["results/metrics.json"]


SUBCOMMANDS = {
    "argparse": """
import argparse
parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest="task")
train = commands.add_parser("train")
train.add_argument("--epochs", type=int, default=3)
commands.add_parser("predict").add_argument("--model", required=True)
parser.parse_args()
""",
    "click": """
import click
@click.group()
def cli(): ...
@cli.command()
@click.option("--epochs", default=3)
def train(epochs): ...
if __name__ == "__main__":
    cli()
""",
}


@pytest.mark.parametrize(("library", "name"), [("argparse", "task"), ("click", "command")])
def test_subcommands_are_left_to_the_person(write: Write, library: str, name: str) -> None:
    project = write({"train.py": SUBCOMMANDS[library]})
    plan = plan_init(project)
    assert "parameters" not in tomllib.loads(plan.text)["tool"]["kernelkit"]
    assert any(f'{name} = "train"' in note for note in plan.notes)


@pytest.mark.parametrize(
    ("folder", "slug", "title"),
    [
        ("ab", "ab-kernel", "Ab Kernel"),
        ("Größe_2 (final)", "grosse-2-final", "Grosse 2 Final"),
        ("a" * 70, "a" * 50, "A" + "a" * 49),
        ("7", "7-kernel", "7 Kernel"),
    ],
)
def test_a_name_that_kaggle_accepts(write: Write, folder: str, slug: str, title: str) -> None:
    project = write({"train.py": "print()\nopen('out.txt', 'w')\n"}, folder)  # type: ignore[call-arg]
    kernel = initialized(project)["kernel"]
    assert (kernel["id"], kernel["title"]) == (slug, title)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    "content", ["", "\ufeff[project]\r\nname = 'p-name'\r\n", "[tool.x]\na = 1"]
)
def test_the_project_file_keeps_what_it_has(write: Write, content: str, encoding: str) -> None:
    project = write({"train.py": "open('out.txt', 'w').close()\n"})
    before = content.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding)
    (project / "pyproject.toml").write_bytes(before)
    write_init(plan_init(project))
    after = (project / "pyproject.toml").read_bytes()
    assert after.startswith(before)
    assert load_config(project).entry == "train.py"
    text = after.decode(encoding)
    assert ("\r\n" in content) == ("\r\n" in text)
    assert text.count("\r\n") in (0, text.count("\n"))
    plan = plan_init(project)
    assert plan.exists


def test_data_without_a_source_is_pointed_out(write: Write) -> None:
    project = write({"train.py": SCRIPT, "helper.py": "", "config.yaml": ""})
    notes = plan_init(project).notes
    assert any(note.startswith("data_dir names data: give the competition") for note in notes)
    assert "data_dir is required and has no default" in "\n".join(notes)


@pytest.mark.parametrize(
    ("default", "address"),
    [
        ("../data/letters", "kaggle://input/letters"),
        ("./data/letters/train.csv", "kaggle://input/letters/train.csv"),
        ("/kaggle/input/letters/a", "kaggle://input/letters/a"),
        ("data/train", "kaggle://input/letters/train"),
    ],
)
def test_the_folder_of_the_competition_is_named_once(
    write: Write, default: str, address: str
) -> None:
    source = f"def run(data_dir={default!r}):\n    open('out.txt', 'w').close()\n"
    project = write({"job/__init__.py": "", "job/train.py": source})
    assert initialized(project, competition="letters")["parameters"] == {"data_dir": address}


@pytest.mark.parametrize(
    ("source", "outputs"),
    [
        ("import numpy as np\nnp.save('a', 1)\nnp.savez('b', a=1)\n", ["a.npy", "b.npz"]),
        ("import numpy as np\nnp.save('a.b.npy', 1)\n", ["a.b.npy"]),
        ("def run(out, n=1):\n    open(out + '/a.txt', 'w')\n", ["a.txt"]),
        ("import s\ns.keep('out')\n", ["**/a.txt"]),
        ("print()\n", ["*"]),
        ("print('submission')\n", ["submission.csv"]),
    ],
)
def test_outputs_have_the_names_that_the_run_gives_them(
    write: Write, source: str, outputs: list[str]
) -> None:
    saver = "def keep(out):\n    with open(out + '/a.txt', 'w'): pass\n"
    files = {"train.py": source, **({"s.py": saver} if "import s\n" in source else {})}
    assert initialized(write(files), competition="letters")["outputs"] == outputs


@pytest.mark.parametrize(
    "value",
    [
        "sys.argv[1] if len(sys.argv) > 1 else 'a.json'",
        "os.environ.get('SETTINGS', 'a.json')",
        "os.getenv('SETTINGS') or 'a.json'",
    ],
)
def test_a_default_among_several_values_is_carried(write: Write, value: str) -> None:
    source = f"import os, sys\npath = {value}\nopen(path)\nopen('out.txt', 'w')\n"
    project = write({"train.py": source, "a.json": "{}"})
    assert initialized(project)["files"] == ["a.json"]


READS = """
import pandas as pd
from pathlib import Path
HERE = Path(__file__).parent
a = pd.read_csv("data/train.csv")
b = (HERE / "words.txt").read_text()
c = open("settings/a.json").read()
d = pd.read_csv("/kaggle/input/other/x.csv")
Path("out.txt").write_text("")
"""


def test_files_that_the_program_opens(write: Write) -> None:
    project = write(
        {
            "src/train.py": READS,
            "src/words.txt": "",
            "settings/a.json": "{}",
            "data/train.csv": "a\n",
            "unused.txt": "",
        }
    )
    plan = plan_init(project)
    section = tomllib.loads(plan.text)["tool"]["kernelkit"]
    assert sorted(section["files"]) == ["data/train.csv", "settings/a.json", "src/words.txt"]
    assert section["outputs"] == ["out.txt"]
    assert sum("by its name" in note for note in plan.notes) == 1  # that of /kaggle/input
    plan = plan_init(project, competition="letters")
    section = tomllib.loads(plan.text)["tool"]["kernelkit"]
    assert sorted(section["files"]) == ["settings/a.json", "src/words.txt"]
    assert sum("by its name" in note for note in plan.notes) == 2


def test_paths_that_refer_to_themselves() -> None:
    source = f"""
out = Path(out)
out = out / out
loop = os.path.join({", ".join(["loop"] * 9)})
open(f"")
open(loop)
gzip.open(out / "a.gz", "wt")
open({" + ".join(["'a'"] * 900)}, "w")
"""
    uses = file_uses([Source("a.py", source.encode())])
    assert FileUse("out", "a.gz") in uses.written


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"notes.txt": ""}, {}, "there is no Python in"),
        ({"a.py": "x = 1\n"}, {}, "looks like the start of a program"),
        ({"a.py": "print()\n"}, {"entry": "b.py"}, "there is no such program"),
        ({"a.py": "print()\n"}, {"competition": "https://x/y"}, "not the slug"),
        ({"test_a.py": "print()\n"}, {}, r"left out \(a test\)"),
        ({"a.py": "print()\n", "pyproject.toml": "[a"}, {}, "cannot be read"),
        ({"a.py": "print()\n", "pyproject.toml": "tool = 1"}, {}, "cannot be added"),
        ({"a.py": "print()\n", "pyproject.toml": "tool = {}"}, {}, "cannot be added"),
    ],
)
def test_what_init_cannot_do(
    write: Write, files: dict[str, str], options: dict[str, str], message: str
) -> None:
    project = write(files)
    with pytest.raises(KernelkitError, match=message):
        plan_init(project, **options)  # type: ignore[arg-type]


FUNCTION = "def train(epochs=3):\n    open('out.txt', 'w').close()\n"


@pytest.mark.parametrize(
    ("path", "others", "entry"),
    [
        ("src/a/train.py", {}, "a.train:train"),
        ("scripts/train.py", {"other.py": ""}, "scripts.train:train"),
        ("src/train.py", {}, "src.train:train"),
        ("lib/a/train.py", {"lib/a/__init__.py": ""}, "a.train:train"),
        ("a/b/train.py", {"a/__init__.py": "", "a/01-x.py": "print()\n"}, "a.b.train:train"),
    ],
)
def test_functions_in_folders_of_every_kind(
    write: Write, path: str, others: dict[str, str], entry: str
) -> None:
    assert initialized(write({path: FUNCTION, **others}))["entry"] == entry


def test_an_option_with_the_name_of_a_keyword_gets_an_underscore(write: Write) -> None:
    lines = ["'--class', default='x'", "'--lambda', '--l1', default=1.0", "'--file', default='a'"]
    source = "import argparse\nparser = argparse.ArgumentParser()\n"
    source += "".join(f"parser.add_argument({line})\n" for line in lines)
    project = write({"train.py": f"{source}parser.parse_args()\n"})
    assert initialized(project)["parameters"] == {"class_": "x", "l1": 1.0, "file_": "a"}
    command = render_kernel(load_config(project)).manifest.command
    assert command is not None
    assert [option.flag for option in command.options] == ["--class", "--lambda", "--file"]


@pytest.mark.parametrize("name", ["train-model.py", "01 train.py", "訓練-1.py"])
@pytest.mark.parametrize("others", [{}, {"helper.py": "x = 1\n"}])
def test_a_script_that_nothing_can_import(write: Write, name: str, others: dict[str, str]) -> None:
    project = write({name: "open('out.txt', 'w').close()\n", **others})
    assert initialized(project)["entry"] == name


@pytest.mark.parametrize(
    "content",
    [
        "project = 1\n",
        "[project]\nscripts = 3\nname = 2\n",
        "[project]\nname = 'x'\ndynamic = ['version']\n[tool]\nsetuptools = 1\n",
        "[project]\nname = 'x'\n[tool.hatch]\nversion = 'y'\n[tool]\npoetry = 1\n",
    ],
)
def test_a_project_file_with_odd_values(write: Write, content: str) -> None:
    project = write({"train.py": "open('out.txt', 'w').close()\n", "pyproject.toml": content})
    assert initialized(project)["entry"] == "train.py"


def test_an_entry_can_be_chosen(write: Write) -> None:
    project = write({"train.py": SCRIPT, "helper.py": "", "config.yaml": "", "evaluate.py": OTHER})
    plan = plan_init(project, entry="evaluate.py")
    assert plan.entry == "evaluate.py"
    assert {candidate.entry for candidate in plan.candidates} == {"train.py", "evaluate.py"}


@pytest.mark.parametrize("entry", ["jobs.job:compute", "jobs/job.py", "jobs.job"])
def test_an_entry_that_nothing_suggests_has_its_parameters(write: Write, entry: str) -> None:
    source = (
        "import argparse\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--size', type=int, default=4)\n"
        "def compute(size=4): open('out.txt', 'w').close()\n"
    )
    project = write({"train.py": FUNCTION, "jobs/__init__.py": "", "jobs/job.py": source})
    assert initialized(project, entry=entry)["parameters"] == {"size": 4}


def test_the_command_writes_and_says_what_to_do_next(write: Write, cli: Cli) -> None:
    project = write({"train.py": SCRIPT, "helper.py": "", "config.yaml": ""})
    done = cli("init", "--project", str(project), "--json", expect=2)
    assert "asks before it writes" in json.loads(done.stdout)["error"]
    assert not (project / "pyproject.toml").exists()
    done = cli("init", "--project", str(project), "--yes", "--competition", "demo", "--json")
    document = json.loads(done.stdout)
    assert document["written"]
    assert document["next"][0].startswith("kernelkit rehearse")
    before = (project / "pyproject.toml").read_bytes()
    done = cli("init", "--project", str(project), "--yes")
    assert (project / "pyproject.toml").read_bytes() == before
    assert "nothing is changed" in done.stdout


def answered(project: Path, answers: str) -> tuple[str, int]:
    """Run the command in a terminal, as a person does."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "init"],
        cwd=project,
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.close(follower)
    os.write(leader, answers.encode())
    output = process.communicate(timeout=60)[0]
    os.close(leader)
    return output, process.returncode


def test_a_person_chooses_and_agrees(write: Write) -> None:
    project = write({"train.py": SCRIPT, "helper.py": "", "config.yaml": "", "evaluate.py": OTHER})
    output, code = answered(project, "2\n\nn\n")
    assert (code, (project / "pyproject.toml").exists()) == (130, False)
    assert "evaluate.py" in output
    output, code = answered(project, "1\ndemo\ny\n")
    assert code == 0, output
    assert load_config(project).entry == "train.py"
    assert load_config(project).parameters["data_dir"] == "kaggle://input/demo"
