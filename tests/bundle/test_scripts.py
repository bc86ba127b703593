"""A script receives the parameters of the project file as it would from a shell."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernelkit.bundle.scripts import CommandLine, read_command_line
from kernelkit.notebook.runtime import OptionDocument, RuntimeFault
from kernelkit.notebook.runtime.command_line import command_line

SHOW = "import json\ndef show(values): print(json.dumps(values, sort_keys=True, default=str))\n"


def words(
    source: str, parameters: dict[str, Any], arguments: str = "--key value"
) -> tuple[CommandLine, list[str]]:
    line = read_command_line([source.encode()])
    options = [
        OptionDocument(name=name, flag=option.flag, form=option.form, off=option.off)
        for name, option in line.options_of(parameters)
    ]
    return line, command_line(parameters, arguments, options)


def received(folder: Path, source: str, given: list[str]) -> Any:
    """What the script prints when it runs with these words."""
    script = folder / "script.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, str(script), *given], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ARGPARSE = f"""
import argparse
{SHOW}
parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("extra", nargs="*")
parser.add_argument("--learning-rate", "--lr", type=float)
parser.add_argument("--layers", nargs="+", type=int)
parser.add_argument("--tag", action="append", default=[])
parser.add_argument("--amp", action="store_true")
parser.add_argument("--no-cache", dest="cache", action="store_false")
parser.add_argument("--shuffle", action=argparse.BooleanOptionalAction, default=True)
parser.add_argument("--cuda", type=bool, default=True)
parser.add_argument("-v", "--verbose", action="count", default=0)
parser.add_argument("-o", dest="out", required=True)
parser.add_argument("--note", default="")
show(vars(parser.parse_args()))
"""


@pytest.mark.parametrize("arguments", ["--key value", "--key=value"])
def test_argparse_receives_the_parameters(tmp_path: Path, arguments: str) -> None:
    parameters = {
        "note": "-5 apples, 'quoted' $HOME",
        "learning_rate": 1e-05,
        "layers": [3, -4],
        "tag": ["a b", "--c"],
        "amp": True,
        "cache": False,
        "shuffle": False,
        "cuda": False,
        "verbose": 2,
        "out": "/a b",
        "extra": ["x", "-y"],
        "data": "-minus",
    }
    line, given = words(ARGPARSE, parameters, arguments)
    assert (line.library, line.open) == ("argparse", False)
    assert received(tmp_path, ARGPARSE, given) == parameters


def test_argparse_switches_that_are_off_leave_the_defaults(tmp_path: Path) -> None:
    parameters = {"data": "d", "out": "o", "amp": False, "cache": True, "lr": 0.5}
    line, given = words(ARGPARSE, parameters)
    values = received(tmp_path, ARGPARSE, given)
    assert (values["amp"], values["cache"], values["learning_rate"]) == (False, True, 0.5)
    assert {"lr", "learning_rate", "out", "data", "v"} - line.names == {"v"}
    assert [option.names[0] for option in line.options if option.required] == ["data", "out"]


CLICK = f"""
import click
{SHOW}
@click.command()
@click.argument("data")
@click.argument("extra", nargs=-1)
@click.option("--learning-rate", "rate", type=float, required=True)
@click.option("--tag", multiple=True)
@click.option("--size", nargs=2, type=int)
@click.option("--shout/--no-shout", default=True)
@click.option("--amp", is_flag=True)
@click.option("-v", "--verbose", count=True)
def main(**values):
    show(values)
if __name__ == "__main__":
    main()
"""


def test_click_receives_the_parameters(tmp_path: Path) -> None:
    parameters = {
        "data": "d",
        "extra": ["e", "-f"],
        "rate": 0.1,
        "tag": ["x", "y"],
        "size": [1, 2],
        "shout": False,
        "amp": True,
        "verbose": 3,
    }
    line, given = words(CLICK, parameters)
    assert (line.library, line.open) == ("click", False)
    assert received(tmp_path, CLICK, given) == parameters
    assert "learning_rate" in line.names


TYPER = f"""
from typing import Annotated, List, Optional
import typer
{SHOW}
app = typer.Typer()
@app.command()
def main(
    data: str,
    extra: List[str],
    learning_rate: float = 1.0,
    tag: Annotated[Optional[List[str]], typer.Option()] = None,
    amp: bool = False,
    cache: bool = True,
    name: str = typer.Option(..., "--title"),
    force: Annotated[bool, typer.Option("--force")] = False,
):
    show(dict(data=data, extra=extra, learning_rate=learning_rate, tag=tag, amp=amp, cache=cache,
              name=name, force=force))
if __name__ == "__main__":
    app()
