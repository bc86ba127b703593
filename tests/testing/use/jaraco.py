"""jaraco: a namespace without `__init__.py`, whose parts use each other, with a text file."""

import jaraco
from jaraco import text
from jaraco.context import suppress
from jaraco.functools import compose


def test_it_is_a_namespace() -> None:
    assert getattr(jaraco, "__file__", None) is None


def test_package_data_can_be_read() -> None:
    assert text.lorem_ipsum.startswith("Lorem ipsum dolor sit amet")
    assert text.WordSet.parse("camelCaseWords").underscore_separated() == "camel_Case_Words"


def test_the_parts_work_together() -> None:
    shout = compose(str.upper, text.FoldedCase)
    assert shout("quiet") == "QUIET"
    with suppress(KeyError):
        raise KeyError("not seen")


def test_words_are_folded() -> None:
    assert text.FoldedCase("Hello") in ["hELLO"]
    assert text.substitution("a", "b")("cat") == "cbt"
