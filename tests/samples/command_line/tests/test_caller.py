import runpy
import subprocess
import sys


def call(*arguments: str, cwd) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd
    )


def test_the_package_is_a_program(tmp_path) -> None:
    done = call("caller", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "caller.__main__: a+b\n"), done.stderr


def test_a_module_is_a_program(tmp_path) -> None:
    assert call("caller.work", cwd=tmp_path).stdout == "work+caller\n"


def test_importing_runs_no_program(capsys) -> None:
    import caller.__main__

    assert caller.__main__.run is caller.work.run
    assert capsys.readouterr().out == ""


def test_runpy_finds_the_package() -> None:
    assert runpy.run_module("caller.work")["run"](["x"]) == "x"
