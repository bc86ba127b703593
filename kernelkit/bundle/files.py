"""Packages on disk become a `Bundle`: their files verbatim, in the order of imports, and a digest.

Source is read by `ast` and never imported: what cannot be imported here can still be carried.
Which files are carried is told by `_Patterns`; whatever stays behind is listed with the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec
from pydantic import BaseModel, ConfigDict

from kernelkit.bundle import imports
from kernelkit.bundle.imports import ImportKind, Module, PythonSyntaxError, Signature
from kernelkit.config import Config, is_pattern, near_miss
from kernelkit.errors import BundleError

COMPILED_SUFFIXES = frozenset({".so", ".pyd", ".dylib", ".dll"})
RUNTIME_MODULE = "kernelkit_runtime"  # what the run side is called inside the notebook
_LISTED = ("ls-files", "-z")
_OTHERS = ("--others", "--exclude-standard")
GIT_TIMEOUT_SECONDS = 20  # a repository on a slow disk; without git's word a bundle is "unknown"

TEST = "a test"
_CACHE, _HIDDEN, _KEY, _GIT = "a cache", "hidden", "a key", "git's own"
_IGNORED, _EXCLUDED, _UNREACHED = "named in .gitignore", "excluded", "not reachable"

# Patterns as in .gitignore, for names below the package's own folder; the first that fits is told.
_KEY_NAMES = [
    *(".env", ".env.*", "*.env", ".netrc", ".pypirc", "kaggle.json", "access_token"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.ppk"),
]
_DEFAULTS = {
    _GIT: GitIgnoreSpec.from_lines([".git"]),
    _CACHE: GitIgnoreSpec.from_lines(["__pycache__/", "*.pyc", "*.pyo", "*.egg-info/"]),
    _KEY: GitIgnoreSpec.from_lines(_KEY_NAMES),
    _HIDDEN: GitIgnoreSpec.from_lines([".*", "!.gitkeep", "!.keep"]),
    "a notebook": GitIgnoreSpec.from_lines(["*.ipynb"]),
    TEST: GitIgnoreSpec.from_lines(["test_*.py", "*_test.py", "conftest.py"]),
}
_ONLY_BY_NAME = frozenset({_GIT, _KEY})  # `include = ["data/"]` does not mean the key in it
_TEST_FOLDERS = frozenset({"test", "tests"})  # where there is Python in them: data is no test
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
_WILD = frozenset("*?[")


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

    executable: bool = False
    """Whether its owner may run it as a program."""

    @cached_property
    def sha256(self) -> str:
        """Of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


