"""Traps for tools that carry packages elsewhere."""

__version__ = "1.2.3"
