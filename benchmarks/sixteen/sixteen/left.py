"""One of two modules whose functions have the same name."""


def side() -> str:
    """Say which one this is."""
    return "left"
