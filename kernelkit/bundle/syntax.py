"""Parses source for the Python of Kaggle's image, which may not be the one that runs kernelkit.

Where the image has a newer Python, its syntax may be unknown here: type parameters (PEP 695) and
the new f-strings (PEP 701) of Python 3.12. `parse` then takes them out of a copy of the source,
line by line, and parses that: all imports stay, and only the syntax of what was taken out remains
unchecked. No other interpreter is started.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

HERE = sys.version_info[:2]

_TOKEN = re.compile(
    r"(?P<comment>#[^\n]*)"
    r"|(?P<prefix>[rRbBuUfF]{0,2})(?P<quote>\"\"\"|'''|\"|')"
    r"|(?P<word>\w+)"
    r"|(?P<space>[ \t\f]+|\\\n)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_PLAIN_FORMATTED = re.compile(r"[rRfF]+(?P<quote>['\"])[^'\"\\\n#]*(?P=quote)")
"""An f-string that every version knows, or none."""

_GENERIC = re.compile(r"[ \t]+\w+[ \t]*(?=\[)")
"""After `class` or `def`: the name, where type parameters follow."""

_ALIAS = re.compile(r"[ \t]+(?P<name>\w+)[ \t]*(?=\[|=(?!=))")
"""After `type` at the beginning of a statement."""

_TYPE_PARAMETERS, _DEFAULTS = (3, 12), (3, 13)
"""The first versions with type parameters and the new f-strings, and with their defaults."""


class _UnknownSyntaxError(Exception):
    """The source has syntax that this module does not know."""


@dataclass(frozen=True)
class Parsed:
    """Source that this machine's Python can parse."""

    tree: ast.Module
    source: bytes | str
    """The file's content, or a copy without the syntax that is unknown here."""


def parse(content: bytes, path: str, python: tuple[int, int]) -> Parsed:
    """Parse a file that is meant for the version `python`.

    Raises:
        SyntaxError: it is not valid in that version, as far as this machine knows.
    """
    older = python if python < HERE else None
    try:
        return Parsed(ast.parse(content, filename=path, feature_version=older), content)
    except SyntaxError:
        if python <= HERE:
            raise
        copy = _without_new_syntax(content, python)
        if copy is None:
            raise
    return Parsed(ast.parse(copy, filename=path), copy)


def called_name(call: ast.Call) -> str:
    """The last word of what is called: `append` of `x.items.append()`; empty for an expression."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def arguments_of(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Each argument of a function with its default value, without `*args` and `**kwargs`."""
    given = function.args
    by_place = [*given.posonlyargs, *given.args]
    without = len(by_place) - len(given.defaults)
    defaults = [*[None] * without, *given.defaults, *given.kw_defaults]
    return zip([*by_place, *given.kwonlyargs], defaults, strict=True)


def text_of(source: bytes | str) -> str:
    """Source as text, by its declared encoding."""
    return source if isinstance(source, str) else importlib.util.decode_source(source)


def _without_new_syntax(content: bytes, python: tuple[int, int]) -> str | None:
    """The source with the same lines; None where it has no new syntax, or that of a later Python.

    The text is a copy without the syntax that is new in versions up to `python`.
    """
    try:
        text = text_of(content)
        copier = _Copier(text)
        copy = "".join(copier.parts())
    except (_UnknownSyntaxError, UnicodeDecodeError, SyntaxError, RecursionError):
        return None
    return copy if copy != text and copier.needed <= python else None


