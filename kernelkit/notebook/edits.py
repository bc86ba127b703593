"""Writes edits made in a notebook back into the package: `plan` compares, `apply` writes.

kernelkit rendered the notebook, and a user edited it in the editor of Kaggle, Colab or Jupyter and
pulled it. Editors may lose outputs, cell ids and tags, and users reorder, add or delete cells. Each
file has three states: the base (its sha256 in the manifest that the notebook embeds), the
notebook's, and the disk's.

    notebook == base                     nothing to do
    notebook == disk                     nothing to do
    notebook != base, disk == base       a change
    notebook != base, disk != base       a conflict: nothing is written

The paths in a notebook are not trusted: a file outside the packages is refused.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import warnings
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import kernelkit
from kernelkit.bundle import image, syntax
from kernelkit.bundle.bundle import (
    RUNTIME_MODULE,
    Bundle,
    SourceFile,
    digest_of,
    digest_part,
)
from kernelkit.bundle.extensions import COMPILED_SUFFIXES
from kernelkit.bundle.scripts import CommandLine, Option
from kernelkit.config import Config, KernelSettings, parameter_comments
from kernelkit.errors import ConfigError, LocalError, TemplateError, VerificationError
from kernelkit.notebook.manifest import Manifest, ManifestCommand
from kernelkit.notebook.reader import (
    PULL,
    Cell,
    PathError,
    assignments,
    embedded_manifest,
    read_cells,
    without_manifest,
)
from kernelkit.notebook.render import render
from kernelkit.storage import (
    digest_of_bytes,
    read_file,
    replace_files,
)

MAX_NOTEBOOK_BYTES = 256 << 20  # its source is below 1 MB on Kaggle; everything else is outputs

_NEVER_SUFFIXES = frozenset({".pyc", ".pyo", ".ipynb"})
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Change:
    """One file that was changed in the notebook since it was rendered."""

    path: str
    """As the notebook names it: `pkg/sub/mod.py`."""

    name: str
    """Relative to the project: `src/pkg/sub/mod.py`."""

    target: Path
    """The file to write, with links resolved."""

    cell: int
    before: bytes | None
    """What is on disk; None where there is no such file."""

    after: bytes
    conflict: bool = False
    """Whether the file on disk was changed as well, so that a write would lose that change."""

    @property
    def added(self) -> bool:
        """Whether the package has no such file yet."""
        return self.before is None

    @cached_property
    def syntax_error(self) -> str | None:
        """`file:line: message` if an edited module is not valid Python; it is written anyway."""
        if not self.path.endswith(".py"):
            return None
        try:
            with warnings.catch_warnings(action="ignore"):
                compile(self.after, self.name, "exec", dont_inherit=True)
        except SyntaxError as error:
            try:
                syntax.parse(self.after, self.name, image.snapshot().release)
            except SyntaxError:
                return f"{self.name}:{error.lineno}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"{self.name}: {error}"
        return None

    @cached_property
    def diff(self) -> str:
        """From the disk to the notebook, as `git diff` writes it; one line for a binary file."""
        try:
            before, after = _lines(self.before or b""), _lines(self.after)
        except UnicodeDecodeError:
            return f"Binary file {self.name}: {len(self.before or b'')} → {len(self.after)} bytes\n"
        if not before and not after:
            return f"Empty file b/{self.name}\n"
        source = "/dev/null" if self.added else f"a/{self.name}"
        found = difflib.unified_diff(before, after, source, f"b/{self.name}")
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in found
        )


@dataclass(frozen=True)
class RefusedPath:
    """A path that the notebook writes and that is not a file of the package."""

    path: str
    cell: int
    reason: str


@dataclass(frozen=True)
class LeftCell:
    """A cell that belongs to no file of the package; cells are counted from 1."""

    cell: int
    first_line: str
    reason: str


@dataclass(frozen=True)
class ParameterChange:
    """A parameter with another value in the notebook: the user changes the project file."""

    name: str
    before: str | None
    """As Python writes it; None where the notebook sets a new name."""

    after: str | None
    """None where the notebook no longer sets it."""

    section: str
    """The table of the project file that it belongs to."""


@dataclass(frozen=True)
class SyncPlan:
    """What an edited notebook means for the package."""

    changes: tuple[Change, ...]
    """By name; conflicts among them."""

    refused: tuple[RefusedPath, ...]
    unchanged: tuple[str, ...]
    """Paths of files that are the same on disk, or were not changed in the notebook."""

    gone: tuple[str, ...]
    """Paths of rendered files that no cell carries any longer; on disk they stay."""

    left: tuple[LeftCell, ...]
    parameters: tuple[ParameterChange, ...]
    notes: tuple[str, ...]
    project: Path
    """The folder below which every change is, with links resolved."""

    @property
    def conflicts(self) -> tuple[Change, ...]:
        """The changes whose file was changed differently on disk."""
        return tuple(change for change in self.changes if change.conflict)

    @property
    def document(self) -> dict[str, Any]:
        """The whole plan, for `--json`."""
        return {
            "changes": [
                {
                    "path": change.name,
                    "cell": change.cell,
                    "added": change.added,
                    "conflict": change.conflict,
                    "syntax_error": change.syntax_error,
                    "diff": change.diff,
                }
                for change in self.changes
            ],
            "refused": [vars(refusal) for refusal in self.refused],
            "unchanged": list(self.unchanged),
            "gone": list(self.gone),
            "left": [vars(cell) for cell in self.left],
            "parameters": [vars(parameter) for parameter in self.parameters],
            "notes": list(self.notes),
        }


def read_notebook(path: Path) -> str:
    """The notebook's text.

    Raises:
        ConfigError: there is no such file, it is too large, or it is not UTF-8 text.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file", PULL)
        content = read_file(path, MAX_NOTEBOOK_BYTES + 1)
        if len(content) > MAX_NOTEBOOK_BYTES:
            raise ConfigError(
                f"{path} is larger than {MAX_NOTEBOOK_BYTES >> 20} MiB", "Clear its outputs."
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no notebook {path}", PULL) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text, so it is not a notebook", PULL) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def plan(notebook: str, config: Config) -> SyncPlan:
    """Compare a notebook's text with the package on disk; nothing is written.

    The files in the notebook are rendered again. That separates the cells of the templates from the
    user's own, whatever has changed on disk since.

    Raises:
        ConfigError: the text is not a notebook, was not rendered by kernelkit, or carries another
            package than the project's.
        LocalError: a file of the package cannot be read.
    """
    cells = read_cells(notebook)
    package = _Package(embedded_manifest(cells), config)
    package.require_shared_name()
    templates = _KnownCells(package, cells)
    reader = _CellReader(package, templates)
    for cell in cells:
        reader.read(cell)
    return reader.plan()


