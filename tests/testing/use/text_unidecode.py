"""text_unidecode: its table is a binary file next to the code."""

import pytest
from text_unidecode import unidecode


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("größe", "grosse"),
        ("Ślůnsk", "Slunsk"),
        ("北京", "Bei Jing "),
        ("плюс", "plius"),
        ("a", "a"),
    ],
)
def test_letters(text: str, plain: str) -> None:
    assert unidecode(text) == plain
