"""A class to be pickled."""

from dataclasses import dataclass


@dataclass
class Record:
    """A name and its values."""

    name: str
    values: list[int]
