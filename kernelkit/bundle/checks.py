"""Checks of a package before it is carried: the entry, the imports, the places of files.

Each check either returns what it found or raises a `BundleError` that names file and line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernelkit.bundle import image, imports
from kernelkit.bundle.extensions import BUILT_FOR
from kernelkit.bundle.files import EXCLUDED, Arrangement, PackageFiles, holds_python
from kernelkit.bundle.imports import Import, ImportKind, Module, PythonSyntaxError, Signature
from kernelkit.bundle.metadata import Distribution, NoDistribution, readers
from kernelkit.config import Config, entry_module, is_script, near_miss
from kernelkit.errors import BundleError

_REACHABLE = (ImportKind.NEEDED, ImportKind.LAZY)  # imports that no handler catches
_MISSING, _NOT_THERE = "the package does not hold", ": the run must not get there"
_CHANGES_PATH = (b"sys.path", b"addsitedir", b"PYTHONPATH")
"""Words in a source that may add a folder to those in which Python looks for modules."""


def require_entry(entry: str, modules: Collection[str], files: PackageFiles) -> None:
    """Raise unless the module of the entry is carried."""
    module_name = program_module(entry, files.modules)
    found = module_name in files.modules
    reason = files.reason(module_name) if found else files.folder_reason(module_name)
    if reason:
        where = files.in_project(files.modules[module_name]) if found else "the whole folder"
        remedy = 'Take it out of "exclude"'
        if reason != EXCLUDED:
            remedy = f'Add {_pattern(module_name, files)} to "include"'
        raise BundleError(
            f'the entry "{entry}" names the module "{module_name}", which is left out ({reason}): '
            f"{where}",
            f"{remedy} in [tool.kernelkit], or name another entry.",
        )
    if module_name not in modules:
        raise BundleError(
            f'the entry "{entry}" names the module "{module_name}", which is not in the package'
            f"{near_miss(module_name, modules)}",
            'Set [tool.kernelkit] "entry" to "package.module:function", "package.module" or '
            '"script.py".',
        )


def program_module(entry: str, modules: Collection[str]) -> str:
    """The module that an entry starts in: of a package that runs as a program, its `__main__`."""
    name = entry_module(entry)
    is_package = is_script(entry) and f"{name}.__main__" in modules
    return f"{name}.__main__" if is_package and not entry.endswith(".py") else name


def _pattern(module: str, files: PackageFiles) -> str:
    """What `include` must name to carry a module."""
    path = files.modules.get(module)
    if path is None:
        return f'"{files.in_project(module.replace(".", "/").rpartition("/")[0])}/"'
    return f'"{files.in_project(path)}"'


def entry_signature(
    entry: str, modules: Mapping[str, Module], files: PackageFiles
) -> Signature | None:
    """The arguments of the entry; None where the source does not show them.

    Raises:
        BundleError: there is no such function, or a call alone does not run it.
    """
    if is_script(entry):
        return None
    module_name, _, function = entry.partition(":")
    module = modules[module_name]
    signature = module.signature(function)
    if signature is not None and not signature.runs_when_called:
        raise BundleError(
            f'the entry "{entry}" is a coroutine or a generator: a call alone does not run it',
            "Name a plain function that runs it to its end.",
        )
    if not _OwnModules(modules, files).may_bind(module_name, function):
        raise BundleError(
            f'the entry "{entry}": {module.path} defines no "{function}"'
            f"{near_miss(function, module.top_level_names or ())}",
            'Name a function of that module, or the script itself: entry = "script.py".',
        )
    return signature


def require_readable(
    modules: Mapping[str, Module], unreadable: Mapping[str, PythonSyntaxError], entry: str
) -> None:
    """Raise if the program imports a file that is not valid Python.

    Such a file may be a sample or a template, which nothing imports.
    """
    wanted = {program_module(entry, modules.keys() | unreadable.keys())}
    for module in modules.values() if unreadable else ():
        for found in module.imports:
            wanted |= set(found.candidates) if found.kind in _REACHABLE else set()
    for name in sorted(imports.with_parents(wanted) & unreadable.keys()):
        raise unreadable[name]


def check_own_imports(modules: Mapping[str, Module], files: PackageFiles) -> list[str]:
    """Notes on imports that would fail, in functions that the run may never call.

    Raises:
        BundleError: a module of the package imports one that the notebook would not have.
    """
    own = _OwnModules(modules, files)
    lost, notes = [], []
    for _, module in sorted(modules.items()):
        for found in module.imports:
            if found.top not in own.tops or found.kind is ImportKind.TYPING:
                continue
            place = f"{module.path}:{found.line}"
            for target, reason in _lost_targets(found, own, files):
                if found.kind is ImportKind.LAZY and reason.startswith(_MISSING):
                    close = reason.removeprefix(_MISSING)
                    notes.append(f'{place} imports "{target}", which {_MISSING}{_NOT_THERE}{close}')
                else:
                    lost.append(f'{place}: imports "{target}", which {reason}')
            if found.kind is ImportKind.OPTIONAL:
                notes += [
                    f'{place} may import "{target}", which is left out '
                    f"({files.extension_reason(target)}): the run goes on without it"
                    for target in found.candidates
                    if target in files.extensions and target not in files.modules
                    if files.extension_reason(target) not in (None, EXCLUDED)
                ]
            if found.kind is ImportKind.LAZY:
                notes += [
                    f'{place} imports "{target}", which is excluded{_NOT_THERE}'
                    for target in _excluded(found, own, files)
                ]
    if lost:
        unfit = all(f"is left out ({BUILT_FOR}" in line for line in lost)
        remedy = (
            "Build it for Linux on x86-64 and Kaggle's Python, or as abi3, for example with "
            "cibuildwheel."
            if unfit
            else 'Fix the import, or carry the file ("include", "exclude").'
        )
        raise BundleError(
            "\n".join(dict.fromkeys(lost)),
            f"{remedy} If the program works without the module, add its name to "
            '"optional_imports" in [tool.kernelkit].',
        )
    return list(dict.fromkeys(notes))


def check_siblings(
    config: Config, arrangement: Arrangement, third_party: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise if an imported module is in the project: Python finds it here and not there.

    Python always looks next to the packages. In the folders above, up to the project's, it looks
    if the program is started there.
    """
    near = sorted(
        {root or "." for root in arrangement.roots.values() or arrangement.import_folders}
    )
    above = sorted({str(folder) for root in near for folder in PurePosixPath(root).parents})
    for root in dict.fromkeys([*near, *above]):
        for name, places in third_party.items():
            folder = config.project / root
            alone = (folder / f"{name}.py").is_file()
            if not alone and not holds_python(folder / name):
                continue
            path = (PurePosixPath(root) / (f"{name}.py" if alone else name)).as_posix()
            around = [package for package in config.package if package.startswith(f"{path}/")]
            if around or (root not in near and _is_elsewhere(name, config)):
                continue
            where = "next to the package" if root in near else "in the project"
            raise BundleError(
                f'{places[0]}: imports "{name}", which is {where} and is not carried',
                f'Add "{path}" to "package" in [tool.kernelkit], or move it into the package.',
            )


