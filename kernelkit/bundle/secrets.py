"""Finds what must not leave this machine in the texts that would be sent: keys, tokens, passwords.

`secret_rules` recognizes the well-known forms. The strongest rule needs no form: it finds this
machine's own credentials, word for word.

A finding has the place and the kind. The secret itself is in no `repr`, no message, no error.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import re
from bisect import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kernelkit.storage import read_file

if TYPE_CHECKING:
    from kernelkit.bundle.secret_rules import SecretMatch

_LONG_LINE = 400  # characters at the end of a line, which are searched for the allow comment
_PRAGMA = "pragma:"
_CHUNK_BYTES = 8 << 20
_KEY_BYTES = 100  # more than the first line of a private key
PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
SECRET_CHARACTERS = 10  # a shorter piece of a credential is also part of ordinary words
KEY_FILE_BYTES = 1 << 16
_SECRET_PIECE = re.compile(rf"[!#-&(-\[\]-~]{{{SECRET_CHARACTERS},}}")  # JSON escapes none of these
_WORD = re.compile(r"[\w.~+/=-]{16,}", re.ASCII)
_ADDRESS_WORD = re.compile(rf"[\w.~+=-]{{{SECRET_CHARACTERS},}}", re.ASCII)
_DOTENV_LINE = re.compile(
    r"^[ \t]*(?:export[ \t]+)?(?P<name>\w+)[ \t]*=(?P<value>[^\n#]*)", re.MULTILINE
)

PRIVATE_KEY_KIND = "a private key"


@dataclass(frozen=True)
class NamedText:
    """A text that would be sent, and where it comes from."""

    place: str
    """A path in the project, `parameters.NAME`, a field of the kernel, or a cell."""

    content: str = field(repr=False)
    numbered: bool = True
    """Whether line numbers mean something to the user."""

    is_derived: bool = False
    """Whether it is made from other texts, in which the same secret was already found."""

    @cached_property
    def line_ends(self) -> list[int]:
        """The index of every newline."""
        return [end.start() for end in re.finditer("\n", self.content)]


@dataclass(frozen=True)
class SecretFinding:
    """Where a secret is, without the secret."""

    place: str
    """As `NamedText` has it."""

    line: int | None
    """Counted from 1; None where the place has no lines."""

    kind: str
    """With its article: "an AWS Access Key"."""

    @property
    def where(self) -> str:
        """The place as messages and `allow_secrets` write it: `pkg/data.json:3`."""
        return self.place if self.line is None else f"{self.place}:{self.line}"


@dataclass(frozen=True)
class Credential:
    """One of this machine's own credentials."""

    origin: str
    """Where it was found: the name of a variable or of a file."""

    value: str = field(repr=False)


def scan(
    texts: Iterable[NamedText], own: Collection[Credential] = (), allowed: Collection[str] = ()
) -> list[SecretFinding]:
    """Every secret in `texts` that is not allowed, by file and line.

    `own` are this machine's credentials; `allowed` are places as `SecretFinding.where` writes them.
    Takes 0.1 to 0.2 s a megabyte, and about a second where a text was made to mislead the rules.
    """
    seen: set[str] = set()  # a parameter is in three cells as well: reported once
    findings: dict[SecretFinding, None] = {}
    for text in texts:
        for match in sorted(_matches(text.content, own), key=lambda match: match.start):
            known = match.secret in seen
            seen.add(match.secret)
            line = bisect(text.line_ends, match.start) + 1 if text.numbered else None
            finding = SecretFinding(text.place, line, match.kind)
            if finding.where in allowed or _has_pragma(text, match.start):
                continue
            if not (known and text.is_derived):
                findings[finding] = None
    return list(findings)


def searchable_text(content: bytes) -> str:
    """One character a byte, whatever the encoding: the marks of all secrets are ASCII."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("latin-1")


def is_text(head: bytes) -> bool:
    """Whether a file begins like a text, also in UTF-16."""
    return b"\0" not in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def search_bytes(stream: BinaryIO, own: Collection[Credential]) -> set[str]:
    """The kinds of secrets in data of any size: this machine's credentials, and private keys."""
    marks = {
        f"a credential of this machine ({credential.origin})": credential.value.encode(
            errors="surrogateescape"
        )
        for credential in own
    }
    overlap = max([len(value) for value in marks.values()] + [_KEY_BYTES])
    found: set[str] = set()
    end = b""
    while chunk := stream.read(_CHUNK_BYTES):
        block = end + chunk
        found |= {kind for kind, value in marks.items() if value in block}
        if PRIVATE_KEY.search(block):
            found.add(PRIVATE_KEY_KIND)
        end = block[-overlap:]
    return found


