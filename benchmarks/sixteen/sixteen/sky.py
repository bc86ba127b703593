"""What a star import binds."""

from sixteen.stars import *  # noqa: F403
