"""`read_bundle` reads the packages that the project file names into a `Bundle`.

A bundle holds every carried file byte for byte, the modules sorted by their imports, and a
digest. Source is parsed and never imported: a package that cannot be imported on this machine can
still be carried.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

from kernelkit.bundle import checks, image, imports, syntax
from kernelkit.bundle.files import TEST, UNREACHED, WHOLE_PROJECT, Arrangement, PackageFiles
from kernelkit.bundle.git import Provenance, parents, read_provenance
from kernelkit.bundle.imports import ImportKind, Module, PythonSyntaxError, Signature
from kernelkit.bundle.metadata import Distribution, read_distribution
from kernelkit.bundle.scripts import CommandLine, executed_files, read_command_line
from kernelkit.config import Config, is_script, near_miss
from kernelkit.errors import BundleError
from kernelkit.storage import (
    digest_of_bytes,
    read_file,
)

RUNTIME_MODULE = "kernelkit_runtime"  # the name of notebook/runtime/ inside the notebook


@dataclass(frozen=True)
class SourceFile:
    """One file of a package, as it is on disk."""

    path: str
    """Relative to the folder that holds the package, with forward slashes: `pkg/sub/mod.py`."""

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
        return digest_of_bytes(self.content)


@dataclass(frozen=True)
class Bundle:
    """Packages that are ready to be rendered."""

    roots: Mapping[str, str]
    """Top of each package (`pkg`, or `mod.py`) → the folder of the project that holds it."""

    entry: str
    """`package.module:function`, `package.module` or `script.py`."""

    files: tuple[SourceFile, ...]
    """Modules, each after the modules that it imports, then data files by name."""

    third_party: Mapping[str, tuple[str, ...]]
    """Top-level names imported from elsewhere → the places `path:line` that import them."""

    provenance: Provenance
    import_folders: tuple[str, ...] = ("",)
    """Folders of the notebook's sources that are on `sys.path`, in this order."""

    working_files: tuple[str, ...] = ()
    """Carried paths that the working folder holds as well while the entry runs."""

    command_line: CommandLine | None = None
    """What a script accepts; None where the entry is a function."""

    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same for imports that the run may not reach, or that may fail."""

    removed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Needed modules that some version of Python has removed → the places that import them."""

    distribution: Distribution | None = None
    """What the notebook installs as the metadata of the project; None where that is not known."""

    signature: Signature | None = None
    """The arguments of the entry; None where the source does not show them."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Paths in the project that are not carried (a folder ends in a slash) → the reason."""

    notes: tuple[str, ...] = ()
    """What a user should know; none of it stops a push."""

    def module_called(self, name: str) -> str | None:
        """A carried module with that word in its name, as in `package.name.module`."""
        modules = (file.module for file in self.files if file.module)
        return next((module for module in modules if name in module.split(".")), None)

    def accepts(self, name: str) -> bool:
        """Whether the entry takes a parameter of that name.

        A function whose source does not show its arguments may take any; a script must name it.
        """
        if self.command_line is not None:
            return name in self.command_line.names
        found = self.signature
        return found is None or found.open or name in found.accepted

    @property
    def tops(self) -> set[str]:
        """The top-level names of its modules."""
        return {file.module.partition(".")[0] for file in self.files if file.module}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the path, content and executable bit of every file."""
        return digest_of([(f.path, digest_part(f.sha256, f.executable)) for f in self.files])


def read_bundle(config: Config) -> Bundle:
    """Read the packages that the project file names.

    Raises:
        BundleError: a package does not exist, a file cannot be read or parsed, an import of an own
            module or the entry leads nowhere, a module is imported that is next to the packages,
            left out or known by another name, or there is a compiled extension.
        ConfigError: the project's snapshot of Kaggle's image cannot be read.
    """
    arrangement = _arrange(config)
    files = PackageFiles.find(config, arrangement)
    files.require_modules()
    reader = _ModuleReader(files, config)
    with _parsing():
        modules, unreadable = reader.parse()
        notes = _add_imported_tests(files, modules, reader)
    checks.require_entry(config.entry, modules.keys() | unreadable.keys(), files)
    if config.only_reachable:
        notes += _keep_reachable(files, modules, config.entry)
    checks.require_readable(modules, unreadable, config.entry)
    notes += [f"{error}: carried as data, for nothing imports it" for error in unreadable.values()]
    notes += checks.check_own_imports(modules, files)
    signature = checks.entry_signature(config.entry, modules, files)
    own = {name.partition(".")[0] for name in [*files.modules, *files.extensions]}
    foreign = imports.third_party(modules.values(), own, ImportKind.NEEDED)
    optional = imports.third_party(modules.values(), own, ImportKind.LAZY, ImportKind.OPTIONAL)
    for found in (foreign, optional):
        found.pop(RUNTIME_MODULE, None)  # each run has it
    siblings = {n: places for n, places in (foreign | optional).items() if n not in reader.declared}
    checks.check_siblings(config, arrangement, siblings)
    hidden = checks.find_hidden(modules, files, config)
    notes += checks.check_hidden(hidden, modules, config.entry) + reader.notes(modules)
    hidden_tops = {one.target.partition(".")[0] for one in hidden}
    order = imports.in_order(imports.graph(modules))
    sources = (
        *(_source_file(files, files.modules[name], modules[name]) for name in order),
        *(_source_file(files, path) for path in files.data(modules)),
    )
    notes += files.notes + checks.layout_notes(arrangement) + checks.hash_notes(config)
    packages = [files.in_project(package) for package in arrangement.packages]
    distribution = read_distribution(config.project, packages)
    notes += checks.metadata_notes(distribution, modules, own)
    carried = [files.in_project(source.path) for source in sources]
    return Bundle(
        roots=_tops(arrangement, sources),
        import_folders=arrangement.import_folders,
        working_files=tuple(sorted(files.named)),
        entry=config.entry,
        command_line=_command_line(config, modules),
        files=sources,
        third_party={n: places for n, places in foreign.items() if n not in hidden_tops},
        optional={n: places for n, places in optional.items() if n not in hidden_tops},
        removed=imports.removed(modules.values(), own),
        signature=signature,
        provenance=read_provenance(config.project, carried),
        distribution=distribution if isinstance(distribution, Distribution) else None,
        left_out=files.left_out,
        notes=tuple(notes),
    )


def digest_part(sha256: str, executable: bool) -> str:
    """What one file contributes to the digest of all files."""
    return f"{sha256} executable" if executable else sha256


def digest_of(parts: list[tuple[str, str]]) -> str:
    """SHA-256 over named parts, sorted by name.

    Each text is preceded by its length, so that different parts never make the same bytes.
    """
    state = hashlib.sha256()
    for name, value in sorted(parts):
        for text in (name, value):
            encoded = text.encode()
            state.update(len(encoded).to_bytes(8, "big") + encoded)
    return state.hexdigest()


def _arrange(config: Config) -> Arrangement:
    """Where the packages are, and where the notebook writes them.

    Packages come side by side: `["src/pkg", "mod.py"]` → {"pkg": "src", "mod.py": "."}. If the
    entry is a script, or if files are carried next to the packages, the folders of the project
    stay, because scripts and files are found by their place.
    """
    roots = _checked_roots(config)
    if not config.keeps_folders:
        return Arrangement(roots, tuple(roots))
    script = config.entry if config.entry.endswith(".py") else ""
    if script and not (config.project / script).is_file():
        scripts = (path.name for path in config.project.glob("*.py"))
        raise BundleError(
            f'the entry "{script}": there is no such file in {config.project}'
            f"{near_miss(script, scripts)}",
            'Write the path of a script, "package.module" or "package.module:function".',
        )
    packages = [str(PurePosixPath(package)) for package in config.package]
    holders = {WHOLE_PROJECT, script, *parents(script)}
    if script and holders.isdisjoint(packages):
        packages.append(script)
    folders = [_folder(script)] if script else []
    for package in packages:
        folders.append("" if package == WHOLE_PROJECT else _folder(package))
    source = config.project / "src"
    if WHOLE_PROJECT in packages and source.is_dir() and not any(source.glob("*.py")):
        folders.append("src")  # the usual place of packages, which an installation makes importable
    return Arrangement({}, tuple(packages), tuple(dict.fromkeys(folders)), script)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _tops(arrangement: Arrangement, files: Iterable[SourceFile]) -> Mapping[str, str]:
    """The top of each carried path → the folder of the project that holds it."""
    return arrangement.roots or {file.path.partition("/")[0]: "." for file in files}


def _command_line(config: Config, modules: Mapping[str, Module]) -> CommandLine | None:
    """What a script accepts; None for a function."""
    if not is_script(config.entry):
        return None
    start = checks.program_module(config.entry, modules)
    links = imports.graph(modules, typing=False)
    behind = sorted(imports.reachable(links, [start]) - {start})
    sources = [modules[name].parsable for name in [start, *behind]]
    release = image.load_snapshot(config.image).release
    for path in [config.project / name for name in executed_files(sources[0])]:
        with suppress(OSError, SyntaxError, ValueError, RecursionError):
            sources.append(syntax.parse(read_file(path), path.name, release).source)
    return read_command_line(sources)


def _checked_roots(config: Config) -> dict[str, str]:
    """The top of each package → the folder that holds it."""
    roots: dict[str, str] = {}
    for package in config.package:
        path = PurePosixPath(package)
        if package == WHOLE_PROJECT:
            continue
        for other in config.package:
            if PurePosixPath(other) in path.parents:
                raise BundleError(f"{package} is inside {other}", f"Name {other} alone.")
        _check_name(path)
        if path.name in roots:
            raise BundleError(f'two packages are called "{path.name}"', "Rename one of them.")
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
            f'the package is called "{name}", which is already the name of another module',
            "Rename it.",
        )
    if not name.isidentifier():
        raise BundleError(f'the package is called "{name}": nothing can import that')


class _ModuleReader:
    """Parses the modules, for the Python of Kaggle's image and with the user's declarations."""

    def __init__(self, files: PackageFiles, config: Config) -> None:
        self._files = files
        self.declared = frozenset(config.optional_imports)
        self._python = image.load_snapshot(config.image).release

    def parse(self) -> tuple[dict[str, Module], dict[str, PythonSyntaxError]]:
        """The carried modules, and those that are not valid Python, each with its error."""
        modules: dict[str, Module] = {}
        unreadable: dict[str, PythonSyntaxError] = {}
        for name in self._files.modules:
            if self._files.is_carried(name):
                try:
                    modules[name] = self.module(name)
                except PythonSyntaxError as error:
                    unreadable[name] = error
        return modules, unreadable

    def module(self, name: str) -> Module:
        """One module.

        Raises:
            PythonSyntaxError: it is not valid Python.
        """
        path = self._files.modules[name]
        module = imports.read_module(
            name,
            self._files.in_project(path),
            self._files.content(path),
            is_package=path.endswith("/__init__.py"),
            python=self._python,
        )
        return module.with_optional(self.declared)

    def notes(self, modules: Mapping[str, Module]) -> list[str]:
        """Declared names that nothing imports, and modules that were not checked as a whole."""
        imported = [one.candidates for module in modules.values() for one in module.imports]
        loaded = imports.with_parents(name for names in imported for name in names)
        newer = sorted(module.path for module in modules.values() if module.is_newer)
        notes = [
            f'optional_imports = "{name}" fits no import' for name in sorted(self.declared - loaded)
        ]
        if newer:
            more = f" and {len(newer) - 1} more" if len(newer) > 1 else ""
            needed, here = (".".join(map(str, one)) for one in (self._python, syntax.HERE))
            notes.append(
                f"{newer[0]}{more}: syntax that Kaggle's Python {needed} knows and this machine's "
                f"{here} does not; kernelkit found the imports, but could not check this syntax"
            )
        return notes


@contextmanager
def _parsing() -> Iterator[None]:
    """Without warnings, which concern the author of the package, and without garbage collection.

    The collector would visit every node of every syntax tree, which have no cycles. It takes a
    tenth of the time of 1,000 modules.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        if was_enabled:
            gc.enable()


