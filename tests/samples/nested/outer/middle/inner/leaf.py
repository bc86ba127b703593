"""The innermost."""

NAME = __name__
