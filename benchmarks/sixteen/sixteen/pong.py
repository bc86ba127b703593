"""The other half of a cycle."""

from sixteen import ping


def pong(times: int) -> str:
    """Play so many more strokes."""
    return "pong " + ping.ping(times - 1) if times else "end"
