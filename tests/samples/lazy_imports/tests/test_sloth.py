import subprocess
import sys

import pytest
import sloth


def test_heavy_modules_are_not_loaded_at_import() -> None:
    program = (
        "import sys, sloth; before = 'sloth.heavy' in sys.modules; sloth.heavy; "
        "print(before, 'sloth.heavy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


def test_module_getattr_creates_an_attribute() -> None:
    assert sloth.lift(2) == 4
    assert sloth.plugins.__name__ == "sloth.plugins"
    assert "heavy" in dir(sloth)
    with pytest.raises(AttributeError, match="no attribute 'light'"):
        _ = sloth.light


def test_a_plugin_is_found_by_its_name() -> None:
    assert sloth.plugin("climb").NAME == "sloth.plugins.climb"
    with pytest.raises(ModuleNotFoundError):
        sloth.plugin("fly")


def test_a_guarded_import_falls_back_to_the_slow_module() -> None:
    assert sloth.fast.__name__ == "sloth.slow"
    assert sloth.run() == 1


def test_type_checking_imports_are_not_executed() -> None:
    assert not hasattr(sloth, "Load")
