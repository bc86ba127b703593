"""Each module must behave as written, and its bytes must be unchanged."""

import importlib
import inspect
from pathlib import Path

import odd_ones
import pytest
from odd_ones import bom, cells, continued, crlf, formfeed, latin, newlines, no_newline
from odd_ones import strings, tabs
from odd_ones.größe import länge

HOME = Path(odd_ones.__file__).parent


def test_templates_are_not_filled() -> None:
    assert strings.JINJA == "{{ kernel.title }} {%- raw -%} {# comment #} {" + "{"
    assert strings.__doc__.endswith("{" + "{ name }} {% if x %} {# gone #}.")


def test_quotes_and_backslashes() -> None:
    assert strings.TRIPLE == '"' * 3 + " inside, and " + "'" * 3 + " too"
    assert strings.BACKSLASHES == chr(92).join(["", "d+", "n", "", "", "n•"])
    assert strings.SURROGATE == chr(0xD800)


def test_what_looks_like_magic_is_text() -> None:
    assert strings.MAGIC.splitlines()[1] == "%%writefile other.py"
    assert strings.MAGIC.splitlines()[2:] == [
        "%matplotlib inline",
        "!rm -rf nothing",
        "?help",
        "what?",
        ">>> 1 + 1",
        "... 2",
        "In [3]: 4",
    ]
    assert not Path("other.py").exists()


def test_white_space_in_strings() -> None:
    assert strings.BLANKS == "first\n    \n\t\nlast"
    assert strings.TABS == "a" + chr(9) + "b"
    assert strings.CONTROL == chr(27) + "[0m" + chr(127)
    assert tabs.f(0) == chr(9)


def test_form_feeds() -> None:
    assert (formfeed.A, formfeed.B) == (1, 2)
    assert (HOME / "formfeed.py").read_bytes().count(b"\x0c") == 2


def test_line_ends_of_another_system() -> None:
    assert crlf.TEXT == "one\ntwo"
    assert (HOME / "crlf.py").read_bytes().count(b"\r\n") == 4


def test_a_byte_order_mark() -> None:
    assert bom.NAME == "böm"
    assert (HOME / "bom.py").read_bytes().startswith(b"\xef\xbb\xbf")


def test_the_last_line() -> None:
    assert no_newline.LAST == newlines.LAST == "here"
    assert (HOME / "no_newline.py").read_bytes().endswith(b'"here"')
    assert (HOME / "newlines.py").read_bytes().endswith(b'"here"\n\n\n\n')


def test_another_encoding() -> None:
    assert latin.NAME == "grüße"
    assert b"gr\xfc\xdfe" in (HOME / "latin.py").read_bytes()


def test_names_that_are_not_ascii() -> None:
    assert länge("abc") == 10.5
    assert (HOME / "größe.py").is_file()
    assert "straße" in inspect.getsource(länge)


def test_cell_markers_are_comments() -> None:
    assert cells.TWO == 2
    assert (HOME / "cells.py").read_text().splitlines()[0] == "# %% [markdown]"


@pytest.mark.parametrize(
    ("name", "size"), [("empty", 0), ("comments", 51), ("blank", 6)]
)
def test_modules_that_say_nothing(name: str, size: int) -> None:
    module = importlib.import_module(f"odd_ones.{name}")
    assert Path(module.__file__).stat().st_size == size
    assert not [known for known in vars(module) if not known.startswith("__")]


def test_lines_that_go_on() -> None:
    assert (continued.VALUE, continued.DONE) == (3, "yes")


def test_a_file_name_with_spaces() -> None:
    assert (HOME / "data file with spaces.txt").read_text() == "two  spaces\n"
