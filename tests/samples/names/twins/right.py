"""Without `__all__`: exports what begins with no underscore."""

_hidden = "of right"
counter = 0


def helper() -> str:
    return "right " + _hidden


def count() -> int:
    global counter
    counter += 1
    return counter