def own_credentials(environment: Mapping[str, str], home: Path, project: Path) -> list[Credential]:
    """The Kaggle credentials of this machine, and what looks secret in the project's .env."""
    from kernelkit.bundle.secret_rules import looks_random

    found = [(name, text.strip()) for name, text in machine_credentials(environment, home)]
    for match in _DOTENV_LINE.finditer(_read(project / ".env")):
        found.append((f".env: {match['name']}", match["value"].strip().strip("'\"")))
    unique = {value: origin for origin, value in reversed(found) if looks_random(value)}
    unique |= {value: origin for origin, value in _declared(environment)}
    return [Credential(origin, value) for value, origin in unique.items()]


def _read(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace")
    except OSError:
        return ""


def _matches(text: str, own: Collection[Credential]) -> Iterator[SecretMatch]:
    from kernelkit.bundle.secret_rules import SecretMatch, matches

    for credential in own:
        data = credential.value.encode(errors="surrogateescape")
        for form in {credential.value, data.decode("latin-1")}:
            for found in re.finditer(re.escape(form), text):
                kind = f"a credential of this machine ({credential.origin})"
                yield SecretMatch(kind, found.start(), credential.value)
    yield from matches(text)


def _has_pragma(text: NamedText, start: int) -> bool:
    """Whether the line or the one before it ends with the allow comment of detect-secrets."""
    content = text.content
    begin = content.rfind("\n", 0, start) + 1
    end = content.find("\n", start)
    end = end if end >= 0 else len(content)
    line = content[max(begin, end - _LONG_LINE) : end]
    above = max(begin - 1, 0)
    before = content[content.rfind("\n", 0, above) + 1 : above][:_LONG_LINE]
    if _PRAGMA not in line and _PRAGMA not in before:
        return False
    from detect_secrets.filters.allowlist import is_line_allowlisted
    from detect_secrets.util.code_snippet import CodeSnippet

    return is_line_allowlisted(text.place, line, CodeSnippet([before, line], 1, 1))


def own_secrets(environment: Mapping[str, str], home: Path) -> list[str]:
    """Pieces of this machine's Kaggle credentials, as they would appear in a text; longest first.

    A credential with a stray character may be quoted in several forms, so its pieces between
    quotes, escapes and unusual characters count.
    """
    found: set[str] = set()
    for _, value in machine_credentials(environment, home):
        found.update(_SECRET_PIECE.findall(value))
    return sorted(found, key=len, reverse=True)


_DECLARED: set[str] = set()


def declare_credential(variable: str) -> None:
    """Treat the value of an environment variable as a credential from now on.

    For what a project names itself, such as the address of `notify_env`.
    """
    if variable:
        _DECLARED.add(variable)


def _declared(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The values of declared variables; of an address, also the words that look like its keys."""
    for name in sorted(_DECLARED):
        value = environment.get(name, "").strip()
        if len(value) >= SECRET_CHARACTERS:
            yield name, value
        for word in _ADDRESS_WORD.findall(value.partition("://")[2]):
            if re.search(r"\d", word) and re.search("[A-Za-z]", word):
                yield name, word


def machine_secrets() -> list[str]:
    """`own_secrets` of this process."""
    try:
        return own_secrets(os.environ, Path.home())
    except RuntimeError:  # this user has no home
        return []


def machine_credentials(environment: Mapping[str, str], home: Path) -> Iterator[tuple[str, str]]:
    """This machine's credentials, used or not: the variable or file of each, and its text.

    Those for Kaggle, and the values of declared variables. A file that cannot be parsed has every
    long word as a text.
    """
    yield from _declared(environment)
    token = environment.get("KAGGLE_API_TOKEN", "")
    yield "KAGGLE_API_TOKEN", _content(Path(token)) or token
    name, key = environment.get("KAGGLE_USERNAME", ""), environment.get("KAGGLE_KEY")
    yield from (("KAGGLE_KEY", form) for form in _with_header(name, key))
    stated = environment.get("KAGGLE_CONFIG_DIR")
    folders = [home / ".kaggle", home / ".config" / "kaggle", *([Path(stated)] if stated else [])]
    for folder in folders:
        for name in ("access_token", "access_token.txt"):
            yield name, _content(folder / name)
        for name in ("kaggle.json", "credentials.json"):
            yield from ((name, value) for value in _in_json(_content(folder / name)))


def _in_json(text: str) -> Iterator[str]:
    try:
        document = json.loads(text)
        values = {name: value for name, value in document.items() if isinstance(value, str)}
    except (ValueError, RecursionError, AttributeError):
        yield from _WORD.findall(text)
        return
    yield from (value for name, value in values.items() if "key" in name or "token" in name)
    yield from _with_header(values.get("username", ""), values.get("key"))


def _with_header(username: str, key: str | None) -> Iterator[str]:
    """A key, and as HTTP sends it together with the name."""
    for form in {key, key.strip()} if key else ():
        yield form
        header = f"{username.strip()}:{form}".encode(errors="replace")
        yield base64.b64encode(header).decode()


def _content(path: Path) -> str:
    try:
        data = read_file(path, KEY_FILE_BYTES)
    except (OSError, ValueError):  # ValueError: a token may contain NUL
        return ""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, errors="replace")
