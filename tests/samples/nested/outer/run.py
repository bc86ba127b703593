"""The entry."""

from outer.middle.inner import leaf


def run() -> str:
    return leaf.NAME
