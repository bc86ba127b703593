"""Whose account this is: looked up where the official client would look.

Each credential is stripped and checked as it is read. A stray character inside one would otherwise
reach an HTTP library, which quotes the whole header in its error.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from kagglesdk.kaggle_creds import KaggleCredentials
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

from kernelkit.errors import CredentialsError
from kernelkit.kaggle.answers import TOKEN_PAGE, as_flag, as_text, calling
from kernelkit.kaggle.connection import Connection, open_sdk
from kernelkit.kaggle.types import Credentials, Timeouts
from kernelkit.storage import decoded

LOCAL_CREDENTIALS = ("rehearsal", "local")  # sent to a local Kaggle if the environment sets none
KEY_FILE_BYTES = 1 << 16  # a login has 1 kB

_SENDABLE = re.compile(r"[!#-&(-~]+")  # ASCII without spaces and quotes
_USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOOKS_LIKE_A_KEY = re.compile(r"[0-9a-f]{32}|KGAT_.*")


def find_credentials(
    endpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    local_user: str | None = None,
    *,
    renew: bool = False,
) -> Credentials:
    """The credentials that the official client would use.

    For a local Kaggle only the environment counts, never a file. If it sets none, `local_user` is
    the account: a local Kaggle accepts any. `renew` requests a new access token if the login has
    a refresh token.

    Raises:
        CredentialsError: there are none, they cannot be sent, or Kaggle does not know them.
        UnreachableError: Kaggle did not say whose token it is.
    """
    if endpoint is not None:
        return _local_credentials(endpoint, environment, local_user)
    token, origin = _token(environment)
    if token:
        return _introspected(token, origin, None, environment)
    name, key = _stated_key(environment)
    problem = ""
    if not (name and key):
        stored, problem = _stored_key(environment)
        name, key = name or stored.get("username", ""), key or stored.get("key", "")
    if name and key:
        return Credentials(name, "username and key", key=key)
    return stored_login(None, renew=renew, problem=problem)


def sendable(value: str, origin: str) -> str:
    """A key or token without the blanks around it; empty if nothing is left.

    Raises:
        CredentialsError: it contains a character that no credential has; the message does not
            contain the credential.
    """
    stripped = _stripped(value)
    if stripped and not _SENDABLE.fullmatch(stripped):
        position, character = next(
            (n, c) for n, c in enumerate(stripped, 1) if not _SENDABLE.fullmatch(c)
        )
        raise CredentialsError(
            f"the credential in {origin} cannot be used: its character {position} of "
            f"{len(stripped)} is {_described(character)}",
            "Copy it again, whole and without quotes. A new one: " + TOKEN_PAGE,
        )
    return stripped


def account_name(value: str, origin: str) -> str:
    """The name of an account without the blanks around it; empty if nothing is left.

    Raises:
        CredentialsError: it is not a name, perhaps a key; the message does not contain it.
    """
    stripped = _stripped(value)
    if _LOOKS_LIKE_A_KEY.fullmatch(stripped):
        raise CredentialsError(
            f"the username in {origin} looks like a key or token",
            "Write the name of the account there, and the key into KAGGLE_KEY.",
        )
    if stripped and not _USERNAME.fullmatch(stripped):
        raise CredentialsError(
            f"the username in {origin} is not the name of a Kaggle account",
            "It has letters, digits and dashes only: see the address of your profile.",
        )
    return stripped


def _stripped(value: str) -> str:
    """Without whitespace, line ends, byte-order marks and other invisible characters around it."""
    blank = [unicodedata.category(one) in ("Cc", "Cf", "Zs", "Zl", "Zp") for one in value]
    if all(blank):
        return ""
    return value[blank.index(False) : len(value) - blank[::-1].index(False)]


def _described(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip()


def _stated_key(environment: Mapping[str, str]) -> tuple[str, str]:
    return (
        account_name(environment.get("KAGGLE_USERNAME", ""), "KAGGLE_USERNAME"),
        sendable(environment.get("KAGGLE_KEY", ""), "KAGGLE_KEY"),
    )


def _token(environment: Mapping[str, str]) -> tuple[str, str]:
    """An access token and where it was found, in the order of the official client."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environment and "KAGGLE_DATA_PROXY_URL" in environment:
        path = environment.get("KAGGLE_API_V1_TOKEN")  # inside a Kaggle notebook
        if path and (found := _file_token(Path(path), "KAGGLE_API_V1_TOKEN")):
            return found, "KAGGLE_API_V1_TOKEN"
    if found := _environment_token(environment):
        return found, "KAGGLE_API_TOKEN"
    for name in ("access_token", "access_token.txt"):
        path_of_token = Path.home() / ".kaggle" / name
        if found := _file_token(path_of_token, str(path_of_token)):
            return found, str(path_of_token)
    return "", ""


def _environment_token(environment: Mapping[str, str]) -> str:
    """KAGGLE_API_TOKEN is a token, or the path of a file that contains one."""
    value = environment.get("KAGGLE_API_TOKEN", "")
    try:
        is_file = bool(value.strip()) and Path(value).is_file()
    except (OSError, ValueError):  # too long for a path
        is_file = False
    if is_file:
        return _file_token(Path(value), "the file that KAGGLE_API_TOKEN names")
    return sendable(value, "KAGGLE_API_TOKEN")


