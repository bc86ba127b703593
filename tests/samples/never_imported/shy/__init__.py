"""Its tests speak of other things."""


def run() -> None:
    pass
