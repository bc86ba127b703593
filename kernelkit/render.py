"""A `Bundle`, the templates and a `Config` become a `Kernel`: notebook, metadata, manifest.

One Jinja file is one cell, in the order of the files' names: `10-parameters.py.j2` gives a code
cell, `00-title.md.j2` a Markdown cell. Neighbouring files whose name begins with `module` are
rendered together once for each file of the package. A project's folder of templates is laid over
kernelkit's own: a new name adds a cell, the same name replaces it, an empty file removes it.

Templates may use: `manifest` (what bundle.json holds), `kernel` (the kernel's settings),
`modules` (every file of the package), `runtime_source`, and in module templates `module`, a
`ModuleCell`. The filters `repr` and `literal` write Python. Source is handed to Jinja as a value,
never as a template: braces in it mean nothing. Same input, same bytes.
"""

from __future__ import annotations

import base64
import json
import re
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import nbformat

import kernelkit
from kernelkit.bundle import Bundle, SourceFile, digest_of
from kernelkit.config import Config
from kernelkit.errors import MachineError, TemplateError

NOTEBOOK_NAME = "notebook.ipynb"
METADATA_NAME = "kernel-metadata.json"
MANIFEST_NAME = "bundle.json"
MANIFEST_SCHEMA = 1

_TEMPLATE_NAME = re.compile(r"\d+-(?P<name>[a-z0-9-]+)\.(?P<kind>md|py)\.j2")
_PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.|In \[\d+\]:)", re.MULTILINE)
_SAFE_PATH = re.compile(r"[\w./-]+", re.ASCII)
_BASE64_LINE = 100  # characters
_LONG_VALUE = 90  # characters, beyond which a value of the embedded manifest takes several lines
_COLLAPSED = frozenset({"start", "runtime"})  # cells that a reader opens only when in doubt


@dataclass(frozen=True)
class Kernel:
    """A notebook with its metadata, ready for Kaggle."""

    notebook: str
    """The notebook's JSON."""

    metadata: dict[str, Any]
    """What kernel-metadata.json holds; its `id` lacks the owner where the project names none."""

    manifest: dict[str, Any]
    """What bundle.json holds: the one thing that build side and run side share."""

    left_out: tuple[str, ...] = ()
    """Files of the package's folder that stay behind."""

    @property
    def slug(self) -> str:
        """The kernel's name within its owner's account."""
        return str(self.manifest["slug"])

    @property
    def digest(self) -> str:
        """SHA-256 over sources, parameters, settings and templates; the owner is no part of it."""
        return str(self.manifest["digest"])

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
    """One file of the package, as its templates see it."""

    path: str
    summary: str
    form: str
    """"writefile", "lines", "base64" or "empty": how the cell carries the file exactly."""

    text: str = ""
    """For "writefile" the content without its last newline, which IPython adds."""

    lines: tuple[str, ...] = ()
    base64: str = ""


def render(bundle: Bundle, config: Config) -> Kernel:
    """Render without touching the disk.

    Raises:
        TemplateError: a template has a syntax error, uses an undefined variable, or is misnamed.
    """
    environment = _environment(config.templates)
    manifest = _manifest(bundle, config, _template_files(environment))
    cells = list(_cells(environment, bundle, config, manifest))
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            # papermill, which Kaggle runs, refuses a notebook without a kernelspec.
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        nbformat_minor=5,
    )
    nbformat.validate(notebook)
    return Kernel(
        notebook=nbformat.writes(notebook) + "\n",
        metadata=_metadata(config),
        manifest=manifest,
        left_out=bundle.left_out,
    )


