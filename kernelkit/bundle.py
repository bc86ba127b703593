"""Packages on disk become a `Bundle`: their files verbatim, in the order of imports, and a digest.

Source is read by `ast` and never imported: what cannot be imported here can still be carried.
Which files are carried is told in `_left_behind`; whatever stays behind is listed with the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from kernelkit import imports
from kernelkit.config import Config, near_miss
from kernelkit.errors import BundleError
from kernelkit.imports import Module, Need, Signature

COMPILED_SUFFIXES = frozenset({".so", ".pyd", ".dylib", ".dll"})
RUNTIME_MODULE = "kernelkit_runtime"  # what the run side is called inside the notebook
GIT_TIMEOUT_SECONDS = 20  # a repository on a slow disk; without git's word a bundle is "unknown"

# Patterns as in .gitignore; the first reason that fits a file is the one that is told.
TEST = "a test"
_CACHE, _HIDDEN = "a cache", "hidden"
_DEFAULTS = {
    _CACHE: ["__pycache__/", "*.pyc", "*.pyo", "*.egg-info/"],
    "a key": [".env", ".env.*", "kaggle.json", ".netrc", ".pypirc", "id_rsa", "id_ed25519"],
    _HIDDEN: [".*"],
    "a notebook": ["*.ipynb"],
    TEST: ["tests/", "test/", "test_*.py", "*_test.py", "conftest.py"],
}
_DEFAULT_SPECS = {reason: GitIgnoreSpec.from_lines(lines) for reason, lines in _DEFAULTS.items()}
_IGNORED = "named in .gitignore"
_EXCLUDED = "excluded"
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")


@dataclass(frozen=True)
class SourceFile:
    """One file of a package, as it lies on disk."""

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
    """Packages ready to be rendered."""

    roots: Mapping[str, str]
    """The first part of each path (`pkg`, or `mod.py`) → the project's folder that holds it."""

    entry: str
    files: tuple[SourceFile, ...]
    """Modules so that what is imported comes before what imports it, then data files by name."""

    third_party: Mapping[str, tuple[str, ...]]
    """Top-level names imported from elsewhere → the places `path:line` that do it."""

    provenance: Provenance
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same of imports that may fail without harm."""

    signature: Signature | None = None
    """How the entry can be called, where the source tells."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Paths in the project that stay behind (a folder ends in a slash) → why."""

    notes: tuple[str, ...] = ()
    """What a person should know, and nothing that stops a push."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every path and content: changes exactly when one of them does."""
        return digest_of([(file.path, file.sha256) for file in self.files])


def read_bundle(config: Config) -> Bundle:
    """Read the packages that the project file names.

    Raises:
        BundleError: a folder is no package, a file cannot be read or does not parse, an import
            of an own module or the entry leads nowhere, a module is imported that lies beside the
            packages or was left behind, two files claim one module, or there is a compiled
            extension.
    """
    roots = _roots(config)
    tree = _Tree.read(config, roots)
    modules = {name: tree.module(name) for name in tree.names if tree.is_carried(name)}
    notes = _add_imported_tests(tree, modules)
    if config.only_reachable:
        notes += _keep_reachable(tree, modules, config.entry)
    own = _OwnModules(modules, tree.names)
    _check_own_imports(modules, own, tree)
    _check_entry(config.entry, modules)
    third_party = imports.third_party(modules.values(), own.tops, Need.NEEDED)
    optional = imports.third_party(modules.values(), own.tops, Need.OPTIONAL)
    _check_siblings(config.project, roots, third_party | optional)
    entry_module, _, function = config.entry.partition(":")
    order = imports.in_order(imports.graph(modules))
    files = (
        *(SourceFile(tree.names[m], modules[m].content, m, modules[m].summary) for m in order),
        *(SourceFile(path, tree.content(path), None) for path in tree.data(modules)),
    )
    return Bundle(
        roots=roots,
        entry=config.entry,
        files=files,
        third_party=third_party,
        optional=optional,
        signature=modules[entry_module].signature(function),
        provenance=_provenance(config.project, [tree.in_project(file.path) for file in files]),
        left_out=tree.left_out,
        notes=tuple(notes),
    )


