"""The fallback if the fast module is missing."""


def speed() -> int:
    return 1
