"""The cells of a notebook, how a file becomes a cell, and the notebook's JSON."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from json.encoder import encode_basestring, encode_basestring_ascii

from pydantic import JsonValue

from kernelkit.bundle.bundle import SourceFile

_PROMPT = re.compile(r"^[^\S\n]*(?:>>>|\.\.\.|In \[\d+\]:)", re.MULTILINE)
_PROMPT_MARKS = (">>>", "...", "In [")  # the search is only needed where one of them occurs
_BLANK_LINE = re.compile(r"^[^\S\n]+$", re.MULTILINE)
_SAFE_PATH = re.compile(r"[\w./-]+", re.ASCII)
_BASE64_LINE = 100  # characters

_INPUT_HIDDEN = frozenset(
    {"start", "runtime-folder", "runtime-module", "hardware", "pip", "module", "archive"}
    | {"inputs"}
)
"""Tags of code cells whose source is collapsed, because a reader rarely needs it."""

_OUTPUT_HIDDEN = frozenset({"runtime-module", "module", "archive", "run"})
"""Tags of code cells whose output is collapsed: names of files, and the log of the run."""

_FOLDED = frozenset({"manifest-heading", "runtime-heading", "package"})
"""Tags of headings whose section JupyterLab and Colab fold."""

DISPLAY_TAGS = frozenset({"hide-input", "hide-output"})
"""Tags that Jupyter Book collapses, and that nbconvert can remove."""


@dataclass(frozen=True)
class ModuleCell:
    """One file of the packages, as its templates see it."""

    path: str
    summary: str
    size: int
    """In bytes."""

    is_module: bool
    form: str
    """How it is carried: "writefile", "lines", "base64", "empty", "compressed" or "dataset"."""

    text: str = ""
    """For "writefile" the content without its last newline, which IPython adds."""

    lines: tuple[str, ...] = ()
    base64: str = ""

    @property
    def heading(self) -> str:
        """Its path, and the first line of its docstring."""
        return f"{self.path}: {self.summary}" if self.summary else self.path

    def compressed(self) -> ModuleCell:
        """The same file, carried in the compressed cell."""
        return self._elsewhere("compressed")

    def in_dataset(self) -> ModuleCell:
        """The same file, carried in the private dataset."""
        return self._elsewhere("dataset")

    def _elsewhere(self, form: str) -> ModuleCell:
        return ModuleCell(self.path, self.summary, self.size, self.is_module, form)


@dataclass(frozen=True)
class RenderedCell:
    """One cell of the notebook."""

    id: str
    tag: str
    is_code: bool
    source: str
    path: str | None = None
    """The file that it belongs to; None where it belongs to none."""

    @property
    def is_folded(self) -> bool:
        """Whether it is a heading whose section is folded."""
        return not self.is_code and self.tag in _FOLDED

    @cached_property
    def sent(self) -> int:
        """Bytes in the notebook as it is sent, including the comma and the space after it."""
        strings = encode_basestring_ascii(self.id) + encode_basestring_ascii(self.source)
        folded = len(encode_basestring_ascii(self.id)) - len('""') if self.is_folded else 0
        return len(strings) + folded + _sent_around(self.tag, self.is_code)


def module_cell(file: SourceFile) -> ModuleCell:
    """The simplest form that carries a file exactly."""
    known = (file.path, file.summary, len(file.content), file.module is not None)
    if not file.content:
        return ModuleCell(*known, "empty")
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError:
        packed = base64.b64encode(zlib.compress(file.content, 9)).decode()
        return ModuleCell(*known, "base64", base64=in_lines(packed, _BASE64_LINE))
    if _writefile_is_exact(file.path, text):
        return ModuleCell(*known, "writefile", text=text[:-1])
    return ModuleCell(*known, "lines", lines=tuple(text.splitlines(keepends=True)))


def notebook_json(cells: Sequence[RenderedCell]) -> str:
    """The notebook as nbformat writes it: sorted keys, one space of indent, a last newline.

    Written by hand, because Python's encoder takes ten times as long once it indents.
    """
    body = ",\n".join(map(_cell_json, cells))
    return f'{{\n "cells": [\n{body}\n ],\n{_notebook_metadata(cells)}\n}}\n'


def in_lines(text: str, length: int) -> str:
    """Break a long text into lines of at most `length` characters."""
    return "\n".join(text[i : i + length] for i in range(0, len(text), length))


def sent_size(cells: Sequence[RenderedCell]) -> int:
    """Bytes of the whole notebook as it is sent; `payload` has exactly as many characters."""
    envelope = json.dumps(json.loads(f'{{"cells": [],{_notebook_metadata(cells)}}}'))
    return max(sum(cell.sent for cell in cells) - len(", "), 0) + len(envelope)


def _notebook_metadata(cells: Iterable[RenderedCell]) -> str:
    """papermill, which Kaggle runs, refuses a notebook without a kernelspec."""
    metadata = {
        "colab": {
            "collapsed_sections": [cell.id for cell in cells if cell.is_folded],
            "provenance": [],
            "toc_visible": True,
        },
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    document = {"metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1)[2:-2]


@cache
def _sent_around(tag: str, is_code: bool) -> int:
    """Bytes of a sent cell apart from its id and its source."""
    node = json.loads(_cell_json(RenderedCell(id="", source="", tag=tag, is_code=is_code)))
    node["source"] = ""
    return len(json.dumps(node)) - len('""""') + len(", ")


