"""Inspects itself: its version, its files, its source code, its documentation.

>>> from mirror import double
>>> double(21)
42
>>> print("a\\n\\nb".replace("\\n\\n", "|"))
a|b
"""

from mirror.glass import double

__version__ = "1.2.3"
__author__ = "nobody"


def describe() -> str:
    """Name and version.

    >>> describe()
    'mirror 1.2.3'
    """
    return f"{__name__} {__version__}"


__all__ = ["describe", "double"]
