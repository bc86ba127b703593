"""The files that the notebook carries: written, compared with the manifest, made importable."""

from __future__ import annotations

import base64
import importlib
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

from .documents import BundleDocument
from .faults import RuntimeFault
from .files import files_below, sha256_of
from .installation import install_metadata

CODE_FILE = "sources.pack"
"""The only file of the dataset with the packages: an uncompressed tar."""

MOST_NAMED = 20  # files that a message names


class Sources:
    """The sources of a run, in the folder where the notebook writes them."""

    def __init__(self, bundle: BundleDocument, folder: Path) -> None:
        self.bundle = bundle
        self.folder = folder

    def write(self, path: str, content: bytes) -> None:
        """Write one file of the package that a `%%writefile` cell would not write exactly."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(f"Writing {target}")

    def unpack(self, archive: str) -> None:
        """Write the files that are carried compressed: a .tar.xz in base64."""
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive)), mode="r:xz") as tar:
            tar.extractall(self.folder, filter="data")
            print(f"Writing {len(tar.getnames())} files to {self.folder}")

    def load(self, dataset: Path) -> None:
        """Write the files that a mounted dataset holds, if they are exactly those of the manifest.

        Raises:
            RuntimeFault: a file is missing, differs, or is not in the manifest.
        """
        others = [name for name in files_below(dataset) if name != CODE_FILE]
        if others or not (dataset / CODE_FILE).is_file():
            raise _wrong_dataset(
                dataset,
                [f"{name}: is not in the manifest" for name in others]
                or [f"{CODE_FILE}: is missing"],
            )
        expected = {file["path"]: file["sha256"] for file in self.bundle["files"]}
        wrong: list[str] = []
        try:
            with tarfile.open(dataset / CODE_FILE, mode="r:") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isreg() else None
                    if content is None or member.name not in expected:
                        wrong.append(f"{member.name}: is not in the manifest")
                        continue
                    target = self.folder / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content, target.open("wb") as stream:
                        shutil.copyfileobj(content, stream)
                    if sha256_of(target) != expected.pop(member.name):
                        target.unlink()
                        wrong.append(f"{member.name}: has different content")
        except (tarfile.TarError, EOFError, ValueError) as error:
            wrong.append(f"{CODE_FILE}: cannot be read ({error})")
        wrong += [f"{path}: is missing" for path in expected]
        if wrong:
            raise _wrong_dataset(dataset, wrong)
        print(f"{len(self.bundle['files'])} files from {dataset}")

    def check(self) -> None:
        """Compare every source on disk with the manifest, and make all of them importable.

        Raises:
            RuntimeFault: a file is missing or differs.
        """
        wrong = [
            f"{file['path']}: {'is missing' if found is None else 'has different content'}"
            for file in self.bundle["files"]
            if (found := sha256_of(self.folder / file["path"])) != file["sha256"]
        ]
        if wrong:
            raise RuntimeFault(
                "The sources on disk are not those of the package:\n  "
                + "\n  ".join(wrong)
                + "\nWas a cell edited or skipped? Edit the package and render it again."
            )
        for file in self.bundle["files"]:
            if file.get("executable"):
                (self.folder / file["path"]).chmod(0o755)
        folders = [str(self.folder / f) for f in self.bundle.get("import_folders", [""])]
        sys.path[:0] = [folder for folder in folders if folder not in sys.path]
        if "distribution" in self.bundle:
            install_metadata(self.bundle["distribution"], Path(folders[0]))
        # The kernel may have imported its own copy of a package that is carried here.
        for name in self._foreign_modules():
            del sys.modules[name]
        # Spawned workers and `python -m` do not inherit sys.path.
        inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        missing = [folder for folder in folders if folder not in inherited]
        if missing:
            os.environ["PYTHONPATH"] = os.pathsep.join([*missing, *inherited])
        importlib.invalidate_caches()
        print(f"{len(self.bundle['files'])} files, each with the sha256 of the package")

    def file_of(self, module: str) -> str:
        """The file that holds a module of the package."""
        inside = module.replace(".", "/")
        for folder in self.bundle.get("import_folders", [""]):
            for name in (f"{inside}.py", f"{inside}/__main__.py", f"{inside}/__init__.py"):
                path = self.folder / folder / name
                if path.is_file():
                    return str(path)
        return str(self.folder / f"{inside}.py")

    def require_own_copies(self) -> None:
        """Check that every imported module of the packages is a carried one.

        Raises:
            RuntimeFault: another copy of one of the packages was imported.
        """
        for name in self._foreign_modules():
            origin = sys.modules[name].__file__
            raise RuntimeFault(f"{name} came from {origin}, not from {self.folder}")

    def _foreign_modules(self) -> list[str]:
        """Loaded modules of the packages that were not imported from the carried sources."""
        files = [file["path"] for file in self.bundle["files"] if file["path"].endswith(".py")]
        folders = [
            f"{folder}/" if folder else "" for folder in self.bundle.get("import_folders", [""])
        ]
        paths = [path[len(f) :] for path in files for f in folders if path.startswith(f)]
        modules = {path[:-3].removesuffix("/__init__").replace("/", ".") for path in paths}
        packages = {p[:-12].replace("/", ".") for p in paths if p.endswith("/__init__.py")}
        source_dir = self.folder.resolve()
        found = []
        for name, module in sorted(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            parents = (name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
            own = name in modules or not packages.isdisjoint(parents)
            if own and origin and not Path(origin).resolve().is_relative_to(source_dir):
                found.append(name)
        return found


def _wrong_dataset(dataset: Path, wrong: list[str]) -> RuntimeFault:
    more = [f"… and {len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else []
    return RuntimeFault(
        f"The dataset {dataset} does not hold the package of this notebook:\n  "
        + "\n  ".join([*wrong[:MOST_NAMED], *more])
        + "\nIts current version is another one, or was altered. Push again: kernelkit publishes "
        "the right version first."
    )
