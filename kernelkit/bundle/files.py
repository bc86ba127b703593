"""Which files of the packages are carried, and why the others are left out.

`exclude` of the project file decides first. Then a list of defaults leaves out caches, hidden
files, keys, notebooks and tests, and git leaves out what it ignores; `include` overrides both, but
carries a key only if it names that file. `bundle` adds tests that the package imports, and drops
what `only_reachable` does not reach.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from kernelkit.bundle import image
from kernelkit.bundle.extensions import (
    COMPILED_SUFFIXES,
    HEAD_BYTES,
    IMAGE_GLIBC,
    extension_module,
    misfit,
    newer_glibc,
    python_of,
)
from kernelkit.bundle.git import GitIgnore, is_part_of_repository, parents
from kernelkit.bundle.secrets import PRIVATE_KEY
from kernelkit.config import Config, near_miss
from kernelkit.errors import BundleError
from kernelkit.storage import read_file

TEST = "a test"
EXCLUDED, UNREACHED = "excluded", "not reachable"
_CACHE, _HIDDEN, _KEY, _GIT = "a cache", "hidden", "a key", "git's own"
_IGNORED = "named in .gitignore"

# Patterns as in .gitignore, relative to the package's own folder; the first match is reported.
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
_PLAIN_MODULE = re.compile(
    r"(?:(?!tests?/|__pycache__/)[A-Za-z_]\w*/)*(?!test_|conftest\.)[A-Za-z_]\w*(?<!_test)\.py"
)
"""Names that match no default, as most files of a package have: the patterns need no try."""

_ONLY_BY_NAME = frozenset({_GIT, _KEY})  # `include = ["data/"]` does not mean the key in it
_TEST_FOLDERS = frozenset({"test", "tests"})  # only with Python files: test data is not a test
_WILD = frozenset("*?[")
_NOT_SOURCE = frozenset({"build", "dist", "runs", "node_modules"})
"""Folders at the top of a project that `package = "."` does not mean."""

WHOLE_PROJECT = "."
_NOT_SOURCE_REASON = "not source code"
_LINKED = "a link out of the project"
_OUTSIDE = 'data outside of packages: name it in "files"'


@dataclass(frozen=True)
class Arrangement:
    """Where the packages are in the project, and where the notebook writes them."""

    roots: Mapping[str, str]
    """Top of each path in the notebook → the folder of the project that holds it; "." if absent."""

    packages: tuple[str, ...]
    """Folders and single modules by their path in the notebook; "." for the whole project."""

    import_folders: tuple[str, ...] = ("",)
    """Where the run searches for modules, in this order; by their path in the notebook."""

    script: str = ""
    """The entry if it is a script: its name need not be an identifier."""

    def in_project(self, path: str) -> str:
        """`pkg/mod.py` → `src/pkg/mod.py`."""
        root = self.roots.get(path.partition("/")[0], ".")
        return path if root == "." else f"{root}/{path}"

    def module_name(self, path: str) -> str | None:
        """`pkg/sub/__init__.py` → "pkg.sub"; None where no import statement can reach the file."""
        if path == self.script:
            return PurePosixPath(path).stem
        if not path.endswith(".py"):
            return None
        around = [f for f in self.import_folders if not f or path.startswith(f"{f}/")]
        if not around:
            return None
        below = path[len(max(around, key=len)) :].lstrip("/")
        parts = below.removesuffix(".py").split("/")
        if not all(part.isidentifier() for part in parts):
            return None
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True)
class _Entry:
    """One file below a package."""

    name: str
    """Relative to the project: `src/pkg/sub/mod.py`."""

    path: str
    """Relative to the folder that holds the package: `pkg/sub/mod.py`."""

    below: str
    """Relative to the package: `sub/mod.py`; of a single module its own name."""

    file: Path
    is_link: bool

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix


@dataclass(frozen=True)
class _Content:
    content: bytes
    executable: bool

    @classmethod
    def read(cls, path: Path) -> _Content:
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                raise BundleError(f"{path} is not a regular file", "Move it out of the package.")
            return cls(read_file(path), bool(mode & stat.S_IXUSR))
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error


@dataclass
class PackageFiles:
    """The files below the packages. Each is carried, or has a reason why it is left out."""

    project: Path
    arrangement: Arrangement

    left_out: dict[str, str] = field(default_factory=dict)
    """Paths relative to the project → the reason; a folder ends in a slash."""

    modules: dict[str, str] = field(default_factory=dict)
    """Module → its path, of every module on disk, carried or not."""

    extensions: dict[str, str] = field(default_factory=dict)
    """Module → its path, of every compiled extension; a carried one where there are several."""

    named: list[str] = field(default_factory=list)
    """The paths that `files` of the project file names."""

    included: set[str] = field(default_factory=set)
    """The paths that fit a pattern of `include`."""

    notes: list[str] = field(default_factory=list)
    """What a user should know about the choice of files."""

    _paths: list[str] = field(default_factory=list)
    _places: dict[str, Path] = field(default_factory=dict)
    _read: dict[str, _Content] = field(default_factory=dict)
    _python: tuple[int, int] | None = None
    """Of the image, where compiled extensions are carried."""

    @classmethod
    def find(cls, config: Config, arrangement: Arrangement) -> PackageFiles:
        """Walk through the packages and through `files`.

        Raises:
            BundleError: a package is missing, a file cannot be read, or a compiled extension would
                have to be carried.
        """
        files = cls(config.project, arrangement)
        if config.layout == "dataset":
            files._python = image.load_snapshot(config.image).release
        rules = _Rules(config)
        links: list[str] = []
        for package in arrangement.packages:
            for entry in files._walk(package, rules, links):
                if rules.includes(entry.name):
                    files.included.add(entry.path)
                files._add(entry, rules.reason(entry) or files._private_key(entry, rules))
        for pattern in config.files:
            files._add_named(pattern, rules, links)
        files._paths.sort()
        files.notes += rules.notes([*map(files.in_project, files._paths), *files.left_out])
        files.notes += files._checked_links(links)
        return files

    def require_modules(self) -> None:
        """Raise unless at least one module is carried."""
        if any(map(self.is_carried, self.modules)):
            return
        reasons = sorted({str(self.reason(name)) for name in self.modules})
        but = f" except those that are left out ({', '.join(reasons)})" if reasons else ""
        raise BundleError(
            f"{', '.join(map(self.in_project, self.arrangement.packages))}: there is no Python "
            f"module{but}",
            'Name the files to carry in "include" of [tool.kernelkit].' if reasons else "",
        )

    def in_project(self, path: str) -> str:
        """`pkg/mod.py` → `src/pkg/mod.py`."""
        return self.arrangement.in_project(path)

    def content(self, path: str) -> bytes:
        """The file's bytes."""
        return self._content(path).content

    def is_executable(self, path: str) -> bool:
        """Whether its owner may run the file as a program."""
        return self._content(path).executable

    def _content(self, path: str) -> _Content:
        """What the file holds, which is read once."""
        if path not in self._read:
            self._read[path] = _Content.read(self._places[path])
        return self._read[path]

    def is_carried(self, module: str) -> bool:
        """Whether a module that is on disk is carried."""
        return self.reason(module) is None

    def reason(self, module: str) -> str | None:
        """Why a module that is on disk is left out; None where it is carried."""
        return self.left_out.get(self.in_project(self.modules[module]))

    @property
    def carried_extensions(self) -> list[str]:
        """The modules that a carried compiled extension provides."""
        return [name for name in self.extensions if self.extension_reason(name) is None]

    def extension_reason(self, module: str) -> str | None:
        """Why a compiled extension is left out; None where it is carried."""
        return self.left_out.get(self.in_project(self.extensions[module]))

    def path_of(self, module: str) -> str:
        """Of a module on disk, whatever its kind; else of its folder."""
        found = self.modules.get(module) or self.extensions.get(module)
        return found or f"{module.replace('.', '/')}/"

    def folder_reason(self, module: str) -> str | None:
        """Why the whole folder of a module is left out; None where it is not."""
        inside = module.replace(".", "/") + "/"
        for folder in self.arrangement.import_folders:
            path = self.in_project(f"{folder}/{inside}".lstrip("/"))
            for name, reason in self.left_out.items():
                if name.endswith("/") and path.startswith(name):
                    return reason
        return None

    def is_excluded(self, module: str) -> bool:
        """Whether the user excluded a file of that module, whatever its suffix."""
        path = module.replace(".", "/")
        return self.folder_reason(module) == EXCLUDED or any(
            reason == EXCLUDED and name.partition(".")[0].removesuffix("/__init__").endswith(path)
            for name, reason in self.left_out.items()
        )

    def carry_test(self, module: str) -> None:
        """Carry a test module after all, and the data in its folder."""
        del self.left_out[self.in_project(self.modules[module])]
        folder = self.modules[module].rpartition("/")[0]
        for path in self._paths:
            is_data = path.startswith(f"{folder}/") and not path.endswith(".py")
            if is_data and self.left_out.get(self.in_project(path)) == TEST:
                del self.left_out[self.in_project(path)]

    def leave_out(self, path: str, reason: str) -> None:
        """Do not carry a file."""
        self.left_out[self.in_project(path)] = reason

    def data(self, modules: Collection[str]) -> list[str]:
        """The carried files that are not among the carried `modules`."""
        of_modules = {self.modules[name] for name in modules}
        return [
            path
            for path in self._paths
            if path not in of_modules and self.in_project(path) not in self.left_out
        ]

    def _add_named(self, pattern: str, rules: _Rules, links: list[str]) -> None:
        """Carry the files that one line of `files` names; a folder means all files below it.

        Raises:
            BundleError: there is no such file.
        """
        found = sorted(self.project.glob(pattern))
        for path in found:
            top = path.relative_to(self.project).as_posix()
            for entry in self._walk(top, rules, links):
                reason = rules.reason_of_named(entry) or self._private_key(entry, rules)
                if reason is None:
                    self.left_out.pop(entry.name, None)
                    self.named.append(entry.path)
                if entry.path not in self._places:
                    self._add(entry, reason)
        if not found:
            raise BundleError(
                f'[tool.kernelkit] "files": there is no {pattern} in {self.project}',
                "Name files and folders relative to the project file.",
            )

    def _walk(
        self, top: str, rules: _Rules, links: list[str], *, strict: bool = True
    ) -> Iterator[_Entry]:
        """Every file of a package; `links` takes the links that lead out of the project.

        Raises:
            BundleError: a link leads to a folder of somebody else, and `strict` or a regular
                package needs what is there.
        """
        if top == WHOLE_PROJECT:
            yield from self._walk_project(rules, links)
            return
        package = self.in_project(top)
        start = self.project / package
        home = self.project.resolve()
        if not start.resolve().is_relative_to(home):
            if not is_part_of_repository(start.resolve(), home):
                raise _foreign(package, start.resolve())
            links.append(package)
        if start.is_file():
            yield _Entry(package, top, top, start, start.is_symlink())
            return
        if not start.is_dir():
            raise BundleError(
                f"there is no package {package} in {self.project}"
                f"{near_miss(package, (path.name for path in self.project.iterdir()))}",
                'Set [tool.kernelkit] "package" to the folder of the package.',
            )
        for folder, subfolders, names in os.walk(start, onerror=_refuse, followlinks=True):
            below = folder[len(str(start)) :].replace(os.sep, "/").lstrip("/")
            prefix = f"{below}/" if below else ""
            if Path(folder).is_symlink():
                _refuse_endless_link(Path(folder))
                if prefix and not Path(folder).resolve().is_relative_to(home):
                    name = f"{package}/{prefix}".rstrip("/")
                    if is_part_of_repository(Path(folder).resolve(), home):
                        links.append(name)
                    elif strict or self._is_in_package(f"{top}/{prefix}"):
                        raise _foreign(name, Path(folder).resolve())
                    else:  # not walked: it may lead to the whole disk
                        self.left_out[f"{name}/"] = _LINKED
                        subfolders.clear()
                        continue
            for name in list(subfolders):
                path = f"{package}/{prefix}{name}"
                if reason := rules.folder_reason(path):
                    subfolders.remove(name)
                    self.left_out[f"{path}/"] = reason
            subfolders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                is_link = file.is_symlink()
                if is_link and not file.resolve().is_relative_to(home):
                    links.append(f"{package}/{prefix}{name}")
                path = f"{prefix}{name}"
                yield _Entry(f"{package}/{path}", f"{top}/{path}", path, file, is_link)

    def _walk_project(self, rules: _Rules, links: list[str]) -> Iterator[_Entry]:
        """The Python files of the whole project, and the data inside its regular packages."""
        home = self.project.resolve()
        for path in sorted(self.project.iterdir()):
            name = path.name
            leads_out = not path.resolve().is_relative_to(home)
            if leads_out and not is_part_of_repository(path.resolve(), home):
                self.left_out[f"{name}/" if path.is_dir() else name] = _LINKED
            elif path.is_dir():
                is_environment = (path / "pyvenv.cfg").is_file()
                reason = _NOT_SOURCE_REASON if name in _NOT_SOURCE or is_environment else None
                reason = reason or rules.folder_reason(name)
                if reason is None and not any(path.rglob("*.py")):
                    reason = _OUTSIDE
                if reason is not None:
                    self.left_out[f"{name}/"] = reason
                    continue
                for entry in self._walk(name, rules, links, strict=False):
                    if entry.suffix == ".py" or self._is_in_package(entry.path):
                        yield replace(entry, below=entry.path)
                    else:
                        self.left_out[entry.name] = _OUTSIDE
            elif path.suffix == ".py":
                links += [name] if leads_out else []
                yield _Entry(name, name, name, path, path.is_symlink())
            else:
                self.left_out[name] = _OUTSIDE

    def _is_in_package(self, path: str) -> bool:
        """Whether a folder around the file is a regular package."""
        return any((self.project / f / "__init__.py").is_file() for f in parents(path))

    def _add(self, entry: _Entry, reason: str | None) -> None:
        is_compiled = entry.suffix in COMPILED_SUFFIXES
        # A build puts extensions where git ignores them, and the package needs them all the same.
        if reason is None or (reason == _IGNORED and is_compiled):
            if is_compiled and self._python is not None:
                reason = misfit(entry.path, _head(entry.file), self._python)
            _require_carriable(entry, carries_extensions=self._python is not None)
        if reason is not None:
            self.left_out[entry.name] = reason
        self._paths.append(entry.path)
        self._places[entry.path] = entry.file
        if is_compiled:
            self._add_extension(entry, reason)
            return
        name = self.arrangement.module_name(entry.path)
        if name is None:
            return
        # Python prefers pkg/mod/__init__.py to pkg/mod.py; a carried file goes before both.
        known = name in self.modules
        better = not known or entry.path.endswith("/__init__.py")
        if better or (reason is None and not self.is_carried(name)):
            self.modules[name] = entry.path

    def _add_extension(self, entry: _Entry, reason: str | None) -> None:
        path = extension_module(entry.path)
        name = self.arrangement.module_name(f"{path}.py") if path else None
        if name is None:
            return
        if reason is None or name not in self.extensions:
            self.extensions[name] = entry.path
        needed = newer_glibc(self.content(entry.path)) if reason is None else None
        if needed:
            self.notes.append(
                f"{entry.name} needs glibc {needed}, and Kaggle's image is known to have "
                f"2.{IMAGE_GLIBC}: build it on an older Linux, such as manylinux"
            )
        here = (sys.version_info.major, sys.version_info.minor)
        if reason is None and python_of(entry.path) not in (None, here):
            self.notes.append(
                f"{entry.name} is for Kaggle's Python: this machine's Python "
                f"{'.'.join(map(str, here))} cannot import it in a rehearsal"
            )

    def _private_key(self, entry: _Entry, rules: _Rules) -> str | None:
        """Finds a private key by its content: a .pem may also be a certificate."""
        if entry.suffix == ".py" or entry.suffix in COMPILED_SUFFIXES:
            return None
        content = self._read[entry.path] = _Content.read(entry.file)
        is_key = PRIVATE_KEY.search(content.content) and not rules.includes_by_name(entry.name)
        return _KEY if is_key else None

    def _checked_links(self, links: list[str]) -> list[str]:
        """Notes on carried links that lead out of the project, to another part of its repository.

        Raises:
            BundleError: one leads elsewhere. A project may be a stranger's, and must not send
                files of this machine.
        """
        carried = [name for name in map(self.in_project, self._paths) if name not in self.left_out]
        home = self.project.resolve()
        notes = []
        for link in sorted(set(links)):
            if not any(n == link or n.startswith(f"{link}/") for n in carried):
                continue
            target = (self.project / link).resolve()
            if not is_part_of_repository(target, home):
                raise _foreign(link, target)
            notes.append(f"{link}: a link leads out of the project")
        return notes


