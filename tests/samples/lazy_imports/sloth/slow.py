"""What is taken where the fast one is missing."""


def speed() -> int:
    return 1