def require_applicable(plan: SyncPlan, *, force: bool = False) -> None:
    """Raise if this plan must not be written; with `force` the notebook wins every conflict.

    Raises:
        ConfigError: the notebook writes to a path that is not a file of the package.
        VerificationError: a conflict. Its exit code is 8, because the notebook does not match the
            disk; 2 would mean an error in the command line or the project file.
    """
    if plan.refused:
        raise ConfigError(
            "\n".join(f"cell {r.cell}: {r.path}: {r.reason}" for r in plan.refused),
            "Nothing was written. Fix or delete the cell in the notebook.",
            plan,
        )
    if plan.conflicts and not force:
        raise VerificationError(
            "\n".join(
                f"{change.name} was changed in cell {change.cell}, and differently on disk since "
                "the notebook was rendered"
                for change in plan.conflicts
            ),
            "Nothing was written. Merge the two by hand, or let the notebook win: --force.",
            plan,
        )


def apply(plan: SyncPlan, *, force: bool = False) -> None:
    """Write every change into the package: all of them, or none.

    Every file is first written to a temporary file in its folder. Once all are written, they
    replace the old ones. An interrupt in between leaves whole files; the same call then finishes.

    Raises:
        ConfigError: see `require_applicable`.
        VerificationError: see `require_applicable`.
        LocalError: a file cannot be written.
    """
    require_applicable(plan, force=force)
    try:
        replace_files({change.target: change.after for change in plan.changes}, plan.project)
    except OSError as error:
        raise LocalError(
            f"{error.filename or 'a file'} cannot be written: {error.strerror}",
            "Fix that, then try again.",
        ) from error


