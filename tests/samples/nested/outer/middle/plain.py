"""A module in a folder without `__init__.py`."""

NAME = __name__
