"""The Jinja files from which the cells are rendered: finding, checking and rendering them.

A project's folder of templates is laid over kernelkit's own. docs/templates.md describes what a
template may use.
"""

from __future__ import annotations

import re
import traceback
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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
from kernelkit.notebook.sandbox import Limits, environment, read_templates

_TEMPLATE_NAME = re.compile(r"\d+-(?P<name>[a-z0-9-]+)\.(?P<kind>md|py)\.j2")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|$~])")
_LONG_VALUE = 90  # characters; a longer value of the embedded manifest takes several lines
_CELL_CHARACTERS = 20_000_000  # 20 times what Kaggle accepts of a whole notebook
_MESSAGE_CHARACTERS = 500

RUNTIME_STUB = '''"""Unused: Python imports the package of the same name next to this file."""
'''
"""`runtime_source`, for a copy of the template 21-runtime of a version with one runtime file."""


@dataclass(frozen=True)
class TemplateVariables:
    """What a template may use; docs/templates.md describes each name."""

    manifest: JsonValue
    """bundle.json, because a template may ask for any of its keys."""

    kernel: JsonValue
    """The settings of the kernel, as `kernel_variable` makes them."""

    parameters: Sequence[DescribedParameter]
    third_party: Mapping[str, tuple[str, ...]]
    runtime_modules: Sequence[ModuleCell]
    """The modules of the package `kernelkit_runtime`."""

    runtime_source: str = RUNTIME_STUB
    modules: Sequence[ModuleCell] = ()
    archive: str = ""
    module: ModuleCell | None = None
    """None outside of `module` and `runtime-module` templates, where the name is undefined."""

    def defined(self) -> dict[str, object]:
        """The variables of one cell."""
        return {name: value for name, value in vars(self).items() if value is not None}


def kernel_variable(kernel: KernelSettings) -> JsonValue:
    """The settings as plain data: a model has methods that read files and pickles."""
    derived = {name: getattr(kernel, name) for name in ("slug", "owner", "wants_gpu")}
    return {**kernel.model_dump(mode="json"), **derived}


class Templates:
    """The templates of a project, in the order of the cells."""

    def __init__(self, config: Config) -> None:
        own = _project_files(config)
        self.texts = dict(sorted({**read_templates(_own_templates()), **own}.items()))
        """Name → text of every file, also of those that others include."""

        self.names = _cell_templates(self.texts)
        """The templates that make cells, in their order."""

        self._environment = environment(self.texts.get)
        self._environment.filters.update(_FILTERS)
        self._limited = Limits().applied if config.templates else nullcontext
        self._compiled: dict[str, jinja2.Template] = {}

    def render(self, name: str, variables: TemplateVariables) -> RenderedCell | None:
        """One cell; None where the template renders to nothing.

        Raises:
            TemplateError: a syntax error, an undefined variable, or an expression that fails.
        """
        try:
            with self._limited():
                if name not in self._compiled:
                    self._compiled[name] = self._environment.get_template(name)
                source = self._compiled[name].render(variables.defined()).rstrip("\n")
            if len(source) > _CELL_CHARACTERS:
                raise ValueError(f"it renders to {len(source):,} characters")
            source.encode()
        except Exception as error:  # an expression in a template may raise anything
            raise TemplateError(f"{self._place(error, name)}: {_reason(error)}") from None
        if not source:
            return None
        is_code = _part(name, "kind") == "py"
        path = variables.module.path if variables.module else None
        return RenderedCell(_cell_id(name, path), _part(name, "name"), is_code, source, path)

    def _place(self, error: Exception, name: str) -> str:
        """Name and line of the innermost template that failed; the cell's own may include it."""
        if isinstance(error, jinja2.TemplateSyntaxError):
            return f"{error.name}:{error.lineno}"
        frames = traceback.walk_tb(error.__traceback__)
        places = [(frame.f_code.co_filename, line) for frame, line in frames]
        own = [f"{file}:{line}" for file, line in places if file in self.texts]
        return own[-1] if own else name


def repeats_for(name: str) -> str:
    """For what a template is rendered again and again: "module" or "runtime-module"; else ""."""
    kinds = ("module", "runtime-module")
    return next((kind for kind in kinds if _part(name, "name").startswith(kind)), "")


def project_templates(config: Config) -> dict[str, str]:
    """Path in the project → text, of every template of the project's own."""
    if config.templates is None:
        return {}
    folder = config.templates.resolve().relative_to(config.project.resolve())
    return {f"{folder.as_posix()}/{name}": text for name, text in _project_files(config).items()}


def _project_files(config: Config) -> dict[str, str]:
    return read_templates(config.templates, config.project) if config.templates else {}


def _own_templates() -> Path:
    """Inside the package where a wheel installed it, next to it in a checkout."""
    package = Path(kernelkit.__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


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


_FILTERS = {
    "repr": repr,
    "markdown": _as_markdown,
    "code": _as_code,
    "anchor": _as_anchor,
    "literal": _literal,
}


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


def _reason(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateNotFound):
        return f'there is no template "{error.name}" in the project or in kernelkit'
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    text = error.message if isinstance(error, jinja2.TemplateSyntaxError) else str(error)
    return (text or f"it fails with a {type(error).__name__}")[:_MESSAGE_CHARACTERS]
