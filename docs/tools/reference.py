"""A hook of MkDocs that writes what the code says into the pages.

- `<!-- commands -->` becomes the reference of the command line.
- The tables of configuration.md get the types and defaults of the models in `kernelkit.config`,
  and a row for each key that they lack.
- A page that would load something from another host is an error.
- A link to a file outside `docs/` becomes its path, because the site does not have that file.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import typer.main  # noqa: E402
from pydantic import BaseModel, BeforeValidator  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from kernelkit import config  # noqa: E402
from kernelkit.cli import app  # noqa: E402
from kernelkit.cli.options import DECLARED  # noqa: E402

SECTIONS = {
    "## `[tool.kernelkit]`": "ProjectFile",
    "## `[tool.kernelkit.kernel]`": "KernelSettings",
    "## `[tool.kernelkit.submission]`": "SubmissionSettings",
    "## `[tool.kernelkit.sweep]`": "SweepSettings",
}
"""The headings in configuration.md whose tables describe the fields of a model."""

FOREIGN = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*""")

WORDS = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
"""TOML's words for Python's types."""


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """The text of a page, as MkDocs is to render it."""
    if page.file.src_uri == "configuration.md":
        markdown = with_models(markdown)
    text = re.sub(r"\[([^\]]*)\]\(\.\./([^)#]*)[^)]*\)", _without_link, markdown)
    return re.sub("<!-- commands -->", lambda _: command_reference(), text)