def digest_of(parts: list[tuple[str, str]]) -> str:
    """SHA-256 over named parts in the order of their names; no two sets of parts read alike."""
    state = hashlib.sha256()
    for name, value in sorted(parts):
        for text in (name, value):
            encoded = text.encode()
            state.update(len(encoded).to_bytes(8, "big") + encoded)
    return state.hexdigest()


def _roots(config: Config) -> dict[str, str]:
    """`["src/pkg", "mod.py"]` → {"pkg": "src", "mod.py": "."}."""
    roots: dict[str, str] = {}
    for package in config.package:
        path = PurePosixPath(package)
        _check_name(path)
        if path.name in roots:
            raise BundleError(f'two packages are called "{path.name}": no program has both')
        if (config.project / path.parent / "__init__.py").is_file() and len(path.parts) > 1:
            raise BundleError(
                f"{package} is a part of the package {path.parent}",
                f'Set [tool.kernelkit] "package" to "{path.parent}".',
            )
        roots[path.name] = str(path.parent)
    return roots


def _check_name(path: PurePosixPath) -> None:
    name = path.stem if path.suffix == ".py" else path.name
    if name in sys.stdlib_module_names or name == RUNTIME_MODULE:
        raise BundleError(
            f'the package is called "{name}", as a module that is there already', "Rename it."
        )
    if not name.isidentifier():
        raise BundleError(f'the package is called "{name}": nothing can import that')


class _Tree:
    """The files below the packages, each with whether it is carried, and else why not."""

    def __init__(self, project: Path, roots: Mapping[str, str]) -> None:
        self.project = project
        self.roots = roots
        self.left_out: dict[str, str] = {}
        self.names: dict[str, str] = {}
        """Module → its path, of every module that lies there, carried or not."""

        self._paths: list[str] = []
        self._read: dict[str, bytes] = {}

    @classmethod
    def read(cls, config: Config, roots: Mapping[str, str]) -> _Tree:
        tree = cls(config.project, roots)
        behind = _left_behind(config)
        for top in roots:
            for path in tree._walk(top, behind):
                reason = behind(path) or tree._secret(path)
                tree._add(tree._carried_path(path), path, reason)
        tree._paths.sort()
        if not any(tree.is_carried(name) for name in tree.names):
            reasons = sorted({str(tree.why_left(name)) for name in tree.names})
            but = f", but for what stays behind ({', '.join(reasons)})" if reasons else ""
            raise BundleError(f"{', '.join(config.package)}: no Python module is in there{but}")
        return tree

    def in_project(self, path: str) -> str:
        """`pkg/mod.py` → `src/pkg/mod.py`."""
        root = self.roots[path.partition("/")[0]]
        return path if root == "." else f"{root}/{path}"

    def content(self, path: str) -> bytes:
        if path not in self._read:
            self._read[path] = _content(self.project / self.in_project(path))
        return self._read[path]

    def module(self, name: str) -> Module:
        path = self.names[name]
        is_package = path.endswith("/__init__.py")
        return imports.read_module(
            name, self.in_project(path), self.content(path), is_package=is_package
        )

    def is_carried(self, module: str) -> bool:
        return self.why_left(module) is None

    def why_left(self, module: str) -> str | None:
        return self.left_out.get(self.in_project(self.names[module]))

    def carry(self, module: str) -> None:
        """After all."""
        del self.left_out[self.in_project(self.names[module])]

    def leave(self, path: str, reason: str) -> None:
        self.left_out[self.in_project(path)] = reason

    def data(self, modules: Collection[str]) -> list[str]:
        """The files that are no modules; `modules` are those that are carried."""
        of_modules = {self.names[name] for name in modules}
        return [
            path
            for path in self._paths
            if path not in of_modules and self.in_project(path) not in self.left_out
        ]

    def _walk(self, top: str, behind: _Patterns) -> Iterator[Path]:
        start = self.project / self.roots[top] / top
        if start.is_file():
            yield start
            return
        if not start.is_dir():
            raise BundleError(
                f"there is no package {start.relative_to(self.project)} in {self.project}",
                'Set [tool.kernelkit] "package" to the folder of the package.',
            )
        for folder, subfolders, names in os.walk(start, onerror=_refuse, followlinks=True):
            _refuse_endless_link(Path(folder))
            for name in list(subfolders):
                if reason := behind.whole_folder(Path(folder, name)):
                    subfolders.remove(name)
                    relative = Path(folder, name).relative_to(self.project).as_posix()
                    self.left_out[f"{relative}/"] = reason
            subfolders.sort()
            yield from (Path(folder, name) for name in sorted(names))

    def _add(self, path: str, file: Path, reason: str | None) -> None:
        if reason is None and file.suffix in COMPILED_SUFFIXES:
            raise BundleError(
                f"{self.in_project(path)} is a compiled extension: a notebook cannot carry it",
                "Move it into a wheel of its own; or, where the package works without it, add it "
                'to "exclude" in [tool.kernelkit].',
            )
        if reason is not None:
            self.leave(path, reason)
        self._paths.append(path)
        name = _module_name(path)
        if name is None:
            return
        if name in self.names and reason is None and self.is_carried(name):
            raise BundleError(f"{self.names[name]} and {path} are both the module {name}")
        if name not in self.names or reason is None:
            self.names[name] = path

    def _carried_path(self, path: Path) -> str:
        for top, root in self.roots.items():
            if path.is_relative_to(self.project / root / top):
                relative = path.relative_to(self.project / root).as_posix()
        if not relative.isprintable() or any("\ud800" <= char <= "\udfff" for char in relative):
            raise BundleError(f"the file name {relative!r} cannot be carried", "Rename the file.")
        return relative

    def _secret(self, path: Path) -> str | None:
        """A private key by its content, whatever its name: a .pem may also be a certificate."""
        if path.suffix == ".py" or path.suffix in COMPILED_SUFFIXES:
            return None
        content = self._read[self._carried_path(path)] = _content(path)
        return "a key" if _PRIVATE_KEY.search(content) else None