def write_kernel(kernel: Kernel, folder: Path) -> None:
    """Write the three files; whatever else the folder holds stays.

    Raises:
        MachineError: the folder cannot be written.
    """
    files = {
        NOTEBOOK_NAME: kernel.notebook,
        METADATA_NAME: as_json(kernel.metadata),
        MANIFEST_NAME: as_json(kernel.manifest),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(folder / name)
    except OSError as fault:
        raise MachineError(f"{folder} cannot be written: {fault.strerror}") from None


def as_json(document: Any) -> str:
    """JSON as all of kernelkit's files have it."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _manifest(bundle: Bundle, config: Config, templates: dict[str, str]) -> dict[str, Any]:
    kernel = {**config.kernel.model_dump(mode="json"), "id": config.kernel.slug}
    stated = {
        "package": bundle.package,
        "entry": bundle.entry,
        "outputs": list(config.outputs),
        "parameters": config.parameters,
        "kernel": kernel,
    }
    parts = [
        *((f"file {file.path}", file.sha256) for file in bundle.files),
        *((f"template {name}", source) for name, source in templates.items()),
        ("runtime", _runtime_source()),
        ("settings", json.dumps(stated, sort_keys=True)),
    ]
    return {
        "schema": MANIFEST_SCHEMA,
        "kernelkit": kernelkit.__version__,
        "digest": digest_of(parts),
        "source_digest": bundle.digest,
        "slug": config.kernel.slug,
        "profile": config.profile,
        "wants_gpu": config.kernel.wants_gpu,
        **stated,
        "provenance": asdict(bundle.provenance),
        "files": [
            {"path": file.path, "sha256": file.sha256, "size": len(file.content)}
            for file in bundle.files
        ],
        "third_party": list(bundle.third_party),
    }


def _metadata(config: Config) -> dict[str, Any]:
    """The fields of kernel-metadata.json, without those that say nothing."""
    fields = config.kernel.model_dump(mode="json")
    optional = ("machine_shape", "docker_image", "docker_image_pinning_type")
    left_out = {name for name in optional if not fields[name]}
    left_out |= {"session_timeout_seconds"} if fields["session_timeout_seconds"] is None else set()
    return {
        "id": fields.pop("id"),
        "title": fields.pop("title"),
        "code_file": NOTEBOOK_NAME,
        "language": "python",
        "kernel_type": "notebook",
        **{name: value for name, value in fields.items() if name not in left_out},
    }


def _runtime_source() -> str:
    return (resources.files(kernelkit) / "runtime.py").read_text(encoding="utf-8")


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
    )
    environment.filters["repr"] = repr
    environment.filters["literal"] = _literal
    return environment


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
        try:
            files[name], _, _ = environment.loader.get_source(environment, name)
        except UnicodeDecodeError:
            raise TemplateError(f"the template {name} is not UTF-8") from None
    return files


def _cell_templates(environment: jinja2.Environment) -> list[str]:
    """Names of the templates that make cells, in their order; an empty one makes none."""
    names = []
    for name, source in sorted(_template_files(environment).items()):
        if name.endswith(".j2") and not _TEMPLATE_NAME.fullmatch(name):
            raise TemplateError(
                f"the template {name} has no place in the notebook",
                "Name it NN-name.md.j2 or NN-name.py.j2: the number gives its place.",
            )
        if name.endswith(".j2") and source.strip():
            names.append(name)
    return names


def _cells(
    environment: jinja2.Environment, bundle: Bundle, config: Config, manifest: dict[str, Any]
) -> Iterator[nbformat.NotebookNode]:
    modules = [_module_cell(file) for file in bundle.files]
    variables = {
        "manifest": manifest,
        "kernel": config.kernel,
        "modules": modules,
        "runtime_source": _runtime_source(),
    }
    for per_module, group in groupby(_cell_templates(environment), key=_is_module_template):
        names = list(group)
        for module in modules if per_module else [None]:
            for name in names:
                extra = {} if module is None else {"module": module}
                yield _cell(environment, name, {**variables, **extra}, module)


def _is_module_template(name: str) -> bool:
    return _template_part(name, "name").startswith("module")


def _template_part(name: str, part: str) -> str:
    match = _TEMPLATE_NAME.fullmatch(name)
    assert match is not None  # _cell_templates has refused every other name
    return match[part]


def _cell(
    environment: jinja2.Environment,
    template: str,
    variables: dict[str, Any],
    module: ModuleCell | None,
) -> nbformat.NotebookNode:
    tag, kind = _template_part(template, "name"), _template_part(template, "kind")
    source = _rendered(environment, template, variables).rstrip("\n")
    new_cell: Callable[..., nbformat.NotebookNode] = (
        nbformat.v4.new_markdown_cell if kind == "md" else nbformat.v4.new_code_cell
    )
    metadata: dict[str, Any] = {"tags": [tag]}
    if tag in _COLLAPSED:  # in Kaggle's words, and in JupyterLab's
        metadata |= {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    return new_cell(source, id=_cell_id(template, module), metadata=metadata)


def _cell_id(template: str, module: ModuleCell | None) -> str:
    """Fixed, so that the same input gives the same bytes; nbformat allows 64 characters."""
    words = template.split(".")[0] + (f"-{module.path}" if module else "")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")[:55]
    return f"{readable}-{digest_of([(template, module.path if module else '')])[:8]}"


def _rendered(environment: jinja2.Environment, template: str, variables: dict[str, Any]) -> str:
    try:
        return environment.get_template(template).render(variables)
    except jinja2.TemplateSyntaxError as fault:
        raise TemplateError(f"{fault.name}:{fault.lineno}: {fault.message}") from None
    except Exception as fault:  # whatever an expression in a template raises
        line = _line_in_template(fault, template)
        raise TemplateError(f"{template}:{line}: {fault}") from None


def _line_in_template(fault: Exception, template: str) -> int | str:
    frames = traceback.extract_tb(fault.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == template]
    return (lines[-1] if lines else None) or "?"


def _module_cell(file: SourceFile) -> ModuleCell:
    if not file.content:
        return ModuleCell(file.path, file.summary, "empty")
    text = _text(file.content)
    if text is None:
        packed = base64.b64encode(zlib.compress(file.content, 9)).decode()
        lines = [packed[i : i + _BASE64_LINE] for i in range(0, len(packed), _BASE64_LINE)]
        return ModuleCell(file.path, file.summary, "base64", base64="\n".join(lines))
    if _writefile_is_exact(file.path, text):
        return ModuleCell(file.path, file.summary, "writefile", text=text[:-1])
    return ModuleCell(file.path, file.summary, "lines", lines=tuple(text.splitlines(keepends=True)))


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
    lines = text.split("\n")
    return (
        _SAFE_PATH.fullmatch(path) is not None
        and text.endswith("\n")
        and bool(text.strip())
        and not text.endswith("\n\n")
        and not text.startswith("\ufeff")
        and not _PROMPT.search(text)
        and all(line.strip() for line in lines if line)
        and all(char == "\t" or char.isprintable() for line in lines for char in line)
    )
