"""What must not leave this machine, found in all that would be sent: keys, tokens, passwords.

Where the form of a secret is well known, the rules are those of detect-secrets (Yelp). What it
lacks, Kaggle's own first of all, stands here, and what in it takes the square of a line's length
or cries wolf in ordinary code. Of detect-secrets only the rules are used: its way to
ask a secret's maker whether it is alive is never called, so that nothing goes over the network. No
rule goes by entropy alone, which takes pictures and hashes in base64 for secrets.

The strongest rule needs no form: the credentials of this machine itself, word for word.

A finding tells the place and the kind. The secret itself is in no `repr`, no message, no error.
"""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from detect_secrets.filters.allowlist import is_line_allowlisted
from detect_secrets.filters.heuristic import (
    is_potential_uuid,
    is_sequential_string,
    is_templated_secret,
)
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.util.code_snippet import CodeSnippet

from kernelkit.notebook.render import Kernel

_PIECE = 16_384  # characters read at once: some rules take the square of it, never of a whole file
_OVERLAP = 4_096  # characters: no token is longer, and none is cut between two pieces
_SHORTEST = 8  # characters; shorter passwords are words too
_LONG = 12  # characters, of what has letters only
_LONG_LINE = 400  # characters at a line's end, among which the allow comment stands
_PRAGMA = "pragma:"


@dataclass(frozen=True)
class Finding:
    """A secret, without the secret."""

    place: str
    """A path in the project, `parameters.NAME`, a field of the kernel, or a cell."""

    line: int | None
    """Counted from 1; None where the place has no lines."""

    kind: str
    """With its article: "an AWS Access Key"."""

    @property
    def where(self) -> str:
        """How a person writes it, in `allow_secrets` too."""
        return self.place if self.line is None else f"{self.place}:{self.line}"


@dataclass(frozen=True)
class Credential:
    """One of this machine's own credentials."""

    origin: str
    """Where it stands here: a variable's name, or a file's."""

    value: str = field(repr=False)


def scan(kernel: Kernel, own: Collection[Credential] = ()) -> list[Finding]:
    """Every secret in what would be sent and is not allowed, by file and line.

    Takes time in proportion to what is sent, whatever it holds: 0.1 to 0.2 s a megabyte, and about
    a second where it is made to mislead.
    """
    seen: set[str] = set()  # a parameter stands in three cells as well: told once
    findings: dict[Finding, None] = {}
    for text in _texts(kernel):
        matches = sorted(_matches(text.content, own), key=lambda match: match.start)
        for match in matches:
            known = match.secret in seen
            seen.add(match.secret)
            line = bisect(text.line_ends, match.start) + 1 if text.numbered else None
            finding = Finding(text.place, line, match.kind)
            if finding.where in kernel.allowed_secrets or _has_pragma(text, match.start):
                continue
            if not (known and text.is_derived):
                findings[finding] = None
    return list(findings)


