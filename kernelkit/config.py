"""The user's settings as one frozen `Config`: project file, profile, `--set`, environment.

All problems are reported at once, each with its key, and with a suggestion for a misspelled key.
"""

from __future__ import annotations

import difflib
import keyword
import math
import os
import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import tomlkit
import tomlkit.items
from packaging.requirements import InvalidRequirement, Requirement
from pathspec import GitIgnoreSpec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from kernelkit.errors import ConfigError
from kernelkit.storage import PathAllocator, UnsafePathError, decoded, safe_path

PROJECT_FILE = "pyproject.toml"

RESERVED_NAMES = frozenset(
    {"BUNDLE", "SRC", "file", "kernelkit_run", "kernelkit_runtime", "parameters", "result"}
    | {"Path", "base64", "print", "str", "sys", "tempfile", "zlib"}
    | {"In", "Out", "exit", "quit", "get_ipython"}
)
"""Names that the notebook's own cells or IPython use, so that no parameter may have them."""

OWN_OUTPUTS = frozenset(
    {"bundle.json", "push.json", "run.json", "run-manifest.json", "run-manifest.partial"}
    | {"__notebook__.ipynb", "__notebook_source__.ipynb", "__results__.html", "__results___files"}
    | {"__output__.json", "__script__.py", "custom.css", ".partial"}
)
"""Files that kernelkit or Kaggle itself writes next to a run's outputs."""

LONGEST_NAME, LONGEST_PATH = 255, 2048  # bytes, of a part and of all; Linux takes 4096 from "/" on

_ENDPOINT = re.compile(
    r"http://(127\.0\.0\.1|localhost|\[::1\])(?::([1-9][0-9]{0,4}))?/*", re.IGNORECASE | re.ASCII
)
_PLAIN_ADDRESS = re.compile(
    r"(?:[a-z]+://)?(?:[a-z0-9_.-]{0,99}|\[[0-9a-f:.]*\])(?::[0-9]{1,9})?(?:/[\w./-]{0,99})?",
    re.IGNORECASE | re.ASCII,
)
"""An address that can be repeated in an error: without user info, query or fragment."""

_SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_KERNEL_ID = re.compile(rf"(?:[A-Za-z0-9_-]+/)?{_SLUG}")

_NOT_WORDS = frozenset({"true", "false", "none", "null", "yes", "no"})  # meant as something else

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


THIS_PROJECT = "project"
"""In `pip`: the dependencies that [project] declares."""


def _requirement(value: str) -> str:
    if value == THIS_PROJECT or value.endswith(".txt"):
        return value  # `_requirements` reads it
    try:
        if "file:" in (Requirement(value).url or ""):
            raise ValueError("names a file of this machine, which the run does not have")
    except InvalidRequirement as error:
        raise ValueError(f"is not a requirement: {error}".splitlines()[0]) from None
    return value


def _module_name(value: str) -> str:
    if not all(part.isidentifier() for part in value.split(".")):
        raise ValueError('must be the name of a module, such as "cupy" or "package.module"')
    return value


Layout = Literal["auto", "cells", "compressed"]
Arguments = Literal["--key value", "--key=value", "key=value"]
"""How a script takes its parameters; the last one is Hydra's."""

MetricGoal = Literal["minimize", "maximize"]

