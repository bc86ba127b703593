"""The entry: 16 checks, each a difficult case for a tool that bundles packages.

A check imports what it needs and returns its result; one that raises has failed.
"""

import importlib
import inspect
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

ENTRY_TEXT = "the first line\n    the second, indented\n\nthe last\n"
AWKWARD_TEXT = (
    "{{ not.a.template }} {% raw %} {# no comment #} $name {0} %s\n"
    "   \n"
    '\ta tab, \'quotes\', """three""", a back\\slash, '
    "\u2603, \xe9 \u6f22 \U0001f642, two\u2028lines\n"
    "%%writefile elsewhere.py\n"
    "!ls\n"
    "</script> trailing spaces   \n"
)
AREA_SOURCE = '''def area(width: int, height: int) -> int:
    """Width times height, and the unit."""
    return width * height + UNIT
'''
WORKERS_SECONDS = 60


def run(text: str) -> dict[str, bool]:
    """Write what each check finds to result.json and return it.

    `text` comes from the script or the notebook's cell that starts the checks; there it is a string
    of several lines.
    """
    results = {name: _passes(check) for name, check in _checks(text).items()}
    Path("result.json").write_text(json.dumps(results), encoding="utf-8")
    print(json.dumps(results))
    return results


def _checks(text: str) -> dict[str, Callable[[], bool]]:
    return {
        "relative import": _relative_import,
        "same-name functions": _same_name_functions,
        "import pkg.mod as m": _import_as,
        "dotted attribute": _dotted_attribute,
        "cycle": _cycle,
        "star and __all__": _star_and_all,
        "main guard": _main_guard,
        "importlib by name": _importlib_by_name,
        "pickle by qualified name": _pickle_by_qualified_name,
        "spawn pool": _spawn_pool,
        "inspect.getsource": _getsource,
        "package data": _package_data,
        "awkward strings": _awkward_strings,
        "multi-line string in the entry": lambda: text == ENTRY_TEXT,
        "version attribute": _version_attribute,
        "__file__": _file_attribute,
    }


def _passes(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except Exception:
        return False


def _relative_import() -> bool:
    from sixteen.shapes.flat import area

    return area(2, 3) == 7


def _same_name_functions() -> bool:
    from sixteen.left import side as left_side
    from sixteen.right import side as right_side

    return (left_side(), right_side()) == ("left", "right")


def _import_as() -> bool:
    import sixteen.left as renamed

    return renamed.side() == "left" and renamed.__name__ == "sixteen.left"


def _dotted_attribute() -> bool:
    import sixteen.shapes.deep.inner

    return sixteen.shapes.deep.inner.VALUE == 7


def _cycle() -> bool:
    from sixteen.ping import ping

    return ping(3) == "ping pong ping end"


def _star_and_all() -> bool:
    from sixteen import sky

    return sky.sirius == 1 and not hasattr(sky, "planet")


def _main_guard() -> bool:
    from sixteen import guarded

    return guarded.STARTED == [] and guarded.__name__ == "sixteen.guarded"


def _importlib_by_name() -> bool:
    return importlib.import_module("sixteen.plugins." + "found_by_name").ANSWER == 42


def _pickle_by_qualified_name() -> bool:
    from sixteen.records import Record

    pickled = pickle.dumps(Record("a", [1, 2]))
    return b"sixteen.records" in pickled and pickle.loads(pickled) == Record("a", [1, 2])


def _spawn_pool() -> bool:
    from sixteen.workers import square

    # This pool says when its workers die; multiprocessing.Pool would start new ones for ever.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(square, range(4), timeout=WORKERS_SECONDS)) == [0, 1, 4, 9]


def _getsource() -> bool:
    from sixteen.shapes.flat import area

    return inspect.getsource(area) == AREA_SOURCE


def _package_data() -> bool:
    labels = resources.files("sixteen") / "data" / "labels.csv"
    return labels.read_bytes() == b"name,value\na,1\nb,2\n"


def _awkward_strings() -> bool:
    from sixteen.strings import TEXT

    return TEXT == AWKWARD_TEXT


def _version_attribute() -> bool:
    import sixteen

    return sixteen.__version__ == "1.2.3"


def _file_attribute() -> bool:
    from sixteen.shapes import flat

    found = Path(flat.__file__)
    return found.parts[-3:] == ("sixteen", "shapes", "flat.py") and "UNIT" in found.read_text()
