"""The Jinja files from which the cells are rendered: finding, checking and rendering them.

A project's folder of templates is laid over kernelkit's own. docs/templates.md describes what a
template may use.
"""

from __future__ import annotations

import re
import traceback
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from pydantic import JsonValue

import kernelkit
from kernelkit.bundle.bundle import digest_of
from kernelkit.config import Config, DescribedParameter, KernelSettings
from kernelkit.errors import TemplateError
from kernelkit.notebook.cells import ModuleCell, RenderedCell

_TEMPLATE_NAME = re.compile(r"\d+-(?P<name>[a-z0-9-]+)\.(?P<kind>md|py)\.j2")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|$~])")
_LONG_VALUE = 90  # characters; a longer value of the embedded manifest takes several lines


@dataclass(frozen=True)
class TemplateVariables:
    """What a template may use; docs/templates.md describes each name."""

    manifest: dict[str, JsonValue]
    """As JSON, because a template may ask for any key of bundle.json."""

    kernel: KernelSettings
    parameters: Sequence[DescribedParameter]
    third_party: Mapping[str, tuple[str, ...]]
    runtime_source: str
    modules: Sequence[ModuleCell] = ()
    archive: str = ""
    module: ModuleCell | None = None
    """None outside of `module` templates, where the name is undefined."""

    def defined(self) -> dict[str, object]:
        """The variables of one cell."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Templates:
    """The templates of a project, in the order of the cells."""

    def __init__(self, config: Config) -> None:
        self._environment = _environment(config.templates)
        self.texts = _template_files(self._environment)
        """Name → text of every file, also of those that others include."""

        self.names = _cell_templates(self.texts)
        """The templates that make cells, in their order."""

        self._compiled: dict[str, jinja2.Template] = {}

    def render(self, name: str, variables: TemplateVariables) -> RenderedCell | None:
        """One cell; None where the template renders to nothing.

        Raises:
            TemplateError: a syntax error, an undefined variable, or an expression that fails.
        """
        try:
            if name not in self._compiled:
                self._compiled[name] = self._environment.get_template(name)
            source = self._compiled[name].render(variables.defined()).rstrip("\n")
            source.encode()
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{error.name}:{error.lineno}: {error.message}") from None
        except Exception as error:  # an expression in a template may raise anything
            raise TemplateError(f"{_place_in_templates(error, name)}: {error}") from None
        if not source:
            return None
        is_code = _part(name, "kind") == "py"
        path = variables.module.path if variables.module else None
        return RenderedCell(_cell_id(name, path), _part(name, "name"), is_code, source, path)


def is_module_template(name: str) -> bool:
    """Whether a template is rendered once for each file of the packages."""
    return _part(name, "name").startswith("module")


def project_templates(config: Config) -> dict[str, str]:
    """Path in the project → text, of every template of the project's own."""
    if config.templates is None:
        return {}
    folder = config.templates.resolve()
    if folder.is_relative_to(config.project):
        folder = folder.relative_to(config.project)
    own = jinja2.Environment(loader=jinja2.FileSystemLoader(config.templates))
    return {f"{folder.as_posix()}/{name}": text for name, text in _template_files(own).items()}


def _own_templates() -> Path:
    """Inside the package where a wheel installed it, next to it in a checkout."""
    package = Path(kernelkit.__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


def _environment(project_folder: Path | None) -> jinja2.Environment:
    folders = [*([project_folder] if project_folder else []), _own_templates()]
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
    """Plain text, with everything escaped that Markdown would interpret."""
    return _MARKDOWN.sub(r"\\\1", text)


def _as_code(text: str) -> str:
    """Text in a fixed pitch, between as many backticks as it needs."""
    fence = "`" * (max((len(ticks) for ticks in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _as_anchor(heading: str) -> str:
    """The link to a heading, in Jupyter and on Kaggle alike."""
    return urllib.parse.quote(heading.replace(" ", "-"), safe="/")


def _literal(table: Mapping[str, JsonValue]) -> str:
    """A readable Python literal: a line for each key, and for each entry of a long value."""
    lines = ["{"]
    for key, value in table.items():
        if len(repr(value)) <= _LONG_VALUE:
            lines.append(f"    {key!r}: {value!r},")
        elif isinstance(value, dict):
            lines += [f"    {key!r}: {{", *(f"        {k!r}: {v!r}," for k, v in value.items())]
            lines.append("    },")
        elif isinstance(value, list):
            lines += [f"    {key!r}: [", *(f"        {item!r}," for item in value), "    ],"]
        else:
            lines.append(f"    {key!r}: {value!r},")
    return "\n".join([*lines, "}"])


def _template_files(environment: jinja2.Environment) -> dict[str, str]:
    """Name → text of every file in the folders of templates, also of included ones."""
    assert environment.loader is not None
    files = {}
    for name in environment.list_templates():
        if Path(name).name.startswith("."):  # of an editor or of the system
            continue
        try:
            files[name], _, _ = environment.loader.get_source(environment, name)
        except UnicodeDecodeError:
            if name.endswith(".j2"):
                raise TemplateError(f"the template {name} is not UTF-8") from None
        except (jinja2.TemplateNotFound, OSError):
            raise TemplateError(f"the template {name} cannot be read") from None
    return files


def _cell_templates(templates: Mapping[str, str]) -> list[str]:
    """The templates that make cells, in their order; an empty one makes none."""
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


@cache
def _part(name: str, part: str) -> str:
    match = _TEMPLATE_NAME.fullmatch(name)
    assert match is not None  # _cell_templates refuses every other name
    return match[part]


def _cell_id(template: str, path: str | None) -> str:
    """The same for the same input; nbformat allows 64 characters."""
    words = template.split(".")[0] + (f"-{path}" if path else "")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")[:55]
    return f"{readable}-{digest_of([(template, path or '')])[:8]}"


def _place_in_templates(error: Exception, template: str) -> str:
    """Name and line of the innermost template that failed; the cell's own may include it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).suffix == ".j2" or f.name == "top-level template"]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in own if "<" not in f.filename]
    return places[-1] if places else template
