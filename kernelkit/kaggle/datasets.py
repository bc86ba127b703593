"""The only door to Kaggle's calls about datasets: what one holds, and new versions of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kagglesdk.blobs.types import blob_api_service as blobs
from kagglesdk.datasets.types import dataset_api_service as datasets

from kernelkit.errors import AnswerLostError, NotFoundError, RefusedError
from kernelkit.kaggle.answers import (
    MESSAGE_CHARACTERS,
    as_flag,
    as_int,
    as_text,
    calling,
    refusal,
)
from kernelkit.kaggle.connection import Connection
from kernelkit.kaggle.uploads import UploadAddress
from kernelkit.storage import one_line

READY = "READY"
BROKEN = ("FAILED", "DELETED")
"""States of a version that will never be ready [V, DatabundleVersionStatus]."""

LICENSE = "unknown"
"""Kaggle's name for a dataset whose owner states none [V, the official client's documentation]."""

SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
NAME_LENGTHS = (6, 50)
"""Characters of the slug and of the title of a dataset [V, a check of the official client]."""

PAGE_SIZE, PAGES = 200, 1000  # of a listing of files

T = TypeVar("T")

Contents = Mapping[str, str]
"""Path in the dataset, with forward slashes → token of the uploaded file."""


@dataclass(frozen=True)
class DatasetDetails:
    """A dataset as Kaggle has it."""

    version: int | None
    """The current one: the version that a run gets."""

    is_private: bool | None
    """None if Kaggle does not say."""

    url: str = ""
    title: str = ""
    description: str = ""
    notes: Mapping[int, str] = field(default_factory=dict)
    """Version → what was said about it, as far as Kaggle lists them."""


class Dataset:
    """One dataset of an account."""

    def __init__(self, connection: Connection, owner: str, slug: str) -> None:
        self._connection = connection
        self.owner, self.slug = owner, slug
        self._api = connection.sdk.datasets.dataset_api_client

    @property
    def name(self) -> str:
        """As `dataset_sources` has it."""
        return f"{self.owner}/{self.slug}"

    def state(self) -> str | None:
        """The state of its latest version, such as "READY"; None if there is no such dataset."""
        request = datasets.ApiGetDatasetStatusRequest()
        request.owner_slug, request.dataset_slug = self.owner, self.slug
        call = self._api.get_dataset_status
        return self._read_if_known("the state", lambda: str(call(request).status.name))

    def details(self) -> DatasetDetails | None:
        """What Kaggle says about it; None if there is no such dataset."""
        request = datasets.ApiGetDatasetRequest()
        request.owner_slug, request.dataset_slug = self.owner, self.slug
        return self._read_if_known("the details", lambda: _details(self._api.get_dataset(request)))

    def files(self, version: int) -> dict[str, int]:
        """The files of a version: path → size in bytes.

        Raises:
            NotFoundError: there is no such version.
        """
        request = datasets.ApiListDatasetFilesRequest()
        request.owner_slug, request.dataset_slug = self.owner, self.slug
        request.dataset_version_number, request.page_size = version, PAGE_SIZE
        found: dict[str, int] = {}
        for _ in range(PAGES):
            page, token = self._read(
                "the files", lambda: _page(self._api.list_dataset_files(request))
            )
            found |= page
            if not token:
                return found
            if token == request.page_token:
                break
            request.page_token = token
        raise RefusedError(f"the files of the dataset {self.name}: Kaggle's list has no end")

    def begin_upload(self, file: Path) -> UploadAddress:
        """Announce a file; nothing of it is sent."""
        details = file.stat()
        request = blobs.ApiStartBlobUploadRequest()
        request.type, request.name = blobs.ApiBlobType.DATASET, file.name
        request.content_length = details.st_size
        request.last_modified_epoch_seconds = max(0, int(details.st_mtime))
        call = self._connection.sdk.blobs.blob_api_client.start_blob_upload
        return self._read("the upload's address", lambda: _address(call(request)))

    def create(self, title: str, contents: Contents, *, is_private: bool, description: str) -> None:
        """Make the dataset with its first version.

        Raises:
            AnswerLostError: it was sent, and no usable response came.
            RefusedError: Kaggle refused it, with its reason.
        """
        request = datasets.ApiCreateDatasetRequest()
        request.owner_slug, request.slug, request.title = self.owner, self.slug, title
        request.license_name, request.is_private = LICENSE, is_private
        request.description = description
        request.files, request.directories = _tree(contents)
        self._once(lambda: self._api.create_dataset(request))

    def add_version(self, contents: Contents, notes: str) -> None:
        """Add a version that holds these files and no others.

        Raises:
            AnswerLostError: it was sent, and no usable response came.
            RefusedError: Kaggle refused it, with its reason.
        """
        body = datasets.ApiCreateDatasetVersionRequestBody()
        body.version_notes = notes
        body.files, body.directories = _tree(contents)
        request = datasets.ApiCreateDatasetVersionRequest()
        request.owner_slug, request.dataset_slug, request.body = self.owner, self.slug, body
        self._once(lambda: self._api.create_dataset_version(request))

    def _once(self, call: Callable[[], Any]) -> None:
        what = f"the new version of the dataset {self.name}"
        try:
            self._connection.once(what, lambda: _require_accepted(call()))
        except AnswerLostError as lost:
            raise lost.with_message(
                str(lost),
                "Run the same command again: it sends nothing that Kaggle has accepted.",
            ) from lost

    def _read(self, what: str, call: Callable[[], T]) -> T:
        return self._connection.read(f"{what} of the dataset {self.name}", call)

    def _read_if_known(self, what: str, call: Callable[[], T]) -> T | None:
        try:
            return self._read(what, call)
        except NotFoundError:  # 403 or 404: Kaggle answers both for one that does not exist [A]
            return None


def _tree(
    contents: Contents,
) -> tuple[list[datasets.ApiDatasetNewFile], list[datasets.ApiUploadDirectoryInfo]]:
    """Files and folders of a request; the name of a file is that of its upload."""
    files: list[datasets.ApiDatasetNewFile] = []
    below: dict[str, dict[str, str]] = {}
    for path, token in contents.items():
        top, _, rest = path.partition("/")
        if rest:
            below.setdefault(top, {})[rest] = token
            continue
        file = datasets.ApiDatasetNewFile()
        file.token = token
        files.append(file)
    folders = []
    for name, inner in below.items():
        folder = datasets.ApiUploadDirectoryInfo()
        folder.name = name
        folder.files, folder.directories = _tree(inner)
        folders.append(folder)
    return files, folders


def _details(response: Any) -> DatasetDetails:
    with calling("the details of a dataset"):
        versions = {
            as_int(version.version_number): as_text(version.version_notes)
            for version in response.versions or []
        }
        return DatasetDetails(
            version=as_int(response.current_version_number) or None,
            is_private=as_flag(response.is_private),
            url=one_line(as_text(response.url)),
            title=one_line(as_text(response.title)),
            description=as_text(response.description),
            notes=versions,
        )


def _page(response: Any) -> tuple[dict[str, int], str]:
    if response.error_message:
        raise RefusedError(one_line(as_text(response.error_message), MESSAGE_CHARACTERS))
    files = {as_text(file.name): as_int(file.total_bytes) for file in response.dataset_files or []}
    return files, as_text(response.next_page_token)


def _address(response: Any) -> UploadAddress:
    return UploadAddress(as_text(response.token), as_text(response.create_url))


def _require_accepted(response: Any) -> None:
    """Raise if the response reports a refusal, which Kaggle sends as a success [V]."""
    if error := as_text(response.error):
        raise refusal(error)
    if as_text(response.status).lower() == "error":
        raise refusal("it gives no reason")
