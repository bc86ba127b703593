"""Reads the cells of an edited .ipynb, and the files that each of them carries.

Cells are read as text and by `ast`; no code of a notebook is executed. The forms of a file in a
cell are those of templates/42-module.py.j2 and of `kernelkit_run.unpack`.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import lzma
import re
import shlex
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from kernelkit.errors import ConfigError
from kernelkit.notebook.cells import DISPLAY_TAGS
from kernelkit.notebook.manifest import Manifest
from kernelkit.storage import as_json

MAX_UNPACKED_BYTES = 256 << 20  # of one compressed cell: a small cell must not fill memory

PULL = "Name the .ipynb that `kaggle kernels pull OWNER/SLUG` wrote."

_WRITEFILE = re.compile(r"%%(?:writefile|file)\s(?P<arguments>.*)")
# Below SRC, by its name or by its value: see templates/20-start.py.j2.
_ADDRESS = re.compile(r"(?:\{SRC\}|\$SRC|/(?:.*/)?kernelkit-[0-9a-f]{12})/(?P<path>.+)")


_NO_MANIFEST = (
    "kernelkit has not rendered this notebook: no cell holds a readable BUNDLE",
    "Sync a notebook from `kernelkit push` or `kernelkit render`, and leave the cell that sets "
    "BUNDLE as it is.",
)


class PathError(Exception):
    """A path that cannot be a file of a package; the message is the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass(frozen=True)
class Carried:
    """The files that one cell writes into a package, or why they cannot be read or accepted."""

    files: tuple[tuple[str, bytes], ...] = ()
    """Path, as in the manifest, and content."""

    other_code: bool = False
    """Whether the cell also does something else."""

    unreadable: str = ""
    """Why the files cannot be read without running the cell; empty where they can."""

    refused: PathError | None = None


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook; cells are counted from 1."""

    number: int
    kind: str
    """"code", "markdown" or "raw"."""

    source: str
    tags: frozenset[str]
    """Without those that only say how the cell is displayed."""

    @cached_property
    def first_line(self) -> str:
        """The first line that is not empty."""
        return self.source.strip().partition("\n")[0].rstrip()

    @cached_property
    def content(self) -> Carried:
        """What it writes into a package."""
        try:
            return _carried(self)
        except _UnreadableError as error:
            return Carried(unreadable=str(error))
        except PathError as error:
            return Carried(refused=error)

    @cached_property
    def tree(self) -> ast.Module | None:
        """None where it is not plain Python: a magic, a `!command`, a syntax error, Markdown."""
        if self.kind != "code":
            return None
        try:
            with warnings.catch_warnings(action="ignore"):
                return ast.parse(self.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def read_cells(notebook: str) -> list[Cell]:
    """The cells of a notebook's text.

    Raises:
        ConfigError: it is not JSON, not a notebook, or not nbformat 4.
    """
    try:
        document = json.loads(notebook)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is not a notebook: invalid JSON ({error})", PULL) from None
    version = document.get("nbformat") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise ConfigError("this is not a notebook: its JSON has no nbformat", PULL)
    if version != 4:
        raise ConfigError(
            f"the notebook has nbformat {version}; kernelkit reads nbformat 4",
            "Convert it: jupyter nbconvert --to notebook FILE.",
        )
    cells = document.get("cells")
    if not isinstance(cells, list):
        raise ConfigError("the notebook is damaged: it has no list of cells", PULL)
    return [_cell(number, cell) for number, cell in enumerate(cells, start=1)]


def embedded_manifest(cells: list[Cell]) -> Manifest:
    """The manifest in the notebook; of several the last one, as in a run.

    Raises:
        ConfigError: no cell holds a readable manifest.
    """
    for cell in reversed(cells):
        statement = _embedded(cell)
        if statement is None:
            continue
        manifest = _as_manifest(_literal(statement.value))
        if manifest is not None:
            return manifest
    raise ConfigError(*_NO_MANIFEST)


def with_push(notebook: str, identity: Mapping[str, str | int]) -> str:
    """The same notebook, with the identity of one push in its embedded manifest.

    `identity` has the `push_id`, and what else only this push knows.

    Raises:
        ConfigError: no cell holds a manifest that is written as a dictionary.
    """
    for cell in reversed(read_cells(notebook)):
        statement = _embedded(cell)
        if statement is None or not isinstance(statement.value, ast.Dict):
            continue
        table = statement.value
        lines = cell.source.split("\n")
        line = lines[table.lineno - 1].encode()  # `ast` counts bytes
        after = table.col_offset + len("{")
        entry = "".join(f"\n    {key!r}: {value!r}," for key, value in identity.items()).encode()
        lines[table.lineno - 1] = (line[:after] + entry + line[after:]).decode()
        document = json.loads(notebook)
        document["cells"][cell.number - 1]["source"] = "\n".join(lines).splitlines(keepends=True)
        return as_json(document)
    raise ConfigError(*_NO_MANIFEST)


def without_manifest(cell: Cell) -> str:
    """The cell's text without the statement that embeds the manifest."""
    statement = _embedded(cell)
    if statement is None:
        return cell.source
    lines = cell.source.split("\n")
    return "\n".join(lines[: statement.lineno - 1] + lines[statement.end_lineno :])


