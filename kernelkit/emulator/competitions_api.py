"""Kaggle's calls on competitions: JSON fields in, a response out.

The rules are in `competitions` and `uploads`. Other calls that the official client can make (teams,
topics, episodes, hosts …) are not implemented.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable

from kernelkit.emulator.competitions import (
    ARCHIVES,
    Competitions,
    LeaderboardRow,
    StoredSubmission,
)
from kernelkit.emulator.downloads import Downloads, file_entry
from kernelkit.emulator.fields import JsonObject, RequestFields, answer, iso_time, page_of
from kernelkit.emulator.responses import Reply, RequestRefused
from kernelkit.emulator.state import EmulatedKaggle, WorkerStatus
from kernelkit.emulator.uploads import Uploads, begin_upload

DEADLINE = "2020-01-01T00:00:00Z"
"""Deadline of every competition: in the past, so submissions are late ones."""
METRIC = "Mean Average Precision at Different Intersection over Union (IoU) Thresholds"


class CompetitionsApi:
    """The calls. Each takes the caller's account and the fields of the request."""

    def __init__(
        self,
        kaggle: EmulatedKaggle,
        competitions: Competitions,
        uploads: Uploads,
        downloads: Downloads,
        endpoint: str,
    ) -> None:
        self._kaggle = kaggle
        self._competitions = competitions
        self._uploads = uploads
        self._downloads = downloads
        self._endpoint = endpoint
        service = "competitions.CompetitionApiService"
        self.calls: dict[str, Callable[[str, RequestFields], Reply]] = {
            f"{service}/ListCompetitions": self.list_competitions,
            f"{service}/GetCompetition": self.get_competition,
            f"{service}/ListDataFiles": self.list_data_files,
            f"{service}/DownloadDataFile": self.download_data_file,
            f"{service}/DownloadDataFiles": self.download_data_files,
            f"{service}/GetLeaderboard": self.get_leaderboard,
            f"{service}/DownloadLeaderboard": self.download_leaderboard,
            f"{service}/StartSubmissionUpload": self.start_submission_upload,
            f"{service}/CreateSubmission": self.create_submission,
            f"{service}/CreateCodeSubmission": self.create_code_submission,
            f"{service}/ListSubmissions": self.list_submissions,
            f"{service}/GetSubmission": self.get_submission,
            f"{service}/GetSubmissionLimits": self.submission_limits,
        }

    def list_competitions(self, account: str, fields: RequestFields) -> Reply:
        """A page of the competitions, by name.

        A folder of the inputs does not say in which tab or category its competition is, so it is in
        all of them, except for competitions of one's own. One is entered if its rules are accepted.
        """
        words = fields.text("search").lower().split()
        tab = fields.text("group").removeprefix("COMPETITION_LIST_TAB_")
        not_entered = self._competitions.settings.rules_not_accepted
        found = [
            slug
            for slug in self._competitions.slugs()
            if all(word in slug for word in words)
            and tab not in ("HOSTED", "UNLAUNCHED", "UNLAUNCHED_COMMUNITY")
            and not (tab == "ENTERED" and slug in not_entered)
        ]
        page, token = page_of(found, f"competitions {tab} {fields.text('search')}", fields)
        competitions = [self._entry(account, slug) for slug in page]
        for entry in competitions:
            entry["ref"] = entry["url"]  # in a list, `ref` is the address of the page [A]
        return answer(competitions=competitions, nextPageToken=token)

    def get_competition(self, account: str, fields: RequestFields) -> Reply:
        """A competition; also visible before its rules are accepted."""
        slug = self._competitions.check(fields.text("competitionName"), rules=False)
        return answer(**self._entry(account, slug))

    def _entry(self, account: str, slug: str) -> JsonObject:
        settings = self._competitions.settings
        rows = self._competitions.leaderboard(slug, public=False)
        ranks = [n for n, row in enumerate(rows, 1) if row.account.lower() == account.lower()]
        return JsonObject(
            id=_number(slug),
            ref=slug,
            teamCount=len(rows) or None,
            userRank=ranks[0] if ranks else None,
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
        return answer(nextPageToken=token, files=[file_entry(f) for f in files])

    def download_data_file(self, _: str, fields: RequestFields) -> Reply:
        """A redirection to one file, unchanged (Kaggle zips large ones [A])."""
        slug, name = fields.text("competitionName"), fields.text("fileName")
        data = self._competitions.data(slug)
        for file in self._competitions.files(slug):
            if data is not None and file.name == name:
                return self._downloads.redirect((data / name).resolve(), file)
        raise RequestRefused(404, "Not found")

    def download_data_files(self, _: str, fields: RequestFields) -> Reply:
        """A redirection to a zip of all files."""
        slug = self._competitions.check(fields.text("competitionName"))
        files = tuple(self._competitions.files(slug))
        data = self._competitions.data(slug)
        return self._downloads.archive(f"{slug}.zip", "competitions", data, files)

    def get_leaderboard(self, _: str, fields: RequestFields) -> Reply:
        """A page of the private leaderboard, or of the public one if the caller wants it [V]."""
        slug, public = fields.text("competitionName"), fields.flag("overridePublic", False)
        rows = self._competitions.leaderboard(slug, public)
        page, token = page_of(rows, f"leaderboard {slug} {public}", fields)
        shown = [
            JsonObject(
                teamId=_number(row.account),
                teamName=row.account,
                submissionDate=iso_time(row.date),
                score=row.score,
            )
            for row in page
        ]
        return answer(submissions=shown, nextPageToken=token)

    def download_leaderboard(self, _: str, fields: RequestFields) -> Reply:
        """A redirection to a zip of the public leaderboard as a table [A]."""
        slug = self._competitions.check(fields.text("competitionName"), rules=False)
        table = _table(self._competitions.leaderboard(slug, public=True))
        member = f"{slug}-publicleaderboard.csv"
        return self._downloads.archive_of(f"{slug}.zip", "leaderboards", member, table)

    def start_submission_upload(self, account: str, fields: RequestFields) -> Reply:
        """The address to send the file to, and the token that names it later."""
        slug = self._competitions.check(fields.text("competitionName"))
        name = fields.text("fileName")
        if name.lower().endswith(ARCHIVES):
            raise RequestRefused(501, "unimplemented: a submission that is an archive")
        purpose = f"submission to {slug}"
        return begin_upload(self._uploads, self._endpoint, account, purpose, name, fields)

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


def _number(name: str) -> int:
    """A number for a competition or a team that stays the same over a restart."""
    return 10_000 + zlib.crc32(name.lower().encode()) % 1_000_000


def _table(rows: list[LeaderboardRow]) -> str:
    """A leaderboard as csv, with Kaggle's columns [A]."""
    columns = ["Rank", "TeamId", "TeamName", "LastSubmissionDate", "Score", "SubmissionCount"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for rank, row in enumerate(rows, 1):
        known = (row.account, iso_time(row.date), row.score, row.submissions)
        writer.writerow([rank, _number(row.account), *known])
    return text.getvalue()


def _submitted(slug: str, made: StoredSubmission | None) -> Reply:
    return answer(message=f"Successfully submitted to {slug}", ref=made.ref if made else None)
