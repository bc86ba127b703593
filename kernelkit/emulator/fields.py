"""The JSON of a call: typed reading of its fields, answers without empty fields, and pages."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import Any, TypeVar

from kernelkit.emulator.responses import Reply, RequestRefused, json_reply

PAGE, MAX_PAGE = 20, 200
"""Entries of a page: the default and the maximum [D]."""

T = TypeVar("T")


class RequestFields:
    """The fields of a request, read with a type check. Unknown ones are ignored, as Kaggle does."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        """A string; empty if it is missing."""
        return self._typed(name, str, "")

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        return self._typed(name, bool, default)

    def number(self, name: str) -> int | None:
        """An integer; None if it is missing."""
        value = self._typed(name, int, -1) if self._fields.get(name) is not None else None
        if isinstance(value, bool):
            raise RequestRefused(400, f"Invalid value for {name}")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self._typed(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise RequestRefused(400, f"Invalid value for {name}")
        return tuple(values)

    def inner(self, name: str) -> RequestFields:
        """The fields of an object; none if it is missing."""
        return RequestFields(self._typed(name, dict, {}))

    def items(self, name: str) -> list[RequestFields]:
        """A list of objects."""
        values = self._typed(name, list, [])
        if not all(isinstance(value, dict) for value in values):
            raise RequestRefused(400, f"Invalid value for {name}")
        return [RequestFields(value) for value in values]

    def _typed(self, name: str, kind: type[T], default: T) -> T:
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise RequestRefused(400, f"Invalid value for {name}")
        return value


class JsonObject(dict[str, object]):
    """An object of a response, without empty strings, empty lists and missing values.

    The real service leaves defaults out; a null list crashes the client [V].
    """

    def __init__(self, **fields: object) -> None:
        super().__init__({k: value for k, value in fields.items() if value not in ("", [], None)})


def answer(**fields: object) -> Reply:
    """A successful response, its empty fields left out."""
    return json_reply(200, JsonObject(**fields))


def page_of(items: Sequence[T], listing: str, fields: RequestFields) -> tuple[Sequence[T], str]:
    """The page that a token or a number asks for, and the token of the next page, if there is one.

    A token belongs to the `listing` that returned it.
    """
    size = min(fields.number("pageSize") or PAGE, MAX_PAGE)
    number = fields.number("page") or 1
    if size < 1 or number < 1:
        raise RequestRefused(400, "Invalid value for pageSize or page")
    token = fields.text("pageToken")
    start = _page_start(listing, token) if token else (number - 1) * size
    end = start + size
    return items[start:end], _page_token(listing, end) if end < len(items) else ""


def _page_token(listing: str, start: int) -> str:
    """Letters and digits only: the official client passes it on a command line."""
    return base64.b16encode(f"{listing}:{start}".encode()).decode()


def _page_start(listing: str, token: str) -> int:
    with contextlib.suppress(ValueError):
        owner, _, start = base64.b16decode(token).decode().rpartition(":")
        if owner == listing and start.isdecimal():
            return int(start)
    raise RequestRefused(400, "Invalid page token")


def iso_time(seconds: float) -> str:
    """A moment (seconds since the epoch) in the form that Kaggle sends."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
