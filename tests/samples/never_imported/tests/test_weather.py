def test_the_weather() -> None:
    assert "sun" in "sunny"
