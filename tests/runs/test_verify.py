from __future__ import annotations

import csv
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelkit.notebook.runtime import outputs as runtime_outputs
from kernelkit.runs.verify import promised_outputs, verify

DIGEST = "d" * 64


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    """A run folder after a pull."""
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
    """Update the manifest for a changed file, so that only its content is wrong."""
    outputs = json.loads((folder / "run-manifest.json").read_text())["outputs"]
    change_manifest(
        folder,
        outputs=[{**o, **(describe(folder / name) if o["path"] == name else {})} for o in outputs],
    )


def test_an_unchanged_run_folder_is_verified(pulled: Path) -> None:
    (pulled / "extra.txt").touch()
    verdict = verify(pulled)
    assert verdict.verified
    assert verdict.undeclared == ("extra.txt",)
    assert [output.path for output in verdict.outputs] == ["models.zip", "out.csv"]


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
        (flip_a_byte, "models.zip: the content differs from what the run wrote (sha256)"),
        (damage_inside, "models.zip: weights in it is damaged"),
        (no_zip_at_all, "models.zip: not a valid zip"),
        (cut, "out.csv: 12 B, the run wrote 15 B"),
        (other_ids, "out.csv: rows or ids differ"),
        (lambda f: (f / "out.csv").unlink(), "out.csv: missing"),
        (lambda f: (f / "run-manifest.json").unlink(), "run-manifest.json: missing"),
        (lambda f: (f / "run-manifest.json").write_text("{"), "run-manifest.json: cannot be read"),
        (lambda f: (f / "run-manifest.json").write_text("[]"), "run-manifest.json: is not a JSON"),
        (lambda f: (f / "bundle.json").unlink(), "bundle.json: missing"),
        (lambda f: (f / "run.json").write_text("{"), "run.json: cannot be read"),
        (lambda f: (f / "run.json").write_text("{}"), 'run.json: "state": Field required'),
        (lambda f: change_manifest(f, digest="e" * 64), "run-manifest.json: of another bundle"),
        (lambda f: change_manifest(f, digest=None), 'run-manifest.json: "digest": Input should be'),
        (lambda f: change_manifest(f, status="fine"), '"status": Input should be'),
        (lambda f: change_manifest(f, outputs=[]), "models.zip: not in the manifest"),
        (lambda f: change_manifest(f, outputs=None), '"outputs": Input should be'),
        (lambda f: change_manifest(f, outputs=[{"path": 3}]), '"outputs.0.path": Input should be'),
        (
            lambda f: write(f / "bundle.json", {"digest": DIGEST}),
            'bundle.json: "outputs": Field required',
        ),
    ],
)
def test_every_change_after_the_run_is_reported(
    pulled: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(pulled)
    verdict = verify(pulled)
    assert not verdict.verified
    assert any(problem in found for found in verdict.problems), verdict.problems


def test_a_failed_run_is_not_a_verification_failure(pulled: Path) -> None:
    change_manifest(pulled, status="failed", error="RuntimeError: no", outputs=[])
    verdict = verify(pulled)
    assert (verdict.problems, verdict.run_error) == ((), "RuntimeError: no")
    assert not verdict.verified


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../out.csv"},
        {"path": "/etc/passwd"},
        {"path": "C:\\out.csv"},
        {"path": ""},
        {"path": "\ud800"},
        {"path": "a\0b"},
        {"path": ["out.csv"]},
        {"size": True},
        {"size": -1},
        {"size": 15.0},
        {"size": float("nan")},
        {"size": "15"},
        {"sha256": "D" * 64},
        {"sha256": "short"},
        {"sha256": None},
        {"rows": "2"},
        {"rows": float("inf")},
        {"ids_sha256": {}},
    ],
)
def test_a_malformed_manifest_entry_is_rejected(pulled: Path, entry: dict[str, Any]) -> None:
    outputs = json.loads((pulled / "run-manifest.json").read_text())["outputs"]
    change_manifest(pulled, outputs=[outputs[0], {**outputs[1], **entry}])
    verdict = verify(pulled)
    assert [output.path for output in verdict.outputs] == ["models.zip"]  # the valid one
    assert any('"outputs.1.' in problem for problem in verdict.problems)


@pytest.mark.parametrize("path", ["aux.csv", "x/nul", "o.csv ", "a\\b"])
def test_a_name_without_a_path_here_does_not_affect_the_other_outputs(
    pulled: Path, path: str
) -> None:
    outputs = json.loads((pulled / "run-manifest.json").read_text())["outputs"]
    change_manifest(pulled, outputs=[*outputs, {**outputs[0], "path": path}])
    verdict = verify(pulled)
    assert [output.path for output in verdict.outputs] == [output["path"] for output in outputs]
    (problem,) = verdict.problems
    assert repr(path) in problem
    (pulled / "models.zip").write_bytes(b"other")
    assert any(problem.startswith("models.zip: ") for problem in verify(pulled).problems)


def declare(folder: Path, *outputs: str) -> None:
    path = folder / "bundle.json"
    write(path, {**json.loads(path.read_text()), "outputs": outputs})


