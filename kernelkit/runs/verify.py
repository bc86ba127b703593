"""Check a pulled folder: its files against `run-manifest.json`, and that against `bundle.json`.

The run has written the SHA-256 and size of each output into `run-manifest.json`; here they are
computed again from the files on this disk. The two sides share no code, so that they cannot share
a mistake. No network is needed, and any old folder can be checked.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from kernelkit.errors import Details, LocalError, RunFailedError, VerificationError
from kernelkit.notebook.manifest import BUNDLE_NAME, Manifest
from kernelkit.runs.manifest import (
    END_NAME,
    PUSH_NAME,
    RUN_MANIFEST_NAME,
    OutputEntry,
    RunEnd,
    RunManifest,
    Verdict,
)
from kernelkit.storage import DocumentError, encodable, read_model, sha256_of

OWN_NAMES = frozenset({BUNDLE_NAME, PUSH_NAME, END_NAME, RUN_MANIFEST_NAME})

PARTIAL_FOLDER = ".partial"
"""Where a pull keeps incomplete downloads."""

UNPACKED_SUFFIX = ".unpacked"
"""Replaces `.zip` in the name of the folder that contains an unpacked zip."""

UNPACKED_BYTES = 1 << 40  # a zip that claims more cannot come from a disk of 20 GB


@dataclass(frozen=True)
class VerifiedFolder:
    """A folder and the verdict about it."""

    folder: Path
    verdict: Verdict

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {
            "folder": str(self.folder),
            **self.verdict.document,
            "verified": self.verdict.verified,
        }


def verify(
    folder: Path,
    names: Collection[str] | None = None,
    left_behind: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare a pulled folder with its manifests.

    `names` are the outputs to check, by default all. `left_behind` says why a file was not pulled.
    """
    problems: list[str] = []
    bundle, manifest = _read_manifests(folder, problems)
    outputs = manifest.outputs if manifest else ()
    run_error = None
    if bundle and manifest:
        problems += _digest_problems(bundle, manifest)
        if manifest.failed:
            run_error = encodable(manifest.error) if manifest.error else "no reason given"
        else:
            problems += _missing_outputs(bundle, outputs, names)
        run_error = run_error or _kaggle_error(folder)
    paths = {output.path for output in outputs}
    outputs = tuple(output for output in outputs if names is None or output.path in names)
    for output in outputs:
        problems += _output_problems(folder, output, left_behind or {})
    known = OWN_NAMES | paths | {f"{bundle.slug if bundle else ''}.log"}
    unpacked = {unpacked_name(path) for path in paths if path.endswith(".zip")}
    undeclared = _undeclared(folder, known, unpacked | {PARTIAL_FOLDER})
    return Verdict(
        problems=tuple(problems),
        run_error=run_error,
        outputs=outputs,
        undeclared=tuple(undeclared),
    )


def require_verified(verdict: Verdict, folder: Path, details: Details | None = None) -> None:
    """Check that a verdict is good. `details` go with an error (default: folder and verdict).

    Raises:
        VerificationError: with every problem.
        RunFailedError: the files are complete, and the run failed.
    """
    details = details or VerifiedFolder(folder, verdict)
    if verdict.problems:
        raise VerificationError(
            f"{folder} does not match its manifest:\n" + "\n".join(verdict.problems),
            "Do not use these files. Delete run.json there, if it exists, and pull again.",
            details,
        )
    if verdict.run_error is not None:
        raise RunFailedError(
            f"the run in {folder} failed: {verdict.run_error}",
            f"Find the cause: kernelkit diagnose {folder}",
            details,
        )


def promised_outputs(folder: Path) -> dict[str, OutputEntry] | None:
    """What the manifest says about each output, by path; None if it is not this run's manifest."""
    problems: list[str] = []
    bundle, manifest = _read_manifests(folder, problems)
    if bundle is None or manifest is None or bundle.digest != manifest.digest:
        return None
    return {output.path: output for output in manifest.outputs}


