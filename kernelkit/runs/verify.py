"""Check a pulled folder: its files against `run-manifest.json`, and that against `bundle.json`.

The run has written the SHA-256 and size of each output into `run-manifest.json`; here they are
computed again from the files on this disk. The two sides share no code, so that they cannot share
a mistake. No network is needed, and any old folder can be checked.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from kernelkit.errors import Details, RunFailedError, VerificationError
from kernelkit.kaggle.types import State, Status, state_word
from kernelkit.notebook.manifest import BUNDLE_NAME, Manifest
from kernelkit.runs.identity import HEAD_CHARACTERS, Identity, identity, log_identity
from kernelkit.runs.manifest import (
    END_NAME,
    PUSH_NAME,
    RUN_MANIFEST_NAME,
    OutputEntry,
    ReadableManifest,
    RunEnd,
    RunFacts,
    RunManifest,
    Verdict,
)
from kernelkit.storage import (
    DocumentError,
    MissingDocumentError,
    counted,
    csv_rows,
    encodable,
    read_file,
    read_model,
    sha256_of,
)

OWN_NAMES = frozenset({BUNDLE_NAME, PUSH_NAME, END_NAME, RUN_MANIFEST_NAME})

STALLED_NAME = "run-stalled.txt"
"""The stacks of a run that stalled so that it could not even write its manifest."""

PARTIAL_FOLDER = ".partial"
"""Where a pull keeps incomplete downloads."""

UNPACKED_SUFFIX = ".unpacked"
"""Replaces `.zip` in the name of the folder that contains an unpacked zip."""

STACKS_CHARACTERS = 1000
_SOURCES, _RUNTIME = "/kernelkit-", "kernelkit_runtime"  # of a run: its sources, and the runtime
UNPACKED_BYTES = 1 << 40  # a zip that claims more cannot come from a disk of 20 GB
COPY_BYTES = 1 << 20
_END_RECORD_BYTES = 22 + (1 << 16)  # of a zip, with the longest comment


@dataclass(frozen=True)
class VerifiedFolder:
    """A folder and the verdict about it."""

    folder: Path
    verdict: Verdict

    @property
    def document(self) -> dict[str, JsonValue]:
        """All of it for a script."""
        return {"folder": str(self.folder), **self.verdict.document}


def verify(
    folder: Path,
    takes: Callable[[str], bool] | None = None,
    left_behind: Mapping[str, str] | None = None,
    end: Status | None = None,
) -> Verdict:
    """Compare a pulled folder with its manifests.

    `takes` says which outputs to check, by default all. `left_behind` says why a file was not
    pulled. `end` is how the run ended on Kaggle, by default as in run.json.

    A run that was ended from outside has described its files some time before: those that differ
    are not vouched for, and the folder is still good.
    """
    problems: list[str] = []
    bundle, manifest = _read_manifests(folder, problems)
    whose, differences = _identity(folder, bundle, manifest)
    problems += differences
    if whose == Identity.MISMATCH:
        manifest = None  # nothing in it is about this run
    outputs = manifest.outputs if manifest else ()
    run_error = _kaggle_error(folder, end, problems)
    if manifest and manifest.failed:
        run_error = encodable(manifest.error) if manifest.error else "no reason given"
    elif manifest and manifest.unfinished:
        if run_error is None:
            problems.append(f"{RUN_MANIFEST_NAME}: the run did not finish it")
    elif manifest and bundle:
        without = tuple(part.folder for part in manifest.trials if not part.complete)
        missing = list(missing_outputs(bundle, outputs, takes, without))
        if missing and manifest.incomplete:
            run_error = run_error or f"it is incomplete: there is no {', '.join(missing)} yet"
        else:
            problems += (f"{name}: not in the manifest" for name in missing)
    paths = {output.path for output in outputs}
    outputs = tuple(output for output in outputs if takes is None or takes(output.path))
    notes = [
        f"trial {part.number} {part.status}: {part.error}"
        for part in (manifest.trials if manifest else ())
        if part.status in ("failed", "pruned")
    ]
    changed: list[str] = []
    for output in outputs:
        found = list(_output_problems(folder, output, left_behind or {}, notes))
        if manifest and manifest.unfinished:
            changed += [output.path] if found else []
        else:
            problems += found
    checkpoints = _checkpoints(folder, manifest, paths, takes, changed)
    known = OWN_NAMES | paths | {f"{bundle.slug if bundle else ''}.log", STALLED_NAME}
    known |= {one.path for one in checkpoints}
    unpacked = {unpacked_name(path) for path in paths if path.endswith(".zip")}
    undeclared = _undeclared(folder, known, unpacked | {PARTIAL_FOLDER})
    return Verdict(
        problems=tuple(problems),
        run_error=run_error,
        outputs=outputs,
        undeclared=tuple(undeclared),
        notes=tuple(notes),
        run_status=manifest.status if manifest else None,
        incomplete=manifest.incomplete if manifest else False,
        checkpoints=checkpoints,
        not_vouched_for=tuple(changed),
        described=manifest.refreshed if manifest else None,
        last_event=manifest.last_event if manifest else RunFacts(),
        identity=whose,
    )


def _checkpoints(
    folder: Path,
    manifest: ReadableManifest | None,
    outputs: Collection[str],
    takes: Callable[[str], bool] | None,
    changed: list[str],
) -> tuple[OutputEntry, ...]:
    """The undeclared files that are as the manifest describes them; others go to `changed`."""
    verified = []
    for one in manifest.checkpoints if manifest else ():
        if one.path in outputs or (takes is not None and not takes(one.path)):
            continue
        if any(_output_problems(folder, one, {}, [])):
            changed.append(one.path)
        else:
            verified.append(one)
    return tuple(verified)


def require_verified(verdict: Verdict, folder: Path, details: Details | None = None) -> None:
    """Check that a verdict is good. `details` go with an error (default: folder and verdict).

    Raises:
        VerificationError: with every problem, or another run has made the files.
        RunFailedError: the files are complete, and the run failed.
    """
    details = details or VerifiedFolder(folder, verdict)
    if verdict.identity == Identity.MISMATCH:
        raise VerificationError(
            f"{folder} contains what another run has left:\n" + "\n".join(verdict.problems),
            "Do not use these files. Right after a push, pull again in some minutes. Else look at "
            "the run's page.",
            details,
        )
    if verdict.problems and not verdict.left_no_manifest:
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
    """What the manifest says about each output, by path; None if it is not this run's manifest.

    An unfinished one promises nothing: the run may have changed a file after it was described.
    """
    bundle, manifest = _read_manifests(folder, [])
    if bundle is None or manifest is None or manifest.digest is None:
        return None
    if identity(bundle, manifest.digest, manifest.push_id)[0] == Identity.MISMATCH:
        return None
    if manifest.unfinished:
        return {}
    return {output.path: output for output in (*manifest.checkpoints, *manifest.outputs)}


def belongs_to_another_run(folder: Path) -> bool:
    """Whether the manifest or the log in a folder shows that Kaggle has sent another run's."""
    return _identity(folder, *_read_manifests(folder, []))[0] == Identity.MISMATCH


