"""Turn verified zips into folders: an extra, which no verdict depends on."""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kernelkit.errors import LocalError, VerificationError
from kernelkit.runs.download import SPARE_BYTES, PulledRun
from kernelkit.runs.verify import COPY_BYTES, unpacked_name
from kernelkit.storage import PathAllocator, UnsafePathError, encodable

MEMBERS = 200_000  # of a zip: the largest competitions have 22,000 images, a zip bomb has millions
RATIO, RATIO_FROM_BYTES = 200, 1 << 30  # a run-length csv packs to 1:50; below 1 GB it is harmless


def unpack_zips(pulled: PulledRun, *, on_event: Callable[[str], None]) -> list[Path]:
    """Unpack each verified zip into a folder next to it, and return these folders.

    A zip that cannot be unpacked here, such as an encrypted one, is reported and stays packed.

    Raises:
        LocalError: the disk is full, or cannot be written.
    """
    zips = [entry.path for entry in pulled.verdict.outputs if entry.path.endswith(".zip")]
    folders = []
    for name in zips:
        archive, folder = pulled.folder / name, pulled.folder / unpacked_name(name)
        if not archive.is_file():
            continue  # it was not selected
        if folder.exists():
            on_event(f"{folder} exists already")
        else:
            try:
                unpack_zip(archive, folder)
            except VerificationError as error:
                on_event(f"note: {error}")
                continue
            on_event(f"unpacked {folder}")
        folders.append(folder)
    return folders


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a zip into a new folder, which appears only when it is complete.

    Refused are names that lead elsewhere, links, encrypted members, members that share a path, and
    content that would fill the disk.

    Raises:
        VerificationError: the zip is damaged or hostile.
        LocalError: the disk is full, or cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of a process that was killed
        partial.mkdir()
        try:
            with zipfile.ZipFile(archive) as opened:
                targets = dict(_targets(opened, partial))
                _require_plausible(opened, archive)
                for member, target in targets.items():
                    _extract(opened, member, target)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except LocalError:
        raise
    except VerificationError as error:
        raise error.with_message(
            f"{archive} is not unpacked: {error}",
            "Check how the run made this zip. Nothing of it was kept.",
        ) from error
    except Exception as error:  # hostile bytes raise any exception of their decoder
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise LocalError(
                f"{folder} cannot be written: {error.strerror}", "Make room, then unpack again."
            ) from error
        raise VerificationError(
            f"{archive} is not unpacked: {type(error).__name__}: {error}",
            "Try another program: this Python cannot read it.",
        ) from error


def _targets(archive: zipfile.ZipFile, folder: Path) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """The path of each file; nothing is written before every member has one."""
    paths = PathAllocator(folder)
    for member in archive.infolist():
        name = encodable(member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise VerificationError(f"{name!r} in it is a link")
        if member.flag_bits & 1:
            raise VerificationError(f"{name!r} in it is encrypted")
        if not member.is_dir():
            try:
                yield member, paths.take(member.filename)
            except UnsafePathError as error:
                raise VerificationError(f"{name!r} in it cannot be a path: {error}") from error


def _require_plausible(opened: zipfile.ZipFile, archive: Path) -> None:
    """Compare what the members claim with their number, the zip's own size and the disk."""
    members, packed = opened.infolist(), archive.stat().st_size
    size = sum(member.file_size for member in members)
    free = shutil.disk_usage(archive.parent).free
    if len(members) > MEMBERS:
        raise VerificationError(f"it contains {len(members):,} files")
    if sum(member.compress_size for member in members) > packed:
        raise VerificationError("its members overlap")
    if size > RATIO_FROM_BYTES and size > RATIO * packed:
        raise VerificationError(f"its {packed:,} B claim to contain {size:,} B")
    if size + SPARE_BYTES > free:
        raise LocalError(
            f"{archive} contains {size:,} B, and {free:,} B are free on its disk",
            "Make room, then unpack again.",
        )


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write the content of one file, without the owner, mode or time in the zip.

    zipfile reads no more than the size that the member claims, and checks its CRC.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("xb") as stream:
        shutil.copyfileobj(packed, stream, COPY_BYTES)
