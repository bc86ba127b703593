"""A module."""


def triple(number: int) -> int:
    return 3 * number
