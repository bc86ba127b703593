"""Installs the wheels of a private dataset, in a run that has no internet.

Only files whose SHA-256 the manifest names are shown to pip, under the names that it gives them:
whatever else is in the dataset cannot be installed.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .documents import WheelsDocument
from .faults import RuntimeFault
from .files import sha256_of
from .inputs import RunFolders
from .installation import pip_install

LOCAL_CONTAINER = "kaggle-local-"
"""How the container's name begins on the local Kaggle, whose Python need not be Kaggle's."""

GLIBC = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
"""Older names of platforms, with the version of the C library that they need."""

PUBLISH = "Publish them again: `kernelkit wheels`, and push again."


def install_wheels(
    requirements: Sequence[str], wheels: WheelsDocument, folders: RunFolders
) -> None:
    """Check the wheels, then install the requirements from them.

    On the local Kaggle, wheels that do not fit its Python are left out, and named.

    Raises:
        RuntimeFault: a wheel is missing, differs or does not fit, or pip fails.
    """
    found = _checked(wheels, folders)
    unfit = [file for file in found if not fits(file)]
    here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    is_local = os.environ.get("KAGGLE_CONTAINER_NAME", "").startswith(LOCAL_CONTAINER)
    if unfit and not is_local:
        raise RuntimeFault(
            f"{', '.join(unfit)} does not fit {here}: the wheels were chosen for Python "
            f"{wheels['python']}. Choose them again: `kernelkit wheels --upgrade`, and push again."
        )
    count = f"{len(found)} wheel" + ("" if len(found) == 1 else "s")
    print(f"{count} of the dataset {wheels['dataset']}, with the sha256 of the manifest")
    plain = [text for text in requirements if "@" not in text]  # an address needs the internet
    with tempfile.TemporaryDirectory(prefix="kernelkit-wheels-") as links:
        for file, path in found.items():
            Path(links, file).symlink_to(path)
        options = ["--no-index", "--find-links", links]
        if not is_local:
            pip_install([*plain, *wheels["install"]], options)
            return
        # What the image has, this machine may lack: then the import fails, and says so.
        left_out = {_name(file) for file in unfit}
        wanted = [text for text in wheels["install"] if _name(text) not in left_out]
        if wanted:
            pip_install(list(dict.fromkeys(wanted)), [*options, "--no-deps"])
    for file in unfit:
        print(f"rehearsal: {file} does not fit {here}: {_instead(_name(file))}", flush=True)


def _checked(wheels: WheelsDocument, folders: RunFolders) -> Mapping[str, Path]:
    """Name of each wheel → the file with its hash, under whatever name Kaggle keeps it.

    Raises:
        RuntimeFault: the dataset is not here, or lacks a wheel.
    """
    try:
        folder = Path(folders.resolve(f"kaggle://input/{wheels['dataset']}"))
    except RuntimeFault as error:
        raise RuntimeFault(f"The wheels of this notebook are not here. {PUBLISH} {error}") from None
    files = [path for path in folder.rglob("*") if path.is_file()]
    by_hash = {sha256_of(path): path for path in files}
    names = {path.name for path in files}
    missing = [
        f"{wheel['file']} {'has different content' if wheel['file'] in names else 'is missing'}"
        for wheel in wheels["files"]
        if wheel["sha256"] not in by_hash
    ]
    if missing:
        raise RuntimeFault(
            f"The dataset {wheels['dataset']} does not have the wheels of this notebook: "
            f"{', '.join(missing)}. Nothing was installed. {PUBLISH}"
        )
    return {wheel["file"]: by_hash[wheel["sha256"]] for wheel in wheels["files"]}


def _name(text: str) -> str:
    """The canonical name of a distribution, from a wheel's file name or a requirement."""
    parts = re.match(r"[A-Za-z0-9._]+" if text.endswith(".whl") else r"[A-Za-z0-9._-]+", text)
    return re.sub(r"[-_.]+", "-", parts[0]).lower().rstrip("-") if parts else text


def _instead(name: str) -> str:
    try:
        return f"the run uses {name} {importlib.metadata.version(name)} of this machine"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed, and an import of it fails here, unlike on Kaggle"


def fits(file: str) -> bool:
    """Whether this interpreter can import the modules of a wheel."""
    tags = file.removesuffix(".whl").split("-")[-3:]
    combinations = itertools.product(*(tag.split(".") for tag in tags))
    return any(
        _fits_python(python, abi) and (abi == "none" if place == "any" else _fits_platform(place))
        for python, abi, place in combinations
    )


def _fits_python(python: str, abi: str) -> bool:
    found = re.fullmatch(r"(py|cp)3(\d*)", python)
    if not found:
        return False
    exact = f"cp3{sys.version_info.minor}"
    is_older = not found[2] or int(found[2]) <= sys.version_info.minor
    if abi == "none":
        return is_older if found[1] == "py" else python == exact
    return (found[1] == "cp" and is_older) if abi == "abi3" else python == abi == exact


def _fits_platform(tag: str) -> bool:
    found = re.fullmatch(r"(linux|manylinux[0-9]+|manylinux_(\d+)_(\d+))_(x86_64|aarch64)", tag)
    if not found or sys.platform != "linux" or found[4] != platform.machine():
        return False
    library, version = platform.libc_ver()
    parts = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    needed = (int(found[2]), int(found[3])) if found[2] else GLIBC.get(found[1], (0, 0))
    return library == "glibc" and parts >= needed
