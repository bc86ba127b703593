"""A pulled folder and its `bundle.json` become a `Verdict`. No network; any old folder will do.

The run has written sha256 and size of each output into `run-manifest.json`; here they are computed
anew from what lies on this disk. The two sides share no code, so that none can share a mistake.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "run-manifest.json"
OWN_NAMES = frozenset({"bundle.json", "push.json", "run.json", MANIFEST_NAME})


@dataclass(frozen=True)
class Verdict:
    """Whether a folder holds the results of exactly the bundle that was sent."""

    problems: tuple[str, ...]
    """What does not match; empty where all does."""

    run_error: str | None
    """The error with which the run ended, by its own (matching) manifest."""

    outputs: tuple[Mapping[str, Any], ...]
    """What the manifest says of each declared output."""

    undeclared: tuple[str, ...]
    """Files beyond the declared outputs: listed, no fault."""

    @property
    def verified(self) -> bool:
        """The run came to its end, and everything is as it left it."""
        return not self.problems and self.run_error is None


def verify(folder: Path) -> Verdict:
    """Hold a pulled folder against its manifests."""
    problems: list[str] = []
    bundle = _document(folder / "bundle.json", problems)
    manifest = _document(folder / MANIFEST_NAME, problems)
    outputs: list[Mapping[str, Any]] = []
    run_error = None
    if bundle and manifest:
        problems += _wrong_digest(bundle, manifest)
        if manifest.get("status") == "failed":
            run_error = str(manifest.get("error") or "no reason given")
        elif manifest.get("status") != "complete":
            problems.append(f"{MANIFEST_NAME}: status is {manifest.get('status')!r}")
        outputs = _listed(manifest, problems)
        declared = bundle.get("outputs")
        if not isinstance(declared, list) or not all(isinstance(n, str) for n in declared):
            problems.append("bundle.json: names no outputs")
        elif run_error is None:
            names = {output["path"] for output in outputs}
            problems += [f"{name}: not in the manifest" for name in declared if name not in names]
        problems += [fault for output in outputs for fault in _faults(folder, output)]
    known = OWN_NAMES | {str(output["path"]) for output in outputs} | {f"{bundle.get('slug')}.log"}
    return Verdict(tuple(problems), run_error, tuple(outputs), tuple(_extra(folder, known)))


def _document(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
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
    if not sent or sent != ran:
        yield f"{MANIFEST_NAME}: of another bundle (sent {sent}, ran {ran})"


def _listed(manifest: Mapping[str, Any], problems: list[str]) -> list[Mapping[str, Any]]:
    listed = manifest.get("outputs")
    if isinstance(listed, list) and all(
        isinstance(output, dict)
        and isinstance(output.get("path"), str)
        and isinstance(output.get("size"), int)
        and isinstance(output.get("sha256"), str)
        for output in listed
    ):
        return listed
    problems.append(f"{MANIFEST_NAME}: its list of outputs is unusable")
    return []


def _faults(folder: Path, output: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one output; the first fault is enough of it."""
    name = str(output["path"])
    path = folder / name
    if not path.is_file():
        yield f"{name}: missing"
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
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as fault:
        yield f"{name}: no valid zip ({fault})"
        return
    except (RuntimeError, NotImplementedError) as fault:
        yield f"{name}: cannot be tested ({fault})"
        return
    if broken:
        yield f"{name}: {broken} in it is damaged"


def _csv_faults(name: str, path: Path, output: Mapping[str, Any]) -> Iterator[str]:
    if output.get("rows") is None:
        return  # the run could not read it as a csv either; its sha256 has been compared
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            ids = [row[0] if row else "" for row in csv.reader(stream)][1:]
    except (UnicodeDecodeError, csv.Error) as fault:
        yield f"{name}: no readable csv ({fault})"
        return
    digest = hashlib.sha256("".join(f"{id_}\n" for id_ in ids).encode()).hexdigest()
    if (len(ids), digest) != (output.get("rows"), output.get("ids_sha256")):
        yield f"{name}: other rows or ids than the manifest says"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _extra(folder: Path, known: frozenset[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known:
            yield name
