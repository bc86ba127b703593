"""six: one file that creates virtual modules."""

import io

import six
from six.moves import builtins, urllib
from six.moves.urllib.parse import urlencode


def test_virtual_modules_can_be_imported() -> None:
    assert builtins.len is len
    assert urlencode({"a": 1}) == "a=1"
    assert urllib.parse.quote(" ") == "%20"


def test_compatible_code_works() -> None:
    assert six.ensure_binary("é") == b"\xc3\xa9"
    assert list(six.iteritems({1: 2})) == [(1, 2)]
    assert six.StringIO is io.StringIO


def test_a_metaclass_of_another_kind() -> None:
    class Meta(type):
        pass

    @six.add_metaclass(Meta)
    class Thing:
        pass

    assert type(Thing) is Meta
