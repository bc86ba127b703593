"""Kaggle's calls, typed: what is asked, what is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from kagglesdk.competitions.types import competition_api_service as competitions
from kagglesdk.datasets.types import dataset_api_service as datasets
from kagglesdk.kernels.types import kernels_api_service as kernels
from kagglesdk.models.types import model_api_service as models

from kernelkit.errors import AnswerLostError, RefusedError
from kernelkit.kaggle import logs
from kernelkit.kaggle.answers import as_flag, as_int, as_text, as_texts, refusal, words
from kernelkit.kaggle.connection import CONNECT_SECONDS, Connection
from kernelkit.kaggle.files import OutputFile
from kernelkit.kaggle.logs import LogEntry

STREAM_READ_SECONDS = 30  # of silence in a log stream before the status is asked again
PAGE_SIZE = 200  # Kaggle's largest page of outputs; its default is 20


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
class PushResponse:
    """Kaggle's answer to a push that it took."""

    url: str
    version: int
    dropped: Mapping[str, list[str]]
    """Kind of source → names that Kaggle did not accept; the kernel runs without them."""


@dataclass(frozen=True)
class KernelInfo:
    """What Kaggle says that a kernel is: to be held against what was asked."""

    version: int | None
    """The kernel's current version, whichever was asked for."""

    source: str
    is_private: bool | None
    enable_internet: bool | None
    machine_shape: str
    """Of the last session [V, SDK text]: before a run has started, that of the one before."""

    docker_image: str
    sources: Mapping[str, list[str]]


@dataclass(frozen=True)
class Quota:
    """Hours of an accelerator: used, and allowed until `refresh`."""

    used: float
    allowed: float
    refresh: datetime | None = None

    @property
    def left(self) -> float:
        """What may still be used."""
        return max(0.0, self.allowed - self.used)


