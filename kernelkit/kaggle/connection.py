"""The SDK's client for one account: its sessions, their timeouts, and which hosts they may reach.

This uses `kagglesdk` and not `kaggle`, because importing `kaggle` authenticates and prints.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import requests
import tenacity
from kagglesdk import kaggle_env
from kagglesdk.kaggle_client import KaggleClient
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.adapters import HTTPAdapter
from urllib3.util import parse_url

from kernelkit.errors import (
    CapacityError,
    CredentialsError,
    DeadlineError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle.answers import EndlessAnswerError, calling, host_of, one_attempt, retrying
from kernelkit.kaggle.types import PRODUCTION, Credentials, Timeouts
from kernelkit.kaggle.waiting import read_body, within
from kernelkit.storage import human_size

T = TypeVar("T")

BODY_BYTES = 128 << 20  # of an answer in memory; a log of a long run has some MB
ERROR_BYTES = 1 << 16  # of an error: Kaggle's are short, those of proxies are pages

Listener = Callable[[requests.Response, bool], None]
"""Called with every response, also of redirections, and whether its body is still to be read."""


class Connection:
    """A connection as one account; `endpoint` is None for the real Kaggle.

    With an endpoint nothing leaves this machine: proxies are ignored and other hosts are refused.
    `renew` looks up the account's credentials again: a watch of hours outlives a token.
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
        self.endpoint = endpoint or PRODUCTION
        self.timeouts = timeouts or Timeouts()
        self._loopback_only = endpoint is not None
        self._deadline: float | None = None
        self.sdk = open_sdk(endpoint, self.timeouts)
        self.files = self.file_session()
        """For addresses that carry their own permission: it never sends the credentials."""
        self._renew = renew
        self._sign_in(credentials)

    def listen(self, listener: Listener | None) -> None:
        """Call `listener` with every response from now on; None stops that."""
        self._listener = listener
        for session in (self.session, self.files):
            _attach(session, listener)

    def file_session(self) -> requests.Session:
        """A session like `files`: each thread needs its own."""
        session = requests.Session()
        _guard(session, self.timeouts, loopback_only=self._loopback_only)
        _attach(session, self._listener)
        return session

    @contextmanager
    def ends_in(self, seconds: float | None) -> Iterator[None]:
        """Let no call and no pause in the block last longer than this; None does not limit them.

        A call that must not be sent twice is not begun any more, but is never cut off.

        Raises:
            DeadlineError: instead of an error that the deadline caused.
        """
        if seconds is None:
            yield
            return
        before, timeouts = self._deadline, self.timeouts
        deadline = self._deadline = time.monotonic() + seconds

        def sleep(pause: float) -> None:
            timeouts.sleep(max(0.0, min(pause, deadline - time.monotonic())))

        self.timeouts = replace(timeouts, sleep=sleep)
        try:
            yield
        except (UnreachableError, CapacityError) as error:
            if not self.is_late:
                raise
            raise DeadlineError(
                f"the deadline of {seconds:.0f} s passed. {error}",
                "Nothing is lost: run the same command again, or with a longer --deadline.",
            ) from error
        finally:
            self._deadline, self.timeouts = before, timeouts

    @property
    def is_late(self) -> bool:
        """Whether the deadline of `ends_in` has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def session(self) -> requests.Session:
        """The signed-in session, for what the SDK has no call for."""
        session = self.sdk.http_client()._session
        assert isinstance(session, requests.Session)
        return session

    @property
    def web(self) -> str:
        """The address of the web pages."""
        return "https://www.kaggle.com" if self.endpoint == PRODUCTION else self.endpoint

    @property
    def api(self) -> str:
        """The base of all API addresses, by the SDK's own rule."""
        return str(self.sdk.http_client()._get_request_url("", "")).removesuffix("/v1//")

    def read(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that changes nothing; retried while the failure may be temporary."""

        def attempt() -> T:
            with calling(what):
                return self.wait_for(call)

        out_of_time = tenacity.stop_before_delay(self.timeouts.retry)

        def stop(state: tenacity.RetryCallState) -> bool:
            return out_of_time(state) or self._too_late(state)

        return self._renewing(lambda: retrying(stop)(attempt))

    def require_upload_address(self, url: str) -> None:
        """Check where a file would be sent to, before a byte of it leaves.

        Raises:
            RefusedError: a local Kaggle names another machine, or Kaggle an address in the clear.
        """
        if self._loopback_only and not _on_this_machine(url):
            raise RefusedError(
                f"a local Kaggle names an upload address on another machine: {host_of(url)}",
                "Nothing was sent. Check --endpoint.",
            )
        if not self._loopback_only and not url.startswith("https://"):
            raise RefusedError(
                f"the upload address on {host_of(url)} is not encrypted", "Nothing was sent."
            )

    def wait_for(self, call: Callable[[], T]) -> T:
        """The result of a call that may last as long as it moves bytes, and until the deadline.

        Raises:
            EndlessAnswerError: it lasts longer.
        """
        return within(call, self.timeouts.connect + self.timeouts.read, self._deadline)

    def _too_late(self, state: tenacity.RetryCallState) -> bool:
        """Whether the next attempt would begin after the deadline."""
        return self._deadline is not None and (
            time.monotonic() + state.upcoming_sleep >= self._deadline
        )

    def once(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that must not be sent twice, except if its credentials were refused.

        Raises:
            AnswerLostError: it was sent, and no usable response came.
        """

        def attempt() -> T:
            if self.is_late:
                raise UnreachableError(f"{what} was not sent, because the time is up")
            with one_attempt(what):
                return within(call, self.timeouts.connect + self.timeouts.push)

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


def open_sdk(endpoint: str | None, timeouts: Timeouts | None = None) -> KaggleClient:
    """The SDK's client without credentials; with an endpoint, the client of a local Kaggle."""
    if endpoint is None:
        client = KaggleClient(env=kaggle_env.KaggleEnv.PROD)
    else:
        client = KaggleClient(env=kaggle_env.KaggleEnv.TEST)
        client.http_client()._endpoint = endpoint
        url = client.http_client()._get_request_url("service", "Method")
        assert _on_this_machine(url), url
    client.http_client()._signed_in = False  # so that it does not look for credentials itself
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
    try:
        host = (parse_url(url).host or "").strip("[]")  # as urllib3 itself reads it
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Adapter(HTTPAdapter):
    """Gives every request a timeout, and refuses to leave this machine in a rehearsal."""

    def __init__(self, timeouts: Timeouts, loopback_only: bool) -> None:
        super().__init__()
        self._timeouts = (timeouts.connect, timeouts.read)
        self._loopback_only = loopback_only
        self.listener: Listener | None = None

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self._loopback_only and not _on_this_machine(request.url):
            raise RefusedError(
                f"a local Kaggle redirected to another machine: {host_of(request.url)}"
            )
        kwargs["timeout"] = kwargs.get("timeout") or self._timeouts
        answer = super().send(request, *args, **kwargs)
        streamed = bool(args[0] if args else kwargs.get("stream")) and answer.status_code < 300
        if not streamed:
            most = BODY_BYTES if answer.status_code < 300 else ERROR_BYTES
            body = read_body(answer, most)
            if len(body) > most and answer.status_code < 300:
                raise EndlessAnswerError(f"the response is larger than {human_size(most)}")
            # what `requests` keeps of a body, which it would read without a limit
            answer._content, answer._content_consumed = body[:most], True
        if self.listener is not None:
            self.listener(answer, streamed)
        return answer
