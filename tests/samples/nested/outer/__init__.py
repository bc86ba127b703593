"""A package that contains a folder without `__init__.py`, which contains a package."""
