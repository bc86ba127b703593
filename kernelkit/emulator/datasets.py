"""Datasets and models: those of the inputs folder, and datasets that clients have created.

The inputs folder has neither owners nor versions: `<slug>` is the dataset `<slug>` of any owner,
public, at version 1. A model `owner/model/framework/instance/version` is the folder
`<model>/<framework>/<instance>/<version>` there, the framework in lower case ("pytorch"). Created
datasets are stored in the state folder, `<owner>/<slug>/v<N>`, as is what an owner says about a
dataset, `metadata.json`; both survive a restart. Files are stored as they were sent: Kaggle unpacks
archives [A], the emulator does not.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kernelkit.emulator.dataset_metadata import DatasetMetadata
from kernelkit.emulator.storage import (
    is_safe_file_name,
    is_safe_name,
    read_json,
    reading,
    write_json,
)

MIN_NAME, MAX_NAME = 6, 50
"""Characters of the slug and title of a created dataset [V, a check of the client]."""
PENDING = ("NOT_YET_PERSISTED", "BLOBS_RECEIVED", "BLOBS_DECOMPRESSED", "BLOBS_COPIED_TO_SDS")
"""The states before READY, in order [V]; each takes an equal part of the time."""
FRAMEWORKS = (
    *("TENSOR_FLOW_1", "TENSOR_FLOW_2", "TF_LITE", "TF_JS", "PY_TORCH", "JAX", "FLAX", "PAX"),
    *("MAX_TEXT", "GEMMA_CPP", "GGML", "GGUF", "CORAL", "SCIKIT_LEARN", "MXNET", "ONNX", "KERAS"),
    *("TRANSFORMERS", "API", "OTHER", "TENSOR_RT_LLM", "TRITON", "VLLM"),
)
"""ModelFramework without its prefix [V]."""


@dataclass(frozen=True)
class StoredDataset:
    """A dataset. `folders`: of all versions, oldest first. `ready`: seconds since the epoch.

    `notes`: of each version what its client said about it, if it is known.
    """

    owner: str
    slug: str
    title: str
    license: str = ""
    private: bool = False
    folders: tuple[Path, ...] = ()
    ready: float = 0.0
    description: str = ""
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> float:
        """When its latest version was made, in seconds since the epoch."""
        return self.folders[-1].stat().st_mtime

    def folder(self, version: int | None = None) -> Path | None:
        """The folder of a version (from 1), or of the latest; None if there is no such version."""
        number = len(self.folders) if version is None else version
        return self.folders[number - 1] if 1 <= number <= len(self.folders) else None


@dataclass(frozen=True)
class ModelInstance:
    """One variation of a model, with the numbers of its versions in order."""

    framework: str
    slug: str
    versions: tuple[int, ...]

    @property
    def framework_enum(self) -> str:
        """The name that Kaggle sends."""
        for name in FRAMEWORKS:
            if name.replace("_", "").lower() == self.framework:
                return f"MODEL_FRAMEWORK_{name}"
        return "MODEL_FRAMEWORK_OTHER"


@dataclass
class Datasets:
    """All datasets and models.

    `pending`: seconds until a dataset ("owner/slug") is READY, counted from the first request for
    it; for a created dataset, and for each new version, from its creation. Raises StateError.
    """

    folder: Path
    inputs: Path | None
    pending: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}
        self._created: dict[str, StoredDataset] = {}
        self._metadata: dict[str, DatasetMetadata] = {}
        for record in sorted(self.folder.glob("*/*/dataset.json")):
            with reading(record):
                details = read_json(record)
                count = details.pop("versions")
                folders = tuple(record.parent / f"v{n}" for n in range(1, count + 1))
                notes = tuple(details.pop("notes", ()))
                known = StoredDataset(**details, folders=folders, notes=notes)
                self._created[_key(known.owner, known.slug)] = known
        for record in sorted(self.folder.glob("*/*/metadata.json")):
            with reading(record):
                key = _key(record.parent.parent.name, record.parent.name)
                self._metadata[key] = DatasetMetadata.read(record)

    def dataset(self, owner: str, slug: str) -> StoredDataset | None:
        """A dataset, also a private one. A created dataset hides one of the inputs folder."""
        if not is_safe_name(owner) or not is_safe_name(slug):
            return None
        with self._lock:
            if known := self._created.get(_key(owner, slug)):
                return known
            if self.inputs is None or not (source := self.inputs / slug).is_dir():
                return None
            wait = self.pending.get(_key(owner, slug), 0.0)
            asked = self._asked.setdefault(_key(owner, slug), time.time())
            return self._of_inputs(owner, source, asked + wait)

    def listed(self, account: str, owner: str = "") -> list[StoredDataset]:
        """All datasets that were created, and those of the inputs folder, which belong to anyone.

        Here they belong to `owner`, else to the account that asks.
        """
        with self._lock:
            known = dict(self._created)
            folders = sorted(self.inputs.iterdir()) if self.inputs else []
            for source in folders:
                key = _key(owner or account, source.name)
                if key not in known and source.is_dir() and is_safe_name(source.name):
                    known[key] = self._of_inputs(owner or account, source, 0.0)
        return list(known.values())

    def metadata(self, dataset: StoredDataset) -> DatasetMetadata:
        """What is said about a dataset."""
        with self._lock:
            known = self._metadata.get(_key(dataset.owner, dataset.slug))
        described = (dataset.title, dataset.license, dataset.private, dataset.description)
        return known or DatasetMetadata(*described)

    def update(self, dataset: StoredDataset, metadata: DatasetMetadata) -> list[str]:
        """Replace what is said about a dataset; problems, in Kaggle's words [?]."""
        if not MIN_NAME <= len(metadata.title) <= MAX_NAME:
            return [f"The dataset title must be between {MIN_NAME} and {MAX_NAME} characters"]
        key, home = _key(dataset.owner, dataset.slug), self.folder / dataset.owner / dataset.slug
        with self._lock:
            metadata.write(home / "metadata.json")
            self._metadata[key] = metadata
            if current := self._created.get(key):
                self._created[key] = self._recorded(
                    replace(
                        current,
                        title=metadata.title,
                        license=metadata.license,
                        private=metadata.private,
                        description=metadata.description,
                    )
                )
        return []

    def delete(self, dataset: StoredDataset) -> None:
        """Remove a dataset that was created, with all versions."""
        home = self.folder / dataset.owner / dataset.slug
        with self._lock:
            (home / "dataset.json").unlink(missing_ok=True)  # first: a restart does not find it
            self._created.pop(_key(dataset.owner, dataset.slug), None)
            self._metadata.pop(_key(dataset.owner, dataset.slug), None)
            shutil.rmtree(home, ignore_errors=True)

    def _of_inputs(self, owner: str, source: Path, ready: float) -> StoredDataset:
        """A dataset of the inputs folder, with what its owner has said about it here."""
        slug = source.name
        dataset = StoredDataset(owner, slug, slug, folders=(source,), ready=ready)
        said = self._metadata.get(_key(owner, slug))
        if said is None:
            return dataset
        return replace(
            dataset,
            title=said.title,
            license=said.license,
            private=said.private,
            description=said.description,
        )

    def _recorded(self, dataset: StoredDataset) -> StoredDataset:
        """The dataset, once it is stored."""
        record = asdict(dataset) | {"versions": len(dataset.folders)}
        del record["folders"]
        write_json(self.folder / dataset.owner / dataset.slug / "dataset.json", record)
        return dataset

    def status(self, dataset: StoredDataset) -> str:
        """A name of DatabundleVersionStatus [V]."""
        left = dataset.ready - time.time()
        if left <= 0:
            return "READY"
        whole = self.pending[_key(dataset.owner, dataset.slug)]
        done = min(max(0.0, 1 - left / whole), 0.999)
        return PENDING[int(done * len(PENDING))]

    def create(self, dataset: StoredDataset, files: list[tuple[str, Path]]) -> StoredDataset | str:
        """Create a dataset with its first version. A string is Kaggle's `error` inside a 200."""
        if not is_safe_name(dataset.slug):
            return "The dataset slug may hold letters, digits and dashes only"
        for what, text in {"slug": dataset.slug, "title": dataset.title}.items():
            if not MIN_NAME <= len(text) <= MAX_NAME:
                return f"The dataset {what} must be between {MIN_NAME} and {MAX_NAME} characters"
        if self.dataset(dataset.owner, dataset.slug):
            title = f'The requested title "{dataset.title}"'
            return f"{title} is already in use by a dataset. Please choose another title."
        return self.add_version(dataset, files)

    def add_version(
        self, dataset: StoredDataset, files: list[tuple[str, Path]], notes: str = ""
    ) -> StoredDataset | str:
        """Add a version made of these files (path below its folder, and content) to a dataset."""
        if not files or not _can_lie_together([name for name, _ in files]):
            return "A dataset needs at least one file, and its files need different names"
        home = self.folder / dataset.owner / dataset.slug
        with self._lock:
            current = self._created.get(_key(dataset.owner, dataset.slug), dataset)
            folder = home / f"v{len(current.folders) + 1}"
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
            for name, content in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(content, folder / name)
            wait = self.pending.get(_key(dataset.owner, dataset.slug), 0.0)
            grown = (*current.folders, folder)
            unknown = ("",) * (len(current.folders) - len(current.notes))
            said = (*current.notes, *unknown, notes)
            made = replace(current, folders=grown, ready=time.time() + wait, notes=said)
            self._created[_key(dataset.owner, dataset.slug)] = self._recorded(made)
        return made

    def is_created(self, dataset: StoredDataset) -> bool:
        """Whether a client has created it, so that it can get another version."""
        return _key(dataset.owner, dataset.slug) in self._created

    def attachable(self, account: str, owner: str, slug: str, version: str) -> Path | None:
        """The folder that a run gets; None if Kaggle would drop the dataset.

        Kaggle drops a dataset that is unknown, private to another account, lacks the version, or is
        not READY yet [A].
        """
        dataset = self.dataset(owner, slug)
        if dataset is None or not may_see(dataset, account) or self.status(dataset) != "READY":
            return None
        if not version or not self.is_created(dataset):
            return dataset.folder()
        return dataset.folder(int(version)) if version.isdecimal() else None

    def model(self, slug: str) -> tuple[ModelInstance, ...]:
        """The instances of a model; empty for an unknown model."""
        if self.inputs is None or not is_safe_name(slug):
            return ()
        found: dict[tuple[str, str], list[int]] = {}
        for folder in sorted((self.inputs / slug).glob("*/*/*")):
            if folder.is_dir() and folder.name.isdecimal() and int(folder.name):
                instance = (folder.parent.parent.name, folder.parent.name)
                found.setdefault(instance, []).append(int(folder.name))
        return tuple(ModelInstance(*names, tuple(sorted(found[names]))) for names in found)

    def model_folder(self, source: str) -> tuple[str, Path] | None:
        """The mount path and the folder of `owner/model/framework/instance/version`.

        None if there is no such model.
        """
        parts = source.split("/")
        if self.inputs is None or len(parts) != 5 or not all(map(is_safe_name, parts)):
            return None
        owner, model, framework, instance, version = parts
        folder = self.inputs / model / framework.lower() / instance / version
        if not version.isdecimal() or not folder.is_dir():
            return None
        return "/".join((owner, model, framework.lower(), instance, version)), folder


def may_see(dataset: StoredDataset, account: str) -> bool:
    """Whether it is public or belongs to the account."""
    return not dataset.private or dataset.owner.lower() == account.lower()


def _can_lie_together(names: list[str]) -> bool:
    """Whether these paths name files inside a folder, each another one, and none is a folder."""
    parts = [tuple(name.split("/")) for name in names]
    folders = {path[:length] for path in parts for length in range(1, len(path))}
    return (
        all(is_safe_file_name(part) for path in parts for part in path)
        and len(set(parts)) == len(parts)
        and folders.isdisjoint(parts)
    )


def _key(owner: str, slug: str) -> str:
    return f"{owner}/{slug}".lower()
