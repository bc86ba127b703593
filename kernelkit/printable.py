"""Makes text safe to show: without control characters, without credentials, and not too long.

Kaggle, a run and the files of strangers choose many of the words that kernelkit prints. `console`
passes everything through here; JSON keeps the data, and loses only credentials.
"""

from __future__ import annotations

import base64
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

LINE_CHARACTERS = 4000  # of one printed line
HIDDEN = "[hidden]"
SECRET_CHARACTERS = 10  # a shorter piece of a credential is also part of ordinary words
KEY_FILE_BYTES = 1 << 16

TERMINAL_COMMANDS = re.compile(
    r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\)|[@-Z\\^_])"
)
"""A whole command of a terminal after ESC: colors, cursor movements, titles, links."""

_LINE_END = re.compile(r"[^\S\n]*\n\s*")
_SECRET_PIECE = re.compile(rf"[!#-&(-\[\]-~]{{{SECRET_CHARACTERS},}}")  # JSON escapes none of these
_WORD = re.compile(r"[\w.~+/=-]{16,}", re.ASCII)
_USER_INFO = re.compile(r"(https?://)[^\s/?#@\"'<>]*@", re.IGNORECASE)
_SIGNED_QUERY = re.compile(
    r"\?(?=[^\s\"'<>]*(?:sig(?:nature)?|token|key|credential|secret|password|accessid|auth)"
    r"[\w.%-]*=)[^\s\"'<>]*",
    re.IGNORECASE,
)
"""The query of an address that carries its own permission."""


def printable(line: str) -> str:
    """Control characters as escapes, so that a notebook cannot control the terminal.

    Also those that change the order of text or are invisible, and line ends. Spaces of any width
    stay.
    """
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    if character.isprintable() or character == "\t" or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def lines_printable(text: str) -> str:
    """Like `printable`, for lines of a log: without colors, and only the end of a progress bar."""
    if text.isprintable():
        return text
    lines = TERMINAL_COMMANDS.sub("", text).split("\n")
    return "\n".join(printable(line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def one_line(text: str, characters: int = LINE_CHARACTERS) -> str:
    """Words of somebody else as a part of a line: they cannot begin a line of their own."""
    return _LINE_END.sub(" ", lines_printable(shortened(text, characters)).strip())


def shortened(line: str, characters: int = LINE_CHARACTERS) -> str:
    """A line, or its beginning and how much more there is."""
    more = len(line) - characters
    return line if more <= 0 else f"{line[:characters]}… ({more:,} more characters)"


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """A text, or JSON, without `secrets`."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def without_signatures(text: str) -> str:
    """A text without the user info of addresses and without signed queries."""
    if "://" in text or "?" in text:
        text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
        text = _SIGNED_QUERY.sub(f"?{HIDDEN}", text)
    return text


def own_secrets(environment: Mapping[str, str], home: Path) -> list[str]:
    """Pieces of this machine's Kaggle credentials, as they would appear in a text; longest first.

    A credential with a stray character may be quoted in several forms, so its pieces between
    quotes, escapes and unusual characters count.
    """
    found: set[str] = set()
    for _, value in machine_credentials(environment, home):
        found.update(_SECRET_PIECE.findall(value))
    return sorted(found, key=len, reverse=True)


def machine_credentials(environment: Mapping[str, str], home: Path) -> Iterator[tuple[str, str]]:
    """This machine's Kaggle credentials, used or not: the variable or file of each, and its text.

    A file that cannot be parsed has every long word as a text.
    """
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
        if not path.is_file():
            return ""
        with path.open("rb") as stream:
            data = stream.read(KEY_FILE_BYTES)
    except (OSError, ValueError):  # ValueError: a token may contain NUL
        return ""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, errors="replace")


def machine_secrets() -> list[str]:
    """`own_secrets` of this process."""
    try:
        return own_secrets(os.environ, Path.home())
    except RuntimeError:  # this user has no home
        return []
