"""Imports `alpha` only when the function is called."""


def greet(name: str) -> str:
    import alpha

    assert alpha.__name__ == name
    return f"{__package__} greets {name}"
