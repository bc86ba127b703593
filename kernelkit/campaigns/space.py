"""The parameters that a sweep varies: read from the project file, checked, enumerated.

Nothing here needs Optuna.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import overload

from kernelkit.config import Config, Parameter, is_literal, name_problem, near_miss
from kernelkit.errors import ConfigError

WHERE = "[tool.kernelkit.sweep.parameters]"
RANGE_KEYS = ("low", "high", "log", "step")

Point = dict[str, Parameter]
"""Name of each swept parameter → its value."""

Number = int | float

MOST_VALUES = 2**53
"""Of a range: Optuna keeps numbers as doubles, which are exact up to here."""


@dataclass(frozen=True)
class Steps(Sequence[float]):
    """The fractions from `low` to `high` in steps, each computed when it is asked for."""

    low: float
    high: float
    step: float

    def __len__(self) -> int:
        return int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return float(_exact(self.low) + number * _exact(self.step))

    def nearest(self, value: float) -> float:
        """The one of them that is nearest to a value."""
        number = round((_exact(value) - _exact(self.low)) / _exact(self.step))
        return self[min(max(number, 0), len(self) - 1)]


def _exact(value: float) -> Decimal:
    """A number as the project file writes it: steps do not add up exactly in binary."""
    return Decimal(repr(value))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are whole."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int)

    @property
    def values(self) -> Sequence[Number] | None:
        """All values, if there are finitely many."""
        if self.is_whole:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        return None if self.step is None else Steps(self.low, self.high, self.step)


@dataclass(frozen=True)
class Choices:
    """Any of these values, in the order of the project file."""

    values: tuple[Parameter, ...]


Dimension = Range | Choices


@dataclass(frozen=True)
class Space:
    """What a sweep varies, by the name of the parameter."""

    dimensions: Mapping[str, Dimension]

    @property
    def size(self) -> int | None:
        """How many points there are; None if there are infinitely many."""
        counts = [
            None if dimension.values is None else len(dimension.values)
            for dimension in self.dimensions.values()
        ]
        return None if None in counts else math.prod(count or 0 for count in counts)

    def points(self) -> Iterator[Point]:
        """Every point of a finite space; the last parameter changes first."""
        return map(self.point, range(self.size or 0))

    def point(self, number: int) -> Point:
        """A point of a finite space by its place among `points`, from 0."""
        found: Point = {}
        for name, dimension in reversed(list(self.dimensions.items())):
            values = dimension.values or ()
            number, place = divmod(number, len(values))
            found[name] = values[place]
        return {name: found[name] for name in self.dimensions}

    @property
    def first_point(self) -> Point:
        """One of its points: the first choices, and the low ends of the ranges."""
        return {
            name: dimension.values[0] if isinstance(dimension, Choices) else dimension.low
            for name, dimension in self.dimensions.items()
        }

    @property
    def text(self) -> str:
        """The same text for the same space, whatever its order in the file."""
        shown = {
            name: list(dimension.values)
            if isinstance(dimension, Choices)
            else {key: getattr(dimension, key) for key in RANGE_KEYS}
            for name, dimension in self.dimensions.items()
        }
        return json.dumps(shown, sort_keys=True)


def read_space(config: Config) -> Space:
    """The swept parameters of a project.

    Raises:
        ConfigError: there are none, or with every complaint, one a line.
    """
    stated = config.sweep.parameters if config.sweep else {}
    if not stated:
        raise ConfigError(
            f"{WHERE} names no parameters: there is nothing to vary",
            "Write some there, for example: learning_rate = { low = 1e-4, high = 1e-2, log = true }"
            ' or recipe = ["fast", "best"]',
        )
    dimensions: dict[str, Dimension] = {}
    complaints: list[str] = []
    for name, value in stated.items():
        try:
            if problem := name_problem(name):
                raise ValueError(problem)
            dimensions[name] = _dimension(value)
        except ValueError as error:
            complaints.append(f'{WHERE} "{name}" {error}')
    if complaints:
        raise ConfigError("\n".join(complaints), "Fix them in the project file.")
    return Space(dimensions)


def space_of(text: str) -> Space:
    """The space that has this text."""
    stated = json.loads(text)
    return Space({name: _dimension(_without_none(value)) for name, value in stated.items()})


def _without_none(value: Parameter) -> Parameter:
    """A dimension as the project file has it: TOML has no null."""
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if part is not None}


def _dimension(value: Parameter) -> Dimension:
    """What a value of the table means.

    Raises:
        ValueError: it means nothing.
    """
    if isinstance(value, list | tuple):
        return Choices(_choices(value))
    if isinstance(value, dict):
        return _range(value)
    raise ValueError(
        f"= {value!r}: must be a list of choices or a range such as {{ low = 1, high = 8 }}"
    )


def _choices(values: Sequence[Parameter]) -> tuple[Parameter, ...]:
    if not values:
        raise ValueError("= []: must have at least one choice")
    if bad := [value for value in values if not is_literal(value)]:
        raise ValueError(
            f"has the choice {bad[0]}: must be text, a finite number, true or false, a list or a "
            "table"
        )
    kinds = list(dict.fromkeys(map(_kind, values)))
    if len(kinds) > 1:
        raise ValueError(f"mixes {' and '.join(kinds)}: all choices must be of one kind")
    if any(isinstance(value, float) for value in values):  # [0, 1e-4] are numbers of one kind
        values = [float(value) for value in values]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"has the choice {value!r} twice")
    return tuple(values)


def _kind(value: Parameter) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "numbers"
    if isinstance(value, list):
        return "lists"
    return "text" if isinstance(value, str) else "tables"


def _range(table: Mapping[str, Parameter]) -> Range:
    for key in table:
        if key not in RANGE_KEYS:
            raise ValueError(f'has no key "{key}"{near_miss(key, RANGE_KEYS)}')
    for key in ("low", "high"):
        if key not in table:
            raise ValueError(f'is missing "{key}": a range has both ends, {{ low = 1, high = 8 }}')
    low, high, step = (table.get(key) for key in ("low", "high", "step"))
    log = table.get("log", False)
    for key, value in (("low", low), ("high", high), ("step", step)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value)):
            raise ValueError(f"{key} = {value!r}: must be a finite number")
    if not isinstance(log, bool):
        raise ValueError(f"log = {log!r}: must be true or false")
    assert low is not None
    assert high is not None
    if low >= high:
        raise ValueError(f"is empty: low = {low!r} must be below high = {high!r}")
    if not math.isfinite(high - low):
        raise ValueError(f"is too wide: high - low = {high - low!r} must be finite")
    if log and low <= 0:
        raise ValueError(f"low = {low!r}: a range with log = true must begin above 0")
    if log and step is not None:
        raise ValueError("has both log = true and a step: leave one of them out")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"step = {step!r}: must be above 0 and at most high - low")
    if isinstance(low, int) and isinstance(high, int):
        if max(abs(low), abs(high)) > MOST_VALUES:
            raise ValueError(f"has whole numbers above {MOST_VALUES:,}: write them as fractions")
        if isinstance(step, float):
            raise ValueError(
                f"step = {step!r}: low and high are whole numbers, so the step must be one; for "
                f"fractions write low = {float(low)!r}"
            )
        return Range(low, high, log, step)
    if step is not None and high / step - low / step > MOST_VALUES:
        raise ValueError(f"step = {step!r}: makes more than {MOST_VALUES:,} values")
    return Range(float(low), float(high), log, None if step is None else float(step))
