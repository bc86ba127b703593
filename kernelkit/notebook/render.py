"""A `Bundle`, the templates and a `Config` become a `Kernel`: notebook, metadata, manifest.

One Jinja file is one cell, in the order of the files' names: `10-parameters.py.j2` gives a code
cell, `00-title.md.j2` a Markdown cell; what renders to nothing gives none. Neighbouring files whose
name begins with `module` are rendered together once for each file of the packages. A project's
folder of templates is laid over kernelkit's own. docs/templates.md tells what templates may use.

Source is handed to Jinja as a value, never as a template: braces in it mean nothing. Same input,
same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import lzma
import re
import tarfile
import traceback
import urllib.parse
import zlib
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import jinja2
import nbformat

import kernelkit
from kernelkit.bundle.bundle import Bundle, SourceFile, digest_of, digest_part
from kernelkit.bundle.image import Snapshot, load_snapshot
from kernelkit.config import Config
from kernelkit.errors import LocalError, TemplateError
from kernelkit.notebook.manifest import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    METADATA_NAME,
    NOTEBOOK_NAME,
    KernelMetadata,
    Manifest,
)

SIZE_CAP_BYTES = 1_000_000
"""Kaggle: "The kernel source must be less than 1 megabytes in size.\""""

SIZE_LIMIT_BYTES = 900_000
"""1,353,126 were refused and 878,947 accepted: where between is not known."""

_TEMPLATE_NAME = re.compile(r"\d+-(?P<name>[a-z0-9-]+)\.(?P<kind>md|py)\.j2")
_PROMPT = re.compile(r"^[^\S\n]*(?:>>>|\.\.\.|In \[\d+\]:)", re.MULTILINE)
_PROMPT_MARKS = (">>>", "...", "In [")  # without one of them the search is spared
_BLANK_LINE = re.compile(r"^[^\S\n]+$", re.MULTILINE)
_SAFE_PATH = re.compile(r"[\w./-]+", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|$~])")
_BASE64_LINE = 100  # characters
_ARCHIVE_LINE = 4000  # characters: each line costs fourteen bytes more in the JSON of a JSON
_ARCHIVE_TIME = 946_684_800  # 2000-01-01: the same in every render, and a time that zip can write
_LONG_VALUE = 90  # characters, beyond which a value of the embedded manifest takes several lines
_COLLAPSED = frozenset({"start", "runtime", "archive"})  # opened by a reader only when in doubt


@dataclass(frozen=True)
class SizeEntry:
    """What one file, or all the rest, takes of the bytes that Kaggle's cap is about."""

    path: str | None
    """None for what belongs to no single file."""

    size: int
    """Bytes on disk."""

    sent: int
    """Bytes of its cells as they are sent."""

    form: str
    """How the notebook carries it (see `ModuleCell`); "archive" for the cell that holds all that
    is compressed, "notebook" for all other cells."""


