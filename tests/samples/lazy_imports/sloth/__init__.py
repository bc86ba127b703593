"""Lazy imports, imports by name, conditional imports, imports for type checkers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sloth.heavy import Load

_LAZY = {"heavy", "plugins"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def plugin(name: str) -> Any:
    return importlib.import_module(f".plugins.{name}", __package__)


def lift(load: "Load") -> int:
    from sloth.heavy import weight

    return weight(load)


try:
    import no_such_module_at_all as fast
except ImportError:
    from sloth import slow as fast


def run() -> int:
    return fast.speed()
