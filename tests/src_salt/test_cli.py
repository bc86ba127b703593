"""The command line of src_salt, mostly in this process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from src_salt.__main__ import main

from .conftest import TINY_OPTIONS, finish_run, read_events, src_salt_command

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as in this process: two threads give other last bits


@pytest.mark.slow
def test_command_line_and_function_write_the_same_files(
    competition_dir: Path, tmp_path: Path
) -> None:
    """With the full ResNet-34."""
    called = finish_run(competition_dir, tmp_path / "call", experiments="resnet34_BCEDice")
    folders = ["--data-dir", competition_dir, "--output-dir", tmp_path / "cli"]
    command = src_salt_command(*folders, *TINY_OPTIONS, "--experiments", "resnet34_BCEDice")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **ONE_THREAD}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bars without a terminal, and no warnings
    assert all(line.startswith('{"event": ') for line in done.stdout.splitlines())
    for name in ("submission.csv", "models.zip", "results.zip"):
        assert (tmp_path / "cli" / name).read_bytes() == (called.folder / name).read_bytes()


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.slow
def test_main_runs_the_pipeline(
    competition_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--data-dir", str(competition_dir), "--output-dir", str(tmp_path)]
    names = ["--experiments", "resnet34_BCEDice", "resnet34_Lovasz", "--limit-train", "4"]
    assert main([*folders, *TINY_OPTIONS, *names]) == 0
    start, *_, done = read_events(capsys)
    assert start["experiments"] == ["resnet34_BCEDice", "resnet34_Lovasz"]
    assert (start["epochs"], start["train_images"]) == (2, 4)
    assert done["event"] == "done"


def test_help_lists_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--data-dir", "--limit-val", "--no-pretrained", "--weights-dir", "--seed"):
        assert flag in text
    assert "(default: 128)" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output-dir o", "--data-dir"),
        ("--data-dir d --output-dir o --epochs 0", "epochs: must be a whole number of at least 1"),
        ("--data-dir d --output-dir o --epochs few", "argument --epochs: invalid int value: 'few'"),
        ("--data-dir d --output-dir o --epoch 3", "unrecognized arguments: --epoch 3"),
        (
            "--data-dir d --output-dir o --experiments resnet34_BCE",
            "Did you mean 'resnet34_BCEDice'?",
        ),
    ],
)
def test_wrong_option_is_reported_in_two_lines(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags.replace(" o", f" {tmp_path / 'o'}", 1).split()
    try:
        code: object = main(arguments)
    except SystemExit as end:  # argparse's own errors
        code = end.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert len(captured.err.splitlines()) <= 2
    assert captured.out == ""


def test_missing_data_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, output = tmp_path / "missing", tmp_path / "out"
    assert main(["--data-dir", str(missing), "--output-dir", str(output)]) == 2
    expected = f"python -m src_salt: error: data_dir: there is no folder {missing}.\n"
    assert capsys.readouterr().err == expected


def test_process_returns_the_exit_code(tmp_path: Path) -> None:
    command = src_salt_command("--data-dir", "d", "--output-dir", tmp_path, "--epochs", "0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "epochs: must be a whole number of at least 1" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_closed_stdout_is_not_reported_as_a_disk_error(
    competition_dir: Path, tmp_path: Path
) -> None:
    folders = ["--data-dir", competition_dir, "--output-dir", tmp_path]
    with subprocess.Popen(
        src_salt_command(*folders, *TINY_OPTIONS, "--experiments", "resnet34_BCEDice"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert json.loads(running.stdout.readline())["event"] == "start"
        running.stdout.close()
        message = running.stderr.read()
    assert running.returncode == 2
    assert message == "python -m src_salt: error: stdout was closed.\n"