class _Rules:
    """Why a file is left out: `include` and `exclude`, git, and the defaults."""

    def __init__(self, config: Config) -> None:
        self._project = config.project
        self._packages = [str(PurePosixPath(package)) for package in config.package]
        self._named = {str(PurePosixPath(name)) for name in config.files}
        self._stated = {"include": config.include, "exclude": config.exclude}
        self._include = GitIgnoreSpec.from_lines(config.include)
        self._exclude = GitIgnoreSpec.from_lines(config.exclude)
        self._git = GitIgnore(config.project, self._packages)

    def reason(self, entry: _Entry) -> str | None:
        """Why a file is left out; None where it is carried."""
        if self._exclude and self._exclude.match_file(entry.name):
            return EXCLUDED
        reason = self._default(entry)
        if reason in _ONLY_BY_NAME:
            return None if self.includes_by_name(entry.name) else reason
        if entry.name in self._packages or (self._include and self._include.match_file(entry.name)):
            return None
        return reason or (_IGNORED if self._git.ignores(entry.name) else None)

    def reason_of_named(self, entry: _Entry) -> str | None:
        """Why a file below an entry of `files` is left out: naming a folder overrides git."""
        if self._exclude and self._exclude.match_file(entry.name):
            return EXCLUDED
        if entry.name in self._named:
            return None
        reason = self._default(entry)
        return reason if reason in (_GIT, _CACHE, _KEY, _HIDDEN) else None

    def includes(self, name: str) -> bool:
        """Whether a pattern of `include` fits a file."""
        return bool(self._stated["include"]) and self._include.match_file(name)

    def includes_by_name(self, name: str) -> bool:
        """Whether `include` names this very file, and not only its folder or a pattern."""
        file_names = [PurePosixPath(line).name for line in self._stated["include"]]
        exact = [name for name in file_names if not _WILD.intersection(name)]
        return PurePosixPath(name).name in exact and self._include.match_file(name)

    def folder_reason(self, folder: str) -> str | None:
        """Why a whole folder is left out; None where some file in it may be carried."""
        name = folder.rpartition("/")[2]
        if name in ("__pycache__", ".git"):
            return _CACHE if name == "__pycache__" else _GIT
        if self._exclude.match_file(f"{folder}/") and not any(
            line.startswith("!") for line in self._stated["exclude"]
        ):
            return EXCLUDED
        if self._stated["include"]:
            return None
        if name.startswith("."):
            return _HIDDEN
        return _IGNORED if self._git.ignores_all_of(folder) else None

    def notes(self, names: Collection[str]) -> list[str]:
        """Patterns of the user that match no file: a typing error could carry a secret."""
        return [
            *self._git.notes,
            *(
                f'{key} = "{line}" fits no file of the packages'
                for key, lines in self._stated.items()
                for line in lines
                if not line.startswith(("!", "#"))
                and not any(GitIgnoreSpec.from_lines([line]).match_files(names))
            ),
        ]

    def _default(self, entry: _Entry) -> str | None:
        if _PLAIN_MODULE.fullmatch(entry.below) and not entry.is_link:
            return None
        real = entry.file.resolve().name if entry.is_link else ""
        for reason, spec in _DEFAULTS.items():
            if spec.match_file(entry.below) or (reason == _KEY and real and spec.match_file(real)):
                return reason
        folders = list(parents(entry.below))
        tests = [f for f in folders if f.rpartition("/")[2] in _TEST_FOLDERS]
        top = entry.name.removesuffix(entry.below)
        in_tests = any(holds_python(self._project / f"{top}{folder}") for folder in tests)
        return TEST if in_tests else None


