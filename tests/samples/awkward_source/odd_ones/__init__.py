"""Source that a careless carrier changes."""


def run() -> None:
    pass
