"""What the project file may contain, as models, and the `Config` that all of it becomes."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pathspec import GitIgnoreSpec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kernelkit.errors import ConfigError

RESERVED_NAMES = frozenset(
    {"BUNDLE", "SRC", "file", "kernelkit_run", "kernelkit_runtime", "parameters", "result"}
    | {"Path", "base64", "print", "str", "sys", "tempfile", "zlib"}
    | {"In", "Out", "exit", "quit", "get_ipython"}
)
"""Names that the notebook's own cells or IPython use, so that no parameter may have them."""


LONGEST_NAME, LONGEST_PATH = 255, 2048  # bytes, of a part and of all; Linux takes 4096 from "/" on
_SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_KERNEL_ID = re.compile(rf"(?:[A-Za-z0-9_-]+/)?{_SLUG}")


DESCRIPTION_CHARACTERS = 20_000  # several pages; the notebook holds it twice

THIS_PROJECT = "project"
"""In `pip`: the dependencies that [project] declares."""


Parameter = Any
"""A TOML value that is also a Python literal: str, int, finite float, bool, lists and tables."""


def _kernel_id(value: str) -> str:
    if not _KERNEL_ID.fullmatch(value):
        raise ValueError('must be "slug" or "owner/slug", in small letters, digits and dashes')
    return value


def _entry(value: str) -> str:
    if value.endswith(".py"):
        return str(PurePosixPath(_inside(value)))
    module, colon, function = value.partition(":")
    words = [*module.split("."), *([function] if colon else [])]
    if not all(word.isidentifier() for word in words):
        raise ValueError('must read "package.module:function", "package.module" or "script.py"')
    return value


def is_script(entry: str) -> bool:
    """Whether an entry runs as a program, with a command line, instead of being called."""
    return ":" not in entry


def entry_module(entry: str) -> str:
    """The module of an entry, as Python imports it: `src/train.py` runs as the module `train`."""
    if entry.endswith(".py"):
        return PurePosixPath(entry).stem
    return entry.partition(":")[0]


def _package_path(value: str) -> str:
    return value if value == "." else str(PurePosixPath(_inside(value)))


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError("must be a path below the folder, with forward slashes")
    sizes = [len(part.encode(errors="surrogatepass")) for part in path.parts]
    if max(sizes) > LONGEST_NAME or sum(sizes) + len(sizes) > LONGEST_PATH:
        raise ValueError("is longer than a disk accepts")
    return value


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def is_pattern(line: str) -> bool:
    """Whether a line is a valid pattern of .gitignore; git ignores invalid ones."""
    try:
        GitIgnoreSpec.from_lines([line]).match_file("any")
    except (ValueError, re.error):
        return False
    return True


def _pattern(value: str) -> str:
    if not value.strip() or "\n" in value or not is_pattern(value):
        raise ValueError("must be a pattern as in .gitignore")
    return value


