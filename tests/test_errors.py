"""What a command says where an extra is missing, or the machine is at a limit."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kernelkit.errors import ConfigError, limit_of_machine, require_extra

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_names_the_command_that_installs_it(extra: str) -> None:
    with pytest.raises(ConfigError, match="no_such_module is not installed") as caught:
        require_extra(extra, "json", "no_such_module")
    assert caught.value.exit_code == 2
    command = shlex.split(caught.value.next_step.removeprefix("Install it: "))
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert {str(Requirement(text)) for text in command[4:]} == {
        str(Requirement(text)) for text in EXTRAS[extra]
    }


def test_an_extra_that_is_installed_is_accepted() -> None:
    require_extra("sweep", "optuna")


def test_an_unknown_extra_is_named_without_a_command() -> None:
    with pytest.raises(ConfigError) as caught:
        require_extra("no-such-extra", "no_such_module")
    assert caught.value.next_step == 'Install kernelkit\'s extra "no-such-extra".'


def test_limits_of_the_machine_are_told_from_bugs(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:  # noqa: SIM117
        with pytest.raises(OSError, match="No space left") as no_room:
            full.write(b"x")
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "missing").read_text()
    limit = limit_of_machine(no_room.value)
    assert limit is not None
    assert limit.exit_code == 10
    assert "no space left on device" in str(limit)
    assert limit_of_machine(MemoryError()) is not None
    assert limit_of_machine(missing.value) is None
    assert limit_of_machine(RuntimeError("a bug")) is None


def test_a_full_output_is_no_limit_of_processes() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb") as end, os.fdopen(writer, "wb") as stream:
        with pytest.raises(BlockingIOError) as full:
            stream.write(b"x" * (1 << 20))
        limit = limit_of_machine(full.value)
        assert limit is not None
        assert limit.exit_code == 10
        assert "ulimit" not in limit.next_step
        end.read1(1 << 20)  # so that the stream can be closed
    no_processes = limit_of_machine(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
    assert no_processes is not None  # as fork raises it
    assert "ulimit -u" in no_processes.next_step
