"""Knows nothing of `alpha` until it is asked."""


def greet(name: str) -> str:
    import alpha

    assert alpha.__name__ == name
    return f"{__package__} greets {name}"