class _Patterns:
    """Why a file stays behind, if it does: `include` and `exclude`, .gitignore, our own list."""

    def __init__(self, config: Config, repository: Path, tracked: frozenset[Path]) -> None:
        self._project = config.project
        self._include = GitIgnoreSpec.from_lines(config.include)
        self._exclude = GitIgnoreSpec.from_lines(config.exclude)
        self._repository = repository
        self._tracked = tracked
        self._tracked_folders = {folder for path in tracked for folder in path.parents}
        self._ignore_files: dict[Path, GitIgnoreSpec | None] = {}
        self._named: list[Path] = []
        # A package that is ignored as a whole is named in the project file all the same.
        tops = [self._project / package for package in config.package]
        self._named = [
            top for top in tops if self._is_ignored(top / "any" if top.is_dir() else top)
        ]

    def __call__(self, path: Path) -> str | None:
        relative = path.relative_to(self._project).as_posix()
        if self._exclude.match_file(relative):
            return _EXCLUDED
        if self._include.match_file(relative):
            return None
        for reason, spec in _DEFAULT_SPECS.items():
            if spec.match_file(relative):
                return reason
        known = path in self._tracked or path in self._named
        return _IGNORED if not known and self._is_ignored(path) else None

    def whole_folder(self, folder: Path) -> str | None:
        """A folder that need not be looked into, because nothing in it can be carried."""
        relative = folder.relative_to(self._project).as_posix() + "/"
        if _DEFAULT_SPECS[_CACHE].match_file(relative):
            return _CACHE
        if len(self._include):
            return None
        if _DEFAULT_SPECS[_HIDDEN].match_file(relative):
            return _HIDDEN
        unknown = folder not in self._tracked_folders
        return _IGNORED if unknown and self._is_ignored(folder / "any") else None

    def _is_ignored(self, path: Path) -> bool:
        """The deepest .gitignore that has a word on the path decides, as git has it."""
        for folder in path.parents:
            spec = self._ignore_file(folder)
            if spec is not None:
                verdict = spec.check_file(path.relative_to(folder).as_posix()).include
                if verdict is not None:
                    return verdict
            if folder == self._repository or folder in self._named:
                break
        return False

    def _ignore_file(self, folder: Path) -> GitIgnoreSpec | None:
        if folder not in self._ignore_files:
            names = [folder / ".gitignore", folder / ".git" / "info" / "exclude"]
            lines = [
                line
                for name in names
                if name.is_file()
                for line in name.read_text(encoding="utf-8", errors="replace").splitlines()
            ]
            self._ignore_files[folder] = GitIgnoreSpec.from_lines(lines) if lines else None
        return self._ignore_files[folder]


