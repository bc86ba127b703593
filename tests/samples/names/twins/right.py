"""Without `__all__`: exports the names that do not begin with an underscore."""

_hidden = "of right"
counter = 0


def helper() -> str:
    return "right " + _hidden


def count() -> int:
    global counter
    counter += 1
    return counter
