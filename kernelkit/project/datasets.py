"""Publishes a folder as a new version of a private dataset, once for each content.

A version of a dataset never changes. So kernelkit marks each version that it makes with the digest
of its files, in its notes (the first one in the description): a folder with the same digest is not
uploaded again, from any machine. Kaggle may not show the notes, so a journal on this machine keeps
the same. It also keeps the uploads that have begun: a command that was interrupted goes on there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from kernelkit.bundle.secrets import Credential
from kernelkit.errors import (
    AnswerLostError,
    ConfigError,
    DeadlineError,
    NotFoundError,
    RefusedError,
)
from kernelkit.kaggle.datasets import BROKEN, NAME_LENGTHS, READY, SLUG, Dataset, DatasetDetails
from kernelkit.kaggle.types import PRODUCTION, Timeouts, ignore
from kernelkit.kaggle.uploads import UploadAddress, upload
from kernelkit.notebook.problems import require_no_problems
from kernelkit.project.folders import FolderContents, FolderFile, find_secrets, read_folder
from kernelkit.storage import (
    DocumentError,
    counted,
    human_size,
    locked,
    make_ignored_folder,
    read_model,
    write_json,
)

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle

UPLOAD_SECONDS = 6 * 24 * 3600
"""After which a begun upload is not resumed: Google keeps it for a week [V, official client]."""

PROCESSING_SECONDS = 3600  # until a new version must be current; large ones take minutes [A]
TOP_FILES = 50  # at the top of a dataset; the official library zips more than that [V, kagglehub]
ANNOUNCED_BYTES = 10 << 20  # from this size on, the upload of a file is reported
JOURNAL_SECONDS = 2  # between two records of small uploads; so much is sent again after a kill
PROGRESS_SECONDS = 10  # between two reports about one upload
NAMED = 5  # files that a note names

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
"""Kaggle unpacks such files, so that the run finds a folder instead [A]."""

_MARK = "kernelkit sha256:"
_MARKED = re.compile(rf"{_MARK}([0-9a-f]{{64}})")

OnEvent = Callable[[str], None]


@dataclass(frozen=True)
class DatasetVersion:
    """A version of a dataset that is current on Kaggle, and holds the files of a folder."""

    owner: str
    slug: str
    version: int
    url: str
    digest: str
    """SHA-256 over the path and content of every file."""

    files: int
    size: int
    """Bytes of all files."""

    is_private: bool
    uploaded: bool
    """False if Kaggle had this content already, and nothing was sent."""

    @property
    def source(self) -> str:
        """The entry of `dataset_sources`."""
        return f"{self.owner}/{self.slug}"

    @property
    def address(self) -> str:
        """What a parameter says to get the folder in the run."""
        return f"kaggle://input/{self.slug}"

    @property
    def document(self) -> dict[str, str | int | bool]:
        """All of it for a script."""
        return {
            "owner": self.owner,
            "slug": self.slug,
            "version": self.version,
            "source": self.source,
            "address": self.address,
            "url": self.url,
            "digest": self.digest,
            "files": self.files,
            "size": self.size,
            "is_private": self.is_private,
            "uploaded": self.uploaded,
        }


@dataclass(frozen=True)
class DatasetRequest:
    """What to publish: a folder under a name."""

    folder: Path
    slug: str
    title: str = ""
    """Of a new dataset; empty for the slug."""

    message: str = ""
    """Said about the version on Kaggle's page."""

    is_private: bool = True
    place: str = ""
    """The folder as messages and `allow_secrets` write it; empty for its path."""

    allowed_secrets: tuple[str, ...] = ()
    is_searched: bool = True
    """Whether the files are searched for credentials; False where that is done already."""

    def require_valid(self) -> None:
        """Check the names by Kaggle's rules.

        Raises:
            ConfigError: Kaggle would refuse one.
        """
        least, most = NAME_LENGTHS
        if not SLUG.fullmatch(self.slug) or not least <= len(self.slug) <= most:
            raise ConfigError(
                f'"{self.slug}" cannot be the name of a dataset: Kaggle takes {least} to {most} '
                "lower-case letters, digits and dashes",
                "Choose another name.",
            )
        if self.title and not least <= len(self.title) <= most:
            raise ConfigError(
                f'the title "{self.title}" has {len(self.title)} characters: Kaggle takes {least} '
                f"to {most}",
                "Choose another title.",
            )


