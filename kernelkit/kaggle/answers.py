"""Kaggle's answers in our words: every fault of a call becomes one error of ours, or is retried.

The SDK gives no call a timeout, retries none, and answers a refused push with success.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity
import urllib3

from kernelkit.errors import (
    AnswerLostError,
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

TOKEN_PAGE = "https://www.kaggle.com/settings, under API."

NOT_THE_API = (
    ArithmeticError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the SDK, urllib3 and our own reading raise on an answer that is none of the API's."""


class TransientError(UnreachableError):
    """A fault that may be gone at the next attempt, in `retry_after` seconds if Kaggle says so."""

    retry_after: float | None = None


def retrying(stop: Any) -> tenacity.Retrying:
    """Attempts with growing pauses until `stop`; then the last fault is raised.

    A pause is as long as Kaggle asks for, and a little more, so that many do not come back at once.
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
def words(what: str) -> Iterator[None]:
    """Turn every fault of a call into one of ours; `what` names what was asked for."""
    try:
        yield
    except KernelkitError:
        raise
    except requests.HTTPError as error:
        raise _from_answer(what, error) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise TransientError(
            f"{what}: no answer from {_host(error)} ({type(error).__name__})", _way_there(error)
        ) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # urllib3's own come through where a redirection's body cannot be read.
        raise TransientError(f"{what}: {error}") from error
    except OSError as error:
        raise LocalError(f"{what}: {error.strerror or error}") from error
    except NOT_THE_API as error:
        raise TransientError(f"{what}: an answer that is not the API's ({error!r})") from error


def as_text(value: Any) -> str:
    """A text of an answer, empty where it is left out; the SDK hands on whatever the JSON holds.

    Raises:
        TypeError: it is none.
    """
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{value!r:.80} where a text belongs")


def as_texts(value: Any) -> list[str]:
    """A list of texts, empty where it is left out.

    Raises:
        TypeError: it is none.
    """
    if value is None or isinstance(value, list | tuple):
        return [as_text(item) for item in value or ()]
    raise TypeError(f"{value!r:.80} where a list belongs")


def as_int(value: Any) -> int:
    """A whole number, 0 where it is left out; JSON writes one of 64 bits as text (protobuf).

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(value, str):
        return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value or 0
    raise TypeError(f"{value!r:.80} where a whole number belongs")


def as_flag(value: Any) -> bool | None:
    """Yes or no, None where it is left out.

    Raises:
        TypeError: it is neither.
    """
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(f"{value!r:.80} where true or false belongs")


@contextmanager
def one_attempt(what: str) -> Iterator[None]:
    """For calls that must not be sent twice: tells "never sent" from "perhaps taken"."""
    try:
        with words(what):
            yield
    except TransientError as error:
        if isinstance(error.__cause__, requests.ConnectTimeout) or _never_connected(error):
            raise UnreachableError(
                str(error),
                f"{error.next_step} Nothing was sent: the same command may be given again.",
            ) from error
        raise AnswerLostError(
            f"{error}. It may have been accepted all the same",
            "Look at the kernel's page before sending anything again.",
        ) from error


def refusal(words: str) -> KernelkitError:
    """Kaggle's own words as the error they mean."""
    lowered = words.lower()
    if "session count" in lowered or "maximum batch" in lowered:
        return SessionCapError(
            f"Kaggle: {words}", "Wait until one of your runs has ended: `kernelkit push --wait`."
        )
    if "quota" in lowered:
        return QuotaError(f"Kaggle: {words}", "Wait for the quota's refresh, or use a CPU.")
    advice = (remedy for mark, remedy in REMEDIES if mark in lowered)
    return RefusedError(
        f"Kaggle refused: {words}", next(advice, "Mend what it says, then give the command again.")
    )


REMEDIES = (
    ("megabyte", "`kernelkit preflight` names the largest files, and what can be done."),
    ("already exists", "Another kernel of yours has this title: choose another id and title."),
    ("title", "id and title must agree, with 5 characters or more: `kernelkit preflight`."),
    ("slug", "id and title must agree, with 5 characters or more: `kernelkit preflight`."),
    ("phone", "Verify the account: https://www.kaggle.com/settings."),
    ("rules", "Accept the competition's rules on its page, then push again."),
    ("still processing", "Wait until the dataset is ready, then push again."),
)
"""Words of a refusal, in small letters, and what to do about it."""


def _never_connected(error: BaseException) -> bool:
    """Whether urllib3 gave up before a connection stood: then nothing was sent."""
    return "NewConnectionError" in repr(error.__cause__) or "NameResolution" in repr(
        error.__cause__
    )


def _host(error: requests.RequestException) -> str:
    return urlsplit(str(error.request.url)).netloc if error.request is not None else "Kaggle"


def _way_there(error: requests.RequestException) -> str:
    """What to do where nobody answers."""
    host, _, port = _host(error).partition(":")
    if host in ("127.0.0.1", "localhost", "[::1]"):
        return f"Does a local Kaggle listen there? `kernelkit emulator --port {port or 80}`."
    return "Is the network up?"


def _is_json(response: requests.Response | None) -> bool:
    return response is not None and "json" in response.headers.get("Content-Type", "")


def _from_answer(what: str, error: requests.HTTPError) -> KernelkitError:
    code, words = _code_and_words(error)
    asked = None if error.response is None else retry_after(error.response)
    if code == 401:
        return CredentialsError(
            f"{what}: Kaggle does not accept the credentials ({words})",
            "`kernelkit doctor` says which ones are used. A new token: " + TOKEN_PAGE,
        )
    if code in (403, 404):
        return NotFoundError(
            f"{what}: {words} ({code})", "Is it the right account? `kernelkit doctor` says whose."
        )
    if code == 429:
        limited = RateLimitedError(f"{what}: too many calls ({words})")
        limited.retry_after = asked
        pause = f"{limited.retry_after:.0f} s" if limited.retry_after else "some minutes"
        limited.next_step = f"Try again in {pause}."
        return limited
    if code == 501 and not _is_json(error.response):
        return UnreachableError(
            f"{what}: what answers at {_host(error)} is no Kaggle ({words})",
            "Is it the right --endpoint? `kernelkit emulator` serves a local one.",
        )
    if code == 501:
        return RefusedError(f"{what}: this Kaggle does not know the call ({words})")
    if code >= 500:
        transient = TransientError(f"{what}: Kaggle has a fault of its own ({code}: {words})")
        transient.retry_after = asked
        return transient
    refused = refusal(words)
    return type(refused)(f"{what}: {refused} ({code})", refused.next_step)


def retry_after(response: requests.Response) -> float | None:
    """Seconds that Retry-After asks for, as a number or as a date; None without it."""
    stated = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", stated):
        return float(stated)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(stated).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _code_and_words(error: requests.HTTPError) -> tuple[int, str]:
    """Kaggle's JSON says it better than the status line, which may even read 200."""
    response = error.response
    if response is None:
        return 500, str(error)
    try:
        body = response.json()
        return int(body["code"]), str(body.get("message", ""))
    except NOT_THE_API:
        # Not requests' own words: they name the address, and an upload's holds its permission.
        return response.status_code, response.reason or "no reason given"
