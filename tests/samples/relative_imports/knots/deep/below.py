"""Imports with two dots from the parent package, and with one from its own."""

from .. import even
from ..odd import is_odd
from . import even as same_even


def depth(number: int) -> str:
    assert same_even is even
    return "odd" if is_odd(number) else "even"
