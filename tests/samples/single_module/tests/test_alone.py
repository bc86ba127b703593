import pickle
from pathlib import Path

import alone


def test_the_module_runs() -> None:
    assert alone.run() == 42


def test_the_module_is_not_a_package() -> None:
    assert not hasattr(alone, "__path__")
    assert Path(alone.__file__).name == "alone.py"


def test_the_module_can_be_imported_by_name() -> None:
    assert type(pickle.loads(pickle.dumps(alone.run()))) is alone.Answer
