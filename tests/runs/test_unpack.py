"""Untrusted zips: valid ones are unpacked, unsafe ones leave no files."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelkit.errors import LocalError, VerificationError
from kernelkit.kaggle.types import State, Status
from kernelkit.runs import unpack
from kernelkit.runs.download import PulledRun
from kernelkit.runs.manifest import OutputEntry, Verdict
from kernelkit.runs.unpack import unpack_zip, unpack_zips

Write = Callable[[zipfile.ZipFile], object]


def made(folder: Path, write: Write) -> Path:
    path = folder / "some.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        write(archive)
    return path


def test_a_valid_zip_is_unpacked(tmp_path: Path) -> None:
    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr("images/", "")
        archive.writestr("images/a.png", b"a" * 3_000_000)
        archive.writestr("read me.txt", "hello")

    left = tmp_path / "some.unpacked.partial"  # left by a killed process
    left.mkdir()
    (left / "half").write_text("x")
    unpack_zip(made(tmp_path, write), tmp_path / "some.unpacked")
    found = {p.name: p.read_bytes() for p in (tmp_path / "some.unpacked").rglob("*") if p.is_file()}
    assert found == {"a.png": b"a" * 3_000_000, "read me.txt": b"hello"}
    assert {path.name for path in tmp_path.iterdir()} == {"some.zip", "some.unpacked"}


def link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(member, "/etc/passwd")


def encrypted(archive: zipfile.ZipFile) -> None:
    archive.writestr("secret", "x")
    archive.filelist[0].flag_bits |= 1


def twice(*names: str) -> Write:
    return lambda archive: [archive.writestr(name, "x") for name in names]


def overlapping(archive: zipfile.ZipFile) -> None:
    """A zip bomb: many members share the same compressed megabyte."""
    archive.writestr("0", bytes(1 << 20))
    for number in range(1, 100):
        member = zipfile.ZipInfo(str(number))
        first = archive.filelist[0]
        for name in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
            setattr(member, name, getattr(first, name))
        archive.filelist.append(member)


def too_good(archive: zipfile.ZipFile) -> None:
    archive.writestr("0", bytes(1 << 20))
    archive.filelist[0].file_size = 3 << 30


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (twice("fine", "../evil"), "'../evil' in it cannot be a path"),
        (twice("/etc/evil"), "cannot be a path"),
        (twice("C:evil"), "cannot be a path"),
        (twice("a", "A"), "'a' has this path"),
        (twice("a", "a/b"), "'a' is a file"),
        (twice("a/b", "a"), "is a folder"),
        (twice("nul.txt"), "device"),
        (link, "is a link"),
        (encrypted, "in it is encrypted"),
        (overlapping, "overlap"),
        (too_good, "claim to contain"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_unsafe_zip_leaves_no_files(tmp_path: Path, write: Write, reason: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = made(folder, write)
    with pytest.raises(VerificationError, match=reason):
        unpack_zip(archive, folder / "some.unpacked")
    assert [path.name for path in folder.iterdir()] == ["some.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_a_zip_that_cannot_be_unpacked_is_reported_and_stays(tmp_path: Path) -> None:
    (tmp_path / "good.zip").write_bytes(made(tmp_path, twice("a")).read_bytes())
    made(tmp_path, encrypted)
    entries = [OutputEntry(path=f"{n}.zip", size=1, sha256="0" * 64) for n in ("some", "good")]
    verdict = Verdict(problems=(), run_error=None, outputs=tuple(entries), undeclared=())
    messages: list[str] = []
    pulled = PulledRun(tmp_path, Status(State.COMPLETE), verdict)
    assert unpack_zips(pulled, on_event=messages.append) == [tmp_path / "good.unpacked"]
    assert "is not unpacked: 'secret' in it is encrypted" in messages[0]
    assert not (tmp_path / "some.unpacked").exists()


def test_a_zip_with_too_many_files_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MEMBERS", 2)
    with pytest.raises(VerificationError, match="3 files"):
        unpack_zip(made(tmp_path, twice("a", "b", "c")), tmp_path / "out")


def test_a_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "SPARE_BYTES", 1 << 60)
    with pytest.raises(LocalError, match="are free on its disk"):
        unpack_zip(made(tmp_path, twice("a")), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["some.zip"]


@settings(max_examples=150)
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 6)), max_size=4
    )
)
def test_any_bytes_give_a_folder_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, bytes, int]]
) -> None:
    folder = tmp_path_factory.mktemp("zips")
    archive = made(folder, lambda a: [a.writestr(f"d/{n}", "text " * n) for n in range(3)])
    content = archive.read_bytes()
    for at, put, length in cuts:
        content = content[:at] + put + content[at + length :]
    archive.write_bytes(content)
    try:
        unpack_zip(archive, folder / "out")
    except VerificationError:
        assert [path.name for path in folder.iterdir()] == ["some.zip"]
    else:
        assert (folder / "out").is_dir()
        assert not list(folder.glob("*.partial"))
