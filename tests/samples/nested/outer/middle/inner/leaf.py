"""The innermost module."""

NAME = __name__
