import humble
import pytest


def test_works() -> None:
    assert humble.run() == 1


def test_fails() -> None:
    assert humble.run() == 2


@pytest.mark.skip(reason="for another day")
def test_waits() -> None:
    pass


@pytest.mark.xfail(strict=True)
def test_is_known_to_fail() -> None:
    assert humble.run() == 3


@pytest.fixture
def broken() -> None:
    raise OSError("no such luck")


def test_never_begins(broken: None) -> None:
    pass