@dataclass(frozen=True)
class Kernel:
    """A notebook with its metadata, ready for Kaggle."""

    notebook: str
    """The notebook's JSON."""

    metadata: KernelMetadata
    manifest: Manifest

    bundle: Bundle
    budget: tuple[SizeEntry, ...]
    """The largest first; their `sent` add up to the payload, but for a few brackets."""

    image: Snapshot
    """What Kaggle's image has, as far as the project or kernelkit knows."""

    templates: Mapping[str, str]
    """The project's own: path in the project → text, as it stands in the file."""

    allowed_secrets: tuple[str, ...]
    """Places that the project file names in `allow_secrets`; no part of the digest."""

    @property
    def slug(self) -> str:
        """The kernel's name within its owner's account."""
        return self.manifest.slug

    @property
    def digest(self) -> str:
        """SHA-256 over sources, parameters, settings and templates; the owner is no part of it."""
        return self.manifest.digest

    @cached_property
    def payload(self) -> str:
        """The notebook as the official client sends it: outputs stripped, sources joined, ASCII."""
        body = json.loads(self.notebook)
        for cell in body["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = []
            cell["source"] = "".join(cell["source"])
        return json.dumps(body)


@dataclass(frozen=True)
class ModuleCell:
    """One file of the packages, as its templates see it."""

    path: str
    summary: str
    size: int
    """Bytes."""

    is_module: bool
    form: str
    """"writefile", "lines", "base64", "empty" or "compressed": how it is carried exactly."""

    text: str = ""
    """For "writefile" the content without its last newline, which IPython adds."""

    lines: tuple[str, ...] = ()
    base64: str = ""

    @property
    def heading(self) -> str:
        """Its path, and the first line of its docstring."""
        return f"{self.path}: {self.summary}" if self.summary else self.path


def render(bundle: Bundle, config: Config) -> Kernel:
    """Render without touching the disk.

    With the layout "auto", as few files as the cap asks for are carried compressed: those that gain
    most by it, and the entry's own last.

    Raises:
        TemplateError: a template has a syntax error, uses an undefined variable, or is misnamed.
    """
    draft = _Draft(bundle, config)
    choose = {"cells": draft.none, "compressed": draft.all, "auto": draft.fewest}
    compressed = choose[config.layout]()
    cells = draft.cells(compressed)
    notebook = {
        "cells": [cell.node for cell in cells],
        "metadata": {
            "colab": {"provenance": [], "toc_visible": True},
            # papermill, which Kaggle runs, refuses a notebook without a kernelspec.
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    nbformat.validate(notebook)
    return Kernel(
        # As nbformat writes it, which would validate once more.
        notebook=json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n",
        metadata=KernelMetadata(**dict(config.kernel)),
        manifest=draft.manifest,
        bundle=bundle,
        budget=draft.budget(compressed, cells),
        image=load_snapshot(config.image),
        templates=_project_templates(config),
        allowed_secrets=config.allow_secrets,
    )


def write_kernel(kernel: Kernel, folder: Path) -> None:
    """Write the three files; whatever else the folder holds stays.

    Raises:
        MachineError: the folder cannot be written.
    """
    files = {
        NOTEBOOK_NAME: kernel.notebook,
        METADATA_NAME: as_json(kernel.metadata.document),
        MANIFEST_NAME: as_json(kernel.manifest.document),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(folder / name)
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from None


def as_json(document: object) -> str:
    """JSON as all of kernelkit's files have it."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _manifest(bundle: Bundle, config: Config, templates: dict[str, str]) -> Manifest:
    kernel = {**config.kernel.model_dump(mode="json"), "id": config.kernel.slug}
    stated = {
        "entry": bundle.entry,
        "outputs": list(config.outputs),
        "pip": list(config.pip),
        "layout": config.layout,
        "parameters": config.parameters,
        "kernel": kernel,
    }
    parts = [
        *((f"file {f.path}", digest_part(f.sha256, f.executable)) for f in bundle.files),
        *((f"template {name}", source) for name, source in templates.items()),
        ("runtime", _runtime_source()),
        ("settings", json.dumps(stated, sort_keys=True)),
    ]
    document = {
        "schema": MANIFEST_SCHEMA,
        "kernelkit": kernelkit.__version__,
        "digest": digest_of(parts),
        "source_digest": bundle.digest,
        "slug": config.kernel.slug,
        "profile": config.profile,
        "wants_gpu": config.kernel.wants_gpu,
        "roots": dict(bundle.roots),
        **stated,
        "provenance": bundle.provenance.model_dump(),
        "files": [
            {"path": file.path, "sha256": file.sha256, "size": len(file.content)}
            | ({"executable": True} if file.executable else {})
            for file in bundle.files
        ],
        "third_party": sorted({*bundle.third_party, *bundle.optional}),
    }
    return Manifest.model_validate(document)


def _runtime_source() -> str:
    return (resources.files("kernelkit.notebook") / "runtime.py").read_text(encoding="utf-8")


def _own_templates() -> Path:
    """Inside the package where a wheel installed it, beside it in a checkout."""
    package = Path(kernelkit.__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


def _environment(project_templates: Path | None) -> jinja2.Environment:
    folders = [*([project_templates] if project_templates else []), _own_templates()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is a notebook, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["repr"] = repr
    environment.filters["markdown"] = _as_markdown
    environment.filters["code"] = _as_code
    environment.filters["anchor"] = _as_anchor
    environment.filters["literal"] = _literal
    return environment


def _as_markdown(text: str) -> str:
    """Plain words, without what Markdown would read into them."""
    return _MARKDOWN.sub(r"\\\1", text)


def _as_code(text: str) -> str:
    """Words in a fixed pitch, whatever they hold."""
    fence = "`" * (max((len(ticks) for ticks in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _as_anchor(heading: str) -> str:
    """How a link finds a heading, in Jupyter and on Kaggle alike."""
    return urllib.parse.quote(heading.replace(" ", "-"), safe="/")


def _literal(table: dict[str, Any]) -> str:
    """A Python literal for people: a line for each key, and for each entry of a long value."""
    lines = ["{"]
    for key, value in table.items():
        if len(repr(value)) <= _LONG_VALUE:
            lines.append(f"    {key!r}: {value!r},")
        elif isinstance(value, dict):
            lines += [f"    {key!r}: {{", *(f"        {k!r}: {v!r}," for k, v in value.items())]
            lines.append("    },")
        else:
            lines += [f"    {key!r}: [", *(f"        {item!r}," for item in value), "    ],"]
    return "\n".join([*lines, "}"])


def _template_files(environment: jinja2.Environment) -> dict[str, str]:
    """Name → text of every file in the folders of templates, also of what others include."""
    assert environment.loader is not None
    files = {}
    for name in environment.list_templates():
        if Path(name).name.startswith("."):  # an editor's, or the system's
            continue
        try:
            files[name], _, _ = environment.loader.get_source(environment, name)
        except UnicodeDecodeError:
            if name.endswith(".j2"):
                raise TemplateError(f"the template {name} is not UTF-8") from None
        except (jinja2.TemplateNotFound, OSError):
            raise TemplateError(f"the template {name} cannot be read") from None
    return files


def _project_templates(config: Config) -> dict[str, str]:
    """Path in the project → text, of every template that kernelkit does not bring."""
    if config.templates is None:
        return {}
    folder = config.templates.resolve()
    if folder.is_relative_to(config.project):
        folder = folder.relative_to(config.project)
    own = jinja2.Environment(loader=jinja2.FileSystemLoader(config.templates))
    return {f"{folder.as_posix()}/{name}": text for name, text in _template_files(own).items()}


def _cell_templates(templates: dict[str, str]) -> list[str]:
    """Names of the templates that make cells, in their order; an empty one makes none."""
    names = []
    for name, source in sorted(templates.items()):
        if "/" in name:  # for others to include
            continue
        if name.endswith(".j2") and not _TEMPLATE_NAME.fullmatch(name):
            raise TemplateError(
                f"the template {name} has no place in the notebook",
                "Name it NN-name.md.j2 or NN-name.py.j2: the number gives its place.",
            )
        if name.endswith(".j2") and source.strip():
            names.append(name)
    return names


@dataclass(frozen=True)
class _Cell:
    node: dict[str, Any]
    path: str | None
    """The file it belongs to."""

    @property
    def is_archive(self) -> bool:
        """Whether it holds the compressed files."""
        return "archive" in self.node["metadata"]["tags"]

    @cached_property
    def sent(self) -> int:
        """Bytes in the payload, with the comma and the space after it."""
        source = {"source": "".join(self.node["source"])}
        return len(json.dumps({**self.node, **source})) + len(", ")


class _Draft:
    """A notebook in which it is still open what is carried compressed."""

    def __init__(self, bundle: Bundle, config: Config) -> None:
        self._bundle = bundle
        self._environment = _environment(config.templates)
        templates = _template_files(self._environment)
        self.manifest = _manifest(bundle, config, templates)
        self._templates = [
            (per_module, list(names))
            for per_module, names in groupby(_cell_templates(templates), key=_is_module_template)
        ]
        self._variables = {
            "manifest": self.manifest.document,
            "kernel": config.kernel,
            "parameters": config.described_parameters,
            "third_party": bundle.third_party,
            "runtime_source": _runtime_source(),
        }
        self._forms = {file.path: _module_cell(file) for file in bundle.files}
        self._contents = {file.path: file.content for file in bundle.files}
        self._kept: dict[ModuleCell, list[_Cell]] = {}
        self._attempts: dict[frozenset[str], list[_Cell]] = {}

    def none(self) -> frozenset[str]:
        return frozenset()

    def all(self) -> frozenset[str]:
        return frozenset(self._forms)

    def fewest(self) -> frozenset[str]:
        """Those that gain most, no more than bring the notebook below the limit.

        Where that cannot be reached, all that gain anything; far beyond it, none.
        """
        plain = self.cells(frozenset())
        if _sent(plain) <= SIZE_LIMIT_BYTES:
            return frozenset()
        gains = {
            share.path: share.sent - _packed_bytes(self._contents[share.path])
            for share in self.budget(frozenset(), plain)
            if share.path is not None
        }
        entry = self._bundle.entry.partition(":")[0]
        entry_paths = {file.path for file in self._bundle.files if file.module == entry}
        worth = [path for path, gain in gains.items() if gain > 0]
        order = sorted(worth, key=lambda path: (path in entry_paths, -gains[path], path))
        moved = [0, *accumulate(gains[path] for path in order)]
        if _sent(plain) - moved[-1] > 2 * SIZE_LIMIT_BYTES:  # far beyond: no need to try
            return frozenset()

        def sent_with(count: int) -> int:
            return _sent(self.cells(frozenset(order[:count])))

        too_few, enough = (0, _sent(plain)), (len(order), sent_with(len(order)))
        side, halve = None, False
        # Each attempt compresses anew: a guess on the straight line between the ends, and a
        # halving where two guesses in a row came out on one side.
        while enough[0] - too_few[0] > 1 and enough[1] <= SIZE_LIMIT_BYTES:
            part = (too_few[1] - SIZE_LIMIT_BYTES) / (too_few[1] - enough[1])
            wanted = moved[too_few[0]] + part * (moved[enough[0]] - moved[too_few[0]])
            guess = (too_few[0] + enough[0]) // 2 if halve else bisect(moved, wanted)
            guess = min(max(guess, too_few[0] + 1), enough[0] - 1)
            attempt = (guess, sent_with(guess))
            fits = attempt[1] <= SIZE_LIMIT_BYTES
            too_few, enough = (too_few, attempt) if fits else (attempt, enough)
            side, halve = fits, fits == side and not halve
        return frozenset(order[: enough[0]])

    def cells(self, compressed: frozenset[str]) -> list[_Cell]:
        """The whole notebook."""
        if compressed not in self._attempts:
            self._attempts[compressed] = self._assemble(compressed)
        return self._attempts[compressed]

    def _assemble(self, compressed: frozenset[str]) -> list[_Cell]:
        modules = [
            ModuleCell(cell.path, cell.summary, cell.size, cell.is_module, "compressed")
            if cell.path in compressed
            else cell
            for cell in self._forms.values()
        ]
        packed = [file for file in self._bundle.files if file.path in compressed]
        variables = {**self._variables, "modules": modules, "archive": _archive(packed)}
        cells: list[_Cell] = []
        for per_module, names in self._templates:
            if per_module:
                for module in modules:
                    cells += self._module_cells(names, variables, module)
            else:
                cells += self._render(names, variables)
        return cells

    def budget(self, compressed: frozenset[str], cells: list[_Cell]) -> tuple[SizeEntry, ...]:
        """What each file takes, the largest first, and what belongs to none of them."""
        sent: dict[str | None, int] = {}
        for cell in cells:
            sent[cell.path] = sent.get(cell.path, 0) + cell.sent
        archive = sum(cell.sent for cell in cells if cell.is_archive)
        size = sum(self._forms[path].size for path in compressed)
        files = (
            SizeEntry(
                path=path,
                size=cell.size,
                sent=sent.get(path, 0),
                form="compressed" if path in compressed else cell.form,
            )
            for path, cell in self._forms.items()
        )
        shares = [*files, SizeEntry(None, 0, sent.get(None, 0) - archive, "notebook")]
        shares += [SizeEntry(None, size, archive, "archive")] if archive else []
        return tuple(sorted(shares, key=lambda share: (-share.sent, share.path or "")))

    def _module_cells(
        self, names: list[str], variables: dict[str, Any], module: ModuleCell
    ) -> list[_Cell]:
        """These are the same in every attempt, as long as the file's form is."""
        if module not in self._kept:
            variables = {**variables, "module": module}
            self._kept[module] = list(self._render(names, variables, module.path))
        return self._kept[module]

    def _render(
        self, names: Iterable[str], variables: dict[str, Any], path: str | None = None
    ) -> Iterator[_Cell]:
        for name in names:
            source = _rendered(self._environment, name, variables).rstrip("\n")
            if source:
                yield _Cell(_node(name, source, path), path)


def _packed_bytes(content: bytes) -> int:
    """What a file takes in the archive, about: alone it compresses less than among others."""
    return len(zlib.compress(content)) * 4 // 3


def _sent(cells: Iterable[_Cell]) -> int:
    """Bytes of the payload, to within the few hundred of its own metadata."""
    return sum(cell.sent for cell in cells) + 500


def _archive(files: list[SourceFile]) -> str:
    """All of them in one .tar.xz, which is smaller than each alone; base64, in long lines."""
    if not files:
        return ""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(file.path)
            member.size = len(file.content)
            member.mtime = _ARCHIVE_TIME
            tar.addfile(member, io.BytesIO(file.content))
    text = base64.b64encode(lzma.compress(packed.getvalue())).decode()
    return "\n".join(_chunks(text, _ARCHIVE_LINE))


def _chunks(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(0, len(text), length)]


def _is_module_template(name: str) -> bool:
    return _template_part(name, "name").startswith("module")


def _template_part(name: str, part: str) -> str:
    match = _TEMPLATE_NAME.fullmatch(name)
    assert match is not None  # _cell_templates has refused every other name
    return match[part]


def _node(template: str, source: str, path: str | None) -> dict[str, Any]:
    """The cell as it stands in the file; nbformat's own maker would validate each of them."""
    tag, kind = _template_part(template, "name"), _template_part(template, "kind")
    metadata: dict[str, Any] = {"tags": [tag]}
    if tag in _COLLAPSED:  # in Kaggle's words, and in JupyterLab's
        metadata |= {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    node = {
        "cell_type": "markdown" if kind == "md" else "code",
        "id": _cell_id(template, path),
        "metadata": metadata,
        "source": source.splitlines(keepends=True),
    }
    return node if kind == "md" else {**node, "execution_count": None, "outputs": []}


def _cell_id(template: str, path: str | None) -> str:
    """Fixed, so that the same input gives the same bytes; nbformat allows 64 characters."""
    words = template.split(".")[0] + (f"-{path}" if path else "")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")[:55]
    return f"{readable}-{digest_of([(template, path or '')])[:8]}"


def _rendered(environment: jinja2.Environment, template: str, variables: dict[str, Any]) -> str:
    try:
        text = environment.get_template(template).render(variables)
        text.encode()
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{error.name}:{error.lineno}: {error.message}") from None
    except Exception as error:  # whatever an expression in a template raises
        raise TemplateError(f"{_place_in_templates(error, template)}: {error}") from None
    return text


def _place_in_templates(error: Exception, template: str) -> str:
    """The innermost template that failed, which the one of the cell may include, and its line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).suffix == ".j2" or f.name == "top-level template"]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in own if "<" not in f.filename]
    return places[-1] if places else template


def _module_cell(file: SourceFile) -> ModuleCell:
    known = (file.path, file.summary, len(file.content), file.module is not None)
    if not file.content:
        return ModuleCell(*known, "empty")
    text = _text(file.content)
    if text is None:
        packed = base64.b64encode(zlib.compress(file.content, 9)).decode()
        return ModuleCell(*known, "base64", base64="\n".join(_chunks(packed, _BASE64_LINE)))
    if _writefile_is_exact(file.path, text):
        return ModuleCell(*known, "writefile", text=text[:-1])
    return ModuleCell(*known, "lines", lines=tuple(text.splitlines(keepends=True)))


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _writefile_is_exact(path: str, text: str) -> bool:
    """Whether every IPython writes this file as it is, by the rule and not by the one at hand.

    IPython adds a missing last newline, takes an empty body for an error, from 9.8 on empties
    lines of nothing but white space, also inside strings, and strips what looks like a prompt
    (as doctests do) before it sees that the cell is a magic. An editor on the way may trim newlines
    at the end and change carriage returns or control characters, so these are kept out as well.
    """
    return (
        _SAFE_PATH.fullmatch(path) is not None
        and text.endswith("\n")
        and bool(text.strip())
        and not text.endswith("\n\n")
        and not text.startswith("\ufeff")
        and text.replace("\n", "").replace("\t", "").isprintable()
        and not (any(mark in text for mark in _PROMPT_MARKS) and _PROMPT.search(text))
        and not (any(end in text for end in (" \n", "\t\n")) and _BLANK_LINE.search(text))
    )
