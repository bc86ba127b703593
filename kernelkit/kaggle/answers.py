"""Failures of calls: each becomes a kernelkit error, or is retried.

The SDK sets no timeouts, retries nothing, and reports a refused push as a success.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity
import urllib3

from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    CredentialsError,
    KernelkitError,
    LocalError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    RefusedError,
    SessionCapError,
    UnreachableError,
)
from kernelkit.storage import one_line

MESSAGE_CHARACTERS = 2000  # of Kaggle's reason for a refusal
TOKEN_PAGE = "https://www.kaggle.com/settings, under API."

NOT_THE_API = (
    ArithmeticError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the SDK, urllib3 and the reading below raise on a response that is not the API's."""


class TransientError(UnreachableError):
    """A failure that may be temporary; retry after `retry_after` seconds if Kaggle says so."""

    retry_after: float | None = None


def retrying(stop: Callable[[tenacity.RetryCallState], bool]) -> tenacity.Retrying:
    """Attempts with growing pauses until `stop`; then the last error is raised.

    A pause is a little longer than Kaggle asks for, so that many clients do not return at once.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((TransientError, RateLimitedError)),
        stop=stop,
        wait=_pause,
        reraise=True,
    )


_GROWING = tenacity.wait_random_exponential(multiplier=0.5, max=4)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, TransientError | RateLimitedError) else None
    return _GROWING(state) + (asked or 0.0)


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Turn every failure of a call into a kernelkit error; `what` names what was requested."""
    try:
        yield
    except KernelkitError:
        raise
    except EndlessAnswerError as error:
        raise TransientError(f"{what}: {error}", "Check the network connection.") from error
    except requests.HTTPError as error:
        raise _from_response(what, error) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise TransientError(
            f"{what}: no answer from {_host(error)} ({type(error).__name__})",
            _connection_advice(error),
        ) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # urllib3's own error gets here if the body of a redirection cannot be read.
        raise TransientError(f"{what}: {_reason(error)}") from error
    except OSError as error:
        raise LocalError(f"{what}: {error.strerror or _reason(error)}") from error
    except NOT_THE_API as error:
        raise TransientError(f"{what}: the response is not the API's ({_reason(error)})") from error


class EndlessAnswerError(Exception):
    """An answer that takes too long or is too large; the message says which."""


class _WrongTypeError(TypeError):
    """A value in a response that is not of its type; the message names only the type."""


_REASONS = {
    "TooManyRedirects": "too many redirections",
    "InvalidHeader": "a header cannot be sent",
    "InvalidURL": "an address is not valid",
    "InvalidProxyURL": "the address of a proxy is not valid",
    "InvalidSchema": "the address of a proxy has a scheme that cannot be used",
    "JSONDecodeError": "not JSON",
}


def _reason(error: BaseException) -> str:
    """Why a call failed, without the error's own message.

    That may quote a header with the credentials, an address with its permission, or a request.
    """
    name = type(error).__name__
    return str(error) if isinstance(error, _WrongTypeError) else _REASONS.get(name, name)


def as_text(value: Any) -> str:
    """A text in a response, empty if it is left out; the SDK does not check types.

    Raises:
        TypeError: it is not a text.
    """
    if value is None or isinstance(value, str):
        return value or ""
    raise _WrongTypeError(f"a {type(value).__name__} is not a text")


def as_texts(value: Any) -> list[str]:
    """A list of texts, empty if it is left out.

    Raises:
        TypeError: it is not a list of texts.
    """
    if value is None or isinstance(value, list | tuple):
        return [as_text(item) for item in value or ()]
    raise _WrongTypeError(f"a {type(value).__name__} is not a list")


def as_int(value: Any) -> int:
    """A whole number, 0 if it is left out; protobuf writes numbers of 64 bits as text.

    Raises:
        TypeError, ValueError: it is not a whole number.
    """
    if isinstance(value, str):
        return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value or 0
    raise _WrongTypeError(f"a {type(value).__name__} is not a whole number")