@cache
def _metadata_json(tag: str, is_code: bool, folded: str | None) -> str:
    """How a cell is displayed, by the keys of Kaggle, JupyterLab, Colab and Jupyter Book.

    nbconvert honors none of these; its HTML has a class for each tag.
    """
    metadata: dict[str, JsonValue] = {"tags": [tag]}
    hides_input = is_code and tag in _INPUT_HIDDEN
    hides_output = is_code and tag in _OUTPUT_HIDDEN
    if hides_input:
        metadata |= {"_kg_hide-input": True, "cellView": "form"}
    if hides_output:
        metadata |= {"_kg_hide-output": True}
    if hides_input or hides_output:
        hidden = {"source_hidden": hides_input, "outputs_hidden": hides_output}
        metadata["jupyter"] = {key: True for key, value in hidden.items() if value}
        shown = {"hide-input": hides_input, "hide-output": hides_output}
        metadata["tags"] = [tag, *(name for name, value in shown.items() if value)]
    if folded is not None:
        metadata |= {"id": folded, "jp-MarkdownHeadingCollapsed": True}
    return json.dumps(metadata, indent=1, sort_keys=True).replace("\n", "\n   ")


def _cell_json(cell: RenderedCell) -> str:
    lines = ",\n    ".join(map(encode_basestring, cell.source.splitlines(keepends=True)))
    source = f"[\n    {lines}\n   ]" if lines else "[]"
    metadata = _metadata_json(cell.tag, cell.is_code, cell.id if cell.is_folded else None)
    head = f'   "id": "{cell.id}",\n   "metadata": {metadata},\n'
    if cell.is_code:
        head = f'   "cell_type": "code",\n   "execution_count": null,\n{head}   "outputs": [],\n'
    else:
        head = f'   "cell_type": "markdown",\n{head}'
    return f'  {{\n{head}   "source": {source}\n  }}'


def _writefile_is_exact(path: str, text: str) -> bool:
    """Whether every version of IPython writes this file exactly.

    IPython adds a missing last newline and rejects an empty body. From 9.8 on it empties lines of
    only white space, also inside strings. It removes what looks like a prompt, as in doctests,
    before it sees the magic. An editor may trim newlines at the end and change carriage returns or
    control characters, so files with those are carried in another form too.
    """
    return (
        _SAFE_PATH.fullmatch(path) is not None
        and text.endswith("\n")
        and bool(text.strip())
        and not text.endswith("\n\n")
        and not text.startswith("\ufeff")
        and text.replace("\n", "").replace("\t", "").isprintable()
        and not (any(mark in text for mark in _PROMPT_MARKS) and _PROMPT.search(text))
        and not (any(end in text for end in (" \n", "\t\n")) and _BLANK_LINE.search(text))
    )
