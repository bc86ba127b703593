"""What the notebook says about itself: the project's own words, or the docstring of its package."""

from __future__ import annotations

import ast
import re
import warnings

from kernelkit.bundle.bundle import Bundle, SourceFile
from kernelkit.config import Config, entry_module

DOCSTRING_CHARACTERS = 2000  # what follows is for people who read the source

_CODE = re.compile(r"(`+[^`]+`+)")
_SPECIAL = re.compile(r"([\\*_\[\]<>$~|])")
_NO_PROSE = re.compile(r"^\s|^>>>|^:|^\$ |^python3? (?:-m |\S+\.py)|\S {2,}\S")


def description_of(bundle: Bundle, config: Config) -> str:
    """Markdown: the key `description`, else the docstring of the package or script; else empty."""
    return config.description or docstring_as_markdown(_docstring(bundle))


def docstring_as_markdown(docstring: str) -> str:
    """Its prose as Markdown, up to the first paragraph that is indented, in columns or a prompt."""
    parts, size = [], 0
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        lines = paragraph.strip("\n").split("\n")
        size += len(paragraph)
        if size > DOCSTRING_CHARACTERS or any(map(_NO_PROSE.search, lines)):
            break
        parts.append("\n".join(map(_prose, lines)))
    return "\n\n".join(parts)


def _prose(line: str) -> str:
    """A line in which only backticks have a meaning."""
    if line.startswith(("- ", "* ")):
        return f"- {_prose(line[2:])}"
    pieces = _CODE.split(line)
    pieces[::2] = [_SPECIAL.sub(r"\\\1", piece) for piece in pieces[::2]]
    text = "".join(pieces)
    return f"\\{text}" if re.match(r"#|=+$|-+$|\d+[.)] ", text) else text


def _docstring(bundle: Bundle) -> str:
    """Of the top package of the entry, else of the entry's module or script."""
    module = entry_module(bundle.entry) or ""
    top = module.partition(".")[0]
    found = {file.module: file for file in bundle.files if file.module}
    scripts = [file for file in bundle.files if file.path == bundle.entry]
    candidates = [*scripts, *(found[name] for name in (top, module) if name in found)]
    return next(filter(None, map(_docstring_of, candidates)), "")


def _docstring_of(file: SourceFile) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.get_docstring(ast.parse(file.content)) or ""
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