class Provenance(BaseModel):
    """The git commit of the sources, and whether the carried files differ from it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    commit: str | None = None
    """None where there is no repository, or git does not answer."""

    dirty: bool | None = None
    """None where that is not known."""


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
        """SHA-256 over every path, content and leave to execute: changes exactly with them."""
        return digest_of([(f.path, digest_part(f.sha256, f.executable)) for f in self.files])


def read_bundle(config: Config) -> Bundle:
    """Read the packages that the project file names.

    Raises:
        BundleError: a folder is no package, a file cannot be read or does not parse, an import
            of an own module or the entry leads nowhere, a module is imported that lies beside the
            packages or was left behind, or there is a compiled extension.
    """
    roots = _roots(config)
    tree = _Tree.read(config, roots)
    modules, unreadable = _parse(tree)
    notes = _add_imported_tests(tree, modules)
    _require_entry(config.entry, modules | unreadable)
    if config.only_reachable:
        notes += _keep_reachable(tree, modules, config.entry)
    _require_readable(modules, unreadable, config.entry)
    notes += [f"{error}: carried as data, for nothing imports it" for error in unreadable.values()]
    own = _OwnModules(modules, tree.names)
    _check_own_imports(modules, own, tree)
    signature = _entry_signature(config.entry, modules)
    third_party = imports.third_party(modules.values(), own.tops, ImportKind.NEEDED)
    optional = imports.third_party(modules.values(), own.tops, ImportKind.OPTIONAL)
    _check_siblings(config.project, roots, third_party | optional)
    order = imports.in_order(imports.graph(modules))
    files = (
        *(tree.source_file(tree.names[name], modules[name]) for name in order),
        *(tree.source_file(path) for path in tree.data(modules)),
    )
    notes += tree.notes() + _layout_notes(config, roots, modules)
    return Bundle(
        roots=roots,
        entry=config.entry,
        files=files,
        third_party=third_party,
        optional=optional,
        signature=signature,
        provenance=_provenance(config.project, [tree.in_project(file.path) for file in files]),
        left_out=tree.left_out,
        notes=tuple(notes),
    )


def digest_part(sha256: str, executable: bool) -> str:
    """What one file gives to the digest of all."""
    return f"{sha256} executable" if executable else sha256


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
        for other in config.package:
            if PurePosixPath(other) in path.parents:
                raise BundleError(f"{package} lies in {other}, which brings it", "Name that alone.")
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
        self._links: list[Path] = []
        """Those that lead out of the project."""

        self._patterns: _Patterns

    @classmethod
    def read(cls, config: Config, roots: Mapping[str, str]) -> _Tree:
        tree = cls(config.project, roots)
        tree._patterns = behind = _Patterns(config)
        for top in roots:
            for path in tree._walk(top, behind):
                reason = behind(path) or tree._secret(path)
                tree._add(tree._relative(path), path, reason)
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

    def why_folder_left(self, module: str) -> str | None:
        """Of a module below a folder that nobody has looked into."""
        if module.partition(".")[0] not in self.roots:
            return None
        path = self.in_project(module.replace(".", "/")) + "/"
        for name, why in self.left_out.items():
            if name.endswith("/") and path.startswith(name):
                return why
        return None

    def carry_test(self, module: str) -> None:
        """After all, with the data beside it."""
        del self.left_out[self.in_project(self.names[module])]
        folder = self.names[module].rpartition("/")[0]
        for path in self._paths:
            is_data = path.startswith(f"{folder}/") and not path.endswith(".py")
            if is_data and self.left_out.get(self.in_project(path)) == TEST:
                del self.left_out[self.in_project(path)]

    def source_file(self, path: str, module: Module | None = None) -> SourceFile:
        mode = (self.project / self.in_project(path)).stat().st_mode
        return SourceFile(
            path=path,
            content=self.content(path),
            module=module.name if module else None,
            summary=module.summary if module else "",
            executable=bool(mode & stat.S_IXUSR),
        )

    def is_excluded(self, module: str) -> bool:
        """Whether the user has left behind a file of that module, whichever its suffix."""
        path = module.replace(".", "/")
        return self.why_folder_left(module) == _EXCLUDED or any(
            why == _EXCLUDED and name.partition(".")[0].removesuffix("/__init__").endswith(path)
            for name, why in self.left_out.items()
        )

    def notes(self) -> list[str]:
        """What a person should know of the choice of files."""
        notes = self._patterns.notes([*map(self.in_project, self._paths), *self.left_out])
        links = (path.relative_to(self.project).as_posix() for path in self._links)
        carried = [
            self.in_project(p) for p in self._paths if self.in_project(p) not in self.left_out
        ]
        return notes + [
            f"{link}: a link leads out of the project"
            for link in links
            if any(path == link or path.startswith(f"{link}/") for path in carried)
        ]

    def _note_link(self, path: Path) -> None:
        if path.is_symlink() and not path.resolve().is_relative_to(self.project.resolve()):
            self._links.append(path)

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
            self._note_link(Path(folder))
            for name in list(subfolders):
                if reason := behind.whole_folder(Path(folder, name)):
                    subfolders.remove(name)
                    relative = Path(folder, name).relative_to(self.project).as_posix()
                    self.left_out[f"{relative}/"] = reason
            subfolders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                self._note_link(path)
                yield path

    def _add(self, path: str, file: Path, reason: str | None) -> None:
        # A build leaves extensions where git ignores them: they are parts of the package still.
        if reason is None or (reason == _IGNORED and file.suffix in COMPILED_SUFFIXES):
            self._require_carriable(path, file)
        if reason is not None:
            self.leave(path, reason)
        self._paths.append(path)
        name = _module_name(path)
        # Where there are both, Python takes mod/__init__.py for the module, and not mod.py.
        better = name not in self.names or path.endswith("/__init__.py")
        if name is not None and (better or (reason is None and not self.is_carried(name))):
            self.names[name] = path

    def _require_carriable(self, path: str, file: Path) -> None:
        if not path.isprintable() or any("\ud800" <= char <= "\udfff" for char in path):
            raise BundleError(f"the file name {path!r} cannot be carried", "Rename the file.")
        if file.suffix in COMPILED_SUFFIXES:
            raise BundleError(
                f"{self.in_project(path)} is a compiled extension: a notebook cannot carry it",
                "Move it into a wheel of its own; or, where the package works without it, add it "
                'to "exclude" in [tool.kernelkit].',
            )

    def _relative(self, path: Path) -> str:
        """Below the folder that holds its package."""
        for top, root in self.roots.items():
            if path.is_relative_to(self.project / root / top):
                return path.relative_to(self.project / root).as_posix()
        raise AssertionError(path)

    def _secret(self, path: Path) -> str | None:
        """A private key by its content, whatever its name: a .pem may also be a certificate."""
        if path.suffix == ".py" or path.suffix in COMPILED_SUFFIXES:
            return None
        content = self._read[self._relative(path)] = _content(path)
        return _KEY if _PRIVATE_KEY.search(content) and not self._patterns.names(path) else None


class _Patterns:
    """Why a file stays behind, if it does: `include` and `exclude`, git's word, our own list.

    `exclude` wins over `include`, `include` over all that is left behind unless it is named.
    """

    def __init__(self, config: Config) -> None:
        self._project = config.project
        self._tops = [config.project / package for package in config.package]
        self._stated = {"include": config.include, "exclude": config.exclude}
        self._include = GitIgnoreSpec.from_lines(config.include)
        self._exclude = GitIgnoreSpec.from_lines(config.exclude)
        self._git = _GitsWord(config.project, self._tops)

    def __call__(self, path: Path) -> str | None:
        relative = path.relative_to(self._project).as_posix()
        if self._exclude.match_file(relative):
            return _EXCLUDED
        reason = self._default(path)
        if reason in _ONLY_BY_NAME:
            return None if self.names(path) else reason
        if path in self._tops or self._include.match_file(relative):
            return None
        return reason or (_IGNORED if self._git.ignores(path) else None)

    def names(self, path: Path) -> bool:
        """Whether `include` names this very file, and not only a folder or a pattern it is in."""
        relative = path.relative_to(self._project).as_posix()
        exact = [PurePosixPath(line).name for line in self._stated["include"]]
        plain = [name for name in exact if not _WILD.intersection(name)]
        return path.name in plain and self._include.match_file(relative)

    def whole_folder(self, folder: Path) -> str | None:
        """A folder that need not be looked into, because nothing in it can be carried."""
        if folder.name in ("__pycache__", ".git"):
            return _CACHE if folder.name == "__pycache__" else _GIT
        relative = folder.relative_to(self._project).as_posix() + "/"
        if self._exclude.match_file(relative) and not any(
            line.startswith("!") for line in self._stated["exclude"]
        ):
            return _EXCLUDED
        if self._stated["include"]:
            return None
        if folder.name.startswith("."):
            return _HIDDEN
        return _IGNORED if self._git.ignores_all_of(folder) else None

    def notes(self, paths: Collection[str]) -> list[str]:
        """Of each stated pattern that no file fits: a slip of the pen would carry a secret."""
        return [
            *self._git.notes,
            *(
                f'{key} = "{line}" fits no file of the packages'
                for key, lines in self._stated.items()
                for line in lines
                if not line.startswith(("!", "#"))
                and not any(GitIgnoreSpec.from_lines([line]).match_files(paths))
            ),
        ]

    def _default(self, path: Path) -> str | None:
        """The first of our own reasons, by the names below the package's folder."""
        top = next(top for top in self._tops if path.is_relative_to(top))
        below = path.relative_to(top).as_posix() if path != top else path.name
        real = path.resolve().name if path.is_symlink() else ""
        for reason, spec in _DEFAULTS.items():
            if spec.match_file(below) or (reason == _KEY and real and spec.match_file(real)):
                return reason
        if _TEST_FOLDERS.isdisjoint(below.split("/")[:-1]):
            return None
        around = [folder for folder in path.parents if folder.is_relative_to(top)][:-1]
        inside_tests = any(f.name in _TEST_FOLDERS and _holds_python(f) for f in around)
        return TEST if inside_tests else None


