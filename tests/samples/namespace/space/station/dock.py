"""The entry."""

from ..probe import signal


def run() -> str:
    return signal()
