"""attrs: two packages, `attrs` on top of `attr`, which generate code for each class."""

import pickle

import attr
import attrs
import pytest


@attrs.frozen
class Point:
    x: int = attrs.field(validator=attrs.validators.instance_of(int))
    y: int = attrs.field(default=0, converter=int)


@attr.s(auto_attribs=True, slots=True, order=True)
class Old:
    name: str = "a"


def test_both_names_mean_the_same() -> None:
    assert attrs.asdict(Point(1, "2")) == {"x": 1, "y": 2}
    assert attr.fields(Point).x.type is int
    assert attrs.validators.instance_of is attr.validators.instance_of


def test_validators_and_frozen_fields() -> None:
    with pytest.raises(TypeError, match="'x' must be"):
        Point("one")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Point(1).x = 2


def test_order_and_pickles() -> None:
    assert Old("a") < Old("b")
    assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
