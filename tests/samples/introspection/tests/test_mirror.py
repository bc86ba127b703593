import doctest
import inspect
import traceback
from pathlib import Path

import mirror
import mirror.glass
import pytest


def test_getsource_returns_the_comments_too() -> None:
    assert mirror.glass.source_of_double() == (
        "def double(number: int) -> int:\n"
        "    # A comment, which only the file has.\n"
        "    return number * 2\n"
    )
    assert inspect.getsource(mirror.glass.Shout).startswith("class Shout(str):\n")
    assert inspect.getdoc(mirror.glass) == "Functions whose source is read."


def test_file_points_into_the_package_folder() -> None:
    assert mirror.glass.home().name == "mirror"
    assert sorted(path.name for path in mirror.glass.home().glob("*.py")) == [
        "__init__.py",
        "glass.py",
    ]
    assert Path(mirror.__file__).name == "__init__.py"
    assert [Path(path) for path in mirror.__path__] == [mirror.glass.home()]


def test_line_numbers_match_the_file() -> None:
    lines = Path(mirror.glass.__file__).read_text().splitlines()
    assert lines[mirror.glass.line() - 1] == "    return sys._getframe().f_lineno"


def test_a_traceback_shows_the_line() -> None:
    with pytest.raises(TypeError) as raised:
        mirror.double(None)
    assert "return number * 2" in "".join(traceback.format_exception(raised.value))


def test_the_version_is_an_attribute() -> None:
    assert mirror.describe() == "mirror 1.2.3"
    assert mirror.__spec__.origin == mirror.__file__


def test_doctests_pass() -> None:
    assert tuple(doctest.testmod(mirror)) == (0, 4)
