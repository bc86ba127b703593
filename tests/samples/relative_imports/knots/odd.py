"""The other half."""

import knots.even


def is_odd(number: int) -> bool:
    return number != 0 and knots.even.is_even(number - 1)
