"""Source code that is easily changed by mistake when it is copied."""


def run() -> None:
    pass
