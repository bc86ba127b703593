"""Competitions, their files, and what is submitted to them.

A folder `<slug>` of the inputs is a competition; its files are the competition's data. Where the
solutions folder has `<slug>/solution.csv`, a submission is scored by it (see `metric`); where it
has none, a submission becomes COMPLETE without a score [?]. A solution is never mounted.

A submission is PENDING until it is old enough and somebody asks, then COMPLETE or ERROR:

    enter() → PENDING --scoring_seconds, then the next question--> COMPLETE | ERROR

Every competition is over, as ours is: submissions are still scored and both scores show [A]. What
is submitted lies in the state folder, `<ref>/submission.json` beside the file, and is read back at
the next start.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kernelkit.emulator.library import is_name, write_record
from kernelkit.emulator.metric import BadFile, Solution, read_solution, score
from kernelkit.emulator.state import OutputFile, Refusal

DAILY = 5
"""Submissions of an account a day (UTC) [?]; many competitions have 5."""
SCORING = 1.0
"""Seconds in PENDING. The real ones take up to minutes [A]."""
FIRST_REF = 500_000_001
"""Apart from the numbers of kernels and sessions, so that mistaking one for another shows."""
NOT_ACCEPTED = "You must accept this competition's rules before you'll be able to download files."
LIMIT = "You have exceeded your daily submission limit"
CODE_ONLY = "This competition only accepts Submissions from Notebooks."
"""Kaggle's words [A]."""
ARCHIVES = (".zip", ".gz", ".7z", ".bz2")


@dataclass(frozen=True)
class Terms:
    """The knobs. Slugs are in small letters.

    `silent_limit`: a submission beyond the daily limit is answered as if it were entered, and is
    not, as happened on Kaggle [A, kaggle-cli #148].
    """

    daily: int = DAILY
    silent_limit: bool = False
    scoring: float = SCORING
    rules_not_accepted: frozenset[str] = frozenset()
    code_only: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Submission:
    """`date`: seconds since the epoch. Scores are text, empty where there is none."""

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
class Limits:
    """Of one account in one competition. Failed ones count in `total` only [A]."""

    today: int
    total: int
    left: int