@cache
def _holds_python(folder: Path) -> bool:
    return any(folder.glob("*.py"))


class _GitsWord:
    """What git ignores and does not hold: by git itself, else by the .gitignore files.

    A package that is ignored as a whole is named in the project file all the same: then the
    .gitignore files from the project's folder down have the word.
    """

    def __init__(self, project: Path, tops: Collection[Path]) -> None:
        self.notes: list[str] = []
        self._specs: dict[str, GitIgnoreSpec] = {}
        self._ignored_folders: dict[str, bool] = {}
        listed = [ask_git(project, *_LISTED, *more) for more in (["--cached"], _OTHERS)]
        repository = next((f for f in (project, *project.parents) if (f / ".git").exists()), None)
        self._top = project
        if None in listed:
            if repository is not None:
                self._top = repository
                self.notes.append(
                    f"git does not answer for {repository}: what stays behind is read from the "
                    ".gitignore files alone"
                )
            self._listed = None
            return
        names = "\0".join(map(str, listed)).split("\0")
        self._listed = {project / name.rstrip("/") for name in names if name}
        self._folders = {folder for path in self._listed for folder in path.parents}
        known = [top for top in tops if self._lists(top) or top in self._folders]
        self._unknown = [top for top in tops if top not in known]

    def ignores(self, path: Path) -> bool:
        """Whether git would neither keep it nor show it as new."""
        if self._listed is None or any(path.is_relative_to(top) for top in self._unknown):
            return self._is_ignored_by_files(path)
        return not self._lists(path)

    def ignores_all_of(self, folder: Path) -> bool:
        """Whether it ignores everything below a folder."""
        if self._listed is None or any(folder.is_relative_to(top) for top in self._unknown):
            return self._is_ignored_by_files(folder, is_folder=True)
        return folder not in self._folders and not self._lists(folder)

    def _lists(self, path: Path) -> bool:
        """Itself, or a link or a repository of its own that it lies in."""
        assert self._listed is not None
        return path in self._listed or any(folder in self._listed for folder in path.parents)

    def _is_ignored_by_files(self, path: Path, *, is_folder: bool = False) -> bool:
        """From the top down: below an ignored folder nothing can be taken back in."""
        relative = path.relative_to(self._top).as_posix()
        around = relative.rpartition("/")[0]
        return (around != "" and self._folder_is_ignored(around)) or self._verdict(
            relative + ("/" if is_folder else "")
        )

    def _folder_is_ignored(self, relative: str) -> bool:
        if relative not in self._ignored_folders:
            around = relative.rpartition("/")[0]
            above = around != "" and self._folder_is_ignored(around)
            self._ignored_folders[relative] = above or self._verdict(f"{relative}/")
        return self._ignored_folders[relative]

    def _verdict(self, relative: str) -> bool:
        """The word of the deepest .gitignore that has one; a folder ends in a slash."""
        cut = len(relative.rstrip("/"))
        while cut >= 0:
            cut = relative.rfind("/", 0, cut)
            spec = self._spec(relative[: max(cut, 0)])
            verdict = spec.check_file(relative[cut + 1 :]).include if len(spec) else None
            if verdict is not None:
                return verdict
        return False

    def _spec(self, folder: str) -> GitIgnoreSpec:
        if folder not in self._specs:
            path = self._top / folder / ".gitignore"
            text = path.read_bytes().decode("utf-8-sig", "replace") if path.is_file() else ""
            self._specs[folder] = GitIgnoreSpec.from_lines(filter(is_pattern, text.splitlines()))
        return self._specs[folder]


