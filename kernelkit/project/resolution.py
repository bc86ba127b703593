"""This machine's pip, working for Kaggle's image: which wheels it chooses, and their download.

pip runs as a program of its own; see `pip_for_image`. Only wheels are used, so that nothing is
built and no code of a package runs here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel

from kernelkit.bundle.image import Snapshot, marker_environment
from kernelkit.bundle.requirements import LOCK_NAME, LockedWheel
from kernelkit.errors import (
    ConfigError,
    KernelkitError,
    LocalError,
    UnreachableError,
    VerificationError,
)
from kernelkit.storage import parse_model

OLDEST_GLIBC = 5  # manylinux begins with glibc 2.5
MESSAGE_LINES = 12  # of pip's output
UNKNOWN_SHA256 = "0" * 64  # until the file is here: an index need not state it


_UNREACHABLE = re.compile(
    r"Retrying \(|Could not fetch URL|Max retries exceeded|NewConnectionError|ReadTimeout|"
    r"Temporary failure in name resolution|ProxyError|SSLError"
)
_NO_WHEEL = re.compile(r"No matching distribution found for (?P<requirement>[^\n]+)")
_OTHER_HASH = re.compile(
    r"DO NOT MATCH THE HASHES.*?^ +(?P<requirement>\S+) from ", re.DOTALL | re.MULTILINE
)
_NOISE = re.compile(
    r"\s*(?:WARNING: |INFO: |Looking in |Processing |Collecting |Using cached |\[notice\]|"
    r"To fix this you could|For help visit|$)"
)
_ADDRESS = re.compile(
    r"\b[a-z][a-z+]*://[^\s'\"]+|(?<=host=)'[^']*'|(?<=with url: )\S+", re.IGNORECASE
)

_OWN_SETTINGS = frozenset(
    {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_LOG"}
    | {"PIP_ONLY_BINARY", "PIP_NO_BINARY", "PIP_PLATFORM", "PIP_PYTHON_VERSION", "PIP_ABI"}
    | {"PIP_IMPLEMENTATION", "PIP_NO_DEPS", "PIP_REQUIRE_HASHES", "PIP_REPORT", "PIP_DRY_RUN"}
    | {"PIP_REQUIREMENT", "PIP_EDITABLE", "PIP_DEST", "PIP_IGNORE_INSTALLED"}
)
"""Settings of pip that would change what is chosen, or where it goes. All others say how this
machine reaches its index."""


class _ReportedHashes(BaseModel):
    hashes: dict[str, str] = {}


class _ReportedDownload(BaseModel):
    url: str
    archive_info: _ReportedHashes = _ReportedHashes()


class _ReportedMetadata(BaseModel):
    name: str
    version: str
    requires_dist: list[str] = []


class ChosenWheel(BaseModel):
    """One wheel that pip would install in the image."""

    metadata: _ReportedMetadata
    download_info: _ReportedDownload

    @property
    def file(self) -> str:
        """The name of its file."""
        path = urllib.parse.urlsplit(self.download_info.url).path
        return urllib.parse.unquote(PurePosixPath(path).name)

    def require_readable(self) -> None:
        """Check that its metadata says what it needs in today's words: old wheels may not.

        Raises:
            ConfigError: a dependency is not a requirement.
        """
        for text in self.metadata.requires_dist:
            try:
                Requirement(text)
            except InvalidRequirement:
                raise ConfigError(
                    f"{self.file} needs {text!r}, which is not a requirement",
                    "Choose another version, whose metadata today's pip can read.",
                ) from None


class _PipReport(BaseModel):
    """What `pip install --dry-run --report` writes."""

    install: list[ChosenWheel]


class ImagePip:
    """This machine's pip, working for Kaggle's image; see `pip_for_image`."""

    def __init__(self, image: Snapshot, scratch: Path) -> None:
        self._image, self._scratch = image, scratch
        self.downloads = scratch / "downloads"

    def choose(self, wanted: Sequence[Requirement], without: Collection[str]) -> list[ChosenWheel]:
        """What pip would install in the image; it does not see the packages `without` there."""
        report = self._scratch / "report.json"
        has = self._scratch / "constraints.txt"
        has.write_text("".join(self._constraints(wanted, without)), encoding="utf-8")
        self._run(
            ["install", "--dry-run", "--no-user", "--report", str(report)],
            ["--constraint", str(has), *map(str, wanted)],
            without,
        )
        chosen = parse_model(report.read_bytes(), _PipReport, report).install
        for wheel in chosen:
            wheel.require_readable()
        return chosen

    def download(self, wheels: Sequence[LockedWheel], addresses: Mapping[str, str]) -> None:
        """Download exactly these wheels to `downloads`."""
        hashed = all(wheel.sha256 != UNKNOWN_SHA256 for wheel in wheels)
        lines = []
        for wheel in wheels:
            url = addresses.get(wheel.name)
            line = f"{wheel.name} @ {url}" if url else f"{wheel.name}=={wheel.version}"
            lines.append(line + (f" --hash=sha256:{wheel.sha256}" if hashed else "") + "\n")
        pins = self._scratch / "requirements.txt"
        pins.write_text("".join(lines), encoding="utf-8")
        self._run(
            ["download", "--no-deps", "--dest", str(self.downloads)],
            ["--requirement", str(pins)],
            (),
        )

    def _constraints(
        self, wanted: Sequence[Requirement], without: Collection[str]
    ) -> Iterator[str]:
        """The image's version of packages that pip has to look at because of their extras."""
        for name in without:
            version = self._image.distributions.get(name)
            specifiers = [r.specifier for r in wanted if canonicalize_name(r.name) == name]
            if version and all(specifier.contains(version, True) for specifier in specifiers):
                yield f"{name}=={Version(version).public}\n"

    def _run(self, command: Sequence[str], last: Sequence[str], without: Collection[str]) -> None:
        script = Path(__file__).with_name("pip_for_image.py")
        markers = marker_environment(self._image)
        path = [str(self._pip_folder()), str(self._image_folder(without))]
        settings = json.dumps({"path": path, "markers": markers})
        options = ["--only-binary=:all:", "--implementation=cp", "--disable-pip-version-check"]
        options += [
            f"--python-version={self._image.short_python}",
            "--no-input",
            *self._platforms(),
        ]
        environment = {k: v for k, v in os.environ.items() if k not in _OWN_SETTINGS}
        environment["PIP_REQUIRE_VIRTUALENV"] = "0"  # pip installs nothing here
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script), settings, *command, *options, *last],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd=self._scratch,  # a folder of the project is not to be imported
        )
        if done.returncode:
            raise self._error(f"{done.stderr}\n{done.stdout}")

    def _platforms(self) -> Iterator[str]:
        """Every platform whose wheels work in the image, the newest first."""
        newest = int(self._image.glibc.partition(".")[2])
        for minor in range(newest, OLDEST_GLIBC - 1, -1):
            yield f"--platform=manylinux_2_{minor}_x86_64"
        for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux"):
            yield f"--platform={name}_x86_64"

    def _pip_folder(self) -> Path:
        """A folder to import pip from, without the other packages of this machine."""
        if spec := find_spec("pip"):
            folder = self._scratch / "pip"
            folder.mkdir(exist_ok=True)
            link = folder / "pip"
            if not link.is_symlink():
                link.symlink_to(Path(spec.origin or "").parent)
            return folder
        spec = find_spec("ensurepip")
        bundled = Path(spec.origin or "").parent / "_bundled" if spec else Path()
        for wheel in bundled.glob("pip-*.whl"):
            return wheel
        raise LocalError(
            "pip is not installed for this Python, and downloads the wheels",
            f"Install it: {sys.executable} -m ensurepip, or uv pip install pip",
        )

    def _image_folder(self, without: Collection[str]) -> Path:
        """A folder with the metadata of the packages whose version in the image is known."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        for name, version in self._image.distributions.items():
            if version is None or name in without:
                continue
            try:
                shown = str(Version(version))
            except InvalidVersion:
                continue
            info = folder / f"{name.replace('-', '_')}-{shown}.dist-info"
            info.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {shown}\n"
            (info / "METADATA").write_text(text, encoding="utf-8")
        return folder

    def _error(self, output: str) -> KernelkitError:
        """What pip says, without addresses: they may hold credentials."""
        lines = [line for line in output.splitlines() if not _NOISE.match(line)]
        shown = _ADDRESS.sub("(address)", "\n".join(lines[:MESSAGE_LINES]))
        platform = f"Python {self._image.short_python} on Linux x86-64"
        if _UNREACHABLE.search(output):
            return UnreachableError(
                f"the package index does not answer: pip says\n{shown}",
                "Check the network and pip's configuration (`pip config list`), then try again.",
            )
        if found := _OTHER_HASH.search(output):
            return VerificationError(
                f"the index has another file of {found['requirement']} than {LOCK_NAME} names",
                "If that is right, choose again: `kernelkit wheels --upgrade`.",
            )
        if found := _NO_WHEEL.search(output):
            name = found["requirement"]
            return ConfigError(
                f"the index has no wheel of {name} for {platform}\n{shown}",
                "Choose a version that has one. If you have built one yourself, name its folder: "
                "PIP_FIND_LINKS=DIR kernelkit wheels",
            )
        return ConfigError(f"pip finds no wheels for {platform}:\n{shown}", "Correct `pip`.")
