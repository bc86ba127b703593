"""Must not be loaded before it is wanted."""

Load = int


def weight(load: Load) -> int:
    return load * 2
