"""Kaggle's calls, typed: what is asked, what is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kagglesdk.kernels.types import kernels_api_service as kernels

from kernelkit.client import logs
from kernelkit.client.answers import refusal, words
from kernelkit.client.connection import CONNECT_SECONDS, Connection
from kernelkit.client.files import OutputFile
from kernelkit.client.logs import LogEntry
from kernelkit.errors import AnswerLostError, RefusedError

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
class Quota:
    """Hours of an accelerator: used, and allowed until `refresh`."""

    used: float
    allowed: float


class Kaggle(Connection):
    """Kaggle's calls as one account. Reading ones are retried for a while, a push never is."""

    def save_kernel(self, slug: str, payload: str, fields: Mapping[str, Any]) -> Saved:
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
        return _saved(self.once("the push", lambda: self._kernels.save_kernel(request)))

    def kernel(self, owner: str, slug: str) -> Given:
        """The latest version of a kernel, as Kaggle has it."""
        request = kernels.ApiGetKernelRequest()
        request.user_name, request.kernel_slug = owner, slug
        what = f"the kernel {owner}/{slug}"
        return self.read(what, lambda: _given(self._kernels.get_kernel(request)))

    def status(self, owner: str, slug: str, version: int) -> Status:
        """The state of one version's run."""
        request = kernels.ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug = owner, slug
        request.version_label = f"v{version}"
        what = f"the status of {owner}/{slug} v{version}"
        answer = self.read(what, lambda: self._kernels.get_kernel_session_status(request))
        return Status(State(answer.status.name.lower()), answer.failure_message or "")

    def outputs(self, owner: str, slug: str, version: int) -> tuple[list[OutputFile], str]:
        """Every output of one version, all pages of them, and its log as Kaggle keeps it."""
        request = kernels.ApiListKernelSessionOutputRequest()
        what = f"the outputs of {owner}/{slug} v{version}"
        outputs: list[OutputFile] = []
        log = ""
        call = self._kernels.list_kernel_session_output
        for page in self._pages(what, call, request, owner, slug, version):
            outputs += [OutputFile(file.file_name, file.url) for file in page.files or []]
            log = log or page.log or ""
        return outputs, log

    def output_sizes(self, owner: str, slug: str, version: int) -> dict[str, int]:
        """Bytes of every output of one version, by name; a size that Kaggle leaves out is 0."""
        request = kernels.ApiListKernelFilesRequest()
        what = f"the sizes of the outputs of {owner}/{slug} v{version}"
        call = self._kernels.list_kernel_files
        pages = self._pages(what, call, request, owner, slug, version)
        return {file.name: file.size for page in pages for file in page.files or []}

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
            if not page.next_page_token:
                return
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
        url = f"{self.api}/v1/kernels/logs/stream/{owner}/{slug}"
        headers = {"Accept": "text/event-stream, */*"}
        timeout = (CONNECT_SECONDS, max(1.0, min(STREAM_READ_SECONDS, seconds)))
        with words("the log"):
            response = self.session.get(url, headers=headers, stream=True, timeout=timeout)
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
            lambda: _quota(self._kernels.get_accelerator_quota_statistics(request).gpu_quota),
        )

    @property
    def _kernels(self) -> Any:
        return self.sdk.kernels.kernels_api_client


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
        raise refusal(str(answer.error))
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
