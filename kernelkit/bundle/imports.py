"""Reads what a module imports from its source with `ast`; no code is executed.

Only statements are walked, because imports are statements. Calls that import by name are searched
only where the source mentions such a function.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, cached_property

from kernelkit.bundle import syntax
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
_ENDS_PROGRAM = frozenset({"sys.exit", "exit", "quit", "os._exit", "os.abort"})

REMOVED = {
    **dict.fromkeys(("binhex", "formatter", "parser", "symbol", "macpath"), "3.11"),
    **dict.fromkeys(("asynchat", "asyncore", "distutils", "imp", "smtpd"), "3.12"),
    **dict.fromkeys(("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr"), "3.13"),
    **dict.fromkeys(("lib2to3", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev"), "3.13"),
    **dict.fromkeys(("pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"), "3.13"),
}
"""Modules of Python itself → the version that no longer has them."""

_STANDARD = sys.stdlib_module_names | REMOVED.keys() | {"__main__"}


_FIX_OR_EXCLUDE = 'Fix the file, or name it in "exclude" of [tool.kernelkit].'


class PythonSyntaxError(BundleError):
    """A file that is not valid Python: a sample or a template, unless something imports it."""


class ImportKind(Enum):
    """What happens to the program when an import fails."""

    NEEDED = "needed"
    LAZY = "lazy"
    """Inside a function, or in a branch that runs after another: the run may never reach it."""

    OPTIONAL = "optional"
    """Under a `try` that catches the failure, under a condition, by name, or declared so."""

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

    @property
    def top(self) -> str:
        """The top-level name that it loads."""
        return self.target.partition(".")[0]


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

    defined: frozenset[str]
    """The functions, classes and plain assignments of its top level: some of its names."""

    parsable: bytes | str
    """The content, or where its syntax is too new for this machine, a copy without that."""

    @property
    def is_newer(self) -> bool:
        """Whether this machine's Python does not know all of its syntax."""
        return isinstance(self.parsable, str)

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a folder."""
        return self.path.rpartition("/")[2] == "__init__.py"

    @cached_property
    def top_level_names(self) -> frozenset[str] | None:
        """Names bound at the top level, or declared global below; None where that is unknown."""
        try:
            with warnings.catch_warnings(action="ignore"):
                top = symtable.symtable(syntax.text_of(self.parsable), self.path, "exec")
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
        """Whether it may have the name, apart from `import *`; True where only the run decides."""
        if name in self.defined:  # most names: the rest takes time
            return True
        if self.makes_modules or any(mark in self.content for mark in _BINDS_UNSEEN):
            return True
        if name.startswith("__") and name.endswith("__"):
            return True
        names = self.top_level_names  # needs another pass of the parser
        return names is None or name in names

    @cached_property
    def stars(self) -> tuple[str, ...]:
        """The modules of which it imports everything."""
        return tuple(found.target for found in self.imports if "*" in found.names)

    @cached_property
    def exported(self) -> tuple[str, ...]:
        """What `__all__` names; empty unless it is one plain list."""
        values = [
            node.value
            for node in ast.walk(self.tree())
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
            and "__all__" in {name for part in ast.walk(node) for name in _bound_names(part)}
        ]
        if len(values) != 1 or not isinstance(values[0], ast.List | ast.Tuple):
            return ()
        words = [getattr(item, "value", None) for item in values[0].elts]
        return tuple(word for word in words if isinstance(word, str))

    def with_optional(self, names: Collection[str]) -> Module:
        """The same module; imports of these names, and of what is below them, are optional."""
        if not names:
            return self
        declared = {
            found: replace(found, kind=ImportKind.OPTIONAL)
            for found in self.imports
            if found.kind is not ImportKind.TYPING
            and not with_parents(found.candidates).isdisjoint(names)
        }
        return replace(self, imports=tuple(declared.get(found, found) for found in self.imports))

    def tree(self) -> ast.Module:
        """Its syntax, parsed again: the trees of all modules together would fill the memory."""
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(self.parsable)

    def signature(self, function: str) -> Signature | None:
        """The arguments of a plain function; None if it is decorated, bound twice or unknown."""
        nodes = list(ast.walk(self.tree()))
        bound = [node for node in nodes if function in _bound_names(node)]
        if len(bound) != 1 or not isinstance(bound[0], ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        found = bound[0]
        if found.decorator_list or found not in nodes[0].body:  # type: ignore[attr-defined]
            return None
        waits = isinstance(found, ast.AsyncFunctionDef)
        return Signature(
            accepted=frozenset(a.arg for a in (*found.args.args, *found.args.kwonlyargs)),
            required=frozenset(a.arg for a, value in syntax.arguments_of(found) if value is None),
            open=found.args.kwarg is not None,
            runs_when_called=not waits and not _yields(found),
        )

    @cached_property
    def makes_modules(self) -> bool:
        """Whether it may create modules without files."""
        return any(mark in self.content for mark in _MAKES_MODULES)


def read_module(
    name: str, path: str, content: bytes, *, is_package: bool, python: tuple[int, int] = syntax.HERE
) -> Module:
    """Parse one file, which is meant for the version `python`.

    Raises:
        PythonSyntaxError: the file is not valid Python; the message has the line.
        BundleError: a relative import leads out of the package; the message has the line.
    """
    try:
        parsed = syntax.parse(content, path, python)
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise PythonSyntaxError(f"{path}{line}: {error.msg}", _FIX_OR_EXCLUDE) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise PythonSyntaxError(
            f"{path}: cannot be read as Python: {error}", _FIX_OR_EXCLUDE
        ) from None
    package = name if is_package else name.rpartition(".")[0]
    try:
        found = list(_statements(parsed.tree, content, package, path))
        by_name, dynamic = _calls(parsed.tree, content, package)
    except RecursionError:
        raise PythonSyntaxError(
            f"{path}: cannot be read as Python: too deeply nested", _FIX_OR_EXCLUDE
        ) from None
    summary = (ast.get_docstring(parsed.tree) or "").partition("\n")[0].strip()
    return Module(
        name=name,
        path=path,
        content=content,
        summary=summary.encode(errors="replace").decode(),
        imports=(*found, *by_name),
        dynamic=tuple(dynamic),
        defined=frozenset(_defined(parsed.tree)),
        parsable=parsed.source,
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
        for node in ast.walk(modules[found.target].tree())
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
    modules: Iterable[Module], own: Collection[str], *kinds: ImportKind
) -> dict[str, tuple[str, ...]]:
    """Top-level names that are neither in `own` nor in Python → the places `path:line`."""
    return _places(
        (module, found)
        for module in modules
        for found in module.imports
        if is_foreign(found.top, own) and found.kind in kinds
    )


def is_foreign(name: str, own: Collection[str]) -> bool:
    """Whether a top-level name is neither in `own` nor in any version of Python."""
    return bool(name) and name not in own and name not in _STANDARD


def removed(modules: Iterable[Module], own: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Needed modules that some version of Python has removed → the places `path:line`."""
    return _places(
        (module, found)
        for module in modules
        for found in module.imports
        if found.top in REMOVED and found.top not in own and found.kind is ImportKind.NEEDED
    )


