from pathlib import Path

import deeper
from deeper.main import run


def test_the_package_runs() -> None:
    assert run() == 9


def test_src_is_not_part_of_the_package_name() -> None:
    assert deeper.__name__ == "deeper"
    assert Path(deeper.__file__).parent.name == "deeper"
