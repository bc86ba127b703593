"""Ends slowly."""

LAST = "here"



