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
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from kernelkit.config import near_miss
from kernelkit.errors import BundleError

COMPILED_SUFFIXES = frozenset({".so", ".pyd", ".dylib", ".dll"})
LEFT_OUT_SUFFIXES = frozenset({".pyc", ".pyo", ".ipynb"})
RUNTIME_MODULE = "kernelkit_runtime"  # what the run side is called inside the notebook
GIT_TIMEOUT_SECONDS = 20  # a repository on a slow disk; without git's word a bundle is "unknown"


@dataclass(frozen=True)
class SourceFile:
    """One file of the package, as it lies on disk."""

    path: str
    """Below the folder that holds the package, with forward slashes: `pkg/sub/mod.py`."""

    content: bytes
    module: str | None
    """The name under which Python imports it; None for a data file."""

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
    left_out: tuple[str, ...] = ()
    """Files of the package's folder that stay behind: hidden ones, caches, notebooks."""

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
        BundleError: the folder is no package, a file cannot be read or does not parse, an import
            of its own modules or the entry leads nowhere, it imports a module that lies beside it,
            two files claim one module, or it holds a compiled extension.
    """
    root = package_folder.parent
    _check_name(package_folder.name)
    paths, left_out = _list_files(package_folder)
    modules = _modules(paths)
    trees = {name: _parse(root, path) for name, path in modules.items()}
    imports = {name: list(_imports(tree, name, modules[name])) for name, tree in trees.items()}
    own = _OwnModules(package_folder.name, frozenset(modules))
    _check_own_imports(imports, modules, own)
    third_party = _third_party(imports, modules, own)
    _check_siblings(root, third_party)
    graph = {name: own.imported_by(name, imports[name]) for name in modules}
    data = [path for path in paths if _module_name(path) is None]
    files = (
        *(_module(root, modules[m], m, trees[m]) for m in _import_order(graph)),
        *(SourceFile(str(path), _content(root / path), module=None) for path in data),
    )
    _check_entry(entry, files)
    return Bundle(
        package=package_folder.name,
        entry=entry,
        files=files,
        third_party=third_party,
        provenance=_provenance(root, paths),
        left_out=tuple(left_out),
    )


def _check_name(package: str) -> None:
    if package in sys.stdlib_module_names or package == RUNTIME_MODULE:
        raise BundleError(
            f'the package is called "{package}", as a module that is there already', "Rename it."
        )
    if not package.isidentifier():
        raise BundleError(f'the package is called "{package}": nothing can import that')


def digest_of(parts: list[tuple[str, str]]) -> str:
    """SHA-256 over named parts in the order of their names; no two sets of parts read alike."""
    state = hashlib.sha256()
    for name, value in sorted(parts):
        for text in (name, value):
            encoded = text.encode()
            state.update(len(encoded).to_bytes(8, "big") + encoded)
    return state.hexdigest()


def _list_files(package_folder: Path) -> tuple[list[PurePosixPath], list[str]]:
    """Sorted paths below the package's parent, and what stays behind."""
    if not package_folder.is_dir():
        raise BundleError(
            f"there is no package folder {package_folder}",
            'Set [tool.kernelkit] "package" to the folder of the package.',
        )
    found, left_out = [], []
    for folder, subfolders, names in os.walk(package_folder, onerror=_refuse, followlinks=True):
        _refuse_endless_link(Path(folder))
        hidden = [name for name in subfolders if name.startswith(".") or name == "__pycache__"]
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        left_out += [str(Path(folder, name)) for name in hidden if name != "__pycache__"]
        for name in names:
            path = Path(folder, name)
            if path.suffix in COMPILED_SUFFIXES:
                raise BundleError(
                    f"{path} is a compiled extension: a notebook cannot carry it",
                    "Move it into a wheel of its own, and leave only Python in the package.",
                )
            if name.startswith(".") or path.suffix in LEFT_OUT_SUFFIXES:
                left_out.append(str(path))
            else:
                found.append(_carried_path(path, package_folder.parent))
    if not any(path.suffix == ".py" for path in found):
        raise BundleError(f"{package_folder} holds no Python module")
    return sorted(found), sorted(left_out)


def _refuse(fault: OSError) -> None:
    raise BundleError(f"{fault.filename} cannot be read: {fault.strerror}") from fault