def _places(imports: Iterable[tuple[Module, Import]]) -> dict[str, tuple[str, ...]]:
    places: dict[str, set[tuple[str, int]]] = {}
    for module, found in imports:
        places.setdefault(found.top, set()).add((module.path, found.line))
    return {
        name: tuple(f"{path}:{line}" for path, line in sorted(found))
        for name, found in sorted(places.items())
    }


def _defined(tree: ast.Module) -> Iterator[str]:
    """The names that the statements of the top level surely bind, as far as one look shows them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id


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
                    raise BundleError(
                        f"{path}:{node.lineno}: a relative import beyond the package",
                        'Import by the full name, or name the folder above as the "package".',
                    )
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
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        first = _weaker(kind, ImportKind.LAZY)
    elif isinstance(node, ast.If):
        first, last = _kinds_under(node.test, kind, typing)
    elif _catches_failure(node):
        first, last = _weaker(kind, ImportKind.OPTIONAL), _weaker(kind, ImportKind.LAZY)
    yield getattr(node, "body", []), first
    yield getattr(node, "orelse", []), last
    yield getattr(node, "finalbody", []), kind
    for handler in getattr(node, "handlers", []):
        yield handler.body, _weaker(kind, ImportKind.LAZY)
    for case in getattr(node, "cases", []):
        yield case.body, _weaker(kind, ImportKind.OPTIONAL)


def _catches_failure(node: ast.stmt) -> bool:
    """Whether it catches a failed import in its body."""
    if isinstance(node, ast.Try | ast.TryStar):
        return any(
            (handler.type is None or _may_catch(handler.type)) and not _gives_up(handler.body[-1])
            for handler in node.handlers
        )
    if not isinstance(node, ast.With | ast.AsyncWith):
        return False
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    suppressing = [call for call in calls if ast.unparse(call.func).endswith("suppress")]
    return any(_may_catch(argument) for call in suppressing for argument in call.args)


def _gives_up(statement: ast.stmt) -> bool:
    """Whether a statement ends the program."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    ends = isinstance(call, ast.Call) and ast.unparse(call.func) in _ENDS_PROGRAM
    return ends or isinstance(statement, ast.Raise)


def _may_catch(types: ast.expr) -> bool:
    """Whether they may include ImportError; an unknown name counts as one."""
    names = {node.id for node in ast.walk(types) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(types) if isinstance(node, ast.Attribute)}
    classes = [getattr(builtins, name, ImportError) for name in names]
    return "ModuleNotFoundError" in names or any(
        isinstance(c, type) and issubclass(ImportError, c) for c in classes
    )


def _kinds_under(
    test: ast.expr, kind: ImportKind, typing: Collection[str]
) -> tuple[ImportKind, ImportKind]:
    """The kinds of an `if` and its `else`: an import under a condition is optional."""
    result = _outcome(test, typing)
    if result is not None:
        return (kind, ImportKind.TYPING) if result else (ImportKind.TYPING, kind)
    by_name = any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))
    weaker = _weaker(kind, ImportKind.LAZY if by_name else ImportKind.OPTIONAL)
    return weaker, weaker


def _outcome(test: ast.expr, typing: Collection[str]) -> bool | None:
    """What a condition is in a run, where nothing checks types; None where the source is silent."""
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if getattr(test, "id", getattr(test, "attr", None)) in typing:
        return False
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        result = _outcome(test.operand, typing)
        return None if result is None else not result
    if isinstance(test, ast.BoolOp):
        results = [_outcome(value, typing) for value in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in results:
            return decisive
        return None if None in results else not decisive
    return None


def _weaker(*kinds: ImportKind) -> ImportKind:
    """The kind of an import to which several apply."""
    return max(kinds, key=list(ImportKind).index)


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
        function = syntax.called_name(node)
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
