"""Writes the first `[tool.kernelkit]` of a project, from what its source shows.

What is written is a suggestion: it names the entry, its parameters and the files that the program
writes, as far as literals in the source show them. Nothing of the project is executed.
"""

from __future__ import annotations

import contextlib
import json
import keyword
import lzma
import math
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import tomlkit
from tomlkit.items import InlineTable

from kernelkit.bundle.bundle import Bundle, read_bundle
from kernelkit.bundle.files import WHOLE_PROJECT, Arrangement, PackageFiles
from kernelkit.bundle.scripts import CommandLine, Option, OptionValue
from kernelkit.config import (
    LONGEST_TITLE,
    PROJECT_FILE,
    RESERVED_NAMES,
    SHORTEST_NAME,
    Config,
    KernelSettings,
    load_config,
    near_miss,
)
from kernelkit.errors import BundleError, ConfigError, KernelkitError
from kernelkit.notebook.preflight import check
from kernelkit.notebook.render import render
from kernelkit.project.hydra import hydra_settings
from kernelkit.project.survey import (
    Candidate,
    FileUse,
    FileUses,
    Source,
    candidates,
    downloads,
    file_uses,
    module_of,
    named_candidate,
    package_folder,
    settings_of,
)
from kernelkit.storage import (
    decoded,
    human_size,
    read_file,
    write_atomically,
)

LARGEST_FILE_BYTES = 200_000  # of a file that is carried because the program opens it
NOTEBOOK_DATA_BYTES = 400_000  # of all data, compressed, that a notebook can hold
LARGEST_DATA_BYTES = 200 << 20  # of all data that is carried because there is no other source
COMPRESSIBLE_BYTES = 16 << 20  # of data that may fit after all
COMPETITION = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")

_DATA_NAME = re.compile(
    r"(?:data|dataset|input|inputs|train|test|csv|root)(?:_?(?:data|dir|path|root|folder|file|csv))*"
)
_OUTPUT_NAME = re.compile(
    r"(?:out|output|outputs|save|result|results|work|working|log|logs|checkpoint|checkpoints|ckpt|"
    r"model|artifact|artifacts|submission|run)(?:_?(?:dir|path|root|folder|file|to))*"
)
_FOLDER_WORDS = re.compile(
    r"_?(?:data|dir|path|root|folder|file|csv)\b|^(?:data|dataset|input|root)s?"
)
_FOLDER_NAME = re.compile(r"_?(?:dir|path|root|folder|file|csv)$")
_DATA_PATH = re.compile(
    r"(?:\./|\.\./)*(?:/kaggle/input|kaggle/input|input|inputs|data|dataset)(?:/raw)?(?:/|$)"
)
_DATA_SUFFIXES = frozenset(
    (".csv", ".parquet", ".feather", ".npy", ".npz", ".h5", ".hdf5", ".zip", ".gz", ".png", ".jpg")
)
_GPU_LIBRARIES = frozenset({"torch", "tensorflow", "jax", "keras", "cupy"})
_SMALL = (  # parameters of a rehearsal: name, value
    (re.compile(r"(?:num_|n_|max_)?epochs?"), 1),
    (re.compile(r"(?:num_|n_|max_|train_)*(?:steps|iters|iterations)"), 10),
    (re.compile(r"n_estimators|num_boost_round|num_rounds|n_rounds"), 10),
    (re.compile(r"(?:num_|n_)?workers"), 0),
    (re.compile(r"(?:gradient|grad)_accum(?:ulation|ulate)?_(?:steps|iters|iter)"), 1),
    (re.compile(r"(?:eval|val|valid|test)_(?:steps|iters|iterations|batches)"), 2),
    (re.compile(r"(?:eval|val|save|log|ckpt|checkpoint)_(?:interval|every|freq|frequency)"), 5),
)
_COMPILES = re.compile(r"(?:use_|torch_)?compile")  # on a CPU, it takes longer than the rehearsal


