import nosy


def test_its_settings() -> None:
    assert nosy.run() == 3


def test_something_else() -> None:
    assert nosy.harmless() == 1
