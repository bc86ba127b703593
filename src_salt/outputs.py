"""The output folder: file names, atomic writes, and the event lines on stdout.

A file of a run is either complete or absent. Each file is written under a temporary name in the
same folder and then renamed, so a reader never sees half of it.
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

from src_salt.config import SaltError, current_experiment_name

T = TypeVar("T")

ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can store. A fixed time makes equal files give equal bytes."""

RESUMABLE = {"models": (".pth", "_history.json"), "checkpoints": (".pt",)}
"""How the names of weights, records and checkpoints end, by folder."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers that go away when the user deletes something."""

TEMPORARY_NAME = re.compile(r"\..+\.(\d+)\.\w+")
"""The name that `atomic_write` uses before the rename, with the id of the process."""


class OutputError(SaltError):
    """The output folder cannot be written or read; the message names the file."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    If the block raises, the temporary file is deleted and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id separates two runs; the suffix stays, since savefig reads the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def convert_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError that says how to continue."""
    try:
        yield
    except BrokenPipeError:
        raise  # stdout was closed: not an error of the folder
    except OSError as error:
        advice = "Free some space" if error.errno in DISK_FULL else "Fix this"
        raise OutputError(
            f"{error.filename or folder}: cannot be written or read ({error.strerror or error}). "
            f"{advice} and run again. Experiments with complete weights and a record in "
            f"{folder / 'models'} are not trained again."
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 atomically, with unchanged newlines on every platform."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; ValueError for a non-finite number."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read UTF-8 JSON; OSError or ValueError if that is not possible."""
    return parse_json(path.read_bytes())


def parse_json(content: bytes) -> Any:
    """Parse UTF-8 JSON; ValueError if that is not possible."""
    return json.loads(content.decode("utf-8"))


def write_zip(path: Path, root: Path, members: Iterable[Path]) -> None:
    """Pack files under their paths relative to `root`.

    Names are sorted, times are fixed and nothing is compressed. Weights hardly shrink, PNG files
    are compressed already, and stored bytes do not depend on the version of zlib.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for member in sorted(members):
            entry = zipfile.ZipInfo(member.relative_to(root).as_posix(), ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.file_size = member.stat().st_size
            with member.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def sha256(*parts: bytes | memoryview) -> str:
    """Return the hexadecimal SHA-256 of the parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def emit(event: str, **values: Any) -> None:
    """Print one event as one line of JSON and flush it, so that users can follow the run."""
    # One write for the whole line: print would write the newline separately, and the output of
    # another process could come between the two.
    print(json.dumps({"event": event, **values}, allow_nan=False) + "\n", end="", flush=True)


def progress(items: Iterable[T], title: str) -> Iterable[T]:
    """Show a progress bar on stderr, but only in a terminal."""
    bar: Iterable[T] = tqdm(items, desc=title, leave=False, disable=None, dynamic_ncols=True)
    return bar


class Outputs:
    """The paths of every file that a run writes into its output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.submission = root / "submission.csv"
        self.prediction = root / "models" / "prediction.json"
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
        """The record of a trained experiment; it exists only if the weights are complete."""
        return self.root / "models" / f"{experiment}_history.json"

    @property
    def results(self) -> tuple[Path, ...]:
        """Every file of the folder results/."""
        curves = (self.iou_plot, self.loss_plot, self.score_plot)
        analysis = (self.calibration_plot, self.coverage_plot)
        cases = (self.predictions_plot, self.best_cases, self.median_cases, self.worst_cases)
        return (*curves, *analysis, *cases, self.table_csv, self.table_markdown, self.page)

    def checkpoint(self, experiment: str) -> Path:
        """The state of an unfinished experiment; deleted once the experiment is complete."""
        return self.root / "checkpoints" / f"{experiment}.pt"

    def rename_old_files(self) -> dict[str, str]:
        """Give files with old experiment names today's names; return new names by old ones.

        An old file stays as it is if a file with the new name exists.
        """
        renamed = {}
        for folder in (self.root / name for name in RESUMABLE):
            names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            for name in names:
                current = current_experiment_name(name)
                # Compared as text: on a case-insensitive file system, `exists` sees the old file.
                if current in names or name.startswith("."):
                    continue
                (folder / name).replace(folder / current)
                renamed[f"{folder.name}/{name}"] = f"{folder.name}/{current}"
        return renamed

    def adopt(self, earlier: Path) -> dict[str, str]:
        """Copy weights, records and checkpoints of an earlier run that are missing here.

        `earlier` is the output folder of that run, or a folder with its models.zip. Old experiment
        names become today's. Returns the new names by the names in the earlier run.

        Raises:
            OutputError: the folder does not exist.
        """
        if not earlier.is_dir():
            raise OutputError(f"resume_dir: there is no folder {earlier}.")
        packed = earlier / "models.zip"
        roots: list[Path | zipfile.Path] = [earlier]
        if packed.is_file():
            roots.append(zipfile.Path(packed))
        present = {
            path.parent / current_experiment_name(path.name)
            for name in RESUMABLE
            for path in (self.root / name).glob("*")
        }
        adopted = {}
        for folder in (root / name for root in roots for name in RESUMABLE):
            for source in folder.iterdir() if folder.is_dir() else ():
                target = self.root / folder.name / current_experiment_name(source.name)
                temporary = source.name.startswith(".")  # a killed run did not finish this file
                resumable = source.name.endswith(RESUMABLE[folder.name])
                if target in present or temporary or not resumable:
                    continue
                present.add(target)
                with (
                    atomic_write(target) as partial,
                    partial.open("wb") as copy,
                    source.open("rb") as content,
                ):
                    shutil.copyfileobj(content, copy)
                adopted[f"{folder.name}/{source.name}"] = self.relative(target)
        return adopted

    def remove_stale(self) -> None:
        """Delete the final files of an earlier run, so that a failing run leaves none behind."""
        for path in self._final:
            path.unlink(missing_ok=True)
        self.remove_temporary()

    @property
    def _final(self) -> tuple[Path, ...]:
        zips = (self.models_zip, self.results_zip)
        return (self.submission, self.prediction, *zips, *self.results)

    def remove_temporary(self) -> None:
        """Delete temporary files of processes that no longer exist."""
        # Only names that this package writes: the folder may contain files of the user.
        patterns = [path.with_name(f".{path.stem}.*{path.suffix}") for path in self._final]
        for folder, ends in RESUMABLE.items():
            patterns += [self.root / folder / f".*{Path(end).suffix or end}" for end in ends]
        for path in (path for pattern in patterns for path in pattern.parent.glob(pattern.name)):
            name = TEMPORARY_NAME.fullmatch(path.name)
            if name and not _is_alive(int(name[1])):
                path.unlink(missing_ok=True)

    def relative(self, path: Path) -> str:
        """The path relative to the output folder, with forward slashes."""
        return path.relative_to(self.root).as_posix()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
