"""Reads what a module imports from its source with `ast`; no code is executed.

Only statements are walked, because imports are statements. Calls that import by name are searched
only where the source mentions such a function.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import symtable
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property

from kernelkit.errors import BundleError

_BY_NAME = frozenset(
    {"import_module", "__import__", "run_module", "run_path", "iter_modules", "walk_packages"}
    | {"resolve_name", "spec_from_file_location", "exec", "eval"}
)
_BY_NAME_BYTES = (b'"-m"', b"'-m'", *(name.encode() for name in sorted(_BY_NAME)))
_MAKES_MODULES = (b"sys.modules", b"__path__", b"meta_path")
"""Words in a source that may create modules without files, as six.moves does."""

_BINDS_UNSEEN = (b"__getattr__", b"globals()", b"vars()", b"locals()", b"exec(", b"setattr(")
"""Words in a source that may bind names that the source does not show."""

_COMPOUND = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.Try, ast.TryStar),
    *(ast.With, ast.AsyncWith, ast.For, ast.AsyncFor, ast.While, ast.Match),
)
_TYPING_NAMES = re.compile(rb"\bTYPE_CHECKING\s+as\s+(\w+)")


class PythonSyntaxError(BundleError):
    """A file that is not valid Python: a sample or a template, unless something imports it."""


class ImportKind(Enum):
    """What happens to the program when an import fails."""

    NEEDED = "needed"
    OPTIONAL = "optional"
    """Under a `try` that catches the failure, under a condition, or by name."""

    TYPING = "typing"
    """Only for type checkers: never executed."""


@dataclass(frozen=True)
class Import:
    """One import, with a relative target made absolute (PEP 328)."""

    target: str
    line: int
    kind: ImportKind
    names: tuple[str, ...] = ()
    """The names of a `from` import; "*" for everything."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Every name that may be a module: `from a import b` loads a, and a.b if there is one."""
        return (self.target, *(f"{self.target}.{name}" for name in self.names))


@dataclass(frozen=True)
class Signature:
    """The arguments of a function, by name."""

    accepted: frozenset[str]
    required: frozenset[str]
    open: bool
    """Whether it accepts any other keyword."""

    runs_when_called: bool
    """False for coroutines and generators, which have not run when the call returns."""


