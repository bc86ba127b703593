"""Credentials that expire during a command: a long watch outlives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from kernelkit.errors import CredentialsError
from kernelkit.kaggle.credentials import stored_login
from kernelkit.kaggle.kernels import Kaggle, connect
from kernelkit.kaggle.types import Credentials, Timeouts


@pytest.fixture
def expire(local_kaggle: str) -> Iterator[Callable[[], None]]:
    """The next request finds its token or key expired; the others are accepted."""
    faults = f"{local_kaggle}/emulator/faults"

    def now() -> None:
        reported = requests.post(faults, json=["expired-credentials,call=any"], timeout=10)
        assert reported.ok, reported.text

    yield now
    requests.delete(faults, timeout=10)


def login(token: str) -> Path:
    """The file that `kaggle auth login` writes."""
    path = Path.home() / ".kaggle" / "credentials.json"
    path.parent.mkdir(exist_ok=True)
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    content = {"refresh_token": "refresh", "access_token": token, "username": "rehearsal"}
    path.write_text(json.dumps({**content, "access_token_expiration": expires, "scopes": []}))
    return path


def test_a_login_is_renewed_with_its_refresh_token(
    local_kaggle: str, expire: Callable[[], None]
) -> None:
    path = login("old-token")
    kaggle = Kaggle(
        stored_login(local_kaggle), local_kaggle, lambda: stored_login(local_kaggle, renew=True)
    )
    kaggle.quota()
    expire()
    kaggle.quota()
    renewed = json.loads(path.read_text())["access_token"]
    assert renewed != "old-token"
    assert kaggle.credentials.token == renewed


def test_a_replaced_token_is_found(local_kaggle: str, expire: Callable[[], None]) -> None:
    environment = {"KAGGLE_API_TOKEN": "first"}
    kaggle = connect(local_kaggle, environment)
    kaggle.quota()
    expire()
    with pytest.raises(CredentialsError, match="invalid or expired"):
        kaggle.quota()
    environment["KAGGLE_API_TOKEN"] = "second"
    kaggle.quota()
    assert kaggle.credentials.token == "second"


def test_a_login_that_cannot_be_renewed_is_reported(
    local_kaggle: str, expire: Callable[[], None]
) -> None:
    kaggle = Kaggle(
        Credentials("ann", "the test", key="k"), local_kaggle, timeouts=Timeouts(retry=0)
    )
    expire()
    with pytest.raises(CredentialsError, match="does not accept the credentials"):
        kaggle.quota()
