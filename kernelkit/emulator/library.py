"""Datasets and models: those of the inputs folder, and the datasets that were created here.

The inputs folder knows no owners and no versions of a dataset: `<slug>` is the dataset `<slug>` of
whoever is asked for, public, at version 1. A model `owner/model/framework/instance/version` is the
folder `<model>/<framework>/<instance>/<version>` there, the framework in small letters ("pytorch").
Created datasets lie in the state folder, `<owner>/<slug>/v<N>`, and outlive a restart. Their files
stay as they were sent: Kaggle unpacks archives [A], this does not.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

MIN_NAME, MAX_NAME = 6, 50
"""Characters of a created dataset's slug and title [V, the client's own check]."""
PENDING = ("NOT_YET_PERSISTED", "BLOBS_RECEIVED", "BLOBS_DECOMPRESSED", "BLOBS_COPIED_TO_SDS")
"""The states before READY, in their order [V]; each takes an equal part of the time."""
FRAMEWORKS = (
    *("TENSOR_FLOW_1", "TENSOR_FLOW_2", "TF_LITE", "TF_JS", "PY_TORCH", "JAX", "FLAX", "PAX"),
    *("MAX_TEXT", "GEMMA_CPP", "GGML", "GGUF", "CORAL", "SCIKIT_LEARN", "MXNET", "ONNX", "KERAS"),
    *("TRANSFORMERS", "API", "OTHER", "TENSOR_RT_LLM", "TRITON", "VLLM"),
)
"""ModelFramework without its prefix [V]."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,200}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Dataset:
    """A dataset. `folders`: of each version, the first first. `ready`: seconds since the epoch."""

    owner: str
    slug: str
    title: str
    license: str = ""
    private: bool = False
    folders: tuple[Path, ...] = ()
    ready: float = 0.0

    def folder(self, version: int | None = None) -> Path | None:
        """Of a version (from 1), or of the latest."""
        number = len(self.folders) if version is None else version
        return self.folders[number - 1] if 1 <= number <= len(self.folders) else None


@dataclass(frozen=True)
class Instance:
    """One variation of a model, with its versions' numbers in order."""

    framework: str
    slug: str
    versions: tuple[int, ...]

    @property
    def framework_enum(self) -> str:
        """The name that travels."""
        for name in FRAMEWORKS:
            if name.replace("_", "").lower() == self.framework:
                return f"MODEL_FRAMEWORK_{name}"
        return "MODEL_FRAMEWORK_OTHER"


