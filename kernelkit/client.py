"""The one door to Kaggle: typed calls of the official SDK, with timeouts, retries and plain errors.

The SDK gives no call a timeout, retries none and answers a refused push with success; all of that
is put right here. Reading calls are retried for a while, a push never is. Nothing is printed.

`kagglesdk` is used rather than `kaggle`: importing the latter authenticates, and prints.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import tenacity
import urllib3
from kagglesdk import kaggle_env
from kagglesdk.competitions.types import competition_api_service as competitions
from kagglesdk.kaggle_client import KaggleClient
from kagglesdk.kaggle_creds import KaggleCredentials
from kagglesdk.kaggle_http_client import KaggleHttpClient
from kagglesdk.kernels.types import kernels_api_service as kernels
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest
from requests.adapters import HTTPAdapter

from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    CredentialsError,
    KernelkitError,
    MachineError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)

CONNECT_SECONDS = 5
READ_SECONDS = 60  # a push of 900 kB is answered after several seconds
RETRY_SECONDS = 20
"""No attempt begins later than this after the first: with the two timeouts under 100 s in all."""

DOWNLOAD_ATTEMPTS, DOWNLOAD_READ_SECONDS = 3, 20  # of silence; a whole file may take hours

STREAM_READ_SECONDS = 30  # of silence in a log stream before the status is asked again
PAGE_SIZE = 200  # Kaggle's largest page of outputs; its default is 20
CHUNK_BYTES = 1 << 20

LOCAL_CREDENTIALS = ("rehearsal", "local")  # what a local Kaggle is given where nothing is set

T = TypeVar("T")


class State(StrEnum):
    """Where a run is; the words of KernelWorkerStatus, in small letters."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    CANCEL_REQUESTED = "cancel_requested"
    CANCEL_ACKNOWLEDGED = "cancel_acknowledged"
    NEW_SCRIPT = "new_script"

    @property
    def finished(self) -> bool:
        """Whether it can change no more."""
        return self in (State.COMPLETE, State.ERROR, State.CANCEL_ACKNOWLEDGED)


@dataclass(frozen=True)
class Status:
    """A run's state, and Kaggle's words where it failed."""

    state: State
    failure: str = ""


@dataclass(frozen=True)
class Saved:
    """Kaggle's answer to a push that it took."""

    url: str
    version: int
    dropped: Mapping[str, list[str]]
    """Kind of source → names that Kaggle did not accept; the kernel runs without them."""


@dataclass(frozen=True)
class Given:
    """What Kaggle says that a kernel is: to be held against what was asked."""

    version: int | None
    source: str
    is_private: bool | None
    enable_internet: bool | None
    sources: Mapping[str, list[str]]


@dataclass(frozen=True)
class LogEntry:
    """A piece of a run's log. `seconds` counts from the start of the session."""

    stream: str
    seconds: float
    text: str


@dataclass(frozen=True)
class OutputFile:
    """One file among a run's outputs, and where it can be fetched for a while."""

    name: str
    url: str


@dataclass(frozen=True)
class Quota:
    """Hours of an accelerator: used, and allowed until `refresh`."""

    used: float
    allowed: float


@dataclass(frozen=True)
class Credentials:
    """Who calls. Either a key or a token; `origin` says where they were found."""

    username: str
    origin: str
    key: str | None = None
    token: str | None = None