def unpacked_name(zip_name: str) -> str:
    """The folder for the content of a zip: `models.unpacked` for `models.zip`."""
    return zip_name.removesuffix(".zip") + UNPACKED_SUFFIX


def _read_manifests(
    folder: Path, problems: list[str]
) -> tuple[Manifest | None, RunManifest | None]:
    bundle = manifest = None
    try:
        bundle = read_model(folder / BUNDLE_NAME, Manifest)
    except DocumentError as error:
        problems.append(f"{BUNDLE_NAME}: {error.reason}")
    try:
        manifest = read_model(folder / RUN_MANIFEST_NAME, RunManifest)
    except DocumentError as error:
        problems.append(f"{RUN_MANIFEST_NAME}: {error.reason}")
    return bundle, manifest


def _digest_problems(bundle: Manifest, manifest: RunManifest) -> Iterator[str]:
    if not bundle.digest or bundle.digest != manifest.digest:
        sent, ran = f"{bundle.digest!r:.80}", f"{manifest.digest!r:.80}"
        yield f"{RUN_MANIFEST_NAME}: of another bundle (sent {sent}, ran {ran})"


def _kaggle_error(folder: Path) -> str | None:
    """How the run ended, if Kaggle reports a failure: that may happen after the manifest."""
    try:
        end = read_model(folder / END_NAME, RunEnd)
    except LocalError:
        return None
    if end.succeeded:
        return None
    return encodable(f"Kaggle says {end.state}{f': {end.failure}' if end.failure else ''}")


def _missing_outputs(
    bundle: Manifest, outputs: Collection[OutputEntry], names: Collection[str] | None
) -> Iterator[str]:
    """Declared outputs that the manifest does not list."""
    known = {output.path for output in outputs}
    for name in bundle.outputs:
        if name not in known and (names is None or name in names):
            yield f"{name}: not in the manifest"


def _output_problems(
    folder: Path, output: OutputEntry, left_behind: Mapping[str, str]
) -> Iterator[str]:
    """The first problem of one output."""
    name, path = output.path, folder / output.path
    if not path.is_file():
        yield f"{name}: {left_behind.get(name, 'missing')}"
    elif path.stat().st_size != output.size:
        yield f"{name}: {path.stat().st_size} B, the run wrote {output.size} B"
    elif sha256_of(path) != output.sha256:
        yield f"{name}: the content differs from what the run wrote (sha256)"
    elif path.suffix == ".zip":
        yield from _zip_problems(name, path)
    elif path.suffix == ".csv" and output.rows is not None:
        # With rows = None the run could not read it as a csv either; its SHA-256 must do.
        yield from _csv_problems(name, path, output)


def _zip_problems(name: str, path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > UNPACKED_BYTES:
                yield f"{name}: claims to contain {size:,} B, and was not tested"
                return
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        yield f"{name}: not a valid zip ({error})"
    except Exception as error:  # hostile bytes raise any exception of their decoder
        yield f"{name}: cannot be tested as a zip ({type(error).__name__}: {error})"
    else:
        if broken:
            yield f"{name}: {encodable(broken)} in it is damaged"


def _csv_problems(name: str, path: Path, output: OutputEntry) -> Iterator[str]:
    ids, rows = hashlib.sha256(), -1  # the header does not count
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                rows += 1
                if rows:
                    ids.update(f"{row[0] if row else ''}\n".encode())
    except (UnicodeDecodeError, csv.Error) as error:
        yield f"{name}: not a readable csv ({error})"
        return
    if (max(rows, 0), ids.hexdigest()) != (output.rows, output.ids_sha256):
        yield f"{name}: rows or ids differ from the manifest"


def _undeclared(folder: Path, known: Collection[str], skipped: Collection[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        inside = {parent.as_posix() for parent in name.parents}
        if name.as_posix() == PARTIAL_FOLDER:
            yield f"{name} (incomplete downloads)"
        elif path.is_file() and name.as_posix() not in known and inside.isdisjoint(skipped):
            yield encodable(name.as_posix())
