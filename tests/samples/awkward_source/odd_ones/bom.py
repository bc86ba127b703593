"""Begins with a byte order mark."""

NAME = "böm"