def is_key_name(name: str) -> bool:
    """Whether a path has the usual name of a file of credentials: `.env`, `kaggle.json`."""
    return _DEFAULTS[_KEY].match_file(name)


@cache
def holds_python(folder: Path) -> bool:
    """Whether a folder directly holds a Python file."""
    return any(folder.glob("*.py"))


def _head(path: Path) -> bytes:
    """The beginning of a file."""
    try:
        return read_file(path, HEAD_BYTES)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _require_carriable(entry: _Entry, *, carries_extensions: bool) -> None:
    if not entry.path.isprintable() or any("\ud800" <= char <= "\udfff" for char in entry.path):
        raise BundleError(f"the file name {entry.path!r} cannot be carried", "Rename the file.")
    if entry.suffix in COMPILED_SUFFIXES and not carries_extensions:
        raise BundleError(
            f"{entry.name} is a compiled extension: a notebook cannot carry it",
            'Set layout = "dataset" in [tool.kernelkit], which carries the package in a private '
            "dataset; move it into a wheel of its own; or, where the package works without it, add "
            'it to "exclude".',
        )


def _refuse(error: OSError) -> None:
    raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error


def _foreign(link: str, target: Path) -> BundleError:
    return BundleError(
        f"{link} is a link to {target}, which is not a part of this project",
        'Copy what the program needs into the project, or add the link to "exclude" in '
        "[tool.kernelkit].",
    )


def _refuse_endless_link(folder: Path) -> None:
    if folder.resolve() in folder.absolute().parents:
        raise BundleError(f"{folder} is a link to a folder above it")
