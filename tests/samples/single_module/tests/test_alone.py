import pickle
from pathlib import Path

import alone


def test_it_runs() -> None:
    assert alone.run() == 42


def test_it_is_a_module_and_no_package() -> None:
    assert not hasattr(alone, "__path__")
    assert Path(alone.__file__).name == "alone.py"


def test_it_is_found_again_by_its_name() -> None:
    assert type(pickle.loads(pickle.dumps(alone.run()))) is alone.Answer
