"""Wheels for runs without internet: resolved and downloaded here, installed from a dataset there.

pip chooses for Kaggle's image: its Python, its platform, and the packages that it has, which count
as installed. The lock file names each wheel with its SHA-256, and no address. As long as it fits
the requirements, exactly its wheels are downloaded; `upgrade` chooses again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidWheelFilename,
    NormalizedName,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion

from kernelkit.bundle.image import Snapshot, applies, load_snapshot
from kernelkit.bundle.requirements import (
    LOCK_NAME,
    InstallOrigin,
    InstallPlan,
    LockedWheel,
    WheelLock,
    needed_by,
    plan_installation,
)
from kernelkit.bundle.secrets import Credential
from kernelkit.config import Config, derived_name
from kernelkit.errors import ConfigError, LocalError, VerificationError
from kernelkit.kaggle.types import ignore
from kernelkit.project.datasets import (
    DatasetRequest,
    DatasetVersion,
    OnEvent,
    publish_dataset,
)
from kernelkit.project.resolution import UNKNOWN_SHA256, ChosenWheel, ImagePip
from kernelkit.storage import (
    as_json,
    counted,
    make_ignored_folder,
    sha256_of,
    write_atomically,
)

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle
    from kernelkit.notebook.manifest import ManifestWheels

ATTEMPTS = 4  # at a resolution: each may find one more package of the image with extras


@dataclass(frozen=True)
class PreparedWheels:
    """The wheels of a project on this machine."""

    folder: Path
    """Has exactly the wheels, unless the caller named it."""

    lock: WheelLock | None
    """None if the run needs no wheels."""

    plan: InstallPlan
    """Of a run without internet."""

    changed: bool = False
    """Whether the lock file was written."""

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size for wheel in self.lock.wheels) if self.lock else 0


def prepare_wheels(
    config: Config, out: Path | None = None, *, upgrade: bool = False, on_event: OnEvent = ignore
) -> PreparedWheels:
    """Choose, download and lock the wheels that a run without internet needs.

    They go to `out`, or to a folder below `build/wheels`. `upgrade` chooses again, although the
    lock file fits.

    Raises:
        ConfigError: a requirement has no fitting wheel, or the requirements contradict each other.
        UnreachableError: the package index does not answer.
        VerificationError: the index has other files than the lock file or a requirements file says.
        LocalError: there is no pip, or a file cannot be written.
    """
    image, dataset = load_snapshot(config.image), dataset_slug(config.kernel.slug)
    folder = out or config.build_folder("wheels") / dataset
    bare = plan_installation(config.pip, image, internet=False)
    wanted = [Requirement(one.requirement) for one in bare.stated if one.is_installed]
    if not wanted:
        return PreparedWheels(folder, None, bare)
    addresses = _addresses(wanted)
    old = WheelLock.read(config.project)
    plan = plan_installation(config.pip, image, internet=False, lock=old)
    is_open = bool(plan.at(InstallOrigin.NOWHERE, InstallOrigin.UNDECIDED))
    make_ignored_folder(folder.parent if out is None else folder)
    with tempfile.TemporaryDirectory(prefix="kernelkit-") as scratch:
        pip = ImagePip(image, Path(scratch))
        if old is None or is_open or upgrade:
            on_event(
                f"choosing wheels of {counted(len(wanted), 'requirement')} for Python "
                f"{image.short_python} on Linux x86-64"
            )
            lock = _chosen(pip, config.pip, wanted, image, dataset)
        else:
            lock = old.model_copy(update={"dataset": dataset})
        lock = _downloaded(pip, lock, folder, addresses, on_event)
    _require_stated_hashes(config, lock, folder)
    if out is None:
        _remove_other_wheels(folder, lock)
    plan = plan_installation(config.pip, image, internet=False, lock=lock)
    return PreparedWheels(folder, lock, plan, changed=_write(lock, config.project))


def publish_wheels(
    config: Config,
    prepared: PreparedWheels,
    kaggle: Kaggle,
    own: Collection[Credential] = (),
    *,
    on_event: OnEvent = ignore,
) -> DatasetVersion | None:
    """Make the wheels the current version of the private dataset; None if there are none.

    Raises:
        What `publish_dataset` raises.
    """
    if prepared.lock is None:
        return None
    state = config.build_folder("datasets")
    return _publish(kaggle, prepared.lock.dataset, prepared.folder, state, own, on_event)


def wheels_for_rehearsal(
    config: Config, wheels: ManifestWheels | None, inputs: Path | None
) -> Callable[[Kaggle, OnEvent], None]:
    """A function that gives a new local Kaggle the dataset with the wheels of a notebook.

    It makes the calls that go to the real one. If the folder of inputs has the dataset, or the
    notebook needs none, it does nothing.

    Raises:
        ConfigError: `build/wheels` lacks a wheel, or has another file in its place.
    """
    if wheels is None or (inputs is not None and (inputs / wheels.dataset).is_dir()):
        return lambda *_: None
    dataset, names = wheels.dataset, [one.file for one in wheels.files]
    folder = config.build_folder("wheels") / dataset
    missing = [one.file for one in wheels.files if _sha256(folder / one.file) != one.sha256]
    if missing:
        raise ConfigError(
            f"{folder} lacks {', '.join(missing)}, which {LOCK_NAME} names",
            "Download what the lock file names: `kernelkit wheels --download-only`.",
        )

    def publish(kaggle: Kaggle, on_event: OnEvent) -> None:
        with tempfile.TemporaryDirectory(prefix="kernelkit-") as scratch:
            chosen = Path(scratch, "wheels")
            chosen.mkdir()
            for name in names:
                shutil.copyfile(folder / name, chosen / name)
            _publish(kaggle, dataset, chosen, Path(scratch, "state"), (), on_event)

    return publish


def dataset_slug(kernel: str) -> str:
    """The slug of the dataset with the wheels of a kernel."""
    return derived_name(kernel, "wheels")


def _publish(
    kaggle: Kaggle,
    slug: str,
    folder: Path,
    state: Path,
    own: Collection[Credential],
    on_event: OnEvent,
) -> DatasetVersion:
    request = DatasetRequest(folder, slug, message="Wheels that a notebook installs.")
    return publish_dataset(kaggle, request, state, own=own, on_event=on_event)


def _addresses(wanted: Sequence[Requirement]) -> dict[str, str]:
    """Distribution → address, of the requirements that name one.

    Raises:
        ConfigError: it is not the address of a wheel.
    """
    found: dict[str, str] = {}
    for requirement in wanted:
        if requirement.url is None:
            continue
        path = urllib.parse.urlsplit(requirement.url).path
        if not path.endswith(".whl"):
            raise ConfigError(
                f"{requirement.name}: its address does not end in .whl, and kernelkit builds no "
                "wheels",
                "Name the address of a wheel, or a version on PyPI.",
            )
        found[canonicalize_name(requirement.name)] = requirement.url
    return found


def _chosen(
    pip: ImagePip,
    stated: Sequence[str],
    wanted: Sequence[Requirement],
    image: Snapshot,
    dataset: str,
) -> WheelLock:
    """A lock with the wheels that pip chooses, without those that the image makes unnecessary."""
    with_extras: set[str] = {canonicalize_name(one.name) for one in wanted if one.extras}
    for _ in range(ATTEMPTS):
        items = pip.choose(wanted, without=with_extras)
        lock = _as_lock(items, wanted, image, dataset)
        plan = plan_installation(stated, image, internet=False, lock=lock)
        open_ones = plan.at(InstallOrigin.NOWHERE, InstallOrigin.UNDECIDED)
        if not open_ones:
            return lock.model_copy(update={"wheels": plan.wheels})
        names = {one.name for one in open_ones}
        if names <= with_extras:
            break
        with_extras |= names  # pip does not know what the extras of the image's packages need
    raise ConfigError(
        f"pip chooses no wheel of {', '.join(sorted(one.requirement for one in open_ones))}",
        'Name the packages that it needs in "pip" yourself.',
    )


def _as_lock(
    items: Sequence[ChosenWheel], wanted: Sequence[Requirement], image: Snapshot, dataset: str
) -> WheelLock:
    extras = _extras(items, wanted, image)
    wheels = []
    for item in sorted(items, key=lambda one: canonicalize_name(one.metadata.name)):
        own = sorted(extras[canonicalize_name(item.metadata.name)])
        try:
            parse_wheel_filename(item.file)
        except (InvalidWheelFilename, InvalidVersion) as error:
            raise ConfigError(f"{item.file} is not a wheel: {error}") from None
        wheel = LockedWheel(
            file=item.file,
            sha256=item.download_info.archive_info.hashes.get("sha256", UNKNOWN_SHA256),
            size=0,
            extras=tuple(own),
            requires=tuple(needed_by(item.metadata.requires_dist, own, image)),
        )
        wheels.append(wheel)
    return WheelLock(
        dataset=dataset,
        python=image.short_python,
        wheels=tuple(wheels),
    )


def _extras(
    items: Sequence[ChosenWheel], wanted: Sequence[Requirement], image: Snapshot
) -> Mapping[str, set[NormalizedName]]:
    """Distribution → the extras that something asks for."""
    requires = {canonicalize_name(i.metadata.name): i.metadata.requires_dist for i in items}
    extras: dict[str, set[NormalizedName]] = {name: set() for name in requires}
    queue = list(wanted)
    seen = set()
    for one in queue:  # it grows
        name = canonicalize_name(one.name)
        if name not in requires or (str(one) in seen) or not applies(one, image):
            continue
        seen.add(str(one))
        extras[name].update(canonicalize_name(extra) for extra in one.extras)
        queue += [Requirement(text) for text in needed_by(requires[name], extras[name], image)]
    return extras


def _downloaded(
    pip: ImagePip, lock: WheelLock, folder: Path, addresses: Mapping[str, str], on_event: OnEvent
) -> WheelLock:
    """Download what the folder lacks; the lock with the size and hash of each file.

    Raises:
        VerificationError: a file is not the one that the lock names.
    """
    absent = [wheel for wheel in lock.wheels if _sha256(folder / wheel.file) != wheel.sha256]
    if absent:
        on_event(f"downloading {counted(len(absent), 'wheel')}")
        pip.download(absent, addresses)
    wheels = []
    try:
        for wheel in lock.wheels:
            file = pip.downloads / wheel.file if wheel in absent else folder / wheel.file
            if not file.is_file():
                raise VerificationError(
                    f"the index has no {wheel.file}, which was chosen",
                    "Choose again: `kernelkit wheels --upgrade`.",
                )
            found = sha256_of(file)
            if wheel.sha256 not in (found, UNKNOWN_SHA256):
                raise VerificationError(
                    f"{wheel.file} has the sha256 {found}, and {wheel.sha256} is expected",
                    "If that is right, choose again: `kernelkit wheels --upgrade`.",
                )
            wheels.append(wheel.model_copy(update={"sha256": found, "size": file.stat().st_size}))
            if wheel in absent:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.move(file, folder / wheel.file)  # its hash is checked again at each use
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from error
    return lock.model_copy(update={"wheels": tuple(wheels)})


def _require_stated_hashes(config: Config, lock: WheelLock, folder: Path) -> None:
    """Check that the wheels have the hashes that a requirements file states.

    Raises:
        VerificationError: one has another hash.
    """
    for text, hashes in config.pip_hashes.items():
        wheel = lock.wheel(canonicalize_name(Requirement(text).name))
        if wheel is not None and not any(_has_hash(folder / wheel.file, one) for one in hashes):
            raise VerificationError(
                f"{wheel.file} has none of the {len(hashes)} hashes that the requirements file "
                f"states for {text}",
                "Add the hash of the wheel for Kaggle's Python, or correct the version.",
            )


def _has_hash(file: Path, stated: str) -> bool:
    algorithm, _, digest = stated.partition(":")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest() == digest


def _sha256(file: Path) -> str | None:
    return sha256_of(file) if file.is_file() else None


def _remove_other_wheels(folder: Path, lock: WheelLock) -> None:
    names = {wheel.file for wheel in lock.wheels}
    for file in folder.iterdir():
        if file.name not in names and file.is_file():
            file.unlink()


def _write(lock: WheelLock, project: Path) -> bool:
    """Write the lock file if it changes."""
    wheels = [wheel.model_dump(mode="json", exclude_defaults=True) for wheel in lock.wheels]
    document = {**lock.model_dump(mode="json", by_alias=True), "wheels": wheels}
    path, text = project / LOCK_NAME, as_json(document)
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return False
        write_atomically(path, text)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}") from error
    return True