def default_state_folder() -> Path:
    """Where journals are kept if there is no project."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return home / "kernelkit" / "datasets"


def publish_dataset(
    kaggle: Kaggle,
    request: DatasetRequest,
    state: Path,
    *,
    own: Collection[Credential] = (),
    on_event: OnEvent = ignore,
) -> DatasetVersion:
    """Make a folder the current version of a dataset of this account, and wait until it is.

    If the current version holds exactly these files, nothing is sent. `state` is the folder of the
    journal, which only one process uses at a time; `own` are this machine's credentials.

    Raises:
        ConfigError: the folder or a name cannot be published.
        PreflightError: a file holds credentials; nothing was sent.
        RefusedError: Kaggle refuses or cannot process it, the dataset is public where it should be
            private, or Kaggle lists other files than were sent.
        AnswerLostError: whether Kaggle accepted the version is unknown.
        DeadlineError: Kaggle still processes it.
    """
    request.require_valid()
    contents = read_folder(request.folder)
    if request.is_searched:
        _report_contents(contents, on_event)
        place = request.place or str(request.folder)
        require_no_problems(list(find_secrets(contents, place, own, request.allowed_secrets)))
    dataset = Dataset(kaggle, kaggle.credentials.username, request.slug)
    make_ignored_folder(state)

    def waiting() -> None:
        on_event(f"{dataset.name} is being published from this machine already: waiting")

    with locked(state, f".{request.slug}.lock", on_wait=waiting, on_unsupported=lambda: None):
        publication = _Publication(kaggle, dataset, request, contents, state, on_event)
        return publication.publish()


def _report_contents(contents: FolderContents, on_event: OnEvent) -> None:
    """What a user should know about the files before they are sent."""
    for path, reason in contents.left_out.items():
        on_event(f"note: {path} is left out: {reason}")
    packed = [file.path for file in contents.files if file.path.lower().endswith(ARCHIVES)]
    if packed:
        on_event(
            f"note: Kaggle unpacks archives: the run finds a folder in place of {_some(packed)}. "
            "To keep a file as it is, give it another ending"
        )
    if empty := [file.path for file in contents.files if not file.size]:
        on_event(f"note: it is not known whether Kaggle keeps empty files: {_some(empty)}")
    tops = {file.path.partition("/")[0] for file in contents.files}
    if len(tops) > TOP_FILES:
        on_event(
            f"note: {len(tops)} files and folders are at the top of the dataset; Kaggle may "
            f"accept only {TOP_FILES}. If it refuses them, put them into folders"
        )


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more


class _BegunUpload(BaseModel):
    """An upload that may be resumed."""

    sha256: str
    size: int
    token: str
    url: str
    started: float
    done: bool = False


class _SentVersion(BaseModel):
    """A version that was sent, and may not be confirmed."""

    digest: str
    after: int
    """The current version before it; 0 if there was none."""


class _Journal(BaseModel):
    """What this machine knows about one dataset."""

    endpoint: str = ""
    uploads: dict[str, _BegunUpload] = Field(default_factory=dict)
    """By path."""

    sent: _SentVersion | None = None
    versions: dict[int, str] = Field(default_factory=dict)
    """Version → the digest of its files."""


class _UploadReport:
    """Reports now and then how much of a file is sent."""

    def __init__(self, file: FolderFile, timeouts: Timeouts, on_event: OnEvent) -> None:
        self._file, self._clock, self._on_event = file, timeouts.clock, on_event
        self._reported = timeouts.clock()

    def __call__(self, sent: int) -> None:
        if self._clock() - self._reported >= PROGRESS_SECONDS and sent < self._file.size:
            self._reported = self._clock()
            size = self._file.size
            self._on_event(
                f"{self._file.path}: {human_size(sent)} of {human_size(size)} ({sent / size:.0%})"
            )


class _Publication:
    """One folder on its way to one dataset."""

    def __init__(
        self,
        kaggle: Kaggle,
        dataset: Dataset,
        request: DatasetRequest,
        contents: FolderContents,
        state: Path,
        on_event: OnEvent,
    ) -> None:
        self._kaggle, self._dataset = kaggle, dataset
        self._request, self._contents = request, contents
        self._on_event = on_event
        who = "" if kaggle.endpoint == PRODUCTION else ".local"
        self._path = state / f"{dataset.owner.lower()}.{dataset.slug}{who}.json"
        self._journal = self._read_journal()
        self._written = 0.0
        """When the journal was written, by the clock of the timeouts."""

        self._is_broken = False
        """Whether Kaggle could not process the version before."""

    def publish(self) -> DatasetVersion:
        """See `publish_dataset`."""
        before = self._settled()
        if before is not None:
            self._require_privacy(before)
            if before.version and self._is_held_by(before):
                self._on_event(
                    f"{self._dataset.name} version {before.version} has exactly these files: "
                    "nothing is uploaded"
                )
                return self._confirmed(before, before.version, uploaded=False)
        after = (before.version or 0) if before else 0
        self._send(after, is_new=before is None)
        self._on_event(f"waiting until {self._dataset.name} version {after + 1} is current")
        details = self._wait(newer_than=after, is_sent=True)
        self._require_privacy(details)
        return self._confirmed(details, details.version or after + 1, uploaded=True)

    def _settled(self) -> DatasetDetails | None:
        """The dataset once Kaggle does not process a version of it; None if there is none."""
        state = self._dataset.state()
        if state is None:
            return None
        if state != READY and state not in BROKEN:
            self._on_event(f"Kaggle processes {self._dataset.name} ({state}): waiting")
            return self._wait(newer_than=0)
        self._is_broken = state in BROKEN
        return self._dataset.details()

    def _wait(self, newer_than: int, *, is_sent: bool = False) -> DatasetDetails:
        """Wait until Kaggle has processed the latest version, and a newer one is current.

        With `is_sent`, it must be the version that was sent: somebody else may publish, too.
        """
        timeouts = self._kaggle.timeouts
        started, reported = timeouts.clock(), ""
        for pause in timeouts.pauses():
            waited = timeouts.clock() - started
            state = self._dataset.state()
            if state is None and waited > timeouts.grace:
                raise NotFoundError(f"the dataset {self._dataset.name} does not appear on Kaggle")
            if state in BROKEN and (not self._is_broken or waited > timeouts.grace):
                raise RefusedError(
                    f"Kaggle could not process {self._dataset.name}: its state is {state}",
                    "Look at its page, fix the files, and run the command again.",
                )
            found = self._dataset.details() if state == READY else None
            if found is not None and (found.version or 0) > newer_than:
                if not is_sent or self._is_held_by(found):
                    return found
                if waited > timeouts.grace:
                    raise RefusedError(
                        f"{self._dataset.name} version {found.version} is current, and is not the "
                        "version that was sent: somebody else has published one meanwhile",
                        "Run the same command again.",
                    )
            if state not in (None, READY, reported):
                reported = str(state)
                self._on_event(f"{self._dataset.name}: {reported}")
            if waited > PROCESSING_SECONDS or self._kaggle.is_late:
                raise DeadlineError(
                    f"Kaggle has not made the new version of {self._dataset.name} current within "
                    f"{waited:.0f} s; it may still do so",
                    "Run the same command again: nothing is uploaded twice.",
                )
            timeouts.sleep(pause)
        raise AssertionError("the pauses never end")

    def _require_privacy(self, details: DatasetDetails) -> None:
        wanted = self._request.is_private
        if details.is_private == wanted:
            return
        if wanted:
            raise RefusedError(
                f"the dataset {self._dataset.name} is public, or Kaggle does not say that it is "
                "private",
                f"Make it private on its page, {details.url or self._page}, or choose another "
                "name: all users can read a public one.",
            )
        raise RefusedError(
            f"the dataset {self._dataset.name} is private",
            f"Make it public on its page: {details.url or self._page}.",
        )

    @property
    def _page(self) -> str:
        return f"{self._kaggle.web}/datasets/{self._dataset.name}"

    def _is_held_by(self, details: DatasetDetails) -> bool:
        """Whether the current version holds exactly the files of the folder."""
        version = details.version or 0
        said = details.notes.get(version, "") or (details.description if version == 1 else "")
        if marked := _MARKED.search(said):
            return marked[1] == self._contents.digest
        sent = self._journal.sent
        known = self._journal.versions.get(version)
        if known is None and sent is not None and sent.after + 1 == version:
            known = sent.digest
        return not said and known == self._contents.digest and self._lists_files(version)

    def _lists_files(self, version: int) -> bool:
        return self._dataset.files(version).keys() >= {
            file.path for file in self._contents.files if self._is_kept(file)
        }

    @staticmethod
    def _is_kept(file: FolderFile) -> bool:
        """Whether Kaggle must list a file under its own path."""
        return file.size > 0 and not file.path.lower().endswith(ARCHIVES)

    def _send(self, after: int, *, is_new: bool) -> None:
        """Upload what is missing, and make one version of it."""
        resumed = bool(self._journal.uploads)
        tokens = self._upload_all()
        self._write(sent=_SentVersion(digest=self._contents.digest, after=after))
        try:
            self._create(tokens, after, is_new=is_new)
        except AnswerLostError:
            raise
        except RefusedError as error:
            if not resumed or isinstance(error, NotFoundError):
                raise
            # Kaggle may have forgotten uploads of an earlier process.
            self._on_event(f"{error}; uploading the files again")
            self._write(uploads={})
            self._create(self._upload_all(), after, is_new=is_new)

    def _create(self, tokens: dict[str, str], after: int, *, is_new: bool) -> None:
        """Make the version. If the response is lost, send again only if none has appeared."""
        try:
            self._create_once(tokens, is_new=is_new)
        except AnswerLostError as lost:
            grace = self._kaggle.timeouts.grace
            self._on_event(f"{lost}; looking for the new version for up to {grace:.0f} s")
            if not self._has_begun(after):
                self._on_event("Kaggle had not accepted it: sending it again")
                self._create_once(tokens, is_new=self._dataset.state() is None)

    def _create_once(self, tokens: dict[str, str], *, is_new: bool) -> None:
        mark = f"{_MARK}{self._contents.digest}"
        said = f"{self._request.message}\n{mark}" if self._request.message else mark
        if is_new:
            title = self._request.title or self._request.slug
            self._dataset.create(
                title, tokens, is_private=self._request.is_private, description=said
            )
        else:
            self._dataset.add_version(tokens, said)

    def _has_begun(self, after: int) -> bool:
        """Whether Kaggle processes or has a version newer than `after`."""
        timeouts = self._kaggle.timeouts
        started = timeouts.clock()
        for pause in timeouts.pauses():
            state = self._dataset.state()
            if state is not None:
                if state not in (READY, *BROKEN):
                    return True
                found = self._dataset.details()
                if found is not None and (found.version or 0) > after:
                    return True
            if timeouts.clock() - started > timeouts.grace or self._kaggle.is_late:
                return False
            timeouts.sleep(pause)
        raise AssertionError("the pauses never end")

    def _upload_all(self) -> dict[str, str]:
        """Path → token of every file."""
        files = self._contents.files
        self._on_event(
            f"uploading {counted(len(files), 'file')} ({human_size(self._contents.size)}) to "
            f"{self._dataset.name}"
        )
        clock = self._kaggle.timeouts.clock
        tokens: dict[str, str] = {}
        reported = clock()
        try:
            for file in files:
                tokens[file.path] = self._uploaded(file)
                if clock() - reported >= PROGRESS_SECONDS and len(tokens) < len(files):
                    reported = clock()
                    self._on_event(f"{len(tokens):,} of {counted(len(files), 'file')} uploaded")
            return tokens
        finally:
            self._write()

    def _uploaded(self, file: FolderFile) -> str:
        """The token of a file that is on Kaggle now."""
        known = self._journal.uploads.get(file.path)
        is_same = known is not None and (known.sha256, known.size) == (file.sha256, file.size)
        if known is not None and is_same and time.time() - known.started < UPLOAD_SECONDS:
            if known.done:
                return known.token
            try:
                return self._transfer(file, known, resume=True)
            except NotFoundError:
                pass  # expired
        address = self._dataset.begin_upload(file.file)
        begun = _BegunUpload(
            sha256=file.sha256,
            size=file.size,
            token=address.token,
            url=address.url,
            started=time.time(),
        )
        self._remember(file.path, begun)
        return self._transfer(file, begun, resume=False)

    def _transfer(self, file: FolderFile, begun: _BegunUpload, *, resume: bool) -> str:
        if file.size >= ANNOUNCED_BYTES:
            what = "resuming" if resume else "uploading"
            self._on_event(f"{what} {file.path} ({human_size(file.size)})")
        file.require_unchanged()
        address = UploadAddress(begun.token, begun.url)
        progress = _UploadReport(file, self._kaggle.timeouts, self._on_event)
        upload(self._kaggle, file.file, address, resume=resume, on_bytes=progress)
        file.require_unchanged()
        self._remember(file.path, begun.model_copy(update={"done": True}))
        return begun.token

    def _confirmed(
        self, details: DatasetDetails, version: int, *, uploaded: bool
    ) -> DatasetVersion:
        """Record that a version holds the folder, once Kaggle lists its files."""
        if uploaded:
            self._require_files(version)
        digest = self._contents.digest
        self._write(sent=None, uploads={}, versions={**self._journal.versions, version: digest})
        return DatasetVersion(
            owner=self._dataset.owner,
            slug=self._dataset.slug,
            version=version,
            url=details.url or self._page,
            digest=digest,
            files=len(self._contents.files),
            size=self._contents.size,
            is_private=bool(details.is_private),
            uploaded=uploaded,
        )

    def _require_files(self, version: int) -> None:
        listed = self._dataset.files(version)
        sizes = {file.path: file.size for file in self._contents.files if self._is_kept(file)}
        if missing := sorted(sizes.keys() - listed.keys()):
            raise RefusedError(
                f"{self._dataset.name} version {version} lacks files that were uploaded: "
                f"{_some(missing)}. Kaggle lists {_some(sorted(listed)) or 'none'}",
                "Look at its page, rename what Kaggle has changed, and run the command again.",
            )
        other = [path for path, size in sizes.items() if listed[path] not in (0, size)]
        if other:
            self._on_event(f"note: Kaggle reports another size for {_some(other)}")

    def _read_journal(self) -> _Journal:
        try:
            journal = read_model(self._path, _Journal)
        except DocumentError:  # missing, or damaged: then the files are uploaded again
            journal = _Journal()
        if journal.endpoint != self._kaggle.endpoint:
            journal = _Journal(endpoint=self._kaggle.endpoint)
        return journal

    def _remember(self, path: str, begun: _BegunUpload) -> None:
        """Keep an upload: large ones at once, small ones now and then, because they are many."""
        self._journal.uploads[path] = begun
        now = self._kaggle.timeouts.clock()
        if begun.size >= ANNOUNCED_BYTES or now - self._written >= JOURNAL_SECONDS:
            self._written = now
            self._write()

    def _write(self, **changes: object) -> None:
        self._journal = self._journal.model_copy(update=changes)
        write_json(self._path, self._journal.model_dump(mode="json"))
