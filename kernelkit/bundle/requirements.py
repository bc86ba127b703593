"""What a run installs: the project's requirements, Kaggle's image, and the project's wheels.

A run with internet installs from PyPI. A run without internet installs wheels from a private
dataset. `kernelkit wheels` makes it, and writes the lock file, which names each wheel with its
SHA-256. Nothing here reads an index: what is not in the image and not in the lock is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import (
    InvalidWheelFilename,
    NormalizedName,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kernelkit.bundle.image import Snapshot, applies
from kernelkit.errors import ConfigError
from kernelkit.storage import DocumentError, MissingDocumentError, read_model

LOCK_NAME = "kernelkit-wheels.json"
LOCK_SCHEMA = 1
MAKE_WHEELS = "Download and publish the wheels: `kernelkit wheels`."


def _wheel_name(value: str) -> str:
    try:
        parse_wheel_filename(value)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise ValueError(str(error)) from None
    if "/" in value or "\\" in value or not value.isprintable():
        raise ValueError("is not the name of a file")
    return value


def _requirement(value: str) -> str:
    try:
        Requirement(value)
    except InvalidRequirement as error:
        raise ValueError(f"is not a requirement: {error}".splitlines()[0]) from None
    return value


class LockedWheel(BaseModel):
    """One wheel of the project's dataset."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: Annotated[str, AfterValidator(_wheel_name)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    """In bytes."""

    extras: tuple[str, ...] = ()
    """Extras of it that `requires` covers."""

    requires: tuple[Annotated[str, AfterValidator(_requirement)], ...] = ()
    """What it needs in the image (PEP 508, without markers)."""

    @cached_property
    def name(self) -> NormalizedName:
        """The canonical name of the distribution."""
        return parse_wheel_filename(self.file)[0]

    @cached_property
    def version(self) -> Version:
        """The version of the distribution."""
        return parse_wheel_filename(self.file)[1]

    def fits(self, requirement: Requirement) -> bool:
        """Whether it satisfies a requirement, with its extras."""
        extras = {canonicalize_name(extra) for extra in requirement.extras}
        return requirement.specifier.contains(self.version, True) and extras <= {*self.extras}


def _each_once(wheels: tuple[LockedWheel, ...]) -> tuple[LockedWheel, ...]:
    for name, count in Counter(wheel.name for wheel in wheels).items():
        if count > 1:
            raise ValueError(f"has {count} wheels of {name}")
    return wheels


class WheelLock(BaseModel):
    """`kernelkit-wheels.json`: which wheels the dataset has. It belongs under version control."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    schema_version: int = Field(default=LOCK_SCHEMA, alias="schema", le=LOCK_SCHEMA)
    dataset: Annotated[str, Field(pattern="^[a-z0-9]+(?:-[a-z0-9]+)*$", max_length=50)]
    """The slug of the private dataset; its owner is the account that pushes."""

    python: str
    """For which Python the wheels were chosen: "3.12"."""

    wheels: Annotated[tuple[LockedWheel, ...], AfterValidator(_each_once)]

    def wheel(self, name: str) -> LockedWheel | None:
        """The wheel of a distribution, by its canonical name."""
        return next((wheel for wheel in self.wheels if wheel.name == name), None)

    @classmethod
    def read(cls, project: Path) -> Self | None:
        """The lock file of a project; None if there is none.

        Raises:
            ConfigError: it cannot be read.
        """
        path = project / LOCK_NAME
        try:
            return read_model(path, cls)
        except MissingDocumentError:
            return None
        except DocumentError as error:
            raise ConfigError(
                f"{LOCK_NAME}: {error.reason}",
                "Restore it from version control, or delete it and run `kernelkit wheels`.",
            ) from error


class InstallOrigin(StrEnum):
    """Where a run gets a distribution from."""

    IMAGE = "in the image"
    INDEX = "from PyPI"
    ADDRESS = "from its address"
    """A repository or a file that the requirement itself names."""

    WHEELS = "from the wheels"
    UNDECIDED = "unknown"
    """The image has it, in a version or with extras that are not known, and nothing else does."""

    NOWHERE = "missing"
    OTHER_PLATFORM = "not needed"
    """Its marker excludes Kaggle's image."""


@dataclass(frozen=True)
class PlannedRequirement:
    """One requirement, and where the run gets it from."""

    requirement: str
    name: str
    """The canonical name of the distribution."""

    required_by: str
    """The wheel that needs it; empty for a requirement of the project."""

    in_image: bool
    image_version: str | None
    """None where the image lacks it or the version is unknown."""

    origin: InstallOrigin
    wheel: str = ""
    """The file that satisfies it."""

    reason: str = ""
    """Why it is missing or unknown."""

    replaces: bool = False
    """Whether the run gets another version than the image has."""

    @property
    def is_installed(self) -> bool:
        """Whether the run may install it: the image is not known to satisfy it."""
        return self.origin not in (InstallOrigin.IMAGE, InstallOrigin.OTHER_PLATFORM)

    @property
    def is_missing(self) -> bool:
        """Whether the run cannot have it."""
        return self.origin is InstallOrigin.NOWHERE

    @property
    def is_undecided(self) -> bool:
        """Whether only the run can tell if the image satisfies it."""
        return self.origin is InstallOrigin.UNDECIDED