@dataclass(frozen=True)
class _Package:
    """The package on disk, by the notebook's manifest and the project file."""

    manifest: Manifest
    config: Config

    def require_shared_name(self) -> None:
        """Raise a ConfigError where the notebook carries another package."""
        carried = list(self.manifest.roots)
        ours = [PurePosixPath(folder).name for folder in self.config.package]
        if not self.config.keeps_folders and not set(carried) & set(ours):
            raise ConfigError(
                f"the notebook carries {', '.join(carried)}; this project's package is "
                f"{', '.join(ours)}",
                "Name the project that it was rendered from: --project DIR.",
            )

    @cached_property
    def rendered(self) -> dict[str, str]:
        """Path → sha256 of each file in the manifest."""
        return {file.path: file.sha256 for file in self.manifest.files}

    @cached_property
    def hashes_are_original(self) -> bool:
        """False if somebody edited them, for example to pass the source check of the run."""
        parts = [
            (file.path, digest_part(file.sha256, file.executable)) for file in self.manifest.files
        ]
        return digest_of(parts) == self.manifest.source_digest

    def change(self, path: str, cell: Cell, content: bytes) -> Change | None:
        """The change that a file of the notebook makes on disk; None where it makes none.

        Raises:
            PathError: the path is not a file of the package.
        """
        base = self.rendered.get(path) if self.hashes_are_original else None
        if base == digest_of_bytes(content):
            return None
        name, target = self._resolve(path)
        on_disk = _content(target)
        if on_disk == content:
            return None
        conflict = base != (None if on_disk is None else digest_of_bytes(on_disk))
        return Change(path, name, target, cell.number, on_disk, content, conflict)

    def has(self, path: str) -> bool:
        """Whether the file is on disk."""
        try:
            return self._resolve(path)[1].is_file()
        except PathError:
            return False

    def _resolve(self, path: str) -> tuple[str, Path]:
        """The file of a path in the notebook: its name in the project, and with links resolved.

        Raises:
            PathError: it is not a path of a file of the package.
        """
        pure = PurePosixPath(path)
        if "\\" in path or _DRIVE.match(path) or not path.isprintable():
            raise PathError(path, "a path has only forward slashes and printable characters")
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise PathError(path, "it leads out of the package")
        if path not in self.rendered:
            _refuse_what_no_bundle_carries(path, pure)
        project = self.config.project.resolve()
        place = project / self._root(pure.parts[0]) / pure
        try:
            target = place.resolve()  # through every link: a write would go there
            around = [
                folder
                for folder in ((project / name).resolve() for name in self._own_paths())
                if target.is_relative_to(folder)
            ]
            blocking = [above for above in target.parents if above.exists() and not above.is_dir()]
            blocking += [target] if target.exists() and not target.is_file() else []
        except (OSError, RuntimeError, ValueError) as error:  # an endless link, too long a name
            raise PathError(path, f"it cannot be followed: {error}") from None
        if not around:
            raise PathError(path, f"it is outside {', '.join(self.config.package)}")
        if not target.is_relative_to(project):
            raise PathError(path, "a link on the way to it leads out of the project")
        if path not in self.rendered:
            _refuse_what_no_bundle_carries(path, target.relative_to(around[0]))
        if blocking:
            raise PathError(path, f"{blocking[0]} is in its place")
        return Path(os.path.relpath(place, project)).as_posix(), target

    def _own_paths(self) -> list[str]:
        """The folders and files of the project that a notebook may change."""
        script = [self.config.entry] if self.config.entry.endswith(".py") else []
        return [*self.config.package, *script, *self.manifest.working_files]

    def _root(self, top: str) -> str:
        """The folder of the project that holds the top-level name `top`."""
        return self.manifest.roots.get(top, ".")


