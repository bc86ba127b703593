"""What a star import brings."""

from sixteen.stars import *  # noqa: F403
