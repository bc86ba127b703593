"""The calls about a competition: its terms, its sample, and a submission from upload to score.

A submission is made once. If the response to it is lost, the list of submissions shows whether it
was accepted: the description of each contains a mark that names the run.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import requests
from kagglesdk.competitions.types import competition_api_service as competitions

from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    DeadlineError,
    LocalError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle.answers import (
    MESSAGE_CHARACTERS,
    TransientError,
    as_flag,
    as_int,
    as_text,
)
from kernelkit.kaggle.connection import Connection
from kernelkit.kaggle.types import Scoring, Submission, Terms, growing
from kernelkit.kaggle.uploads import UploadAddress, upload
from kernelkit.kaggle.waiting import count_bytes
from kernelkit.storage import one_line

PAGE_SIZE, PAGES = 100, 20  # a search through a list ends after 2,000 entries
ENTER_ATTEMPTS = 2
LISTED_SECONDS = 20
"""How long to look for a submission whose response was lost, before it is sent again [?]."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0  # between two questions for the score
SAMPLE_BYTES = 1 << 30  # a larger file is not a sample
CHUNK_BYTES = 1 << 20

T = TypeVar("T")


class Competition:
    """One competition, as one account sees it."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name
        self._api = connection.sdk.competitions.competition_api_client
        self._clock, self._sleep = connection.timeouts.clock, connection.timeouts.sleep

    def terms(self) -> Terms:
        """What it accepts.

        Raises:
            NotFoundError: there is no such competition.
        """
        request = competitions.ApiGetCompetitionRequest()
        request.competition_name = self.name
        return self._read("the competition", lambda: _terms(self._api.get_competition(request)))

    def left_today(self, daily: int | None) -> int | None:
        """How many submissions may still be made today (UTC); None if that is unknown.

        Failed ones do not count [V, SDK text]. An account without a team gets zeros [V, SDK text]:
        then the submissions of today are counted and compared with `daily`.
        """
        request = competitions.ApiGetSubmissionLimitsRequest()
        request.competition_name = self.name
        try:
            known, left = self._read(
                "the limits", lambda: _limits(self._api.get_submission_limits(request))
            )
            if known:
                return left
        except RefusedError:
            pass  # this Kaggle does not have the call; count the list instead
        if daily is None:
            return None
        today = datetime.now(UTC).date()
        made = 0
        for submission in self.submissions():
            if submission.date is None or submission.date.date() < today:
                break
            made += submission.status != Scoring.ERROR
        return max(0, daily - made)

    def submissions(self) -> Iterator[Submission]:
        """The submissions of this account or its team, newest first."""
        request = competitions.ApiListSubmissionsRequest()
        request.competition_name, request.page_size = self.name, PAGE_SIZE
        for _ in range(PAGES):
            found, token = self._read(
                "the submissions", lambda: _page(self._api.list_submissions(request))
            )
            yield from found
            if not token or token == request.page_token:
                return
            request.page_token = token

    def submission(self, ref: int) -> Submission:
        """One submission.

        Raises:
            NotFoundError: there is none with this number.
        """
        request = competitions.ApiGetSubmissionRequest()
        request.ref = ref
        what = f"submission {ref}"
        try:
            return self._read(what, lambda: _submission(self._api.get_submission(request)))
        except NotFoundError:
            for submission in self.submissions():
                if submission.ref == ref:
                    return submission
            raise

    def marked(self, mark: str) -> list[Submission]:
        """The submissions whose description contains `mark`, newest first."""
        return [found for found in self.submissions() if mark in found.description]

    def submit_file(self, file: Path, description: str, mark: str) -> int:
        """Upload a file and submit it once; returns the submission's number.

        `mark` is the part of the description that names what is submitted.

        Raises:
            AnswerLostError: it was sent, and whether it was accepted is unknown.
            CapacityError: the day's submissions are used up.
            RefusedError: Kaggle refused it, with its reason.
        """
        known = {found.ref for found in self.marked(mark)}
        request = competitions.ApiCreateSubmissionRequest()
        request.competition_name = self.name
        request.blob_file_tokens = self._upload(file)
        request.submission_description = description
        return self._submit(lambda: self._api.create_submission(request), mark, known)

    def submit_version(
        self, owner: str, slug: str, version: int, file_name: str, description: str, mark: str
    ) -> int:
        """Submit an output of a kernel's version once, as a code competition requires.

        Raises:
            AnswerLostError, CapacityError, RefusedError: as for a file.
        """
        known = {found.ref for found in self.marked(mark)}
        request = competitions.ApiCreateCodeSubmissionRequest()
        request.competition_name = self.name
        request.kernel_owner, request.kernel_slug = owner, slug
        request.kernel_version, request.file_name = version, file_name
        request.submission_description = description
        return self._submit(lambda: self._api.create_code_submission(request), mark, known)

    def scored(self, ref: int, deadline: float | None = None) -> Submission:
        """Wait until a submission is scored, or has failed. `deadline` is in seconds from now.

        Raises:
            DeadlineError: it passed; the scoring continues.
            UnreachableError: Kaggle did not answer for too long.
        """
        started = answered = self._clock()
        pauses = growing(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while True:
            try:
                found = self.submission(ref)
                answered = self._clock()
                if found.status != Scoring.PENDING:
                    return found
            except (UnreachableError, CapacityError, NotFoundError) as error:
                timeouts = self._connection.timeouts
                new = isinstance(error, NotFoundError)  # Kaggle may not show it yet
                limit = timeouts.grace if new else timeouts.outage
                if self._clock() - answered > limit:
                    raise
            pause = next(pauses)
            if deadline is not None and self._clock() - started + pause > deadline:
                raise DeadlineError(
                    f"submission {ref} has no score after {deadline:.0f} s; the scoring continues",
                    "Run the same command again: nothing is sent twice.",
                )
            self._sleep(pause)

    def sample(self, folder: Path) -> Path:
        """Download the competition's sample submission into `folder`, and unzip it.

        Raises:
            NotFoundError: none of its files has such a name, or this account may not see them.
            LocalError: it cannot be written.
        """
        name = self._sample_name()
        request = competitions.ApiDownloadDataFileRequest()
        request.competition_name, request.file_name = self.name, name
        packed, target = folder / "sample.download", folder / "sample_submission.csv"
        try:
            self._read(name, lambda: _store(self._api.download_data_file(request), packed))
            # Kaggle zips large files without changing the name [A].
            if not zipfile.is_zipfile(packed):
                return packed.replace(target)
            _unzip(packed, target)
        except OSError as error:
            raise LocalError(f"{folder} cannot be written: {error.strerror}") from error
        return target

    def _sample_name(self) -> str:
        request = competitions.ApiListDataFilesRequest()
        request.competition_name, request.page_size = self.name, PAGE_SIZE
        for _ in range(PAGES):
            names, token = self._read(
                "the data files", lambda: _names(self._api.list_data_files(request))
            )
            for name in names:
                plain = PurePosixPath(name).name.lower().replace("_", "").replace("-", "")
                if plain.startswith("samplesubmission.csv"):
                    return name
            if not token:
                break
            request.page_token = token
        raise NotFoundError(f"{self.name} has no file with the name of a sample submission")

    def _upload(self, file: Path) -> str:
        """Upload a file and return its token."""
        start = competitions.ApiStartSubmissionUploadRequest()
        start.competition_name, start.file_name = self.name, file.name
        start.content_length = file.stat().st_size
        start.last_modified_epoch_seconds = int(file.stat().st_mtime)
        answer = self._read(
            "the upload's address", lambda: self._api.start_submission_upload(start)
        )
        address = UploadAddress(str(answer.token), str(answer.create_url))
        upload(self._connection, file, address)
        return address.token

    def _submit(self, call: Callable[[], Any], mark: str, known: set[int]) -> int:
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._competition_errors():
                    ref, words = self._connection.once("the submission", lambda: _entered(call()))
            except AnswerLostError as lost:
                if (found := self._found(mark, known)) is not None:
                    return found
                if attempt == ENTER_ATTEMPTS:
                    raise AnswerLostError(str(lost), _LOST) from lost
            else:
                found = ref or self._found(mark, known)
                if found is None:
                    with self._competition_errors():
                        raise self._not_listed(words)
                return found

    def _not_listed(self, words: str) -> RefusedError:
        """Kaggle names no submission and lists none: its words are all that there is.

        Kaggle answers like this beyond a daily limit [A, kaggle-cli #148].
        """
        said = f"Kaggle says: {words}" if words else "Kaggle gives no reason"
        return RefusedError(
            f"{self.name}: Kaggle gives no number and lists no such submission. {said}. The day's "
            "limit may be used up",
            _LOST,
        )

    def _found(self, mark: str, known: set[int]) -> int | None:
        """The number of a new submission with this mark; None if it does not appear."""
        started = self._clock()
        pauses = growing(FIRST_PAUSE_SECONDS, LISTED_SECONDS, factor=2)
        while True:
            new = [found.ref for found in self.marked(mark) if found.ref not in known]
            if new:
                return new[0]
            pause = next(pauses)
            if self._clock() - started + pause > LISTED_SECONDS:
                return None
            self._sleep(pause)

    def _read(self, what: str, call: Callable[[], T]) -> T:
        with self._competition_errors():
            return self._connection.read(f"{what} of {self.name}", call)

    @contextmanager
    def _competition_errors(self) -> Iterator[None]:
        """Recognize refusals that only competitions have, by their words [A]."""
        try:
            yield
        except RefusedError as error:
            message = str(error).lower()
            if _DAILY_LIMIT.search(message):
                raise CapacityError(str(error), "Try again after midnight UTC.") from error
            if "accept" in message and "rules" in message:
                page = f"https://www.kaggle.com/competitions/{self.name}/rules"
                raise error.with_message(str(error), f"Accept the rules: {page}") from error
            raise


_DAILY_LIMIT = re.compile(
    r"(?:submission|daily) limit|(?:limit|max\w*)(?: number)? of (?:\w+ ){0,3}submissions"
    r"|submissions? (?:per|a) day|no (?:more )?submissions (?:left|remaining)|too many submissions"
)
"""Kaggle's words for a day whose submissions are used up, in lower case [A]."""

_LOST = "Look at the competition's page. The same command finds a submission that was accepted."


def _terms(details: Any) -> Terms:
    return Terms(
        as_int(details.max_daily_submissions) or None,
        bool(as_flag(details.is_kernels_submissions_only)),
        bool(as_flag(details.user_has_entered)),
        bool(as_flag(details.submissions_disabled)),
    )


def _entered(response: Any) -> tuple[int, str]:
    """The number of a submission, 0 without one, and Kaggle's words."""
    words = one_line(as_text(response.message), MESSAGE_CHARACTERS)
    return as_int(response.ref), words.rstrip(". ")


def _limits(response: Any) -> tuple[bool, int]:
    """Whether the response says anything, and how many submissions are left."""
    left = as_int(response.num_allowed_now)
    return bool(left or response.num_today or response.limited_by_total), left


def _names(response: Any) -> tuple[list[str], str]:
    names = [as_text(file.name) for file in response.files or []]
    return names, as_text(response.next_page_token)


def _page(response: Any) -> tuple[list[Submission], str]:
    found = [_submission(item) for item in response.submissions or []]
    return found, as_text(response.next_page_token)


def _submission(item: Any) -> Submission:
    date = item.date
    if date is not None:
        date = date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    return Submission(
        ref=as_int(item.ref),
        status=Scoring(item.status.name.lower()),
        public_score=str(item.public_score or ""),
        private_score=str(item.private_score or ""),
        error=str(item.error_description or ""),
        description=str(item.description or ""),
        date=date,
        size=as_int(item.total_bytes) or None,
    )


def _store(response: requests.Response, target: Path) -> None:
    expected = response.headers.get("Content-Length")
    size = 0
    with response, target.open("wb") as stream:
        for chunk in response.iter_content(CHUNK_BYTES):
            count_bytes(len(chunk))
            size += stream.write(chunk)
            if size > SAMPLE_BYTES:
                raise RefusedError(f"the sample is larger than {SAMPLE_BYTES:,} B")
    is_whole = expected is None or "Content-Encoding" in response.headers or size == int(expected)
    if not is_whole:
        raise TransientError(f"the sample: only {size} of {expected} B arrived")


def _unzip(packed: Path, target: Path) -> None:
    """Extract the one csv of a zip, without using the name that the zip gives it."""
    try:
        with zipfile.ZipFile(packed) as archive:
            tables = [item for item in archive.infolist() if item.filename.lower().endswith(".csv")]
            if len(tables) != 1 or tables[0].file_size > SAMPLE_BYTES:
                raise RefusedError("the sample is a zip that does not contain exactly one csv")
            with archive.open(tables[0]) as source, target.open("wb") as stream:
                while chunk := source.read(CHUNK_BYTES):
                    stream.write(chunk)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise RefusedError(f"the sample is a zip that cannot be read ({error})") from error
