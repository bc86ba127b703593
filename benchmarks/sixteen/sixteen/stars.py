"""Names of which a star import takes one."""

__all__ = ["sirius"]

sirius = 1
planet = 2
