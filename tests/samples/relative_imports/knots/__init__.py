"""Relative imports, and two modules that import each other."""

from . import even, odd
from .deep.below import depth

__all__ = ["depth", "even", "odd"]
