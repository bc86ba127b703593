"""Traps for whoever carries packages elsewhere."""

__version__ = "1.2.3"
