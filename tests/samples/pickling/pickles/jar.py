"""A dataclass, an enum and a function, each pickled by its qualified name."""

import multiprocessing
from dataclasses import dataclass, field
from enum import Enum


class Taste(Enum):
    SOUR = "sour"
    SWEET = "sweet"


@dataclass(frozen=True)
class Jar:
    size: int
    taste: Taste = Taste.SOUR
    lids: tuple[str, ...] = field(default=("tin",))

    class Label:
        text = "inner class"


def halve(jar: Jar) -> Jar:
    return Jar(jar.size // 2, jar.taste)


def run(sizes: tuple[int, ...] = (2, 8)) -> list[Jar]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(halve, [Jar(size, Taste.SWEET) for size in sizes])
