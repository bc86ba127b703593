"""A module directly in the namespace."""


def signal() -> str:
    return f"{__name__} calls"
