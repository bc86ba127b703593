"""A package, a folder without `__init__.py` in it, and a package in that."""
