"""The folders of a run, and the `kaggle://` addresses that name paths in them."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path, PurePath
from typing import Any

from .deadline import time_left
from .faults import RuntimeFault
from .files import SEARCH_DEPTH, tree
from .recording import CONTAINERS, MAX_DEPTH

HOURS_LEFT = "kaggle://hours_left"
"""Until the run should have ended, as a number; None outside a run."""


class RunFolders:
    """Kaggle's folders, or those that the environment names.

    `input` is None outside Kaggle, where the environment names none.
    """

    def __init__(self) -> None:
        self.input = _folder("KAGGLE_INPUT_DIR", "/kaggle/input")
        self.working = _folder("KAGGLE_WORKING_DIR", "/kaggle/working") or Path.cwd()
        self.temp = _folder("KAGGLE_TEMP_DIR", "/kaggle/temp") or Path(tempfile.gettempdir())

    def resolve(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """The value with its addresses replaced, also in containers; without any, the same object.

        A user may have put anything into the parameters cell.
        """
        if isinstance(value, str) and value == HOURS_LEFT:
            left = time_left()
            return None if left is None else round(left / 3600, 4)
        if isinstance(value, str):
            return self._path_of(value) if value.startswith("kaggle://") else value
        if isinstance(value, PurePath):  # Path() makes one slash of two
            text = str(value)
            is_address = text.startswith("kaggle:/")
            return type(value)(self._path_of(f"kaggle://{text[8:]}")) if is_address else value
        if not isinstance(value, CONTAINERS) or id(value) in above or len(above) > MAX_DEPTH:
            return value
        above = (*above, id(value))
        if isinstance(value, dict):
            old = [part for item in value.items() for part in item]
        else:
            old = list(value)
        new = [self.resolve(part, above) for part in old]
        if all(part is before for part, before in zip(new, old, strict=True)):
            return value
        if isinstance(value, tuple | frozenset):
            return value._make(new) if hasattr(value, "_make") else type(value)(new)
        made: Any = copy.copy(value)  # of the same class, with its other attributes
        made.clear()
        if isinstance(value, dict):
            new = list(zip(new[::2], new[1::2], strict=True))
        (made.update if isinstance(value, dict | set) else made.extend)(new)
        return made

    def dataset(self, slug: str) -> Path:
        """The folder of the dataset with the packages.

        Raises:
            RuntimeFault: it is not mounted.
        """
        try:
            return self._find_input(slug)
        except RuntimeFault as fault:
            raise RuntimeFault(
                f"The package of this notebook is in the private dataset {slug}. {fault}\n"
                "Push with kernelkit, which publishes and attaches it, or attach it by hand."
            ) from None

    def _path_of(self, address: str) -> str:
        place, _, rest = address.removeprefix("kaggle://").partition("/")
        if place == "input":
            return str(self._find_input(rest))
        folder = {"working": self.working, "temp": self.temp}.get(place)
        if folder is None:
            raise RuntimeFault(f"{address}: this run has no folder {place!r}")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / rest)

    def _find_input(self, address: str) -> Path:
        if self.input is None:
            raise RuntimeFault(
                f"kaggle://input/{address}: this machine has no /kaggle/input. Outside Kaggle give "
                "the parameter a path, or name the folder of inputs in KAGGLE_INPUT_DIR."
            )
        slug, _, rest = address.partition("/")
        found = sorted(set(self._mounts(slug)))
        if len(found) == 1:
            return found[0] / rest
        reason = f"{len(found)} folders have that name" if found else "no folder has that name"
        raise RuntimeFault(
            f"kaggle://input/{address}: {reason}. Is {slug!r} among the kernel's sources, and were "
            f"its rules accepted? Found in {self.input}:\n{tree(self.input)}"
        )

    def _mounts(self, slug: str) -> list[Path]:
        assert self.input is not None
        base = self.input
        patterns = [
            f"competitions/{slug}",
            f"datasets/*/{slug}",
            f"notebooks/*/{slug}",
            f"models/*/{slug}",
            slug,
            *("/".join(["*"] * depth + [slug]) for depth in range(1, SEARCH_DEPTH)),
        ]
        for pattern in patterns:
            found = [path for path in base.glob(pattern) if path.is_dir()]
            if found:
                return found
        return []


def _folder(variable: str, default: str) -> Path | None:
    """The folder that the environment names, else Kaggle's own if it exists."""
    stated = os.environ.get(variable)
    if stated:
        return Path(stated)
    return Path(default) if Path(default).is_dir() else None
