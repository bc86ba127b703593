"""The command line: options, messages, exit codes and the targets of the Makefile."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import kernelkit
from kernelkit.cli import app

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parent.parent
COMMANDS = [
    *("init", "config", "render", "preflight", "prove", "sync"),
    *("push", "cancel", "status", "watch", "logs", "open", "pull", "run", "rehearse", "submit"),
    *(
        "plan",
        "chain",
        "collect",
        "diagnose",
        "verify",
        "wheels",
        "doctor",
        "emulator",
        "sweep",
        "runs",
        "dataset",
    ),
]
TARGETS = [
    *("setup", "smoke", "test", "lint", "format", "render", "push", "status", "watch"),
    *("pull", "submit", "doctor", "emulator", "bench", "clean", "help"),
]


FORBIDDEN = ("pydantic", "kagglesdk", "requests", "rich", "nbformat", "kernelkit.config")
"""Modules that help does not need; importing them takes longer than typer."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_the_terminal(command: str) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    summary = known[command].help.partition("\n")[0]
    assert 10 < len(summary) < 45, summary
    for option in known[command].params:
        assert option.help, option.name
        assert len(option.help) <= 45, option.help


def test_help_lists_every_command_with_its_full_summary(cli: Cli) -> None:
    text = cli("--help").stdout
    assert re.findall(r"^  (\w+)  ", text, re.M) == COMMANDS
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_few_modules(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kernelkit", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = imported_modules(done.stderr)
    assert "kernelkit.cli" in imported
    assert not [name for name in imported if name.startswith(FORBIDDEN)]


def imported_modules(import_times: str) -> set[str]:
    """The modules in what `python -X importtime` prints."""
    return {line.rpartition("|")[2].strip() for line in import_times.splitlines()}


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(cli: Cli, flag: str) -> None:
    assert cli(flag).stdout == f"kernelkit {kernelkit.__version__}\n"


@pytest.mark.parametrize("arguments", [["--json", "--version"], ["-V", "--json"]])
def test_the_version_is_one_json_document(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert json.loads(done.stdout) == {"version": kernelkit.__version__}
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [["runs"], ["preflight"], ["status"], ["doctor"], ["runs", "show"], ["rehearse"], ["init"]],
)
def test_a_project_that_does_not_exist_is_an_error(
    cli: Cli, tmp_path: Path, command: list[str]
) -> None:
    for name in ("nowhere", "x" * 300, "nowhere/pyproject.toml"):
        message = cli(*command, "--project", tmp_path / name, expect=2).stderr
        assert message.startswith("error: --project ")
    (tmp_path / "setup.cfg").touch()
    message = cli(*command, "--project", tmp_path / "setup.cfg", expect=2).stderr
    assert "setup.cfg is not a folder" in message


def test_an_empty_folder_has_no_runs_to_list(cli: Cli, tmp_path: Path) -> None:
    for arguments in ([], ["--json"]):
        cli("runs", *arguments, "--project", tmp_path, expect=2)
    (tmp_path / "runs").mkdir()
    assert json.loads(cli("runs", "--json", "--project", tmp_path).stdout) == []


def test_the_project_file_names_the_project(plain: Path, cli: Cli, tmp_path: Path) -> None:
    for command in (["preflight"], ["runs"], ["render"]):
        cli(*command, "--project", plain / "pyproject.toml", cwd=tmp_path)
        cli("--project", "pyproject.toml", *command, cwd=plain)
    assert (plain / "build" / "kernel" / "notebook.ipynb").is_file()


def test_dash_h_prints_help_for_every_command(cli: Cli) -> None:
    assert cli("-h").stdout == cli("--help").stdout
    assert cli("runs", "show", "-h").stdout == cli("runs", "show", "--help").stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [("kernelkit re", {"render", "rehearse"}), ("kernelkit pull --fi", {"--file"})],
)
def test_completion_runs_no_project_code(
    plain: Path, cli_process: Cli, line: str, expected: set[str]
) -> None:
    (plain / "parcel" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (plain / "pyproject.toml").write_text("[tool.kernelkit\nnot a valid file")
    environment = {
        "_KERNELKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "PYTHONPROFILEIMPORTTIME": "1",
    }
    done = cli_process(cwd=plain, env=environment)
    assert set(done.stdout.split()) == expected
    imported = imported_modules(done.stderr)
    assert "kernelkit.cli" in imported
    assert not imported & {"parcel", "requests", "kagglesdk", "kernelkit.config"}


def test_shared_options_work_before_and_after_the_command(
    plain: Path, cli: Cli, tmp_path: Path
) -> None:
    first = ["--project", plain, "--set", "epochs=3", "--profile", "quick", "--json"]
    last = ["--set", "epochs=4", "--set", "kernel.enable_internet=true", "--out", tmp_path / "out"]
    before = cli(*first, "render", *last, cwd=tmp_path)
    after = cli("render", *first, *last, cwd=tmp_path)
    assert json.loads(before.stdout) == json.loads(after.stdout)
    document = json.loads(after.stdout)
    assert document["parameters"]["epochs"] == 4
    assert document["kernel"]["enable_internet"] is True
    assert document["profile"] == "quick"
    assert json.loads(cli("--json", "runs", "--project", plain, cwd=tmp_path).stdout) == []


def test_a_shared_option_is_rejected_if_the_command_does_not_accept_it(
    plain: Path, cli: Cli
) -> None:
    message = cli("--endpoint", "http://127.0.0.1:9", "render", cwd=plain, expect=2).stderr
    assert "kernelkit render does not take --endpoint" in message


def test_an_option_overrides_the_environment(plain: Path, cli: Cli) -> None:
    environment = {"KERNELKIT_ENDPOINT": "http://127.0.0.1:9"}
    for arguments in (["--endpoint", "nowhere", "push"], ["push", "--endpoint", "nowhere"]):
        message = cli(*arguments, cwd=plain, env=environment, expect=2).stderr
        assert "the endpoint 'nowhere'" in message


def test_the_project_is_found_from_a_subfolder(plain: Path, cli: Cli) -> None:
    subfolder = plain / "parcel" / "deep"
    subfolder.mkdir()
    (plain / "parcel" / "pyproject.toml").write_text("[tool.other]\n")
    cli("preflight", cwd=subfolder)
    message = cli("preflight", "--project", ".", cwd=subfolder, expect=2).stderr
    assert f"no pyproject.toml in {subfolder}" in message


def test_a_missing_project_error_names_the_searched_folder(cli: Cli, tmp_path: Path) -> None:
    message = cli("preflight", cwd=tmp_path, expect=2).stderr
    assert f"no pyproject.toml in {tmp_path} or the folders above it" in message
    (tmp_path / "pyproject.toml").write_text("[tool.kernelkti]\n")
    message = cli("preflight", cwd=tmp_path, expect=2).stderr
    assert f"{tmp_path}/pyproject.toml has no [tool.kernelkit]" in message
    assert 'did you mean "kernelkti"' in message


def test_quiet_prints_only_the_result(plain: Path, cli: Cli) -> None:
    lines = cli("render", "--quiet", cwd=plain).stdout.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r".*/build/kernel  digest [0-9a-f]{12}", lines[0])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["render"], 0),
        (["push"], 9),
        (["preflight", "--bogus"], 2),
        (["runs", "show"], 2),
        (["doctor", "--probe"], 9),
    ],
)
def test_json_prints_exactly_one_document(
    plain: Path, cli: Cli, arguments: list[str], code: int
) -> None:
    done = cli(*arguments, "--json", cwd=plain, expect=code)
    assert json.loads(done.stdout).get("exit_code", 0) == code
    assert done.stderr == ""


