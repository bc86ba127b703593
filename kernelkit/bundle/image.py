"""What is installed in Kaggle's image, and whether each import is available there.

image.json is a snapshot of the image. The kernel in `examples/image` makes a new one (`kernelkit
doctor --probe` runs it); a project may name its own with `image = "…"` in [tool.kernelkit].
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field

from kernelkit.errors import ConfigError
from kernelkit.storage import read_file


class Presence(StrEnum):
    """Whether a run will find a module."""

    PRESENT = "present"
    OTHER_VERSION = "other version"
    """In the image, in another version than on this machine."""

    BY_PIP = "by pip"
    """One of the project's own `pip` requirements may install it."""

    ABSENT = "absent"
    UNKNOWN = "unknown"
    """The snapshot is incomplete and does not list it."""


@dataclass(frozen=True)
class Availability:
    """Whether one imported module is available in the image."""

    module: str
    places: tuple[str, ...]
    """`path:line` of every import."""

    presence: Presence
    distribution: str
    image_version: str | None
    local_version: str | None
    is_required: bool
    """Whether a `pip` requirement names its distribution."""

    @property
    def is_known(self) -> bool:
        """Whether it surely comes from elsewhere: the image, a requirement or this machine."""
        in_image = self.presence in (Presence.PRESENT, Presence.OTHER_VERSION)
        return in_image or self.is_required or self.local_version is not None


@dataclass(frozen=True)
class Snapshot:
    """What is installed in an image.

    Names are canonical (PEP 503); a version is None where only the name is known.
    """

    complete: bool
    python: str
    distributions: Mapping[str, str | None]
    absent: frozenset[str]
    modules: Mapping[str, str]
    """Top-level module → the distribution that installs it, where their names differ."""

    glibc: str = "2.35"
    """Version of the C library, which decides which wheels fit. Ubuntu 22.04, the system of Colab's
    image, has 2.35."""

    @property
    def release(self) -> tuple[int, int]:
        """The version of Python, whose syntax the image knows: (3, 12)."""
        parts = Version(self.python).release
        return parts[0], parts[1] if len(parts) > 1 else 0

    @property
    def short_python(self) -> str:
        """The version of Python without its last part: "3.12"."""
        return "{}.{}".format(*self.release)


@cache
def snapshot() -> Snapshot:
    """The snapshot that kernelkit ships."""
    text = (resources.files("kernelkit.bundle") / "image.json").read_text(encoding="utf-8")
    return read_snapshot(json.loads(text))


def load_snapshot(path: Path | None) -> Snapshot:
    """A project's own snapshot, or the one that kernelkit ships.

    Raises:
        ConfigError: the file is not what `examples/image` writes.
    """
    if path is None:
        return snapshot()
    try:
        return read_snapshot(json.loads(read_file(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not a snapshot of an image: {error!r}",
            "Make one with `kernelkit doctor --probe`.",
        ) from error


_Name = Annotated[str, Field(min_length=1)]  # importlib.metadata refuses an empty name


class _SnapshotDocument(BaseModel):
    """What `examples/image` writes."""

    model_config = ConfigDict(strict=True)

    complete: bool
    python: str
    distributions: dict[_Name, str | None]
    absent: list[_Name] = []
    modules: dict[_Name, _Name]
    glibc: Annotated[str, Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")] = "2.35"


def read_snapshot(document: object) -> Snapshot:
    """Read what `examples/image` writes.

    Raises:
        ValueError: the document is something else.
    """
    found = _SnapshotDocument.model_validate(document)
    Version(found.python)  # requirements are evaluated for it
    return Snapshot(
        complete=found.complete,
        python=found.python,
        distributions={canonicalize_name(n): v for n, v in found.distributions.items()},
        absent=frozenset(map(canonicalize_name, found.absent)),
        modules=found.modules,
        glibc=found.glibc,
    )


def has_distribution(name: str, image: Snapshot) -> bool:
    """Whether an image has a distribution."""
    return canonicalize_name(name) in image.distributions


def compare(
    third_party: Mapping[str, tuple[str, ...]], pip: Sequence[str], image: Snapshot | None = None
) -> list[Availability]:
    """Whether each import is in the image, and in which version there and here.

    `third_party` maps a module to the places that import it; `pip` are requirements (PEP 508).
    """
    image = image or snapshot()
    required = {canonicalize_name(r.name) for r in map(Requirement, pip) if applies(r, image)}
    named = {name: canonicalize_name(_distribution(name, image)) for name in third_party}
    # A distribution of the image installs the modules that it is known for, and no others.
    unclaimed = required - set(named.values()) - image.distributions.keys()
    findings = []
    for module, places in third_party.items():
        name = named[module]
        here, there = _local_version(name), image.distributions.get(name)
        if name in required:
            presence = Presence.BY_PIP
        elif name in image.distributions:
            differ = None not in (here, there) and _public(here) != _public(there)
            presence = Presence.OTHER_VERSION if differ else Presence.PRESENT
        elif unclaimed:  # its distribution may have another name than the module
            presence = Presence.BY_PIP
        else:
            known = image.complete or name in image.absent
            presence = Presence.ABSENT if known else Presence.UNKNOWN
        asked = name in required
        findings.append(Availability(module, places, presence, name, there, here, asked))
    return findings


def applies(requirement: Requirement, image: Snapshot, extra: str = "") -> bool:
    """Whether pip would install a requirement in the image; `extra` is one of the package that
    states it."""
    marker = requirement.marker
    return marker is None or marker.evaluate({**marker_environment(image), "extra": extra})


def marker_environment(image: Snapshot) -> dict[str, str]:
    """The values of environment markers (PEP 508) in the image."""
    return {
        "implementation_name": "cpython",
        "implementation_version": image.python,
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_version": image.short_python,
        "python_full_version": image.python,
        "sys_platform": "linux",
    }


def _distribution(module: str, image: Snapshot) -> str:
    """The distribution of a module: by the snapshot, by this machine, or by its own name."""
    if module in image.modules:
        return image.modules[module]
    if canonicalize_name(module) in image.distributions:
        return module
    return (_local_distributions().get(module) or [module])[0]


@cache
def _local_distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _local_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _public(version: str | None) -> str:
    """A version without its local part: 2.10.0+cu128 is 2.10.0."""
    return (version or "").partition("+")[0]
