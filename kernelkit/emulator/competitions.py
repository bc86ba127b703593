"""Competitions, their files, and the submissions to them.

A folder `<slug>` of the inputs is a competition; its files are the competition's data. If the
solutions folder has `<slug>/solution.csv`, submissions are scored with it (see `metric`); otherwise
a submission becomes COMPLETE without a score [?]. A solution is never mounted.

A submission is PENDING until it is old enough and a client asks for it:

    enter() → PENDING --scoring_seconds, then the next request--> COMPLETE | ERROR

Every competition is over: submissions are still scored, and both scores are visible [A].
Submissions are stored in the state folder, `<ref>/submission.json` next to the file, and read again
at the next start.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kernelkit.emulator.metric import InvalidCsv
from kernelkit.emulator.responses import RequestRefused
from kernelkit.emulator.scoring import LOWER_IS_BETTER, Scorer, read_scorer
from kernelkit.emulator.state import StoredFile
from kernelkit.emulator.storage import is_safe_name, read_json, reading, write_json

DAILY = 5
"""Submissions of an account per day (UTC) [?]; many competitions allow 5."""
SCORING = 1.0
"""Seconds in PENDING. On Kaggle it can be minutes [A]."""
FIRST_REF = 500_000_001
"""Outside the ranges of kernels and sessions, so that a mixed-up number shows."""
NOT_ACCEPTED = "You must accept this competition's rules before you'll be able to download files."
LIMIT = "You have exceeded your daily submission limit"
CODE_ONLY = "This competition only accepts Submissions from Notebooks."
"""Kaggle's messages [A]."""
ARCHIVES = (".zip", ".gz", ".7z", ".bz2")


@dataclass(frozen=True)
class CompetitionSettings:
    """Settings of all competitions. Slugs are in lower case.

    `daily`: submissions of an account per day. `scoring`: seconds in PENDING. `silent_limit`:
    beyond the daily limit, answer as if the submission was accepted, as has happened on Kaggle
    [A, kaggle-cli #148]. `code_only`: competitions that take no uploads. `metric`: of all
    competitions (see `scoring`).
    """

    daily: int = DAILY
    silent_limit: bool = False
    scoring: float = SCORING
    rules_not_accepted: frozenset[str] = frozenset()
    code_only: frozenset[str] = frozenset()
    metric: str = ""


@dataclass(frozen=True)
class StoredSubmission:
    """A submission. `date`: seconds since the epoch. Scores are text, empty without a score."""

    ref: int
    competition: str
    account: str
    file_name: str
    size: int
    description: str
    date: float
    status: str = "PENDING"
    public: str = ""
    private: str = ""
    error: str = ""


@dataclass(frozen=True)
class LeaderboardRow:
    """A place on a leaderboard. `date`: of the best submission. `submissions`: all scored ones."""

    account: str
    score: str
    date: float
    submissions: int = 1


@dataclass(frozen=True)
class SubmissionLimits:
    """Submissions of an account in a competition. Failed ones count in `total` only [A]."""

    today: int
    total: int
    left: int


