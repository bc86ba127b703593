"""One half of a cycle."""

from sixteen import pong


def ping(times: int) -> str:
    """Play so many more strokes."""
    return "ping " + pong.pong(times - 1) if times else "end"
