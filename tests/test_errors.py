"""What a command says where an extra is missing."""

from __future__ import annotations

import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kernelkit.errors import ConfigError, require_extra

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