@dataclass(frozen=True)
class InitPlan:
    """What `kernelkit init` would write, and what it found."""

    path: Path
    """The project file."""

    exists: bool
    """Whether it has `[tool.kernelkit]` already; then nothing is written."""

    text: str = ""
    """What is added at its end."""

    entry: str = ""
    candidates: tuple[Candidate, ...] = ()
    """Everything that could start the run, the most likely first."""

    inputs: tuple[str, ...] = ()
    """Slugs of the data sources, which a rehearsal needs as folders."""

    notes: tuple[str, ...] = ()
    """What a person should check."""


@dataclass
class _Draft:
    """The values of a project file while they are found."""

    project: Path
    competition: str | None
    parameters: dict[str, OptionValue] = field(default_factory=dict)
    """Dotted names are keys of tables."""

    elsewhere: dict[str, OptionValue] = field(default_factory=dict)
    """Values that a file of settings states, which no parameter needs to repeat."""

    positional: list[str] = field(default_factory=list)
    layout: str = "auto"
    files: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_init(
    project: Path, *, competition: str | None = None, entry: str | None = None
) -> InitPlan:
    """Read the project in a folder, and decide what its project file should say.

    Raises:
        ConfigError: there is no Python file, the entry is unknown, the slug of the competition is
            not one, or the project file cannot be read.
        BundleError: the package cannot be carried.
    """
    path = project / PROJECT_FILE
    existing = _existing(path)
    if existing.configured:
        return InitPlan(path, exists=True)
    if competition is not None and not COMPETITION.fullmatch(competition):
        raise ConfigError(
            f"--competition {competition}: not the slug of a competition",
            "Copy it from the address of the competition: kaggle.com/competitions/SLUG.",
        )
    sources = _sources(project)
    found = candidates(project, sources, existing.commands)
    chosen = _chosen(project, found, sources, entry)
    package, bundle = _carried(project, chosen.entry, sources)
    line = bundle.command_line or CommandLine("")
    if bundle.command_line is not None:  # with what its modules add
        chosen = replace(chosen, options=line.options, library=line.library)
    draft = _Draft(project, competition)
    modules = [Source(f.path, f.content) for f in bundle.files if f.module is not None]
    located = list(_in_project(bundle, modules))
    outputs_below = ""
    if line.library == "globals":
        _plan_settings_file(draft, sources, located, chosen)
    elif line.library == "hydra":
        outputs_below = _plan_hydra(draft, project, located, chosen)
    uses = file_uses(located, draft.elsewhere if line.library == "globals" else {})
    if not draft.elsewhere:
        _plan_parameters(draft, chosen.options)
    _plan_files(draft, uses.read, chosen.options)
    submits = any(b"submission" in source.content for source in modules)
    otherwise = "submission.csv" if submits else "*"
    _plan_outputs(draft, uses, chosen.options, otherwise, outputs_below)
    online = downloads(modules)
    if online:
        draft.notes.append(f"{online} downloads something: enable_internet is true")
    gpu = not _GPU_LIBRARIES.isdisjoint({*bundle.third_party, *bundle.optional})
    slug = _slug(existing.name or project.resolve().name)
    text = _text(draft, package, chosen, line, slug, gpu=gpu, online=bool(online))
    _require_toml(path, existing.text, text)
    return InitPlan(
        path,
        exists=False,
        text=text,
        entry=chosen.entry,
        candidates=tuple(found),
        inputs=(competition,) if competition else (),
        notes=tuple(draft.notes),
    )


def write_init(plan: InitPlan) -> None:
    """Add the plan's text to the project file; what is there stays as it is.

    Raises:
        LocalError: the file cannot be written.
    """
    content = read_file(plan.path) if plan.path.exists() else b""
    encoding = json.detect_encoding(content)  # editors of Windows write UTF-16
    before = content.decode(encoding)
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    added = gap + plan.text
    if "\r\n" in before:
        added = added.replace("\n", "\r\n")
    write_atomically(plan.path, (before + added).encode(encoding))


