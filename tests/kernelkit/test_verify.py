from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelkit.verify import verify

DIGEST = "d" * 64


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    """A folder as a pull leaves it."""
    with (tmp_path / "out.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "x"], ["a", "1"], ["b", ""]])
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as archive:
        archive.writestr("weights", "w" * 1000)
    outputs = [describe(tmp_path / "models.zip"), describe(tmp_path / "out.csv")]
    outputs[1] |= {"rows": 2, "ids_sha256": hashlib.sha256(b"a\nb\n").hexdigest()}
    write(tmp_path / "bundle.json", {"digest": DIGEST, "outputs": ["models.zip", "out.csv"]})
    write(
        tmp_path / "run-manifest.json",
        {"digest": DIGEST, "status": "complete", "error": None, "outputs": outputs},
    )
    return tmp_path


def describe(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "path": path.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def change_manifest(folder: Path, **fields: object) -> None:
    path = folder / "run-manifest.json"
    write(path, {**json.loads(path.read_text()), **fields})


def redescribe(folder: Path, name: str) -> None:
    """Let the manifest agree with a changed file, so that only what is inside can tell."""
    outputs = json.loads((folder / "run-manifest.json").read_text())["outputs"]
    change_manifest(
        folder,
        outputs=[{**o, **(describe(folder / name) if o["path"] == name else {})} for o in outputs],
    )


def test_what_the_run_left_is_verified(pulled: Path) -> None:
    (pulled / "extra.txt").touch()
    verdict = verify(pulled)
    assert verdict.verified
    assert verdict.undeclared == ("extra.txt",)
    assert [output["path"] for output in verdict.outputs] == ["models.zip", "out.csv"]


def flip_a_byte(folder: Path) -> None:
    path = folder / "models.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def damage_inside(folder: Path) -> None:
    flip_a_byte(folder)
    redescribe(folder, "models.zip")


def no_zip_at_all(folder: Path) -> None:
    (folder / "models.zip").write_bytes(b"<html>error</html>")
    redescribe(folder, "models.zip")


def cut(folder: Path) -> None:
    path = folder / "out.csv"
    path.write_bytes(path.read_bytes()[:-3])


def other_ids(folder: Path) -> None:
    path = folder / "out.csv"
    path.write_text(path.read_text().replace("a,", "c,"))
    redescribe(folder, "out.csv")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (flip_a_byte, "models.zip: other content than the run wrote (sha256)"),
        (damage_inside, "models.zip: weights in it is damaged"),
        (no_zip_at_all, "models.zip: no valid zip"),
        (cut, "out.csv: 12 B, the run wrote 15 B"),
        (other_ids, "out.csv: other rows or ids"),
        (lambda f: (f / "out.csv").unlink(), "out.csv: missing"),
        (lambda f: (f / "run-manifest.json").unlink(), "run-manifest.json: missing"),
        (lambda f: (f / "run-manifest.json").write_text("{"), "run-manifest.json: cannot be read"),
        (lambda f: (f / "run-manifest.json").write_text("[]"), "run-manifest.json: is no JSON"),
        (lambda f: (f / "bundle.json").unlink(), "bundle.json: missing"),
        (lambda f: change_manifest(f, digest="e" * 64), "run-manifest.json: of another bundle"),
        (lambda f: change_manifest(f, digest=None), "run-manifest.json: of another bundle"),
        (lambda f: change_manifest(f, status="fine"), "status is 'fine'"),
        (lambda f: change_manifest(f, outputs=[]), "models.zip: not in the manifest"),
        (lambda f: change_manifest(f, outputs=None), "its list of outputs is unusable"),
        (lambda f: change_manifest(f, outputs=[{"path": 3}]), "its list of outputs is unusable"),
        (lambda f: write(f / "bundle.json", {"digest": DIGEST}), "bundle.json: names no outputs"),
    ],
)
def test_whatever_is_not_as_the_run_left_it_is_told(
    pulled: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(pulled)
    verdict = verify(pulled)
    assert not verdict.verified
    assert any(problem in found for found in verdict.problems), verdict.problems


def test_a_failed_run_is_no_fault_of_the_folder(pulled: Path) -> None:
    change_manifest(pulled, status="failed", error="RuntimeError: no", outputs=[])
    verdict = verify(pulled)
    assert (verdict.problems, verdict.run_error) == ((), "RuntimeError: no")
    assert not verdict.verified


def test_an_empty_folder(tmp_path: Path) -> None:
    assert len(verify(tmp_path).problems) == 2