def _command_line(command: ManifestCommand | None) -> CommandLine | None:
    """What the manifest keeps of a script's command line: the options of its parameters."""
    if command is None:
        return None
    options = (Option((o.name,), o.flag, o.form, o.off) for o in command.options)
    return CommandLine("", tuple(options))


class _KnownCells:
    """The cells that the templates give, found by rendering the files of the notebook again.

    This works whatever has changed on disk since, and also if the notebook has lost its tags.
    """

    def __init__(self, package: _Package, cells: list[Cell]) -> None:
        self.notes: list[str] = []
        self._parameters = set(package.manifest.parameters)
        self._cells = self._render(package, cells)
        waiting = Counter(comparable for _, comparable in self._cells)
        self._known = set()
        for cell in cells:
            comparable = _comparable(cell, package.manifest)
            if waiting[comparable]:
                waiting[comparable] -= 1
                self._known.add(cell.number)
        self._missing = [cell for cell, comparable in self._cells if waiting[comparable]]

    def has(self, cell: Cell) -> bool:
        """Whether the cell is the first one that equals a template's cell."""
        return cell.number in self._known

    def resembling(self, cell: Cell) -> bool:
        """Whether the cell is an edited cell of a template, which then counts as found."""
        for missing in self._missing:
            alike = cell.tags & missing.tags or cell.first_line == missing.first_line
            if alike and cell.kind == missing.kind:
                self.mark_found(missing.tags)
                return True
        return False

    def mark_found(self, tags: frozenset[str]) -> None:
        """The cell with these tags was found, edited."""
        self._missing = [cell for cell in self._missing if not cell.tags & tags]

    def mark_written(self, paths: Set[str]) -> None:
        """The cell that writes these files was found, edited."""
        self._missing = [
            cell
            for cell in self._missing
            if paths.isdisjoint(path for path, _ in cell.content.files)
        ]

    def missing(self) -> list[str]:
        """Tags of the missing code cells; cells of files are reported as changes."""
        return [
            ", ".join(sorted(cell.tags))
            for cell in self._missing
            if cell.kind == "code" and all(_is_runtime(path) for path, _ in cell.content.files)
        ]

    def is_parameters(self, cell: Cell) -> bool:
        """Whether it has the tag, or sets most of the parameters and does nothing else."""
        if "parameters" in cell.tags:
            return True
        found, other_code = assignments(cell)
        shared = found.keys() & self._parameters
        return not other_code and bool(shared) and 2 * len(shared) >= len(self._parameters)

    def is_heading(self, cell: Cell) -> bool:
        """Whether it is the heading of an edited module, whose docstring may have changed."""
        heads = {_head(known) for known, _ in self._cells if known.kind == "markdown"}
        is_edited = any(path in cell.source for path in self._edited)
        return cell.kind == "markdown" and is_edited and _head(cell) in heads

    def _render(self, package: _Package, cells: list[Cell]) -> list[tuple[Cell, tuple[str, str]]]:
        manifest = package.manifest
        carried = {path: content for cell in cells for path, content in cell.content.files}
        self._edited = [
            path
            for path, sha256 in package.rendered.items()
            if path not in carried or digest_of_bytes(carried[path]) != sha256
        ]
        bundle = Bundle(
            roots=manifest.roots,
            entry=manifest.entry,
            import_folders=manifest.import_folders,
            working_files=manifest.working_files,
            command_line=_command_line(manifest.command),
            files=tuple(_source_file(path, carried.get(path, b"")) for path in package.rendered),
            third_party={},
            provenance=manifest.provenance,
        )
        config_now = package.config
        config = config_now.model_copy(
            update={
                "profile": manifest.profile,
                "parameters": manifest.parameters,
                "entry": manifest.entry,
                **({"arguments": manifest.command.arguments} if manifest.command else {}),
                "outputs": manifest.outputs,
                "description": manifest.description,
                "metric": manifest.metric,
                "metric_goal": manifest.metric_goal,
                "pip": manifest.pip,
                "layout": manifest.layout,
                "kernel": _kernel_then(manifest, config_now.kernel),
                "comments": parameter_comments(package.config.project, manifest.profile),
            }
        )
        if manifest.kernelkit != kernelkit.__version__:
            self.notes.append(
                f"kernelkit {manifest.kernelkit} rendered the notebook: cells of its templates may "
                "be listed as well"
            )
        try:
            kernel = render(bundle, config)
        except TemplateError as error:
            self.notes.append(f"cells of the templates are listed as well: {error}")
            return []
        return [(cell, _comparable(cell, kernel.manifest)) for cell in read_cells(kernel.notebook)]