def test_json_prints_one_document_on_a_terminal_too(plain: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kernelkit", "--json", "render"]
    process = subprocess.Popen(command, cwd=plain, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the terminal is closed
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait(60) == 0
    assert json.loads(shown)["folder"] == str(plain / "build" / "kernel")


def test_make_help_lists_every_target() -> None:
    text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(TARGETS) <= set(re.findall(r"^  (\w+)", text, re.M))


def test_push_without_credentials_prints_two_lines_with_the_next_step(
    plain: Path, cli: Cli
) -> None:
    printed = cli("push", cwd=plain, expect=9)
    assert printed.stdout == ""
    error, step = printed.stderr.splitlines()
    assert error == "error: no Kaggle credentials on this machine"
    assert step.startswith("next:  Create a token at https://www.kaggle.com/settings")


def test_a_misspelled_key_exits_with_2_and_suggests_the_closest_key(plain: Path, cli: Cli) -> None:
    path = plain / "pyproject.toml"
    path.write_text(path.read_text().replace("outputs =", "outputz ="))
    printed = cli("render", cwd=plain, expect=2).stderr
    assert 'has no key "outputz"; did you mean "outputs"?' in printed


def test_preflight_fails_before_anything_is_sent(plain: Path, cli: Cli) -> None:
    options = ["--set", "kernel.enable_gpu=true", "--endpoint", "http://127.0.0.1:9"]
    printed = cli("push", *options, cwd=plain, expect=3).stderr
    assert "machine_shape" in printed
    assert "Nothing was sent" in printed
    problems = json.loads(cli("preflight", "--json", *options[:2], cwd=plain, expect=3).stdout)
    assert problems["exit_code"] == 3
    assert [problem["subject"] for problem in problems["problems"]] == ["machine_shape"]


def test_an_unreachable_endpoint_exits_with_9(plain: Path, cli: Cli) -> None:
    endpoint = ["--endpoint", "http://127.0.0.1:9"]
    seconds = {"KERNELKIT_RETRY_SECONDS": "0.5"}
    printed = cli("push", *endpoint, cwd=plain, env=seconds, expect=9).stderr
    assert "no answer from 127.0.0.1:9" in printed


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf"])
def test_a_wrong_time_for_retries_is_reported(plain: Path, cli: Cli, seconds: str) -> None:
    given = {"KERNELKIT_RETRY_SECONDS": seconds}
    printed = cli("push", "--endpoint", "http://127.0.0.1:9", cwd=plain, env=given, expect=2)
    assert f"KERNELKIT_RETRY_SECONDS='{seconds}'" in printed.stderr


def test_an_empty_endpoint_does_not_mean_the_real_kaggle(plain: Path, cli: Cli) -> None:
    printed = cli("push", "--endpoint", "", cwd=plain, expect=2).stderr
    assert "not an http address of this machine" in printed


def test_a_failure_prints_a_json_document(plain: Path, cli: Cli) -> None:
    printed = json.loads(cli("verify", plain, "--json", expect=8).stdout)
    assert printed["exit_code"] == 8
    assert printed["verified"] is False
    assert "bundle.json: missing" in printed["problems"]
    assert json.loads(cli("push", "--json", cwd=plain, expect=9).stdout)["exit_code"] == 9


def test_a_usage_error_prints_a_json_document(plain: Path, cli: Cli) -> None:
    printed = cli("render", "--json", "--bogus", cwd=plain, expect=2).stdout
    assert json.loads(printed)["exit_code"] == 2


def test_file_names_are_not_interpreted_as_markup(plain: Path, cli: Cli) -> None:
    (plain / "parcel" / "[").mkdir()
    (plain / "parcel" / "[" / "b].txt").touch()
    assert "parcel/[/b].txt" in cli("render", cwd=plain).stdout


def test_a_terminal_without_unicode_gets_ascii_and_no_error(plain: Path, cli_process: Cli) -> None:
    cli_process("render", "--help", cwd=plain, env={"PYTHONIOENCODING": "ascii"})
    cli_process("doctor", cwd=plain, env={"PYTHONIOENCODING": "ascii"}, expect=9)


def test_runs_are_listed_despite_a_damaged_folder(plain: Path, cli: Cli) -> None:
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
def test_a_usage_error_exits_with_2(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments, expect=2).stderr


def test_render_keeps_files_that_it_did_not_write(plain: Path, cli: Cli) -> None:
    kept = plain / "build" / "kernel" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    document = json.loads(cli("render", "--json", cwd=plain).stdout)
    assert kept.read_text() == "mine"
    manifest = json.loads((kept.parent / "bundle.json").read_text())
    assert document["digest"] == manifest["digest"]


def test_the_project_option_selects_another_folder(plain: Path, cli: Cli, tmp_path: Path) -> None:
    cli("render", "--project", plain, cwd=tmp_path)
    assert (plain / "build" / "kernel" / "notebook.ipynb").is_file()


def test_an_unwritable_folder_exits_with_10(plain: Path, cli: Cli) -> None:
    (plain / "build").write_text("a file in the way")
    assert "cannot be written" in cli("render", cwd=plain, expect=10).stderr


def test_submit_needs_a_verified_run(plain: Path, cli: Cli, local_kaggle: str) -> None:
    cli("submit", cwd=plain, expect=2)
    endpoint = ["--endpoint", local_kaggle]
    cli("push", *endpoint, cwd=plain)
    assert "not a complete and verified run" in cli("submit", *endpoint, cwd=plain, expect=8).stderr


def test_the_emulator_stops_on_ctrl_c() -> None:
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


@pytest.mark.parametrize("text", ["nan", "inf", "0"])
def test_a_deadline_is_a_finite_number_of_seconds(text: str, cli: Cli, plain: Path) -> None:
    refused = cli("watch", "--deadline", text, cwd=plain, expect=2)
    assert "--deadline" in refused.stderr
