"""Depends on `beta`."""

from beta.base import greet


def run() -> str:
    return greet(__name__)