def assignments(cell: Cell) -> tuple[dict[str, str], bool]:
    """Name → value, as Python writes it, and whether the cell has other code as well."""
    found: dict[str, str] = {}
    other_code = cell.tree is None
    for node in cell.tree.body if cell.tree else []:
        names = _names(node.targets) if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Assign) and len(names) == len(node.targets):
            found |= dict.fromkeys(names, _shown(node.value))
        else:
            other_code = True
    return found, other_code


def _cell(number: int, cell: object) -> Cell:
    table = cell if isinstance(cell, dict) else {}
    kind, source = table.get("cell_type"), table.get("source")
    lines = source if isinstance(source, list) else [source]
    text = [line for line in lines if isinstance(line, str)]
    if not isinstance(kind, str) or len(text) < len(lines):
        raise ConfigError(f"the notebook is damaged: cell {number} has no source or type", PULL)
    metadata = table.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    known = {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()
    return Cell(number, kind, "".join(text), frozenset(known - DISPLAY_TAGS))


def _embedded(cell: Cell) -> ast.Assign | None:
    """The statement `BUNDLE = …` at the top level of a cell."""
    for node in cell.tree.body if cell.tree else []:
        if isinstance(node, ast.Assign) and _names(node.targets) == ["BUNDLE"]:
            return node
    return None


def _names(targets: list[ast.expr]) -> list[str]:
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _literal(node: ast.expr) -> Any:
    """The value of a Python literal; None where it is not one."""
    try:
        value = ast.literal_eval(node)
        repr(value)  # Python refuses to write very long integers
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return value


_NEEDED = frozenset({"roots", "entry", "parameters", "files"})  # by `sync`, besides the outputs


def _as_manifest(value: object) -> Manifest | None:
    """None where it is not one, or lacks what `sync` needs: a notebook may hold anything."""
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError:
        return None
    sound = all(file.path.isprintable() and file.sha256.isascii() for file in manifest.files)
    return manifest if sound and manifest.model_fields_set >= _NEEDED else None


def _shown(node: ast.expr) -> str:
    """A value as `repr` writes it, an expression as it is written."""
    value = _literal(node)
    plain = isinstance(node, ast.Constant) and node.value is None
    return repr(value) if value is not None or plain else ast.unparse(node)


class _UnreadableError(Exception):
    """A cell that carries files that cannot be read; the message is the reason."""


def _carried(cell: Cell) -> Carried:
    """Every file that a cell writes into the package.

    Raises:
        _UnreadableError: it writes a file that cannot be read without running the cell.
        PathError: its archive holds something that is not a regular file.
    """
    if cell.kind != "code":
        return Carried()
    magic = _WRITEFILE.fullmatch(cell.first_line)
    if magic:
        return Carried(_written(magic["arguments"], cell.source.lstrip()))
    files: list[tuple[str, bytes]] = []
    other_code = False
    for statement in cell.tree.body if cell.tree else []:
        call = _call_of_the_run(statement)
        if call is not None:
            files += [(_plain(path), content) for path, content in _evaluated(call)]
        elif not isinstance(statement, ast.Import):
            other_code = True
    return Carried(tuple(files), other_code)


def _plain(path: str) -> str:
    """Without doubled slashes and single dots, as the manifest writes it."""
    return str(PurePosixPath(path))


def _written(arguments: str, source: str) -> tuple[tuple[str, bytes], ...]:
    """What a `%%writefile` cell writes; nothing if the path is not one of kernelkit's.

    The magic adds a missing last newline, and editors remove additional ones: such a file ends in
    exactly one. A render puts no carriage return into such a cell, so an editor added it.
    """
    try:
        words = shlex.split(arguments, posix=False)  # as IPython does: a backslash stays
    except ValueError:
        return ()
    options = [word for word in words if word.startswith("-")]
    paths = [word.strip("\"'") for word in words if word not in options]
    address = _ADDRESS.fullmatch(paths[0]) if len(paths) == 1 else None
    if address is None:
        return ()
    if options:
        raise _UnreadableError("it appends to a file: let one cell write the whole of it")
    body = source.partition("\n")[2].replace("\r\n", "\n").rstrip("\n")
    try:
        return ((_plain(address["path"]), f"{body}\n".encode() if body else b""),)
    except UnicodeEncodeError:
        raise _UnreadableError("it has a character that UTF-8 cannot encode") from None


def _call_of_the_run(statement: ast.stmt) -> ast.Call | None:
    """The call in `kernelkit_run.write_source(…)` or `kernelkit_run.unpack(…)`."""
    match statement:
        case ast.Expr(
            value=ast.Call(
                func=ast.Attribute(
                    value=ast.Name(id="kernelkit_run"), attr="write_source" | "unpack"
                )
            ) as call
        ):
            return call
    return None


def _evaluated(call: ast.Call) -> list[tuple[str, bytes]]:
    """The files of one call, from its arguments alone."""
    assert isinstance(call.func, ast.Attribute)
    try:
        values = [_value(argument) for argument in call.args]
        if call.func.attr == "unpack":
            (packed,) = values
            return list(_unpacked(base64.b64decode(packed)))
        path, content = values
        if call.keywords or not isinstance(path, str) or not isinstance(content, bytes):
            raise TypeError("not a path and its bytes")
        return [(path, content)]
    except (ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise _UnreadableError(f"what it writes cannot be read: {error}") from None
    except (RecursionError, MemoryError):
        raise _UnreadableError("what it writes cannot be read: too deep or too large") from None
    except (zlib.error, lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise _UnreadableError(f"what it carries is damaged: {error}") from None


def _value(node: ast.expr) -> Any:
    """The value of the few expressions that carry bytes in a cell; nothing is executed."""
    methods: dict[str, Callable[..., Any]] = {
        "zlib.decompress": _inflated,
        "base64.b64decode": base64.b64decode,
    }
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments, keywords=[]):
            given = [_value(argument) for argument in arguments]
            if ast.unparse(node.func) in methods and len(given) == 1:
                return methods[ast.unparse(node.func)](given[0])
            owner = _value(value)
            if name == "join" and isinstance(owner, str):
                return owner.join(*given)
            if name == "encode" and isinstance(owner, str) and given in ([], ["utf-8"]):
                return owner.encode()
            raise ValueError(f"a call of {name}() cannot be read")
    return ast.literal_eval(node)


def _inflated(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(packed, MAX_UNPACKED_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {MAX_UNPACKED_BYTES >> 20} MiB")
    if not inflater.eof:
        raise EOFError("its end is missing")
    return content


def _unpacked(packed: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of a tar.xz.

    Raises:
        PathError: it holds a link, a folder or a device.
    """
    size = 0
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
        for member in archive:
            if not member.isreg():
                raise PathError(member.name, "only regular files can be carried")
            size += member.size
            if size > MAX_UNPACKED_BYTES:
                raise ValueError(f"more than {MAX_UNPACKED_BYTES >> 20} MiB")
            content = archive.extractfile(member)
            assert content is not None  # of a regular file
            yield member.name, content.read()