class Kaggle:
    """A connection as one account; `endpoint` is None for the real Kaggle.

    With an endpoint nothing leaves this machine: proxies are ignored, other hosts are refused.
    """

    def __init__(self, credentials: Credentials, endpoint: str | None = None) -> None:
        self.username = credentials.username
        self.origin = credentials.origin
        self.endpoint = endpoint_of(endpoint)
        self._client = _open(endpoint)
        self._files = requests.Session()
        _guard(self._files, loopback_only=endpoint is not None)
        self._session.auth = (
            KaggleHttpClient.BearerAuth(credentials.token)
            if credentials.token
            else (credentials.username, credentials.key or "")
        )

    @property
    def _session(self) -> requests.Session:
        session = self._client.http_client()._session
        assert isinstance(session, requests.Session)
        return session

    def save_kernel(self, slug: str, payload: str, fields: Mapping[str, Any]) -> Saved:
        """Push a kernel, once: a version more, and its run. `fields` as in kernel-metadata.json.

        Raises:
            AnswerLostError: it was sent, and no usable answer came.
            CapacityError: no session is free, or the quota is spent.
            RefusedError: Kaggle says why not.
        """
        request = kernels.ApiSaveKernelRequest()
        request.slug = f"{self.username}/{slug}"
        request.new_title = fields["title"]
        request.text = payload
        request.language = fields["language"]
        request.kernel_type = fields["kernel_type"]
        request.is_private = fields["is_private"]
        request.enable_gpu = fields["enable_gpu"]
        request.enable_tpu = fields["enable_tpu"]
        request.enable_internet = fields["enable_internet"]
        request.dataset_data_sources = fields["dataset_sources"]
        request.competition_data_sources = fields["competition_sources"]
        request.kernel_data_sources = fields["kernel_sources"]
        request.model_data_sources = fields["model_sources"]
        request.category_ids = fields["keywords"]
        request.machine_shape = fields.get("machine_shape")
        request.docker_image = fields.get("docker_image")
        request.docker_image_pinning_type = fields.get("docker_image_pinning_type")
        request.session_timeout_seconds = fields.get("session_timeout_seconds")
        with _one_attempt("the push"):
            answer = self._kernels.save_kernel(request)
        return _saved(answer)

    def kernel(self, owner: str, slug: str) -> Given:
        """The latest version of a kernel, as Kaggle has it."""
        request = kernels.ApiGetKernelRequest()
        request.user_name, request.kernel_slug = owner, slug
        what = f"the kernel {owner}/{slug}"
        return self._read(what, lambda: _given(self._kernels.get_kernel(request)))

    def status(self, owner: str, slug: str, version: int) -> Status:
        """The state of one version's run."""
        request = kernels.ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug = owner, slug
        request.version_label = f"v{version}"
        what = f"the status of {owner}/{slug} v{version}"
        answer = self._read(what, lambda: self._kernels.get_kernel_session_status(request))
        return Status(State(answer.status.name.lower()), answer.failure_message or "")

    def outputs(self, owner: str, slug: str, version: int) -> tuple[list[OutputFile], str]:
        """Every output of one version, all pages of them, and its log as Kaggle keeps it."""
        request = kernels.ApiListKernelSessionOutputRequest()
        request.user_name, request.kernel_slug = owner, slug
        request.version_label, request.page_size = f"v{version}", PAGE_SIZE
        what = f"the outputs of {owner}/{slug} v{version}"
        files: list[OutputFile] = []
        log, tokens = "", set()
        while True:
            page = self._read(what, lambda: self._kernels.list_kernel_session_output(request))
            files += [OutputFile(file.file_name, file.url) for file in page.files or []]
            log = log or page.log or ""
            if not page.next_page_token:
                return files, log
            if page.next_page_token in tokens:
                raise RefusedError(f"{what}: Kaggle's pages go round in a circle")
            tokens.add(page.next_page_token)
            request.page_token = page.next_page_token

    def log_stream(self, owner: str, slug: str, seconds: float) -> Iterator[LogEntry]:
        """The log of the latest version from its first line: live, or whole where it has ended.

        Ends without an error after `seconds`, and when the stream falls silent or is cut; it begins
        anew when called again.
        """
        end = time.monotonic() + seconds
        url = f"{self._api}/v1/kernels/logs/stream/{owner}/{slug}"
        headers = {"Accept": "text/event-stream, */*"}
        timeout = (CONNECT_SECONDS, max(1.0, min(STREAM_READ_SECONDS, seconds)))
        with _words("the log"):
            response = self._session.get(url, headers=headers, stream=True, timeout=timeout)
            with response:
                response.raise_for_status()
                if "text/event-stream" in response.headers.get("Content-Type", ""):
                    yield from _events(response, end)
                else:
                    yield from parse_log(response.text)

    def download(self, file: OutputFile, target: Path) -> None:
        """Stream one output to `target`, whole or not at all."""
        stop = tenacity.stop_after_attempt(DOWNLOAD_ATTEMPTS)
        retrying(stop)(self._download, file, target)

    def quota(self) -> Quota:
        """The GPU hours of this account."""
        request = kernels.ApiGetAcceleratorQuotaStatisticsRequest()
        return self._read(
            "the quota",
            lambda: _quota(self._kernels.get_accelerator_quota_statistics(request).gpu_quota),
        )

    def submit(self, competition: str, file: Path, message: str) -> tuple[int, str]:
        """Upload a submission file and enter it; the submission's number and Kaggle's words."""
        api = self._client.competitions.competition_api_client
        start = competitions.ApiStartSubmissionUploadRequest()
        start.competition_name, start.file_name = competition, file.name
        start.content_length = file.stat().st_size
        start.last_modified_epoch_seconds = int(file.stat().st_mtime)
        upload = self._read("the upload's address", lambda: api.start_submission_upload(start))
        with _words("the upload"), file.open("rb") as stream:
            self._files.put(upload.create_url, data=stream).raise_for_status()
        enter = competitions.ApiCreateSubmissionRequest()
        enter.competition_name, enter.blob_file_tokens = competition, upload.token
        enter.submission_description = message
        with _one_attempt("the submission"):
            answer = api.create_submission(enter)
        return answer.ref, answer.message

    @property
    def _kernels(self) -> Any:
        return self._client.kernels.kernels_api_client

    @property
    def _api(self) -> str:
        """The base of all addresses, by the SDK's own rule."""
        return str(self._client.http_client()._get_request_url("", "")).removesuffix("/v1//")

    def _read(self, what: str, call: Callable[[], T]) -> T:
        """A call that changes nothing, retried while the fault may pass."""

        def attempt() -> T:
            with _words(what):
                return call()

        return retrying(tenacity.stop_before_delay(RETRY_SECONDS))(attempt)

    def _download(self, file: OutputFile, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        with _words(f"the output {file.name}"):
            timeout = (CONNECT_SECONDS, DOWNLOAD_READ_SECONDS)
            response = self._files.get(file.url, stream=True, timeout=timeout)
            with response:
                response.raise_for_status()
                _store(response, partial)
        partial.replace(target)


class _Transient(UnreachableError):
    """A fault that may be gone at the next attempt."""


class _RateLimited(CapacityError):
    """Too many calls: gone after a pause."""


def connect(
    endpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    local_user: str | None = None,
) -> Kaggle:
    """Open a connection with the credentials that the official client would use.

    A local Kaggle is given those of the environment alone, never those in files; where there are
    none it takes anybody, and `local_user` says whom.

    Raises:
        CredentialsError: there are none, or Kaggle does not know them.
        UnreachableError: a token's owner could not be asked for.
    """
    name, key = environment.get("KAGGLE_USERNAME"), environment.get("KAGGLE_KEY")
    if endpoint is not None:
        return Kaggle(_local_credentials(endpoint, environment, local_user), endpoint)
    token, origin = kaggle_env.get_access_token_from_env()
    if token:
        return Kaggle(_introspected(token, str(origin), None))
    stored = _stored_key(environment)
    name, key = name or stored.get("username"), key or stored.get("key")
    if name and key:
        return Kaggle(Credentials(name, "username and key", key=key))
    return Kaggle(_oauth_credentials())


def endpoint_of(endpoint: str | None) -> str:
    """The address that runs are recorded with; None is the real Kaggle."""
    return endpoint or str(kaggle_env.get_endpoint(kaggle_env.KaggleEnv.PROD))


def retrying(stop: Any) -> tenacity.Retrying:
    """Attempts with growing pauses until `stop`; then the last fault is raised."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((_Transient, _RateLimited)),
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=4),
        reraise=True,
    )


def parse_log(text: str) -> list[LogEntry]:
    """The entries of a log that has ended: a JSON array, or plain lines where it is none."""
    try:
        document = json.loads(text)
    except ValueError:
        document = [{"data": line} for line in text.splitlines(keepends=True)]
    entries = document if isinstance(document, list) else [document]
    return [_entry(entry) for entry in entries if isinstance(entry, dict)]


def _open(endpoint: str | None) -> KaggleClient:
    if endpoint is None:
        client = KaggleClient(env=kaggle_env.KaggleEnv.PROD)
    else:
        client = KaggleClient(env=kaggle_env.KaggleEnv.TEST)
        client.http_client()._endpoint = endpoint
        url = client.http_client()._get_request_url("service", "Method")
        assert _on_this_machine(url), url
    client.http_client()._signed_in = False  # keeps it from credentials that are not ours to use
    client.http_client()._init_session()
    _guard(client.http_client()._session, loopback_only=endpoint is not None)
    return client


def _guard(session: requests.Session, *, loopback_only: bool) -> None:
    session.trust_env = not loopback_only
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(loopback_only))


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Adapter(HTTPAdapter):
    """Gives every request a timeout, and keeps a rehearsal on this machine."""

    def __init__(self, loopback_only: bool) -> None:
        super().__init__()
        self._loopback_only = loopback_only

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self._loopback_only and not _on_this_machine(request.url):
            raise RefusedError(f"a local Kaggle pointed at {request.url}, which is elsewhere")
        kwargs["timeout"] = kwargs.get("timeout") or (CONNECT_SECONDS, READ_SECONDS)
        return super().send(request, *args, **kwargs)


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
    """A token says by itself nothing of its owner: ask."""
    asking = Kaggle(Credentials("", origin, token=token), endpoint)
    request = IntrospectTokenRequest()
    request.token = token
    oauth = asking._client.security.oauth_client
    answer = asking._read("the token's owner", lambda: oauth.introspect_token(request))
    if not answer.active or not answer.username:
        raise CredentialsError(
            f"the token in {origin} is not valid (any more)", "Make a new one: " + TOKEN_PAGE
        )
    return Credentials(answer.username, origin, token=token)


TOKEN_PAGE = "https://www.kaggle.com/settings, under API."


def _stored_key(environment: Mapping[str, str]) -> dict[str, str]:
    """kaggle.json where the official client looks for it; empty where there is none."""
    stated = environment.get("KAGGLE_CONFIG_DIR")
    home = Path.home()
    folders = [Path(stated)] if stated else [home / ".kaggle", home / ".config" / "kaggle"]
    for folder in folders:
        try:
            content = json.loads((folder / "kaggle.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return {key: value for key, value in content.items() if isinstance(value, str)}
    return {}


def _oauth_credentials() -> Credentials:
    try:
        stored = KaggleCredentials.load(client=_open(None))
    except (ValueError, TypeError, AttributeError) as fault:
        raise CredentialsError(
            f"~/.kaggle/credentials.json cannot be read: {fault}", "Log in anew: kaggle auth login."
        ) from fault
    if stored is None:
        raise CredentialsError(
            "no Kaggle credentials on this machine",
            f"Make a token at {TOKEN_PAGE} Then set KAGGLE_API_TOKEN, or put it into "
            "~/.kaggle/access_token.",
        )
    with _words("the access token"):
        token = stored.get_access_token()
    return Credentials(stored.get_username() or "", "kaggle auth login", token=token)


def _given(answer: Any) -> Given:
    about = answer.metadata
    return Given(
        version=about.current_version_number or None,
        source=answer.blob.source or "",
        is_private=about.is_private,
        enable_internet=about.enable_internet,
        sources={
            "competition_sources": list(about.competition_data_sources or []),
            "dataset_sources": list(about.dataset_data_sources or []),
            "kernel_sources": list(about.kernel_data_sources or []),
            "model_sources": list(about.model_data_sources or []),
        },
    )


def _quota(gpu: Any) -> Quota:
    used, allowed = gpu.time_used, gpu.total_time_allowed
    return Quota(*((span.total_seconds() / 3600 if span else 0.0) for span in (used, allowed)))


def _saved(answer: Any) -> Saved:
    if answer.error:
        raise _refusal(str(answer.error))
    dropped = {
        "competition_sources": answer.invalid_competition_sources,
        "dataset_sources": answer.invalid_dataset_sources,
        "kernel_sources": answer.invalid_kernel_sources,
        "model_sources": answer.invalid_model_sources,
    }
    if not answer.version_number:
        raise AnswerLostError(
            "Kaggle took the push and named no version", "Look at " + (answer.url or "kaggle.com.")
        )
    return Saved(
        url=answer.url,
        version=answer.version_number,
        dropped={kind: list(names) for kind, names in dropped.items() if names},
    )


def _refusal(words: str) -> KernelkitError:
    """Kaggle's own words as the error they mean."""
    lowered = words.lower()
    if "session count" in lowered or "maximum batch" in lowered:
        return CapacityError(f"Kaggle: {words}", "Wait until one of your runs has ended.")
    if "quota" in lowered:
        return CapacityError(f"Kaggle: {words}", "Wait for the quota's refresh, or use a CPU.")
    return RefusedError(f"Kaggle refused: {words}")


@contextmanager
def _words(what: str) -> Iterator[None]:
    """Turn every fault of a call into one of ours; `what` names what was asked for."""
    try:
        yield
    except KernelkitError:
        raise
    except requests.HTTPError as fault:
        raise _from_answer(what, fault) from fault
    except (requests.ConnectionError, requests.Timeout) as fault:
        raise _Transient(
            f"{what}: no answer from {_host(fault)} ({type(fault).__name__})",
            "Is the network up?",
        ) from fault
    except requests.RequestException as fault:
        raise _Transient(f"{what}: {fault}") from fault
    except OSError as fault:
        raise MachineError(f"{what}: {fault.strerror or fault}") from fault
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        # What the SDK raises on an answer that is no JSON, or has a value it does not know.
        raise _Transient(f"{what}: an answer that is not the API's ({fault!r})") from fault


@contextmanager
def _one_attempt(what: str) -> Iterator[None]:
    """For calls that must not be sent twice: tells "never sent" from "perhaps taken"."""
    try:
        with _words(what):
            yield
    except _Transient as fault:
        if isinstance(fault.__cause__, requests.ConnectTimeout) or _never_connected(fault):
            raise UnreachableError(
                str(fault),
                f"{fault.next_step} Nothing was sent: the same command may be given again.",
            ) from fault
        raise AnswerLostError(
            f"{fault}. It may have been accepted all the same",
            "Look at the kernel's page before sending anything again.",
        ) from fault


def _never_connected(fault: BaseException) -> bool:
    """Whether urllib3 gave up before a connection stood: then nothing was sent."""
    return "NewConnectionError" in repr(fault.__cause__) or "NameResolution" in repr(
        fault.__cause__
    )


def _host(fault: requests.RequestException) -> str:
    return urlsplit(str(fault.request.url)).netloc if fault.request is not None else "Kaggle"


def _from_answer(what: str, fault: requests.HTTPError) -> KernelkitError:
    code, words = _code_and_words(fault)
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
        return _RateLimited(f"{what}: too many calls ({words})", "Try again in some minutes.")
    if code == 501:
        return RefusedError(f"{what}: this Kaggle does not know the call ({words})")
    if code >= 500:
        return _Transient(f"{what}: Kaggle has a fault of its own ({code}: {words})")
    return RefusedError(f"{what}: Kaggle refused ({code}: {words})")


def _code_and_words(fault: requests.HTTPError) -> tuple[int, str]:
    """Kaggle's JSON says it better than the status line, which may even read 200."""
    response = fault.response
    if response is None:
        return 500, str(fault)
    try:
        body = response.json()
        return int(body["code"]), str(body.get("message", ""))
    except (ValueError, KeyError, TypeError):
        return response.status_code, str(fault)


def _store(response: requests.Response, target: Path) -> None:
    expected = response.headers.get("Content-Length")
    size = 0
    with target.open("wb") as stream:
        for chunk in response.iter_content(CHUNK_BYTES):
            size += stream.write(chunk)
    encoded = "Content-Encoding" in response.headers  # then the length is not that of the file
    if expected is not None and not encoded and size != int(expected):
        raise _Transient(f"{target.name}: {size} of {expected} B came")


def _events(response: requests.Response, end: float) -> Iterator[LogEntry]:
    """Server-sent events of a running session, until its end, a silence or the time `end`."""
    try:
        for line in _lines(response):
            if time.monotonic() > end:
                return
            payload = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not payload:
                continue
            if payload == b"END_OF_LOG":
                return
            yield _event(payload)
    except urllib3.exceptions.HTTPError:
        return  # a cut or a silence; the caller asks for the status and comes back


def _lines(response: requests.Response) -> Iterator[bytes]:
    """Lines as they come; `iter_lines` would hold each back until a chunk of bytes is full."""
    pending = bytearray()
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
        pending += chunk
        if b"\n" in chunk:
            *lines, pending = pending.split(b"\n")
            yield from (bytes(line) for line in lines)
    yield bytes(pending)


def _event(payload: bytes) -> LogEntry:
    try:
        document = json.loads(payload)
    except ValueError:
        document = None
    return _entry(
        document if isinstance(document, dict) else {"data": payload.decode(errors="replace")}
    )


def _entry(entry: Mapping[str, Any]) -> LogEntry:
    try:
        seconds = float(entry.get("time") or 0.0)
    except (TypeError, ValueError):
        seconds = 0.0
    return LogEntry(str(entry.get("stream_name", "stdout")), seconds, str(entry.get("data", "")))
