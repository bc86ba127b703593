"""A package in the package."""

from .. import even as even
