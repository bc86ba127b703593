"""Reads `[tool.kernelkit]` and puts a profile and `--set` on top of it.

All problems are reported at once, each with its key, and with a suggestion for a misspelled key.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kernelkit.config.models import (
    KernelSettings,
    Parameter,
    Profile,
    ProjectFile,
    Section,
    SubmissionSettings,
    SweepSettings,
)
from kernelkit.errors import ConfigError
from kernelkit.storage import (
    decoded,
    read_file,
)

PROJECT_FILE = "pyproject.toml"
_NOT_WORDS = frozenset({"true", "false", "none", "null", "yes", "no"})  # meant as something else


_SECTIONS: dict[tuple[str, ...], type[Section]] = {
    (): ProjectFile,
    ("kernel",): KernelSettings,
    ("submission",): SubmissionSettings,
    ("sweep",): SweepSettings,
}


def _meant_key(error: ErrorDetails) -> str:
    """The key that a misspelled one most likely means; empty where it is none."""
    *sections, key = [part for part in error["loc"] if isinstance(part, str)]
    if error["type"] != "extra_forbidden":
        return ""
    return closest(key, _SECTIONS.get(tuple(sections), Profile).model_fields)


_TYPES = {  # of pydantic's errors: what a TOML file says instead
    "string_type": 'must be text in quotes: "…"',
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


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
        content = project_text(folder)
    except ConfigError:
        return False
    try:
        return "kernelkit" in tomllib.loads(content).get("tool", ())
    except (ValueError, RecursionError, TypeError):
        return "[tool.kernelkit" in content


def project_text(project: Path) -> str:
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
        if not path.is_file():
            raise ConfigError(f"{path} is not a file")
        data = read_file(path)
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


def read_project_file(project: Path) -> RawProject:
    """[tool.kernelkit] of the project in a folder.

    Raises:
        ConfigError: there is no such table, or it cannot be read.
    """
    path = project / PROJECT_FILE
    document = _parsed_toml(path, project_text(project))
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
    return RawProject(table).with_python_names().from_here(PROJECT_FILE, table)


@dataclass(frozen=True)
class RawProject:
    """[tool.kernelkit] as TOML has it, and where each value is from."""

    table: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    """As `Config.origins`."""

    def from_here(self, origin: str, table: Mapping[str, Any]) -> RawProject:
        """With `origin` for every value that `table` has."""
        keys = [key for key, value in table.items() if not isinstance(value, dict)]
        for name in ("kernel", "submission", "sweep", "parameters"):
            if isinstance(section := table.get(name), dict):
                keys += [f"{name}.{python_name(key)}" for key in section]
        return replace(self, origins={**self.origins, **dict.fromkeys(keys, origin)})

    def with_python_names(self) -> RawProject:
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

    def with_profile(self, profile: str | None) -> RawProject:
        """The values of a profile on top of these."""
        if profile is None:
            return self
        stated = self.validated()
        if profile not in stated.profiles:
            known = ", ".join(sorted(stated.profiles)) or "none"
            raise ConfigError(
                f'no profile "{profile}"{near_miss(profile, stated.profiles)} (there is: {known})',
                f"Name another one, or add [tool.kernelkit.profiles.{profile}].",
            )
        layer = stated.profiles[profile]
        parameters = {**self.table.get("parameters", {}), **layer.parameters}
        kernel = {**self.table["kernel"], **layer.kernel}
        table = {**self.table, "parameters": parameters, "kernel": kernel}
        return replace(self, table=table).from_here(f"profile {profile}", vars(layer))

    def with_settings(self, settings: Sequence[str]) -> RawProject:
        """The values of `--set` on top of these."""
        stated = self.validated() if settings else None
        raw = self
        for setting in settings:
            key, equals, text = setting.partition("=")
            key = key.strip()
            if not equals:
                raise ConfigError(f"--set {setting}: must read key=value")
            is_field = key.startswith("kernel.")
            section, name = ("kernel", key[7:]) if is_field else ("parameters", python_name(key))
            if section == "parameters":
                assert stated is not None
                _require_known_parameter(stated, name)
            values = raw.table.get(section, {})
            value = _toml_value(setting, text, values.get(name))
            table = {**raw.table, section: {**values, name: value}}
            raw = replace(raw, table=table).from_here("--set", {section: {name: value}})
        return raw

    def validated(self) -> ProjectFile:
        """The typed section.

        Raises:
            ConfigError: with every complaint, one a line.
        """
        table = {**self.table}
        if isinstance(kernel := table.get("kernel"), dict):
            table["kernel"] = _lists_as_tuples(kernel)
        try:
            return ProjectFile.model_validate(_lists_as_tuples(table))
        except ValidationError as error:
            errors = error.errors(include_url=False)
            meant = {(*one["loc"][:-1], _meant_key(one)) for one in errors}
            complaints = [
                _complaint(one)
                for one in errors  # a misspelled key is missing too: that is one mistake
                if one["type"] != "missing" or one["loc"] not in meant
            ]
            raise ConfigError(
                "\n".join(complaints),
                f"Fix [tool.kernelkit] in {PROJECT_FILE}, or the --set option.",
            ) from None


def _lists_as_tuples(section: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """TOML has lists where the frozen models hold tuples; nested tables stay as they are."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


