"""Generated packages of any size: the same number of modules gives the same bytes.

A package has modules of 100 lines in parts (sub-packages) of ten. A module imports the one before
it relatively and one of an earlier part absolutely, so that the imports form a graph without
cycles. The entry calls every module and writes one number to `result.json`.
"""

from __future__ import annotations

import random
from pathlib import Path
from string import Template

NAME = "made_up"
RESULT = "result.json"
LINES = 100  # of a module
MODULES_OF_A_PART = 10

_PROJECT = Template("""\
[tool.kernelkit]
package = "$name"
entry = "$name.main:run"
outputs = ["result.json"]
$layout
[tool.kernelkit.kernel]
id = "made-up"
title = "Made up"
""")

_STARTER = f'''"""Starts the package: `python run.py` leaves {RESULT} in the working folder."""

from {NAME}.main import run

if __name__ == "__main__":
    run()
'''

_MAIN = Template('''\
"""The entry: calls every part, and leaves the sum."""

import json
from pathlib import Path

from $name import (
$imports
)

PARTS = (
$parts
)


def run() -> int:
    """Write the sum over all parts to $result and return it."""
    total = sum(part.total(seed) for seed, part in enumerate(PARTS, start=7))
    Path("$result").write_text(json.dumps(total), encoding="utf-8")
    print(total)
    return total
''')

_HEAD = Template('''\
"""The $noun of the $place: how the $noun is $verb, and what the $other makes of it.

Values are whole numbers, reckoned modulo MODULUS; module $number of the package.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
$imports
MODULUS = 1_000_003
$limit_name = $limit
$rates_name = ($rates)
NAMES = {"$noun": $rate, "$place": $limit, "$other": $number}


@dataclass(frozen=True)
class $Class:
    """One $noun, as the $place gives it."""

    name: str
    """As it stands in the list of the $other."""

    value: int
    weight: float = $weight

    @property
    def heavy(self) -> bool:
        """Whether it weighs more than the $other."""
        return self.weight * self.value > $limit_name

    def $verb(self, times: int) -> $Class:
        """Return another one, $verb several times.

        This one stays as it is: the $other may still need it.
        """
        value = self.value
        for turn in range(times):
            value = (value * $rates_name[turn % len($rates_name)] + turn) % MODULUS
        return $Class(f"{self.name}-{times}", value, self.weight)


def scale(value: int) -> int:
    """Return the value on the scale of the $place."""
    return (value * $rate + $limit_name) % MODULUS


def work(seed: int) -> int:
    """Return what this module adds to the sum: its own steps, and those that it imports."""
    found = $Class("$noun", seed).$verb($times)
    total = scale(found.value) + found.heavy
    for step in [$steps]:
        total = (total + step(seed + total)) % MODULUS
    return total
''')

_STEPS = (
    Template('''

def count_$noun$index(value: int) -> int:
    """Count the letters of the $noun that the value picks.

    A $noun without letters counts as one: the $place has always been written down,
    even where no one has $verb it.
    """
    letters = Counter("$place and $other"[: 3 + value % 7])
    most, times = letters.most_common(1)[0]
    if most == "$letter":
        return times * $rate
    return sum(letters.values()) + times
'''),
    Template('''

def share_$noun$index(value: int) -> int:
    """Share the value among the names, the rest goes to the $place.

    Raises:
        KeyError: a name stands for nothing; the $other have none to give.
    """
    # In the order of the names, so that two runs share alike.
    shares = {name: value * weight % MODULUS for name, weight in NAMES.items()}
    rest = value - sum(shares.values())
    shares["$place"] = shares.get("$place", 0) + rest
    return max(shares.values()) % MODULUS
'''),
    Template('''

def walk_$noun$index(value: int) -> int:
    """Walk from the $noun to the $other in steps that shrink.

    The walk ends at $limit_name or after $times steps, whichever comes first, because
    beyond them the $place is as good as reached.
    """
    place, steps = abs(value), 0
    while place > $limit_name and steps < $times:
        # An odd place is left upwards: the $place lies higher.
        place = place // 2 if place % 2 == 0 else 3 * place + 1
        steps += 1
    return place % MODULUS + steps
'''),
    Template('''

def divide_$noun$index(value: int, parts: int = $times) -> int:
    """Divide the value as evenly as whole numbers allow.

    `parts` is the number of those who wait in the $place; the rest is carried on.

    Raises:
        RuntimeError: the $noun has been $verb already, and cannot be divided.
    """
    whole, rest = divmod(abs(value), parts)
    try:
        common = math.gcd(whole, rest) or $rate
    except ValueError as fault:
        raise RuntimeError(f"the $noun cannot be divided: {fault}") from fault
    return whole // common + rest
'''),
)

_NOUNS = ("tide", "harvest", "ledger", "signal", "crystal", "orbit", "thread", "lantern")
_PLACES = ("harbour", "valley", "archive", "tower", "mine", "station", "loom", "island")
_VERBS = ("turned", "stretched", "sorted", "filtered", "folded", "measured", "raised", "copied")
_LETTERS = "abehlnrt"