def _refuse(error: OSError) -> None:
    raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error


def _refuse_endless_link(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in folder.absolute().parents:
        raise BundleError(f"{folder} is a link to a folder above it")


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path} is no regular file", "Move it out of the package.")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _module_name(path: str) -> str | None:
    """`pkg/sub/__init__.py` → "pkg.sub"; None where no import statement can reach the file."""
    if not path.endswith(".py"):
        return None
    parts = path.removesuffix(".py").split("/")
    if not all(part.isidentifier() for part in parts):
        return None
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parse(tree: _Tree) -> tuple[dict[str, Module], dict[str, PythonSyntaxError]]:
    """The carried modules, and those that are no Python, each with its fault."""
    modules: dict[str, Module] = {}
    unreadable: dict[str, PythonSyntaxError] = {}
    for name in tree.names:
        if tree.is_carried(name):
            try:
                modules[name] = tree.module(name)
            except PythonSyntaxError as error:
                unreadable[name] = error
    return modules, unreadable


def _require_readable(
    modules: Mapping[str, Module], unreadable: Mapping[str, PythonSyntaxError], entry: str
) -> None:
    """A file that is no Python may be a sample or a template, but nobody may import it."""
    wanted = {entry.partition(":")[0]}
    for module in modules.values():
        for found in module.imports:
            wanted |= set(found.candidates) if found.need is ImportKind.NEEDED else set()
    for name in sorted(imports.with_parents(wanted) & unreadable.keys()):
        raise unreadable[name]


