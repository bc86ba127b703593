"""Names that are made of a kernel's: of its datasets, and of its further kernels in campaigns."""

from __future__ import annotations

import re

from kernelkit.storage import digest_of_bytes

LONGEST_TITLE, SHORTEST_NAME = 50, 5
"""Characters of a title and its slug. Kaggle answers a longer title with a bare error 500 [A]. The
name of a dataset has at most as many [V, a check of the official client]."""

CHAIN_SUFFIX = "b"
"""Of the kernel with which a chain alternates."""

MARK_CHARACTERS = 6  # of the hash that replaces the end of a long slug

_LANE = re.compile(rf".+-(lane-[1-9]\d*|{CHAIN_SUFFIX})")


def lane_suffix(number: int) -> str:
    """The suffix of a lane of a sweep, which counts from 1."""
    return f"lane-{number}"


def derived_name(slug: str, suffix: str) -> str:
    """`<slug>-<suffix>`: at most as long as Kaggle accepts.

    A longer one is shortened, with a hash of the whole slug, so that two long names stay different.
    """
    name = f"{slug}-{suffix}"
    if len(name) <= LONGEST_TITLE:
        return name
    mark = digest_of_bytes(slug.encode())[:MARK_CHARACTERS]
    kept = slug[: LONGEST_TITLE - len(suffix) - len(mark) - 2].rstrip("-")
    return f"{kept}-{mark}-{suffix}"


def is_kernel_of(slug: str, name: str) -> bool:
    """Whether a kernel has the name of a project's kernel, or of one of its campaigns."""
    lane = _LANE.fullmatch(name)
    return name == slug or (lane is not None and name == derived_name(slug, lane[1]))