"""


def test_typer_receives_the_parameters(tmp_path: Path) -> None:
    parameters = {
        "data": "d",
        "extra": ["e", "f"],
        "learning_rate": 1e-3,
        "tag": ["x", "y z"],
        "amp": True,
        "cache": False,
        "name": "n",
        "force": True,
    }
    line, given = words(TYPER, parameters)
    assert (line.library, line.open) == ("typer", False)
    assert received(tmp_path, TYPER, given) == parameters
    assert [o.names[0] for o in line.options if o.required] == ["data", "extra", "name"]


@pytest.mark.parametrize(
    ("arguments", "required"),
    [
        ("a: int, b: str = 'x', /, c: int = 1", ["a"]),
        ("a: int, /, *, b: Path = Path(), c: bool = typer.Option(...)", ["a", "c"]),
        ("a: Annotated[Path, typer.Argument(default=None)] = Path(), b: int = ...", ["b"]),
    ],
)
def test_typer_functions_in_every_form(arguments: str, required: list[str]) -> None:
    line = read_command_line([f"import typer\ndef main({arguments}): ...\ntyper.run(main)\n"])
    assert [option.names[0] for option in line.options if option.required] == required


@pytest.mark.parametrize(
    ("nargs", "form", "required"),
    [
        ("None", "value", True),
        ("'?'", "value", False),
        ("'+'", "list", True),
        ("2", "list", True),
        ("argparse.REMAINDER", "list", False),
    ],
)
def test_argparse_counts_of_words(nargs: str, form: str, required: bool) -> None:
    source = f"import argparse\nargparse.ArgumentParser().add_argument('x', nargs={nargs})\n"
    (option,) = read_command_line([source]).options
    assert (option.form, option.required) == (form, required)


FIRE = f"""
import fire
{SHOW}
def main(data, rate=1.0, layers=(), amp=False, name="", table=None):
    show(dict(data=data, rate=rate, layers=layers, amp=amp, name=name, table=table))
if __name__ == "__main__":
    fire.Fire(main)
"""


def test_fire_receives_the_parameters(tmp_path: Path) -> None:
    parameters = {
        "data": "10",  # a text, which fire would read as a number
        "rate": 1e-3,
        "layers": [1, 2],
        "amp": False,
        "name": "plain text",
        "table": {"a": [True, "b"]},
    }
    line, given = words(FIRE, parameters)
    assert (line.library, line.open) == ("fire", False)
    assert received(tmp_path, FIRE, given) == parameters
    assert [option.names[0] for option in line.options if option.required] == ["data"]


@pytest.mark.parametrize(
    "text", ["[a,b]", "x#y", "{a: b}", "(x)", ".5", "...", "None", "a b", "it's", "runs/1", "a-b"]
)
def test_fire_receives_a_text_as_a_text(tmp_path: Path, text: str) -> None:
    given = words(FIRE, {"data": text})[1]
    assert received(tmp_path, FIRE, given)["data"] == text


@pytest.mark.parametrize("values", [[1, 2], [3]])
def test_an_option_of_several_words_leaves_the_positional_ones(
    tmp_path: Path, values: list[int]
) -> None:
    source = f"""
import argparse
{SHOW}
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("names", nargs="*")
parser.add_argument("--layers", nargs="+", type=int)
show(vars(parser.parse_args()))
"""
    parameters = {"layers": values, "folder": "data", "names": ["a", "b"]}
    assert received(tmp_path, source, words(source, parameters)[1]) == parameters


SUBCOMMANDS = {
    "argparse": f"""
import argparse
{SHOW}
parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest="command", required=True)
train = commands.add_parser("train")
train.add_argument("--epochs", type=int, default=3)
train.add_argument("folder")
commands.add_parser("predict").add_argument("--model", required=True)
show(vars(parser.parse_args()))
""",
    "click": f"""
import click
{SHOW}
@click.group()
def cli(): ...
@cli.command()
@click.option("--epochs", type=int)
@click.option("--folder")
def train(**given): show(dict(given, command="train"))
@cli.command()
def predict(): ...
cli()
""",
    "typer": f"""
import typer
{SHOW}
app = typer.Typer()
@app.command()
def train(epochs: int = 3, folder: str = ""):
    show(dict(epochs=epochs, folder=folder, command="train"))
@app.command()
def predict(): ...
app()
""",
}


@pytest.mark.parametrize("library", list(SUBCOMMANDS))
def test_a_subcommand_comes_first(tmp_path: Path, library: str) -> None:
    parameters = {"epochs": 5, "folder": "data", "command": "train"}
    line, given = words(SUBCOMMANDS[library], parameters)
    assert (line.library, line.open, given[0]) == (library, True, "train")
    assert received(tmp_path, SUBCOMMANDS[library], given) == parameters


MORE_SUBCOMMANDS = {
    "click": f"""