@dataclass(frozen=True)
class HiddenImport:
    """An import of a module of the package under a name that the notebook does not know."""

    place: str
    target: str
    own_name: str
    """The name under which the notebook has it."""

    root: str
    """The folder in which Python would have to look; relative to the project."""

    path: str
    """Of the module, relative to the project."""

    importing: str
    """The path of the importing file, relative to the project."""

    kind: ImportKind

    @property
    def words(self) -> str:
        """What a user should know."""
        return (
            f'imports "{self.target}", which the notebook knows only as "{self.own_name}" '
            f"({self.path})"
        )


def find_hidden(
    modules: Mapping[str, Module], files: PackageFiles, config: Config
) -> list[HiddenImport]:
    """Imports of own modules by another name.

    A script finds the modules in its own folder, and a program those in the folder where it
    starts. Both are folders around the importing file. What is installed here, in the image or by
    `pip` is not meant: a package may have a module of the same name.
    """
    own = {name.partition(".")[0] for name in files.modules}
    places = [_Place.of(name, files, config.project.name) for name in files.modules]
    parts = {part for place in places for part in place.parts}
    elsewhere: dict[str, bool] = {}
    hidden = []
    for _, module in sorted(modules.items()):
        for found in module.imports:
            if found.top not in parts or not imports.is_foreign(found.top, own):
                continue
            if found.kind is ImportKind.TYPING:
                continue
            if found.top not in elsewhere:
                elsewhere[found.top] = _is_elsewhere(found.top, config)
            wanted = tuple(found.target.split("."))
            meant = [match for place in places if (match := place.match(wanted, module.path))]
            if meant and not elsewhere[found.top]:
                name, root, path = min(meant)[1:]
                line = f"{module.path}:{found.line}"
                hidden.append(
                    HiddenImport(line, found.target, name, root, path, module.path, found.kind)
                )
    return hidden


