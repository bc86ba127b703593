"""A package on disk becomes a `Bundle`: its files verbatim, what imports what, and a digest.

Source is read by `ast` and never imported: what cannot be imported here can still be carried.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import symtable
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from kernelkit.config import near_miss
from kernelkit.errors import BundleError

COMPILED_SUFFIXES = frozenset({".so", ".pyd", ".dylib", ".dll"})
LEFT_OUT_SUFFIXES = frozenset({".pyc", ".pyo", ".ipynb"})
GIT_TIMEOUT_SECONDS = 20  # a repository on a slow disk; without git's word a bundle is "unknown"


@dataclass(frozen=True)
class SourceFile:
    """One file of the package, as it lies on disk."""

    path: str
    """Below the folder that holds the package, with forward slashes: `pkg/sub/mod.py`."""

    content: bytes
    module: str | None
    """The name under which Python imports it; None for a data file."""

    imports: tuple[str, ...] = ()
    """Modules of the same package that it imports, anywhere in its code."""

    summary: str = ""
    """The first line of its docstring."""

    @cached_property
    def sha256(self) -> str:
        """Of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where the source stood: the commit, and whether the folder differed from it."""

    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class Bundle:
    """A package ready to be rendered."""

    package: str
    entry: str
    files: tuple[SourceFile, ...]
    """Modules so that what is imported comes before what imports it, then data files by name."""

    third_party: Mapping[str, tuple[str, ...]]
    """Top-level names imported from elsewhere → the places `path:line` that do it."""

    provenance: Provenance

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every path and content: changes exactly when one of them does."""
        return digest_of([(file.path, file.sha256) for file in self.files])


@dataclass(frozen=True)
class _Import:
    target: str
    line: int
    optional: bool
    """Inside a `try` that catches its failure, or for type checkers alone."""

    names: tuple[str, ...] = ()


def read_bundle(package_folder: Path, entry: str) -> Bundle:
    """Read the package in `package_folder`; `entry` is "package.module:function".

    Raises:
        BundleError: the folder is no package, a file does not parse, an import of its own modules
            or the entry leads nowhere, or it holds a compiled extension.
    """
    root = package_folder.parent
    paths = _list_files(package_folder)
    modules = {name: path for path in paths if (name := _module_name(path)) is not None}
    trees = {name: _parse(root, path) for name, path in modules.items()}
    imports = {
        name: list(_imports(tree, name, modules[name].name == "__init__.py"))
        for name, tree in trees.items()
    }
    own = _OwnModules(package_folder.name, frozenset(modules))
    _check_own_imports(imports, modules, own)
    graph = {name: own.imported_by(name, imports[name]) for name in modules}
    data = [path for path in paths if _module_name(path) is None]
    files = (
        *(_module(root, modules[m], m, graph[m], trees[m]) for m in _import_order(graph)),
        *(SourceFile(str(path), (root / path).read_bytes(), module=None) for path in data),
    )
    _check_entry(entry, files)
    return Bundle(
        package=package_folder.name,
        entry=entry,
        files=files,
        third_party=_third_party(imports, modules, own),
        provenance=_provenance(package_folder),
    )


def digest_of(parts: list[tuple[str, str]]) -> str:
    """SHA-256 over named parts in the order of their names; no two sets of parts read alike."""
    state = hashlib.sha256()
    for name, value in sorted(parts):
        for text in (name, value):
            encoded = text.encode()
            state.update(len(encoded).to_bytes(8, "big") + encoded)
    return state.hexdigest()


def _list_files(package_folder: Path) -> list[PurePosixPath]:
    """Sorted paths below the package's parent; hidden files, caches and notebooks stay behind."""
    if not package_folder.is_dir():
        raise BundleError(
            f"there is no package folder {package_folder}",
            'Set [tool.kernelkit] "package" to the folder of the package.',
        )
    found = []
    for folder, subfolders, names in os.walk(package_folder):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and name != "__pycache__"
        )
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix in LEFT_OUT_SUFFIXES:
                continue
            if path.suffix in COMPILED_SUFFIXES:
                raise BundleError(
                    f"{path} is a compiled extension: a notebook cannot carry it",
                    "Move it into a wheel of its own, and leave only Python in the package.",
                )
            found.append(PurePosixPath(path.relative_to(package_folder.parent).as_posix()))
    if not any(path.suffix == ".py" for path in found):
        raise BundleError(f"{package_folder} holds no Python module")
    return sorted(found)


def _module_name(path: PurePosixPath) -> str | None:
    """`pkg/sub/__init__.py` → "pkg.sub"; None where no import statement can reach the file."""
    if path.suffix != ".py":
        return None
    parts = path.with_suffix("").parts
    if not all(part.isidentifier() for part in parts):
        return None
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parse(root: Path, path: PurePosixPath) -> ast.Module:
    try:
        return ast.parse((root / path).read_bytes(), filename=str(path))
    except SyntaxError as fault:
        raise BundleError(f"{path}:{fault.lineno}: {fault.msg}") from None
    except (ValueError, OSError) as fault:
        raise BundleError(f"{path}: cannot be read as Python: {fault}") from None