import click
{SHOW}
@click.group()
def cli(): ...
@cli.command()
@click.argument("name", default="n")
@click.option("--tag", multiple=True)
@click.option("--fast/--slow", default=True)
@click.option("--rate", default=0.5)
def train(name, tag, fast, rate):
    show(dict(name=name, tag=list(tag), fast=fast, rate=rate, command="train"))
@cli.command()
@click.option("--rate", is_flag=True)
def predict(rate): ...
cli()
""",
    "typer": f"""
import typer
{SHOW}
app = typer.Typer()
@app.command()
def train(
    name: str, tags: list[str] = typer.Option([], "--tag"), fast: bool = True, rate: float = 0.5
):
    show(dict(name=name, tag=tags, fast=fast, rate=rate, command="train"))
@app.command()
def predict(rate: bool = False): ...
app()
""",
}


@pytest.mark.parametrize("library", list(MORE_SUBCOMMANDS))
def test_options_of_subcommands_have_their_form(tmp_path: Path, library: str) -> None:
    source = MORE_SUBCOMMANDS[library]
    parameters = {
        "name": "n n",
        "tag": ["u", "v w"],
        "fast": False,
        "rate": 0.25,
        "command": "train",
    }
    line, given = words(source, parameters)
    assert not {"rate"} & line.names  # the commands write it in two ways
    assert not any(option.required for option in line.options)
    assert received(tmp_path, source, given) == parameters


HYDRA = f"""
import hydra
from omegaconf import OmegaConf
{SHOW}
@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    show(OmegaConf.to_container(config))
if __name__ == "__main__":
    main()
"""


def test_hydra_receives_the_parameters(tmp_path: Path) -> None:
    parameters = {
        "amp": True,
        "cache": False,
        "rate": 1e-05,
        "layers": [1, -2, "a b", "it's", "true"],
        "empty": [],
        "model": {"width": 3, "name": "res/net-5", "path": "/kaggle/input/x"},
        "quoted": "a 'b' \\' c\\",
        "number": "12",
        "nothing": "null",
    }
    (tmp_path / "conf").mkdir()
    keys = {**dict.fromkeys(parameters, 0), "model": dict.fromkeys(parameters["model"], 0)}
    (tmp_path / "conf" / "config.yaml").write_text(json.dumps(keys))
    line, given = words(HYDRA, parameters, "key=value")
    assert (line.library, line.open) == ("hydra", True)
    assert received(tmp_path, HYDRA, given) == parameters


CONFIGURATOR = f"""
import sys
from ast import literal_eval
{SHOW}
values = dict(batch_size=1, compile=True, dataset="", rate=0.0, layers=[])
for argument in sys.argv[1:]:
    key, text = argument.removeprefix("--").split("=", 1)
    try:
        values[key] = literal_eval(text)
    except (SyntaxError, ValueError):
        values[key] = text
show(values)
"""


def test_a_script_that_reads_sys_argv_receives_the_parameters(tmp_path: Path) -> None:
    parameters = {
        "batch_size": 8,
        "compile": False,
        "dataset": "shakespeare char",
        "rate": 6e-4,
        "layers": [1, 2],
    }
    line, given = words(CONFIGURATOR, parameters, "--key=value")
    assert line == CommandLine("", arguments="--key=value")
    assert received(tmp_path, CONFIGURATOR, given) == parameters


DATACLASSES = """
from transformers import HfArgumentParser
"""


def test_options_that_the_source_does_not_show_follow_the_form() -> None:
    line, given = words(DATACLASSES, {"bf16": True, "fp16": False, "steps": 2, "names": ["a", "b"]})
    assert (line.library, line.open) == ("dataclasses", True)
    assert given == ["--bf16", "True", "--fp16", "False", "--steps", "2", "--names", "a", "b"]
    assert words("import sys", {"a": True, "b": False})[1] == ["--a"]


@pytest.mark.parametrize(
    "source",
    [
        "import argparse\np.add_argument('--a')\np.parse_known_args()",
        "import argparse\np.add_argument('--a')\np.add_subparsers()",
        "import argparse\np.add_argument('--a')\nfor n in names: p.add_argument(n)",
        "import argparse\np.add_argument('--a')\np.add_argument('--b', **options)",
        "import click\n@click.group()\ndef cli(): pass\n@cli.command()\n@click.option('--a')\n"
        "def one(): pass",
        "import typer\napp = typer.Typer()\n@app.command()\ndef a(x: int = 1): pass\n"
        "@app.command()\ndef b(y: int = 1): pass",
        "import fire\nfire.Fire()",
        "import fire\ndef f(**values): pass\nfire.Fire(f)",
    ],
)
def test_a_command_line_that_only_running_shows_is_open(source: str) -> None:
    assert read_command_line([source.encode()]).open


def test_a_switch_needs_true_or_false() -> None:
    with pytest.raises(RuntimeFault, match="--amp is on or off"):
        words(ARGPARSE, {"amp": "yes"})