@dataclass
class Library:
    """`pending`: seconds that a dataset ("owner/slug") takes from the first question on; a created
    one, and each new version, takes them from its creation on.
    """

    folder: Path
    inputs: Path | None
    pending: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}
        self._created: dict[str, Dataset] = {}
        for record in sorted(self.folder.glob("*/*/dataset.json")):
            facts = json.loads(record.read_text(encoding="utf-8"))
            count = facts.pop("versions")
            folders = tuple(record.parent / f"v{n}" for n in range(1, count + 1))
            known = Dataset(**facts, folders=folders)
            self._created[_key(known.owner, known.slug)] = known

    def dataset(self, owner: str, slug: str) -> Dataset | None:
        """A dataset, whoever may see it; a created one before one of the inputs folder."""
        if not is_name(owner) or not is_name(slug):
            return None
        with self._lock:
            if known := self._created.get(_key(owner, slug)):
                return known
            if self.inputs is None or not (source := self.inputs / slug).is_dir():
                return None
            wait = self.pending.get(_key(owner, slug), 0.0)
            asked = self._asked.setdefault(_key(owner, slug), time.time())
            return Dataset(owner, slug, slug, folders=(source,), ready=asked + wait)

    def status(self, dataset: Dataset) -> str:
        """A name of DatabundleVersionStatus [V]."""
        left = dataset.ready - time.time()
        if left <= 0:
            return "READY"
        whole = self.pending[_key(dataset.owner, dataset.slug)]
        done = min(max(0.0, 1 - left / whole), 0.999)
        return PENDING[int(done * len(PENDING))]

    def create(self, about: Dataset, files: list[tuple[str, Path]]) -> Dataset | str:
        """A new dataset with its first version, or Kaggle's `error` inside a 200."""
        if not is_name(about.slug):
            return "The dataset slug may hold letters, digits and dashes only"
        for what, text in {"slug": about.slug, "title": about.title}.items():
            if not MIN_NAME <= len(text) <= MAX_NAME:
                return f"The dataset {what} must be between {MIN_NAME} and {MAX_NAME} characters"
        if self.dataset(about.owner, about.slug):
            title = f'The requested title "{about.title}"'
            return f"{title} is already in use by a dataset. Please choose another title."
        return self.add_version(about, files)

    def add_version(self, dataset: Dataset, files: list[tuple[str, Path]]) -> Dataset | str:
        """The dataset with one more version made of these files (name and content)."""
        names = [name for name, _ in files]
        if not files or len(set(names)) < len(names) or not all(map(_is_file_name, names)):
            return "The files of a dataset need names of their own, and there must be one"
        home = self.folder / dataset.owner / dataset.slug
        with self._lock:
            current = self._created.get(_key(dataset.owner, dataset.slug), dataset)
            folder = home / f"v{len(current.folders) + 1}"
            folder.mkdir(parents=True, exist_ok=True)  # left by a server that died
            for name, content in files:
                shutil.copyfile(content, folder / name)
            wait = self.pending.get(_key(dataset.owner, dataset.slug), 0.0)
            grown = (*current.folders, folder)
            made = replace(current, folders=grown, ready=time.time() + wait)
            record = asdict(made) | {"versions": len(grown)}
            del record["folders"]
            write_record(home / "dataset.json", record)
            self._created[_key(dataset.owner, dataset.slug)] = made
        return made

    def is_created(self, dataset: Dataset) -> bool:
        """Whether it was made here and so can get another version."""
        return _key(dataset.owner, dataset.slug) in self._created

    def attachable(self, account: str, owner: str, slug: str, version: str) -> Path | None:
        """The folder that a run gets; None where the dataset is dropped.

        That is: unknown, another's private one, without that version, or not READY yet [A].
        """
        dataset = self.dataset(owner, slug)
        if dataset is None or not may_see(dataset, account) or self.status(dataset) != "READY":
            return None
        if not version or not self.is_created(dataset):
            return dataset.folder()
        return dataset.folder(int(version)) if version.isdecimal() else None

    def model(self, slug: str) -> tuple[Instance, ...]:
        """The instances of a model; none where there is no such model."""
        if self.inputs is None or not is_name(slug):
            return ()
        found: dict[tuple[str, str], list[int]] = {}
        for folder in sorted((self.inputs / slug).glob("*/*/*")):
            if folder.is_dir() and folder.name.isdecimal() and int(folder.name):
                instance = (folder.parent.parent.name, folder.parent.name)
                found.setdefault(instance, []).append(int(folder.name))
        return tuple(Instance(*names, tuple(sorted(found[names]))) for names in found)

    def model_folder(self, source: str) -> tuple[str, Path] | None:
        """Of `owner/model/framework/instance/version`: the same in the form of a mount, and the
        folder; None where there is none.
        """
        parts = source.split("/")
        if self.inputs is None or len(parts) != 5 or not all(map(is_name, parts)):
            return None
        owner, model, framework, instance, version = parts
        folder = self.inputs / model / framework.lower() / instance / version
        if not version.isdecimal() or not folder.is_dir():
            return None
        return "/".join((owner, model, framework.lower(), instance, version)), folder


def is_name(text: str) -> bool:
    """Whether it can be a slug, and so the name of a folder."""
    return bool(_NAME.fullmatch(text))


def may_see(dataset: Dataset, account: str) -> bool:
    """Whether it is public or the account's own."""
    return not dataset.private or dataset.owner.lower() == account.lower()


def write_record(path: Path, record: dict[str, Any]) -> None:
    """JSON, whole or not at all: a server that dies leaves the file as it was."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _key(owner: str, slug: str) -> str:
    return f"{owner}/{slug}".lower()


def _is_file_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