_REMOTE_ADDRESS = re.compile(r"(?!(?:\w+\+)?file:)[a-z][a-z+]*://", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{\w+\}")


def pip_requirement(value: str) -> str:
    """A line of `pip`, if it is one.

    Raises:
        ValueError: it is no requirement, or one that only this machine can meet.
    """
    if value == THIS_PROJECT or value.endswith(".txt"):
        return value  # `all_requirements` reads it
    try:
        address = Requirement(value).url
        if address is not None and not _REMOTE_ADDRESS.match(address):
            raise ValueError("names a file of this machine, which the run does not have")
        if _VARIABLE.search(value):
            raise ValueError("names a variable of this machine, which the run does not have")
    except InvalidRequirement as error:
        raise ValueError(f"is not a requirement: {error}".splitlines()[0]) from None
    return value


def _argument_name(value: str) -> str:
    if not value.isidentifier() or keyword.iskeyword(value) or value in RESERVED_NAMES:
        raise ValueError("must be the name of a parameter of the entry")
    return value


def _module_name(value: str) -> str:
    if not all(part.isidentifier() for part in value.split(".")):
        raise ValueError('must be the name of a module, such as "cupy" or "package.module"')
    return value


def _variable(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("must be the name of an environment variable, never the address itself")
    return value


def _number(least: float, most: float, *, or_zero: bool = False) -> AfterValidator:
    """A finite number in a range; a section is strict, so true and text are not numbers."""

    def check(value: float) -> float:
        if least <= value <= most or (or_zero and value == 0):  # nan is neither
            return value
        zero = "0, or " if or_zero and least > 0 else ""
        raise ValueError(f"must be {zero}from {least:,.10g} to {most:,.10g}")

    return AfterValidator(check)


def _description(value: str) -> str:
    if len(value) > DESCRIPTION_CHARACTERS:
        raise ValueError(f"must have at most {DESCRIPTION_CHARACTERS:,} characters")
    return _inside(value) if is_markdown_file(value) else value.strip()


def is_markdown_file(value: str) -> bool:
    """Whether a description names a file, and is not the text itself."""
    return value.endswith(".md") and "\n" not in value and " " not in value


Layout = Literal["auto", "cells", "compressed", "dataset"]


Arguments = Literal["--key value", "--key=value", "key=value"]
"""How a script takes its parameters; the last one is Hydra's."""


MetricGoal = Literal["minimize", "maximize"]
Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "none"]
ChainKernels = Literal["two kernels", "one kernel"]

STALL_MINUTES = 30.0
LEAST_STALL_MINUTES = 0.1  # a run prints its first line later than that
MOST_HOURS = 1000.0  # no session of Kaggle lasts nearly as long
MOST_TRIALS = 100_000  # each is a session, or a part of one
MOST_SESSIONS = 100  # at once; Kaggle allows less than ten
MOST_RETRIES = 100
Hours = Annotated[float, _number(0, MOST_HOURS)]
DeadlineHours = Annotated[float, _number(0.01, MOST_HOURS)]
StallMinutes = Annotated[float, _number(LEAST_STALL_MINUTES, 60 * MOST_HOURS, or_zero=True)]
Seconds = Annotated[int, _number(1, 2**31 - 1)]
PackagePath = Annotated[str, AfterValidator(_package_path)]
RelativePath = Annotated[str, AfterValidator(_inside)]
Pattern = Annotated[str, AfterValidator(_pattern)]
PipRequirement = Annotated[str, AfterValidator(pip_requirement)]
ModuleName = Annotated[str, AfterValidator(_module_name)]
KernelId = Annotated[str, AfterValidator(_kernel_id)]


class Section(BaseModel):
    """A table of the project file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class KernelSettings(Section):
    """`[tool.kernelkit.kernel]`: fields and names of kernel-metadata.json."""

    id: KernelId
    """"owner/slug", or the slug alone: the owner then comes from the credentials."""

    title: str
    """Kaggle derives the slug of a new kernel from it, so both must agree."""

    is_private: bool = True
    enable_gpu: bool = False
    """Deprecated by Kaggle in favor of `machine_shape`, but still sent."""

    enable_tpu: bool = False
    enable_internet: bool = False
    machine_shape: str = ""
    """The accelerator, such as "NvidiaTeslaT4"; empty for a CPU."""

    competition_sources: tuple[str, ...] = ()
    dataset_sources: tuple[str, ...] = ()
    kernel_sources: tuple[str, ...] = ()
    model_sources: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    docker_image: str = ""
    docker_image_pinning_type: Literal["", "original", "latest"] = ""
    session_timeout_seconds: Seconds | None = None
    """Seconds after which Kaggle ends the run; Kaggle's own limit when left out."""

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """The declared data sources by kind."""
        return {
            "competition_sources": self.competition_sources,
            "dataset_sources": self.dataset_sources,
            "kernel_sources": self.kernel_sources,
            "model_sources": self.model_sources,
        }

    @property
    def slug(self) -> str:
        """The kernel's name within its owner's account."""
        return self.id.rpartition("/")[2]

    @property
    def owner(self) -> str | None:
        """The account, where the project file names one."""
        return self.id.rpartition("/")[0] or None

    @property
    def wants_gpu(self) -> bool:
        """A shape that names a GPU asks for one, whatever `enable_gpu` says."""
        return self.enable_gpu or bool(
            self.machine_shape and "tpu" not in self.machine_shape.lower()
        )


class SubmissionSettings(Section):
    """`[tool.kernelkit.submission]`: what the check of a submission needs to know."""

    pixels: Annotated[int, _number(1, 2**53)] | None = None
    """Of one image, for run lengths: a run that ends outside is an error. None checks no end."""


@dataclass(frozen=True)
class DescribedParameter:
    """A parameter with its comments in the project file."""

    name: str
    value: Parameter
    above: tuple[str, ...] = ()
    """The lines of comment above it, without their marks."""

    beside: str = ""
    """The comment behind it, on its line."""


class SweepSettings(Section):
    """`[tool.kernelkit.sweep]`: how `kernelkit sweep` searches for the best parameters."""

    trials: Annotated[int, _number(1, MOST_TRIALS)] | None = None
    """How many; with `sampler = "grid"` the whole grid when left out."""

    sampler: Sampler = "tpe"
    """How the next parameters are chosen: from the results so far ("tpe"), at random, or one
    combination after the other."""

    sessions: Annotated[int, _number(1, MOST_SESSIONS)] = 2
    """How many run at once, at most: Kaggle's limit for GPUs is 2."""

    per_gpu: bool = False
    """One trial on each GPU of a session, as a process of its own; two processes on a CPU."""

    retries: Annotated[int, _number(0, MOST_RETRIES)] = 2
    """How often a trial is pushed again if Kaggle ended it; errors of the code are not repeated."""

    pruner: Pruner = "median"
    """Whether a trial is stopped early if it is worse than the median of the others."""

    seed: Annotated[int, _number(0, 2**32 - 1)] = 0
    """Of the sampler."""

    parameters: dict[str, Parameter] = Field(default_factory=dict)
    """Name → `{ low, high, log, step }` or a list of choices."""


class TrialSettings(Section):
    """One trial of a sweep that a session runs as a process of its own."""

    number: int
    parameters: dict[str, Parameter]
    """On top of those of the session."""


class PruningSettings(Section):
    """When a session ends a trial that reports worse values than the other trials did."""

    metric: str
    goal: MetricGoal
    medians: tuple[float, ...]
    """Of the other trials' values after 1, 2, … reports of the metric."""


class Profile(Section):
    """`[tool.kernelkit.profiles.NAME]`: what changes with `--profile NAME`."""

    parameters: dict[str, Parameter] = Field(default_factory=dict)
    kernel: dict[str, Parameter] = Field(default_factory=dict)


class ProjectFile(Section):
    """`[tool.kernelkit]` as it is written; `Config` explains the keys that both have."""

    package: Annotated[tuple[PackagePath, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
    entry: Annotated[str, AfterValidator(_entry)]
    outputs: tuple[str, ...]
    arguments: Arguments = "--key value"
    positional: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = ()
    files: Annotated[tuple[RelativePath, ...], BeforeValidator(_one_or_many)] = ()
    include: Annotated[tuple[Pattern, ...], BeforeValidator(_one_or_many)] = ()
    exclude: Annotated[tuple[Pattern, ...], BeforeValidator(_one_or_many)] = ()
    only_reachable: bool = False
    layout: Layout = "auto"
    pip: Annotated[tuple[PipRequirement, ...], BeforeValidator(_one_or_many)] = ()
    optional_imports: Annotated[tuple[ModuleName, ...], BeforeValidator(_one_or_many)] = ()
    description: Annotated[str, AfterValidator(_description)] = ""
    metric: str = ""
    metric_goal: MetricGoal | None = None
    gpu_reserve_hours: Hours = 0.0
    notify_env: Annotated[str, AfterValidator(_variable)] = ""
    notify_quota_hours: Hours = 0.0
    deadline_hours: DeadlineHours | None = None
    stall_minutes: StallMinutes = STALL_MINUTES
    chain: ChainKernels = "two kernels"
    resume_parameter: Annotated[str, AfterValidator(_argument_name)] = "resume_dir"
    templates: RelativePath | None = None
    image: RelativePath | None = None
    allow_secrets: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = ()
    kernel: KernelSettings
    submission: SubmissionSettings = SubmissionSettings()
    sweep: SweepSettings | None = None
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    profiles: dict[str, Profile] = Field(default_factory=dict)


class Config(Section):
    """All settings that decide what is rendered and where it is pushed."""

    project: Path
    """The folder of the project file, which also contains `build/` and `runs/`."""

    package: tuple[str, ...]
    """Folders of packages and files of single modules, relative to the project."""

    entry: str
    """A function ("package.module:function"), a module ("package.module") or a script ("x.py")."""

    outputs: tuple[str, ...]
    arguments: Arguments = "--key value"
    positional: tuple[str, ...] = ()
    """Parameters of a script that become plain words before its options, in this order."""

    files: tuple[str, ...] = ()
    """Files and folders that are carried next to the packages, relative to the project."""

    include: tuple[str, ...] = ()
    """Patterns as in .gitignore, of files to carry that are left out by default."""

    exclude: tuple[str, ...] = ()
    """Patterns as in .gitignore, of files to leave out; they win over `include`."""

    only_reachable: bool = False
    """Carry only what the entry imports, directly or not."""

    layout: Layout = "auto"
    """Where the files are: each in a cell ("cells"), all in the compressed cell ("compressed"), as
    few there as the size limit allows ("auto"), or all in a private dataset ("dataset")."""

    pip: tuple[str, ...] = ()
    """Requirements (PEP 508) that the run installs first, with those of the files that the project
    file names."""

    pip_hashes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Requirement → hashes of its files ("sha256:…"), where a requirements file states them."""

    optional_imports: tuple[str, ...] = ()
    """Modules without which the program works; what is below them is meant too."""

    description: str = ""
    """What the notebook does, in Markdown; the text itself, also where the project file names a
    file. Empty for the docstring of the package."""

    metric: str = ""
    """The number of the epochs that says how good a run is; empty to choose it by its name."""

    metric_goal: MetricGoal | None = None
    """None: decided by the name of the metric."""

    gpu_reserve_hours: float = 0.0
    """GPU hours of the week that no push may use."""

    notify_env: str = ""
    """The environment variable with the Apprise address that gets messages; its value is secret."""

    notify_quota_hours: float = 0.0
    """A message is also sent when fewer GPU hours are left."""
    deadline_hours: float | None = None
    """Hours that a run may take; None for what Kaggle and the quota allow, less a margin."""

    stall_minutes: float = STALL_MINUTES
    """Minutes without output, event or changed file after which a run ends itself; 0 for never."""

    chain: ChainKernels = "two kernels"
    """Whether the sessions of a chain alternate between two kernels."""

    resume_parameter: str = "resume_dir"
    """The parameter of the entry that takes the folder of the previous session's outputs."""

    templates: Path | None = None
    """The project's own templates; None for kernelkit's."""

    image: Path | None = None
    """The project's own snapshot of Kaggle's image; None for kernelkit's."""

    allow_secrets: tuple[str, ...] = ()
    """Places as preflight names them (`pkg/data.json:3`, `parameters.seed`) of what only looks like
    a secret, where no comment can say so; exact, without patterns."""

    kernel: KernelSettings
    lane_of: str = ""
    """The slug of the project's own kernel, where `kernel` is another one of a campaign."""

    submission: SubmissionSettings = SubmissionSettings()
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    comments: dict[str, tuple[tuple[str, ...], str]] = Field(default_factory=dict)
    """Of parameters: the comment lines above, and the comment on the line."""

    sweep: SweepSettings | None = None
    trials: tuple[TrialSettings, ...] = ()
    """Of a sweep, which the session runs side by side; empty for a run of the entry itself."""

    pruning: PruningSettings | None = None
    """For `trials`; None to let each of them end by itself."""

    profile: str | None = None
    endpoint: str | None = None
    """Address of a local Kaggle; None for the real one."""

    origins: dict[str, str] = Field(default_factory=dict)
    """Where each value is from that is not a default, by `parameters.NAME`, `kernel.FIELD`, KEY."""

    @property
    def keeps_folders(self) -> bool:
        """Whether the notebook has the project's own folders, and not the packages side by side.

        Scripts and files are found by their place in the project, so these need it.
        """
        return self.entry.endswith(".py") or "." in self.package or bool(self.files)

    def build_folder(self, name: str) -> Path:
        """The folder `build/NAME` of the project, the default of a command.

        Raises:
            ConfigError: it is a link out of the project, which may be somebody else's.
        """
        folder = self.project / "build" / name
        if not folder.resolve().is_relative_to(self.project.resolve()):
            raise ConfigError(
                f"{folder} leads out of the project through a link",
                "Remove the link, or name a folder: --out DIR.",
            )
        return folder

    @property
    def described_parameters(self) -> list[DescribedParameter]:
        """The parameters in their order, with their comments."""
        return [
            DescribedParameter(name, value, *self.comments.get(name, ((), "")))
            for name, value in self.parameters.items()
        ]
