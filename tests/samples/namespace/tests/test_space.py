import subprocess
import sys

import space
from space.station.dock import run


def test_modules_are_imported_through_the_namespace() -> None:
    assert run() == "space.probe calls"


def test_the_package_is_a_namespace() -> None:
    assert getattr(space, "__file__", None) is None


def test_another_portion_can_join(tmp_path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "moon.py").write_text("LIGHT = 1\n")
    program = "import space.moon, space.probe; print(space.moon.LIGHT, space.probe.signal())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "1 space.probe calls\n", done.stderr
