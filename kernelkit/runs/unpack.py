"""A zip that somebody else made becomes a folder: whole, inside itself, and no larger than it says.

Refused with the reason: names that lead elsewhere, links, members that are encrypted or share a
place, and what would fill the disk. The folder appears once everything in it is there.
"""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kernelkit.errors import LocalError, VerificationError
from kernelkit.storage import PathAllocator, UnsafePathError, printable

MEMBERS = 200_000  # the competition has 22,000 images; a bomb of empty files has millions
RATIO, RATIO_FROM_BYTES = 200, 1 << 30  # a run-length csv packs to 1:50; below a GB none does harm
SPARE_BYTES = 16 << 20  # left free on the disk
COPY_BYTES = 1 << 20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip into a folder that is not there yet.

    Raises:
        VerificationError: the zip is damaged, or does what an honest one does not.
        MachineError: the disk is full, or cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of an unpacking that was killed
        partial.mkdir()
        try:
            with zipfile.ZipFile(archive) as opened:
                targets = dict(_targets(opened, partial))
                _require_modest(opened, archive)
                for member, target in targets.items():
                    _extract(opened, member, target)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except LocalError:
        raise
    except VerificationError as error:
        raise VerificationError(
            f"{archive} is not unpacked: {error}", "Nothing of it was kept. Who made this zip?"
        ) from error
    except Exception as error:  # hostile bytes raise whatever their decoder raises
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise LocalError(
                f"{folder} cannot be written: {error.strerror}", "Make room, then unpack again."
            ) from error
        raise VerificationError(
            f"{archive} cannot be unpacked: {type(error).__name__}: {error}", "Pull it again."
        ) from error


def _targets(archive: zipfile.ZipFile, folder: Path) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """Where each file goes; nothing is written before all of them have a place."""
    places = PathAllocator(folder)
    for member in archive.infolist():
        name = printable(member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise VerificationError(f"{name!r} in it is a link")
        if member.flag_bits & 1:
            raise VerificationError(f"{name!r} in it is encrypted")
        if not member.is_dir():
            try:
                yield member, places.take(member.filename)
            except UnsafePathError as error:
                raise VerificationError(f"{name!r} in it has no place: {error}") from error


def _require_modest(opened: zipfile.ZipFile, archive: Path) -> None:
    """Hold what the members claim against their number, the zip's own size and the disk."""
    members, packed = opened.infolist(), archive.stat().st_size
    size = sum(member.file_size for member in members)
    free = shutil.disk_usage(archive.parent).free
    if len(members) > MEMBERS:
        raise VerificationError(f"it holds {len(members):,} files")
    if sum(member.compress_size for member in members) > packed:
        raise VerificationError("its members overlap")
    if size > RATIO_FROM_BYTES and size > RATIO * packed:
        raise VerificationError(f"{packed:,} B of it claim to hold {size:,} B")
    if size + SPARE_BYTES > free:
        raise LocalError(
            f"{archive} holds {size:,} B, and {free:,} B are free on its disk",
            "Make room, then unpack again.",
        )


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """One file, by its content alone: no owner, no mode, no time of the zip's choosing.

    zipfile reads no more than the size that the member claims, and checks its CRC.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("xb") as stream:
        shutil.copyfileobj(packed, stream, COPY_BYTES)