def _module(
    root: Path, path: PurePosixPath, name: str, imports: frozenset[str], tree: ast.Module
) -> SourceFile:
    return SourceFile(
        path=str(path),
        content=(root / path).read_bytes(),
        module=name,
        imports=tuple(sorted(imports)),
        summary=(ast.get_docstring(tree) or "").partition("\n")[0].strip(),
    )


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[_Import]:
    """Every import statement of a module, with relative ones made absolute."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, optional = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, node.lineno, optional)
        elif isinstance(node, ast.ImportFrom):
            target = _absolute(node, module, is_package)
            yield _Import(target, node.lineno, optional, tuple(a.name for a in node.names))
        shielded = optional or _catches_import_error(node) or _for_type_checkers(node)
        pending += [(child, shielded) for child in ast.iter_child_nodes(node)]


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module named by a `from` import, by the rules of PEP 328."""
    if not node.level:
        return node.module or ""
    base = module.split(".") if is_package else module.split(".")[:-1]
    base = base[: len(base) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _catches_import_error(node: ast.AST) -> bool:
    if not isinstance(node, ast.Try):
        return False
    caught = " ".join(ast.unparse(h.type) if h.type else "Exception" for h in node.handlers)
    return any(name in caught for name in ("ImportError", "ModuleNotFoundError", "Exception"))


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@dataclass(frozen=True)
class _OwnModules:
    """What the package itself holds, as import statements see it."""

    package: str
    modules: frozenset[str]

    @cached_property
    def _packages(self) -> frozenset[str]:
        """Modules and the folders above them: a folder without `__init__.py` imports as well."""
        return self.modules | {
            name.rsplit(".", depth)[0]
            for name in self.modules
            for depth in range(name.count(".") + 1)
        }

    def owns(self, target: str) -> bool:
        return target.partition(".")[0] == self.package

    def has(self, target: str) -> bool:
        return target in self._packages

    def imported_by(self, module: str, imports: list[_Import]) -> frozenset[str]:
        """The own modules that `imports` name, also those behind `from package import module`."""
        named = {i.target for i in imports} | {f"{i.target}.{n}" for i in imports for n in i.names}
        return frozenset((named & self.modules) - {module})


def _check_own_imports(
    imports: Mapping[str, list[_Import]], paths: Mapping[str, PurePosixPath], own: _OwnModules
) -> None:
    lost = [
        f'{paths[module]}:{found.line}: imports "{found.target}", which the package does not hold'
        f"{near_miss(found.target, own.modules)}"
        for module in sorted(imports)
        for found in imports[module]
        if own.owns(found.target) and not own.has(found.target) and not found.optional
    ]
    if lost:
        raise BundleError("\n".join(lost))


def _check_entry(entry: str, files: Iterable[SourceFile]) -> None:
    module_name, _, function = entry.partition(":")
    modules = {file.module: file for file in files if file.module}
    if module_name not in modules:
        raise BundleError(
            f'the entry "{entry}" names the module "{module_name}", which is not in the package'
            f"{near_miss(module_name, modules)}",
            'Set [tool.kernelkit] "entry" to "package.module:function".',
        )
    module = modules[module_name]
    names = _top_level_names(module.content, module.path)
    if function not in names and not _binds_unseen_names(module):
        raise BundleError(
            f'the entry "{entry}": {module.path} defines no "{function}"'
            f"{near_miss(function, names)}"
        )


def _binds_unseen_names(module: SourceFile) -> bool:
    """A star import or a module's `__getattr__` may bring the entry; only running tells."""
    tree = ast.parse(module.content)
    stars = (node for node in ast.walk(tree) if isinstance(node, ast.alias) and node.name == "*")
    return any(True for _ in stars) or "__getattr__" in _top_level_names(
        module.content, module.path
    )


def _top_level_names(source: bytes, path: str) -> set[str]:
    """Names that a module binds at its top, by assignment, definition or import."""
    symbols = symtable.symtable(ast.unparse(ast.parse(source)), path, "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


def _import_order(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """Depth first along the imports, by name where they leave a choice; cycles are cut."""
    order: dict[str, None] = {}
    seen: set[str] = set()
    for start in sorted(graph):
        stack = [(start, iter(sorted(graph[start])))] if start not in seen else []
        seen.add(start)
        while stack:
            module, waiting = stack[-1]
            following = next((name for name in waiting if name not in seen), None)
            if following is None:
                order[module] = None
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(graph[following]))))
    return list(order)


def _third_party(
    imports: Mapping[str, list[_Import]], paths: Mapping[str, PurePosixPath], own: _OwnModules
) -> dict[str, tuple[str, ...]]:
    places: dict[str, list[tuple[str, int]]] = {}
    for module, found_imports in imports.items():
        for found in found_imports:
            name = found.target.partition(".")[0]
            if name and not own.owns(found.target) and name not in sys.stdlib_module_names:
                places.setdefault(name, []).append((str(paths[module]), found.line))
    return {
        name: tuple(f"{path}:{line}" for path, line in sorted(set(found)))
        for name, found in sorted(places.items())
    }


def _provenance(folder: Path) -> Provenance:
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".")
    return Provenance(commit or None, None if changes is None or commit is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
