import subprocess
import sys

import knots
import pytest
from knots.deep import below


def test_circular_imports_work() -> None:
    assert knots.even.is_even(10)
    assert knots.odd.is_odd(7)
    assert not knots.even.is_even(7)


def test_two_dots_import_from_the_parent() -> None:
    assert below.depth(3) == "odd"
    assert below.even is knots.even
    assert below.__package__ == "knots.deep"


@pytest.mark.parametrize("first", ["knots.odd", "knots.even", "knots.deep.below"])
def test_the_import_cycle_can_start_at_any_module(first: str) -> None:
    program = f"import {first}, knots; print(knots.depth(4))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "even\n", done.stderr
