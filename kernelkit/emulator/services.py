"""Kaggle's calls beside those on kernels: competitions, uploads, datasets and models.

JSON fields in, JSON out, as in `api`; the rules are in `contest`, `uploads` and `library`. What the
official client may ask besides (lists of competitions, leaderboards, forums, dataset downloads …)
stays unimplemented.
"""

from __future__ import annotations

import base64
import contextlib
import os
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kernelkit.emulator.api import MAX_PAGE, PAGE, Fields, Json, Reply, iso
from kernelkit.emulator.contest import ARCHIVES, Contest, Submission, files_below
from kernelkit.emulator.library import Dataset, Instance, Library, may_see
from kernelkit.emulator.state import Kaggle, OutputFile, Refusal, Status
from kernelkit.emulator.uploads import Uploads

DEADLINE = "2018-10-19T23:59:00Z"
"""Of every competition: past, as that of the TGS Salt challenge."""
METRIC = "Mean Average Precision at Different Intersection over Union (IoU) Thresholds"

T = TypeVar("T")


class Services:
    """The calls, by the names they have on the wire."""

    def __init__(
        self, kaggle: Kaggle, contest: Contest, uploads: Uploads, library: Library, endpoint: str
    ) -> None:
        self._kaggle = kaggle
        self._contest = contest
        self._uploads = uploads
        self._library = library
        self._endpoint = endpoint
        competitions, datasets = "competitions.CompetitionApiService", "datasets.DatasetApiService"
        models = "models.ModelApiService"
        self.calls: dict[str, Callable[[str, Fields], Json | Reply]] = {
            f"{competitions}/GetCompetition": self.get_competition,
            f"{competitions}/ListDataFiles": self.list_data_files,
            f"{competitions}/DownloadDataFile": self.download_data_file,
            f"{competitions}/DownloadDataFiles": self.download_data_files,
            f"{competitions}/StartSubmissionUpload": self.start_submission_upload,
            f"{competitions}/CreateSubmission": self.create_submission,
            f"{competitions}/CreateCodeSubmission": self.create_code_submission,
            f"{competitions}/ListSubmissions": self.list_submissions,
            f"{competitions}/GetSubmission": self.get_submission,
            f"{competitions}/GetSubmissionLimits": self.submission_limits,
            "blobs.BlobApiService/StartBlobUpload": self.start_blob_upload,
            f"{datasets}/GetDatasetStatus": self.dataset_status,
            f"{datasets}/GetDataset": self.get_dataset,
            f"{datasets}/ListDatasetFiles": self.list_dataset_files,
            f"{datasets}/CreateDataset": self.create_dataset,
            f"{datasets}/CreateDatasetVersion": self.create_dataset_version,
            f"{models}/GetModel": self.get_model,
            f"{models}/GetModelInstance": self.get_model_instance,
        }

    def get_competition(self, _: str, fields: Fields) -> Json:
        """What is known of a competition; shown also where the rules are not accepted."""
        slug = self._contest.check(fields.text("competitionName"), rules=False)
        terms = self._contest.terms
        answer: Json = {
            "ref": slug,
            "title": slug,
            "url": f"{self._endpoint}/competitions/{slug}",
            "category": "Featured",
            "deadline": DEADLINE,
            "maxDailySubmissions": terms.daily,
            "maxTeamSize": 5,
        }
        if self._contest.is_scored(slug):
            answer["evaluationMetric"] = METRIC
        if slug not in terms.rules_not_accepted:
            answer["userHasEntered"] = True
        return answer | ({"isKernelsSubmissionsOnly": True} if slug in terms.code_only else {})

    def list_data_files(self, _: str, fields: Fields) -> Json:
        """A page of the competition's files."""
        slug = self._contest.check(fields.text("competitionName"))
        files, answer = _page(self._contest.files(slug), f"data {slug}", fields)
        return answer | _list("files", [_file(f) for f in files])

    def download_data_file(self, _: str, fields: Fields) -> Reply:
        """A redirection to one file, as it is (Kaggle zips large ones [A])."""
        name = fields.text("fileName")
        return self._found(self._contest.offer(fields.text("competitionName"), name), name)

    def download_data_files(self, _: str, fields: Fields) -> Reply:
        """A redirection to a zip of all files."""
        return self._found(*self._contest.offer_all(fields.text("competitionName")))

    def start_submission_upload(self, account: str, fields: Fields) -> Json:
        """Where to put the file, and the token that names it afterwards."""
        slug = self._contest.check(fields.text("competitionName"))
        name = fields.text("fileName")
        if name.lower().endswith(ARCHIVES):
            raise Refusal(501, "unimplemented: a submission that is an archive")
        return self._begin(account, f"submission to {slug}", name, fields)

    def create_submission(self, account: str, fields: Fields) -> Json:
        """Enter what was uploaded."""
        if fields.flag("sandbox", False) or fields.number("benchmarkModelVersionId") is not None:
            raise Refusal(501, "unimplemented: CreateSubmission with sandbox or a model version")
        slug = self._contest.takes(fields.text("competitionName"), upload=True)
        token = fields.text("blobFileTokens")
        upload, path = self._uploads.take(token, account, f"submission to {slug}")
        description = fields.text("submissionDescription")
        made = self._contest.enter(account, slug, path, upload.name, description, upload=True)
        return _entered(slug, made)

    def create_code_submission(self, account: str, fields: Fields) -> Json:
        """Enter an output of a kernel's version. It is not run again on other data, as Kaggle's."""
        slug = self._contest.takes(fields.text("competitionName"), upload=False)
        number = fields.number("kernelVersion")
        owner, kernel = fields.text("kernelOwner"), fields.text("kernelSlug")
        label = f"v{number}" if number is not None else ""
        version = self._kaggle.find(account, owner, kernel, label)[1]
        if version.status is not Status.COMPLETE:
            raise Refusal(400, f"Version {version.number} of the notebook is {version.status}")
        name = fields.text("fileName") or "submission.csv"
        if name not in [output.name for output in version.outputs]:
            raise Refusal(400, f"Version {version.number} of the notebook has no output {name}")
        path, description = version.working / name, fields.text("submissionDescription")
        made = self._contest.enter(account, slug, path, name, description, upload=False)
        return _entered(slug, made)

    def list_submissions(self, account: str, fields: Fields) -> Json:
        """A page of the caller's submissions, the newest first, whatever order is asked for."""
        for name in ("sortBy", "group"):
            if fields.text(name):  # defaults are left out on the wire
                raise Refusal(501, f"unimplemented: ListSubmissions with {name}")
        slug = self._contest.check(fields.text("competitionName"), rules=False)
        found = self._contest.submissions(account, slug)
        page, answer = _page(found, f"submissions {account} {slug}", fields)
        return answer | _list("submissions", [self._submission(s) for s in page])

    def get_submission(self, account: str, fields: Fields) -> Json:
        """One submission."""
        return self._submission(self._contest.submission(account, fields.number("ref") or 0))

    def submission_limits(self, account: str, fields: Fields) -> Json:
        """What `kaggle competitions submit` asks at its end [V]."""
        limits = self._contest.limits(account, fields.text("competitionName"))
        counts = {"numToday": limits.today, "numTotal": limits.total, "numAllowedNow": limits.left}
        return {name: count for name, count in counts.items() if count}

    def start_blob_upload(self, account: str, fields: Fields) -> Json:
        """Where to put a dataset's file."""
        if (kind := fields.text("type")) != "DATASET":
            raise Refusal(501, f"unimplemented: StartBlobUpload of {kind or 'no type'}")
        return self._begin(account, "dataset", fields.text("name"), fields)

    def dataset_status(self, account: str, fields: Fields) -> Json:
        """The state of the latest version. NOT_YET_PERSISTED, the default, is left out."""
        status = self._library.status(self._dataset(account, fields))
        return {} if status == "NOT_YET_PERSISTED" else {"status": status}

    def get_dataset(self, account: str, fields: Fields) -> Json:
        """What is known of a dataset. The new version is current once it is READY [A]."""
        dataset = self._dataset(account, fields)
        ready = self._library.status(dataset) == "READY"
        current = len(dataset.folders) - (not ready)
        files = files_below(dataset.folders[-1])
        answer = {
            "ref": f"{dataset.owner}/{dataset.slug}",
            "title": dataset.title,
            "ownerRef": dataset.owner,
            "ownerName": dataset.owner,
            "url": f"{self._endpoint}/datasets/{dataset.owner}/{dataset.slug}",
            "licenseName": dataset.license,
            "isPrivate": dataset.private,
            "currentVersionNumber": current,
            "totalBytes": sum(file.size for file in files),
        }
        return {name: value for name, value in answer.items() if value}

    def list_dataset_files(self, account: str, fields: Fields) -> Json:
        """A page of a version's files."""
        dataset, number = self._dataset(account, fields), fields.number("datasetVersionNumber")
        folder = dataset.folder(number)
        if folder is None:
            raise Refusal(404, "Not found")
        of = f"dataset {dataset.owner}/{dataset.slug} {number}"
        files, answer = _page(list(files_below(folder)), of, fields)
        return answer | _list("datasetFiles", [_file(f) for f in files])

    def create_dataset(self, account: str, fields: Fields) -> Json:
        """A new dataset of the caller's own; what Kaggle minds comes as `error` inside a 200."""
        owner = fields.text("ownerSlug") or account
        if owner.lower() != account.lower():
            raise Refusal(403, "Permission 'datasets.create' was denied")
        about = Dataset(
            owner=account,
            slug=fields.text("slug").lower(),
            title=fields.text("title"),
            license=fields.text("licenseName"),
            private=fields.flag("isPrivate", False),
        )
        return self._created(self._library.create(about, self._files(account, fields)))

    def create_dataset_version(self, account: str, fields: Fields) -> Json:
        """A new version of a dataset that was created here."""
        dataset = self._dataset(account, fields)
        if dataset.owner.lower() != account.lower():
            raise Refusal(403, "Permission 'datasets.update' was denied")
        if not self._library.is_created(dataset):
            raise Refusal(501, "unimplemented: CreateDatasetVersion of one of the inputs folder")
        files = self._files(account, fields.inner("body"))
        return self._created(self._library.add_version(dataset, files))

    def get_model(self, _: str, fields: Fields) -> Json:
        """A model of the inputs folder: everybody's who is asked for."""
        owner, slug = fields.text("ownerSlug"), fields.text("modelSlug")
        instances = self._library.model(slug)
        if not owner or not instances:
            raise Refusal(404, "Not found")
        about: Json = {"ref": f"{owner}/{slug}", "slug": slug}
        about |= {"title": slug, "author": owner, "url": f"{self._endpoint}/models/{owner}/{slug}"}
        return about | _list("instances", [_instance(i) for i in instances])

    def get_model_instance(self, _: str, fields: Fields) -> Json:
        """One instance; `framework` is a name of the enum."""
        names = (fields.text("framework"), fields.text("instanceSlug"))
        for instance in self._library.model(fields.text("modelSlug")):
            if (instance.framework_enum, instance.slug) == names and fields.text("ownerSlug"):
                return _instance(instance)
        raise Refusal(404, "Not found")

    def _dataset(self, account: str, fields: Fields) -> Dataset:
        """Kaggle says 403 of what is another's, be it private or not there at all [A]."""
        owner = fields.text("ownerSlug")
        dataset = self._library.dataset(owner, fields.text("datasetSlug"))
        if dataset is not None and may_see(dataset, account):
            return dataset
        if owner.lower() == account.lower():
            raise Refusal(404, "Not found")
        raise Refusal(403, "Permission 'datasets.get' was denied")

    def _files(self, account: str, fields: Fields) -> list[tuple[str, Path]]:
        if fields.items("directories"):
            raise Refusal(501, "unimplemented: a dataset with directories")
        tokens = [file.text("token") for file in fields.items("files")]
        taken = [self._uploads.take(token, account, "dataset") for token in tokens]
        return [(upload.name, path) for upload, path in taken]

    def _created(self, made: Dataset | str) -> Json:
        if isinstance(made, str):
            return {"status": "error", "error": made}
        path = f"/datasets/{made.owner}/{made.slug}"
        return {"status": "ok", "ref": f"{made.owner}/{made.slug}", "url": self._endpoint + path}

    def _begin(self, account: str, purpose: str, name: str, fields: Fields) -> Json:
        size = fields.number("contentLength") or 0
        upload = self._uploads.begin(account, purpose, name, size)
        return {"token": upload.token, "createUrl": f"{self._endpoint}/upload/{upload.key}"}

    def _found(self, key: str, name: str) -> Reply:
        address = f"{self._endpoint}/download/{key}/{urllib.parse.quote(os.fsencode(name))}"
        return Reply(302, headers={"Location": address})

    def _submission(self, submission: Submission) -> Json:
        answer: Json = {
            "ref": submission.ref,
            "totalBytes": submission.size,
            "date": iso(submission.date),
            "description": submission.description,
            "errorDescription": submission.error,
            "fileName": submission.file_name,
            "publicScore": submission.public,
            "privateScore": submission.private,
            "status": "" if submission.status == "PENDING" else submission.status,
            "submittedBy": submission.account,
            "submittedByRef": submission.account,
            "teamName": submission.account,
            "url": f"{self._endpoint}/submissions/{submission.ref}",
        }
        return {name: value for name, value in answer.items() if value != ""}


