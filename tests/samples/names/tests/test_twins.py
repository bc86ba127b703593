import twins
import twins.left as l
import twins.right
from twins.main import run


def test_functions_use_the_globals_of_their_own_module() -> None:
    assert run() == ("left of left", "right of right")
    assert twins.shared() == "left of left"
    assert twins._hidden == "of the package"


def test_a_star_import_binds_the_names_in_all() -> None:
    assert twins._exported == l._exported
    assert not hasattr(twins, "kept")
    assert twins.helper is twins.right.helper


def test_a_global_belongs_to_its_module() -> None:
    before = twins.right.counter
    assert twins.count() == before + 1 == twins.right.counter
    assert twins.counter == 0


def test_an_attribute_set_from_outside_is_seen_inside(monkeypatch) -> None:
    monkeypatch.setattr(l, "helper", lambda: "patched")
    assert twins.shared() == "patched"
    assert run()[1] == "right of right"
