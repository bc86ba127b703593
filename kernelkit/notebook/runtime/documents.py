"""The JSON documents that a run reads and writes, typed.

`BundleDocument` is what a run reads of the manifest that the notebook embeds. `RunManifestDocument`
is run-manifest.json. Their keys are a contract with the build side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypeAlias, TypedDict

RUN_MANIFEST_NAME = "run-manifest.json"
STALLED_NAME = "run-stalled.txt"
"""The stacks of a run that stalled so that only its process could be ended; empty before."""

Parameter: TypeAlias = "str | int | float | bool | list[Parameter] | dict[str, Parameter] | None"
"""A JSON value."""


class Hardware(TypedDict, total=False):
    """What the run's machine has."""

    machine: str
    cpus: int | None
    gpus: list[str]
    gpu_checked: bool


class KernelDocument(TypedDict):
    """The settings of the kernel that a run checks."""

    machine_shape: str | None
    enable_tpu: NotRequired[bool]
    session_timeout_seconds: NotRequired[int | None]


class FileDocument(TypedDict, total=False):
    """One file that the notebook carries; `executable` is absent where it is false."""

    path: str
    sha256: str
    executable: bool


class OptionDocument(TypedDict):
    """How a script takes one parameter."""

    name: str
    flag: str
    form: str
    off: str


class CommandDocument(TypedDict, total=False):
    """How a script is started: by its path, or by its module as `python -m` does."""

    path: str
    module: str
    arguments: str
    options: Sequence[OptionDocument]


class _StartDocument(TypedDict, total=False):
    """What only scripts and projects with files next to the packages have."""

    command: CommandDocument
    import_folders: Sequence[str]
    working_files: Sequence[str]


class DistributionDocument(TypedDict):
    """The metadata of the project's own distribution."""

    folder: str
    files: Mapping[str, str]


class WheelDocument(TypedDict):
    """One wheel that the run may install."""

    file: str
    sha256: str


class WheelsDocument(TypedDict):
    """The wheels of a private dataset, for a run without internet."""

    dataset: str
    python: str
    files: Sequence[WheelDocument]
    install: Sequence[str]
    """Requirements that the wheels satisfy."""


class TrialBundleDocument(TypedDict):
    """One trial of a sweep that the run starts as a process of its own."""

    number: int
    parameters: Mapping[str, Parameter]
    outputs: Sequence[str]


class PruningDocument(TypedDict):
    """When a trial is ended early: if it is worse than the median after as many reports."""

    metric: str
    goal: str
    medians: Sequence[float]


class BundleDocument(_StartDocument):
    """What a run reads in the embedded manifest.

    `push_id` and `session_seconds` are absent if kernelkit did not push.
    """

    digest: str
    push_id: NotRequired[str]
    session_seconds: NotRequired[float]
    deadline_hours: NotRequired[float]
    stall_minutes: NotRequired[float]
    distribution: NotRequired[DistributionDocument]
    wheels: NotRequired[WheelsDocument]
    metric: NotRequired[str]
    metric_goal: NotRequired[str]
    trials: NotRequired[Sequence[TrialBundleDocument]]
    pruning: NotRequired[PruningDocument]
    wants_gpu: bool
    outputs: Sequence[str]
    kernel: KernelDocument
    files: Sequence[FileDocument]
    third_party: Sequence[str]


class OutputDocument(TypedDict, total=False):
    """One output in run-manifest.json; the last two keys describe a csv."""

    path: str
    size: int
    sha256: str | None
    rows: int | None
    ids_sha256: str | None


class TrialDocument(TypedDict):
    """One trial in run-manifest.json."""

    number: int
    status: str
    error: str | None
    traceback: str | None
    seconds: float
    parameters: Mapping[str, Parameter]


class RunManifestDocument(TypedDict):
    """What run-manifest.json holds."""

    schema: int
    digest: str
    push_id: str | None
    status: str
    error: str | None
    traceback: str | None
    parameters: Mapping[str, Parameter]
    outputs: list[OutputDocument]
    trials: NotRequired[list[TrialDocument]]
    checkpoints: list[OutputDocument]
    incomplete: bool
    last_event: Mapping[str, Parameter]
    refreshed: str
    deadline: str
    versions: dict[str, str]
    hardware: Hardware
    started: str
    seconds: float
