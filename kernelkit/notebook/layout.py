"""Which files are carried in cells of their own, in the compressed cell, or in a dataset.

Kaggle limits the size of a notebook's source. With `layout = "auto"` the largest files go into the
compressed cell until the rest fits. With `layout = "dataset"` the notebook has none of them.
"""

from __future__ import annotations

import base64
import io
import lzma
import tarfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from kernelkit.bundle.bundle import Bundle, SourceFile
from kernelkit.errors import PreflightError
from kernelkit.notebook.cells import ModuleCell, RenderedCell, in_lines, module_cell
from kernelkit.notebook.problems import Problem, refusal
from kernelkit.notebook.templates import Templates, TemplateVariables, repeats_for

SIZE_CAP_BYTES = 1_000_000
"""Kaggle: "The kernel source must be less than 1 megabytes in size.\""""

SIZE_LIMIT_BYTES = 900_000
"""Kaggle refused 1,353,126 bytes and accepted 878,947; where it draws the line is not known."""

_PACKED_LIMIT_BYTES = 4 << 20
"""Of an archive: far more than fits, and reached within seconds."""

_FILE_LIMIT_BYTES = 5 * SIZE_CAP_BYTES
"""Of a file in a cell of its own: far more than fits."""

_LARGEST = 8  # files named, where the notebook is too large

_ARCHIVE_LINE = (
    4000  # characters; each line adds fourteen bytes of quotes and escapes to the payload
)
_ARCHIVE_TIME = 946_684_800  # 2000-01-01: the same in every render, and a time that zip can write
_MEMBER_BYTES = 100  # of the archive, for a file's name and header
_ENVELOPE_BYTES = 1000  # of the notebook, for its own metadata
_MEASUREMENTS = 5  # of the whole notebook, each with another archive; then all files are compressed


@dataclass(frozen=True)
class SizeEntry:
    """How many of the bytes that Kaggle limits one file takes, or everything else."""

    path: str | None
    """None for what belongs to no single file."""

    size: int
    """Bytes on disk."""

    sent: int
    """Bytes of its cells as they are sent."""

    form: str
    """How the notebook carries it (see `ModuleCell`); "archive" for the compressed cell,
    "notebook" for all other cells."""


@dataclass(frozen=True)
class _Candidate:
    """A file that may be carried compressed."""

    file: SourceFile
    cells: int
    """Bytes of its cells that are then not sent."""

    packed: int
    """Bytes that it takes in the archive, in base64, if it is compressed alone."""

    def gain(self, ratio: float = 1.0) -> int:
        """Bytes less to send, if an archive is `ratio` times as large as its files alone."""
        return self.cells - round(self.packed * ratio)