class _Copier:
    """Walks through the tokens of a source once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.needed = _TYPE_PARAMETERS
        """The first version that knows the syntax that was taken out."""

    def parts(self) -> Iterator[str]:
        """The copy, piece by piece."""
        at, depth, starts = 0, 0, True
        while at < len(self._text):
            token = self._token(at)
            end = self._end(token)
            piece = self._text[at:end]
            if token["quote"] and "f" in token["prefix"].lower() and not _is_known(piece):
                piece = _blank(piece)
            elif token["word"] in ("class", "def"):
                if generic := _GENERIC.match(self._text, end):
                    piece += generic[0]
                    end, newlines = self._type_parameters(generic.end())
                    piece += "\\\n" * newlines
            elif token["word"] == "type" and starts and (name := self._alias(end)):
                end, newlines = name.end(), 0
                if self._text[end] == "[":
                    end, newlines = self._type_parameters(end)
                piece = name["name"] + " " + "\\\n" * newlines
            depth += _depth(token["other"])
            if token["other"] in ("\n", ";", ":"):
                starts = depth <= 0
            elif not token["space"] and not token["comment"]:
                starts = False
            yield piece
            at = end

    def _alias(self, at: int) -> re.Match[str] | None:
        """The name behind `type`, which may also be a variable: `type in words`."""
        found = _ALIAS.match(self._text, at)
        return None if found is None or keyword.iskeyword(found["name"]) else found

    def _token(self, at: int) -> re.Match[str]:
        token = _TOKEN.match(self._text, at)
        if token is None:
            raise _UnknownSyntaxError
        return token

    def _end(self, token: re.Match[str]) -> int:
        """Where a token ends; of a string, behind its closing quote."""
        if not token["quote"]:
            return token.end()
        if "f" in token["prefix"].lower():
            return self._formatted(token.end(), token["quote"])
        return self._literal(token.end(), token["quote"])

    def _literal(self, at: int, quote: str) -> int:
        while not self._text.startswith(quote, at):
            if at >= len(self._text) or (self._text[at] == "\n" and len(quote) == 1):
                raise _UnknownSyntaxError
            at += 2 if self._text[at] == "\\" else 1
        return at + len(quote)

    def _formatted(self, at: int, quote: str) -> int:
        while not self._text.startswith(quote, at):
            if at >= len(self._text) or (self._text[at] == "\n" and len(quote) == 1):
                raise _UnknownSyntaxError
            if self._text.startswith(("{{", "}}"), at):
                at += 2
            elif self._text[at] == "{":
                at = self._field(at + 1)
            else:
                at += 2 if self._text[at] == "\\" else 1
        return at + len(quote)

    def _field(self, at: int) -> int:
        """Where a replacement field of an f-string ends, behind its brace."""
        depth = 0
        while at < len(self._text):
            token = self._token(at)
            at = self._end(token)
            if depth == 0 and token["other"] == "}":
                return at
            if depth == 0 and token["other"] == ":":
                return self._format(at)
            depth += _depth(token["other"])
        raise _UnknownSyntaxError

    def _format(self, at: int) -> int:
        """Where the field ends whose format begins here."""
        while at < len(self._text) and self._text[at] != "}":
            at = self._field(at + 1) if self._text[at] == "{" else at + 1
        return at + 1

    def _type_parameters(self, at: int) -> tuple[int, int]:
        """Where the brackets end that open here, and how many lines end in them."""
        start, depth = at, 0
        while at < len(self._text):
            token = self._token(at)
            at = self._end(token)
            depth += _depth(token["other"])
            if depth == 0:
                return at, self._text.count("\n", start, at)
            if depth == 1 and token["other"] == "=":
                self.needed = _DEFAULTS
        raise _UnknownSyntaxError


def _depth(character: str | None) -> int:
    """How much deeper in brackets the text is after a character."""
    if not character:
        return 0
    return (character in "([{") - (character in ")]}")


def _is_known(literal: str) -> bool:
    """Whether this machine's Python can parse an f-string."""
    if _PLAIN_FORMATTED.fullmatch(literal):
        return True
    try:
        ast.parse(f"({literal})")
    except SyntaxError:
        return False
    return True


def _blank(literal: str) -> str:
    """A plain string over as many lines."""
    lines = literal.count("\n")
    return '"""' + "\n" * lines + '"""' if lines else '""'
