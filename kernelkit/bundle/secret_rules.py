"""The rules by which `secrets` recognizes keys, tokens and passwords.

Where the form of a secret is well known, the rules are those of detect-secrets (Yelp). The rules
here add what it lacks, Kaggle's credentials first of all, and replace those that take quadratic
time or report ordinary code. Only the rules of detect-secrets are used: its verification of a
secret with its issuer is never called, so nothing goes over the network. No rule uses entropy
alone, which takes images and hashes in base64 for secrets.

Importing this module takes about 0.1 s, so `secrets` does it only to scan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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

_PIECE = 16_384  # characters searched at once: some rules take quadratic time
_OVERLAP = 4_096  # characters: longer than any token, so that none is cut between two pieces
_SHORTEST = 8  # characters; shorter passwords are also words
_LONG = 12  # characters, for text that has only letters


@dataclass(frozen=True)
class SecretMatch:
    """A secret in a text."""

    kind: str
    """With its article: "an AWS Access Key"."""

    start: int
    """The index of its first character."""

    secret: str = field(repr=False)


def matches(text: str) -> Iterator[SecretMatch]:
    """Every match of every rule."""
    for begin in range(0, max(len(text) - _OVERLAP, 1), _PIECE - _OVERLAP):
        piece = text[begin : begin + _PIECE]
        lowered = piece.lower()
        for rule in _RULES:
            if any(mark in lowered for mark in rule.marks):
                for match in rule.matches(piece):
                    yield SecretMatch(match.kind, begin + match.start, match.secret)


@dataclass(frozen=True)
class _Rule:
    kind: str
    marks: tuple[str, ...]
    """In lower case; every match contains one of them."""

    patterns: tuple[re.Pattern[str], ...]
    judge: Callable[[str, str], bool]
    """Decides by the whole match and by its group, which is the secret."""

    def matches(self, piece: str) -> Iterator[SecretMatch]:
        for pattern in self.patterns:
            for found in pattern.finditer(piece):
                secret = found["secret"] if "secret" in pattern.groupindex else found[0]
                if not _is_placeholder(secret) and self.judge(found[0], secret):
                    start = found.start("secret" if "secret" in pattern.groupindex else 0)
                    # A match of a private key is its header; its body is only a lookahead.
                    yield SecretMatch(
                        self.kind, start if start < found.end() else found.start(), secret
                    )


def _library(detector: RegexBasedDetector, *marks: str, kind: str = "") -> _Rule:
    """A rule of detect-secrets, which also checks each match itself."""
    named = kind or detector.secret_type
    article = "an" if named[0] in "AO" else "a"

    def judge(whole: str, _: str) -> bool:
        return any(True for _ in detector.analyze_string(whole))

    return _Rule(f"{article} {named}", marks, tuple(detector.denylist), judge)


def _own(kind: str, marks: str, pattern: str, *, random: bool = False) -> _Rule:
    """A rule of kernelkit. With `random`, a match counts only if it does not look like words."""

    def judge(_: str, secret: str) -> bool:
        return looks_random(secret) if random else True

    return _Rule(kind, tuple(marks.split()), (re.compile(pattern),), judge)


class _BasicAuth(BasicAuthDetector):
    """Many docstrings contain `user:password@`: a word is not a password."""

    def analyze_string(self, string: str) -> Iterator[str]:  # type: ignore[override]
        yield from filter(looks_random, super().analyze_string(string))


_SEPARATORS = re.compile(r"[\s\-_./:,;@]+")
_WORD = re.compile(r"[A-Z]*[a-z]*(?:[A-Z][a-z]+)*\d{0,4}")
_PLACEHOLDER = re.compile(
    r"example|placeholder|dummy|changeme|xxxxx|\*\*\*|your[_-]|<|[{}]|%\(|(.)\1{7}",
    re.IGNORECASE,
)


def _is_placeholder(text: str) -> bool:
    return bool(_PLACEHOLDER.search(text)) or is_sequential_string(text)


def looks_random(text: str) -> bool:
    """Whether a text is not words, a number or a name; without a digit it must be long."""
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
        "a JSON Web Token",  # the library's pattern takes 10 s for a megabyte of "eyJ"
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
