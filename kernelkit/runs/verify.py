"""A pulled folder and its `bundle.json` become a `Verdict`. No network; any old folder will do.

The run has written sha256 and size of each output into `run-manifest.json`; here they are computed
anew from what lies on this disk. The two sides share no code, so that none can share a mistake.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelkit.storage import UnsafePathError, plain_path, printable

MANIFEST_NAME = "run-manifest.json"
OWN_NAMES = frozenset({"bundle.json", "push.json", "run.json", MANIFEST_NAME})

PARTIAL_FOLDER = ".partial"
"""Where a pull keeps what is not whole yet."""

UNPACKED_SUFFIX = ".unpacked"
"""Of the folder beside a zip that holds what was in it, in the place of `.zip`."""

DOCUMENT_BYTES = 64 << 20  # a manifest of 10,000 outputs has 3 MB
UNPACKED_BYTES = 1 << 40  # a zip that promises more is no result of a disk of 20 GB


@dataclass(frozen=True)
class Verdict:
    """Whether a folder holds the results of exactly the bundle that was sent."""

    problems: tuple[str, ...]
    """What does not match; empty where all does."""

    run_error: str | None
    """The error with which the run ended, by its own (matching) manifest or else by Kaggle."""

    outputs: tuple[Mapping[str, Any], ...]
    """What the manifest says of each declared output that was asked for."""

    undeclared: tuple[str, ...]
    """Files beyond the declared outputs: listed, no fault."""

    @property
    def verified(self) -> bool:
        """The run came to its end, and everything is as it left it."""
        return not self.problems and self.run_error is None


def verify(
    folder: Path,
    names: Collection[str] | None = None,
    left_behind: Mapping[str, str] | None = None,
) -> Verdict:
    """Hold a pulled folder against its manifests.

    `names` are the outputs that are asked for; all where it is left out. `left_behind` tells why a
    file has not come.
    """
    problems: list[str] = []
    bundle, manifest = _manifests(folder, problems)
    outputs: list[Mapping[str, Any]] = []
    run_error = None
    if bundle and manifest:
        problems += _wrong_digest(bundle, manifest)
        if manifest.get("status") == "failed":
            error = manifest.get("error")
            run_error = printable(error) if isinstance(error, str) and error else "no reason given"
        elif manifest.get("status") != "complete":
            problems.append(f"{MANIFEST_NAME}: status is {_short(manifest.get('status'))}")
        outputs = _listed(manifest, problems)
        problems += _not_listed(bundle, outputs, names) if run_error is None else []
        run_error = run_error or _told_by_kaggle(folder)
    paths = {str(output["path"]) for output in outputs}
    outputs = [output for output in outputs if names is None or output["path"] in names]
    for output in outputs:
        problems += _faults(folder, output, left_behind or {})
    known = OWN_NAMES | paths | {f"{bundle.get('slug')}.log"}
    unpacked = {unpacked_name(path) for path in paths if path.endswith(".zip")}
    extra = _extra(folder, known, unpacked | {PARTIAL_FOLDER})
    return Verdict(tuple(problems), run_error, tuple(outputs), tuple(extra))


def promised(folder: Path) -> dict[str, Mapping[str, Any]] | None:
    """What the manifest says of each output, by path; None where it is not this run's."""
    problems: list[str] = []
    bundle, manifest = _manifests(folder, problems)
    problems += _wrong_digest(bundle, manifest)
    outputs = _listed(manifest, problems)
    return None if problems else {str(output["path"]): output for output in outputs}


def unpacked_name(zip_name: str) -> str:
    """The folder for what is in a zip: `models.zip` and `models.unpacked`."""
    return zip_name.removesuffix(".zip") + UNPACKED_SUFFIX


