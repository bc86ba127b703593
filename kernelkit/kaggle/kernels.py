"""The calls about kernels, their sources and the quota, as one account."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kagglesdk.competitions.types import competition_api_service as competitions
from kagglesdk.datasets.types import dataset_api_service as datasets
from kagglesdk.kernels.types import kernels_api_service as kernels
from kagglesdk.kernels.types.kernels_enums import KernelsListSortType, KernelsListViewType
from kagglesdk.models.types import model_api_service as models

from kernelkit.errors import AnswerLostError, NotFoundError, RefusedError
from kernelkit.kaggle import logs
from kernelkit.kaggle.answers import as_flag, as_int, as_text, as_texts, calling, refusal
from kernelkit.kaggle.competitions import Competition
from kernelkit.kaggle.connection import Connection
from kernelkit.kaggle.credentials import find_credentials
from kernelkit.kaggle.types import (
    CONNECT_SECONDS,
    KernelInfo,
    ListedKernel,
    LogEntry,
    OutputFile,
    PushResponse,
    Quota,
    State,
    Status,
    Timeouts,
)
from kernelkit.kaggle.waiting import within
from kernelkit.storage import one_line, shortened

if TYPE_CHECKING:
    from kernelkit.config import KernelSettings

STREAM_READ_SECONDS = 30  # of silence in a log stream, before the status is asked again
FAILURE_CHARACTERS = 100_000  # of Kaggle's message about a failed run
PAGES = 1000  # of a listing
PAGE_SIZE = 200  # Kaggle's largest page of outputs; its default is 20
KERNEL_PAGE_SIZE = 100  # the largest page of kernels that the official client asks for


class Kaggle(Connection):
    """Kaggle as one account. Reading calls are retried for a while, a push never is."""

    def competition(self, slug: str) -> Competition:
        """A competition as this account sees it."""
        return Competition(self, slug)

    def save_kernel(self, slug: str, payload: str, settings: KernelSettings) -> PushResponse:
        """Push a notebook once: this makes a new version and starts its run.

        Raises:
            AnswerLostError: it was sent, and no usable response came.
            CapacityError: no session is free, or the quota is spent.
            RefusedError: Kaggle refused it, with its reason.
        """
        request = kernels.ApiSaveKernelRequest()
        request.slug = f"{self.credentials.username}/{slug}"
        request.new_title = settings.title
        request.text = payload
        request.language, request.kernel_type = "python", "notebook"
        request.is_private = settings.is_private
        request.enable_gpu = settings.enable_gpu
        request.enable_tpu = settings.enable_tpu
        request.enable_internet = settings.enable_internet
        request.dataset_data_sources = list(settings.dataset_sources)
        request.competition_data_sources = list(settings.competition_sources)
        request.kernel_data_sources = list(settings.kernel_sources)
        request.model_data_sources = list(settings.model_sources)
        request.category_ids = list(settings.keywords)
        request.machine_shape = settings.machine_shape or None
        request.docker_image = settings.docker_image or None
        request.docker_image_pinning_type = settings.docker_image_pinning_type or None
        request.session_timeout_seconds = settings.session_timeout_seconds
        return self.once("the push", lambda: _push_response(self._kernels.save_kernel(request)))

    def kernel(self, owner: str, slug: str, version: int | None = None) -> KernelInfo:
        """A version of a kernel as Kaggle has it; by default the current one."""
        request = kernels.ApiGetKernelRequest()
        request.user_name, request.kernel_slug = owner, slug
        if version is not None:
            request.version_label = f"v{version}"
        what = f"the kernel {owner}/{slug}{f' v{version}' if version else ''}"
        return self.read(what, lambda: _kernel_info(self._kernels.get_kernel(request)))

    def list_own_kernels(
        self, search: str = "", since: datetime | None = None
    ) -> list[ListedKernel]:
        """The kernels of this account, the one whose run began last first.

        Kaggle has no list of sessions, so this is the way to find runs. A kernel that was deleted
        stays in the list for a while; its status is then a `NotFoundError` [A].

        Args:
            search: words of the title or slug.
            since: leave out kernels whose latest run began earlier; saves pages.
        """
        request = kernels.ApiListKernelsRequest()
        request.group = KernelsListViewType.PROFILE
        request.sort_by = KernelsListSortType.DATE_RUN
        request.search, request.page_size = search or None, KERNEL_PAGE_SIZE
        what = "the list of your kernels"
        found: dict[tuple[str, str], ListedKernel] = {}
        for page in self._pages(what, self._kernels.list_kernels, request):
            with calling(what):
                listed = [_listed_kernel(item) for item in page.kernels or []]
            for kernel in listed:
                if since and kernel.last_run and kernel.last_run < since:
                    return list(found.values())
                # While pages are read, a run that begins moves its kernel to the first one.
                if kernel.owner.lower() == self.credentials.username.lower():
                    found.setdefault((kernel.owner, kernel.slug), kernel)
        return list(found.values())

    def delete(self, slug: str) -> None:
        """Delete a kernel of this account: its run ends, and all versions and outputs are gone.

        Raises:
            NotFoundError: there is no such kernel.
            RefusedError: Kaggle does not delete it, with its reason.
        """
        request = kernels.ApiDeleteKernelRequest()
        request.user_name, request.kernel_slug = self.credentials.username, slug
        attempts = 0

        def send() -> Any:
            nonlocal attempts
            attempts += 1
            return self._kernels.delete_kernel(request)

        what = f"deleting {self.credentials.username}/{slug}"
        try:
            response = self.read(what, send)
        except NotFoundError:
            if attempts == 1:
                raise
            return  # an earlier attempt deleted it, and its response was lost
        with calling(what):
            message = one_line(as_text(response.error_message))
        if message:
            raise RefusedError(f"{what}: {message}")

    def status(self, owner: str, slug: str, version: int | None) -> Status:
        """The state of one version's run; None means the current version."""
        request = kernels.ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug = owner, slug
        if version is not None:
            request.version_label = f"v{version}"
        what = f"the status of {owner}/{slug}{f' v{version}' if version else ''}"
        return self.read(what, lambda: _status(self._kernels.get_kernel_session_status(request)))

    def outputs(self, owner: str, slug: str, version: int) -> tuple[list[OutputFile], str]:
        """All outputs of one version, and its log as Kaggle keeps it."""
        request = kernels.ApiListKernelSessionOutputRequest()
        what = f"the outputs of {owner}/{slug} v{version}"
        outputs: list[OutputFile] = []
        log = ""
        call = self._kernels.list_kernel_session_output
        for page in self._version_pages(what, call, request, owner, slug, version):
            with calling(what):
                outputs += [
                    OutputFile(as_text(file.file_name), as_text(file.url))
                    for file in page.files or []
                ]
                log = log or as_text(page.log)
        return outputs, log

    def log(self, owner: str, slug: str, version: int) -> str:
        """The log of one version as Kaggle keeps it; it is part of the first page of outputs."""
        request = kernels.ApiListKernelSessionOutputRequest()
        what = f"the log of {owner}/{slug} v{version}"
        call = self._kernels.list_kernel_session_output
        page = next(self._version_pages(what, call, request, owner, slug, version))
        with calling(what):
            return as_text(page.log)

    def output_sizes(self, owner: str, slug: str, version: int) -> dict[str, int]:
        """The size of every output of one version, by name; a size that Kaggle leaves out is 0."""
        request = kernels.ApiListKernelFilesRequest()
        what = f"the sizes of the outputs of {owner}/{slug} v{version}"
        call = self._kernels.list_kernel_files
        pages = self._version_pages(what, call, request, owner, slug, version)
        with calling(what):
            return {
                as_text(file.name): as_int(file.size) for page in pages for file in page.files or []
            }

    def _version_pages(
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
        return self._pages(what, call, request)

    def _pages(self, what: str, call: Callable[[Any], Any], request: Any) -> Iterator[Any]:
        """Every page of a listing."""
        tokens: set[str] = set()
        while len(tokens) < PAGES:
            page = self.read(what, lambda: call(request))
            yield page
            with calling(what):
                token = as_text(page.next_page_token)
            if not token:
                return
            if token in tokens:
                break
            tokens.add(token)
            request.page_token = token
        raise RefusedError(f"{what}: Kaggle's list of pages has no end")

    def log_stream(self, owner: str, slug: str, version: int, seconds: float) -> Iterator[LogEntry]:
        """A version's log from its first line: live, or complete if the run has ended.

        Kaggle may ignore the version and send the current one's log [A]. The stream ends without an
        error after `seconds`, and when the connection breaks or falls silent; another call starts
        again at the first line.
        """
        end = time.monotonic() + seconds
        most = max(0.1, min(CONNECT_SECONDS + STREAM_READ_SECONDS, seconds))
        url = f"{self.api}/v1/kernels/logs/stream/{owner}/{slug}"
        headers = {"Accept": "text/event-stream, */*"}
        timeout = (CONNECT_SECONDS, max(1.0, min(STREAM_READ_SECONDS, seconds)))
        label = {"versionLabel": f"v{version}"}
        with calling("the log"):
            response = within(
                lambda: self.session.get(
                    url, params=label, headers=headers, stream=True, timeout=timeout
                ),
                most,
            )
            with response:
                response.raise_for_status()
                if "text/event-stream" in response.headers.get("Content-Type", ""):
                    yield from logs.events(response, end)
                else:
                    yield from logs.parse_log(logs.whole(response, end))

    def quota(self) -> Quota:
        """The GPU hours of this account."""
        request = kernels.ApiGetAcceleratorQuotaStatisticsRequest()
        return self.read(
            "the quota",
            lambda: _quota(self._kernels.get_accelerator_quota_statistics(request)),
        )

    def cancel(self, session_id: int) -> None:
        """Ask Kaggle to end a session.

        Raises:
            RefusedError: Kaggle does not end it, with its reason.
        """
        request = kernels.ApiCancelKernelSessionRequest()
        request.kernel_session_id = session_id
        what = f"cancelling session {session_id}"
        response = self.read(what, lambda: self._kernels.cancel_kernel_session(request))
        if response.error_message:
            raise RefusedError(f"{what}: {one_line(str(response.error_message))}")

    def dataset_status(self, owner: str, slug: str) -> str:
        """The state of a dataset, such as "READY" or "FAILED" [V, DatabundleVersionStatus].

        Raises:
            NotFoundError: there is no such dataset, or this account may not see it.
        """
        request = datasets.ApiGetDatasetStatusRequest()
        request.owner_slug, request.dataset_slug = owner, slug
        api = self.sdk.datasets.dataset_api_client
        what = f"the dataset {owner}/{slug}"
        return self.read(what, lambda: str(api.get_dataset_status(request).status.name))

    def competition_access(self, slug: str) -> None:
        """Check access to a competition: its list of files needs the rules to be accepted.

        Raises:
            NotFoundError: there is no such competition, or its rules are not accepted.
        """
        request = competitions.ApiListDataFilesRequest()
        request.competition_name = slug
        api = self.sdk.competitions.competition_api_client
        self.read(f"the competition {slug}", lambda: api.list_data_files(request))

    def model_access(self, source: str) -> None:
        """Check access to a model, named as `owner/model/framework/variation/version`.

        Raises:
            NotFoundError: there is no such model, or its license is not accepted.
        """
        request = models.ApiGetModelRequest()
        request.owner_slug, request.model_slug = source.split("/")[:2]
        api = self.sdk.models.model_api_client
        self.read(f"the model {source}", lambda: api.get_model(request))

    @property
    def _kernels(self) -> Any:
        return self.sdk.kernels.kernels_api_client


def _status(response: Any) -> Status:
    failure = shortened(as_text(response.failure_message), FAILURE_CHARACTERS)
    return Status(State(response.status.name.lower()), failure)


def _listed_kernel(item: Any) -> ListedKernel:
    owner, _, slug = as_text(item.ref).rpartition("/")
    last_run = item.last_run_time
    if last_run is not None and not isinstance(last_run, datetime):
        raise TypeError("the time of a run is not a time")
    if last_run is not None and last_run.tzinfo is None:
        last_run = last_run.replace(tzinfo=UTC)
    return ListedKernel(
        owner=one_line(owner or as_text(item.author)),
        slug=one_line(slug or as_text(item.slug)),
        title=one_line(as_text(item.title)),
        last_run=last_run,
        version=as_int(item.current_version_number) or None,
    )


def _kernel_info(response: Any) -> KernelInfo:
    details = response.metadata
    return KernelInfo(
        version=as_int(details.current_version_number) or None,
        source=as_text(response.blob.source),
        is_private=as_flag(details.is_private),
        enable_internet=as_flag(details.enable_internet),
        machine_shape=one_line(as_text(details.machine_shape)),
        docker_image=one_line(as_text(details.docker_image)),
        sources={
            "competition_sources": as_texts(details.competition_data_sources),
            "dataset_sources": as_texts(details.dataset_data_sources),
            "kernel_sources": as_texts(details.kernel_data_sources),
            "model_sources": as_texts(details.model_data_sources),
        },
    )


def _quota(response: Any) -> Quota:
    gpu = response.gpu_quota
    spans = (gpu.time_used, gpu.total_time_allowed, gpu.time_reserved)
    used, allowed, reserved = (
        max(0.0, span.total_seconds() / 3600 if span else 0.0) for span in spans
    )
    refresh: datetime | None = response.quota_refresh_time
    if refresh is not None and refresh.tzinfo is None:  # the SDK leaves out that it is UTC [V]
        refresh = refresh.replace(tzinfo=UTC)
    return Quota(used, allowed, refresh, reserved)


def _push_response(response: Any) -> PushResponse:
    if response.error:
        raise refusal(str(response.error))
    dropped = {
        "competition_sources": response.invalid_competition_sources,
        "dataset_sources": response.invalid_dataset_sources,
        "kernel_sources": response.invalid_kernel_sources,
        "model_sources": response.invalid_model_sources,
    }
    url, version = one_line(as_text(response.url)), as_int(response.version_number)
    if not version:
        raise AnswerLostError(
            "Kaggle accepted the push and named no version", "Look at " + (url or "kaggle.com.")
        )
    return PushResponse(
        url=url,
        version=version,
        dropped={kind: as_texts(names) for kind, names in dropped.items() if names},
    )


def connect(
    endpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    local_user: str | None = None,
) -> Kaggle:
    """Open a connection with the credentials that the official client would use.

    If Kaggle stops accepting them, they are looked up once more: a token may have been renewed.
    KERNELKIT_RETRY_SECONDS in `environment` limits how long a failed call is repeated.

    Raises:
        ConfigError: KERNELKIT_RETRY_SECONDS is not a number of seconds.
        CredentialsError: there are none, or Kaggle does not know them.
        UnreachableError: Kaggle did not say whose token it is.
    """
    credentials = find_credentials(endpoint, environment, local_user)
    return Kaggle(
        credentials,
        endpoint,
        lambda: find_credentials(endpoint, environment, local_user, renew=True),
        timeouts=Timeouts.of(environment),
    )