@dataclass(frozen=True)
class _Place:
    """Where a module of the package is."""

    name: str
    path: str
    parts: tuple[str, ...]
    """Of its path, from the project's own folder on, without a suffix."""

    @classmethod
    def of(cls, name: str, files: PackageFiles, project: str) -> _Place:
        path = files.in_project(files.modules[name])
        inside = path.removesuffix(".py").removesuffix("/__init__")
        return cls(name, path, (project, *inside.split("/")))

    def match(self, wanted: tuple[str, ...], importing: str) -> tuple[int, str, str, str] | None:
        """The own name that an import means, the folder to look in, and the path.

        First comes how far the match is from what is wanted. None where Python would find another
        module, or this one only in a folder that is not around the importing file.
        """
        at = self.parts.index(wanted[0]) if wanted[0] in self.parts else 0
        inside = self.parts[at:]
        is_package = len(inside) > 1 or self.path.endswith("/__init__.py")
        root = "/".join(self.parts[1:at])
        around = at == 0 or not root or importing.startswith(f"{root}/")
        if inside[:1] != wanted[:1] or not around or self.path == importing:
            return None
        if len(wanted) > 1 and not is_package:
            return None
        same = sum(one == other for one, other in zip(inside, wanted, strict=False))
        below = max(len(inside) - len(wanted), 0)
        own_name = ".".join(self.name.split(".")[: -below or None])
        return below - 2 * same, own_name, root if at else "..", self.path


def check_hidden(
    hidden: Sequence[HiddenImport], modules: Mapping[str, Module], entry: str
) -> list[str]:
    """Notes on hidden imports that may work or that the run may never reach.

    Raises:
        BundleError: one is needed.
    """
    changes_path = any(word in m.content for m in modules.values() for word in _CHANGES_PATH)
    needed = [one for one in hidden if one.kind is ImportKind.NEEDED]
    if needed and not changes_path:
        first = needed[0]
        start = modules[program_module(entry, modules)].path
        root = first.root.removesuffix(".") and f"{first.root}/"
        package = root + first.path.removeprefix(root).partition("/")[0]
        advice = f'Import "{first.own_name}" instead of "{first.target}".'
        if start.rpartition("/")[0] == first.root:  # a script can import its neighbors
            advice += f' Or run the entry as a script: entry = "{start}" in [tool.kernelkit].'
        elif start.startswith(f"{package}/"):
            advice += (
                f' Or set package = "{package}" in [tool.kernelkit], and change the entry to match.'
            )
        raise BundleError(
            "\n".join(dict.fromkeys(f"{one.place}: {one.words}" for one in needed)), advice
        )
    reported = {one.target: one for one in reversed(hidden) if one.kind in _REACHABLE}
    if not reported:
        return []
    first, *others = reversed(reported.values())
    more = f"; so are {len(others)} more modules" if others else ""
    return [f"{first.place} {first.words}{more}"]


def _is_elsewhere(module: str, config: Config) -> bool:
    """Whether the image has a module, `pip` names its distribution, or it is installed here."""
    (found,) = image.compare({module: ()}, config.pip, image.load_snapshot(config.image))
    return found.is_known


def hash_notes(config: Config) -> list[str]:
    """Hashes of requirements that nothing will compare with the files."""
    if not config.pip_hashes or not config.kernel.enable_internet:
        return []
    return [
        "the hashes in the requirements file are not checked, because the run installs from PyPI. "
        "With enable_internet = false it installs wheels, and `kernelkit wheels` checks them"
    ]


def layout_notes(arrangement: Arrangement) -> list[str]:
    """Differences between the folders here and in the notebook that may matter to a program."""
    notes = []
    roots = set(arrangement.roots.values())
    if len(roots) > 1:
        notes.append(
            f"the packages come from {', '.join(sorted(roots))}: in the notebook "
            "they are in one folder, which may break paths relative to a file"
        )
    return notes


def metadata_notes(
    distribution: Distribution | NoDistribution,
    modules: Mapping[str, Module],
    tops: Collection[str],
) -> list[str]:
    """Whether the program finds the metadata that it asks for."""
    name = distribution.name
    names = [name] if name else tops
    places = readers([module for _, module in sorted(modules.items())], names)
    if not places:
        return []
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    asks = f"{places[0]}{more} may ask for the metadata of this project's distribution"
    if isinstance(distribution, Distribution):
        return [f"{asks}: the notebook installs that of {name} {distribution.version}"]
    return [f"{asks}, which the notebook does not have: {distribution.reason}"]


