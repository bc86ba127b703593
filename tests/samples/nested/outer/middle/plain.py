"""A module in a folder that is no package."""

NAME = __name__
