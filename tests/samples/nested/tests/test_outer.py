import outer.middle
from outer.middle import inner, plain
from outer.run import run


def test_modules_on_both_sides_of_the_gap() -> None:
    assert run() == "outer.middle.inner.leaf"
    assert plain.NAME == inner.plain_name == "outer.middle.plain"


def test_the_gap_stays_a_gap() -> None:
    assert getattr(outer.middle, "__file__", None) is None
    assert next(iter(outer.middle.__path__)).endswith("middle")
