"""A name that is not ASCII."""

μ = 3.5


def länge(straße):
    return len(straße) * μ