class Competitions:
    """All competitions and submissions.

    Raises metric.InvalidCsv for an invalid solution, StateError for an unreadable submission.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Path | None,
        solutions: Path | None,
        settings: CompetitionSettings,
    ) -> None:
        self.settings = settings
        self._folder = folder
        self._inputs = inputs
        self._scorers = _scorers(solutions, settings.metric)
        self._lock = threading.Lock()
        self._submissions = _read_back(folder)
        self._refs = itertools.count(max([FIRST_REF - 1, *self._submissions]) + 1)

    def check(self, competition: str, rules: bool = True) -> str:
        """The slug. Raises RequestRefused if it is unknown or its rules are not accepted."""
        slug = competition.lower()
        if slug not in self._scorers and self._data(slug) is None:
            raise RequestRefused(404, "Not found")
        if rules and slug in self.settings.rules_not_accepted:
            raise RequestRefused(403, NOT_ACCEPTED)
        return slug

    def is_scored(self, slug: str) -> bool:
        """Whether there is a solution."""
        return slug in self._scorers

    def files(self, competition: str) -> list[StoredFile]:
        """The files of a competition, sorted; a name is the path below its folder."""
        data = self._data(self.check(competition))
        return [] if data is None else list(files_below(data))

    def slugs(self) -> list[str]:
        """All competitions, sorted: every folder of the inputs, and every solution."""
        folders = self._inputs.iterdir() if self._inputs else ()
        named = {path.name for path in folders if path.is_dir() and is_safe_name(path.name)}
        return sorted(named | set(self._scorers))

    def data(self, competition: str) -> Path | None:
        """The folder of the competition's files; None if it has only a solution."""
        return self._data(self.check(competition))

    def leaderboard(self, competition: str, public: bool) -> list[LeaderboardRow]:
        """The best submission of each account, the best one first.

        Every competition is over, so there is a private leaderboard, too.
        """
        slug = self.check(competition, rules=False)
        with self._lock:
            refs = [s.ref for s in self._submissions.values() if s.competition == slug]
            scored = [self._scored_if_due(ref) for ref in sorted(refs)]
        sign = -1.0 if self.settings.metric in LOWER_IS_BETTER else 1.0
        rows: dict[str, LeaderboardRow] = {}
        for submission in scored:
            score = submission.public if public else submission.private
            if not score:
                continue
            known = rows.get(submission.account)
            count = known.submissions + 1 if known else 1
            if known is None or sign * float(score) > sign * float(known.score):
                known = LeaderboardRow(submission.account, score, submission.date)
            rows[submission.account] = replace(known, submissions=count)
        return sorted(rows.values(), key=lambda row: (-sign * float(row.score), row.date))

    def check_accepts(self, competition: str, upload: bool) -> str:
        """The slug. Raises RequestRefused if the competition takes no (uploaded) submissions."""
        slug = self.check(competition)
        if upload and slug in self.settings.code_only:
            raise RequestRefused(400, CODE_ONLY)
        return slug

    def enter(
        self, account: str, competition: str, file: Path, name: str, description: str, upload: bool
    ) -> StoredSubmission | None:
        """Store a copy of `file` as a submission. The same file twice makes two submissions.

        Beyond the daily limit it raises RequestRefused, or returns None if the limit is silent.
        """
        slug = self.check_accepts(competition, upload)
        with self._lock:
            if not self._limits(account, slug).left:
                if self.settings.silent_limit:
                    return None
                raise RequestRefused(400, LIMIT)
            ref = next(self._refs)
            folder = self._folder / str(ref)
            folder.mkdir(parents=True, exist_ok=True)  # it may exist: left by a killed process
            shutil.copyfile(file, folder / "submission.csv")
            size = (folder / "submission.csv").stat().st_size
            made = StoredSubmission(ref, slug, account, name, size, description, time.time())
            self._store(made)
        return made

    def submissions(self, account: str, competition: str) -> list[StoredSubmission]:
        """The submissions of the account, newest first."""
        slug = self.check(competition, rules=False)
        with self._lock:
            mine = [s.ref for s in self._submissions.values() if _is_of(s, account, slug)]
            return [self._scored_if_due(ref) for ref in sorted(mine, reverse=True)]

    def submission(self, account: str, ref: int) -> StoredSubmission:
        """A submission of the account."""
        with self._lock:
            known = self._submissions.get(ref)
            if known is None:
                raise RequestRefused(404, "Not found")
            if known.account != account:
                raise RequestRefused(403, "Permission 'submissions.get' was denied")
            return self._scored_if_due(ref)

    def limits(self, account: str, competition: str) -> SubmissionLimits:
        """How many submissions the account has made and can still make today."""
        slug = self.check(competition, rules=False)
        with self._lock:
            return self._limits(account, slug)

    def _limits(self, account: str, slug: str) -> SubmissionLimits:
        mine = [s.ref for s in self._submissions.values() if _is_of(s, account, slug)]
        good = [s for s in map(self._scored_if_due, mine) if s.status != "ERROR"]
        today = sum(_day(s.date) == _day(time.time()) for s in good)
        return SubmissionLimits(today, len(mine), max(0, self.settings.daily - today))

    def _scored_if_due(self, ref: int) -> StoredSubmission:
        """The submission, scored if it is old enough."""
        known = self._submissions[ref]
        if known.status == "PENDING" and time.time() >= known.date + self.settings.scoring:
            known = self._scored(known)
            self._store(known)
        return known

    def _scored(self, submission: StoredSubmission) -> StoredSubmission:
        score = self._scorers.get(submission.competition)
        if score is None:
            return replace(submission, status="COMPLETE")
        try:
            scores = score(self._folder / str(submission.ref) / "submission.csv")
        except InvalidCsv as error:
            return replace(submission, status="ERROR", error=f"ERROR: {error}")
        public, private = _shown(scores.public), _shown(scores.private)
        return replace(submission, status="COMPLETE", public=public, private=private)

    def _store(self, submission: StoredSubmission) -> None:
        path = self._folder / str(submission.ref) / "submission.json"
        write_json(path, asdict(submission))
        self._submissions[submission.ref] = submission

    def _data(self, slug: str) -> Path | None:
        if self._inputs is None or not is_safe_name(slug):
            return None
        return self._inputs / slug if (self._inputs / slug).is_dir() else None


def _scorers(folder: Path | None, metric: str) -> dict[str, Scorer]:
    """What scores each competition, by its slug. Raises InvalidCsv, which names the file."""
    found = {}
    for path in sorted(folder.glob("*/solution.csv")) if folder else ():
        try:
            found[path.parent.name.lower()] = read_scorer(path, metric)
        except InvalidCsv as error:
            raise InvalidCsv(f"{path}: {error}") from None
    return found


def _read_back(folder: Path) -> dict[int, StoredSubmission]:
    """A submission that was incomplete when the process died is left out."""
    found = {}
    for path in folder.glob("*/submission.json"):
        with reading(path):
            submission = StoredSubmission(**read_json(path))
            found[submission.ref] = submission
    return found


def files_below(folder: Path) -> Iterator[StoredFile]:
    """Every file, sorted, named by its path below the folder. Links count as their targets."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            details = path.stat()
            name = os.fspath(path.relative_to(folder))
            yield StoredFile(name, details.st_size, details.st_mtime)


def _is_of(submission: StoredSubmission, account: str, slug: str) -> bool:
    return submission.account == account and submission.competition == slug


def _day(seconds: float) -> dt.date:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).date()


def _shown(score: float | None) -> str:
    """Five decimals, as Kaggle shows [A]."""
    return "" if score is None else f"{score:.5f}"
