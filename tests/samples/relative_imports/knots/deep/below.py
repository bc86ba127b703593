"""Reaches up by two dots, and beside by one."""

from .. import even
from ..odd import is_odd
from . import even as same_even


def depth(number: int) -> str:
    assert same_even is even
    return "odd" if is_odd(number) else "even"