def _entered(slug: str, made: Submission | None) -> Json:
    message = f"Successfully submitted to {slug}"
    return {"message": message} | ({"ref": made.ref} if made else {})


def _instance(instance: Instance) -> Json:
    about = {"slug": instance.slug, "framework": instance.framework_enum}
    return about | {"versionNumber": instance.versions[-1]}


def _file(file: OutputFile) -> Json:
    answer: Json = {"ref": file.name, "name": file.name, "creationDate": iso(file.modified)}
    return answer | ({"totalBytes": file.size} if file.size else {})


def _list(name: str, values: list[Json]) -> Json:
    """A list, or nothing: a null list crashes the client, an empty one is left out [V]."""
    return {name: values} if values else {}


def _page(items: Sequence[T], of: str, fields: Fields) -> tuple[Sequence[T], Json]:
    """The page that a token or a number asks for, and an answer that names the next one.

    A token belongs to the list that it came with.
    """
    size = fields.number("pageSize")
    size = PAGE if size is None else min(size, MAX_PAGE)
    number = fields.number("page")
    if size < 1 or (number is not None and number < 1):
        raise Refusal(400, "Invalid value for pageSize or page")
    token = fields.text("pageToken")
    start = _start(of, token) if token else ((number or 1) - 1) * size
    end = start + size
    more = {"nextPageToken": _token(of, end)} if end < len(items) else {}
    return items[start:end], more


def _token(of: str, start: int) -> str:
    """Letters and digits only, for the official client passes it on a command line."""
    return base64.b16encode(f"{of}:{start}".encode()).decode()


def _start(of: str, token: str) -> int:
    with contextlib.suppress(ValueError):
        owner, _, start = base64.b16decode(token).decode().rpartition(":")
        if owner == of and start.isdecimal():
            return int(start)
    raise Refusal(400, "Invalid page token")
