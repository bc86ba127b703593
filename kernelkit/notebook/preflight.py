"""Finds what Kaggle would refuse, or run in another way than the user wants, before a push.

Every check is a pure function from a `Kernel` to its problems. All problems are shown at once.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import JsonValue

from kernelkit.bundle import image
from kernelkit.bundle.bundle import SourceFile
from kernelkit.bundle.image import Presence
from kernelkit.bundle.imports import REMOVED
from kernelkit.bundle.requirements import MAKE_WHEELS, InstallOrigin
from kernelkit.bundle.scripts import CommandLine
from kernelkit.bundle.secrets import (
    Credential,
    NamedText,
    SecretFinding,
    is_text,
    scan,
    search_bytes,
    searchable_text,
)
from kernelkit.config import (
    LONGEST_TITLE,
    P100,
    SHAPES,
    SHORTEST_NAME,
    closest,
    is_several,
    near_miss,
)
from kernelkit.notebook.layout import (
    SIZE_CAP_BYTES,
    SIZE_LIMIT_BYTES,
    how_to_shrink,
    table_of_largest,
)
from kernelkit.notebook.problems import Problem
from kernelkit.notebook.reader import read_cells
from kernelkit.notebook.render import Kernel
from kernelkit.notebook.runtime import HOURS_LEFT
from kernelkit.storage import counted

LARGE_BYTES = 1 << 20  # of a file that is not text; as a text, it takes 0.2 s to search
HEAD_BYTES = 1 << 16  # in which a file that is not text has a zero byte
OPTIONAL_NAMED = 5  # imports in one note
WARNING = "warning: "
"""The beginning of a piece of advice that most likely concerns a run that fails."""

PLACES = ("input", "working", "temp")  # that the runtime resolves
MOUNTS = ("competitions", "datasets", "notebooks", "models")  # folders of /kaggle/input since 2026
_MOUNTED = re.compile(r"(?:/kaggle|\.\.)/input/(?P<below>[\w.*-][\w./*-]*)")
_MOUNTS_IN_CODE = re.compile(
    rb"""["'](?P<whole>(?:/kaggle|\.\.)/input/[\w.*-][\w./*-]*)|"""
    rb"""["'](?P<base>(?:/kaggle|\.\.)/input)/?["']\)?\s*"""
    rb"""(?:[/,]\s*["']|\+\s*["']/?)(?P<rest>[\w.-][\w./-]*)"""
)
_MOUNTS_IN_SETTINGS = re.compile(
    rb"""(?:^|[\s"':=,\[(])(?P<whole>(?:/kaggle|\.\.)/input/[\w.*-][\w./*-]*)"""
)
_SETTINGS_SUFFIXES = (".yaml", ".yml", ".json", ".toml", ".cfg", ".ini", ".sh")
PLACES_SHOWN = 10  # of hard-coded paths

_SOURCE_FORMS = {
    "competition_sources": (r"[^/]+", "slug"),
    "dataset_sources": (r"[^/]+/[^/]+(/\d+)?", "owner/slug"),
    "kernel_sources": (r"[^/]+/[^/]+(/\d+)?", "owner/slug"),
    "model_sources": (r"[^/]+(/[^/]+){3}/\d+", "owner/model/framework/instance/version"),
}
"""Kind of source → the pattern of its full name, and that pattern in words."""

# Folders that every Linux machine has, so that a path there says nothing about this machine.
SYSTEM_FOLDERS = frozenset(
    {"kaggle", "tmp", "var", "usr", "bin", "sbin", "lib", "lib64", "etc", "dev", "proc", "sys"}
    | {"opt", "root", "run"}
)
_PERSONAL = re.compile(r"/home/|/Users/|~/|~$|[A-Za-z]:[\\/]|\\\\")
_ALMOST_AN_ADDRESS = re.compile(
    rf"kaggle:/*(?:{'|'.join((*PLACES, 'hours_left'))})(?:/|$)|/*kaggle://", re.IGNORECASE
)
_NAMES_A_PATH = re.compile(r"(?:^|_)(?:dir|directory|path|file|folder|root|data)$", re.IGNORECASE)


