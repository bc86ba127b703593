"""The folder of results: its names, files written whole, and the event lines.

A file of a run either is complete or does not exist: it is written beside its place under another
name and then renamed. A reader of a half-finished folder is therefore never misled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from src_salt.config import SaltError

T = TypeVar("T")

ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: the same files then always give the same bytes."""


TAKEN_OVER = {"models": (".pth", ".json"), "checkpoints": (".pt",)}
"""Suffixes of weights, records and checkpoints, by folder."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError that is over once something is deleted."""

UNFINISHED = re.compile(r"\..+\.(\d+)\.\w+")
"""The name that a file has until it is `whole`, with the number of the process."""


class OutputError(SaltError):
    """The output folder takes no more; the message names the file."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write; renamed to `path` when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two runs apart; the suffix stays, since savefig reads the format there.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def refused_writing(folder: Path) -> Iterator[None]:
    """OutputError for what the disk refuses inside; nothing that was whole before is lost."""
    try:
        yield
    except BrokenPipeError:
        raise  # of whoever read the events
    except OSError as error:
        mend = "Make room" if error.errno in NO_ROOM else "Mend that"
        raise OutputError(
            f"{error.filename or folder}: cannot be written or read ({error.strerror or error}). "
            f"{mend} and run again: experiments whose weights and record are whole in "
            f"{folder / 'models'} are not trained anew."
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the newlines as they are, on every platform."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON; a value that is not finite raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_zip(path: Path, root: Path, members: Iterable[Path]) -> None:
    """Pack files under their paths relative to `root`.

    Names are sorted, times fixed and nothing is compressed: weights hardly shrink, pictures are
    compressed already, and stored bytes do not depend on the version of zlib.
    """
    with whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for member in sorted(members):
            entry = zipfile.ZipInfo(member.relative_to(root).as_posix(), ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.file_size = member.stat().st_size
            with member.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def emit(event: str, **values: Any) -> None:
    """Print one event as one JSON line, at once: what somebody who watches the run reads."""
    # In one piece: print would write the newline on its own, after what another process says.
    print(json.dumps({"event": event, **values}, allow_nan=False) + "\n", end="", flush=True)


def progress(items: Iterable[T], title: str) -> Iterable[T]:
    """A progress bar on stderr, only where somebody watches: a batch log gets none."""
    bar: Iterable[T] = tqdm(items, desc=title, leave=False, disable=None, dynamic_ncols=True)
    return bar


class Outputs:
    """Names of everything a run leaves in its output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.submission = root / "submission.csv"
        self.models_zip = root / "models.zip"
        self.results_zip = root / "results.zip"
        results = root / "results"
        self.iou_plot = results / "validation_iou_comparison.png"
        self.loss_plot = results / "loss_curves.png"
        self.score_plot = results / "score_curves.png"
        self.calibration_plot = results / "calibration.png"
        self.coverage_plot = results / "score_by_coverage.png"
        self.predictions_plot = results / "predictions.png"
        self.best_cases = results / "cases_best.png"
        self.median_cases = results / "cases_median.png"
        self.worst_cases = results / "cases_worst.png"
        self.page = results / "report.html"
        self.table_csv = results / "experiments.csv"
        self.table_markdown = results / "experiments.md"

    def weights(self, experiment: str) -> Path:
        """The best weights of an experiment, a plain state_dict."""
        return self.root / "models" / f"best_model_{experiment}.pth"

    def history(self, experiment: str) -> Path:
        """The record of a finished experiment; its presence means that it is complete."""
        return self.root / "models" / f"{experiment}_history.json"

    @property
    def results(self) -> tuple[Path, ...]:
        """Every file of the folder results/."""
        curves = (self.iou_plot, self.loss_plot, self.score_plot)
        measured = (self.calibration_plot, self.coverage_plot)
        cases = (self.predictions_plot, self.best_cases, self.median_cases, self.worst_cases)
        return (*curves, *measured, *cases, self.table_csv, self.table_markdown, self.page)

    def checkpoint(self, experiment: str) -> Path:
        """Where an unfinished experiment stands; gone once it is complete."""
        return self.root / "checkpoints" / f"{experiment}.pt"

    def take_over(self, earlier: Path) -> list[str]:
        """Copy what an earlier run left of experiments that have nothing here; the files' names.

        `earlier` is its output folder, or one with its models.zip. OutputError if there is none.
        """
        if not earlier.is_dir():
            raise OutputError(f"resume_dir: there is no folder {earlier}.")
        packed = earlier / "models.zip"
        roots: list[Path | zipfile.Path] = [earlier]
        if packed.is_file():
            roots.append(zipfile.Path(packed))
        taken = []
        for folder in (root / name for root in roots for name in TAKEN_OVER):
            for source in folder.iterdir() if folder.is_dir() else ():
                target = self.root / folder.name / source.name
                unfinished = source.name.startswith(".")  # what a run that was killed was writing
                if target.exists() or unfinished or source.suffix not in TAKEN_OVER[folder.name]:
                    continue
                with (
                    whole(target) as temporary,
                    temporary.open("wb") as copy,
                    source.open("rb") as content,
                ):
                    shutil.copyfileobj(content, copy)
                taken.append(self.relative(target))
        return sorted(taken)

    def remove_stale(self) -> None:
        """Remove what a former run ended with, so that a run that fails leaves none of it.

        Also what a run that was killed has not finished writing.
        """
        last = (self.submission, self.models_zip, self.results_zip, *self.results)
        for path in last:
            path.unlink(missing_ok=True)
        # Their names alone: the root may be a folder of the user's.
        kinds = [path.with_name(f".{path.stem}.*{path.suffix}") for path in last]
        for folder, suffixes in TAKEN_OVER.items():
            kinds += [self.root / folder / f".*{suffix}" for suffix in suffixes]
        for path in (path for kind in kinds for path in kind.parent.glob(kind.name)):
            name = UNFINISHED.fullmatch(path.name)
            if name and not _is_alive(int(name[1])):
                path.unlink(missing_ok=True)

    def relative(self, path: Path) -> str:
        """The path as the run's summary names it."""
        return path.relative_to(self.root).as_posix()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
