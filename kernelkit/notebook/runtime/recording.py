"""Any Python value as JSON of bounded size: the parameters and the error of a run."""

from __future__ import annotations

import collections
import datetime
import itertools
import json
import math
import traceback
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from .documents import Parameter

MAX_RECORDED = 5000  # values of one parameter in the manifest
MAX_CHARACTERS = 100_000  # of a text in the manifest
MAX_SHOWN = 1000  # characters of what has no form in JSON
MAX_DEPTH = 50
MAX_BITS = 1024  # of a number in the manifest: many programs read JSON numbers as doubles
MAX_ARRAY_BYTES = 8000

CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)


def recorded(value: object) -> Parameter:
    """A JSON value that describes any Python value: what has no form in JSON becomes text."""
    return _Recorder().record(value)


class _Recorder:
    def __init__(self) -> None:
        self._left = MAX_RECORDED
        self._above: list[int] = []

    def record(self, value: Any) -> Parameter:
        """One value, at most `MAX_RECORDED` in all."""
        self._left -= 1
        if self._left < 0 or id(value) in self._above or len(self._above) > MAX_DEPTH:
            return "…"
        self._above.append(id(value))
        try:
            return self._record(value)
        except Exception:  # an object of any class may raise anything
            return shown(value)
        finally:
            self._above.pop()

    def _record(self, value: Any) -> Parameter:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return bounded(str.__str__(value))
        if isinstance(value, int):
            number = int(value)
            return number if number.bit_length() <= MAX_BITS else hex(number)[:MAX_CHARACTERS]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        if isinstance(value, Mapping):
            return self._table(value)
        if isinstance(value, set | frozenset):
            return sorted(self._items(value), key=repr)
        if isinstance(value, CONTAINERS):
            return self._items(value)
        if hasattr(value, "tolist") and value.nbytes <= MAX_ARRAY_BYTES:  # numpy and torch
            return self.record(value.tolist())
        if isinstance(value, PurePath | datetime.date | datetime.time):
            return bounded(str(value))
        return shown(value)

    def _items(self, value: Iterable[Any]) -> list[Parameter]:
        return [self.record(item) for item in itertools.islice(value, max(self._left, 0) + 1)]

    def _table(self, value: Mapping[Any, Any]) -> Parameter:
        items = list(itertools.islice(value.items(), max(self._left, 0) + 1))
        if len({_key(key) for key, _ in items}) == len(items):
            return {_key(key): self.record(item) for key, item in items}
        return [[self.record(key), self.record(item)] for key, item in items]


def _key(key: object) -> str:
    """As JSON writes keys, and the text of those that it cannot write."""
    if isinstance(key, str):
        return bounded(str.__str__(key))
    if key is None or type(key) in (bool, int, float):
        return str(key) if isinstance(key, float) else json.dumps(key)[:MAX_CHARACTERS]
    return shown(key)


def bounded(text: str) -> str:
    """Text of bounded length that UTF-8 can encode."""
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS] + "…"
    return text.encode(errors="backslashreplace").decode()


def shown(value: object) -> str:
    """`repr`, of bounded length, for any object."""
    try:
        text = repr(value)
    except Exception as error:  # also of numbers with thousands of digits
        text = f"<{type(value).__name__}: {type(error).__name__} in its repr>"
    return bounded(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


def error_text(error: BaseException) -> str:
    """Type and message of an error, of bounded length; any error may fail to give them."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be read)"
    return bounded(f"{type(error).__name__}: {text}")


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it; of a long one the end."""
    try:
        lines = traceback.format_exception(error)
    except Exception:
        lines = [*traceback.format_tb(error.__traceback__), error_text(error)]
    return bounded("".join(lines)[-MAX_CHARACTERS:])
