"""Bounds what a template of somebody else's project can do: what it reads, its time, its memory.

Rendering must not run code, so the environment is Jinja's sandbox. A template is read only from a
regular file, and only if no link leads out of the project. `{% include %}`, `{% import %}` and
`{% extends %}` find what was read, and never open a file themselves.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jinja2
from jinja2.filters import do_round
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kernelkit.errors import TemplateError

CPU_SECONDS = 5.0
"""For all templates of a project together: a notebook of 1,000 modules takes less than one."""

MEMORY_BYTES = 512 << 20  # more than before; a notebook has less than 1 MB
FILE_BYTES = 4 << 20  # of one template
INTEGER_BITS = 10_000  # Python cannot interrupt the computation of a very large one
DECIMALS = 1000


class TemplateTimeoutError(Exception):
    """The templates have used up their time."""


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without the operations on integers that could take hours."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """Calculate, unless the result would be too large."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits + right.bit_length() if operator == "*" else bits * abs(right)
            if bits > INTEGER_BITS:
                raise OverflowError("the result is too large")
        return super().call_binop(context, operator, left, right)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > DECIMALS:
        raise OverflowError("the precision is too large")
    return do_round(value, precision, method)  # type: ignore[arg-type]


def environment(find: Callable[[str], str | None]) -> jinja2.Environment:
    """Jinja's sandbox for notebooks; `find` gives the text of a template, None if there is none."""

    def load(name: str) -> tuple[str, str, None] | None:
        text = find(name)
        return None if text is None else (text, name, None)

    made = _Environment(
        loader=jinja2.FunctionLoader(load),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is a notebook, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["round"] = _round
    return made


class Limits:
    """The time and memory that the templates of a project may use."""

    def __init__(self) -> None:
        self._left = CPU_SECONDS

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Raise in the body once the limits are reached.

        The time can be limited in the main thread only, and the memory only on Linux.

        Raises:
            TemplateTimeoutError: the time is used up.
            MemoryError: the memory is.
        """
        with _limited_memory():
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            started = time.process_time()
            before = signal.signal(signal.SIGVTALRM, _end)
            signal.setitimer(signal.ITIMER_VIRTUAL, max(self._left, 0.001))
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)
                self._left -= time.process_time() - started


def read_templates(folder: Path, home: Path | None = None) -> dict[str, str]:
    """Name → text of every file in a folder of templates, also of those that others include.

    Hidden files and folders belong to an editor or to the system. `home` is the folder out of which
    no link may lead.

    Raises:
        TemplateError: a link leads out of `home`, or a file cannot be read.
    """
    _require_inside(folder, home, f"the folder of templates {folder.name}")
    texts = {}
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (name for name in [*folders, *names] if not name.startswith(".")):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            _require_inside(path, home, f"the template {relative}")
            if name not in folders and (text := _text(path, relative)) is not None:
                texts[relative] = text
    return dict(sorted(texts.items()))


def _require_inside(path: Path, home: Path | None, subject: str) -> None:
    try:
        inside = home is None or path.resolve().is_relative_to(home.resolve())
    except (OSError, RuntimeError):
        raise TemplateError(f"{subject} is an endless link") from None
    if not inside:
        raise TemplateError(
            f"{subject} is a link that leads out of the project",
            "Copy into the project what the notebook needs.",
        )


def _text(path: Path, name: str) -> str | None:
    """The content of a file; None for one that cannot be a template and makes no cell."""
    try:
        # The links of this path are checked: one that has taken its place since is not followed.
        descriptor = os.open(path.resolve(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("not a file")
            content = stream.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise OSError("too large")
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    except (OSError, RuntimeError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if name.endswith(".j2"):
        raise TemplateError(f"the template {name} {problem}")
    return None


@contextmanager
def _limited_memory() -> Iterator[None]:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    before, highest = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    if before != resource.RLIM_INFINITY:
        limit = min(limit, before)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, highest))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, highest))


def _end(_signal: int, _frame: object) -> None:
    raise TemplateTimeoutError(f"the templates take more than {CPU_SECONDS:g} s")