@pytest.mark.parametrize(
    ("declared", "missing"),
    [
        (["*.csv", "models.zip"], []),
        (["*", "**"], []),
        (["o?t.csv", "[m]odels.zip", "**/*.zip"], []),
        (["logs/", "models.zip"], ["logs/"]),
        (["*.png", "out.csv"], ["*.png"]),
        (["out.csv/"], ["out.csv/"]),
        (["out", "models"], ["out", "models"]),
    ],
)
def test_a_folder_or_a_pattern_needs_at_least_one_file(
    pulled: Path, declared: list[str], missing: list[str]
) -> None:
    declare(pulled, *declared)
    assert verify(pulled).problems == tuple(f"{name}: not in the manifest" for name in missing)


def test_the_files_of_a_folder_are_verified(pulled: Path) -> None:
    (pulled / "logs" / "deep").mkdir(parents=True)
    (pulled / "logs" / "deep" / "a.txt").write_text("text")
    outputs = json.loads((pulled / "run-manifest.json").read_text())["outputs"]
    entry = {**describe(pulled / "logs" / "deep" / "a.txt"), "path": "logs/deep/a.txt"}
    change_manifest(pulled, outputs=[*outputs, entry])
    declare(pulled, "out.csv", "models.zip", "logs")
    assert verify(pulled).verified
    (pulled / "logs" / "deep" / "a.txt").write_text("Text")
    assert verify(pulled).problems == (
        "logs/deep/a.txt: the content differs from what the run wrote (sha256)",
    )


def test_a_duplicate_output_is_reported(pulled: Path) -> None:
    outputs = json.loads((pulled / "run-manifest.json").read_text())["outputs"]
    change_manifest(pulled, outputs=[*outputs, outputs[0]])
    assert any('"outputs": names a path twice' in problem for problem in verify(pulled).problems)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"digest": ' * 50_000,
        "9" * 5000,
        '{"size": NaN}',
        "\ufeff{}",
        "{}" * 2,
        "\0",
    ],
)
def test_an_invalid_manifest_is_reported(pulled: Path, text: str) -> None:
    (pulled / "run-manifest.json").write_text(text)
    assert any("run-manifest.json" in problem for problem in verify(pulled).problems)
    (pulled / "run-manifest.json").write_bytes(b"\xff\xfe")
    assert any("cannot be read" in problem for problem in verify(pulled).problems)


def test_a_manifest_that_is_too_large_is_reported(pulled: Path) -> None:
    with (pulled / "run-manifest.json").open("r+") as stream:
        stream.truncate(1 << 40)  # a sparse file; it is not read
    assert any("larger than" in problem for problem in verify(pulled).problems)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "path": ANYTHING | st.sampled_from(["out.csv", "models.zip", "../x", "deep/" * 99]),
        "size": ANYTHING | st.just(15),
        "sha256": ANYTHING | st.just("0" * 64),
        "rows": ANYTHING,
        "ids_sha256": ANYTHING,
    },
)
MANIFEST = st.fixed_dictionaries(
    {},
    optional={
        "digest": ANYTHING | st.just(DIGEST),
        "status": ANYTHING | st.sampled_from(["complete", "failed"]),
        "error": ANYTHING,
        "outputs": ANYTHING | st.lists(ENTRY | ANYTHING, max_size=3),
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=MANIFEST | ANYTHING)
@pytest.mark.slow
def test_any_manifest_gives_a_verdict(pulled: Path, manifest: object) -> None:
    """And the folder is never verified, because the manifest is not the run's own."""
    write(pulled / "run-manifest.json", manifest)
    verdict = verify(pulled)
    assert not verdict.verified
    promised_outputs(pulled)
    reported = json.dumps(verdict.document, ensure_ascii=False)
    reported.encode()  # as in run.json


def test_a_zip_with_an_excessive_size_is_not_tested(pulled: Path) -> None:
    with zipfile.ZipFile(pulled / "models.zip", "w") as archive:
        archive.writestr("0", "x")
        archive.filelist[0].file_size = 1 << 50
        archive.filelist[0].extra = b""
    redescribe(pulled, "models.zip")
    assert any("claims to contain" in problem for problem in verify(pulled).problems)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(0, 1200), st.binary(max_size=6), st.integers(0, 6))))
def test_any_zip_gives_a_verdict(pulled: Path, cuts: list[tuple[int, bytes, int]]) -> None:
    whole = (pulled / "models.zip").read_bytes()
    content = whole
    for at, put, length in cuts:
        content = content[:at] + put + content[at + length :]
    (pulled / "models.zip").write_bytes(content)
    redescribe(pulled, "models.zip")
    verify(pulled)
    (pulled / "models.zip").write_bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        "id,x\na," + "1 " * 100_000 + "\n",
        "a" * 200_000 + ",x\n" + "b" * 200_000 + ",1\n",
        '\ufeffid,x\r\n"a\nb",1\r\n',
        "id,x\na\0,1\na\0,1\n",
        'id,x\n"a,1\n' + "more\n" * 50_000,
    ],
)
def test_both_sides_count_the_rows_of_unusual_tables(pulled: Path, content: str) -> None:
    limit = csv.field_size_limit()
    (pulled / "out.csv").write_bytes(content.encode())
    outputs = [runtime_outputs.describe(pulled, name) for name in ("models.zip", "out.csv")]
    assert csv.field_size_limit() == limit  # the run's process keeps its own
    assert outputs[1]["rows"]
    change_manifest(pulled, outputs=outputs)
    assert verify(pulled).verified
    change_manifest(pulled, outputs=[outputs[0], {**outputs[1], "rows": outputs[1]["rows"] + 1}])
    assert verify(pulled).problems == ("out.csv: rows or ids differ from the manifest",)