def as_flag(value: Any) -> bool | None:
    """True or false, None if it is left out.

    Raises:
        TypeError: it is neither.
    """
    if value is None or isinstance(value, bool):
        return value
    raise _WrongTypeError(f"a {type(value).__name__} is neither true nor false")


@contextmanager
def one_attempt(what: str) -> Iterator[None]:
    """For calls that must not be sent twice: distinguish "never sent" from "perhaps accepted"."""
    try:
        with calling(what):
            yield
    except TransientError as error:
        if isinstance(error.__cause__, requests.ConnectTimeout) or _never_connected(error):
            raise UnreachableError(
                str(error),
                f"{error.next_step} Nothing was sent: run the same command again.",
            ) from error
        raise AnswerLostError(
            f"{error}. It may have been accepted",
            "Look at the kernel's page before you send anything again.",
        ) from error


def refusal(message: str) -> KernelkitError:
    """Kaggle's message as the error that it means."""
    message = one_line(message, MESSAGE_CHARACTERS)
    if lack := _lack_of_capacity(message):
        return lack
    lowered = message.lower()
    advice = (remedy for mark, remedy in REMEDIES if mark in lowered)
    return RefusedError(
        f"Kaggle refused: {message}", next(advice, "Fix what it names, then run the command again.")
    )


def _lack_of_capacity(message: str) -> KernelkitError | None:
    """The error of a message that means "not now", in any of its spellings."""
    words = " ".join(
        re.findall(r"[a-z]+|[0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", message).lower())
    )
    if _SUBMISSIONS.search(words):
        return CapacityError(f"Kaggle: {message}", "Submit again when the allowance is renewed.")
    is_other = _OTHER.search(words) is not None
    if _NO_HOURS.search(words) or (_QUOTA.search(words) and not is_other):
        return QuotaError(
            f"Kaggle: {message}",
            "Wait for the quota's refresh, or use a CPU or another machine_shape.",
        )
    if _NO_SESSION.search(words) or (_BUSY.search(words) and not is_other):
        return SessionCapError(
            f"Kaggle: {message}", "Wait until one of your runs has ended: `kernelkit push --wait`."
        )
    return None


_NO_HOURS = re.compile(r"\bno (?:\w+ )?quota\b|not enough (?:\w+ )?quota\b")
_NO_SESSION = re.compile(
    r"session count|maximum batch|toomanyassignments|too many (?:\w+ ){0,2}assignments"
    r"|precondition ?failed|failed ?precondition|resource ?exhausted"
    r"|^412\b|(?:status|code|error|http) 412\b"
)
"""Refusals for lack of capacity, in lower case and without punctuation.

One is known from many accounts [A], the others are those for which a CI on Kaggle waits [A].
"""

_QUOTA = re.compile(
    r"\bquota\b|\b(?:gpu|tpu|accelerator) (?:\w+ )?(?:limit|allowance)\b"
    r"|\b(?:used|spent) all (?:\w+ ){0,4}hours\b"
)
_BUSY = re.compile(
    r"(?:maximum|too many|already (?:have|has)|limit of) (?:\w+ ){0,4}sessions?\b|session limit"
    r"|(?:maximum|too many) (?:\w+ ){0,3}(?:concurrent|active|running|parallel)"
    r" (?:\w+ )?(?:notebooks|kernels|runs)\b"
    r"|no (?:\w+ )?(?:gpus?|tpus?|accelerators?|machines?|capacity) "
    r"(?:is |are )?(?:currently )?available"
    r"|\b(?:at|out of|insufficient|not enough|no) capacity\b|\bqueue is full\b"
    r"|\b(?:gpus?|tpus?|accelerators?|machines?)\b.*\b(?:in use|try again later)\b"
)
"""Other words for the same."""

_OTHER = re.compile(
    r"storage|\bdisk\b|\b(?:datasets?|models?|files?) quota|not found|does not exist|invalid"
    r"|unknown|already exists|must (?:not )?be\b|timeout|session (?:length|duration)"
)
"""Such a message is about something that waiting does not change."""

