import outer.middle
from outer.middle import inner, plain
from outer.run import run


def test_modules_above_and_below_a_folder_without_init_are_imported() -> None:
    assert run() == "outer.middle.inner.leaf"
    assert plain.NAME == inner.plain_name == "outer.middle.plain"


def test_the_folder_without_init_is_a_namespace() -> None:
    assert getattr(outer.middle, "__file__", None) is None
    assert next(iter(outer.middle.__path__)).endswith("middle")
