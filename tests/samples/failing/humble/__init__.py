"""Not everything in it works."""


def run() -> int:
    return 1