def unpacked_name(zip_name: str) -> str:
    """The folder for the content of a zip: `models.unpacked` for `models.zip`."""
    return zip_name.removesuffix(".zip") + UNPACKED_SUFFIX


def _read_manifests(
    folder: Path, problems: list[str]
) -> tuple[Manifest | None, ReadableManifest | None]:
    """Both manifests, as far as they can be read: a malformed value does not hide the others."""
    bundle = manifest = None
    try:
        bundle = read_model(folder / BUNDLE_NAME, Manifest)
    except DocumentError as error:
        problems.append(f"{BUNDLE_NAME}: {error.reason}")
    try:
        manifest = read_model(folder / RUN_MANIFEST_NAME, ReadableManifest)
        read_model(folder / RUN_MANIFEST_NAME, RunManifest)
    except DocumentError as error:
        problems.append(f"{RUN_MANIFEST_NAME}: {error.reason}")
    if manifest and manifest.status == "running" and (stacks := _stacks(folder)):
        reason = f"Stalled: compiled code kept Python from running. {stacks}"
        manifest = manifest.updated(status="stalled", error=reason)
    return bundle, manifest


def _stacks(folder: Path) -> str:
    """What a run that could not write its manifest any more was doing; empty for other runs."""
    try:
        text = (folder / STALLED_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    frames = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    own = (frame for frame in frames if _SOURCES in frame and f"/{_RUNTIME}/" not in frame)
    frame = next(own, frames[-1] if frames else "")
    return f"It was in: {frame}" if frame else text.strip()[:STACKS_CHARACTERS]


def _identity(
    folder: Path, bundle: Manifest | None, manifest: ReadableManifest | None
) -> tuple[Identity, list[str]]:
    """Whether exactly the run that was pushed made the files, and what contradicts it.

    The manifest decides. A run that was stopped leaves none: then its log shows whose it is.
    """
    if bundle is None:
        return Identity.UNPROVEN, []
    found = {f"{bundle.slug}.log": log_identity(bundle, _log_head(folder, bundle))}
    if manifest and manifest.digest is not None:
        found[RUN_MANIFEST_NAME] = identity(bundle, manifest.digest, manifest.push_id)
    different = [f"{name}: {why}" for name, (_, why) in found.items() if why]
    return (Identity.MISMATCH if different else [*found.values()][-1][0]), different


def _log_head(folder: Path, bundle: Manifest) -> str:
    try:
        head = read_file(folder / f"{bundle.slug}.log", HEAD_CHARACTERS)
        return head.decode(errors="replace")
    except (OSError, ValueError):
        return ""


def _kaggle_error(folder: Path, end: Status | None, problems: list[str]) -> str | None:
    """How the run ended, if Kaggle reports a failure: that may happen after the manifest."""
    state, failure = (end.state.value, end.failure) if end else ("", "")
    if end is None:
        try:
            kept = read_model(folder / END_NAME, RunEnd)
        except MissingDocumentError:
            return None
        except DocumentError as error:  # then it is unknown whether the run succeeded
            problems.append(f"{END_NAME}: {error.reason}")
            return None
        state, failure = kept.state, kept.failure or ""
    if state == State.COMPLETE:
        return None
    word = state_word(state, failure)
    said = word if word == "timed out" else f"Kaggle says {state}"
    return encodable(f"{said}{f': {failure}' if failure else ''}")


def missing_outputs(
    bundle: Manifest,
    outputs: Collection[OutputEntry],
    takes: Callable[[str], bool] | None = None,
    without: tuple[str, ...] = (),
) -> Iterator[str]:
    """Declared outputs for which the manifest lists no file.

    `without` are the folders of the trials that failed, which need not have their outputs.
    """
    for name in bundle.outputs:
        if name.startswith(without):
            continue
        there = any(_stands_for(name, output.path) for output in outputs)
        if not there and (takes is None or takes(name)):
            yield name


def _stands_for(declared: str, file: str) -> bool:
    """Whether a declared output is this file, a folder above it, or a pattern of either."""
    parts = declared.split("/")
    if not parts[-1]:
        parts[-1] = "*"
    return declared == file or _matches(file.split("/"), parts)


def _matches(path: list[str], pattern: list[str]) -> bool:
    match pattern:
        case []:
            return True
        case ["**", *rest]:
            return _matches(path, rest) or (bool(path) and _matches(path[1:], pattern))
        case [first, *rest]:
            return bool(path) and fnmatchcase(path[0], first) and _matches(path[1:], rest)
    raise AssertionError


def _output_problems(
    folder: Path, output: OutputEntry, left_behind: Mapping[str, str], notes: list[str]
) -> Iterator[str]:
    """The first problem of one output.

    Its SHA-256 is the proof. The content of a zip or a csv is tested as well, as far as this Python
    can read it; if it cannot, that is a note.
    """
    name, path = output.path, folder / output.path
    if not path.is_file():
        yield f"{name}: {left_behind.get(name, 'missing')}"
    elif path.stat().st_size != output.size:
        yield f"{name}: {path.stat().st_size} B, the run wrote {output.size} B"
    elif sha256_of(path) != output.sha256:
        yield f"{name}: the content differs from what the run wrote (sha256)"
    elif path.suffix == ".zip":
        yield from _zip_problems(name, path, notes)
    elif path.suffix == ".csv" and output.rows is not None:
        # With rows = None the run could not read it as a csv either; its SHA-256 must do.
        yield from _csv_problems(name, path, output, notes)


def _zip_problems(name: str, path: Path, notes: list[str]) -> Iterator[str]:
    if _spans_disks(path):
        notes.append(f"{name}: it is one part of a zip of several files, and was not tested")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > UNPACKED_BYTES:
                yield f"{name}: claims to contain {size:,} B, and was not tested"
                return
            untested: list[str] = []
            for member in archive.infolist():
                inside = encodable(member.filename)
                try:
                    stream = archive.open(member)
                except Exception as error:  # encrypted, another compression, an odd name
                    reason = "it is encrypted" if member.flag_bits & 1 else str(error)
                    untested.append(f"{inside!r}: {reason}")
                    continue
                with stream:
                    if not _is_readable(stream):
                        yield f"{name}: {inside} in it is damaged"
                        return
            if untested:
                files = counted(len(untested), "file")
                notes.append(f"{name}: {files} in it not tested ({untested[0]})")
    except zipfile.BadZipFile as error:
        yield f"{name}: not a valid zip ({error})"
    except Exception as error:  # hostile bytes raise any exception of their decoder
        notes.append(f"{name}: was not tested as a zip ({type(error).__name__}: {error})")


def _is_readable(member: IO[bytes]) -> bool:
    """Whether the whole content can be read; its CRC is checked at the end."""
    try:
        while member.read(COPY_BYTES):
            pass
    except Exception:  # hostile bytes raise any exception of their decoder
        return False
    return True


def _spans_disks(path: Path) -> bool:
    """Whether the last record of a zip says that it has several parts."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _END_RECORD_BYTES))
        tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    numbers = tail[at + 4 : at + 8] if at >= 0 else b""  # of this part and of the first one
    if tail[at - 20 : at - 16] == b"PK\6\7":  # zip64: the number of all parts is next to it
        return int.from_bytes(tail[at - 4 : at], "little") > 1
    return numbers not in (b"", bytes(4), b"\xff" * 4)


def _csv_problems(name: str, path: Path, output: OutputEntry, notes: list[str]) -> Iterator[str]:
    ids, rows = hashlib.sha256(), -1  # the header does not count
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv_rows(stream):
                rows += 1
                if rows:
                    ids.update(f"{row[0] if row else ''}\n".encode())
    except (UnicodeDecodeError, csv.Error) as error:
        notes.append(f"{name}: its rows were not counted ({error})")
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