def own_credentials(environment: Mapping[str, str], home: Path, project: Path) -> list[Credential]:
    """This machine's own: the Kaggle credentials, and what looks secret in the project's .env."""
    stated = environment.get("KAGGLE_CONFIG_DIR")
    folders = [home / ".kaggle", home / ".config" / "kaggle", *([Path(stated)] if stated else [])]
    found = [(name, environment.get(name, "")) for name in ("KAGGLE_KEY", "KAGGLE_API_TOKEN")]
    for folder in folders:
        for name in ("access_token", "access_token.txt"):
            found.append((name, _read(folder / name).strip()))
        for name in ("kaggle.json", "credentials.json"):
            found += [(name, value) for value in _json_secrets(_read(folder / name))]
    for match in _DOTENV_LINE.finditer(_read(project / ".env")):
        found.append((f".env: {match['name']}", match["value"].strip().strip("'\"")))
    unique = {value: origin for origin, value in reversed(found) if _looks_random(value)}
    return [Credential(origin, value) for value, origin in unique.items()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


_DOTENV_LINE = re.compile(
    r"^[ \t]*(?:export[ \t]+)?(?P<name>\w+)[ \t]*=(?P<value>[^\n#]*)", re.MULTILINE
)


def _json_secrets(text: str) -> Iterator[str]:
    try:
        document = json.loads(text)
    except ValueError:
        return
    for name, value in document.items() if isinstance(document, dict) else ():
        if isinstance(value, str) and ("key" in name or "token" in name):
            yield value


@dataclass(frozen=True)
class _Text:
    place: str
    content: str = field(repr=False)
    numbered: bool = True
    is_derived: bool = False
    """Whether it is made from other texts, in which the same secret was told already."""

    @cached_property
    def line_ends(self) -> list[int]:
        return [end.start() for end in re.finditer("\n", self.content)]


def _texts(kernel: Kernel) -> Iterator[_Text]:
    """All that is sent, by where it comes from; what is computed from it last."""
    for file in kernel.bundle.files:
        top, _, _ = file.path.partition("/")
        path = PurePosixPath(kernel.bundle.roots[top]) / file.path
        yield _Text(path.as_posix(), _as_text(file.content))
    for path_, source in kernel.templates.items():
        yield _Text(path_, source)
    for name, value in kernel.manifest.parameters.items():
        yield _Text(f"parameters.{name}", f"{name} = {value!r}", numbered=False)
    for name, value in {"pip": kernel.manifest.pip, **kernel.metadata.document}.items():
        yield _Text(name, f"{name} = {value!r}", numbered=False, is_derived=True)
    for cell in json.loads(kernel.notebook)["cells"]:
        (tag,) = cell["metadata"]["tags"]
        if tag != "archive" and not tag.startswith("module"):  # the files, seen already
            yield _Text(f'the cell "{tag}"', "".join(cell["source"]), is_derived=True)


def _as_text(content: bytes) -> str:
    """One character a byte, whatever it holds: all marks of secrets are ASCII."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("latin-1")


@dataclass(frozen=True)
class _Match:
    kind: str
    start: int
    secret: str = field(repr=False)


def _matches(text: str, own: Collection[Credential]) -> Iterator[_Match]:
    for credential in own:
        for form in {credential.value, credential.value.encode().decode("latin-1")}:
            for found in re.finditer(re.escape(form), text):
                kind = f"a credential of this machine ({credential.origin})"
                yield _Match(kind, found.start(), credential.value)
    for begin in range(0, max(len(text) - _OVERLAP, 1), _PIECE - _OVERLAP):
        piece = text[begin : begin + _PIECE]
        lowered = piece.lower()
        for rule in _RULES:
            if any(mark in lowered for mark in rule.marks):
                for match in rule.matches(piece):
                    yield _Match(match.kind, begin + match.start, match.secret)


def _has_pragma(text: _Text, start: int) -> bool:
    """Whether the line, or the one before it, ends with detect-secrets' allow comment."""
    content = text.content
    begin = content.rfind("\n", 0, start) + 1
    end = content.find("\n", start)
    end = end if end >= 0 else len(content)
    line = content[max(begin, end - _LONG_LINE) : end]
    above = max(begin - 1, 0)
    before = content[content.rfind("\n", 0, above) + 1 : above][:_LONG_LINE]
    if _PRAGMA not in line and _PRAGMA not in before:
        return False
    return is_line_allowlisted(text.place, line, CodeSnippet([before, line], 1, 1))


@dataclass(frozen=True)
class _Rule:
    kind: str
    marks: tuple[str, ...]
    """In small letters; one of them stands in every match."""

    patterns: tuple[re.Pattern[str], ...]
    judge: Callable[[str, str], bool]
    """Of the whole match and of its group, which is the secret."""

    def matches(self, piece: str) -> Iterator[_Match]:
        for pattern in self.patterns:
            for found in pattern.finditer(piece):
                secret = found["secret"] if "secret" in pattern.groupindex else found[0]
                if not _is_placeholder(secret) and self.judge(found[0], secret):
                    start = found.start("secret" if "secret" in pattern.groupindex else 0)
                    # Of a private key the header is matched, and its body only looked at.
                    yield _Match(self.kind, start if start < found.end() else found.start(), secret)


def _library(detector: RegexBasedDetector, *marks: str, kind: str = "") -> _Rule:
    """A rule of detect-secrets. Its own judgement is asked too: a JWT must really be one."""
    named = kind or detector.secret_type
    article = "an" if named[0] in "AO" else "a"

    def judge(whole: str, _: str) -> bool:
        return any(True for _ in detector.analyze_string(whole))

    return _Rule(f"{article} {named}", marks, tuple(detector.denylist), judge)


def _own(kind: str, marks: str, pattern: str, *, random: bool = False) -> _Rule:
    """A rule of ours; `random`: what it names may be a word as well, and is judged by its looks."""

    def judge(_: str, secret: str) -> bool:
        return _looks_random(secret) if random else True

    return _Rule(kind, tuple(marks.split()), (re.compile(pattern),), judge)


class _BasicAuth(BasicAuthDetector):
    """`user:password@` stands in every other docstring: only what is no word is a password."""

    def analyze_string(self, string: str) -> Iterator[str]:  # type: ignore[override]
        yield from filter(_looks_random, super().analyze_string(string))


_SEPARATORS = re.compile(r"[\s\-_./:,;@]+")
_WORD = re.compile(r"[A-Z]*[a-z]*(?:[A-Z][a-z]+)*\d{0,4}")
_PLACEHOLDER = re.compile(
    r"example|placeholder|dummy|changeme|xxxxx|\*\*\*|your[_-]|<|[{}]|%\(|(.)\1{7}",
    re.IGNORECASE,
)


def _is_placeholder(text: str) -> bool:
    return bool(_PLACEHOLDER.search(text)) or is_sequential_string(text)


def _looks_random(text: str) -> bool:
    """No words, no number, no name; without a digit it must be long to be told from a name."""
    return (
        len(text) >= (_SHORTEST if any(letter.isdigit() for letter in text) else _LONG)
        and any(letter.isalpha() for letter in text)
        and not all(_WORD.fullmatch(part) for part in _SEPARATORS.split(text))
        and "://" not in text
        and not _is_placeholder(text)
        and not is_templated_secret(text)
        and not is_potential_uuid(text)
    )


_NAME = r"(?:passw(?:or)?d|passphrase|secret|token|api_?key|access_?key|auth_?key|account_?key)"
_ASSIGNED = (
    rf"(?i:{_NAME}[\w-]{{0,20}}[\"']?[ \t]{{0,20}}\]?[ \t]{{0,20}}(?:=>|:=|=|:)[ \t]{{0,20}})"
)

_RULES = (
    _own("a Kaggle API token", "kgat_", r"\bKGAT_[A-Za-z0-9_-]{16,}"),
    _own(
        "a Kaggle API key (kaggle.json)",
        "username",
        r"[\"']username[\"']\s{0,40}:\s{0,40}[\"'][^\"'\n]{1,80}[\"']\s{0,40},\s{0,40}"
        r"[\"']key[\"']\s{0,40}:\s{0,40}[\"'](?P<secret>[0-9a-f]{32})[\"']",
    ),
    _own(
        "a Kaggle API key (kaggle.json)",
        "username",
        r"[\"']key[\"']\s{0,40}:\s{0,40}[\"'](?P<secret>[0-9a-f]{32})[\"']\s{0,40},\s{0,40}"
        r"[\"']username[\"']\s{0,40}:",
    ),
    _own(
        "a Kaggle API key",
        "kaggle",
        r"(?i:kaggle_?(?:api_?)?key)[\"'\]\s:=,(]{1,20}(?P<secret>[0-9a-f]{32})\b",
    ),
    _own(
        "a private key",
        "private",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
        r"(?=[\s\S]{0,300}?(?P<secret>[A-Za-z0-9+/]{40}))",
    ),
    _own("a private key", "putty-user", r"PuTTY-User-Key-File-\d: \S"),
    _own("a GitHub Token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{36,}"),
    _own("a Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),
    _own("an Anthropic key", "sk-ant-", r"\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{32,}"),
    _own(
        "an OpenAI Token",
        "sk-",
        r"(?<![\w-])sk-(?:[A-Za-z0-9]{48}\b|(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}"
        r"|[A-Za-z0-9_-]{20,100}T3BlbkFJ[A-Za-z0-9]{20})",
    ),
    _own("a Google API key", "aiza", r"(?<![\w/+])AIza[A-Za-z0-9_-]{35}(?![\w/+])"),
    _own(
        "a Weights & Biases key",
        "wandb",
        r"(?i:wandb_api_key|wandb\.login)[^\n]{0,40}?(?<![\w/+])(?P<secret>[0-9a-f]{40})\b",
    ),
    _own("an Azure client secret", "q~", r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{31,34}(?![\w~.-])"),
    _own(
        "an NPM token",
        "npm_ _authtoken",
        r"\bnpm_[A-Za-z0-9]{36}\b|_authToken\s{0,9}=\s{0,9}[A-Fa-f0-9]{8}-[A-Fa-f0-9-]{27}",
    ),
    _own(
        "a Discord webhook",
        "discord",
        r"discord(?:app)?\.com/api/webhooks/\d{10,}/[\w-]{60,}",
    ),
    _own(
        "a password as in .netrc",
        "machine",
        r"\bmachine\s{1,9}\S{1,200}\s{1,9}login\s{1,9}\S{1,200}\s{1,9}"
        r"password\s{1,9}(?P<secret>\S{1,200})",
        random=True,
    ),
    _library(AWSKeyDetector(), "akia", "asia", "a3t", "abia", "acca", "aws"),
    _library(AzureStorageKeyDetector(), "accountkey"),
    _library(_BasicAuth(), "://", kind="password in an address"),
    _library(DiscordBotTokenDetector(), "."),
    _library(GitHubTokenDetector(), "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    _library(GitLabTokenDetector(), "gl", "gr1348941"),
    _Rule(
        "a JSON Web Token",  # the library's own pattern takes 10 s for a megabyte of "eyJ"
        ("eyj",),
        (re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]*)?"),),
        lambda whole, _: JwtTokenDetector.is_formally_valid(whole),
    ),
    _library(MailchimpDetector(), "-us"),
    _library(PypiTokenDetector(), "pypi-"),
    _library(SendGridDetector(), "sg."),
    _library(SlackDetector(), "xox", "hooks.slack.com"),
    _library(SquareOAuthDetector(), "sq0csp-"),
    _library(StripeDetector(), "sk_live", "rk_live"),
    _library(TelegramBotTokenDetector(), ":"),
    _own(
        "a token in a header",
        "bearer",
        r"(?i:bearer)[ \t]{1,4}(?P<secret>[A-Za-z0-9._~+/-]{20,500}=*)",
        random=True,
    ),
    _own(
        "a password or key by its name",
        "passw passphrase secret token key",
        _ASSIGNED + r"(?P<quote>[\"'])(?P<secret>[^\s\"'\\]{8,500})(?P=quote)",
        random=True,
    ),
    _own(
        "a password or key by its name",
        "passw passphrase secret token key",
        rf"(?m)^[ \t]{{0,20}}(?:export )?[\w.-]{{0,60}}{_ASSIGNED}"
        r"(?P<secret>[A-Za-z0-9+/_~!%^*-]{16,500}=*)[ \t\r]*$",
        random=True,
    ),
)