@dataclass(frozen=True)
class _Existing:
    """What init reads in a project file that is there already."""

    text: str = ""
    configured: bool = False
    name: str = ""
    commands: tuple[str, ...] = ()
    """The functions of `[project.scripts]`."""


def open_points(project: Path) -> list[str]:
    """What still stands between the project file and a push, one line for each problem."""
    try:
        config = load_config(project)
        kernel = render(read_bundle(config), config)
    except KernelkitError as error:
        return [str(error)]
    return [f"{problem.subject}: {problem.message}" for problem in check(kernel)]


def _existing(path: Path) -> _Existing:
    if not path.exists():
        return _Existing()
    try:
        text = decoded(read_file(path))
        document = tomllib.loads(text)
        tool, project = document.get("tool"), document.get("project")
        if not isinstance(project, dict):
            project = {}
        scripts = project.get("scripts")
        return _Existing(
            text=text,
            configured=isinstance(tool, dict) and "kernelkit" in tool,
            name=str(project.get("name", "")),
            commands=tuple(map(str, scripts.values())) if isinstance(scripts, dict) else (),
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Make it valid TOML first.") from None


def _provisional(project: Path, package: Sequence[str], entry: str) -> Config:
    """A configuration that reads the program, before there is a project file."""
    return Config(
        project=project.resolve(),
        package=tuple(package),
        entry=entry,
        outputs=("unknown",),
        only_reachable=True,
        kernel=KernelSettings(id="unknown", title="unknown"),
    )


def _sources(project: Path) -> list[Source]:
    config = _provisional(project, [WHOLE_PROJECT], "unknown.py")
    files = PackageFiles.find(config, Arrangement({}, (WHOLE_PROJECT,)))
    paths = [path for path in files.data(()) if path.endswith(".py")]
    if not paths and files.modules:
        files.require_modules()
    if not paths:
        raise ConfigError(
            f"there is no Python in {config.project}",
            "Go to the folder of your project, or name it: --project DIR.",
        )
    return [Source(path, files.content(path)) for path in paths]


def _chosen(
    project: Path, found: list[Candidate], sources: Sequence[Source], entry: str | None
) -> Candidate:
    if entry is None:
        if found:
            return found[0]
        raise ConfigError(
            f"nothing in {project.resolve()} looks like the start of a program",
            'Name it: --entry train.py, or --entry "package.module:function".',
        )
    for candidate in found:
        if candidate.entry == entry:
            return candidate
    if named := named_candidate(project, sources, entry):
        return named
    if (entry.endswith(".py") and (project / entry).is_file()) or ":" in entry:
        return Candidate(entry, (), "", 0)
    raise ConfigError(
        f"--entry {entry}: there is no such program in the project"
        f"{near_miss(entry, [c.entry for c in found])}",
        "Name a script, a module, or package.module:function. Found: "
        + (", ".join(c.entry for c in found) or "nothing")
        + ".",
    )


def _carried(project: Path, entry: str, sources: Sequence[Source]) -> tuple[list[str], Bundle]:
    """The value of `package`, and what the entry reaches of it."""
    module = "" if entry.endswith(".py") else entry.partition(":")[0]
    home = next((s.path for s in sources if module and _is_module(project, s.path, module)), "")
    if top := package_folder(project, home):
        with contextlib.suppress(BundleError):  # it may import what is next to it
            return [top], read_bundle(_provisional(project, [top], entry))
    return [WHOLE_PROJECT], read_bundle(_provisional(project, [WHOLE_PROJECT], entry))


def _is_module(project: Path, path: str, module: str) -> bool:
    name = module_of(project, path)
    return name in (module, f"{module}.__main__")


def _in_project(bundle: Bundle, modules: Sequence[Source]) -> Iterator[Source]:
    """The sources under their paths in the project."""
    for source in modules:
        root = bundle.roots.get(source.path.partition("/")[0], ".")
        yield Source(source.path if root == "." else f"{root}/{source.path}", source.content)


# Parameters, files, outputs.


def _plan_settings_file(
    draft: _Draft, sources: Sequence[Source], located: Sequence[Source], chosen: Candidate
) -> None:
    """The file of settings for a script whose command line sets its global variables.

    One is needed if it makes the script read files that are there, and the defaults do not.
    """
    defaults = {option.names[0]: option.default for option in chosen.options}
    files = {s.path: settings_of(s) for s in sources if s.path != chosen.entry}
    files = {path: v for path, v in files.items() if v and v.keys() <= defaults.keys()}

    def present(values: Mapping[str, OptionValue]) -> int:
        read = file_uses(located, values).read
        return sum((draft.project / use.path).exists() for use in read if use.path and not use.base)

    ranked = sorted(files, key=lambda path: (-present(files[path]), "train" not in path, path))
    if not ranked:
        return
    folder = str(PurePosixPath(ranked[0]).parent)
    if present(files[ranked[0]]) <= present({}):
        draft.notes.append(
            f"{len(ranked)} files can set the variables of {chosen.entry}, such as {ranked[0]}: "
            f'to use one, set positional = ["config_file"] and the parameter config_file'
        )
        return
    name = next(n for n in ("config_file", "settings_file", "first_word") if n not in defaults)
    draft.positional.append(name)
    draft.parameters[name] = ranked[0]
    draft.elsewhere = {**defaults, **files[ranked[0]]}
    draft.files.append(ranked[0] if folder == "." else f"{folder}/")
    if len(ranked) > 1:
        draft.notes.append(
            f"{name} is {ranked[0]}, whose data is there; others are {', '.join(ranked[1:])}"
        )


def _plan_hydra(draft: _Draft, project: Path, located: Sequence[Source], chosen: Candidate) -> str:
    """Overrides for what the YAML files say about data and outputs; where the outputs are."""
    entry = chosen.entry
    mine = (s for s in located if s.path == entry or module_of(project, s.path) == entry)
    source = next(mine, None)
    if source is None:
        return ""
    settings = hydra_settings(project, source)
    planned: dict[str, OptionValue] = {}
    for key, value in settings.values.items():
        option = Option((), "", required=value == "???", default=None if value == "???" else value)
        *_, above, name = ["", *key.split(".")]
        found = _value_of(draft, f"{above}_{name}".strip("_"), option, key)
        if found == option.default:
            found = _value_of(draft, name, option, key)
        if found != option.default:
            planned[key] = found
        elif option.required:
            draft.notes.append(_required_note(key))
    paths = {key: str(settings.values[key]) for key in planned}
    folders = {key.rpartition(".")[0] for key, path in paths.items() if "/" in path}
    for key, value in planned.items():
        is_beside = key.rpartition(".")[0] in folders and re.fullmatch(r"[\w.-]+", paths[key])
        if not is_beside:  # else it is a file in the folder that another key names
            draft.parameters[key] = value
    draft.elsewhere = {**settings.values}
    return f"{settings.run_folder}/" if settings.changes_folder else ""


def _plan_parameters(draft: _Draft, options: Sequence[Option]) -> None:
    subcommand = next((option for option in options if option.form == "subcommand"), None)
    if subcommand is not None:  # which of the options it takes is not known
        draft.notes.append(
            f"the program has subcommands: name one in [tool.kernelkit.parameters], such as "
            f'{subcommand.names[0]} = "train", with its options below'
        )
        return
    for option in options:
        name = next((n for n in option.names if _is_usable(n)), None)
        if name is None:
            continue
        value = _value_of(draft, name, option)
        if value is not None:
            draft.parameters[name] = value
        elif option.required:
            draft.notes.append(_required_note(name))


def _required_note(name: str) -> str:
    return f"{name} is required and has no default: add it to [tool.kernelkit.parameters]"


def _is_usable(name: str) -> bool:
    is_argument = name.isidentifier() and not keyword.iskeyword(name)
    return is_argument and name not in RESERVED_NAMES and not name.startswith("_")


def _value_of(draft: _Draft, name: str, option: Option, key: str = "") -> OptionValue:
    """The value of a parameter in a run; `key` is its whole name, if it has a longer one."""
    default = option.default
    is_text = default is None or isinstance(default, str)
    path = default if isinstance(default, str) else ""
    is_output = bool(_OUTPUT_NAME.fullmatch(name.lower()))
    is_word = bool(re.fullmatch(r"[\w-]+", path)) and not _FOLDER_NAME.search(name.lower())
    is_data = bool(_DATA_PATH.match(path) or (_DATA_NAME.fullmatch(name.lower()) and not is_word))
    if not is_text or option.form == "switch":
        pass
    elif is_output and (path in ("", ".", "./") or path.startswith("/")):
        name_of_file = PurePosixPath(path).name if PurePosixPath(path).suffix else ""
        return f"kaggle://working/{name_of_file}".rstrip("/")
    elif is_data and not is_output:
        return _data_address(draft, key or name, path, option)
    if isinstance(default, float) and not math.isfinite(default):
        return None
    if isinstance(default, int) and abs(default) >= 2**63:
        return None
    return default


def _data_address(draft: _Draft, name: str, path: str, option: Option) -> OptionValue:
    """Where the run finds the data that a parameter names."""
    inside = _DATA_PATH.sub("", path.replace("\\", "/"), count=1).strip("/")
    slug = draft.competition
    if "/kaggle/input/" in path or path.startswith("../input/"):
        named, _, inside = inside.partition("/")
        slug = slug or named
        inside = inside if named == slug else f"{named}/{inside}".strip("/")
    elif slug is not None and inside.partition("/")[0] == slug:
        inside = inside.partition("/")[2]
    if slug is None and path and (draft.project / path).exists():
        return option.default  # `_plan_files` carries it
    if slug is None:
        draft.notes.append(
            f"{name} names data: give the competition with --competition, or add a dataset to "
            f'dataset_sources and set {name} = "kaggle://input/SLUG"'
        )
        return option.default
    if not inside and not path:  # `train_csv` without a default
        last = name.lower().rpartition(".")[2]
        word = _FOLDER_WORDS.sub("", last).strip("_")
        inside = f"{word}.csv" if "csv" in last and word else ""
    return "/".join(["kaggle:/", "input", slug, *([inside] if inside else [])])


def _plan_files(draft: _Draft, read: Sequence[FileUse], options: Sequence[Option]) -> None:
    """Files that the program opens by name; data only where it has no other source."""
    stated = [o.default for o in options] + list(draft.elsewhere.values())
    texts = [value for value in stated if isinstance(value, str) and value and "*" not in value]
    data: list[Path] = []
    for name in dict.fromkeys([*(use.path for use in read if not use.base), *texts]):
        path = posixpath.normpath(name)
        is_data = bool(_DATA_PATH.match(name))
        has_source = draft.competition is not None or path.startswith(("/", "..", "~"))
        if is_data and has_source:
            if name not in texts:
                draft.notes.append(
                    f"the program reads {name} by its name: make it a parameter with the value "
                    '"kaggle://input/SLUG/…"'
                )
            continue
        found = _existing_paths(draft.project, path)
        files = [f for top in found for f in [top, *top.rglob("*")] if f.is_file()]
        size = sum(f.stat().st_size for f in files)
        is_data = is_data or any(one.suffix in _DATA_SUFFIXES for one in found)
        if not found:
            continue
        if is_data and has_source:
            draft.notes.append(
                f'the program reads {path}: add it to "files", or make it a parameter with the '
                'value "kaggle://input/SLUG/…"'
            )
            continue
        if is_data and size > LARGEST_DATA_BYTES:
            draft.notes.append(
                f"the program reads {path} ({human_size(size)}): make it a dataset with "
                "`kernelkit dataset push`, and its place a parameter with the value "
                '"kaggle://input/SLUG"'
            )
            continue
        if not is_data and size > LARGEST_FILE_BYTES:
            continue
        data += files if is_data else []
        line = f"{path}/" if found[0].is_dir() and len(found) == 1 else path
        held = any(line.startswith(folder) for folder in draft.files if folder.endswith("/"))
        if line not in draft.files and not held:
            draft.files.append(line)
    if not _fits_into_notebook(data):
        draft.layout = "dataset"
        size = sum(file.stat().st_size for file in data)
        draft.notes.append(
            f"the program reads {human_size(size)} of data, too large for a notebook: layout = "
            '"dataset" carries it and the code in a private dataset'
        )


def _fits_into_notebook(files: Sequence[Path]) -> bool:
    """Whether the data is small enough, compressed if need be."""
    size = sum(file.stat().st_size for file in files)
    if not NOTEBOOK_DATA_BYTES < size <= COMPRESSIBLE_BYTES:
        return size <= NOTEBOOK_DATA_BYTES
    compressor = lzma.LZMACompressor()
    packed = 0
    for file in files:
        packed += len(compressor.compress(read_file(file)))
    return packed + len(compressor.flush()) <= NOTEBOOK_DATA_BYTES


def _existing_paths(project: Path, path: str) -> list[Path]:
    """The files and folders below the project that a path or a pattern names."""
    if path.startswith(("/", "..", "~")) or not path.strip("*."):
        return []
    try:
        return sorted(project.glob(path))
    except (ValueError, NotImplementedError, OSError):
        return []


def _plan_outputs(
    draft: _Draft, uses: FileUses, options: Sequence[Option], otherwise: str, below: str
) -> None:
    """The files that the program writes to its working folder, or to folders `below` it."""
    values: dict[str, OptionValue] = {**uses.defaults}
    values |= {key.rpartition(".")[2]: value for key, value in draft.elsewhere.items()}
    values |= {key.rpartition(".")[2]: value for key, value in draft.parameters.items()}
    values |= {name: _planned(draft, option) for option in options for name in option.names}
    for use in uses.written:
        name = _output_of(use, values)
        if name and not name.startswith(("/", "kaggle:")):
            name = below + name
        if name and name not in draft.outputs and name not in draft.files:
            draft.outputs.append(name)
    if not draft.outputs:
        draft.outputs.append(otherwise)
        draft.notes.append(
            "no file that the program writes was found: check outputs in [tool.kernelkit]"
        )


def _planned(draft: _Draft, option: Option) -> OptionValue:
    known = {**draft.elsewhere, **draft.parameters}
    return next((known[n] for n in option.names if n in known), option.default)


def _output_of(use: FileUse, values: Mapping[str, OptionValue]) -> str:
    """The path of an output below the working folder; empty where the source does not show it."""
    path = use.path
    if use.base in values:
        value = values[use.base]
        if not isinstance(value, str):
            return ""
        folder = value.removeprefix("kaggle://working").strip("/")
        if folder.startswith("kaggle:"):
            return ""
        path = f"{folder}/{path}".strip("/")
    elif use.base and not _OUTPUT_NAME.fullmatch(use.base.lower()):
        return ""
    is_led = any(str(value).startswith("kaggle://working") for value in values.values())
    is_unknown = bool(path and use.base) and use.base not in values and not is_led
    anywhere = "**/" if is_unknown and path != "submission.csv" else ""
    path = path.removeprefix("/kaggle/working/").removeprefix("./")
    pure = PurePosixPath(path)
    hidden = path.startswith(("/", "~", ".")) or ".." in pure.parts
    if not path or hidden or not pure.name.strip("*."):
        return ""
    return anywhere + re.sub(r"\*+", "*", path)


# The text.


def _slug(name: str) -> str:
    from slugify import slugify  # its tables take 10 ms

    slug = slugify(name)[:LONGEST_TITLE].strip("-")
    if len(slug) < SHORTEST_NAME:
        slug = f"{slug}-kernel".strip("-")
    return slug


def _text(
    draft: _Draft,
    package: Sequence[str],
    chosen: Candidate,
    line: CommandLine,
    slug: str,
    *,
    gpu: bool,
    online: bool,
) -> str:
    """The new part of the project file."""
    lines = ["[tool.kernelkit]"]
    lines.append(f"package = {_toml(package[0] if len(package) == 1 else list(package))}")
    lines.append(f"entry = {_toml(chosen.entry)}")
    if chosen.library == "fire" and not chosen.options:
        lines.append('arguments = "--key=value"')
    elif line.arguments != "--key value":
        reader = " # Hydra" if line.library == "hydra" else ""
        lines.append(f"arguments = {_toml(line.arguments)}{reader}")
    if draft.positional:
        lines.append(f"positional = {_toml(draft.positional)} # words before the others")
    if draft.files:
        lines.append(f"files = {_toml(draft.files)} # carried next to the code")
    if draft.layout != "auto":
        lines.append(f"layout = {_toml(draft.layout)} # data too large for a notebook")
    lines.append(f"outputs = {_toml(draft.outputs)} # the run fails if one of them is missing")
    title = " ".join(word.capitalize() for word in slug.split("-"))
    lines += ["", "[tool.kernelkit.kernel]", f"id = {_toml(slug)}", f"title = {_toml(title)}"]
    if gpu:
        lines += ['machine_shape = "NvidiaTeslaT4"', "enable_gpu = true"]
    if online:
        lines.append("enable_internet = true")
    if draft.competition:
        lines.append(f"competition_sources = {_toml([draft.competition])}")
    if draft.parameters:
        lines += ["", "[tool.kernelkit.parameters]"]
        lines += _toml_lines(draft.parameters)
    lines += _smoke(draft, gpu)
    return "\n".join(lines) + "\n"


def _smoke(draft: _Draft, gpu: bool) -> list[str]:
    """A profile that makes a rehearsal short."""
    small: dict[str, OptionValue] = {}
    for name, value in {**draft.elsewhere, **draft.parameters}.items():
        last = name.rpartition(".")[2].lower()
        for pattern, few in _SMALL:
            if pattern.fullmatch(last) and type(value) is int and value > few:
                small[name] = few
        if _COMPILES.fullmatch(last) and value is True:
            small[name] = False
        if isinstance(value, str) and value.startswith("cuda"):
            small[name] = "cpu"
    tables = {name.partition(".")[0] for name in small if "." in name}
    same = {n: v for n, v in draft.parameters.items() if n.partition(".")[0] in tables}
    head = "[tool.kernelkit.profiles.smoke"
    lines = ["", f"{head}.parameters] # for `kernelkit rehearse --profile smoke`"]
    lines += _toml_lines({**same, **small})
    if gpu:
        lines += ["", f"{head}.kernel]", 'machine_shape = ""', "enable_gpu = false"]
    return lines


def _toml_lines(values: Mapping[str, OptionValue]) -> list[str]:
    """One line for each parameter; dotted names become keys of a table."""
    lines: dict[str, str] = {}
    tables: dict[str, InlineTable] = {}
    for name, value in values.items():
        top, *rest = name.split(".")
        if not rest:
            lines[top] = _toml(value)
            continue
        table = tables.setdefault(top, tomlkit.inline_table())
        for key in rest[:-1]:
            table = table.setdefault(key, tomlkit.inline_table())
        table[rest[-1]] = value
        lines[top] = tables[top].as_string()
    return [f"{name} = {text}" for name, text in lines.items()]


def _toml(value: OptionValue | list[str]) -> str:
    return tomlkit.item(value).as_string()


def _require_toml(path: Path, before: str, text: str) -> None:
    """Raise if the text cannot stand at the end of the project file."""
    try:
        tomllib.loads(f"{before}\n{text}")
    except ValueError as error:
        raise ConfigError(
            f"[tool.kernelkit] cannot be added at the end of {path}: {error}",
            "Write `[tool]` in its long form, with one heading per table.",
        ) from None
