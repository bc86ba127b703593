"""The command line: words, exit codes, and the promises of the README and the Makefile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from kernelkit.cli import app

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parent.parent
COMMANDS = [
    *("render", "preflight", "prove", "push", "cancel", "status", "watch", "logs", "pull"),
    *("diagnose", "verify", "run", "rehearse", "submit", "sync", "doctor", "emulator", "runs"),
]
TARGETS = [
    *("setup", "smoke", "test", "lint", "format", "render", "push", "status", "watch"),
    *("pull", "submit", "doctor", "emulator", "bench", "clean", "help"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(known[command].help) > 20
    for option in known[command].params:
        assert option.help or option.name in ("project", "profile", "out"), option.name


def test_no_command_is_left_out(cli: Cli) -> None:
    listed = re.findall(r"^  (\w+)  ", cli("--help").stdout, re.M)
    assert listed == COMMANDS


def test_make_help_lists_every_target() -> None:
    text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(TARGETS) <= set(re.findall(r"^  (\w+)", text, re.M))


def test_push_without_credentials_says_what_to_do_in_two_lines(plain: Path, cli: Cli) -> None:
    told = cli("push", cwd=plain, expect=9)
    assert told.stdout == ""
    error, step = told.stderr.splitlines()
    assert error == "error: no Kaggle credentials on this machine"
    assert step.startswith("next:  Create a token at https://www.kaggle.com/settings")


def test_a_broken_project_file_is_exit_2_with_key_and_near_miss(plain: Path, cli: Cli) -> None:
    path = plain / "pyproject.toml"
    path.write_text(path.read_text().replace("outputs =", "outputz ="))
    told = cli("render", cwd=plain, expect=2).stderr
    assert 'has no key "outputz"; did you mean "outputs"?' in told


def test_preflight_refuses_before_anything_is_sent(plain: Path, cli: Cli) -> None:
    options = ["--set", "kernel.enable_gpu=true", "--endpoint", "http://127.0.0.1:9"]
    told = cli("push", *options, cwd=plain, expect=3).stderr
    assert "machine_shape" in told
    assert "Nothing was sent" in told
    problems = json.loads(cli("preflight", "--json", *options[:2], cwd=plain, expect=3).stdout)
    assert problems["exit_code"] == 3
    assert [problem["subject"] for problem in problems["problems"]] == ["machine_shape"]


def test_nobody_at_the_endpoint_is_exit_9(plain: Path, cli: Cli) -> None:
    told = cli("push", "--endpoint", "http://127.0.0.1:9", cwd=plain, expect=9).stderr
    assert "no answer from 127.0.0.1:9" in told


def test_an_empty_endpoint_is_not_the_real_kaggle(plain: Path, cli: Cli) -> None:
    told = cli("push", "--endpoint", "", cwd=plain, expect=2).stderr
    assert "no http address of this machine" in told


def test_a_failure_is_a_json_document_too(plain: Path, cli: Cli) -> None:
    told = json.loads(cli("verify", plain, "--json", expect=8).stdout)
    assert told["exit_code"] == 8
    assert told["verified"] is False
    assert "bundle.json: missing" in told["problems"]
    assert json.loads(cli("push", "--json", cwd=plain, expect=9).stdout)["exit_code"] == 9


def test_a_wrong_command_line_is_a_json_document_too(plain: Path, cli: Cli) -> None:
    told = cli("render", "--json", "--bogus", cwd=plain, expect=2).stdout
    assert json.loads(told)["exit_code"] == 2


def test_file_names_are_not_markup(plain: Path, cli: Cli) -> None:
    (plain / "parcel" / "[").mkdir()
    (plain / "parcel" / "[" / "b].txt").touch()
    assert "parcel/[/b].txt" in cli("render", cwd=plain).stdout


def test_an_old_terminal_gets_other_letters_and_no_fault(plain: Path, cli: Cli) -> None:
    cli("render", "--help", cwd=plain, env={"PYTHONIOENCODING": "ascii"})
    cli("doctor", cwd=plain, env={"PYTHONIOENCODING": "ascii"}, expect=9)


def test_a_ledger_with_broken_folders_is_still_listed(plain: Path, cli: Cli) -> None:
    folder = plain / "runs" / "plain-parcel" / "v1"
    folder.mkdir(parents=True)
    (folder / "push.json").write_text("{}")
    assert '"owner": Field required' in cli("runs", cwd=plain).stdout
    cli("watch", cwd=plain, expect=10)


@pytest.mark.parametrize(
    "arguments",
    [
        ["psuh"],
        ["push", "--nonsense"],
        ["watch", "--deadline", "soon"],
        ["verify", "nowhere"],
        ["diagnose", "nowhere"],
        ["rehearse", "--mounts", "odd"],
        ["rehearse", "--inputs", "nowhere"],
    ],
)
def test_a_wrong_command_line_is_exit_2(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments, expect=2).stderr


def test_render_leaves_what_is_not_its_own(plain: Path, cli: Cli) -> None:
    kept = plain / "build" / "kernel" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    document = json.loads(cli("render", "--json", cwd=plain).stdout)
    assert kept.read_text() == "mine"
    manifest = json.loads((kept.parent / "bundle.json").read_text())
    assert document["digest"] == manifest["digest"]


def test_project_may_be_another_folder(plain: Path, cli: Cli, tmp_path: Path) -> None:
    cli("render", "--project", plain, cwd=tmp_path)
    assert (plain / "build" / "kernel" / "notebook.ipynb").is_file()


def test_a_folder_that_cannot_be_written_is_this_machines_fault(plain: Path, cli: Cli) -> None:
    (plain / "build").write_text("a file in the way")
    assert "cannot be written" in cli("render", cwd=plain, expect=10).stderr


def test_submit_takes_a_verified_run_only(plain: Path, cli: Cli, local_kaggle: str) -> None:
    cli("submit", cwd=plain, expect=2)
    endpoint = ["--endpoint", local_kaggle]
    cli("push", *endpoint, cwd=plain)
    assert "not a complete and verified run" in cli("submit", *endpoint, cwd=plain, expect=8).stderr


def test_the_emulator_stops_when_it_is_asked() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "emulator", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert "Local Kaggle at http://127.0.0.1:" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