@dataclass(frozen=True)
class Module:
    """One Python file."""

    name: str
    path: str
    """Relative to the project, for messages."""

    content: bytes
    summary: str
    """The first line of its docstring."""

    imports: tuple[Import, ...]
    dynamic: tuple[int, ...]
    """Lines that import a module whose name only the run knows."""

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a folder."""
        return self.path.rpartition("/")[2] == "__init__.py"

    @cached_property
    def top_level_names(self) -> frozenset[str] | None:
        """Names bound at the top level, or declared global below; None where that is unknown."""
        source = importlib.util.decode_source(self.content)
        try:
            with warnings.catch_warnings(action="ignore"):
                top = symtable.symtable(source, self.path, "exec")
        except (SyntaxError, RecursionError):  # errors that only compiling finds
            return None
        names = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
        pending = top.get_children()
        while pending:
            table = pending.pop()
            pending += table.get_children()
            names |= {s.get_name() for s in table.get_symbols() if s.is_declared_global()}
        return frozenset(names)

    def may_bind(self, name: str) -> bool:
        """Whether it may have the name; True also where only the run decides."""
        stars = any("*" in found.names for found in self.imports)
        unseen = stars or self.makes_modules or any(mark in self.content for mark in _BINDS_UNSEEN)
        dunder = name.startswith("__") and name.endswith("__")
        names = self.top_level_names
        return unseen or dunder or names is None or name in names

    def signature(self, function: str) -> Signature | None:
        """The arguments of a plain function; None if it is decorated, bound twice or unknown."""
        nodes = list(ast.walk(ast.parse(self.content)))
        bound = [node for node in nodes if function in _bound_names(node)]
        if len(bound) != 1 or not isinstance(bound[0], ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        found = bound[0]
        if found.decorator_list or found not in nodes[0].body:  # type: ignore[attr-defined]
            return None
        given = found.args
        by_place = [*given.posonlyargs, *given.args]
        required = by_place[: len(by_place) - len(given.defaults)]
        by_name = [
            argument
            for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
            if default is None
        ]
        waits = isinstance(found, ast.AsyncFunctionDef)
        return Signature(
            accepted=frozenset(a.arg for a in (*given.args, *given.kwonlyargs)),
            required=frozenset(a.arg for a in (*required, *by_name)),
            open=given.kwarg is not None,
            runs_when_called=not waits and not _yields(found),
        )

    @cached_property
    def makes_modules(self) -> bool:
        """Whether it may create modules without files."""
        return any(mark in self.content for mark in _MAKES_MODULES)


def read_module(name: str, path: str, content: bytes, *, is_package: bool) -> Module:
    """Parse one file.

    Raises:
        PythonSyntaxError: the file is not valid Python; the message has the line.
        BundleError: a relative import leads out of the package; the message has the line.
    """
    try:
        tree = ast.parse(content, filename=path)
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise PythonSyntaxError(f"{path}{line}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise PythonSyntaxError(f"{path}: cannot be read as Python: {error}") from None
    package = name if is_package else name.rpartition(".")[0]
    try:
        found = list(_statements(tree, content, package, path))
        by_name, dynamic = _calls(tree, content, package)
    except RecursionError:
        raise PythonSyntaxError(f"{path}: cannot be read as Python: too deeply nested") from None
    summary = (ast.get_docstring(tree) or "").partition("\n")[0].strip()
    return Module(
        name=name,
        path=path,
        content=content,
        summary=summary.encode(errors="replace").decode(),
        imports=(*found, *by_name),
        dynamic=tuple(dynamic),
    )


def with_parents(names: Iterable[str]) -> set[str]:
    """The names, and the packages around them that an import loads first."""
    return set().union(*map(_with_parents, names))


@cache
def _with_parents(name: str) -> frozenset[str]:
    return frozenset(name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1))


def graph(modules: Mapping[str, Module], *, typing: bool = True) -> dict[str, frozenset[str]]:
    """Module → the other modules of `modules` that its imports load."""
    known = modules.keys()
    return {
        name: frozenset(
            with_parents(
                candidate
                for found in module.imports
                if typing or found.kind is not ImportKind.TYPING
                for candidate in (*found.candidates, *_behind_star(found, modules))
            )
            & known
        )
        - {name}
        for name, module in modules.items()
    }


def _behind_star(found: Import, modules: Mapping[str, Module]) -> list[str]:
    """The modules that `from package import *` loads, because its `__all__` names them."""
    if "*" not in found.names or found.target not in modules:
        return []
    words = {
        node.value
        for node in ast.walk(ast.parse(modules[found.target].content))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return [f"{found.target}.{word}" for word in words if f"{found.target}.{word}" in modules]


def reachable(links: Mapping[str, Collection[str]], starts: Iterable[str]) -> set[str]:
    """Everything that `links` lead to, including the starts and the packages around them."""
    pending = [name for name in with_parents(starts) if name in links]
    seen = set(pending)
    while pending:
        following = (with_parents(links[pending.pop()]) & links.keys()) - seen
        seen |= following
        pending += following
    return seen


def in_order(links: Mapping[str, Collection[str]]) -> list[str]:
    """Sort modules so that imports come first, else by name; cycles are broken."""
    order: dict[str, None] = {}
    seen: set[str] = set()
    for start in sorted(links):
        stack = [(start, iter(sorted(links[start])))] if start not in seen else []
        seen.add(start)
        while stack:
            module, waiting = stack[-1]
            following = next((name for name in waiting if name not in seen), None)
            if following is None:
                order[module] = None
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(links[following]))))
    return list(order)


def third_party(
    modules: Iterable[Module], own: Collection[str], kind: ImportKind
) -> dict[str, tuple[str, ...]]:
    """Top-level names that are neither in `own` nor in Python → the places `path:line`."""
    places: dict[str, set[tuple[str, int]]] = {}
    for module in modules:
        for found in module.imports:
            name = found.target.partition(".")[0]
            foreign = name and name not in own and name not in sys.stdlib_module_names
            if foreign and found.kind is kind:
                places.setdefault(name, set()).add((module.path, found.line))
    return {
        name: tuple(f"{path}:{line}" for path, line in sorted(found))
        for name, found in sorted(places.items())
    }


def _bound_names(node: ast.AST) -> list[str]:
    """The names that one node binds, in any scope."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.alias):
        return [node.asname or node.name]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def _yields(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a generator: with a `yield` of its own, not of an inner function."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return False


def _statements(tree: ast.Module, content: bytes, package: str, path: str) -> Iterator[Import]:
    typing = {"TYPE_CHECKING", "MYPY"}
    if b"TYPE_CHECKING" in content:
        typing |= {name.decode() for name in _TYPING_NAMES.findall(content)}
    nested = _may_import_below_top(content)
    pending: list[tuple[list[ast.stmt], ImportKind]] = [(tree.body, ImportKind.NEEDED)]
    while pending:
        body, kind = pending.pop()
        for node in body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, node.lineno, kind)
            elif isinstance(node, ast.ImportFrom):
                target = _absolute(node.module or "", node.level, package)
                if target is None and kind is ImportKind.NEEDED:
                    raise BundleError(f"{path}:{node.lineno}: a relative import beyond the package")
                if target is None:  # the import fails, and the program handles that
                    continue
                yield Import(target, node.lineno, kind, tuple(a.name for a in node.names))
            elif nested and isinstance(node, _COMPOUND):
                pending += _bodies(node, kind, typing)


