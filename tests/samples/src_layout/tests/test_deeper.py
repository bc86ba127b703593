from pathlib import Path

import deeper
from deeper.main import run


def test_it_runs() -> None:
    assert run() == 9


def test_its_folder_is_not_part_of_its_name() -> None:
    assert deeper.__name__ == "deeper"
    assert Path(deeper.__file__).parent.name == "deeper"