@dataclass(frozen=True)
class InstallPlan:
    """All requirements of a run, those of the project first."""

    requirements: tuple[PlannedRequirement, ...] = ()
    wheels: tuple[LockedWheel, ...] = ()
    """Those that the run needs or may need."""

    install: tuple[str, ...] = ()
    """What is installed from the wheels, for pip: names with versions, without addresses."""

    @property
    def stated(self) -> tuple[PlannedRequirement, ...]:
        """The requirements of the project itself."""
        return tuple(one for one in self.requirements if not one.required_by)

    @property
    def downloads(self) -> list[str]:
        """The requirements of the project that the image is not known to satisfy."""
        return [one.requirement for one in self.stated if one.is_installed]

    def at(self, *origins: InstallOrigin) -> list[PlannedRequirement]:
        """The requirements that come from there."""
        return [one for one in self.requirements if one.origin in origins]


def plan_installation(
    pip: Sequence[str], image: Snapshot, *, internet: bool, lock: WheelLock | None = None
) -> InstallPlan:
    """Where a run gets each requirement of `pip` (PEP 508) from; with internet, wheels are unused.

    The requirements of a wheel that is needed count too.
    """
    walk = _Walk(image, internet, lock)
    walk.follow([(text, "") for text in dict.fromkeys(pip)])
    return InstallPlan(tuple(walk.found), tuple(walk.wheels), tuple(dict.fromkeys(walk.install)))


@dataclass
class _Walk:
    """From the requirements of the project through those of the wheels."""

    image: Snapshot
    internet: bool
    lock: WheelLock | None
    found: list[PlannedRequirement] = field(default_factory=list)
    wheels: list[LockedWheel] = field(default_factory=list)
    install: list[str] = field(default_factory=list)

    def follow(self, open_requirements: Iterable[tuple[str, str]]) -> None:
        queue = list(open_requirements)
        for text, parent in queue:  # it grows
            planned, wheel = self.plan(text, parent)
            if not parent or planned.is_installed:
                self.found.append(planned)
            if wheel is None:
                continue
            self.install.append(_for_pip(Requirement(text), wheel))
            if wheel not in self.wheels:
                self.wheels.append(wheel)
                queue.extend((needed, wheel.name) for needed in wheel.requires)

    def plan(self, text: str, parent: str) -> tuple[PlannedRequirement, LockedWheel | None]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        version = self.image.distributions.get(name)
        fits = image_satisfies(requirement, self.image)
        wheel, reason = None, ""
        if not applies(requirement, self.image):
            origin, reason = InstallOrigin.OTHER_PLATFORM, "its marker excludes Kaggle's image"
        elif fits:
            origin = InstallOrigin.IMAGE
        elif self.internet:
            found = InstallOrigin.ADDRESS if requirement.url else InstallOrigin.INDEX
            origin = found if fits is False else InstallOrigin.UNDECIDED
            reason = "" if fits is False else "pip decides in the run"
        elif (wheel := self._wheel(requirement)) is not None:
            origin = InstallOrigin.WHEELS
            reason = "" if fits is False else "only if the image's version does not fit"
        else:
            origin = InstallOrigin.NOWHERE if fits is False else InstallOrigin.UNDECIDED
            reason = self._why_missing(name)
        planned = PlannedRequirement(
            requirement=text,
            name=name,
            required_by=parent,
            in_image=name in self.image.distributions,
            image_version=version,
            origin=origin,
            wheel=wheel.file if wheel else "",
            reason=reason,
            replaces=origin in (InstallOrigin.INDEX, InstallOrigin.ADDRESS, InstallOrigin.WHEELS)
            and version is not None
            and not requirement.specifier.contains(version, True),
        )
        return planned, wheel

    def _wheel(self, requirement: Requirement) -> LockedWheel | None:
        if self.lock is None or self.lock.python != self.image.short_python:
            return None
        wheel = self.lock.wheel(canonicalize_name(requirement.name))
        return wheel if wheel and wheel.fits(requirement) else None

    def _why_missing(self, name: str) -> str:
        if self.lock is None:
            return "the project has no wheels"
        if self.lock.python != self.image.short_python:
            return (
                f"{LOCK_NAME} has wheels for Python {self.lock.python}, and the image has "
                f"{self.image.short_python}"
            )
        wheel = self.lock.wheel(name)
        if wheel is None:
            return f"{LOCK_NAME} has no wheel of it"
        extras = f"[{','.join(wheel.extras)}]" if wheel.extras else ""
        return f"{LOCK_NAME} has {name}{extras} {wheel.version}"


def image_satisfies(requirement: Requirement, image: Snapshot) -> bool | None:
    """Whether the image has a fitting version; None where that is not known."""
    name = canonicalize_name(requirement.name)
    if name not in image.distributions or requirement.url is not None:
        return False
    version = image.distributions[name]
    if version is None:
        return None if requirement.specifier or requirement.extras else True
    if not requirement.specifier.contains(version, True):
        return False
    return None if requirement.extras else True  # an extra may need more than the image has


def needed_by(requires: Iterable[str], extras: Iterable[str], image: Snapshot) -> Iterator[str]:
    """The dependencies of a wheel that apply in the image, without their markers.

    `requires` are its Requires-Dist, `extras` are canonical names.
    """
    wanted = ["", *extras]
    for text in requires:
        requirement = Requirement(text)
        if any(applies(requirement, image, extra) for extra in wanted):
            requirement.marker = None
            yield str(requirement)


def _for_pip(requirement: Requirement, wheel: LockedWheel) -> str:
    """The requirement without marker; without its address, because the run has no internet."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    exact = requirement.url is not None
    return f"{wheel.name}{extras}" + (f"=={wheel.version}" if exact else str(requirement.specifier))
