from pathlib import Path

import alpha
import beta.base


def test_the_packages_import_each_other() -> None:
    assert alpha.run() == "beta greets alpha"


def test_the_packages_are_in_the_same_folder() -> None:
    assert Path(alpha.__file__).parents[1] == Path(beta.__file__).parents[1]