def write_package(folder: Path, modules: int, layout: str = "") -> None:
    """Write the project into `folder`: its project file, the package, and `run.py` to start it.

    `layout` is kernelkit's setting of that name; "" omits it.
    """
    parts = [
        range(first, min(first + MODULES_OF_A_PART, modules))
        for first in range(0, modules, MODULES_OF_A_PART)
    ]
    names = [_part(numbers[0]) for numbers in parts]
    files = {
        "pyproject.toml": _PROJECT.substitute(name=NAME, layout=layout_line(layout)),
        "run.py": _STARTER,
        f"{NAME}/__init__.py": '"""A made-up package."""\n\n__version__ = "1.0"\n',
        f"{NAME}/main.py": _MAIN.substitute(
            name=NAME,
            result=RESULT,
            imports="\n".join(f"    {name}," for name in names),
            parts="\n".join(f"    {name}," for name in names),
        ),
    }
    for name, numbers in zip(names, parts, strict=True):
        files[f"{NAME}/{name}/__init__.py"] = _part_init(numbers)
        for number in numbers:
            files[f"{NAME}/{name}/{_module(number)}.py"] = _module_source(number)
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")


def layout_line(layout: str) -> str:
    """The line of the project file that sets a layout, or nothing."""
    return f'layout = "{layout}"\n' if layout else ""


def _part(number: int) -> str:
    return f"part_{number // MODULES_OF_A_PART:03}"


def _module(number: int) -> str:
    return f"{_NOUNS[number % len(_NOUNS)]}_{number:04}"


def _part_init(numbers: range) -> str:
    names = [_module(number) for number in numbers]
    imports = "\n".join(f"from .{name} import work as {name}" for name in names)
    listed = "\n".join(f"    {name}," for name in names)
    return f'''"""Modules {numbers[0]} to {numbers[-1]}."""

{imports}

WORK = (
{listed}
)


def total(seed: int) -> int:
    """Return what the modules of this part add to the sum."""
    return sum(work(seed + place) for place, work in enumerate(WORK))
'''


def _module_source(number: int) -> str:
    """The head, as many steps as fit, and a table that fills the module up to LINES."""
    pick = random.Random(number)
    words = {
        "noun": _NOUNS[number % len(_NOUNS)],
        "place": pick.choice(_PLACES),
        "verb": pick.choice(_VERBS),
        "other": pick.choice(_NOUNS) + "s",
        "Class": pick.choice(_VERBS).title() + _NOUNS[number % len(_NOUNS)].title(),
        "limit_name": pick.choice(("LIMIT", "HIGHEST", "THRESHOLD")),
        "rates_name": pick.choice(("RATES", "FACTORS")),
        "letter": pick.choice(_LETTERS),
        "number": str(number),
        "limit": str(pick.randrange(20, 999)),
        "rate": str(pick.randrange(2, 99)),
        "times": str(pick.randrange(2, 9)),
        "weight": f"{pick.random():.3f}",
        "rates": ", ".join(str(pick.randrange(2, 999)) for _ in range(5)),
    }
    imports, imported = _imports(number, pick)
    head = _HEAD.safe_substitute(words, imports=imports)
    room, shapes = LINES - head.count("\n"), []
    for shape in pick.choices(_STEPS, k=LINES):
        needed = shape.template.count("\n")
        if needed > room - _TABLE_LEAST:
            break
        shapes.append(shape)
        room -= needed
    steps = [shape.substitute(words, index=f"_{n}") for n, shape in enumerate(shapes)]
    names = [step.split("(")[0].split()[-1] for step in steps]
    head = Template(head).substitute(steps=", ".join([*names, *imported]))
    source = head + "".join(steps) + _table(room, pick)
    assert source.count("\n") == LINES
    return source


def _imports(number: int, pick: random.Random) -> tuple[str, list[str]]:
    """The statements that import other modules, and the names that they bind."""
    lines, names = [], []
    part = number // MODULES_OF_A_PART
    if part:
        # At most half-way back: a chain through all modules would measure something else.
        other = pick.randrange(part * MODULES_OF_A_PART // 2 + 1)
        lines += [f"from {NAME}.{_part(other)}.{_module(other)} import scale as earlier"]
        names += ["earlier"]
    if number % MODULES_OF_A_PART:
        lines += [f"from .{_module(number - 1)} import scale as before"]
        names += ["before"]
    return "".join(f"\n{line}" for line in [*lines, ""]) if lines else "", names


_TABLE_LEAST = 5  # lines: two blank ones, the brackets, one entry


def _table(lines: int, pick: random.Random) -> str:
    entries = "".join(
        f'    "{pick.choice(_PLACES)} {pick.randrange(1000)}",\n'
        for _ in range(lines - _TABLE_LEAST + 1)
    )
    return f"\n\nTABLE = (\n{entries})\n"