def _layout_notes(
    config: Config, roots: Mapping[str, str], modules: Mapping[str, Module]
) -> list[str]:
    """Where the notebook's folders are not as here, and a program may mind."""
    notes = []
    if len(set(roots.values())) > 1:
        notes.append(
            f"the packages come from {', '.join(sorted(set(roots.values())))}: in the notebook "
            "they lie side by side, which paths relative to a file may mind"
        )
    name = config.distribution
    for module in modules.values():
        if name and b"metadata" in module.content and name.encode() in module.content:
            notes.append(
                f"{module.path} may ask for the metadata of {name}: a notebook does not install it"
            )
    return notes


def _add_imported_tests(tree: _Tree, modules: dict[str, Module]) -> list[str]:
    """Tests stay behind, but for those that the package itself imports."""
    notes = []
    pending = list(modules.values())
    while pending:
        module = pending.pop()
        for found in module.imports:
            if found.need is ImportKind.TYPING:
                continue
            for name in sorted(imports.with_parents(found.candidates)):
                if name in tree.names and tree.why_left(name) == TEST:
                    tree.carry_test(name)
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
        tree.leave(tree.names[name], _UNREACHED)
    for path in tree.data(modules):
        around = PurePosixPath(path).parents
        home = next((f for f in around if f"{f}/__init__.py" in tree.names.values()), None)
        if home is not None and str(home) not in folders:
            tree.leave(path, _UNREACHED)
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
        given = f".{name} =".encode()
        return (
            not module.is_package
            or module.may_bind(name)
            or any(given in other.content for other in self._carried.values())
        )

    def near_miss(self, target: str) -> str:
        return near_miss(target, self._present)


def _check_own_imports(modules: Mapping[str, Module], own: _OwnModules, tree: _Tree) -> None:
    lost = [
        f'{module.path}:{found.line}: imports "{target}", which {reason}'
        for _, module in sorted(modules.items())
        for found in module.imports
        if found.target.partition(".")[0] in own.tops and found.need is not ImportKind.TYPING
        for target, reason in _lost_targets(found, own, tree)
    ]
    if lost:
        raise BundleError(
            "\n".join(dict.fromkeys(lost)),
            'Mend the import, "include" what stays behind, or, where the program does without it, '
            'name the file in "exclude" of [tool.kernelkit].',
        )


