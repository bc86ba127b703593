"""The private dataset that holds the packages of a notebook with `layout = "dataset"`.

It has one file, an uncompressed tar without the ending of one: Kaggle unpacks archives, and a
dataset keeps neither empty files nor the executable bit for sure. The same files give the same
bytes, so that an unchanged package is not uploaded again.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from kernelkit.bundle.bundle import Bundle
from kernelkit.config import derived_name
from kernelkit.errors import LocalError
from kernelkit.notebook.runtime import CODE_FILE

CODE_FOLDER = "code-dataset"
"""Next to the notebook, in a folder of `render`: what must be published first."""

CODE_METADATA = "dataset-metadata.json"
"""What the official client reads in such a folder."""

CODE_LICENSE = "unknown"
_TIME = 946_684_800  # 2000-01-01: the same for the same files


def code_dataset(slug: str) -> str:
    """The name of the dataset for the kernel `slug`."""
    return derived_name(slug, "code")


def write_code(bundle: Bundle, folder: Path) -> None:
    """Write the only file of the dataset into `folder`.

    Raises:
        LocalError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / CODE_FILE, "w", format=tarfile.GNU_FORMAT) as tar:
            for file in bundle.files:
                member = tarfile.TarInfo(file.path)
                member.size, member.mtime = len(file.content), _TIME
                member.mode = 0o755 if file.executable else 0o644
                tar.addfile(member, io.BytesIO(file.content))
    except OSError as error:
        raise LocalError(
            f"{folder} cannot be written: {error.strerror}", "Make room, then try again."
        ) from error
