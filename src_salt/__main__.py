"""The command line: `python -m src_salt --data-dir D --output-dir O`.

Its options are the fields of `config.Settings`. Exit codes: 0 done, 2 an error that the user can
fix, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from src_salt.config import SaltError, Settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print two lines instead of the whole usage."""
        self.exit(2, f"{self.prog}: error: {message}\nRun `{self.prog} --help` for the options.\n")


def parser() -> argparse.ArgumentParser:
    """Build a parser with one option per setting; an omitted option leaves the default."""
    result = _Parser(
        prog="python -m src_salt",
        description="Train and compare U-Nets for the TGS Salt competition, write a submission.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    types = typing.get_type_hints(Settings)
    for setting in dataclasses.fields(Settings):
        flag = "--" + setting.name.replace("_", "-")
        result.add_argument(flag, **_argument_options(setting, types[setting.name]))
    return result


def _argument_options(setting: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    required = setting.default is dataclasses.MISSING
    text = setting.metadata["help"]
    if not required and setting.default is not None and kind != tuple[str, ...]:
        text += f" (default: {setting.default})"
    options: dict[str, Any] = {"help": text, "required": required}
    if kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if kind == tuple[str, ...]:
        return options | {"nargs": "+", "metavar": "NAME"}
    for number in (int, float):
        if kind in (number, number | None):
            return options | {"type": number, "metavar": "N" if number is int else "X"}
    return options | {"metavar": setting.metadata.get("metavar", "DIR")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; return the exit code. An error that the user can fix is one line on stderr."""
    chosen = vars(parser().parse_args(arguments))
    try:
        Settings.from_parameters(chosen)  # reject a wrong value before torch is imported
        from src_salt.main import run

        run(**chosen)
    except SaltError as error:
        print(f"python -m src_salt: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        print("python -m src_salt: error: stdout was closed.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("python -m src_salt: interrupted; finished experiments are kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
