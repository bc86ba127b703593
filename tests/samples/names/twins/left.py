"""Exports less than it defines."""

__all__ = ["shared", "_exported"]

_exported = "although it begins with an underscore"
kept = "at home"
_hidden = "of left"


def shared() -> str:
    return helper()


def helper() -> str:
    return "left " + _hidden