def _may_import_below_top(content: bytes) -> bool:
    """Whether the words of an import follow white space, a colon or a semicolon.

    Most files import only at the top level, and then their functions and classes need no walk.
    """
    for word in (b"import", b"from"):
        at = content.find(word)
        while at >= 0:
            start = max(content.rfind(b"\n", 0, at), content.rfind(b"\r", 0, at)) + 1
            before = content[start:at].rstrip(b" \t\f")
            if start < at and (not before or before[-1:] in (b":", b";")):
                return True
            at = content.find(word, at + 1)
    return False


def _bodies(
    node: ast.stmt, kind: ImportKind, typing: Collection[str]
) -> Iterator[tuple[list[ast.stmt], ImportKind]]:
    """The blocks of a compound statement, each with the kind of an import in it."""
    first = last = kind
    if isinstance(node, ast.If):
        first, last = _kinds_under(node.test, kind, typing)
    elif _catches_failure(node):
        first = _weaker(kind, ImportKind.OPTIONAL)
    yield getattr(node, "body", []), first
    yield getattr(node, "orelse", []), last
    yield getattr(node, "finalbody", []), kind
    for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
        yield part.body, kind


def _catches_failure(node: ast.stmt) -> bool:
    """Whether it catches a failed import in its body."""
    if isinstance(node, ast.Try | ast.TryStar):
        return any(
            (handler.type is None or _may_catch(handler.type))
            and not isinstance(handler.body[-1], ast.Raise)
            for handler in node.handlers
        )
    if not isinstance(node, ast.With | ast.AsyncWith):
        return False
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    suppressing = [call for call in calls if ast.unparse(call.func).endswith("suppress")]
    return any(_may_catch(argument) for call in suppressing for argument in call.args)


def _may_catch(types: ast.expr) -> bool:
    """Whether they may include ImportError; an unknown name counts as one."""
    names = {node.id for node in ast.walk(types) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(types) if isinstance(node, ast.Attribute)}
    classes = [getattr(builtins, name, ImportError) for name in names]
    return any(isinstance(c, type) and issubclass(ImportError, c) for c in classes) or bool(
        names & {"ModuleNotFoundError"}
    )


def _kinds_under(
    test: ast.expr, kind: ImportKind, typing: Collection[str]
) -> tuple[ImportKind, ImportKind]:
    """The kinds of an `if` and its `else`: an import under a condition is optional."""
    tested = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(test)}
    if tested & set(typing):
        negated = isinstance(test, ast.UnaryOp)
        return (kind, ImportKind.TYPING) if negated else (ImportKind.TYPING, kind)
    if isinstance(test, ast.Constant):
        return (
            (kind, ImportKind.TYPING) if test.value else (ImportKind.TYPING, kind)
        )  # never executed, too
    if "__name__" in tested:
        return kind, kind
    return _weaker(kind, ImportKind.OPTIONAL), _weaker(kind, ImportKind.OPTIONAL)


def _weaker(one: ImportKind, other: ImportKind) -> ImportKind:
    return one if one is ImportKind.TYPING else other


def _absolute(module: str, level: int, package: str) -> str | None:
    """The module that a `from` import names (PEP 328); None beyond the top-level package."""
    if not level:
        return module
    base = package.split(".") if package else []
    if level > len(base):
        return None
    base = base[: len(base) - (level - 1)]
    return ".".join([*base, *([module] if module not in ("", "__init__") else [])])


def _calls(tree: ast.Module, content: bytes, package: str) -> tuple[list[Import], list[int]]:
    """Imports by a literal name, and the lines that import by a computed name."""
    by_name: list[Import] = []
    dynamic: list[int] = []
    if not any(mark in content for mark in _BY_NAME_BYTES):
        return by_name, dynamic
    nodes = list(ast.walk(tree))
    renamed = {a.asname for a in nodes if isinstance(a, ast.alias) and a.name in _BY_NAME}
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value == "-m":
            dynamic.append(node.lineno)
        if not isinstance(node, ast.Call):
            continue
        function = getattr(node.func, "id", getattr(node.func, "attr", ""))
        runs_text = function in ("exec", "eval")
        if function not in _BY_NAME and function not in renamed:
            continue
        if runs_text and isinstance(node.func, ast.Attribute):  # as a model's eval()
            continue
        target = None if runs_text else _named_target(node, package)
        if target is None:
            dynamic.append(node.lineno)
        else:
            by_name.append(Import(target, node.lineno, ImportKind.OPTIONAL))
    return by_name, dynamic


def _named_target(call: ast.Call, package: str) -> str | None:
    """The module that `import_module("a.b")` names; a relative name is one of this package."""
    first = call.args[0] if call.args else None
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return None
    name = first.value
    level = len(name) - len(name.lstrip("."))
    around = [ast.unparse(word) for word in (*call.args[1:], *(k.value for k in call.keywords))]
    if level and around not in (["__package__"], ["__name__"], [repr(package)]):
        return None
    return _absolute(name[level:].partition(":")[0], level, package) or None
