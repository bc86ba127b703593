"""Kaggle's calls on datasets, models and the uploads of both: JSON fields in, a response out.

The rules are in `datasets` and `uploads`. Other calls that the official client can make (versions
of models, forums …) are not implemented.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from kernelkit.emulator.competitions import files_below
from kernelkit.emulator.dataset_metadata import DatasetMetadata, FileNote
from kernelkit.emulator.datasets import Datasets, ModelInstance, StoredDataset, may_see
from kernelkit.emulator.downloads import Downloads, file_entry
from kernelkit.emulator.fields import JsonObject, RequestFields, answer, iso_time, page_of
from kernelkit.emulator.responses import Reply, RequestRefused
from kernelkit.emulator.state import StoredFile
from kernelkit.emulator.uploads import Uploads, begin_upload

OWN_GROUPS = ("MY", "MY_PRIVATE", "MY_PUBLIC")
PUBLIC_GROUPS = ("", "PUBLIC", "USER", "ALL", "UNFEATURED")
"""The names of DatasetSelectionGroup [V] without their prefix; the others are empty here."""
LICENSES = {"CC": ("cc",), "GPL": ("gpl", "lgpl", "agpl"), "ODB": ("odb", "odc", "dbcl", "pddl")}
"""Beginnings of the names of licenses, by DatasetLicenseGroup [V]; the rest is OTHER [?]."""
FILE_TYPES = {
    "CSV": (".csv",),
    "SQLITE": (".sqlite", ".sqlite3", ".db"),
    "JSON": (".json", ".jsonl"),
    "PARQUET": (".parquet",),
    "BIG_QUERY": (),
}
"""Ends of the names of files, by DatasetFileTypeGroup [V]."""


class DatasetsApi:
    """The calls. Each takes the caller's account and the fields of the request."""

    def __init__(
        self, datasets: Datasets, uploads: Uploads, downloads: Downloads, endpoint: str
    ) -> None:
        self._datasets = datasets
        self._uploads = uploads
        self._downloads = downloads
        self._endpoint = endpoint
        service, model_service = "datasets.DatasetApiService", "models.ModelApiService"
        self.calls: dict[str, Callable[[str, RequestFields], Reply]] = {
            "blobs.BlobApiService/StartBlobUpload": self.start_blob_upload,
            f"{service}/ListDatasets": self.list_datasets,
            f"{service}/GetDatasetStatus": self.dataset_status,
            f"{service}/GetDataset": self.get_dataset,
            f"{service}/GetDatasetMetadata": self.get_metadata,
            f"{service}/UpdateDatasetMetadata": self.update_metadata,
            f"{service}/ListDatasetFiles": self.list_dataset_files,
            f"{service}/DownloadDataset": self.download_dataset,
            f"{service}/CreateDataset": self.create_dataset,
            f"{service}/CreateDatasetVersion": self.create_dataset_version,
            f"{service}/DeleteDataset": self.delete_dataset,
            f"{model_service}/GetModel": self.get_model,
            f"{model_service}/GetModelInstance": self.get_model_instance,
        }

    def start_blob_upload(self, account: str, fields: RequestFields) -> Reply:
        """The address to send a file of a dataset to."""
        if (kind := fields.text("type")) != "DATASET":
            raise RequestRefused(501, f"unimplemented: StartBlobUpload of {kind or 'no type'}")
        return begin_upload(
            self._uploads, self._endpoint, account, "dataset", fields.text("name"), fields
        )

    def list_datasets(self, account: str, fields: RequestFields) -> Reply:
        """A page of the datasets that the caller may see, the one that changed last first.

        Kaggle ranks by votes and downloads, which are the same for all here [?].
        """
        found = [
            d for d in self._datasets.listed(account, fields.text("user")) if may_see(d, account)
        ]
        group = fields.text("group").removeprefix("DATASET_SELECTION_GROUP_")
        chosen = [d for d in found if self._is_chosen(d, account, group, fields)]
        chosen.sort(key=lambda dataset: dataset.changed, reverse=True)
        names = ("group", "user", "search", "license", "fileType")
        listing = " ".join(["datasets", account, *(fields.text(name) for name in names)])
        page, token = page_of(chosen, listing, fields)
        return answer(datasets=[self._entry(d) for d in page], nextPageToken=token)

    def dataset_status(self, account: str, fields: RequestFields) -> Reply:
        """The state of the latest version. NOT_YET_PERSISTED, the default, is left out."""
        status = self._datasets.status(self._dataset(account, fields))
        return answer(status="" if status == "NOT_YET_PERSISTED" else status)

    def get_dataset(self, account: str, fields: RequestFields) -> Reply:
        """A dataset, with the notes of its versions, newest first [A]."""
        dataset = self._dataset(account, fields)
        notes = list(enumerate(dataset.notes[: self._current(dataset)], 1))
        versions = [JsonObject(versionNumber=n, versionNotes=said) for n, said in reversed(notes)]
        return answer(**self._entry(dataset), versions=versions)

    def get_metadata(self, account: str, fields: RequestFields) -> Reply:
        """What the owner says about a dataset; there are no views and votes here."""
        dataset = self._dataset(account, fields)
        known = self._datasets.metadata(dataset)
        notes = {note.name: note for note in known.files}
        data = [
            JsonObject(
                name=file.name,
                description=(note := notes.get(file.name, FileNote(file.name))).description,
                totalBytes=file.size or None,
                columns=[
                    JsonObject(name=c.name, description=c.description, type=c.type)
                    for c in note.columns
                ],
            )
            for file in files_below(dataset.folders[-1])
        ]
        info = JsonObject(
            datasetId=_dataset_id(dataset),
            datasetSlug=dataset.slug,
            ownerUser=dataset.owner,
            title=known.title,
            subtitle=known.subtitle,
            description=known.description,
            isPrivate=known.private or None,
            keywords=list(known.keywords),
            licenses=[{"name": known.license or "unknown"}],
            collaborators=[
                JsonObject(username=c.username, role=c.role) for c in known.collaborators
            ],
            data=data,
            userSpecifiedSources=known.sources,
            expectedUpdateFrequency=known.frequency,
        )
        return answer(info=info)

    def update_metadata(self, account: str, fields: RequestFields) -> Reply:
        """Replace what is said about a dataset of the caller. Problems are `errors` in a 200 [V].

        One of the inputs folder belongs to any owner that is asked for.
        """
        dataset = self._own(account, fields, "update")
        metadata = DatasetMetadata.of_request(fields.inner("settings"))
        return answer(errors=self._datasets.update(dataset, metadata))

    def list_dataset_files(self, account: str, fields: RequestFields) -> Reply:
        """A page of the files of a version."""
        dataset, number = self._dataset(account, fields), fields.number("datasetVersionNumber")
        listing = f"dataset {dataset.owner}/{dataset.slug} {number}"
        files, token = page_of(list(files_below(_folder(dataset, number))), listing, fields)
        return answer(nextPageToken=token, datasetFiles=[file_entry(f) for f in files])

    def download_dataset(self, account: str, fields: RequestFields) -> Reply:
        """A redirection to one file, unchanged (Kaggle zips large ones [A]), or to a zip of all."""
        dataset, number = self._dataset(account, fields), fields.number("datasetVersionNumber")
        folder, name = _folder(dataset, number), fields.text("fileName")
        files = tuple(files_below(folder))
        if not name:
            key = f"datasets/{dataset.owner}/{folder.name}"
            return self._downloads.archive(f"{dataset.slug}.zip", key, folder, files)
        for file in files:
            if file.name == name:
                return self._downloads.redirect((folder / name).resolve(), file)
        raise RequestRefused(404, "Not found")

    def create_dataset(self, account: str, fields: RequestFields) -> Reply:
        """A new dataset of the caller. Kaggle reports problems as `error` inside a 200."""
        owner = fields.text("ownerSlug") or account
        if owner.lower() != account.lower():
            raise RequestRefused(403, "Permission 'datasets.create' was denied")
        dataset = StoredDataset(
            owner=account,
            slug=fields.text("slug").lower(),
            title=fields.text("title"),
            license=fields.text("licenseName"),
            private=fields.flag("isPrivate", False),
            description=fields.text("description"),
        )
        return self._created(self._datasets.create(dataset, self._files(account, fields)))

    def create_dataset_version(self, account: str, fields: RequestFields) -> Reply:
        """A new version of a dataset that was created here."""
        dataset = self._own(account, fields, "update")
        if not self._datasets.is_created(dataset):
            message = "unimplemented: CreateDatasetVersion of one of the inputs folder"
            raise RequestRefused(501, message)
        body = fields.inner("body")
        notes, files = body.text("versionNotes"), self._files(account, body)
        return self._created(self._datasets.add_version(dataset, files, notes))

    def delete_dataset(self, account: str, fields: RequestFields) -> Reply:
        """Delete a dataset that was created here, with all versions."""
        dataset = self._own(account, fields, "delete")
        if not self._datasets.is_created(dataset):
            raise RequestRefused(501, "unimplemented: DeleteDataset of one of the inputs folder")
        self._datasets.delete(dataset)
        return answer()

    def get_model(self, _: str, fields: RequestFields) -> Reply:
        """A model of the inputs folder; it belongs to any owner that is asked for."""
        owner, slug = fields.text("ownerSlug"), fields.text("modelSlug")
        instances = self._datasets.model(slug)
        if not owner or not instances:
            raise RequestRefused(404, "Not found")
        return answer(
            ref=f"{owner}/{slug}",
            slug=slug,
            title=slug,
            author=owner,
            url=f"{self._endpoint}/models/{owner}/{slug}",
            instances=[_instance(i) for i in instances],
        )

    def get_model_instance(self, _: str, fields: RequestFields) -> Reply:
        """One instance; `framework` is a name of the enum."""
        names = (fields.text("framework"), fields.text("instanceSlug"))
        for instance in self._datasets.model(fields.text("modelSlug")):
            if (instance.framework_enum, instance.slug) == names and fields.text("ownerSlug"):
                return answer(**_instance(instance))
        raise RequestRefused(404, "Not found")

    def _dataset(self, account: str, fields: RequestFields) -> StoredDataset:
        """For a dataset of another account Kaggle answers 403, whether or not it exists [A]."""
        owner = fields.text("ownerSlug")
        dataset = self._datasets.dataset(owner, fields.text("datasetSlug"))
        if dataset is not None and may_see(dataset, account):
            return dataset
        if owner.lower() == account.lower():
            raise RequestRefused(404, "Not found")
        raise RequestRefused(403, "Permission 'datasets.get' was denied")

    def _own(self, account: str, fields: RequestFields, act: str) -> StoredDataset:
        dataset = self._dataset(account, fields)
        if dataset.owner.lower() != account.lower():
            raise RequestRefused(403, f"Permission 'datasets.{act}' was denied")
        return dataset

    def _is_chosen(
        self, dataset: StoredDataset, account: str, group: str, fields: RequestFields
    ) -> bool:
        """Whether a list shows a dataset. The inputs folder says nothing about licenses and types.

        So its datasets fit every license and every type of file.
        """
        own, private = dataset.owner.lower() == account.lower(), dataset.private
        made = self._datasets.is_created(dataset)
        if group in OWN_GROUPS:
            kind = {"MY_PRIVATE": private, "MY_PUBLIC": not private}.get(group, True)
            if not (own and made and kind):
                return False
        elif group not in PUBLIC_GROUPS or (private and not own):
            return False
        user = fields.text("user").lower()
        if user and dataset.owner.lower() != user:
            return False
        files = list(files_below(dataset.folders[-1]))
        size = sum(file.size for file in files)
        most = fields.number("maxSize")
        if size < (fields.number("minSize") or 0) or (most is not None and size > most):
            return False
        known = self._datasets.metadata(dataset)
        if fields.text("tagIds") and fields.text("tagIds") not in known.keywords:
            return False
        kind_of_license = fields.text("license").removeprefix("DATASET_LICENSE_GROUP_")
        kind_of_file = fields.text("fileType").removeprefix("DATASET_FILE_TYPE_GROUP_")
        if made and not _has_license(known.license, kind_of_license):
            return False
        if made and not _has_type(files, kind_of_file):
            return False
        text = f"{dataset.title} {dataset.slug} {known.subtitle}".lower()
        return all(word in text for word in fields.text("search").lower().split())

    def _entry(self, dataset: StoredDataset) -> JsonObject:
        """A dataset in a response. A new version becomes the current one when it is READY [A]."""
        return JsonObject(
            id=_dataset_id(dataset),
            ref=f"{dataset.owner}/{dataset.slug}",
            title=dataset.title,
            subtitle=self._datasets.metadata(dataset).subtitle,
            creatorName=dataset.owner,
            ownerRef=dataset.owner,
            ownerName=dataset.owner,
            url=f"{self._endpoint}/datasets/{dataset.owner}/{dataset.slug}",
            licenseName=dataset.license,
            isPrivate=dataset.private or None,
            lastUpdated=iso_time(dataset.changed),
            currentVersionNumber=self._current(dataset) or None,
            description=dataset.description,
            totalBytes=sum(file.size for file in files_below(dataset.folders[-1])) or None,
        )

    def _current(self, dataset: StoredDataset) -> int:
        return len(dataset.folders) - (self._datasets.status(dataset) != "READY")

    def _files(
        self, account: str, fields: RequestFields, above: str = ""
    ) -> list[tuple[str, Path]]:
        """The files of a request and of its directories, which hold others [V, the SDK's types].

        Each is named by its path; that a directory becomes a folder of this name is [A].
        """
        found: list[tuple[str, Path]] = []
        for file in fields.items("files"):
            upload, path = self._uploads.take(file.text("token"), account, "dataset")
            found.append((f"{above}{upload.name}", path))
        for directory in fields.items("directories"):
            found += self._files(account, directory, f"{above}{directory.text('name')}/")
        return found

    def _created(self, made: StoredDataset | str) -> Reply:
        if isinstance(made, str):
            return answer(status="error", error=made)
        ref = f"{made.owner}/{made.slug}"
        return answer(status="ok", ref=ref, url=f"{self._endpoint}/datasets/{ref}")


def _folder(dataset: StoredDataset, number: int | None) -> Path:
    folder = dataset.folder(number)
    if folder is None:
        raise RequestRefused(404, "Not found")
    return folder


def _dataset_id(dataset: StoredDataset) -> int:
    """A number that stays the same over a restart."""
    return 1_000_000 + zlib.crc32(f"{dataset.owner}/{dataset.slug}".lower().encode()) % 1_000_000


def _has_license(name: str, group: str) -> bool:
    """Whether a license belongs to a group; the empty group and ALL have every license."""
    kind = next((k for k, starts in LICENSES.items() if name.lower().startswith(starts)), "OTHER")
    return group in ("", "ALL", kind)


def _has_type(files: list[StoredFile], kind: str) -> bool:
    """Whether a file is of a type; the empty type and ALL fit every file."""
    ends = FILE_TYPES.get(kind)
    return ends is None or any(file.name.lower().endswith(ends) for file in files)


def _instance(instance: ModelInstance) -> JsonObject:
    names = {"slug": instance.slug, "framework": instance.framework_enum}
    return JsonObject(**names, versionNumber=instance.versions[-1])
