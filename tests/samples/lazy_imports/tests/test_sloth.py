import subprocess
import sys

import pytest
import sloth


def test_nothing_heavy_is_loaded_at_first() -> None:
    program = (
        "import sys, sloth; before = 'sloth.heavy' in sys.modules; sloth.heavy; "
        "print(before, 'sloth.heavy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


def test_a_module_attribute_that_is_made_when_asked_for() -> None:
    assert sloth.lift(2) == 4
    assert sloth.plugins.__name__ == "sloth.plugins"
    assert "heavy" in dir(sloth)
    with pytest.raises(AttributeError, match="no attribute 'light'"):
        _ = sloth.light


def test_a_plugin_is_found_by_its_name() -> None:
    assert sloth.plugin("climb").NAME == "sloth.plugins.climb"
    with pytest.raises(ModuleNotFoundError):
        sloth.plugin("fly")


def test_the_slow_one_is_taken() -> None:
    assert sloth.fast.__name__ == "sloth.slow"
    assert sloth.run() == 1


def test_what_only_type_checkers_see_is_not_there() -> None:
    assert not hasattr(sloth, "Load")
