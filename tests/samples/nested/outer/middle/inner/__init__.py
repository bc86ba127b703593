"""A package inside that folder."""

from ..plain import NAME as plain_name

__all__ = ["plain_name"]
