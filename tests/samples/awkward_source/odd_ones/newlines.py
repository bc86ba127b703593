"""Ends in several newlines."""

LAST = "here"



