"""Begins with a mark."""

NAME = "böm"