def _manifests(folder: Path, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return _document(folder / "bundle.json", problems), _document(folder / MANIFEST_NAME, problems)


def _document(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        if path.stat().st_size > DOCUMENT_BYTES:
            problems.append(f"{path.name}: larger than {DOCUMENT_BYTES >> 20} MB")
            return {}
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name}: missing")
        return {}
    except (OSError, ValueError, RecursionError) as fault:
        problems.append(f"{path.name}: cannot be read ({fault})")
        return {}
    if not isinstance(document, dict) or not document:
        problems.append(f"{path.name}: is no JSON object")
        return {}
    return document


def _wrong_digest(bundle: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    sent, ran = bundle.get("digest"), manifest.get("digest")
    if not isinstance(sent, str) or not sent or sent != ran:
        yield f"{MANIFEST_NAME}: of another bundle (sent {_short(sent)}, ran {_short(ran)})"


def _told_by_kaggle(folder: Path) -> str | None:
    """How the run ended, where that is recorded and no success: it may come after the manifest."""
    run = _document(folder / "run.json", [])
    state, failure = run.get("state"), run.get("failure")
    if not isinstance(state, str) or state == "complete":
        return None
    words = f": {failure}" if isinstance(failure, str) and failure else ""
    return printable(f"Kaggle says {state}{words}")


def _listed(manifest: Mapping[str, Any], problems: list[str]) -> list[Mapping[str, Any]]:
    """The outputs that a manifest describes, each once, in the form that the run side writes."""
    listed = manifest.get("outputs")
    described = [_described(output) for output in listed] if isinstance(listed, list) else [None]
    outputs = [output for output in described if output is not None]
    paths = {output["path"] for output in outputs}
    if len(paths) == len(described):
        return outputs
    problems.append(f"{MANIFEST_NAME}: its list of outputs is unusable")
    return []


def _described(output: Any) -> Mapping[str, Any] | None:
    """One entry of that list with what is known of such entries; None where it is none."""
    if not isinstance(output, dict):
        return None
    path, size, digest = (output.get(name) for name in ("path", "size", "sha256"))
    rows, ids = output.get("rows"), output.get("ids_sha256")
    usable = (
        isinstance(path, str)
        and (type(size) is int and size >= 0)
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{64}", digest)
        and (rows is None or type(rows) is int)
        and (ids is None or isinstance(ids, str))
    )
    try:
        plain_path(str(path))
    except UnsafePathError:
        return None
    table = {"rows": rows, "ids_sha256": ids} if "rows" in output else {}
    return {"path": path, "size": size, "sha256": digest, **table} if usable else None


def _not_listed(
    bundle: Mapping[str, Any], outputs: list[Mapping[str, Any]], names: Collection[str] | None
) -> list[str]:
    """Declared outputs of which the manifest does not tell."""
    declared = bundle.get("outputs")
    if not isinstance(declared, list) or not all(isinstance(name, str) for name in declared):
        return ["bundle.json: names no outputs"]
    known = {output["path"] for output in outputs}
    wanted = [name for name in declared if names is None or name in names]
    return [f"{name}: not in the manifest" for name in wanted if name not in known]


def _faults(
    folder: Path, output: Mapping[str, Any], left_behind: Mapping[str, str]
) -> Iterator[str]:
    """What is wrong with one output; the first fault is enough of it."""
    name = str(output["path"])
    path = folder / name
    if not path.is_file():
        yield f"{name}: {left_behind.get(name, 'missing')}"
    elif path.stat().st_size != output["size"]:
        yield f"{name}: {path.stat().st_size} B, the run wrote {output['size']} B"
    elif _sha256(path) != output["sha256"]:
        yield f"{name}: other content than the run wrote (sha256)"
    elif path.suffix == ".zip":
        yield from _zip_faults(name, path)
    elif path.suffix == ".csv":
        yield from _csv_faults(name, path, output)


def _zip_faults(name: str, path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > UNPACKED_BYTES:
                yield f"{name}: claims to hold {size:,} B, and is not tested"
                return
            broken = archive.testzip()
    except zipfile.BadZipFile as fault:
        yield f"{name}: no valid zip ({fault})"
    except Exception as fault:  # hostile bytes raise whatever their decoder raises
        yield f"{name}: cannot be tested as a zip ({type(fault).__name__}: {fault})"
    else:
        if broken:
            yield f"{name}: {printable(broken)} in it is damaged"


def _csv_faults(name: str, path: Path, output: Mapping[str, Any]) -> Iterator[str]:
    if output.get("rows") is None:
        return  # the run could not read it as a csv either; its sha256 has been compared
    ids, rows = hashlib.sha256(), -1  # the heading is no row
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                rows += 1
                if rows:
                    ids.update(f"{row[0] if row else ''}\n".encode())
    except (UnicodeDecodeError, csv.Error) as fault:
        yield f"{name}: no readable csv ({fault})"
        return
    if (max(rows, 0), ids.hexdigest()) != (output.get("rows"), output.get("ids_sha256")):
        yield f"{name}: other rows or ids than the manifest says"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _extra(folder: Path, known: frozenset[str], skipped: Collection[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        inside = {parent.as_posix() for parent in name.parents}
        if name.as_posix() == PARTIAL_FOLDER:
            yield f"{name} (downloads that were not finished)"
        elif path.is_file() and name.as_posix() not in known and inside.isdisjoint(skipped):
            yield printable(name.as_posix())


def _short(value: Any) -> str:
    """A value of a manifest for a message, whatever it is."""
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else "no text"
