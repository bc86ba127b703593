"""Contains files that are not modules."""

import pkgutil
from importlib import resources


def words() -> list[str]:
    return resources.files("cargo").joinpath("data/wörter.txt").read_text("utf-8").split()


def table() -> bytes:
    found = pkgutil.get_data(__name__, "data/table.bin")
    assert found is not None
    return found
