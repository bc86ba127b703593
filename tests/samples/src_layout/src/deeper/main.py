"""The entry."""

from deeper.numbers import triple


def run() -> int:
    return triple(3)
