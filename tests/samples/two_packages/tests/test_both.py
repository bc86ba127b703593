from pathlib import Path

import alpha
import beta.base


def test_they_know_each_other() -> None:
    assert alpha.run() == "beta greets alpha"


def test_they_lie_side_by_side() -> None:
    assert Path(alpha.__file__).parents[1] == Path(beta.__file__).parents[1]
