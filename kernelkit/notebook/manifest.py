"""The two JSON documents that leave with a notebook, as typed models.

`Manifest` is embedded in the notebook and kept as `bundle.json`: it says what was sent. The code
that runs inside the notebook reads it as plain JSON, so its keys are a contract. `KernelMetadata`
is `kernel-metadata.json`, which the official client reads.

A manifest of another version stays readable: a key that it lacks takes its default, and a key that
this version does not know is kept and written back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kernelkit.bundle.git import Provenance
from kernelkit.bundle.scripts import OptionForm
from kernelkit.config import KernelSettings, MetricGoal, Parameter
from kernelkit.storage import parse_model

NOTEBOOK_NAME = "notebook.ipynb"
METADATA_NAME = "kernel-metadata.json"
BUNDLE_NAME = "bundle.json"
MANIFEST_SCHEMA = 1


class Document(BaseModel):
    """A JSON file as a model that keeps keys which it does not know."""

    model_config = ConfigDict(extra="allow", frozen=True)

    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    @property
    def document(self) -> dict[str, JsonValue]:
        """The JSON object, with the keys that were given, in their order."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def updated(self, **changes: object) -> Self:
        """A copy with other values.

        Raises:
            ValidationError: a value has the wrong type.
        """
        return type(self).model_validate({**self.document, **changes})


class ManifestFile(Document):
    """One file that the notebook carries."""

    path: str
    """Below the folder that holds the package: `pkg/sub/mod.py`."""

    sha256: str
    """Of the content, in hexadecimal."""

    size: int = 0
    """In bytes."""

    executable: bool = False
    """Whether its owner may run it as a program; the key is absent where it is false."""


class ManifestOption(Document):
    """How a script takes one parameter; see `kernelkit.bundle.scripts.Option`."""

    name: str
    flag: str
    form: OptionForm
    off: str = ""


class ManifestCommand(Document):
    """How a script is started."""

    path: str = ""
    """Of a script, below the sources; empty for a module."""

    module: str = ""
    """As for `python -m`; empty for a script."""

    arguments: str
    """The form of the parameters on the command line."""

    options: tuple[ManifestOption, ...] = ()
    """Of the parameters, as far as the source of the script shows them."""


class ManifestDistribution(Document):
    """The metadata that the run installs for the project's own distribution."""

    name: str
    version: str = ""
    folder: str
    """Next to the sources: `my_package-1.0.dist-info`."""

    files: dict[str, str] = Field(default_factory=dict)
    """Name in that folder → text."""


class ManifestWheel(Document):
    """One wheel that the run may install."""

    file: str
    sha256: str


class ManifestWheels(Document):
    """What a run without internet installs, from a private dataset."""

    dataset: str
    """Its slug; it belongs to the account that pushes."""

    python: str
    """For which Python the wheels were chosen: "3.12"."""

    files: tuple[ManifestWheel, ...]
    install: tuple[str, ...]
    """Requirements (PEP 508) that the wheels satisfy."""


