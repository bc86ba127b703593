"""Reads the files inside an archive, to search them: Kaggle unpacks archives, and shows them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)
"""What a damaged, encrypted or unusual archive raises."""

_COMPRESSED: dict[bytes, Callable[[Path], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""How a compressed file begins → what reads it."""


def archived_files(file: Path) -> Iterator[tuple[str, BinaryIO]]:
    """The name and content of each file in a zip or tar, or of the one in a compressed file.

    Nothing for other files, and nothing more from where an archive cannot be read.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
        if head.startswith(b"PK"):
            yield from _in_zip(file)
        elif tarfile.is_tarfile(file):
            yield from _in_tar(file)
        else:
            for mark, open_it in _COMPRESSED.items():
                if head.startswith(mark):
                    with cast("BinaryIO", open_it(file)) as content:
                        yield file.stem, content
    except UNREADABLE:
        return


def _in_zip(file: Path) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir() or member.flag_bits & 1:  # encrypted
                continue
            with archive.open(member) as content:
                yield member.filename, cast("BinaryIO", content)


def _in_tar(file: Path) -> Iterator[tuple[str, BinaryIO]]:
    with tarfile.open(file) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                with content:
                    yield member.name, cast("BinaryIO", content)