@dataclass
class _CellReader:
    """Reads one cell after the other and collects the plan."""

    package: _Package
    templates: _KnownCells
    carried: dict[str, tuple[Cell, bytes]] = field(default_factory=dict)
    """Path → the last cell that writes it, and what."""

    left: list[LeftCell] = field(default_factory=list)
    refused: list[RefusedPath] = field(default_factory=list)
    parameters: list[ParameterChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, cell: Cell) -> None:
        """Read one cell, in the order of a run."""
        content, known = cell.content, self.templates.has(cell)
        for path, file in content.files:
            self._carry(cell, path, file)
        if content.refused:
            self._refuse(cell, content.refused)
        elif content.unreadable:
            self._leave(cell, content.unreadable)
        elif known or not cell.source.strip():
            return
        elif content.files:
            self._read_carrier(cell)
        elif self.templates.is_parameters(cell):
            self.templates.mark_found(frozenset({"parameters"}))
            self._read_parameters(cell)
        else:
            self._read_other(cell)

    def plan(self) -> SyncPlan:
        """The plan, once all cells are read."""
        unchanged: list[str] = []
        changes: dict[Path, Change] = {}
        for path, (cell, content) in self.carried.items():
            try:
                change = self.package.change(path, cell, content)
                if change is None:
                    unchanged.append(path)
                elif changes.setdefault(change.target, change).after != content:
                    raise PathError(
                        path, f"a link makes it the same file as {changes[change.target].path}"
                    )
            except PathError as error:
                self._refuse(cell, error)
        gone = [path for path in self.package.rendered if path not in self.carried]
        if dataset := self.package.manifest.code_dataset:
            gone = []
            self.notes.append(
                f"the package is in the dataset {dataset}, and not in the notebook: only files "
                "that a cell writes are compared"
            )
        if not self.package.hashes_are_original:
            self.notes.append(
                "the hashes in BUNDLE were edited: every file that differs from the disk counts as "
                "a conflict"
            )
        missing = [f"no cell equals its template: {t}" for t in self.templates.missing()]
        return SyncPlan(
            changes=tuple(sorted(changes.values(), key=lambda change: change.name)),
            refused=tuple(self.refused),
            unchanged=tuple(sorted(unchanged)),
            gone=tuple(path for path in gone if self.package.has(path)),
            left=tuple(self.left),
            parameters=tuple(self.parameters),
            notes=(*self.templates.notes, *self.notes, *missing),
            project=self.package.config.project.resolve(),
        )

    def _refuse(self, cell: Cell, error: PathError) -> None:
        self.refused.append(RefusedPath(error.path, cell.number, str(error)))

    def _leave(self, cell: Cell, reason: str) -> None:
        self.left.append(LeftCell(cell.number, cell.first_line, reason))

    def _carry(self, cell: Cell, path: str, content: bytes) -> None:
        if _is_runtime(path):
            return
        before = self.carried.get(path)
        if before is not None and before[1] != content:
            self.notes.append(
                f"cells {before[0].number} and {cell.number} both write {path}: the later one "
                "counts, as in a run"
            )
        self.carried[path] = (cell, content)

    def _read_carrier(self, cell: Cell) -> None:
        if any(_is_runtime(path) for path, _ in cell.content.files):
            self.templates.mark_written({path for path, _ in cell.content.files})
            self._leave(cell, "the runtime belongs to kernelkit, not to the package")
        elif cell.content.other_code:
            self._leave(cell, "besides the files that it carries it has code of your own")

    def _read_parameters(self, cell: Cell) -> None:
        manifest, config = self.package.manifest, self.package.config
        found, other_code = assignments(cell)
        before = {name: repr(value) for name, value in manifest.parameters.items()}
        differing = [name for name in before | found if before.get(name) != found.get(name)]
        if other_code or not differing:
            self._leave(cell, "besides its assignments it differs from its template")
        if cell.tree is None:
            return
        profile = manifest.profile
        now = config.parameters if profile == config.profile else {}
        done = {name for name, value in now.items() if found.get(name) == repr(value)}
        section = f"[tool.kernelkit.{f'profiles.{profile}.' if profile else ''}parameters]"
        self.parameters += [
            ParameterChange(name, before.get(name), found.get(name), section)
            for name in differing
            if name not in done
        ]

    def _read_other(self, cell: Cell) -> None:
        if "injected-parameters" in cell.tags or cell.first_line == "# Parameters":
            self._leave(cell, "papermill's parameters of one run")
        elif self.templates.is_heading(cell):
            return
        elif self.templates.resembling(cell):
            self._leave(cell, "it differs from its template")
        else:
            self._leave(cell, "your own cell")


