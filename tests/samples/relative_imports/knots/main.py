"""The entry."""

from . import depth


def run() -> str:
    return depth(4)