PackagePath = Annotated[str, AfterValidator(_package_path)]
RelativePath = Annotated[str, AfterValidator(_inside)]
Pattern = Annotated[str, AfterValidator(_pattern)]
PipRequirement = Annotated[str, AfterValidator(_requirement)]
ModuleName = Annotated[str, AfterValidator(_module_name)]
KernelId = Annotated[str, AfterValidator(_kernel_id)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class KernelSettings(_Section):
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
    session_timeout_seconds: int | None = Field(default=None, gt=0, lt=2**31)
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


class SubmissionSettings(_Section):
    """`[tool.kernelkit.submission]`: what the check of a submission needs to know."""

    pixels: int | None = Field(default=None, gt=0)
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


class _Profile(_Section):
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    kernel: dict[str, Parameter] = Field(default_factory=dict)


class _ProjectFile(_Section):
    package: Annotated[tuple[PackagePath, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
    entry: Annotated[str, AfterValidator(_entry)]
    outputs: tuple[str, ...]
    arguments: Arguments = "--key value"
    files: Annotated[tuple[RelativePath, ...], BeforeValidator(_one_or_many)] = ()
    include: Annotated[tuple[Pattern, ...], BeforeValidator(_one_or_many)] = ()
    exclude: Annotated[tuple[Pattern, ...], BeforeValidator(_one_or_many)] = ()
    only_reachable: bool = False
    layout: Layout = "auto"
    pip: Annotated[tuple[PipRequirement, ...], BeforeValidator(_one_or_many)] = ()
    optional_imports: Annotated[tuple[ModuleName, ...], BeforeValidator(_one_or_many)] = ()
    metric: str = ""
    metric_goal: MetricGoal | None = None
    gpu_reserve_hours: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)] = 0.0
    templates: RelativePath | None = None
    image: RelativePath | None = None
    allow_secrets: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = ()
    kernel: KernelSettings
    submission: SubmissionSettings = SubmissionSettings()
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    profiles: dict[str, _Profile] = Field(default_factory=dict)


_SECTIONS: dict[tuple[str, ...], type[_Section]] = {
    (): _ProjectFile,
    ("kernel",): KernelSettings,
    ("submission",): SubmissionSettings,
}


class Config(_Section):
    """All settings that decide what is rendered and where it is pushed."""

    project: Path
    """The folder of the project file, which also contains `build/` and `runs/`."""

    package: tuple[str, ...]
    """Folders of packages and files of single modules, relative to the project."""

    entry: str
    """A function ("package.module:function"), a module ("package.module") or a script ("x.py")."""

    outputs: tuple[str, ...]
    arguments: Arguments = "--key value"
    files: tuple[str, ...] = ()
    """Files and folders that are carried next to the packages, relative to the project."""

    include: tuple[str, ...] = ()
    """Patterns as in .gitignore, of files to carry that are left out by default."""

    exclude: tuple[str, ...] = ()
    """Patterns as in .gitignore, of files to leave out; they win over `include`."""

    only_reachable: bool = False
    """Carry only what the entry imports, directly or not."""

    layout: Layout = "auto"
    """Which files go into the compressed cell: none, all, or as few as the size limit allows."""

    pip: tuple[str, ...] = ()
    """Requirements (PEP 508) that the run installs first, with those of the files that the project
    file names."""

    optional_imports: tuple[str, ...] = ()
    """Modules without which the program works; what is below them is meant too."""

    metric: str = ""
    """The number of the epochs that says how good a run is; empty to choose it by its name."""

    metric_goal: MetricGoal | None = None
    """None: decided by the name of the metric."""

    gpu_reserve_hours: float = 0.0
    """GPU hours of the week that no push may use."""

    templates: Path | None = None
    """The project's own templates; None for kernelkit's."""

    image: Path | None = None
    """The project's own snapshot of Kaggle's image; None for kernelkit's."""

    allow_secrets: tuple[str, ...] = ()
    """Places as preflight names them (`pkg/data.json:3`, `parameters.seed`) of what only looks like
    a secret, where no comment can say so; exact, without patterns."""

    kernel: KernelSettings
    submission: SubmissionSettings = SubmissionSettings()
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    comments: dict[str, tuple[tuple[str, ...], str]] = Field(default_factory=dict)
    """Of parameters: the comment lines above, and the comment on the line."""

    profile: str | None = None
    endpoint: str | None = None
    """Address of a local Kaggle; None for the real one."""

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


@dataclass(frozen=True)
class _RawProject:
    """[tool.kernelkit] as TOML has it."""

    table: Mapping[str, Any]

    def with_python_names(self) -> _RawProject:
        """With each parameter, also of the profiles, under the name that Python gives it.

        Raises:
            ConfigError: two names are the same for Python.
        """
        table = {**self.table}
        profiles = table.get("profiles")
        layers = profiles.values() if isinstance(profiles, dict) else ()
        tables = [layer for layer in layers if isinstance(layer, dict)]
        for one in (table, *tables):
            if "parameters" in one:
                one["parameters"] = _with_python_names(one["parameters"])
        return replace(self, table=table)

    def with_profile(self, profile: str | None) -> _RawProject:
        """The values of a profile on top of these."""
        if profile is None:
            return self
        stated = self.validated()
        if profile not in stated.profiles:
            known = ", ".join(sorted(stated.profiles)) or "none"
            raise ConfigError(
                f'no profile "{profile}"{near_miss(profile, stated.profiles)} (there is: {known})'
            )
        layer = stated.profiles[profile]
        parameters = {**self.table.get("parameters", {}), **layer.parameters}
        kernel = {**self.table["kernel"], **layer.kernel}
        return replace(self, table={**self.table, "parameters": parameters, "kernel": kernel})

    def with_settings(self, settings: Sequence[str]) -> _RawProject:
        """The values of `--set` on top of these."""
        stated = self.validated() if settings else None
        table = self.table
        for setting in settings:
            key, equals, text = setting.partition("=")
            key = key.strip()
            if not equals:
                raise ConfigError(f"--set {setting}: must read key=value")
            is_field = key.startswith("kernel.")
            section, name = ("kernel", key[7:]) if is_field else ("parameters", _python_name(key))
            if section == "parameters":
                assert stated is not None
                _require_known_parameter(stated, name)
            values = table.get(section, {})
            value = _toml_value(setting, text, values.get(name))
            table = {**table, section: {**values, name: value}}
        return replace(self, table=table)

    def validated(self) -> _ProjectFile:
        """The typed section.

        Raises:
            ConfigError: with every complaint, one a line.
        """
        table = {**self.table}
        if isinstance(kernel := table.get("kernel"), dict):
            table["kernel"] = _lists_as_tuples(kernel)
        try:
            return _ProjectFile.model_validate(_lists_as_tuples(table))
        except ValidationError as error:
            complaints = [_complaint(one) for one in error.errors(include_url=False)]
            raise ConfigError(
                "\n".join(complaints),
                f"Fix [tool.kernelkit] in {PROJECT_FILE}, or the --set option.",
            ) from None


def _lists_as_tuples(section: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """TOML has lists where the frozen models hold tuples; nested tables stay as they are."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def _complaint(error: ErrorDetails) -> str:
    """One line about one error: its key as in the file, what is wrong, the near miss."""
    names = [part for part in error["loc"] if isinstance(part, str)]
    items = [part for part in error["loc"] if isinstance(part, int)]
    *sections, key = names
    where = ".".join(["tool.kernelkit", *sections])
    if error["type"] == "extra_forbidden":
        known = _SECTIONS.get(tuple(sections), _Profile).model_fields
        return f'[{where}] has no key "{key}"{near_miss(key, known)}'
    if error["type"] == "missing":
        return f'[{where}] is missing the key "{key}"'
    item = f", item {items[0] + 1}" if items else ""
    return f'[{where}] "{key}"{item} = {_shown(error["input"])}: {_reason(error)}'


_TYPES = {  # of pydantic's errors: what a TOML file says instead
    "string_type": 'must be text in quotes: "…"',
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def _reason(error: ErrorDetails) -> str:
    """What is wrong with a value, in the words of TOML."""
    if error["type"] == "tuple_type":
        value = error["input"]
        example = f": [{tomlkit.item(value).as_string()}]" if isinstance(value, str) else ""
        return f"must be a list{example}"
    if error["type"] == "literal_error":
        return error["msg"].replace("Input should be", "must be")
    return _TYPES.get(error["type"], error["msg"].removeprefix("Value error, "))


def find_project(start: Path) -> Path:
    """The folder of the nearest project: `start`, or the first folder above it that is one.

    A project is a folder whose `pyproject.toml` has `[tool.kernelkit]`. If there is none, the
    nearest folder with a `pyproject.toml` is returned: reading it gives the precise error.

    Raises:
        ConfigError: neither `start` nor a folder above it has a `pyproject.toml`.
    """
    folders = [start, *start.parents]
    candidates = [folder for folder in folders if (folder / PROJECT_FILE).is_file()]
    if not candidates:
        raise ConfigError(
            f"no {PROJECT_FILE} in {start} or the folders above it",
            "Go to the project's folder, or name it: --project DIR.",
        )
    return next((folder for folder in candidates if _is_project(folder)), candidates[0])


def _is_project(folder: Path) -> bool:
    """Whether its project file has [tool.kernelkit]; invalid TOML may only mention it."""
    try:
        content = _project_text(folder)
    except ConfigError:
        return False
    try:
        return "kernelkit" in tomllib.loads(content).get("tool", ())
    except (ValueError, RecursionError, TypeError):
        return "[tool.kernelkit" in content


def load_config(
    project: Path,
    *,
    profile: str | None = None,
    settings: Sequence[str] = (),
    endpoint: str | None = None,
    only_reachable: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Read the project in the folder `project`; `settings` are `key=value` as given to `--set`.

    Raises:
        ConfigError: with every complaint, one a line.
    """
    raw = _read_project_file(project).with_profile(profile).with_settings(settings)
    stated = raw.validated()
    _check_parameters(stated.parameters)
    return Config(
        project=project.resolve(),
        package=stated.package,
        entry=stated.entry,
        outputs=_checked_outputs(stated.outputs, stated.kernel.slug),
        arguments=stated.arguments,
        files=stated.files,
        include=stated.include,
        exclude=stated.exclude,
        only_reachable=stated.only_reachable or only_reachable,
        layout=stated.layout,
        pip=tuple(_requirements(project, stated.pip)),
        optional_imports=stated.optional_imports,
        metric=stated.metric,
        metric_goal=stated.metric_goal,
        gpu_reserve_hours=stated.gpu_reserve_hours,
        templates=_templates_folder(project, stated.templates),
        image=_image_file(project, stated.image),
        allow_secrets=stated.allow_secrets,
        kernel=stated.kernel,
        submission=stated.submission,
        parameters=stated.parameters,
        comments=parameter_comments(project, profile),
        profile=profile,
        endpoint=checked_endpoint(
            environment.get("KERNELKIT_ENDPOINT") if endpoint is None else endpoint
        ),
    )


@dataclass(frozen=True)
class ConfigValue:
    """One value of the configuration, and where it comes from."""

    key: str
    """As `--set` and the project file name it: `layout`, `kernel.title`, `parameters.epochs`."""

    value: Parameter
    origin: str
    """The project file, a profile, --set, --only-reachable, an environment variable, or default."""


def config_values(
    project: Path,
    *,
    profile: str | None = None,
    settings: Sequence[str] = (),
    endpoint: str | None = None,
    only_reachable: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> list[ConfigValue]:
    """Every value of the merged configuration with its origin, in the order of the models.

    Raises:
        ConfigError: as `load_config`.
    """
    config = load_config(
        project,
        profile=profile,
        settings=settings,
        endpoint=endpoint,
        only_reachable=only_reachable,
        environment=environment,
    )
    stated = _read_project_file(project).validated()
    layer = stated.profiles[profile] if profile else _Profile()
    given = {setting.partition("=")[0].strip() for setting in settings}
    asked = {k if k.startswith("kernel.") else f"parameters.{k}" for k in given}
    by_environment = endpoint == environment.get("KERNELKIT_ENDPOINT")
    asked |= {"endpoint"} if endpoint is not None and not by_environment else set()
    asked |= {"only_reachable"} if only_reachable else set()

    def origin(key: str, section: _Section | None, name: str, over: Collection[str]) -> str:
        if key in asked:
            return "--set" if "." in key else f"--{key.replace('_', '-')}"
        if name in over:
            return f"profile {profile}"
        if key == "endpoint" and config.endpoint is not None:
            return "KERNELKIT_ENDPOINT"
        return PROJECT_FILE if section is None or name in section.model_fields_set else "default"

    top = [name for name in _ProjectFile.model_fields if name in Config.model_fields]
    values = [
        ConfigValue(
            name,
            getattr(stated if name in ("templates", "image") else config, name),
            origin(name, stated, name, {}),
        )
        for name in [*top, "endpoint"]
        if name not in ("kernel", "submission", "parameters")
    ]
    for prefix, section, over in (
        ("kernel", stated.kernel, layer.kernel),
        ("submission", stated.submission, {}),
    ):
        for name in type(section).model_fields:
            key, value = f"{prefix}.{name}", getattr(getattr(config, prefix), name)
            values.append(ConfigValue(key, value, origin(key, section, name, over)))
    for name, value in config.parameters.items():
        key = f"parameters.{name}"
        values.append(ConfigValue(key, value, origin(key, None, name, layer.parameters)))
    return values


def _requirements(project: Path, stated: Sequence[str]) -> Iterator[str]:
    """The requirements themselves: of [project], and of the files that the project file names."""
    for line in stated:
        if line == THIS_PROJECT:
            yield from _project_dependencies(project)
        elif line.endswith(".txt"):
            yield from _requirements_file(project, (project / line).resolve(), ())
        else:
            yield line


def _project_dependencies(project: Path) -> Iterator[str]:
    section = tomllib.loads(_project_text(project)).get("project")
    stated = section.get("dependencies") if isinstance(section, dict) else None
    if not isinstance(stated, list) or not all(isinstance(line, str) for line in stated):
        raise ConfigError(
            f'[tool.kernelkit] "pip" = "{THIS_PROJECT}": [project] has no list of dependencies',
            'Write them there, or name a file: pip = "requirements.txt".',
        )
    for line in stated:
        yield _checked_requirement(line, f"{PROJECT_FILE}: [project] dependencies")


def _requirements_file(project: Path, path: Path, above: tuple[Path, ...]) -> Iterator[str]:
    """The requirements of a file for pip, and of the files that it includes."""
    shown = os.path.relpath(path, project.resolve())
    try:
        text = decoded(path.read_bytes()).replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f'[tool.kernelkit] "pip": {shown} cannot be read: {reason}') from None
    number = 0
    for joined in re.split(r"(?<!\\)\n", text):
        start, number = number + 1, number + 1 + joined.count("\n")
        line = re.sub(r"(?:^|\s)#.*", "", joined.replace("\\\n", " ")).strip()
        line = re.sub(r"\s--hash=\S+", "", line).strip()
        place = f"{shown}:{start}"
        included = re.fullmatch(r"(?:-r|--requirement)[ =]?\s*(\S+)", line)
        if included:
            other = (path.parent / included[1]).resolve()
            if other not in (path, *above):
                yield from _requirements_file(project, other, (*above, path))
        elif line.startswith("-"):
            raise ConfigError(
                f"{place}: the run cannot use {line.split()[0]}",
                "List the requirements themselves, for example in a file of their own.",
            )
        elif line:
            yield _checked_requirement(line, place)


def _checked_requirement(line: str, place: str) -> str:
    try:
        return _requirement(line)
    except ValueError as error:
        raise ConfigError(f"{place}: {line!r} {error}", "Write it as in PEP 508.") from None


def checked_endpoint(endpoint: str | None) -> str | None:
    """The address of a local Kaggle without its last slash, None for the real Kaggle.

    Raises:
        ConfigError: it is not plain http on this machine, or empty: an unset variable of a script
            must not send a rehearsal to the real Kaggle.
    """
    if endpoint is None:
        return None
    found = _ENDPOINT.fullmatch(endpoint.strip())  # a file of settings may end in a line break
    if found and int(found[2] or 80) < 2**16:
        return found[0].rstrip("/").lower()
    plain = _PLAIN_ADDRESS.fullmatch(endpoint)
    shown = f" {endpoint!r}" if plain else " (not shown: it may contain a password)"
    raise ConfigError(
        f"the endpoint{shown} is not an http address of this machine",
        "Give one like http://127.0.0.1:8000, without a user, path or query, as `kernelkit "
        "emulator` prints it, or leave --endpoint and KERNELKIT_ENDPOINT out for the real Kaggle.",
    )


def near_miss(word: str, known: Iterable[str]) -> str:
    """`; did you mean "…"?` where one of `known` is close, else nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def project_folder(stated: Path) -> Path:
    """The folder that `--project` names; its project file names it as well.

    Raises:
        ConfigError: there is no such folder.
    """
    try:
        if stated.is_dir():
            return stated
        if stated.name == PROJECT_FILE and stated.is_file():
            return stated.parent
        problem = "is not a folder" if os.path.lexists(stated) else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise ConfigError(f"--project {stated} {problem}", f"Name the folder of a {PROJECT_FILE}.")


def _project_text(project: Path) -> str:
    """The text of a project file, in any Unicode encoding that its byte-order mark names.

    Raises:
        ConfigError: there is none, or it is not such a text.
    """
    path = project / PROJECT_FILE
    if not os.path.lexists(path):
        raise ConfigError(
            f"no {PROJECT_FILE} in {project.resolve()}",
            "Go to the project's folder, or name it: --project DIR.",
        )
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ConfigError(f"{path} is not a file")
        data = path.read_bytes()
        text = decoded(data).lstrip("\ufeff")  # some editors add a second mark
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not text in UTF-8: the byte 0x{data[error.start]:02x} in line {line} is in "
            "another encoding",
            "Save the file as UTF-8.",
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(
            f"{path} has the character NUL in line {line}: it is damaged, or in UTF-16 without a "
            "byte-order mark",
            "Save the file as UTF-8.",
        )
    return text


def _parsed_toml(path: Path, text: str) -> Mapping[str, Any]:
    """The document of a project file.

    Raises:
        ConfigError: it is not valid TOML, with the place.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:
        place = re.search(r"at line (\d+), column (\d+)", str(error))
        lines = text.replace("\r\n", "\n").split("\n")
        rest = lines[int(place[1]) - 1][int(place[2]) - 1 :] if place else ""
        odd = next((one for one in rest[:1] if not one.isascii() or not one.isprintable()), "")
        name = unicodedata.name(odd, "a control character") if odd else ""
        hint = f". The character there is U+{ord(odd):04X}, {name}" if odd else ""
        raise ConfigError(f"{path} is not valid TOML: {error}{hint}") from None


def _read_project_file(project: Path) -> _RawProject:
    path = project / PROJECT_FILE
    document = _parsed_toml(path, _project_text(project))
    tools = document.get("tool", {})
    tools = tools if isinstance(tools, dict) else {}
    if "kernelkit" not in tools:
        raise ConfigError(
            f"{path} has no [tool.kernelkit]{near_miss('kernelkit', tools)}",
            "The README shows the few lines that a project needs.",
        )
    table = tools["kernelkit"]
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.kernelkit must be a table")
    return _RawProject(table).with_python_names()


def _python_name(name: str) -> str:
    """The name as Python reads it: `µ` (the sign of micro) becomes `μ` (the Greek letter)."""
    return unicodedata.normalize("NFKC", name)


def _with_python_names(parameters: Parameter) -> Parameter:
    """A table of parameters, each under the name that Python gives it; else the value itself.

    Raises:
        ConfigError: two names are the same for Python.
    """
    if not isinstance(parameters, dict):
        return parameters
    renamed: dict[str, Parameter] = {}
    for name, value in parameters.items():
        if _python_name(name) in renamed:
            raise ConfigError(
                f'[tool.kernelkit.parameters] "{name}": another parameter has the same name '
                f'for Python, "{_python_name(name)}"',
                "Rename one of them.",
            )
        renamed[_python_name(name)] = value
    return renamed


def parameter_comments(
    project: Path, profile: str | None
) -> dict[str, tuple[tuple[str, ...], str]]:
    """The comments of a valid project file about each parameter: above it, and on its line.

    A profile's word goes before.

    Raises:
        ConfigError: its values are nested deeper than tomlkit reads.
    """
    text = _project_text(project)
    try:
        table: Any = tomlkit.parse(text)["tool"]
    except (ValueError, RecursionError) as error:  # tomllib accepts deeper nesting
        raise ConfigError(f"{project / PROJECT_FILE} cannot be read: {error}") from None
    table = table["kernelkit"]
    layers = [table.get("parameters", {})]
    if profile is not None:
        layers.append(table.get("profiles", {}).get(profile, {}).get("parameters", {}))
    comments: dict[str, tuple[tuple[str, ...], str]] = {}
    for layer in layers:
        for name, above, beside in _commented_keys(layer):
            if above or beside:
                comments[_python_name(name)] = above, beside
    return comments


def _commented_keys(table: Any) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Keys with the comments directly above and behind them."""
    above: list[str] = []
    for key, item in getattr(getattr(table, "value", None), "body", []):
        if isinstance(item, tomlkit.items.Comment):
            above.append(_words(item.trivia.comment))
            continue
        if key is not None:
            yield key.key, tuple(above), _words(item.trivia.comment)
        above = []


def _words(comment: str) -> str:
    return comment.lstrip("#").strip()


def _require_known_parameter(stated: _ProjectFile, name: str) -> None:
    """`--set` may name what the file names, in any profile: else a slip would be carried along."""
    known = set(stated.parameters).union(*(p.parameters for p in stated.profiles.values()))
    if name not in known:
        raise ConfigError(
            f"--set {name}: no such parameter{near_miss(name, known)}",
            "Parameters are named in [tool.kernelkit.parameters]; a field of the kernel is set "
            "as kernel.FIELD=value.",
        )


def _toml_value(setting: str, text: str, stated: Any) -> Any:
    """The value as TOML reads it; bare words are a string where no other type was stated."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        looks_otherwise = text[:1] in "[{\"'" or text.lower() in _NOT_WORDS
        if looks_otherwise or not isinstance(stated, str | None):
            raise ConfigError(
                f"--set {setting}: {text!r} is not a TOML value"
                + ("" if stated is None else f" (it stands at {_shown(stated)})"),
                "Write numbers plainly, true or false in small letters, text in quotes.",
            ) from None
        return text
    if list(parsed) != ["value"]:
        raise ConfigError(f"--set {setting}: one value at a time")
    return parsed["value"]


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # hexadecimal numbers may be of any length
        return "(too long to show)"


def _check_parameters(parameters: Mapping[str, Parameter]) -> None:
    complaints = []
    for name, value in parameters.items():
        where = f'[tool.kernelkit.parameters] "{name}"'
        if not name.isidentifier() or keyword.iskeyword(name):
            complaints.append(f"{where} cannot be the name of a Python argument")
        elif name in RESERVED_NAMES or name.startswith("_"):
            complaints.append(f"{where} is a name that the notebook itself uses")
        if not _is_literal(value):
            complaints.append(f"{where} = {_shown(value)} has no form as a Python literal")
    if complaints:
        raise ConfigError("\n".join(complaints), "Give text, numbers, true/false, lists or tables.")


def _is_literal(value: Parameter) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(_is_literal(item) for item in value)
    if isinstance(value, dict):
        return all(_is_literal(item) for item in value.values())
    if isinstance(value, int):
        return abs(value) < 2**63  # TOML promises no more
    return isinstance(value, str)


def _checked_outputs(outputs: Sequence[str], slug: str) -> tuple[str, ...]:
    """The outputs in the form of a listing: `results/` is a folder, `*.csv` a pattern.

    Raises:
        ConfigError: with every output that can never exist, or that no pull could write here.
    """
    own = {*OWN_OUTPUTS, f"{slug}.log"}
    own |= {f"{name.removesuffix('.zip')}.unpacked" for name in outputs if name.endswith(".zip")}
    paths = PathAllocator(Path(os.devnull), own)  # below it is nothing
    complaints, found = [], []
    folders: dict[str, PurePosixPath] = {}
    for output in outputs:
        try:
            path = _output_path(output)
            for folder in [*path.parents, *([path] if output.endswith("/") else [])]:
                if folders.setdefault(str(folder).casefold(), folder) != folder:
                    raise UnsafePathError("another output has that folder in other letters")
            is_folder = output.endswith("/")
            paths.take(f"{path}/*" if is_folder else str(path))
            found.append(f"{path}/" if is_folder else str(path))
        except UnsafePathError as error:
            complaints.append(
                f'[tool.kernelkit] "outputs": {output!r} cannot be an output: {error}'
            )
    if not outputs:
        complaints = ['[tool.kernelkit] "outputs" = []: a run without outputs cannot be verified']
    if complaints:
        raise ConfigError(
            "\n".join(complaints),
            'List files, folders ("results/") and patterns ("*.csv") below the working folder.',
        )
    return tuple(found)


def is_several(output: str) -> bool:
    """Whether a declared output is a folder or a pattern."""
    return output.endswith("/") or any(mark in output for mark in "*?[")


def _output_path(output: str) -> PurePosixPath:
    """The path of a file, folder or pattern below the working folder.

    Raises:
        UnsafePathError: it means no such path.
    """
    inside = re.match(r"(?:kaggle://working|/kaggle/working)/+(?P<path>.+)", output)
    if inside:
        raise UnsafePathError(f'write it as the run sees it from there: "{inside["path"]}"')
    if "://" in output:
        raise UnsafePathError("it is an address, and Kaggle keeps only the working folder")
    if output != output.strip() or output.startswith(("~", "!")):
        raise UnsafePathError("it begins or ends with a character that only a shell understands")
    if re.search(r"\{[^{}]*,[^{}]*\}", output):
        raise UnsafePathError("braces are not understood: list a pattern for each")
    return safe_path(output)


def _templates_folder(project: Path, stated: str | None) -> Path | None:
    if stated is None:
        return None
    folder = project / stated
    if not folder.is_dir():
        raise ConfigError(
            f'[tool.kernelkit] "templates" = "{stated}": no such folder in {project}',
            "Leave the key out to use the templates that come with kernelkit.",
        )
    return folder


def _image_file(project: Path, stated: str | None) -> Path | None:
    if stated is None:
        return None
    path = project / stated
    if not path.is_file():
        raise ConfigError(
            f'[tool.kernelkit] "image" = "{stated}": no such file in {project}',
            "`kernelkit doctor --probe` makes one; leave the key out to use kernelkit's own.",
        )
    return path