def check(kernel: Kernel, own: Collection[Credential] = ()) -> list[Problem]:
    """Every problem of the kernel; an empty list means that it may be pushed.

    `own` are this machine's credentials, which must not be sent.
    """
    problems = [problem for look in CHECKS for problem in look(kernel)]
    return [*problems, *check_secrets(kernel, own)]


def check_size(kernel: Kernel) -> Iterator[Problem]:
    """The source, as it is sent, is well below Kaggle's limit."""
    size = kernel.size
    if size <= SIZE_LIMIT_BYTES:
        return
    sizes = {share.path: share.size for share in kernel.budget if share.path}
    packed = sum(share.form == "compressed" for share in kernel.budget)
    archive = sum(share.sent for share in kernel.budget if share.form == "archive")
    compressed = (
        f", of which {packed:,} are compressed together: {archive:,} B as they are sent, and "
        f"{size - archive:,} B for everything else"
    )
    yield Problem(
        "notebook",
        f"{size:,} B as it is sent; Kaggle's limit is {SIZE_CAP_BYTES:,} B, and up to "
        f"{SIZE_LIMIT_BYTES:,} B are known to pass. {len(sizes):,} files have "
        f"{sum(sizes.values()):,} B on disk{compressed if archive else ''}. "
        + table_of_largest(sizes),
        how_to_shrink(kernel.manifest.layout),
    )


def check_names(kernel: Kernel) -> Iterator[Problem]:
    """The title and the slug agree: Kaggle makes the slug of a new kernel from its title."""
    from slugify import slugify  # its tables take 10 ms, and only a push needs them

    title, slug = kernel.metadata.title, kernel.slug
    follows = slugify(title) == slug and len(title) < SHORTEST_NAME  # its fix is the id's too
    for subject, name in [("title", title), *([] if follows else [("id", slug)])]:
        if len(name) < SHORTEST_NAME:
            yield Problem(
                subject,
                f'"{name}" has fewer than {SHORTEST_NAME} characters',
                "Choose a longer name.",
            )
    if len(title) > LONGEST_TITLE:
        yield Problem(
            "title",
            f"it has {len(title)} characters, and Kaggle accepts {LONGEST_TITLE}",
            "Choose a shorter title, and the id that belongs to it.",
        )
    if not title.isprintable() or title != title.strip():
        yield Problem(
            "title",
            f"{title!r} has a control character, or white space at its beginning or end",
            "Remove it.",
        )
    if slugify(title) != slug:
        yield Problem(
            "title",
            f'"{title}" becomes the slug "{slugify(title)}", but the id has "{slug}"',
            f'Set id = "{slugify(title)}", or a title that becomes "{slug}".',
        )


def check_accelerator(kernel: Kernel) -> Iterator[Problem]:
    """A GPU is requested by name, and the image's torch can use it."""
    fields = kernel.manifest.kernel
    if fields.enable_gpu and not fields.machine_shape:
        yield Problem(
            "machine_shape",
            "enable_gpu without a machine_shape gets Kaggle's default GPU, a P100, on which the "
            "image's torch cannot compute",
            'Set machine_shape = "NvidiaTeslaT4".',
        )
    if fields.machine_shape == P100:
        yield Problem(
            "machine_shape",
            "the image's torch has no code for a P100: it finds the card, and the first operation "
            "fails",
            'Set machine_shape = "NvidiaTeslaT4".',
        )
    if kernel.manifest.wants_gpu and fields.enable_tpu:
        yield Problem("enable_tpu", "requests a TPU in addition to a GPU", "Choose one of them.")
    yield from _contradictions(kernel)
    shape = fields.machine_shape
    if shape and shape not in SHAPES and (_meant_shape(shape) or not _may_be_new(shape)):
        yield Problem(
            "machine_shape",
            f'Kaggle knows no "{shape}"' + _did_you_mean(_meant_shape(shape)),
            f"Kaggle's names are {', '.join(SHAPES)}, or empty for a CPU.",
        )


