"""Flat shapes."""

from ..constants import UNIT


def area(width: int, height: int) -> int:
    """Width times height, and the unit."""
    return width * height + UNIT