def _is_runtime(path: str) -> bool:
    """Whether it is a file of the runtime, which was a single file before it was a package."""
    return path == f"{RUNTIME_MODULE}.py" or path.startswith(f"{RUNTIME_MODULE}/")


def _refuse_what_no_bundle_carries(path: str, below: PurePosixPath | Path) -> None:
    hidden = [part for part in below.parts if part.startswith(".") or part == "__pycache__"]
    if hidden or below.suffix in COMPILED_SUFFIXES | _NEVER_SUFFIXES:
        raise PathError(path, "a package's hidden, compiled and notebook files are not carried")


def _kernel_then(manifest: Manifest, now: KernelSettings) -> KernelSettings:
    """The kernel's settings as they were rendered; the present ones if those are not valid."""
    fields = {name: getattr(manifest.kernel, name) for name in KernelSettings.model_fields}
    try:
        return KernelSettings.model_validate(fields)
    except ValueError:
        return now


def _head(cell: Cell) -> str:
    """The first line of a heading, without the summary after a module's path."""
    return cell.first_line.partition(":")[0]


def _source_file(path: str, content: bytes) -> SourceFile:
    """A file for rendering, with the first line of its docstring if it is a valid module."""
    name, _, suffix = path.rpartition(".")
    importable = suffix == "py" and all(part.isidentifier() for part in name.split("/"))
    try:
        with warnings.catch_warnings(action="ignore"):
            python = image.snapshot().release
            tree = syntax.parse(content, path, python).tree if importable else ast.Module([], [])
            docstring = ast.get_docstring(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        docstring = None
    summary = (docstring or "").partition("\n")[0].strip()
    return SourceFile(path, content, module=None, summary=summary.encode(errors="replace").decode())


def _content(target: Path) -> bytes | None:
    try:
        return read_file(target)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalError(f"{target} cannot be read: {error.strerror}") from error


def _comparable(cell: Cell, manifest: Manifest) -> tuple[str, str]:
    """A cell's kind and text, without everything that differs between two renders.

    That is the embedded manifest, and the digests, the version and the number of files wherever
    they occur. White space at the ends of lines is ignored, because editors remove it.
    """
    text = without_manifest(cell)
    facts = [manifest.digest, manifest.source_digest, manifest.kernelkit]
    for fact in [*facts, f"{len(manifest.files)} files"]:
        text = text.replace(fact, "…") if fact else text
    return cell.kind, "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _lines(content: bytes) -> list[str]:
    """Lines for a diff: split only at newlines, which are kept."""
    if b"\0" in content:
        raise UnicodeDecodeError("utf-8", content, 0, 1, "a null byte")
    lines = content.decode().split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