def _without_link(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"`{path}`" if text == path else f"{text} (`{path}`)"


def on_post_page(output: str, page: Any, **_: object) -> str:
    """The finished page, which must load nothing from another host.

    Raises:
        ValueError: it does.
    """
    if found := FOREIGN.search(output):
        raise ValueError(f"{page.file.src_uri} loads something from another host: {found[0]}")
    return output


def command_reference() -> str:
    """A section for each command: what it does, its arguments and options."""
    root: Any = typer.main.get_command(app)
    shared = [one for one in root.params if not getattr(one, "hidden", False)]
    parts = ["## Shared options", *_table(shared)]
    for name, command in _commands(root):
        # The shared options that every command has are in the first table.
        own = [one for one in command.params if one.name not in {*DECLARED, "help"}]
        taken = [f"`{_flags(one)[0]}`" for one in command.params if one.name in DECLARED]
        parts += [f"## {name}", _escaped(inspect.cleandoc(command.help or ""))]
        parts += [f"```text\nkernelkit {name}{_usage(command.params)} [OPTIONS]\n```"]
        parts += _table(own)
        if taken:
            parts.append(f"Shared options that it takes: {', '.join(taken)}.")
        if name == "emulator":
            parts += ["All options of the emulator:", f"```text\n{_emulator_help()}\n```"]
    return "\n\n".join(parts)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")


def _usage(parameters: Iterable[Any]) -> str:
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    names = [(one.metavar or one.name.upper(), one.required) for one in arguments]
    return "".join(f" {name}" if required else f" [{name}]" for name, required in names)


def _flags(option: Any) -> list[str]:
    long_first = sorted(option.opts, key=lambda flag: not flag.startswith("--"))
    return [*long_first, *option.secondary_opts]


def _table(parameters: Iterable[Any]) -> list[str]:
    rows = []
    for one in parameters:
        is_argument = one.param_type_name == "argument"
        value = one.metavar or ("" if getattr(one, "is_flag", False) else _type_name(one))
        names = [one.metavar or one.name.upper()] if is_argument else _flags(one)
        if value and not is_argument:
            names[0] += f" {value}"
        help_text = _escaped(one.help or "")
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {help_text}{_default(one)} |")
    return (
        ["\n".join(["| argument or option | what it does |", "|---|---|", *rows])] if rows else []
    )


def _escaped(text: str) -> str:
    """Text in Markdown that shows no tag and ends no cell."""
    return text.replace("<", "&lt;").replace("|", "\\|")


def _type_name(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(str(one.value) for one in annotation)
    names = {Path: "PATH", int: "NUMBER", float: "NUMBER"}
    return names.get(annotation, "TEXT")


def _default(parameter: Any) -> str:
    """The default where it says more than "off" or "nothing", and the environment variable."""
    shown, default = getattr(parameter, "show_default", None), parameter.default
    text = ""
    if isinstance(shown, str):
        text = f" Default: {shown}."
    elif shown and default not in (None, "", False, True, ()) and not callable(default):
        text = f" Default: `{getattr(default, 'value', default)}`."
    if parameter.envvar:
        text += f" Environment variable: `{parameter.envvar}`."
    return text


def _emulator_help() -> str:
    command = [sys.executable, "-m", "kernelkit.emulator", "--help"]
    done = subprocess.run(
        command, cwd=ROOT, env={"COLUMNS": "80"}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def with_models(markdown: str) -> str:
    """The tables of configuration.md with the types and defaults of the models."""
    for heading, name in SECTIONS.items():
        before, found, rest = markdown.partition(f"\n{heading}\n")
        if not found:
            raise ValueError(f"configuration.md has no heading {heading}")
        table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
        if table is None:
            raise ValueError(f"{heading} has no table")
        made = model_table(getattr(config, name), explanations(table[0]))
        markdown = before + found + rest[: table.start()] + made + rest[table.end() :]
    return markdown


def explanations(table: str) -> dict[str, str]:
    """The last column of a table for each name in backticks in its first column."""
    return {name: row[-1] for name, row in _rows(table)}


def defaults(table: str) -> dict[str, str]:
    """The second column of a table for each name in its first column, if there are three."""
    return {name: row[1] for name, row in _rows(table) if len(row) == 3}


def _rows(table: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row, with each name in backticks in the first one."""
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        yield from ((name, cells) for name in re.findall(r"`([^`]+)`", cells[0]))


def model_table(model: type[BaseModel], explained: dict[str, str]) -> str:
    """A row for each key of a model, with its docstring if there is no explanation.

    Raises:
        ValueError: a key is explained that the model does not have.
    """
    keys = [key for key, field in model.model_fields.items() if not _is_section(field)]
    if unknown := explained.keys() - set(keys):
        raise ValueError(f"{model.__name__} has no key {', '.join(sorted(unknown))}")
    documented = docstrings(model)
    lines = ["| key | what it does |", "|---|---|"]
    for key in sorted(keys, key=lambda key: [*explained, *keys].index(key)):
        field = model.model_fields[key]
        text = explained.get(key) or documented.get(key, "")
        value = "required" if field.is_required() else f"default: {default_words(field)}"
        lines.append(f"| `{key}`<br>{type_words(field)}<br>{value} | {text} |")
    return "\n".join(lines) + "\n"


def _is_section(field: FieldInfo) -> bool:
    parts = get_args(field.annotation) or (field.annotation,)  # `Section | None` has two
    return str(field.annotation).startswith("dict") or any(
        isinstance(part, type) and issubclass(part, BaseModel) for part in parts
    )


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings below the fields of a model, and of `Config` where it has none."""
    found = {} if model is config.Config else docstrings(config.Config)
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = inspect.cleandoc(after.value.value).replace("\n", " ")
    return found


def type_words(field: FieldInfo) -> str:
    """The type of a field in TOML's words."""
    text = str(field.annotation)
    if match := re.search(r"Literal\[([^\]]*)\]", text):
        return " or ".join(f'`"{one}"`' for one in re.findall(r"'([^']*)'", match[1]))
    if "tuple[" in text:
        takes_one = any(isinstance(one, BeforeValidator) for one in field.metadata)
        return "text or list of text" if takes_one else "list of text"
    names = re.findall(r"\b(?:str|int|float|bool)\b", text)
    return " or ".join(WORDS[name] for name in dict.fromkeys(names))


def default_words(field: FieldInfo) -> str:
    """The default of a field as TOML writes it."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[]`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