def _file_token(path: Path, origin: str) -> str:
    if not path.is_file():
        return ""
    text, problem = _file_text(path)
    if problem:
        raise CredentialsError(
            f"the token in {origin} cannot be used: the file {problem}",
            "Write the token into it as plain text. A new one: " + TOKEN_PAGE,
        )
    return sendable(text, origin)


def _file_text(path: Path) -> tuple[str, str]:
    """The text of a file, or what is wrong with it; never both."""
    try:
        with path.open("rb") as stream:
            data = stream.read(KEY_FILE_BYTES + 1)
        if len(data) > KEY_FILE_BYTES:
            return "", "is too large"
        return decoded(data), ""
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"
    except ValueError:
        return "", "is not text in UTF-8"


def _file_document(path: Path) -> tuple[dict[str, str], str]:
    """The texts of a JSON object in a file, or what is wrong with it, without its content."""
    text, problem = _file_text(path)
    if problem:
        return {}, problem
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, f"is not valid JSON (line {error.lineno}, column {error.colno})"
    except (ValueError, RecursionError):
        return {}, "is not valid JSON"
    if not isinstance(document, dict):
        return {}, "is not a JSON object"
    return {key: value for key, value in document.items() if isinstance(value, str)}, ""


def _local_credentials(
    endpoint: str, environment: Mapping[str, str], local_user: str | None
) -> Credentials:
    token = _environment_token(environment)
    if token:
        return _introspected(token, "KAGGLE_API_TOKEN", endpoint, environment)
    name, key = _stated_key(environment)
    return Credentials(
        name or local_user or LOCAL_CREDENTIALS[0],
        "for the local Kaggle",
        key=key or LOCAL_CREDENTIALS[1],
    )


def _introspected(
    token: str, origin: str, endpoint: str | None, environment: Mapping[str, str]
) -> Credentials:
    """A token does not contain the name of its owner, so ask Kaggle."""
    timeouts = Timeouts.of(environment)
    asking = Connection(Credentials("", origin, token=token), endpoint, timeouts=timeouts)
    request = IntrospectTokenRequest()
    request.token = token
    oauth = asking.sdk.security.oauth_client

    def owner() -> str:
        answer = oauth.introspect_token(request)
        return as_text(answer.username) if as_flag(answer.active) else ""

    name = asking.read("the token's owner", owner)
    if not name:
        raise CredentialsError(
            f"the token in {origin} is invalid or expired", "Create a new one: " + TOKEN_PAGE
        )
    return Credentials(name, origin, token=token)


def _stored_key(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """kaggle.json, where the official client looks for it; or what is wrong with it."""
    problem = ""
    for folder in _key_folders(environment):
        path = folder / "kaggle.json"
        if not path.is_file():
            continue
        content, wrong = _file_document(path)
        if wrong:
            problem = problem or f"{path} {wrong}"
            continue
        name = account_name(content.get("username", ""), str(path))
        key = sendable(content.get("key", ""), str(path))
        return {"username": name, "key": key}, ""
    return {}, problem


def _key_folders(environment: Mapping[str, str]) -> list[Path]:
    stated = environment.get("KAGGLE_CONFIG_DIR")
    home = Path.home()
    return [Path(stated)] if stated else [home / ".kaggle", home / ".config" / "kaggle"]


def key_files(environment: Mapping[str, str]) -> list[Path]:
    """The files on this machine that contain credentials, used or not."""
    login = Path.home() / ".kaggle"
    kept = [login / name for name in ("access_token", "access_token.txt", "credentials.json")]
    kept += [folder / "kaggle.json" for folder in _key_folders(environment)]
    return [path for path in kept if path.is_file()]


def stored_login(endpoint: str | None, *, renew: bool = False, problem: str = "") -> Credentials:
    """The login that `kaggle auth login` stored, with a new access token if the old one expired.

    `problem` is what is wrong with credentials that were found elsewhere.

    Raises:
        CredentialsError: there is none, or Kaggle does not renew it.
    """
    path = Path.home() / ".kaggle" / "credentials.json"
    content, wrong = _file_document(path) if path.is_file() else ({}, "")
    if wrong or (content and not content.get("refresh_token")):
        raise _bad_login(wrong or "has no refresh_token")
    if not content:
        raise CredentialsError(
            f"no usable Kaggle credentials: {problem}"
            if problem
            else "no Kaggle credentials on this machine",
            f"Create a token at {TOKEN_PAGE} Then set KAGGLE_API_TOKEN, or put it into "
            "~/.kaggle/access_token.",
        )
    for key in ("refresh_token", "access_token"):
        sendable(content.get(key, ""), str(path))
    try:
        stored = KaggleCredentials.load(client=open_sdk(endpoint))
    except Exception:  # whatever the SDK says about it may quote the file
        stored = None
    if stored is None:
        raise _bad_login("has a value that the official client cannot read")
    with calling("the access token"):
        if renew:  # the SDK uses a token for half an hour after its end
            stored.refresh_access_token()
        token = sendable(as_text(stored.get_access_token()), str(path))
        name = account_name(as_text(stored.get_username()), str(path))
    return Credentials(name, "kaggle auth login", token=token)


def _bad_login(problem: str) -> CredentialsError:
    return CredentialsError(
        f"~/.kaggle/credentials.json cannot be read: it {problem}",
        "Log in again: kaggle auth login.",
    )
