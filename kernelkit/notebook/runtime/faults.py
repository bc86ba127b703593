"""The error that ends a run."""

from __future__ import annotations


class RuntimeFault(Exception):
    """The run cannot continue; the message has the reason and the next step."""


class Stalled(RuntimeFault):
    """Nothing has happened for too long; the message says what was seen last."""