class Draft:
    """A notebook for which it is still open what is carried compressed."""

    def __init__(self, bundle: Bundle, templates: Templates, variables: TemplateVariables) -> None:
        self._bundle = bundle
        self._templates = templates
        self._variables = variables
        self._groups = [
            (repeated, list(names)) for repeated, names in groupby(templates.names, key=repeats_for)
        ]
        self._modules = {file.path: module_cell(file) for file in bundle.files}
        self._attempts: dict[frozenset[str], list[RenderedCell]] = {}
        self._rendered: dict[tuple[str, ...], list[RenderedCell]] = {}

    def choose(self, layout: str) -> frozenset[str]:
        """The paths of the files that are carried compressed.

        Raises:
            PreflightError: the files are far too large for any notebook.
        """
        if layout == "dataset":
            self._modules = {path: one.in_dataset() for path, one in self._modules.items()}
            return frozenset()
        largest = max((len(file.content) for file in self._bundle.files), default=0)
        if layout == "cells" and largest > _FILE_LIMIT_BYTES:
            raise self._far_too_large(layout, f"the largest has {largest:,} B")
        if layout == "cells":
            return frozenset()
        try:
            chosen = self._largest() if layout == "auto" else frozenset(self._modules)
            self.cells(chosen)
            return chosen
        except _TooLargeError:
            packed = _PACKED_LIMIT_BYTES * 4 // 3
            raise self._far_too_large(
                layout, f"compressed together, they take more than {packed:,} B"
            ) from None

    def _far_too_large(self, layout: str, reason: str) -> PreflightError:
        sizes = {file.path: len(file.content) for file in self._bundle.files}
        message = (
            f"{len(sizes):,} files have {sum(sizes.values()):,} B; {reason}. Kaggle's limit is "
            f"{SIZE_CAP_BYTES:,} B. {table_of_largest(sizes)}"
        )
        return refusal([Problem("notebook", message, how_to_shrink(layout))])

    def cells(self, compressed: frozenset[str]) -> list[RenderedCell]:
        """The whole notebook."""
        if compressed not in self._attempts:
            self._attempts[compressed] = self._assemble(compressed)
        return self._attempts[compressed]

    def _assemble(self, compressed: frozenset[str]) -> list[RenderedCell]:
        modules = [
            module.compressed() if module.path in compressed else module
            for module in self._modules.values()
        ]
        packed = [file for file in self._bundle.files if file.path in compressed]
        variables = replace(self._variables, modules=modules, archive=_archive(packed))
        cells: list[RenderedCell] = []
        repeated: dict[str, Sequence[ModuleCell]] = {
            "module": modules,
            "runtime-module": variables.runtime_modules,
        }
        for kind, names in self._groups:
            if kind:
                for module in repeated[kind]:
                    cells += self._module_cells(module, names, variables)
            else:
                cells += self._render(names, variables)
        return cells

    def budget(
        self, compressed: Collection[str], cells: Iterable[RenderedCell]
    ) -> tuple[SizeEntry, ...]:
        """How many bytes each file takes, the largest first, and everything else."""
        sent: dict[str | None, int] = {}
        archive = 0
        for cell in cells:
            if cell.tag == "archive":
                archive += cell.sent
            else:
                path = cell.path if cell.path in self._modules else None  # the runtime's
                sent[path] = sent.get(path, 0) + cell.sent
        entries = [
            SizeEntry(
                path=path,
                size=module.size,
                sent=sent.get(path, 0),
                form="compressed" if path in compressed else module.form,
            )
            for path, module in self._modules.items()
        ]
        entries.append(SizeEntry(None, 0, sent.get(None, 0), "notebook"))
        if archive:
            size = sum(self._modules[path].size for path in compressed)
            entries.append(SizeEntry(None, size, archive, "archive"))
        return tuple(sorted(entries, key=lambda entry: (-entry.sent, entry.path or "")))

    def _largest(self) -> frozenset[str]:
        """The largest files, as many as the notebook needs to be below the limit; the entry's last.

        How much a file takes in the archive is first estimated from the file alone. One archive of
        all candidates corrects the estimate, because files that resemble each other take far less
        together; so no more files than needed are compressed. Where all files are not enough, they
        are all compressed, and preflight names the size.

        Raises:
            _TooLargeError: the archive is beyond all bounds.
        """
        chosen = frozenset(
            file.path for file in self._bundle.files if len(file.content) > SIZE_CAP_BYTES
        )
        excess = self._excess(chosen)
        if excess <= 0:
            return chosen
        candidates: list[_Candidate] = []
        missing = excess
        for file in self._by_size():
            if file.path in chosen or missing <= 0:
                continue
            if (candidate := self._candidate(file)).gain() > 0:
                candidates.append(candidate)
                missing -= candidate.gain()
        packed = len(_archive([candidate.file for candidate in candidates]))
        everything = frozenset(self._modules)
        if missing > 0 and self._excess(everything) > 0:
            return everything
        ratio = packed / sum(candidate.packed for candidate in candidates) if candidates else 1.0
        measured = 0
        for candidate in candidates:
            if excess <= 0 and measured < _MEASUREMENTS:
                excess, measured = self._excess(chosen), measured + 1
                if excess <= 0:
                    break
            chosen |= {candidate.file.path}
            excess -= candidate.gain(ratio)
        return chosen if self._excess(chosen) <= 0 else everything

    def _excess(self, compressed: frozenset[str]) -> int:
        """By how many bytes the notebook is too large."""
        cells = self.cells(compressed)
        return sum(cell.sent for cell in cells) + _ENVELOPE_BYTES - SIZE_LIMIT_BYTES

    def _by_size(self) -> list[SourceFile]:
        """The largest first, the entry's module last."""
        entry = self._bundle.entry.partition(":")[0]
        return sorted(
            self._bundle.files,
            key=lambda file: (file.module == entry, -len(file.content), file.path),
        )

    def _candidate(self, file: SourceFile) -> _Candidate:
        names = [name for kind, group in self._groups if kind == "module" for name in group]
        module = self._modules[file.path]
        variables = replace(self._variables, modules=list(self._modules.values()))
        before = self._module_cells(module, names, variables)
        after = self._module_cells(module.compressed(), names, variables)
        return _Candidate(
            file,
            sum(cell.sent for cell in before) - sum(cell.sent for cell in after),
            (len(zlib.compress(file.content)) + _MEMBER_BYTES) * 4 // 3,
        )

    def _module_cells(
        self, module: ModuleCell, names: list[str], variables: TemplateVariables
    ) -> list[RenderedCell]:
        """The cells of one file, which are the same whatever form other files have."""
        key = (module.path, module.form, *names)
        if key not in self._rendered:
            self._rendered[key] = self._render(names, replace(variables, module=module))
        return self._rendered[key]

    def _render(self, names: Iterable[str], variables: TemplateVariables) -> list[RenderedCell]:
        cells = (self._templates.render(name, variables) for name in names)
        return [cell for cell in cells if cell is not None]


