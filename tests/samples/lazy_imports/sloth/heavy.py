"""Must not be imported before it is needed."""

Load = int


def weight(load: Load) -> int:
    return load * 2