def entry_changed(offset: int, value: int) -> Callable[[bytearray], None]:
    """A change of two bytes in the zip's first local header and in its directory."""

    def change(content: bytearray) -> None:
        directory = content.find(b"PK\1\2")
        for at in (offset, directory + offset + 2):
            content[at : at + 2] = value.to_bytes(2, "little")

    return change


def several_parts(content: bytearray) -> None:
    end = content.rfind(b"PK\5\6")
    content[end + 4 : end + 8] = b"\2\0\0\0"


def several_zip64_parts(content: bytearray) -> None:
    end = content.rfind(b"PK\5\6")
    content[end:end] = b"PK\6\7" + bytes(12) + (3).to_bytes(4, "little")


def other_name_inside(content: bytearray) -> None:
    content[30:37] = b"WEIGHTS"


def name_that_is_not_utf_8(content: bytearray) -> None:
    entry_changed(6, 0x0800)(content)
    content[content.rfind(b"weights")] = 0xFF


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (entry_changed(6, 1), "encrypted"),
        (entry_changed(6, 0x41), "encrypted"),
        (entry_changed(6, 0x20), "patched"),
        (entry_changed(8, 9), "compression"),  # Deflate64
        (entry_changed(8, 93), "compression"),  # Zstandard
        (entry_changed(8, 98), "compression"),  # PPMd
        (several_parts, "several files"),
        (several_zip64_parts, "several files"),
        (other_name_inside, "differ"),
        (name_that_is_not_utf_8, "UnicodeDecodeError"),
    ],
)
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 reads Zstandard")
def test_a_zip_that_this_python_cannot_read_is_verified_by_its_sha256(
    pulled: Path, change: Callable[[bytearray], None], note: str
) -> None:
    content = bytearray((pulled / "models.zip").read_bytes())
    change(content)
    (pulled / "models.zip").write_bytes(content)
    redescribe(pulled, "models.zip")
    verdict = verify(pulled)
    assert verdict.verified
    assert [note in found and "tested" in found for found in verdict.notes] == [True]
    flip_a_byte(pulled)
    assert not verify(pulled).verified


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_tested(pulled: Path, method: int) -> None:
    with zipfile.ZipFile(pulled / "models.zip", "w", method) as archive:
        archive.writestr("weights", bytes(range(256)) * 40)
    redescribe(pulled, "models.zip")
    assert verify(pulled).verified
    assert verify(pulled).notes == ()
    content = bytearray((pulled / "models.zip").read_bytes())
    content[120] ^= 0xFF
    (pulled / "models.zip").write_bytes(content)
    redescribe(pulled, "models.zip")
    assert verify(pulled).problems == ("models.zip: weights in it is damaged",)


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_sides_read_any_table_alike(pulled: Path, content: bytes) -> None:
    """The run and `verify` describe any csv in the same way."""
    (pulled / "out.csv").write_bytes(content)
    outputs = [runtime_outputs.describe(pulled, name) for name in ("models.zip", "out.csv")]
    change_manifest(pulled, outputs=outputs)
    assert verify(pulled).verified


def test_files_that_were_not_downloaded_are_named_with_the_reason(pulled: Path) -> None:
    (pulled / "out.csv").unlink()
    (pulled / ".partial").mkdir()
    (pulled / ".partial" / "abc").write_text("half")
    verdict = verify(pulled, left_behind={"out.csv": "it leads out"})
    assert verdict.problems == ("out.csv: it leads out",)
    assert verdict.undeclared == (".partial (incomplete downloads)",)
    assert verify(pulled, lambda name: name == "models.zip").verified


def test_unpacked_files_are_not_reported_as_undeclared(pulled: Path) -> None:
    (pulled / "models.unpacked").mkdir()
    (pulled / "models.unpacked" / "weights").write_text("w")
    (pulled / "other.unpacked").mkdir()
    (pulled / "other.unpacked" / "file").write_text("w")
    assert verify(pulled).undeclared == ("other.unpacked/file",)


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    assert len(verify(tmp_path).problems) == 2


@pytest.mark.parametrize("state", ["error", "cancel_acknowledged"])
def test_a_run_that_kaggle_reports_as_failed_is_not_a_success(pulled: Path, state: str) -> None:
    write(pulled / "run.json", {"state": state, "failure": "out of memory"})
    assert verify(pulled).run_error == f"Kaggle says {state}: out of memory"
    write(pulled / "run.json", {"state": "complete", "failure": ""})
    assert verify(pulled).verified
