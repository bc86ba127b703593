"""What worker processes do."""


def square(number: int) -> int:
    """Return the square."""
    return number * number