def _source_file(files: PackageFiles, path: str, module: Module | None = None) -> SourceFile:
    return SourceFile(
        path=path,
        content=files.content(path),
        module=module.name if module else None,
        summary=module.summary if module else "",
        executable=files.is_executable(path),
    )


def _add_imported_tests(
    files: PackageFiles, modules: dict[str, Module], reader: _ModuleReader
) -> list[str]:
    """Tests are left out, except those that the package itself imports."""
    notes = []
    left_out_tests = [name for name in files.modules if files.reason(name) == TEST]
    pending = list(modules.values()) if left_out_tests else []
    while pending:
        module = pending.pop()
        for found in module.imports:
            if found.kind is ImportKind.TYPING:
                continue
            for name in sorted(imports.with_parents(found.candidates)):
                if name in files.modules and files.reason(name) == TEST:
                    files.carry_test(name)
                    modules[name] = reader.module(name)
                    pending.append(modules[name])
                    place = f"{module.path}:{found.line}"
                    notes.append(f"{modules[name].path} is carried: {place} imports it")
    return notes


def _keep_reachable(files: PackageFiles, modules: dict[str, Module], entry: str) -> list[str]:
    """Leave out what the entry does not reach; data stays with the packages that it reaches.

    What `include` names stays, with everything that it reaches.
    """
    asked_for = files.included | set(files.named)
    starts = [name for name in modules if files.modules[name] in asked_for]
    starts.append(checks.program_module(entry, modules))
    kept = imports.reachable(imports.graph(modules, typing=False), starts)
    folders = {files.modules[name].rpartition("/")[0] for name in kept}
    for name in sorted(modules.keys() - kept):
        del modules[name]
        files.leave_out(files.modules[name], UNREACHED)
    packages = set(files.modules.values())
    for path in files.data(modules):
        home = next((f for f in parents(path) if f"{f}/__init__.py" in packages), None)
        if home is not None and home not in folders and path not in asked_for:
            files.leave_out(path, UNREACHED)
    return [
        f"{module.path}:{line} imports a module whose name only the run knows: it may be one that "
        "only_reachable leaves out"
        for _, module in sorted(modules.items())
        for line in module.dynamic
    ]
