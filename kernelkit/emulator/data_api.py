"""Kaggle's other calls: competitions, uploads, datasets and models.

The rules are in `competitions`, `uploads` and `datasets`. Other calls that the official client can
make (lists of competitions, leaderboards, forums, dataset downloads …) are not implemented.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from kernelkit.emulator.competitions import (
    ARCHIVES,
    Competitions,
    StoredSubmission,
    files_below,
)
from kernelkit.emulator.datasets import Datasets, ModelInstance, StoredDataset, may_see
from kernelkit.emulator.fields import JsonObject, RequestFields, answer, iso_time, page_of
from kernelkit.emulator.responses import Reply, RequestRefused
from kernelkit.emulator.state import EmulatedKaggle, StoredFile, WorkerStatus
from kernelkit.emulator.uploads import Uploads

DEADLINE = "2020-01-01T00:00:00Z"
"""Deadline of every competition: in the past, so submissions are late ones."""
METRIC = "Mean Average Precision at Different Intersection over Union (IoU) Thresholds"


class DataApi:
    """The calls. Each takes the caller's account and the fields of the request."""

    def __init__(
        self,
        kaggle: EmulatedKaggle,
        competitions: Competitions,
        uploads: Uploads,
        datasets: Datasets,
        endpoint: str,
    ) -> None:
        self._kaggle = kaggle
        self._competitions = competitions
        self._uploads = uploads
        self._datasets = datasets
        self._endpoint = endpoint
        competition_service = "competitions.CompetitionApiService"
        dataset_service, model_service = "datasets.DatasetApiService", "models.ModelApiService"
        self.calls: dict[str, Callable[[str, RequestFields], Reply]] = {
            f"{competition_service}/GetCompetition": self.get_competition,
            f"{competition_service}/ListDataFiles": self.list_data_files,
            f"{competition_service}/DownloadDataFile": self.download_data_file,
            f"{competition_service}/DownloadDataFiles": self.download_data_files,
            f"{competition_service}/StartSubmissionUpload": self.start_submission_upload,
            f"{competition_service}/CreateSubmission": self.create_submission,
            f"{competition_service}/CreateCodeSubmission": self.create_code_submission,
            f"{competition_service}/ListSubmissions": self.list_submissions,
            f"{competition_service}/GetSubmission": self.get_submission,
            f"{competition_service}/GetSubmissionLimits": self.submission_limits,
            "blobs.BlobApiService/StartBlobUpload": self.start_blob_upload,
            f"{dataset_service}/GetDatasetStatus": self.dataset_status,
            f"{dataset_service}/GetDataset": self.get_dataset,
            f"{dataset_service}/ListDatasetFiles": self.list_dataset_files,
            f"{dataset_service}/CreateDataset": self.create_dataset,
            f"{dataset_service}/CreateDatasetVersion": self.create_dataset_version,
            f"{model_service}/GetModel": self.get_model,
            f"{model_service}/GetModelInstance": self.get_model_instance,
        }

    def get_competition(self, _: str, fields: RequestFields) -> Reply:
        """A competition; also visible before its rules are accepted."""
        slug = self._competitions.check(fields.text("competitionName"), rules=False)
        settings = self._competitions.settings
        return answer(
            ref=slug,
            title=slug,
            url=f"{self._endpoint}/competitions/{slug}",
            category="Featured",
            deadline=DEADLINE,
            maxDailySubmissions=settings.daily,
            maxTeamSize=5,
            evaluationMetric=METRIC if self._competitions.is_scored(slug) else "",
            userHasEntered=True if slug not in settings.rules_not_accepted else None,
            isKernelsSubmissionsOnly=True if slug in settings.code_only else None,
        )

    def list_data_files(self, _: str, fields: RequestFields) -> Reply:
        """A page of the competition's files."""
        slug = self._competitions.check(fields.text("competitionName"))
        files, token = page_of(self._competitions.files(slug), f"data {slug}", fields)
        return answer(nextPageToken=token, files=[_file(f) for f in files])

    def download_data_file(self, _: str, fields: RequestFields) -> Reply:
        """A redirection to one file, unchanged (Kaggle zips large ones [A])."""
        name = fields.text("fileName")
        return self._redirect(self._competitions.offer(fields.text("competitionName"), name), name)

    def download_data_files(self, _: str, fields: RequestFields) -> Reply:
        """A redirection to a zip of all files."""
        return self._redirect(*self._competitions.offer_all(fields.text("competitionName")))

    def start_submission_upload(self, account: str, fields: RequestFields) -> Reply:
        """The address to send the file to, and the token that names it later."""
        slug = self._competitions.check(fields.text("competitionName"))
        name = fields.text("fileName")
        if name.lower().endswith(ARCHIVES):
            raise RequestRefused(501, "unimplemented: a submission that is an archive")
        return self._begin_upload(account, f"submission to {slug}", name, fields)

    def create_submission(self, account: str, fields: RequestFields) -> Reply:
        """Submit a file that was uploaded."""
        if fields.flag("sandbox", False) or fields.number("benchmarkModelVersionId") is not None:
            message = "unimplemented: CreateSubmission with sandbox or a model version"
            raise RequestRefused(501, message)
        slug = self._competitions.check_accepts(fields.text("competitionName"), upload=True)
        token = fields.text("blobFileTokens")
        upload, path = self._uploads.take(token, account, f"submission to {slug}")
        description = fields.text("submissionDescription")
        made = self._competitions.enter(account, slug, path, upload.name, description, upload=True)
        return _submitted(slug, made)

    def create_code_submission(self, account: str, fields: RequestFields) -> Reply:
        """Submit an output of a kernel version. Unlike on Kaggle, the notebook is not run again."""
        slug = self._competitions.check_accepts(fields.text("competitionName"), upload=False)
        number = fields.number("kernelVersion")
        owner, kernel = fields.text("kernelOwner"), fields.text("kernelSlug")
        label = f"v{number}" if number is not None else ""
        version = self._kaggle.find(account, owner, kernel, label)[1]
        which = f"Version {version.number} of the notebook"
        if version.status is not WorkerStatus.COMPLETE:
            raise RequestRefused(400, f"{which} is {version.status}")
        name = fields.text("fileName") or "submission.csv"
        if name not in [output.name for output in version.outputs]:
            raise RequestRefused(400, f"{which} has no output {name}")
        path, description = version.working / name, fields.text("submissionDescription")
        made = self._competitions.enter(account, slug, path, name, description, upload=False)
        return _submitted(slug, made)

    def list_submissions(self, account: str, fields: RequestFields) -> Reply:
        """A page of the caller's submissions, newest first."""
        for name in ("sortBy", "group"):
            if fields.text(name):  # the client leaves defaults out
                raise RequestRefused(501, f"unimplemented: ListSubmissions with {name}")
        slug = self._competitions.check(fields.text("competitionName"), rules=False)
        found = self._competitions.submissions(account, slug)
        page, token = page_of(found, f"submissions {account} {slug}", fields)
        return answer(nextPageToken=token, submissions=[self._submission(s) for s in page])

    def get_submission(self, account: str, fields: RequestFields) -> Reply:
        """One submission."""
        found = self._competitions.submission(account, fields.number("ref") or 0)
        return answer(**self._submission(found))

    def submission_limits(self, account: str, fields: RequestFields) -> Reply:
        """`kaggle competitions submit` asks for them at its end [V]."""
        limits = self._competitions.limits(account, fields.text("competitionName"))
        return answer(
            numToday=limits.today or None,
            numTotal=limits.total or None,
            numAllowedNow=limits.left or None,
        )

    def start_blob_upload(self, account: str, fields: RequestFields) -> Reply:
        """The address to send a file of a dataset to."""
        if (kind := fields.text("type")) != "DATASET":
            raise RequestRefused(501, f"unimplemented: StartBlobUpload of {kind or 'no type'}")
        return self._begin_upload(account, "dataset", fields.text("name"), fields)

    def dataset_status(self, account: str, fields: RequestFields) -> Reply:
        """The state of the latest version. NOT_YET_PERSISTED, the default, is left out."""
        status = self._datasets.status(self._dataset(account, fields))
        return answer(status="" if status == "NOT_YET_PERSISTED" else status)

    def get_dataset(self, account: str, fields: RequestFields) -> Reply:
        """A dataset. A new version becomes the current one when it is READY [A]."""
        dataset = self._dataset(account, fields)
        ready = self._datasets.status(dataset) == "READY"
        return answer(
            ref=f"{dataset.owner}/{dataset.slug}",
            title=dataset.title,
            ownerRef=dataset.owner,
            ownerName=dataset.owner,
            url=f"{self._endpoint}/datasets/{dataset.owner}/{dataset.slug}",
            licenseName=dataset.license,
            isPrivate=dataset.private or None,
            currentVersionNumber=(current := len(dataset.folders) - (not ready)) or None,
            description=dataset.description,
            versions=_versions(dataset, current),
            totalBytes=sum(file.size for file in files_below(dataset.folders[-1])) or None,
        )

    def list_dataset_files(self, account: str, fields: RequestFields) -> Reply:
        """A page of the files of a version."""
        dataset, number = self._dataset(account, fields), fields.number("datasetVersionNumber")
        folder = dataset.folder(number)
        if folder is None:
            raise RequestRefused(404, "Not found")
        listing = f"dataset {dataset.owner}/{dataset.slug} {number}"
        files, token = page_of(list(files_below(folder)), listing, fields)
        return answer(nextPageToken=token, datasetFiles=[_file(f) for f in files])

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
        dataset = self._dataset(account, fields)
        if dataset.owner.lower() != account.lower():
            raise RequestRefused(403, "Permission 'datasets.update' was denied")
        if not self._datasets.is_created(dataset):
            message = "unimplemented: CreateDatasetVersion of one of the inputs folder"
            raise RequestRefused(501, message)
        body = fields.inner("body")
        notes, files = body.text("versionNotes"), self._files(account, body)
        return self._created(self._datasets.add_version(dataset, files, notes))

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

    def _begin_upload(self, account: str, purpose: str, name: str, fields: RequestFields) -> Reply:
        size = fields.number("contentLength") or 0
        upload = self._uploads.begin(account, purpose, name, size)
        return answer(token=upload.token, createUrl=f"{self._endpoint}/upload/{upload.key}")

    def _redirect(self, key: str, name: str) -> Reply:
        address = f"{self._endpoint}/download/{key}/{urllib.parse.quote(os.fsencode(name))}"
        return Reply(302, headers={"Location": address})

    def _submission(self, submission: StoredSubmission) -> JsonObject:
        return JsonObject(
            ref=submission.ref,
            totalBytes=submission.size,
            date=iso_time(submission.date),
            description=submission.description,
            errorDescription=submission.error,
            fileName=submission.file_name,
            publicScore=submission.public,
            privateScore=submission.private,
            status="" if submission.status == "PENDING" else submission.status,
            submittedBy=submission.account,
            submittedByRef=submission.account,
            teamName=submission.account,
            url=f"{self._endpoint}/submissions/{submission.ref}",
        )


def _submitted(slug: str, made: StoredSubmission | None) -> Reply:
    return answer(message=f"Successfully submitted to {slug}", ref=made.ref if made else None)


def _versions(dataset: StoredDataset, current: int) -> list[JsonObject]:
    """The versions up to the current one, newest first [A]."""
    notes = dataset.notes[:current]
    return [
        JsonObject(versionNumber=number, versionNotes=said)
        for number, said in reversed(list(enumerate(notes, 1)))
    ]


def _instance(instance: ModelInstance) -> JsonObject:
    names = {"slug": instance.slug, "framework": instance.framework_enum}
    return JsonObject(**names, versionNumber=instance.versions[-1])


def _file(file: StoredFile) -> JsonObject:
    return JsonObject(
        ref=file.name,
        name=file.name,
        creationDate=iso_time(file.modified),
        totalBytes=file.size or None,
    )