def _left_behind(config: Config) -> _Patterns:
    """`exclude` wins over `include`, `include` over all that is left behind unless it is named.

    That is: caches, keys, hidden files, notebooks, tests, and what git ignores and does not hold.
    """
    top = _git(config.project, "rev-parse", "--show-toplevel")
    tracked = _git(config.project, "ls-files", "-z") or ""
    return _Patterns(
        config,
        repository=Path(top) if top else config.project,
        tracked=frozenset(config.project / name for name in tracked.split("\0") if name),
    )


def _refuse(fault: OSError) -> None:
    raise BundleError(f"{fault.filename} cannot be read: {fault.strerror}") from fault


def _refuse_endless_link(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in folder.absolute().parents:
        raise BundleError(f"{folder} is a link to a folder above it")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise BundleError(f"{path} cannot be read: {fault.strerror}") from fault


def _module_name(path: str) -> str | None:
    """`pkg/sub/__init__.py` → "pkg.sub"; None where no import statement can reach the file."""
    if not path.endswith(".py"):
        return None
    parts = path.removesuffix(".py").split("/")
    if not all(part.isidentifier() for part in parts):
        return None
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _add_imported_tests(tree: _Tree, modules: dict[str, Module]) -> list[str]:
    """Tests stay behind, but for those that the package itself imports."""
    notes = []
    pending = list(modules.values())
    while pending:
        module = pending.pop()
        for found in module.imports:
            if found.need is Need.TYPING:
                continue
            for name in sorted(imports.with_parents(found.candidates)):
                if name in tree.names and tree.why_left(name) == TEST:
                    tree.carry(name)
                    modules[name] = tree.module(name)
                    pending.append(modules[name])
                    place = f"{module.path}:{found.line}"
                    notes.append(f"{modules[name].path} is carried: {place} imports it")
    return notes


def _keep_reachable(tree: _Tree, modules: dict[str, Module], entry: str) -> list[str]:
    """Leave what the entry does not reach; data stays with the packages that do."""
    kept = imports.reachable(imports.graph(modules, typing=False), [entry.partition(":")[0]])
    folders = {tree.names[name].rpartition("/")[0] for name in kept}
    for name in sorted(modules.keys() - kept):
        del modules[name]
        tree.leave(tree.names[name], "not reachable")
    for path in tree.data(modules):
        around = PurePosixPath(path).parents
        home = next((f for f in around if f"{f}/__init__.py" in tree.names.values()), around[0])
        if str(home) not in folders:
            tree.leave(path, "not reachable")
    return [
        f"{module.path}:{line} imports what only the run knows: it may want a module that "
        "only_reachable leaves behind"
        for _, module in sorted(modules.items())
        for line in module.dynamic
    ]


class _OwnModules:
    """What the packages hold, as import statements see it."""

    def __init__(self, carried: Mapping[str, Module], present: Collection[str]) -> None:
        self._carried = carried
        self._present = present
        self._packages = imports.with_parents(carried)
        self.tops = {name.partition(".")[0] for name in present}

    def has(self, target: str) -> bool:
        """A module, or a folder with modules below it: that imports as well."""
        return target in self._packages

    def may_be_made(self, target: str) -> bool:
        """Whether a module around it makes modules that no file holds."""
        around = imports.with_parents([target]) & self._carried.keys()
        return any(self._carried[name].makes_modules for name in around)

    def may_hold(self, package: str, name: str) -> bool:
        """Whether `from package import name` can work; asked of packages, not of plain modules."""
        module = self._carried.get(package)
        if name == "*" or self.has(f"{package}.{name}"):
            return True
        if module is None:  # a folder without __init__.py binds no names
            return package in self._present
        return not module.is_package or module.may_bind(name)

    def near_miss(self, target: str) -> str:
        return near_miss(target, self._present)


def _check_own_imports(modules: Mapping[str, Module], own: _OwnModules, tree: _Tree) -> None:
    lost = [
        f'{module.path}:{found.line}: imports "{target}", which {reason}'
        for _, module in sorted(modules.items())
        for found in module.imports
        if found.target.partition(".")[0] in own.tops and found.need is not Need.TYPING
        for target, reason in _lost_targets(found, own, tree)
    ]
    if lost:
        raise BundleError("\n".join(dict.fromkeys(lost)))


def _lost_targets(
    found: imports.Import, own: _OwnModules, tree: _Tree
) -> Iterator[tuple[str, str]]:
    """What an import wants and the notebook would not have.

    An import that may fail is no fault where there is no such module, but it is one where the
    module is there and stays behind without the user's word: the notebook would go another way.
    """
    for target in found.candidates:
        why = tree.why_left(target) if target in tree.names else None
        if why and (found.need is Need.NEEDED or why != _EXCLUDED):
            path = tree.in_project(tree.names[target])
            yield target, f'stays behind ({why}); "include" it: {path}'
    if found.need is not Need.NEEDED:
        return
    if not own.has(found.target) and found.target not in tree.names:
        if not own.may_be_made(found.target):
            yield found.target, f"the package does not hold{own.near_miss(found.target)}"
        return
    for name in found.names:
        target = f"{found.target}.{name}"
        if target not in tree.names and not own.may_hold(found.target, name):
            yield target, f"the package does not hold{own.near_miss(target)}"


def _check_entry(entry: str, modules: Mapping[str, Module]) -> None:
    module_name, _, function = entry.partition(":")
    if module_name not in modules:
        raise BundleError(
            f'the entry "{entry}" names the module "{module_name}", which is not in the package'
            f"{near_miss(module_name, modules)}",
            'Set [tool.kernelkit] "entry" to "package.module:function".',
        )
    module = modules[module_name]
    if not module.may_bind(function):
        raise BundleError(
            f'the entry "{entry}": {module.path} defines no "{function}"'
            f"{near_miss(function, module.top_level_names)}"
        )


def _check_siblings(
    project: Path, roots: Mapping[str, str], third_party: Mapping[str, tuple[str, ...]]
) -> None:
    """A module that lies beside the package is found here, and in the notebook it is not."""
    for root in sorted(set(roots.values())):
        for name, places in third_party.items():
            beside = [project / root / f"{name}.py", project / root / name / "__init__.py"]
            for path in beside:
                if path.is_file():
                    found = path if path.name != "__init__.py" else path.parent
                    raise BundleError(
                        f'{places[0]}: imports "{name}", which lies beside the package and is not '
                        "carried",
                        f'Add "{found.relative_to(project).as_posix()}" to "package" in '
                        "[tool.kernelkit], or move it into the package.",
                    )


def _provenance(project: Path, paths: Iterable[str]) -> Provenance:
    """The commit, and whether any carried file is other than that commit has it."""
    carried = list(paths)
    commit = _git(project, "rev-parse", "HEAD")
    changes = _git(project, "diff", "HEAD", "--name-only", "--relative", "-z")
    tracked = _git(project, "ls-files", "-z")
    if not commit or changes is None or tracked is None:
        return Provenance(commit or None, None)
    gone = {name for name in changes.split("\0") if name and not (project / name).exists()}
    beside = {str(PurePosixPath(name).parent) for name in carried}
    changed = set(changes.split("\0")) & set(carried)
    changed |= {name for name in gone if str(PurePosixPath(name).parent) in beside}
    return Provenance(commit, bool(changed or set(carried) - set(tracked.split("\0"))))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
