"""Its tests do not import it."""


def run() -> None:
    pass
