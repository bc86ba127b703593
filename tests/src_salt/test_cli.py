from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from src_salt.__main__ import main

from .conftest import Run


def salt(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "src_salt", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: two threads give other last bits
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env=env
    )


TINY_FLAGS = [
    "--experiments",
    "resnet34_bcedice",
    "resnet34_lovasz",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--image-size",
    "32",
    "--no-pretrained",
    "--num-workers",
    "0",
]


def test_the_command_line_is_run(finished: Run, competition_dir: Path, tmp_path: Path) -> None:
    done = salt("--data-dir", competition_dir, "--output-dir", tmp_path, *TINY_FLAGS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bars where nobody watches, no warnings
    assert all(line.startswith('{"event": ') for line in done.stdout.splitlines())
    for name in ("submission.csv", "models.zip", "results.zip"):
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes()


def test_help_names_every_flag_with_its_default() -> None:
    text = salt("--help").stdout
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
            "--data-dir d --output-dir o --experiments resnet34_bce",
            "Did you mean 'resnet34_bcedice'?",
        ),
    ],
)
def test_what_the_user_wrote_is_answered_in_two_lines(
    flags: str, message: str, tmp_path: Path
) -> None:
    done = salt(*flags.replace(" o", f" {tmp_path / 'o'}", 1).split())
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""


def test_a_fault_in_the_data_is_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, output = tmp_path / "missing", tmp_path / "out"
    assert main(["--data-dir", str(missing), "--output-dir", str(output)]) == 2
    expected = f"python -m src_salt: error: data_dir: there is no folder {missing}.\n"
    assert capsys.readouterr().err == expected


def test_a_reader_who_leaves_is_no_fault_of_the_folder(
    competition_dir: Path, tmp_path: Path
) -> None:
    folders = ["--data-dir", str(competition_dir), "--output-dir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "src_salt", *folders, *TINY_FLAGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert '"event": "start"' in running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read()
    assert running.returncode == 2
    assert said == "python -m src_salt: error: nobody reads its output any more.\n"
