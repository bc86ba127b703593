"""Checks of a package before it is carried: the entry, the imports, the places of files.

Each check either returns what it found or raises a `BundleError` that names file and line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kernelkit.bundle import imports
from kernelkit.bundle.files import EXCLUDED, Arrangement, PackageFiles, holds_python
from kernelkit.bundle.imports import Import, ImportKind, Module, PythonSyntaxError, Signature
from kernelkit.config import Config, entry_module, is_script, near_miss
from kernelkit.errors import BundleError


def require_entry(entry: str, modules: Collection[str]) -> None:
    """Raise unless the module of the entry is in the package."""
    module_name = program_module(entry, modules)
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


def entry_signature(entry: str, modules: Mapping[str, Module]) -> Signature | None:
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
    if not module.may_bind(function):
        raise BundleError(
            f'the entry "{entry}": {module.path} defines no "{function}"'
            f"{near_miss(function, module.top_level_names or ())}"
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
            wanted |= set(found.candidates) if found.kind is ImportKind.NEEDED else set()
    for name in sorted(imports.with_parents(wanted) & unreadable.keys()):
        raise unreadable[name]


def check_own_imports(modules: Mapping[str, Module], files: PackageFiles) -> None:
    """Raise if a module of the package imports one that the notebook would not have."""
    own = _OwnModules(modules, files.modules)
    lost = [
        f'{module.path}:{found.line}: imports "{target}", which {reason}'
        for _, module in sorted(modules.items())
        for found in module.imports
        if found.target.partition(".")[0] in own.tops and found.kind is not ImportKind.TYPING
        for target, reason in _lost_targets(found, own, files)
    ]
    if lost:
        raise BundleError(
            "\n".join(dict.fromkeys(lost)),
            'Fix the import, "include" the file that is left out, or, where the program works '
            'without it, name the file in "exclude" of [tool.kernelkit].',
        )


def check_siblings(
    project: Path, arrangement: Arrangement, third_party: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise if an imported module is next to the package: Python finds it here and not there."""
    folders = arrangement.roots.values() or arrangement.import_folders
    for root in sorted(set(folders)):
        for name, places in third_party.items():
            alone, folder = project / root / f"{name}.py", project / root / name
            if not alone.is_file() and not holds_python(folder):
                continue
            found = alone if alone.is_file() else folder
            raise BundleError(
                f'{places[0]}: imports "{name}", which is next to the package and is not carried',
                f'Add "{found.relative_to(project).as_posix()}" to "package" in [tool.kernelkit], '
                "or move it into the package.",
            )


def layout_notes(
    config: Config, arrangement: Arrangement, modules: Mapping[str, Module]
) -> list[str]:
    """Differences between the folders here and in the notebook that may matter to a program."""
    notes = []
    roots = set(arrangement.roots.values())
    if len(roots) > 1:
        notes.append(
            f"the packages come from {', '.join(sorted(roots))}: in the notebook "
            "they are in one folder, which may break paths relative to a file"
        )
    name = config.distribution
    for module in modules.values():
        if name and b"metadata" in module.content and name.encode() in module.content:
            notes.append(
                f"{module.path} may ask for the metadata of {name}: a notebook does not install it"
            )
    return notes


class _OwnModules:
    """The modules of the packages, as import statements find them."""

    def __init__(self, carried: Mapping[str, Module], present: Collection[str]) -> None:
        self._carried = carried
        self._present = present
        self._packages = imports.with_parents(carried)
        self.tops = {name.partition(".")[0] for name in present}

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
        return (
            not module.is_package
            or module.may_bind(name)
            or any(given in other.content for other in self._carried.values())
        )

    def near_miss(self, target: str) -> str:
        return near_miss(target, self._present)


def _lost_targets(
    found: Import, own: _OwnModules, files: PackageFiles
) -> Iterator[tuple[str, str]]:
    """What an import needs and the notebook would not have, each with the reason.

    An optional import of a module that does not exist is fine. If the module exists and is left
    out without the user's decision, the notebook would take another branch than the package: that
    is an error. What the user excludes is the user's decision.
    """
    for target in found.candidates:
        reason = files.reason(target) if target in files.modules else None
        if target == found.target and target not in files.modules:
            reason = files.folder_reason(target)
        if reason and reason != EXCLUDED:
            path = files.in_project(files.modules.get(target, f"{target.replace('.', '/')}/"))
            yield target, f"is left out ({reason}): {path}"
    if found.kind is not ImportKind.NEEDED:
        return
    if not own.has(found.target) and found.target not in files.modules:
        if not own.may_be_made(found.target) and not files.is_excluded(found.target):
            yield found.target, f"the package does not hold{own.near_miss(found.target)}"
        return
    for name in found.names:
        target = f"{found.target}.{name}"
        if (
            target not in files.modules
            and not own.may_hold(found.target, name)
            and not files.is_excluded(target)
        ):
            yield target, f"the package does not hold{own.near_miss(target)}"