def _refuse_endless_link(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in folder.absolute().parents:
        raise BundleError(f"{folder} is a link to a folder above it")


def _carried_path(path: Path, root: Path) -> PurePosixPath:
    relative = path.relative_to(root).as_posix()
    if not relative.isprintable() or any("\ud800" <= char <= "\udfff" for char in relative):
        raise BundleError(f"the file name {relative!r} cannot be carried", "Rename the file.")
    return PurePosixPath(relative)


def _modules(paths: list[PurePosixPath]) -> dict[str, PurePosixPath]:
    """Module name → its one file."""
    modules: dict[str, PurePosixPath] = {}
    for path in paths:
        name = _module_name(path)
        if name in modules:
            raise BundleError(f"{modules[name]} and {path} are both the module {name}")
        if name is not None:
            modules[name] = path
    return modules


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise BundleError(f"{path} cannot be read: {fault.strerror}") from fault


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
        with warnings.catch_warnings(action="ignore"):  # of the package's own business
            return ast.parse(_content(root / path), filename=str(path))
    except SyntaxError as fault:
        raise BundleError(f"{path}:{fault.lineno}: {fault.msg}") from None
    except (ValueError, RecursionError, MemoryError) as fault:
        raise BundleError(f"{path}: cannot be read as Python: {fault}") from None


def _module(root: Path, path: PurePosixPath, name: str, tree: ast.Module) -> SourceFile:
    summary = (ast.get_docstring(tree) or "").partition("\n")[0].strip()
    return SourceFile(
        path=str(path),
        content=_content(root / path),
        module=name,
        summary=summary.encode(errors="replace").decode(),
    )


def _imports(tree: ast.Module, module: str, path: PurePosixPath) -> Iterator[_Import]:
    """Every import statement of a module, with relative ones made absolute."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, optional = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, node.lineno, optional)
        elif isinstance(node, ast.ImportFrom):
            target = _absolute(node, module, path)
            yield _Import(target, node.lineno, optional, tuple(a.name for a in node.names))
        shielded = _shielded_body(node)
        pending += [(child, optional or child in shielded) for child in ast.iter_child_nodes(node)]


def _absolute(node: ast.ImportFrom, module: str, path: PurePosixPath) -> str:
    """The module named by a `from` import, by the rules of PEP 328."""
    if not node.level:
        return node.module or ""
    base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if node.level > len(base):
        raise BundleError(f"{path}:{node.lineno}: a relative import beyond the package")
    base = base[: len(base) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _shielded_body(node: ast.AST) -> list[ast.stmt]:
    """The statements under a `try` that catches a failed import, or for type checkers alone."""
    if isinstance(node, ast.Try):
        caught = " ".join(ast.unparse(h.type) if h.type else "Exception" for h in node.handlers)
        names = ("ImportError", "ModuleNotFoundError", "Exception")
        return node.body if any(name in caught for name in names) else []
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return node.body
    return []


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
        """The own modules that `imports` load, also those behind `from package import module`."""
        named = {i.target for i in imports} | {f"{i.target}.{n}" for i in imports for n in i.names}
        # Importing a module imports the packages around it first.
        around = {
            name.rsplit(".", depth)[0] for name in named for depth in range(1, name.count(".") + 1)
        }
        return frozenset(((named | around) & self.modules) - {module})


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


def _check_siblings(root: Path, third_party: Mapping[str, tuple[str, ...]]) -> None:
    """A module that lies beside the package is found here, and in the notebook it is not."""
    for name, places in third_party.items():
        if (root / f"{name}.py").is_file() or (root / name / "__init__.py").is_file():
            raise BundleError(
                f'{places[0]}: imports "{name}", which lies beside the package and is not carried',
                "Move it into the package.",
            )


def _provenance(root: Path, paths: list[PurePosixPath]) -> Provenance:
    """The commit, and whether any carried file is other than that commit has it."""
    commit = _git(root, "rev-parse", "HEAD")
    package = paths[0].parts[0]
    changes = _git(root, "status", "--porcelain", "--", package)
    tracked = _git(root, "ls-files", "-z", "--", package)
    if not commit or changes is None or tracked is None:
        return Provenance(commit or None, None)
    untracked = {str(path) for path in paths} - set(tracked.split("\0"))
    return Provenance(commit, bool(changes or untracked))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