_SUBMISSIONS = re.compile(r"\bdaily (?:\w+ )?(?:submission|allowance)|submission allowance")

REMEDIES = (
    ("megabyte", "Run `kernelkit preflight`: it lists the largest files and what to do."),
    ("already exists", "Choose another id and title: another kernel of yours has this title."),
    ("title", "Make id and title agree, with 5 characters or more: `kernelkit preflight`."),
    ("slug", "Make id and title agree, with 5 characters or more: `kernelkit preflight`."),
    ("phone", "Verify the account: https://www.kaggle.com/settings."),
    ("rules", "Accept the competition's rules on its page, then push again."),
    ("still processing", "Wait until the dataset is ready, then push again."),
)
"""Words of a refusal, in lower case, and the next step."""


def _never_connected(error: BaseException) -> bool:
    """Whether urllib3 gave up before it had a connection: then nothing was sent."""
    cause = repr(error.__cause__)
    return "NewConnectionError" in cause or "NameResolution" in cause


def _host(error: requests.RequestException) -> str:
    return host_of(str(error.request.url)) if error.request is not None else "Kaggle"


def host_of(url: str) -> str:
    """Host and port of an address: the rest of it may be secret."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return "an invalid address"


def _connection_advice(error: requests.RequestException) -> str:
    """What to do if there is no response."""
    host, _, port = _host(error).partition(":")
    if host in ("127.0.0.1", "localhost", "[::1]"):
        return f"Start a local Kaggle there: `kernelkit emulator --port {port or 80}`."
    return "Check the network connection."


def _is_json(response: requests.Response | None) -> bool:
    return response is not None and "json" in response.headers.get("Content-Type", "")


def _from_response(what: str, error: requests.HTTPError) -> KernelkitError:
    code, message = _code_and_message(error)
    asked = None if error.response is None else retry_after(error.response)
    if code == 401:
        return CredentialsError(
            f"{what}: Kaggle does not accept the credentials ({message})",
            "Run `kernelkit doctor` to see which ones are used. A new token: " + TOKEN_PAGE,
        )
    lack = _lack_of_capacity(f"412 {message}" if code == 412 else message)
    if lack is not None and code != 429:
        return lack.with_message(f"{what}: Kaggle: {message} ({code})")
    if code in (403, 404):
        return NotFoundError(
            f"{what}: {message} ({code})", "Check the account: `kernelkit doctor` shows it."
        )
    if code == 429:
        limited = RateLimitedError(f"{what}: too many calls ({message})")
        limited.retry_after = asked
        pause = f"{limited.retry_after:.0f} s" if limited.retry_after else "some minutes"
        limited.next_step = f"Try again in {pause}."
        return limited
    if code == 501 and not _is_json(error.response):
        return UnreachableError(
            f"{what}: the server at {_host(error)} is not Kaggle ({message})",
            "Check --endpoint. `kernelkit emulator` starts a local Kaggle.",
        )
    if code == 501:
        return RefusedError(f"{what}: this Kaggle does not have the call ({message})")
    if code >= 500:
        transient = TransientError(
            f"{what}: Kaggle reports an error of its own ({code}: {message})"
        )
        transient.retry_after = asked
        return transient
    refused = refusal(message)
    return refused.with_message(f"{what}: {refused} ({code})")


def retry_after(response: requests.Response) -> float | None:
    """Seconds that the header Retry-After asks for, as a number or as a date; None without it."""
    stated = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", stated):
        return float(stated)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(stated).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _code_and_message(error: requests.HTTPError) -> tuple[int, str]:
    """Kaggle's JSON is more precise than the status line, which may even be 200."""
    response = error.response
    if response is None:
        return 500, "no reason given"
    try:
        body = response.json()
        return int(body["code"]), one_line(str(body.get("message", "")), MESSAGE_CHARACTERS)
    except NOT_THE_API:
        # Not the message of requests: it contains the address, which is secret for an upload.
        return response.status_code, response.reason or "no reason given"