SECRET_KEYS = frozenset({"notify_env"})
"""Keys whose value may be a credential by mistake: an error does not quote it."""


def _complaint(error: ErrorDetails) -> str:
    """One line about one error: its key as in the file, what is wrong, the near miss."""
    names = [part for part in error["loc"] if isinstance(part, str)]
    items = [part for part in error["loc"] if isinstance(part, int)]
    *sections, key = names
    where = ".".join(["tool.kernelkit", *sections])
    if error["type"] == "extra_forbidden":
        known = _SECTIONS.get(tuple(sections), Profile).model_fields
        return f'[{where}] has no key "{key}"{near_miss(key, known)}'
    if error["type"] == "missing":
        return f'[{where}] is missing the key "{key}"'
    item = f", item {items[0] + 1}" if items else ""
    shown = "(not shown)" if key in SECRET_KEYS else value_shown(error["input"])
    return f'[{where}] "{key}"{item} = {shown}: {_reason(error)}'


def _reason(error: ErrorDetails) -> str:
    """What is wrong with a value, in the words of TOML."""
    if error["type"] == "tuple_type":
        value = error["input"]
        example = f": [{tomlkit.item(value).as_string()}]" if isinstance(value, str) else ""
        return f"must be a list{example}"
    if error["type"] == "literal_error":
        return error["msg"].replace("Input should be", "must be")
    return _TYPES.get(error["type"], error["msg"].removeprefix("Value error, "))


def near_miss(word: str, known: Iterable[str]) -> str:
    """`; did you mean "…"?` where one of `known` is close, else nothing."""
    close = closest(word, known)
    return f'; did you mean "{close}"?' if close else ""


def closest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that a misspelled word most likely means; empty where none is close."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else ""


def python_name(name: str) -> str:
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
        if python_name(name) in renamed:
            raise ConfigError(
                f'[tool.kernelkit.parameters] "{name}": another parameter has the same name '
                f'for Python, "{python_name(name)}"',
                "Rename one of them.",
            )
        renamed[python_name(name)] = value
    return renamed


def _require_known_parameter(stated: ProjectFile, name: str) -> None:
    """`--set` may name what the file names, in any profile: else a slip would be carried along."""
    known = set(stated.parameters).union(*(p.parameters for p in stated.profiles.values()))
    known.update(stated.sweep.parameters if stated.sweep else ())
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
                + ("" if stated is None else f" (it stands at {value_shown(stated)})"),
                "Write numbers plainly, true or false in small letters, text in quotes.",
            ) from None
        return text
    if list(parsed) != ["value"]:
        raise ConfigError(f"--set {setting}: one value at a time")
    return parsed["value"]


def value_shown(value: Any) -> str:
    """A value for an error, as Python writes it."""
    try:
        return repr(value)
    except (ValueError, RecursionError):  # hexadecimal numbers may be of any length
        return "(too long to show)"


def setting_text(name: str, value: Parameter) -> str:
    """A parameter or `kernel.FIELD` as `--set` takes it: `name=value`, with the value as TOML."""
    import tomlkit

    if isinstance(value, dict):  # on one line
        table = tomlkit.inline_table()
        table.update(value)
        return f"{name}={table.as_string()}"
    return f"{name}={tomlkit.item(value).as_string()}"