def _lost_targets(
    found: imports.Import, own: _OwnModules, tree: _Tree
) -> Iterator[tuple[str, str]]:
    """What an import wants and the notebook would not have.

    An import that may fail is no fault where there is no such module, but it is one where the
    module is there and stays behind without the user's word: the notebook would go another way.
    What the user excludes is missed at their word.
    """
    for target in found.candidates:
        why = tree.why_left(target) if target in tree.names else None
        if target == found.target and target not in tree.names:
            why = tree.why_folder_left(target)
        if why and why != _EXCLUDED:
            path = tree.in_project(tree.names.get(target, f"{target.replace('.', '/')}/"))
            yield target, f"stays behind ({why}): {path}"
    if found.need is not ImportKind.NEEDED:
        return
    if not own.has(found.target) and found.target not in tree.names:
        if not own.may_be_made(found.target) and not tree.is_excluded(found.target):
            yield found.target, f"the package does not hold{own.near_miss(found.target)}"
        return
    for name in found.names:
        target = f"{found.target}.{name}"
        if (
            target not in tree.names
            and not own.may_hold(found.target, name)
            and not tree.is_excluded(target)
        ):
            yield target, f"the package does not hold{own.near_miss(target)}"


def _require_entry(entry: str, modules: Collection[str]) -> None:
    module_name, _, _ = entry.partition(":")
    if module_name not in modules:
        raise BundleError(
            f'the entry "{entry}" names the module "{module_name}", which is not in the package'
            f"{near_miss(module_name, modules)}",
            'Set [tool.kernelkit] "entry" to "package.module:function".',
        )


def _entry_signature(entry: str, modules: Mapping[str, Module]) -> Signature | None:
    """How the entry can be called, once it is sure that it is there and runs when it is called."""
    module_name, _, function = entry.partition(":")
    module = modules[module_name]
    signature = module.signature(function)
    if signature is not None and not signature.runs_when_called:
        raise BundleError(
            f'the entry "{entry}" is a coroutine or a generator: a call alone runs nothing of it',
            "Name a plain function that runs it to its end.",
        )
    if not module.may_bind(function):
        raise BundleError(
            f'the entry "{entry}": {module.path} defines no "{function}"'
            f"{near_miss(function, module.top_level_names or ())}"
        )
    return signature


def _check_siblings(
    project: Path, roots: Mapping[str, str], third_party: Mapping[str, tuple[str, ...]]
) -> None:
    """A module that lies beside the package is found here, and in the notebook it is not."""
    for root in sorted(set(roots.values())):
        for name, places in third_party.items():
            alone, folder = project / root / f"{name}.py", project / root / name
            if not alone.is_file() and not _holds_python(folder):
                continue
            found = alone if alone.is_file() else folder
            raise BundleError(
                f'{places[0]}: imports "{name}", which lies beside the package and is not carried',
                f'Add "{found.relative_to(project).as_posix()}" to "package" in [tool.kernelkit], '
                "or move it into the package.",
            )


def _provenance(project: Path, paths: Iterable[str]) -> Provenance:
    """The commit, and whether any carried file is other than that commit has it."""
    carried = list(paths)
    commit = ask_git(project, "rev-parse", "HEAD")
    changes = ask_git(project, "diff", "HEAD", "--name-only", "--relative", "-z")
    tracked = ask_git(project, "ls-files", "-z")
    if not commit or changes is None or tracked is None:
        return Provenance(commit=commit or None, dirty=None)
    gone = {name for name in changes.split("\0") if name and not (project / name).exists()}
    beside = {str(PurePosixPath(name).parent) for name in carried}
    changed = set(changes.split("\0")) & set(carried)
    changed |= {name for name in gone if str(PurePosixPath(name).parent) in beside}
    dirty = bool(changed or set(carried) - set(tracked.split("\0")))
    return Provenance(commit=commit, dirty=dirty)


def ask_git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
