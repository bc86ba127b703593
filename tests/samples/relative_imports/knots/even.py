"""Half of a circle: it needs `odd` while it is itself being imported."""

from . import odd


def is_even(number: int) -> bool:
    return number == 0 or odd.is_odd(number - 1)
