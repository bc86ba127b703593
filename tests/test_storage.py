"""Atomic writes, locks, JSON models and errors that keep their attributes."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from kernelkit.errors import LocalError, RateLimitedError
from kernelkit.runs.manifest import RunFacts
from kernelkit.storage import (
    DocumentError,
    MissingDocumentError,
    counted,
    human_size,
    locked,
    make_ignored_folder,
    read_model,
    remove_partials,
    sha256_of,
    write_atomically,
    write_json,
)


class Sample(BaseModel):
    name: str
    sizes: tuple[int, ...] = ()


def test_a_json_file_is_read_into_a_model(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sample.json"
    write_json(path, {"name": "é", "sizes": [1, 2]})
    assert read_model(path, Sample) == Sample(name="é", sizes=(1, 2))
    assert [path.name for path in path.parent.iterdir()] == ["sample.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ("{}", '"name": Field required'),
        ('{"name": "a", "sizes": ["x"]}', '"sizes.0": Input should be'),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "sample.json"
    path.write_text(text)
    with pytest.raises(DocumentError) as caught:
        read_model(path, Sample)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in caught.value.reason
    with pytest.raises(MissingDocumentError, match="missing"):
        read_model(tmp_path / "other.json", Sample)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "missing" / "file.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
    assert sha256_of(path) == hashlib.sha256(b"old").hexdigest()


def test_a_lock_excludes_other_processes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kernelkit.storage import locked\n"
        "def wait(): print('waiting', flush=True); sys.exit(3)\n"
        "with locked(Path(sys.argv[1]), sys.argv[2], on_wait=wait): print('locked')\n"
    )

    def other(name: str) -> tuple[int, str]:
        command = [sys.executable, "-c", program, str(tmp_path / "folder"), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout.strip()

    with locked(tmp_path / "folder"):
        assert other("") == (3, "waiting")
        assert other(".lock") == (0, "locked")
    assert other("") == (0, "locked")
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="cannot be written"), locked(tmp_path / "file" / "sub"):
        pass


def test_only_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".0123456789abcdef.partial", ".notes.partial", "0123456789abcdef.partial"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".notes.partial", "0123456789abcdef.partial"}


def test_a_disk_without_locks_is_an_error_unless_the_caller_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("kernelkit.storage.fcntl.flock", refuse)
    with pytest.raises(LocalError, match="cannot be locked: No locks"), locked(tmp_path):
        pass
    warned: list[str] = []
    with locked(tmp_path, on_unsupported=lambda: warned.append("no locks")):
        assert warned == ["no locks"]


def test_sizes_and_counts_are_formatted_for_readers() -> None:
    assert [human_size(n) for n in (0, 999, 1000, 1_250_000, 3 * 10**9)] == [
        *("0 B", "999 B", "1.0 kB", "1.2 MB", "3.0 GB"),
    ]
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_a_reworded_error_keeps_its_class_and_attributes() -> None:
    error = RateLimitedError(
        "too many calls", "Wait.", RunFacts.model_validate({"differences": ["gpu"]})
    )
    error.retry_after = 30.0
    other = error.with_message(f"the pull: {error}")
    assert (type(other), str(other)) == (RateLimitedError, "the pull: too many calls")
    assert (other.retry_after, other.next_step, other.details) == (30.0, "Wait.", error.details)
    details = RunFacts.model_validate({"differences": []})
    assert other.with_message("x", "Stop.", details).details is details
    document = DocumentError(Path("a.json"), "missing").with_message("new")
    assert (str(document), document.reason) == ("new", "missing")
    assert other.details
    assert json.dumps(other.details.document) == '{"differences": ["gpu"]}'


@pytest.mark.parametrize("parent", ["", "new", "new/deeper"])
def test_a_new_folder_for_generated_files_is_ignored_by_git(tmp_path: Path, parent: str) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    folder = tmp_path / parent / "build"
    make_ignored_folder(folder)
    make_ignored_folder(folder)
    (folder / "deep").mkdir()
    (folder / "deep" / "output.csv").write_text("x")
    command = ["git", "-C", tmp_path, "status", "--porcelain", "-uall"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""
    assert (folder / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("name", ["notes.txt", ".gitignore", ".git/HEAD", "empty/.keep"])
def test_a_folder_of_the_user_stays_visible_to_git(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    make_ignored_folder(tmp_path / "mine")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine" / name).read_text() == "mine"


def test_a_folder_that_cannot_be_created_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LocalError, match="cannot be written"):
            make_ignored_folder(folder)