class _OwnModules:
    """The modules of the packages, as import statements find them."""

    def __init__(self, carried: Mapping[str, Module], files: PackageFiles) -> None:
        self._carried = carried
        self._present = files.modules.keys() | files.extensions.keys()
        self._packages = imports.with_parents([*carried, *files.carried_extensions])
        self.tops = {name.partition(".")[0] for name in self._present}

    def has(self, target: str) -> bool:
        """Whether the notebook has a module, or a folder with modules below it."""
        return target in self._packages

    def may_be_made(self, target: str) -> bool:
        """Whether a module around it creates modules without files."""
        around = imports.with_parents([target]) & self._carried.keys()
        return any(self._carried[name].makes_modules for name in around)

    def may_hold(self, package: str, name: str) -> bool:
        """Whether `from package import name` may work."""
        module = self._carried.get(package)
        if name == "*" or self.has(f"{package}.{name}"):
            return True
        if module is None:  # a folder without __init__.py binds no names
            return package in self._present
        given = f".{name} =".encode()
        return self.may_bind(package, name) or any(
            given in other.content for other in self._carried.values()
        )

    def plain(self, target: str) -> Module | None:
        """A carried module that is not a package: it holds names and no modules."""
        module = self._carried.get(target)
        return None if module is None or module.is_package else module

    def may_bind(self, module_name: str, name: str) -> bool:
        """Whether a carried module may have a name, its own or by `import *`."""
        pending, seen = [module_name], {module_name}
        while pending:
            module = self._carried.get(pending.pop())
            if module is None or module.may_bind(name):  # None: only the run knows its names
                return True
            pending += set(module.stars) - seen
            seen |= set(module.stars)
        return False

    def not_exported(self, package: str) -> list[str]:
        """What `from package import *` imports and the package does not have."""
        module = self._carried.get(package)
        if module is None:
            return []
        return [name for name in module.exported if not self.may_hold(package, name)]

    def near_miss(self, target: str) -> str:
        return near_miss(target, self._present)


def _lost_targets(
    found: Import, own: _OwnModules, files: PackageFiles
) -> Iterator[tuple[str, str]]:
    """What an import needs and the notebook would not have, each with the reason.

    An optional import of a module that does not exist is fine. If the module exists and is left
    out without the user's decision, the notebook would take another branch than the package: that
    is an error. What the user excludes is the user's decision, unless the program needs it.
    """
    for target in found.candidates:
        reason = files.reason(target) if target in files.modules else None
        if target == found.target and target not in files.modules:
            reason = files.folder_reason(target)
        if found.kind in _REACHABLE and target in files.extensions and target not in files.modules:
            reason = files.extension_reason(target)
        if reason and reason != EXCLUDED:
            path = files.in_project(files.path_of(target))
            yield target, f"is left out ({reason}): {path}"
    if found.kind not in _REACHABLE:
        return
    excluded = set(_excluded(found, own, files))
    if found.kind is ImportKind.NEEDED:
        yield from ((target, "is excluded") for target in sorted(excluded))
    if found.target in excluded:
        return
    present = files.modules.keys() | files.extensions.keys()
    if not own.has(found.target) and found.target not in present:
        if not own.may_be_made(found.target):
            yield found.target, f"{_MISSING}{own.near_miss(found.target)}"
        return
    names = own.not_exported(found.target) if "*" in found.names else found.names
    plain = own.plain(found.target)
    for name in names:
        target = f"{found.target}.{name}"
        if plain is not None:
            if found.kind is ImportKind.NEEDED and not own.may_hold(found.target, name):
                close = near_miss(name, plain.top_level_names or ())
                yield target, f"{plain.path} does not define{close}"
            continue
        if (
            target not in present
            and target not in excluded
            and not own.may_hold(found.target, name)
        ):
            yield target, f"{_MISSING}{own.near_miss(target)}"


def _excluded(found: Import, own: _OwnModules, files: PackageFiles) -> list[str]:
    """The modules of an import that the user has excluded, whatever the suffix of their file."""
    if not own.has(found.target) and files.is_excluded(found.target):
        return [found.target]
    exported = own.not_exported(found.target) if "*" in found.names else ()
    return [
        f"{found.target}.{name}"
        for name in (*found.names, *exported)
        if not own.may_hold(found.target, name) and files.is_excluded(f"{found.target}.{name}")
    ]