class Contest:
    """All competitions and submissions. Raises metric.BadFile for a solution that is none."""

    def __init__(
        self, folder: Path, inputs: Path | None, solutions: Path | None, terms: Terms
    ) -> None:
        self.terms = terms
        self._folder = folder
        self._inputs = inputs
        self._solutions = _solutions(solutions)
        self._lock = threading.Lock()
        self._zipping = threading.Lock()
        self._zipped: dict[str, tuple[OutputFile, ...]] = {}
        self._downloads: dict[str, tuple[Path, OutputFile]] = {}
        self._submissions = _read_back(folder)
        self._refs = itertools.count(max([FIRST_REF - 1, *self._submissions]) + 1)

    def check(self, competition: str, rules: bool = True) -> str:
        """The competition's slug. Refusal where it is unknown or its rules are not accepted."""
        slug = competition.lower()
        if slug not in self._solutions and self._data(slug) is None:
            raise Refusal(404, "Not found")
        if rules and slug in self.terms.rules_not_accepted:
            raise Refusal(403, NOT_ACCEPTED)
        return slug

    def is_scored(self, slug: str) -> bool:
        """Whether a solution is known."""
        return slug in self._solutions

    def files(self, competition: str) -> list[OutputFile]:
        """The competition's files, sorted by name, which is the path below its folder."""
        data = self._data(self.check(competition))
        return [] if data is None else list(files_below(data))

    def offer(self, competition: str, name: str) -> str:
        """The key of an address at which the file can be fetched."""
        data = self._data(self.check(competition))
        for file in self.files(competition):
            if data is not None and file.name == name:
                return self._offer((data / name).resolve(), file)
        raise Refusal(404, "Not found")

    def offer_all(self, competition: str) -> tuple[str, str]:
        """Key and name of a zip of all files; made anew only where they have changed."""
        slug = self.check(competition)
        files = tuple(self.files(slug))
        path = self._folder / f"{slug}.zip"
        with self._zipping:
            if self._zipped.get(slug) != files:
                _zip(path, self._data(slug), files)
                self._zipped[slug] = files
        about = path.stat()
        file = OutputFile(path.name, about.st_size, about.st_mtime)
        return self._offer(path, file), file.name

    def download(self, key: str, name: str) -> tuple[Path, OutputFile] | None:
        """The file that a download address means."""
        with self._lock:
            found = self._downloads.get(key)
        return found if found and found[1].name == name else None

    def takes(self, competition: str, upload: bool) -> str:
        """The slug. Refusal where the competition takes no uploads, or nothing from the caller."""
        slug = self.check(competition)
        if upload and slug in self.terms.code_only:
            raise Refusal(400, CODE_ONLY)
        return slug

    def enter(
        self, account: str, competition: str, file: Path, name: str, description: str, upload: bool
    ) -> Submission | None:
        """Enter a copy of `file`, within the daily limit. The same one twice is two submissions.

        None, with nothing entered, beyond a limit that is silent.
        """
        slug = self.takes(competition, upload)
        with self._lock:
            if not self._limits(account, slug).left:
                if self.terms.silent_limit:
                    return None
                raise Refusal(400, LIMIT)
            ref = next(self._refs)
            folder = self._folder / str(ref)
            folder.mkdir(parents=True, exist_ok=True)  # left by a server that died
            shutil.copyfile(file, folder / "submission.csv")
            size = (folder / "submission.csv").stat().st_size
            made = Submission(ref, slug, account, name, size, description, time.time())
            self._keep(made)
        return made

    def submissions(self, account: str, competition: str) -> list[Submission]:
        """The account's own, the newest first."""
        slug = self.check(competition, rules=False)
        with self._lock:
            mine = [s.ref for s in self._submissions.values() if _is_of(s, account, slug)]
            return [self._settled(ref) for ref in sorted(mine, reverse=True)]

    def submission(self, account: str, ref: int) -> Submission:
        """One of the account's own."""
        with self._lock:
            known = self._submissions.get(ref)
            if known is None:
                raise Refusal(404, "Not found")
            if known.account != account:
                raise Refusal(403, "Permission 'submissions.get' was denied")
            return self._settled(ref)

    def limits(self, account: str, competition: str) -> Limits:
        """How many submissions the account has made and may still make today."""
        slug = self.check(competition, rules=False)
        with self._lock:
            return self._limits(account, slug)

    def _limits(self, account: str, slug: str) -> Limits:
        mine = [s.ref for s in self._submissions.values() if _is_of(s, account, slug)]
        good = [s for s in map(self._settled, mine) if s.status != "ERROR"]
        today = sum(_day(s.date) == _day(time.time()) for s in good)
        return Limits(today, len(mine), max(0, self.terms.daily - today))

    def _settled(self, ref: int) -> Submission:
        """The submission, scored if it is time."""
        known = self._submissions[ref]
        if known.status == "PENDING" and time.time() >= known.date + self.terms.scoring:
            known = self._scored(known)
            self._keep(known)
        return known

    def _scored(self, submission: Submission) -> Submission:
        solution = self._solutions.get(submission.competition)
        if solution is None:
            return replace(submission, status="COMPLETE")
        try:
            scores = score(solution, self._folder / str(submission.ref) / "submission.csv")
        except BadFile as error:
            return replace(submission, status="ERROR", error=f"ERROR: {error}")
        public, private = _shown(scores.public), _shown(scores.private)
        return replace(submission, status="COMPLETE", public=public, private=private)

    def _keep(self, submission: Submission) -> None:
        path = self._folder / str(submission.ref) / "submission.json"
        write_record(path, asdict(submission))
        self._submissions[submission.ref] = submission

    def _data(self, slug: str) -> Path | None:
        if self._inputs is None or not is_name(slug):
            return None
        return self._inputs / slug if (self._inputs / slug).is_dir() else None

    def _offer(self, path: Path, file: OutputFile) -> str:
        key = secrets.token_hex(16)
        with self._lock:
            self._downloads[key] = (path, file)
        return key


def _solutions(folder: Path | None) -> dict[str, Solution]:
    """By slug; BadFile names the file that is none."""
    found = {}
    for path in sorted(folder.glob("*/solution.csv")) if folder else ():
        try:
            found[path.parent.name.lower()] = read_solution(path)
        except BadFile as error:
            raise BadFile(f"{path}: {error}") from None
    return found


def _read_back(folder: Path) -> dict[int, Submission]:
    """A submission that was not wholly written when the server died was not entered."""
    records = (json.loads(p.read_text("utf-8")) for p in folder.glob("*/submission.json"))
    return {record["ref"]: Submission(**record) for record in records}


def files_below(folder: Path) -> Iterator[OutputFile]:
    """Every file, sorted, named by its path below the folder; links stand for their files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about = path.stat()
            yield OutputFile(os.fspath(path.relative_to(folder)), about.st_size, about.st_mtime)


def _zip(path: Path, folder: Path | None, files: tuple[OutputFile, ...]) -> None:
    """Whole or not at all; who still reads the one before keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with zipfile.ZipFile(temporary, "w", strict_timestamps=False) as archive:
        for file in files:
            archive.write(f"{folder}/{file.name}", file.name)
    temporary.replace(path)


def _is_of(submission: Submission, account: str, slug: str) -> bool:
    return submission.account == account and submission.competition == slug


def _day(seconds: float) -> dt.date:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).date()


def _shown(score: float | None) -> str:
    """Five digits after the point, as Kaggle shows [A]."""
    return "" if score is None else f"{score:.5f}"
