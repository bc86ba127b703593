"""A package inside the package."""

from .. import even as even