class Kaggle(Connection):
    """Kaggle's calls as one account. Reading ones are retried for a while, a push never is."""

    def save_kernel(self, slug: str, payload: str, fields: Mapping[str, Any]) -> PushResponse:
        """Push a kernel, once: a version more, and its run. `fields` as in kernel-metadata.json.

        Raises:
            AnswerLostError: it was sent, and no usable answer came.
            CapacityError: no session is free, or the quota is spent.
            RefusedError: Kaggle says why not.
        """
        request = kernels.ApiSaveKernelRequest()
        request.slug = f"{self.credentials.username}/{slug}"
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
        return self.once("the push", lambda: _saved(self._kernels.save_kernel(request)))

    def kernel(self, owner: str, slug: str, version: int | None = None) -> KernelInfo:
        """A version of a kernel, as Kaggle has it; the current one where none is named."""
        request = kernels.ApiGetKernelRequest()
        request.user_name, request.kernel_slug = owner, slug
        if version is not None:
            request.version_label = f"v{version}"
        what = f"the kernel {owner}/{slug}{f' v{version}' if version else ''}"
        return self.read(what, lambda: _given(self._kernels.get_kernel(request)))

    def status(self, owner: str, slug: str, version: int | None) -> Status:
        """The state of one version's run; None means the current version."""
        request = kernels.ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug = owner, slug
        if version is not None:
            request.version_label = f"v{version}"
        what = f"the status of {owner}/{slug}{f' v{version}' if version else ''}"
        return self.read(what, lambda: _status(self._kernels.get_kernel_session_status(request)))

    def outputs(self, owner: str, slug: str, version: int) -> tuple[list[OutputFile], str]:
        """Every output of one version, all pages of them, and its log as Kaggle keeps it."""
        request = kernels.ApiListKernelSessionOutputRequest()
        what = f"the outputs of {owner}/{slug} v{version}"
        outputs: list[OutputFile] = []
        log = ""
        call = self._kernels.list_kernel_session_output
        for page in self._pages(what, call, request, owner, slug, version):
            with words(what):
                outputs += [
                    OutputFile(as_text(file.file_name), as_text(file.url))
                    for file in page.files or []
                ]
                log = log or as_text(page.log)
        return outputs, log

    def log(self, owner: str, slug: str, version: int) -> str:
        """The log of one version as Kaggle keeps it; it comes with the first page of outputs."""
        request = kernels.ApiListKernelSessionOutputRequest()
        what = f"the log of {owner}/{slug} v{version}"
        call = self._kernels.list_kernel_session_output
        return str(next(self._pages(what, call, request, owner, slug, version)).log or "")

    def output_sizes(self, owner: str, slug: str, version: int) -> dict[str, int]:
        """Bytes of every output of one version, by name; a size that Kaggle leaves out is 0."""
        request = kernels.ApiListKernelFilesRequest()
        what = f"the sizes of the outputs of {owner}/{slug} v{version}"
        call = self._kernels.list_kernel_files
        pages = self._pages(what, call, request, owner, slug, version)
        with words(what):
            return {
                as_text(file.name): as_int(file.size) for page in pages for file in page.files or []
            }

    def _pages(
        self,
        what: str,
        call: Callable[[Any], Any],
        request: Any,
        owner: str,
        slug: str,
        version: int,
    ) -> Iterator[Any]:
        """Every page of a listing of one version's outputs."""
        request.user_name, request.kernel_slug = owner, slug
        request.version_label, request.page_size = f"v{version}", PAGE_SIZE
        tokens = set()
        while True:
            page = self.read(what, lambda: call(request))
            yield page
            with words(what):
                token = as_text(page.next_page_token)
            if not token:
                return
            if token in tokens:
                raise RefusedError(f"{what}: Kaggle's pages go round in a circle")
            tokens.add(token)
            request.page_token = token

    def log_stream(self, owner: str, slug: str, version: int, seconds: float) -> Iterator[LogEntry]:
        """A version's log from its first line: live, or whole where it has ended.

        Kaggle may pass over the version and give the current one's [A]. Ends without an error after
        `seconds`, and when the stream falls silent or is cut; it begins anew when called again.
        """
        end = time.monotonic() + seconds
        url = f"{self.api}/v1/kernels/logs/stream/{owner}/{slug}"
        headers = {"Accept": "text/event-stream, */*"}
        timeout = (CONNECT_SECONDS, max(1.0, min(STREAM_READ_SECONDS, seconds)))
        label = {"versionLabel": f"v{version}"}
        with words("the log"):
            response = self.session.get(
                url, params=label, headers=headers, stream=True, timeout=timeout
            )
            with response:
                response.raise_for_status()
                if "text/event-stream" in response.headers.get("Content-Type", ""):
                    yield from logs.events(response, end)
                else:
                    yield from logs.parse_log(response.text)

    def quota(self) -> Quota:
        """The GPU hours of this account."""
        request = kernels.ApiGetAcceleratorQuotaStatisticsRequest()
        return self.read(
            "the quota",
            lambda: _quota(self._kernels.get_accelerator_quota_statistics(request)),
        )

    def cancel(self, session_id: int) -> None:
        """Ask for the end of a session.

        Raises:
            RefusedError: Kaggle does not end it, and says why.
        """
        request = kernels.ApiCancelKernelSessionRequest()
        request.kernel_session_id = session_id
        what = f"cancelling session {session_id}"
        answer = self.read(what, lambda: self._kernels.cancel_kernel_session(request))
        if answer.error_message:
            raise RefusedError(f"{what}: {answer.error_message}")

    def dataset_status(self, owner: str, slug: str) -> str:
        """How far a dataset is: "READY", "FAILED", or on its way [V, DatabundleVersionStatus].

        Raises:
            NotFoundError: there is none by this name, or it is not ours to see.
        """
        request = datasets.ApiGetDatasetStatusRequest()
        request.owner_slug, request.dataset_slug = owner, slug
        api = self.sdk.datasets.dataset_api_client
        what = f"the dataset {owner}/{slug}"
        return self.read(what, lambda: str(api.get_dataset_status(request).status.name))

    def competition_access(self, slug: str) -> None:
        """Ask for a competition's list of files: only who has accepted its rules gets it.

        Raises:
            NotFoundError: there is none by this name, or its rules are not accepted.
        """
        request = competitions.ApiListDataFilesRequest()
        request.competition_name = slug
        api = self.sdk.competitions.competition_api_client
        self.read(f"the competition {slug}", lambda: api.list_data_files(request))

    def model_access(self, source: str) -> None:
        """Ask for a model by a kernel's source, `owner/model/framework/variation/version`.

        Raises:
            NotFoundError: there is none by this name, or its licence is not accepted.
        """
        request = models.ApiGetModelRequest()
        request.owner_slug, request.model_slug = source.split("/")[:2]
        api = self.sdk.models.model_api_client
        self.read(f"the model {source}", lambda: api.get_model(request))

    @property
    def _kernels(self) -> Any:
        return self.sdk.kernels.kernels_api_client


def _status(answer: Any) -> Status:
    return Status(State(answer.status.name.lower()), as_text(answer.failure_message))


def _given(answer: Any) -> KernelInfo:
    details = answer.metadata
    return KernelInfo(
        version=as_int(details.current_version_number) or None,
        source=as_text(answer.blob.source),
        is_private=as_flag(details.is_private),
        enable_internet=as_flag(details.enable_internet),
        machine_shape=as_text(details.machine_shape),
        docker_image=as_text(details.docker_image),
        sources={
            "competition_sources": as_texts(details.competition_data_sources),
            "dataset_sources": as_texts(details.dataset_data_sources),
            "kernel_sources": as_texts(details.kernel_data_sources),
            "model_sources": as_texts(details.model_data_sources),
        },
    )


def _quota(answer: Any) -> Quota:
    spans = (answer.gpu_quota.time_used, answer.gpu_quota.total_time_allowed)
    used, allowed = ((span.total_seconds() / 3600 if span else 0.0) for span in spans)
    return Quota(used, allowed, answer.quota_refresh_time)


def _saved(answer: Any) -> PushResponse:
    if answer.error:
        raise refusal(str(answer.error))
    dropped = {
        "competition_sources": answer.invalid_competition_sources,
        "dataset_sources": answer.invalid_dataset_sources,
        "kernel_sources": answer.invalid_kernel_sources,
        "model_sources": answer.invalid_model_sources,
    }
    url, version = as_text(answer.url), as_int(answer.version_number)
    if not version:
        raise AnswerLostError(
            "Kaggle took the push and named no version", "Look at " + (url or "kaggle.com.")
        )
    return PushResponse(
        url=url,
        version=version,
        dropped={kind: as_texts(names) for kind, names in dropped.items() if names},
    )
