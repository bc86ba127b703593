"""Whose account this is: looked up where the official client would look."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kagglesdk import kaggle_env
from kagglesdk.kaggle_creds import KaggleCredentials
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

from kernelkit.errors import CredentialsError
from kernelkit.kaggle.answers import TOKEN_PAGE, calling
from kernelkit.kaggle.connection import Connection, open_sdk
from kernelkit.kaggle.types import Credentials

LOCAL_CREDENTIALS = ("rehearsal", "local")  # sent to a local Kaggle if the environment sets none


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
        CredentialsError: there are none, or Kaggle does not know them.
        UnreachableError: Kaggle did not say whose token it is.
    """
    if endpoint is not None:
        return _local_credentials(endpoint, environment, local_user)
    token, origin = kaggle_env.get_access_token_from_env()
    if token:
        return _introspected(token, str(origin), None)
    name, key = environment.get("KAGGLE_USERNAME"), environment.get("KAGGLE_KEY")
    stored = _stored_key(environment)
    name, key = name or stored.get("username"), key or stored.get("key")
    if name and key:
        return Credentials(name, "username and key", key=key)
    return stored_login(None, renew=renew)


def _local_credentials(
    endpoint: str, environment: Mapping[str, str], local_user: str | None
) -> Credentials:
    token = environment.get("KAGGLE_API_TOKEN")
    if token:
        return _introspected(token, "KAGGLE_API_TOKEN", endpoint)
    name, key = LOCAL_CREDENTIALS
    return Credentials(
        environment.get("KAGGLE_USERNAME") or local_user or name,
        "for the local Kaggle",
        key=environment.get("KAGGLE_KEY", key),
    )


def _introspected(token: str, origin: str, endpoint: str | None) -> Credentials:
    """A token does not contain the name of its owner, so ask Kaggle."""
    asking = Connection(Credentials("", origin, token=token), endpoint)
    request = IntrospectTokenRequest()
    request.token = token
    oauth = asking.sdk.security.oauth_client
    answer = asking.read("the token's owner", lambda: oauth.introspect_token(request))
    if not answer.active or not answer.username:
        raise CredentialsError(
            f"the token in {origin} is invalid or expired", "Create a new one: " + TOKEN_PAGE
        )
    return Credentials(answer.username, origin, token=token)


def _stored_key(environment: Mapping[str, str]) -> dict[str, str]:
    """kaggle.json, where the official client looks for it; empty if there is none."""
    for folder in _key_folders(environment):
        try:
            content = json.loads((folder / "kaggle.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return {key: value for key, value in content.items() if isinstance(value, str)}
    return {}


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


def stored_login(endpoint: str | None, *, renew: bool = False) -> Credentials:
    """The login that `kaggle auth login` stored, with a new access token if the old one expired.

    Raises:
        CredentialsError: there is none, or Kaggle does not renew it.
    """
    try:
        stored = KaggleCredentials.load(client=open_sdk(endpoint))
    except (ValueError, TypeError, AttributeError) as error:
        raise CredentialsError(
            f"~/.kaggle/credentials.json cannot be read: {error}",
            "Log in again: kaggle auth login.",
        ) from error
    if stored is None:
        raise CredentialsError(
            "no Kaggle credentials on this machine",
            f"Create a token at {TOKEN_PAGE} Then set KAGGLE_API_TOKEN, or put it into "
            "~/.kaggle/access_token.",
        )
    with calling("the access token"):
        if renew:  # the SDK uses a token for half an hour after its end
            stored.refresh_access_token()
        token = stored.get_access_token()
    return Credentials(stored.get_username() or "", "kaggle auth login", token=token)
