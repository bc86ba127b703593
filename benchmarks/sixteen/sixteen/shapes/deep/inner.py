"""A module three folders down."""

from ..flat import area

VALUE = area(2, 3)