def _contradictions(kernel: Kernel) -> Iterator[Problem]:
    """A shape decides what a run gets, whatever else the project file says."""
    shape, stated = kernel.metadata.machine_shape, kernel.metadata.model_fields_set
    is_tpu = shape.lower().startswith("tpu")
    if shape and not is_tpu and not kernel.metadata.enable_gpu and "enable_gpu" in stated:
        yield Problem(
            "enable_gpu",
            f'machine_shape = "{shape}" gets a GPU, and enable_gpu = false does not prevent it',
            'Set enable_gpu = true, or, for a run without a GPU, machine_shape = "".',
        )
    if is_tpu and kernel.metadata.enable_gpu:
        yield Problem(
            "enable_gpu",
            f'requests a GPU, and machine_shape = "{shape}" a TPU',
            "Choose one of them.",
        )
    if is_tpu and not kernel.metadata.enable_tpu and "enable_tpu" in stated:
        yield Problem(
            "enable_tpu",
            f'machine_shape = "{shape}" gets a TPU, and enable_tpu = false does not prevent it',
            'Set enable_tpu = true, or, for a run without a TPU, machine_shape = "".',
        )


def _meant_shape(shape: str) -> str:
    """The known shape that a misspelled one probably means; empty if it may be a new one."""
    core = _core(shape)
    by_core = {_core(known): known for known in SHAPES}
    if core in by_core:
        return by_core[core]
    without_count = re.sub(r"^\d+x(?=[a-z])|x\d+$", "", core)  # "T4 x2", as on Kaggle's pages
    if without_count in by_core:
        return by_core[without_count]
    if re.fullmatch(r"[a-z]{1,2}\d+\w*", core) and _may_be_new(shape):  # another model
        return ""
    by_name = {known.lower(): known for known in SHAPES}
    close = difflib.get_close_matches(shape.lower(), by_name, n=1, cutoff=0.8)
    same_numbers = close and re.findall(r"\d+", close[0]) == re.findall(r"\d+", shape)
    return by_name[close[0]] if same_numbers else ""


def _core(shape: str) -> str:
    """What distinguishes an accelerator: `t4` of "NvidiaTeslaT4", `v5e8` of "TpuV5E8"."""
    return re.sub(r"nvidia|tesla|gpu|tpu|[\W_]", "", shape.lower())


def _may_be_new(shape: str) -> bool:
    """Whether it has the form of Kaggle's names, so that it may have appeared since."""
    return re.fullmatch(r"Nvidia[A-Z]\w*\d\w*|Tpu[A-Z]\w*\d\w*", shape, re.ASCII) is not None


def _did_you_mean(name: str) -> str:
    return f'; did you mean "{name}"?' if name else ""


def check_inputs(kernel: Kernel) -> Iterator[Problem]:
    """Each `kaggle://input/<slug>` among the parameters is a declared source."""
    declared = _declared_slugs(kernel)
    for name, value in kernel.manifest.parameters.items():
        for text in _texts(value):
            for message, remedy in _address_problems(text, declared):
                yield Problem(f"parameters.{name}", message, remedy)


