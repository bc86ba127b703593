"""Folders that become datasets: odd links, and credentials inside archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.bundle.secrets import Credential
from kernelkit.errors import ConfigError, LocalError
from kernelkit.project.folders import find_secrets, read_folder

OWN = Credential("KAGGLE_KEY", "0f1e2d3c4b5a6978" * 2)


def zipped(file: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("harmless.bin", b"\0" * 1000)
        archive.writestr(name, content)


def tarred(file: Path, name: str, content: bytes) -> None:
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def problems(folder: Path, *allowed: str) -> list[str]:
    return [one.subject for one in find_secrets(read_folder(folder), "data", [OWN], allowed)]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("before", [b"key = ", b"\0\1" * 50])
def test_credentials_inside_an_archive_are_found(
    tmp_path: Path, pack: Callable[[Path, str, bytes], None], before: bytes
) -> None:
    pack(tmp_path / "packed", "a/notes.txt", before + OWN.value.encode() + b"\n")
    found = "data/packed/a/notes.txt" + (":1" if before == b"key = " else "")
    assert set(problems(tmp_path)) == {found}
    assert not problems(tmp_path, found)


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_credentials_in_a_compressed_file_are_found(tmp_path: Path, module: object) -> None:
    packed = module.compress(b"mail me\n" + 9 * OWN.value.encode())  # type: ignore[attr-defined]
    (tmp_path / "notes.txt.z").write_bytes(packed)
    assert "data/notes.txt.z/notes.txt:2" in problems(tmp_path)


def test_a_wheel_of_others_may_hold_keys_of_its_tests(tmp_path: Path) -> None:
    key = b"\0-----BEGIN RSA PRIVATE KEY-----\n"
    zipped(tmp_path / "a-1-py3-none-any.whl", "tests/key.der", key)
    assert not problems(tmp_path)
    zipped(tmp_path / "a-1-py3-none-any.whl", "a.py", b"KEY = '" + OWN.value.encode() + b"'\n")
    assert problems(tmp_path) == ["data/a-1-py3-none-any.whl/a.py"]


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b""])
def test_a_damaged_archive_is_a_file_like_others(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "data.zip").write_bytes(start + b"\0" * 600)
    assert not problems(tmp_path)


@pytest.mark.parametrize("target", ["missing", "link"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="link is a link to nothing"):
        read_folder(tmp_path)


def test_a_path_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("d" * 250).mkdir()
        monkeypatch.chdir("d" * 250)
    with pytest.raises(LocalError, match="cannot be read: File name too long"):
        read_folder(tmp_path)