class ManifestKernel(KernelSettings):
    """The kernel's settings as they were rendered; its `id` is the slug, without the owner."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=False)

    id: str = ""
    title: str = ""


class ManifestTrial(Document):
    """One trial of a sweep that the run starts as a process of its own."""

    number: int
    parameters: dict[str, Parameter]
    """On top of those of the run."""

    outputs: tuple[str, ...]
    """Below the folder of the trial, `trial-<number>`."""


class ManifestPruning(Document):
    """When the run ends a trial early; see `kernelkit.config.PruningSettings`."""

    metric: str
    goal: MetricGoal
    medians: tuple[float, ...]


class Manifest(Document):
    """What a notebook was made from: the one thing that build side and run side share."""

    schema_version: int = Field(default=MANIFEST_SCHEMA, alias="schema")
    kernelkit: str = ""
    """The version that rendered the notebook."""

    digest: str
    """SHA-256 over sources, parameters, settings and templates; the owner is not part of it."""

    source_digest: str = ""
    """SHA-256 over the path and content of every file, and nothing else."""

    slug: str = ""
    """The kernel's name within its owner's account."""

    push_id: str | None = None
    """Which push sent the notebook: another one each time, and not part of the digest. Absent in a
    rendered notebook, so also in a push by another client."""

    session: str | None = None
    """The mark of a campaign's session, by which it is found again; absent in other runs."""

    profile: str | None = None
    wants_gpu: bool = False
    roots: dict[str, str] = Field(default_factory=dict)
    """Top of each package → the folder of the project that holds it."""

    entry: str = ""
    """`package.module:function`, `package.module` or `script.py`."""

    command: ManifestCommand | None = None
    """How the entry is started; None where it is a function."""

    import_folders: tuple[str, ...] = ("",)
    """Folders of the sources that are on `sys.path`, in this order."""

    working_files: tuple[str, ...] = ()
    """Carried paths that are also in the working folder while the entry runs."""

    code_dataset: str = ""
    """The dataset that holds the files, without its owner; the key is absent where the notebook
    carries them."""

    outputs: tuple[str, ...]
    """The files that a run must leave."""

    distribution: ManifestDistribution | None = None
    """None where the project states no name and version; the key is then absent."""

    description: str = ""
    """What the notebook does, in Markdown; the key is absent where that is not known."""

    metric: str = ""
    """The number of the epochs that says how good the run is; not part of the digest."""

    metric_goal: MetricGoal | None = None
    pip: tuple[str, ...] = ()
    wheels: ManifestWheels | None = None
    """None where the run installs nothing from wheels; the key is then absent."""

    deadline_hours: float | None = None
    """Hours that the run may take; None for what Kaggle allows. The key is absent then."""

    stall_minutes: float = 0.0
    """Minutes without a sign of life after which the run ends itself; 0 for never."""

    session_seconds: int | None = None
    """How long Kaggle and the quota let the run take, as its push knew it; not part of the digest.
    Absent in a rendered notebook."""

    layout: str = "auto"
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    trials: tuple[ManifestTrial, ...] = ()
    """Of a sweep, which the run starts side by side; the key is absent in other runs."""

    pruning: ManifestPruning | None = None
    """For `trials`; the key is absent where none is ended early."""

    kernel: ManifestKernel = ManifestKernel()
    provenance: Provenance = Provenance()
    files: tuple[ManifestFile, ...] = ()
    """In the order of the notebook."""

    third_party: tuple[str, ...] = ()
    """Top-level names that the package imports from elsewhere."""

    @property
    def entry_outputs(self) -> tuple[str, ...]:
        """What one call of the entry must leave in its working folder."""
        return self.trials[0].outputs if self.trials else self.outputs

    @property
    def entry_parameters(self) -> dict[str, Parameter]:
        """What the entry gets: of several trials, the first one's."""
        return {**self.parameters, **(self.trials[0].parameters if self.trials else {})}

    @classmethod
    def parse(cls, text: str | bytes, source: object = BUNDLE_NAME) -> Self:
        """Read a manifest from JSON; errors name `source` and the key.

        Raises:
            LocalError: the text is not JSON, or not a manifest.
        """
        return parse_model(text, cls, Path(str(source)))


class KernelMetadata(KernelSettings):
    """What kernel-metadata.json holds; its `id` lacks the owner where the project names none."""

    code_file: str = NOTEBOOK_NAME
    language: str = "python"
    kernel_type: str = "notebook"

    @property
    def document(self) -> dict[str, JsonValue]:
        """The fields in the order of the file, without the optional ones that are not set."""
        fields = self.model_dump(mode="json")
        first = ("id", "title", "code_file", "language", "kernel_type")
        optional = ("machine_shape", "docker_image", "docker_image_pinning_type")
        left_out = {name for name in optional if not fields[name]}
        if self.session_timeout_seconds is None:
            left_out.add("session_timeout_seconds")
        ordered = {name: fields[name] for name in first} | fields
        return {name: value for name, value in ordered.items() if name not in left_out}
