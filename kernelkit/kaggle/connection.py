"""The SDK's client as one account: its sessions, their timeouts, and where they may go.

`kagglesdk` is used rather than `kaggle`: importing the latter authenticates, and prints.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import tenacity
from kagglesdk import kaggle_env
from kagglesdk.kaggle_client import KaggleClient
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.adapters import HTTPAdapter

from kernelkit.errors import CredentialsError, RefusedError
from kernelkit.kaggle.answers import one_attempt, retrying, words

CONNECT_SECONDS = 5
READ_SECONDS = 60  # a push of 900 kB is answered after several seconds

T = TypeVar("T")

Listener = Callable[[requests.Response, bool], None]
"""Told of every answer, those of redirections too, and whether its body is left to be streamed."""


@dataclass(frozen=True)
class Timeouts:
    """How long Kaggle is given, in seconds, and the clock by which it is."""

    connect: float = CONNECT_SECONDS
    read: float = READ_SECONDS
    """Silence of one call, before it counts as lost."""

    retry: float = 20
    """No attempt of a reading call begins later than this after the first: with the two timeouts
    of a connection under 100 s in all."""

    grace: float = 120
    """After a push Kaggle may answer 403, 404 or with the version before [A]."""

    outage: float = 600
    """A watch of hours outlives a restart of Kaggle's, or a train's tunnel."""

    stream: float = 600
    """Of one live log, until the status is asked again: not every stream tells its end."""

    first_pause: float = 0.5
    longest_pause: float = 10.0
    """Between two questions for the status."""

    quota: float = 300
    """Between two questions for the quota."""

    cancelling: float = 60
    """Until a session that is asked to end must have."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def pauses(self) -> Iterator[float]:
        """Growing ones."""
        pause = self.first_pause
        while True:
            yield pause
            pause = min(pause * 1.5, self.longest_pause)


@dataclass(frozen=True)
class Credentials:
    """Who calls. Either a key or a token; `origin` says where they were found."""

    username: str
    origin: str
    key: str | None = None
    token: str | None = None


class Connection:
    """A connection as one account; `endpoint` is None for the real Kaggle.

    With an endpoint nothing leaves this machine: proxies are ignored, other hosts are refused.
    `renew` finds the account's credentials anew: a watch of hours outlives a token.
    """

    def __init__(
        self,
        credentials: Credentials,
        endpoint: str | None = None,
        renew: Callable[[], Credentials | None] = lambda: None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._listener: Listener | None = None
        self.credentials = credentials
        self.endpoint = endpoint_of(endpoint)
        self.timeouts = timeouts or Timeouts()
        self._loopback_only = endpoint is not None
        self.sdk = open_sdk(endpoint, self.timeouts)
        self.files = self.file_session()
        """For addresses that carry their own permission: never sent our credentials."""
        self._renew = renew
        self._sign_in(credentials)

    def listen(self, listener: Listener | None) -> None:
        """Tell `listener` of every answer that comes from here on; None tells nobody."""
        self._listener = listener
        for session in (self.session, self.files):
            _attach(session, listener)

    def file_session(self) -> requests.Session:
        """A session like `files`: each thread needs its own."""
        session = requests.Session()
        _guard(session, self.timeouts, loopback_only=self._loopback_only)
        _attach(session, self._listener)
        return session

    @property
    def session(self) -> requests.Session:
        """The signed-in session, for what the SDK has no call for."""
        session = self.sdk.http_client()._session
        assert isinstance(session, requests.Session)
        return session

    @property
    def web(self) -> str:
        """Where a person looks at kernels."""
        real = str(kaggle_env.get_endpoint(kaggle_env.KaggleEnv.PROD))
        return "https://www.kaggle.com" if self.endpoint == real else self.endpoint

    @property
    def api(self) -> str:
        """The base of all addresses, by the SDK's own rule."""
        return str(self.sdk.http_client()._get_request_url("", "")).removesuffix("/v1//")

    def read(self, what: str, call: Callable[[], T]) -> T:
        """A call that changes nothing, retried while the fault may pass."""

        def attempt() -> T:
            with words(what):
                return call()

        stop = tenacity.stop_before_delay(self.timeouts.retry)
        return self._renewing(lambda: retrying(stop)(attempt))

    def once(self, what: str, call: Callable[[], T]) -> T:
        """A call that must not be sent twice; one that is refused for its credentials was not.

        Raises:
            AnswerLostError: it was sent, and no usable answer came.
        """

        def attempt() -> T:
            with one_attempt(what):
                return call()

        return self._renewing(attempt)

    def _renewing(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except CredentialsError:
            renewed = self._renew()
            if renewed is None or renewed.username != self.credentials.username:
                raise
            self._sign_in(renewed)
            return call()

    def _sign_in(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.session.auth = (
            KaggleHttpClient.BearerAuth(credentials.token)
            if credentials.token
            else (credentials.username, credentials.key or "")
        )


def endpoint_of(endpoint: str | None) -> str:
    """The address that runs are recorded with; None is the real Kaggle."""
    return endpoint or str(kaggle_env.get_endpoint(kaggle_env.KaggleEnv.PROD))


def open_sdk(endpoint: str | None, timeouts: Timeouts | None = None) -> KaggleClient:
    """The SDK's client without credentials; of a local Kaggle where an endpoint is given."""
    if endpoint is None:
        client = KaggleClient(env=kaggle_env.KaggleEnv.PROD)
    else:
        client = KaggleClient(env=kaggle_env.KaggleEnv.TEST)
        client.http_client()._endpoint = endpoint
        url = client.http_client()._get_request_url("service", "Method")
        assert _on_this_machine(url), url
    client.http_client()._signed_in = False  # keeps it from credentials that are not ours to use
    client.http_client()._init_session()
    local = endpoint is not None
    _guard(client.http_client()._session, timeouts or Timeouts(), loopback_only=local)
    return client


def _guard(session: requests.Session, timeouts: Timeouts, *, loopback_only: bool) -> None:
    session.trust_env = not loopback_only
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(timeouts, loopback_only))


def _attach(session: requests.Session, listener: Listener | None) -> None:
    for adapter in session.adapters.values():
        if isinstance(adapter, _Adapter):
            adapter.listener = listener


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Adapter(HTTPAdapter):
    """Gives every request a timeout, and keeps a rehearsal on this machine."""

    def __init__(self, timeouts: Timeouts, loopback_only: bool) -> None:
        super().__init__()
        self._timeouts = (timeouts.connect, timeouts.read)
        self._loopback_only = loopback_only
        self.listener: Listener | None = None

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self._loopback_only and not _on_this_machine(request.url):
            raise RefusedError(f"a local Kaggle pointed at {request.url}, which is elsewhere")
        kwargs["timeout"] = kwargs.get("timeout") or self._timeouts
        answer = super().send(request, *args, **kwargs)
        if self.listener is not None:
            self.listener(answer, bool(args[0] if args else kwargs.get("stream")))
        return answer
