"""Difficult cases for tools that bundle packages."""

__version__ = "1.2.3"
