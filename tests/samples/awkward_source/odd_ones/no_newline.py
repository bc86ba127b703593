"""Ends at once."""

LAST = "here"