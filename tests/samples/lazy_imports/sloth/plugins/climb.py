"""No import statement names this module."""

NAME = __name__
