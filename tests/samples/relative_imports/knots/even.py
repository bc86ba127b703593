"""Half of a circular import: it needs `odd` while it is being imported itself."""

from . import odd


def is_even(number: int) -> bool:
    return number == 0 or odd.is_odd(number - 1)