def table_of_largest(sizes: Mapping[str, int]) -> str:
    """The largest files and their bytes on disk, a line each; no line for many small ones."""
    large = {path: size for path, size in sizes.items() if size * 100 > SIZE_CAP_BYTES}
    lines = [
        f"{size:>12,} B  {path}\n"
        for path, size in sorted(large.items(), key=lambda one: -one[1])[:_LARGEST]
    ]
    return "".join(["The largest files:\n", *lines]) if lines else "No file is large.\n"


def how_to_shrink(layout: str) -> str:
    """What to do about a notebook that is too large."""
    if layout == "dataset":
        return (
            "The notebook lists every file with its SHA-256, and there are too many. Leave files "
            "out (exclude, only_reachable = true), or move data into a dataset of its own: "
            "`kernelkit dataset push`."
        )
    return (
        ('Set layout = "auto"; l' if layout == "cells" else "L")
        + "eave files out (exclude, only_reachable = true), move data into a Kaggle dataset "
        '(`kernelkit dataset push`), or set layout = "dataset", which carries a package of any '
        "size in a private dataset."
    )


class _TooLargeError(Exception):
    """An archive is larger than it may be."""


class _Compressor(io.RawIOBase):
    """Compresses what is written to it.

    Raises:
        _TooLargeError: the result is larger than `_PACKED_LIMIT_BYTES`.
    """

    def __init__(self) -> None:
        self._compressor = lzma.LZMACompressor()
        self._parts: list[bytes] = []
        self._written = self._size = 0

    def tell(self) -> int:
        """How many bytes were written."""
        return self._written

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Compress some bytes."""
        self._written += len(data)
        self._add(self._compressor.compress(data))
        return len(data)

    def content(self) -> bytes:
        """The compressed file."""
        self._add(self._compressor.flush())
        return b"".join(self._parts)

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size > _PACKED_LIMIT_BYTES:
            raise _TooLargeError


def _archive(files: list[SourceFile]) -> str:
    """All files in one .tar.xz, which is smaller than each on its own; base64, in long lines.

    Raises:
        _TooLargeError: it is larger than `_PACKED_LIMIT_BYTES`.
    """
    if not files:
        return ""
    packed = _Compressor()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(file.path)
            member.size = len(file.content)
            member.mtime = _ARCHIVE_TIME
            tar.addfile(member, io.BytesIO(file.content))
    return in_lines(base64.b64encode(packed.content()).decode(), _ARCHIVE_LINE)