def _address_problems(text: str, declared: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a `kaggle://` address or with what was meant as one, and the remedy."""
    places = f"Use kaggle://{', kaggle://'.join(PLACES)}, or {HOURS_LEFT}."
    if not text.startswith("kaggle://"):
        if _ALMOST_AN_ADDRESS.match(text):
            yield f"{text} is not an address: the program would get the text itself", places
        return
    place, _, rest = text.removeprefix("kaggle://").partition("/")
    slug = rest.partition("/")[0]
    if text == HOURS_LEFT:
        return
    if ".." in rest.split("/"):
        yield f'{text} contains ".."', "Write the address of the folder itself."
    if place not in PLACES:
        yield f"{text} does not exist in a run", places
    elif place == "input" and slug not in declared:
        yield (
            f"needs kaggle://input/{slug}, which is not a source of this kernel",
            "Add it to competition_sources, dataset_sources or kernel_sources.",
        )


def check_paths(kernel: Kernel) -> Iterator[Problem]:
    """No parameter is a path that exists only on this machine, or only in older runs."""
    declared = _declared_slugs(kernel)
    for name, value in kernel.manifest.parameters.items():
        for text in _texts(value):
            mounted = _MOUNTED.match(text)
            if mounted:
                yield from _mount_problems(f"parameters.{name}", text, mounted["below"], declared)
            elif _is_only_here(text):
                yield Problem(
                    f"parameters.{name}",
                    f'"{text}" is a path of this machine, and a run does not have it',
                    "Make a dataset of it and use kaggle://input/<slug>, or kaggle://working for "
                    "what the run writes.",
                )


def _mount_problems(
    subject: str, text: str, below: str, declared: Collection[str]
) -> Iterator[Problem]:
    slug, address = _input_address(below)
    if slug and slug not in declared:
        yield Problem(
            subject,
            f'"{text}" needs {slug}, which is not a source of this kernel',
            f'Add it to the sources, and use "{address}".',
        )
    elif slug and below.partition("/")[0] not in MOUNTS:
        yield Problem(
            subject,
            f'"{text}" exists only if Kaggle mounts inputs as it did before 2026; now it is below '
            "/kaggle/input/competitions, datasets or notebooks",
            f'Use "{address}", which the run finds in both.',
        )


def _input_address(below: str) -> tuple[str, str]:
    """Slug and `kaggle://` address of a path below /kaggle/input; empty if it names no input."""
    kind, *rest = [part for part in below.split("/") if part]
    if kind == "competitions":
        names = rest
    elif kind in MOUNTS:
        names = rest[1:]  # after the owner
    else:
        names = [kind, *rest]
    if not names or "*" in names[0]:
        return "", ""
    return names[0], f"kaggle://input/{'/'.join(names)}"


def _is_only_here(text: str) -> bool:
    """Whether it is the absolute path of a file or folder that a run cannot have."""
    top = text.split("/")[1:2]
    return text.startswith("/") and top[0] not in {"", *SYSTEM_FOLDERS} and _exists(Path(text))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a null byte
        return False


def _declared_slugs(kernel: Kernel) -> set[str]:
    """The slugs of all sources."""
    fields = kernel.manifest.kernel
    owned = [*fields.dataset_sources, *fields.kernel_sources, *fields.model_sources]
    declared = {*fields.competition_sources}
    return declared | {source.split("/")[1] for source in owned if "/" in source}


def _path_notes(kernel: Kernel) -> Iterator[str]:
    """Paths that a run may not have, which is not certain here."""
    for name, value in kernel.manifest.parameters.items():
        for text in _texts(value):
            if _PERSONAL.match(text) and not _is_only_here(text):
                yield (
                    f'parameters.{name}: "{text}" looks like a path of somebody\'s own machine. '
                    "For data use kaggle://input/<slug>, for results kaggle://working"
                )
            elif _leads_out(text) and not _MOUNTED.match(text):
                yield (
                    f'parameters.{name}: "{text}" lies outside the working folder, and a run has '
                    "nothing there. For data use kaggle://input/<slug>, for results "
                    "kaggle://working"
                )
            elif _is_left_here(kernel, name, text):
                yield (
                    f'parameters.{name}: "{text}" exists in the project, and a run looks for it in '
                    'its working folder. If the run reads it, add it to "files" in '
                    "[tool.kernelkit], or make a dataset of it and use kaggle://input/<slug>"
                )


def _leads_out(text: str) -> bool:
    """Whether it is a relative path that leads out of its folder."""
    return re.match(r"(?:\./)*\.\.(?:/|$)", text) is not None


def _is_left_here(kernel: Kernel, name: str, text: str) -> bool:
    """Whether a parameter names a file or folder of the project that the notebook lacks."""
    path = PurePosixPath(text)
    looks_like_one = "/" in text or path.suffix or _NAMES_A_PATH.search(name)
    if not looks_like_one or not path.parts or path.is_absolute() or _MOUNTED.match(text):
        return False
    carried = [PurePosixPath(file.path) for file in kernel.bundle.files]
    if any(file.is_relative_to(path) for file in carried):
        return False
    return _exists(kernel.project / text)


def _hard_coded_mounts(kernel: Kernel) -> Iterator[str]:
    """Paths of inputs in the code and in settings files that may differ in a run."""
    declared = _declared_slugs(kernel)
    for file in kernel.bundle.files:
        is_code = file.path.endswith(".py")
        if b"/input" not in file.content or not (is_code or file.path.endswith(_SETTINGS_SUFFIXES)):
            continue
        pattern = _MOUNTS_IN_CODE if is_code else _MOUNTS_IN_SETTINGS
        for number, line in enumerate(file.content.split(b"\n"), 1):
            for found in pattern.finditer(line.partition(b"#")[0]):
                parts = {name: text.decode() for name, text in found.groupdict(b"").items()}
                path = parts["whole"] or f"{parts['base']}/{parts['rest']}"
                below = path.partition("/input/")[2]
                slug, address = _input_address(below)
                is_new = below.partition("/")[0] in MOUNTS
                if slug and not (is_new and slug in declared):
                    yield (
                        f'{WARNING}{file.path}:{number}: "{path}" may not exist in the run: Kaggle '
                        "has changed these paths"
                        + ("" if slug in declared else f", and {slug} is not a source")
                        + f'. Let a parameter name the folder, with the value "{address}"'
                    )


def check_sources(kernel: Kernel) -> Iterator[Problem]:
    """Sources have the full form of their name: Kaggle drops those that it cannot find."""
    for kind, sources in kernel.manifest.kernel.sources.items():
        pattern, form = _SOURCE_FORMS[kind]
        for source in sources:
            if not re.fullmatch(pattern, source):
                yield Problem(kind, f'"{source}" does not have the form {form}', "Fix the name.")


def check_image(kernel: Kernel) -> Iterator[Problem]:
    """Imports are in the image, or the run installs them: from PyPI, or from the wheels."""
    pip = kernel.manifest.pip
    yield from _missing_requirements(kernel)
    for finding in image.compare(kernel.bundle.third_party, pip, kernel.image):
        if finding.presence is Presence.ABSENT:
            yield Problem(
                finding.places[0],
                f'imports "{finding.module}", which Kaggle\'s image does not have',
                _import_remedy(kernel, finding),
            )
    for finding in image.compare(kernel.bundle.removed, pip, kernel.image):
        version = REMOVED[finding.module]
        is_gone = Version(kernel.image.python) >= Version(version)
        # setuptools has its own distutils.
        kept = finding.module == "distutils" and image.has_distribution("setuptools", kernel.image)
        if is_gone and not kept and finding.presence is not Presence.BY_PIP:
            yield Problem(
                finding.places[0],
                f'imports "{finding.module}", which Python {version} has removed (Kaggle has '
                f"{kernel.image.python})",
                "Replace it as the documentation of Python says.",
            )


def _missing_requirements(kernel: Kernel) -> Iterator[Problem]:
    """What a run without internet cannot install."""
    missing = kernel.installs.at(InstallOrigin.NOWHERE)
    if not missing:
        return
    described = [
        one.requirement
        + (f" (for {one.required_by})" if one.required_by else "")
        + (f", and the image has {one.image_version}" if one.image_version else "")
        for one in missing
    ]
    reasons = dict.fromkeys(one.reason for one in missing)
    yield Problem(
        "pip",
        f"the run has no internet to install {'; '.join(described)}: {'; '.join(reasons)}",
        f"{MAKE_WHEELS} Or set enable_internet = true in [tool.kernelkit.kernel].",
    )


def check_outputs(kernel: Kernel) -> Iterator[Problem]:
    """Something can write each folder and each pattern of the outputs."""
    fields, bundle = kernel.manifest.kernel, kernel.bundle
    libraries = (bundle.third_party, bundle.optional, kernel.manifest.pip)
    archives = (b"\0" in file.content for file in bundle.files)
    if any(libraries) or any(fields.sources.values()) or fields.enable_internet or any(archives):
        return  # one of them may name it: `advise` has a note
    for output in _unmentioned_outputs(kernel):
        yield Problem(
            "outputs",
            f'nothing in the package or in the parameters names a part of "{output}", so no file '
            "can match it at the end of the run",
            "Fix the name, or remove it.",
        )


def _unmentioned_outputs(kernel: Kernel) -> list[str]:
    """Folders and patterns of which no word occurs in the package or in the parameters."""
    texts = [file.content.lower() for file in kernel.bundle.files]
    texts.append(repr(kernel.manifest.entry_parameters).lower().encode(errors="replace"))
    return [
        output
        for output in kernel.manifest.entry_outputs
        if is_several(output)
        and (words := re.findall(r"\w+", output.lower()))
        and not any(word.encode() in text for word in words for text in texts)
    ]


def check_parameters(kernel: Kernel) -> Iterator[Problem]:
    """The entry can be called with the parameters."""
    signature, entry = kernel.bundle.signature, kernel.bundle.entry
    if kernel.bundle.command_line is not None:
        yield from _check_command_line(kernel, kernel.bundle.command_line)
    if signature is None:
        return
    given = kernel.manifest.entry_parameters.keys()
    for name in sorted(given - signature.accepted if not signature.open else ()):
        yield Problem(
            f"parameters.{name}",
            f"{entry} takes no such argument{near_miss(name, signature.accepted)}",
            "Remove it from [tool.kernelkit.parameters], or add the argument to the function.",
        )
    meant = {closest(name, signature.accepted) for name in given - signature.accepted}
    for name in sorted(signature.required - given - meant):
        yield Problem(
            f"parameters.{name}",
            f"{entry} cannot be called without it",
            "Add it to [tool.kernelkit.parameters], or give the argument a default value.",
        )


def _check_command_line(kernel: Kernel, line: CommandLine) -> Iterator[Problem]:
    """A script takes the parameters as options."""
    entry, given = kernel.bundle.entry, kernel.manifest.entry_parameters
    command = kernel.manifest.command
    reader = {"hydra": "uses Hydra", "globals": "sets its global variables"}.get(line.library)
    if reader and command is not None and command.arguments != line.arguments:
        yield Problem(
            "arguments",
            f"{entry} {reader}, which does not read {command.arguments}",
            f'Set arguments = "{line.arguments}" in [tool.kernelkit].',
        )
    first = [o.name for o in command.options if o.form == "first"] if command is not None else []
    unknown = [n for n in given if n not in line.names and n not in first]
    meant = {closest(name, line.names) for name in unknown if not line.open}
    for name in given if not line.open else ():
        if name in unknown:
            yield Problem(
                f"parameters.{name}",
                f"{entry} has no such option{near_miss(name, line.names)}",
                "Remove it from [tool.kernelkit.parameters], or add the option to the script.",
            )
    for option in line.options:
        values = [given[name] for name in option.names if name in given]
        if option.required and not values and meant.isdisjoint(option.names):
            yield Problem(
                f"parameters.{option.names[0]}",
                f"{entry} does not start without it",
                "Add it to [tool.kernelkit.parameters].",
            )
        if option.form == "switch" and not all(isinstance(value, bool) for value in values):
            yield Problem(
                f"parameters.{option.names[0]}",
                f"{option.flag or option.off} of {entry} is on or off, and takes no value",
                "Set it to true or false.",
            )


def check_secrets(kernel: Kernel, own: Collection[Credential] = ()) -> Iterator[Problem]:
    """Nothing that would be sent holds a key, token or password; secrets are never shown."""
    kinds: dict[str, list[str]] = {}
    for finding in find_secrets(kernel, own):
        kinds.setdefault(finding.where, []).append(finding.kind)
    for where, (kind, *_) in kinds.items():
        yield Problem(
            where,
            f"{kind} would be sent",
            "Remove it: in the run, read it from Kaggle's secrets "
            "(kaggle_secrets.UserSecretsClient) or from a private dataset. If it is not a secret, "
            'end the line with the comment "# pragma: allowlist secret", or, where no comment can '
            f'stand, set allow_secrets = ["{where}"] in [tool.kernelkit].',
        )


def find_secrets(kernel: Kernel, own: Collection[Credential] = ()) -> list[SecretFinding]:
    """Every secret in what would be sent that `allow_secrets` does not name."""
    return [
        *scan(_sent_texts(kernel), own, kernel.allowed_secrets),
        *_secrets_in_data(kernel, own),
    ]


def _secrets_in_data(kernel: Kernel, own: Collection[Credential]) -> Iterator[SecretFinding]:
    """Secrets in large files that are not texts."""
    for file in filter(_is_large_data, kernel.bundle.files):
        place = _place(kernel, file)
        if place not in kernel.allowed_secrets:
            for kind in sorted(search_bytes(io.BytesIO(file.content), own)):
                yield SecretFinding(place, None, kind)


def _is_large_data(file: SourceFile) -> bool:
    """Whether the search for credentials of every kind would take long, and find none."""
    return len(file.content) > LARGE_BYTES and not is_text(file.content[:HEAD_BYTES])


def _place(kernel: Kernel, file: SourceFile) -> str:
    top, _, _ = file.path.partition("/")
    return (PurePosixPath(kernel.bundle.roots[top]) / file.path).as_posix()


def _sent_texts(kernel: Kernel) -> Iterator[NamedText]:
    """Everything that is sent, by its origin; derived texts come last."""
    for file in kernel.bundle.files:
        if not _is_large_data(file):
            yield NamedText(_place(kernel, file), searchable_text(file.content))
    for name, source in kernel.templates.items():
        yield NamedText(name, source)
    yield NamedText("description", kernel.manifest.description)
    for name, value in kernel.manifest.parameters.items():
        yield NamedText(f"parameters.{name}", f"{name} = {value!r}", numbered=False)
    for name, entry in [("pip", kernel.manifest.pip), *kernel.metadata.document.items()]:
        yield NamedText(name, f"{name} = {entry!r}", numbered=False, is_derived=True)
    for cell in read_cells(kernel.notebook):
        (tag,) = cell.tags
        if tag != "archive" and not tag.startswith("module"):  # those hold the files again
            yield NamedText(f'the cell "{tag}"', cell.source, is_derived=True)


def advise(kernel: Kernel) -> list[str]:
    """What a user should know before a push; none of it stops one. Warnings come first."""
    notes = [
        *kernel.bundle.notes,
        *_output_notes(kernel),
        *_path_notes(kernel),
        *_mount_notes(kernel),
        *_shape_notes(kernel),
        *_import_notes(kernel),
        *_optional_import_notes(kernel),
        *_dataset_notes(kernel),
        *_requirement_notes(kernel),
    ]
    return sorted(notes, key=lambda note: not note.startswith(WARNING))


def _dataset_notes(kernel: Kernel) -> Iterator[str]:
    """A competition may forbid what comes from a dataset of the user's own."""
    competitions = kernel.manifest.kernel.competition_sources
    if kernel.own_datasets and competitions:
        yield (
            f"the run uses datasets of your own ({', '.join(kernel.own_datasets)}), which a code "
            f"competition may forbid: read the rules of {', '.join(competitions)}"
        )


def _output_notes(kernel: Kernel) -> Iterator[str]:
    for output in _unmentioned_outputs(kernel):
        yield (
            f'nothing in the package or in the parameters names a part of the output "{output}": '
            "the run fails at its end if no file matches it"
        )


def _mount_notes(kernel: Kernel) -> Iterator[str]:
    found = list(_hard_coded_mounts(kernel))
    yield from found[:PLACES_SHOWN]
    if len(found) > PLACES_SHOWN:
        yield f"{len(found) - PLACES_SHOWN} more paths of inputs are hard-coded"


def _shape_notes(kernel: Kernel) -> Iterator[str]:
    shape = kernel.metadata.machine_shape
    if shape and shape not in SHAPES and not _meant_shape(shape) and _may_be_new(shape):
        yield (
            f'{WARNING}machine_shape: "{shape}" is not known to be a name of Kaggle\'s, which may '
            f"have new ones. Known are {', '.join(SHAPES)}"
        )


def _import_notes(kernel: Kernel) -> Iterator[str]:
    """Needed imports that a run may not find, or find in another version."""
    required = {canonicalize_name(Requirement(text).name) for text in kernel.manifest.pip}
    for finding in image.compare(kernel.bundle.third_party, kernel.manifest.pip, kernel.image):
        place = finding.places[0]
        if finding.presence is Presence.OTHER_VERSION:
            yield (
                f"{finding.distribution} is {finding.image_version} in Kaggle's image, "
                f"{finding.local_version} here ({place})"
            )
        elif finding.presence is Presence.UNKNOWN and finding.local_version is None:
            yield (
                f'{WARNING}{place} imports "{finding.module}", which is not installed here and is '
                "not known to be in Kaggle's image. Without it the run fails. "
                + _import_remedy(kernel, finding)
            )
        elif finding.presence is Presence.UNKNOWN:
            yield (
                f'it is not known whether Kaggle\'s image has "{finding.module}" ({place}): '
                'if not, add it to "pip" in [tool.kernelkit]'
            )
        elif finding.presence is Presence.BY_PIP and finding.distribution not in required:
            yield (
                f'it is not known whether one of the requirements of "pip" installs '
                f'"{finding.module}" ({place})'
            )


def _optional_import_notes(kernel: Kernel) -> Iterator[str]:
    unknown = []
    for finding in image.compare(kernel.bundle.optional, kernel.manifest.pip, kernel.image):
        if finding.presence is Presence.ABSENT:
            yield (
                f'"{finding.module}" is not in Kaggle\'s image; its import is optional '
                f"({finding.places[0]})"
            )
        elif finding.presence is Presence.UNKNOWN and finding.local_version is None:
            unknown.append(f'"{finding.module}" ({finding.places[0]})')
    if unknown:
        more = len(unknown) - OPTIONAL_NAMED
        yield (
            "optional imports that are not installed here and not known to be in Kaggle's image: "
            + ", ".join(unknown[:OPTIONAL_NAMED])
            + (f" and {more} more" if more > 0 else "")
        )


def _requirement_notes(kernel: Kernel) -> Iterator[str]:
    """Requirements that change the image, or of which nobody knows whether the run has them."""
    plan, internet = kernel.installs, kernel.manifest.kernel.enable_internet
    for one in plan.requirements:
        needed = f" (for {one.required_by})" if one.required_by else ""
        if one.replaces:
            yield (
                f"{WARNING}{one.requirement}{needed} replaces {one.name} {one.image_version} of "
                "Kaggle's image: packages of the image that were built for that version may fail"
            )
        elif one.origin is InstallOrigin.UNDECIDED and not internet:
            what = "has what the extra needs" if one.image_version else "has a fitting version"
            yield (
                f"{WARNING}pip: it is not known whether Kaggle's image {what} for "
                f"{one.requirement}{needed}. The run has no internet, and {one.reason}. "
                f"{MAKE_WHEELS}"
            )
    wheels = kernel.manifest.wheels
    if wheels is not None:
        count = counted(len(wheels.files), "wheel")
        yield f"the run installs {count} from your private dataset {wheels.dataset}"


def _import_remedy(kernel: Kernel, finding: image.Availability) -> str:
    """What to do about a needed import that the image lacks."""
    declare = (
        f'if the program works without it, add "{finding.module}" to "optional_imports" in '
        "[tool.kernelkit]."
    )
    own = kernel.bundle.module_called(finding.module)
    if own is not None:  # an index may have another package of that name
        return f'Import "{own}" if that is meant; {declare}'
    internet = (
        ""
        if kernel.manifest.kernel.enable_internet
        else ", then run `kernelkit wheels` or set enable_internet = true"
    )
    return f'Add pip = ["{finding.distribution}"] to [tool.kernelkit]{internet}; {declare}'


CHECKS: tuple[Callable[[Kernel], Iterator[Problem]], ...] = (
    check_size,
    check_names,
    check_accelerator,
    check_inputs,
    check_paths,
    check_sources,
    check_image,
    check_outputs,
    check_parameters,
)


def _texts(value: JsonValue) -> Iterator[str]:
    """Every text in a parameter, also in its lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])


def compare_with_image(kernel: Kernel) -> list[image.Availability]:
    """Whether each import from elsewhere is available in Kaggle's image."""
    found = {**kernel.bundle.optional, **kernel.bundle.third_party}
    return image.compare(dict(sorted(found.items())), kernel.manifest.pip, kernel.image)
