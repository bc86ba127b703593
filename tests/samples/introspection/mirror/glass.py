"""Functions whose source is read."""

import inspect
import sys
from pathlib import Path


def double(number: int) -> int:
    # A comment, which only the file has.
    return number * 2


def source_of_double() -> str:
    return inspect.getsource(double)


def home() -> Path:
    return Path(__file__).parent


def line() -> int:
    return sys._getframe().f_lineno


class Shout(str):
    """A class with its own source."""

    def loud(self) -> str:
        return self.upper()
