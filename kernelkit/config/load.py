"""Project file, profile, `--set` and environment become one `Config`; where each value is from."""

from __future__ import annotations

import keyword
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelkit.config.comments import parameter_comments
from kernelkit.config.models import (
    DESCRIPTION_CHARACTERS,
    RESERVED_NAMES,
    Config,
    Parameter,
    ProjectFile,
    is_markdown_file,
    is_script,
)
from kernelkit.config.outputs import checked_outputs
from kernelkit.config.project_file import near_miss, read_project_file, value_shown
from kernelkit.config.requirements import all_requirements
from kernelkit.errors import ConfigError
from kernelkit.storage import decoded

_ENDPOINT = re.compile(
    r"http://(127\.0\.0\.1|localhost|\[::1\])(?::([1-9][0-9]{0,4}))?/*", re.IGNORECASE | re.ASCII
)


_PLAIN_ADDRESS = re.compile(
    r"(?:[a-z]+://)?(?:[a-z0-9_.-]{0,99}|\[[0-9a-f:.]*\])(?::[0-9]{1,9})?(?:/[\w./-]{0,99})?",
    re.IGNORECASE | re.ASCII,
)
"""An address that can be repeated in an error: without user info, query or fragment."""


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
    raw = read_project_file(project).with_profile(profile).with_settings(settings)
    stated = raw.validated()
    _check_parameters(stated.parameters)
    _check_positional(stated)
    from_environment = environment.get("KERNELKIT_ENDPOINT")
    asked = {"only_reachable": "--only-reachable"} if only_reachable else {}
    if endpoint is not None and endpoint != from_environment:
        asked["endpoint"] = "--endpoint"
    elif from_environment is not None:
        asked["endpoint"] = "KERNELKIT_ENDPOINT"
    shared = ProjectFile.model_fields.keys() & Config.model_fields.keys()
    values = {name: getattr(stated, name) for name in shared}
    requirements = list(all_requirements(project, stated.pip))
    values |= {
        "project": project.resolve(),
        "outputs": checked_outputs(stated.outputs, stated.kernel.slug),
        "only_reachable": stated.only_reachable or only_reachable,
        "pip": tuple(one.text for one in requirements),
        "pip_hashes": {one.text: one.hashes for one in requirements if one.hashes},
        "description": _description(project.resolve(), stated.description),
        "templates": _templates_folder(project.resolve(), stated.templates),
        "image": _image_file(project.resolve(), stated.image),
        "comments": parameter_comments(project, profile),
        "profile": profile,
        "endpoint": checked_endpoint(from_environment if endpoint is None else endpoint),
        "origins": {**raw.origins, **asked},
    }
    return Config(**values)


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


def name_problem(name: str) -> str:
    """Why a parameter cannot have a name; empty if it can."""
    if not name.isidentifier() or keyword.iskeyword(name):
        return "cannot be the name of a Python argument"
    if name in RESERVED_NAMES or name.startswith("_"):
        return "is a name that the notebook itself uses"
    return ""


def _check_parameters(parameters: Mapping[str, Parameter]) -> None:
    complaints = []
    for name, value in parameters.items():
        where = f'[tool.kernelkit.parameters] "{name}"'
        if problem := name_problem(name):
            complaints.append(f"{where} {problem}")
        if not is_literal(value):
            complaints.append(f"{where} = {value_shown(value)} has no form as a Python literal")
    if complaints:
        raise ConfigError("\n".join(complaints), "Give text, numbers, true/false, lists or tables.")


def _check_positional(stated: ProjectFile) -> None:
    if stated.positional and not is_script(stated.entry):
        raise ConfigError(
            f'[tool.kernelkit] "positional": {stated.entry} is a function, which has no words',
            "Remove the key: a function gets its parameters by their names.",
        )
    for name in stated.positional:
        if name not in stated.parameters:
            raise ConfigError(
                f'[tool.kernelkit] "positional": there is no parameter "{name}"'
                f"{near_miss(name, stated.parameters)}",
                "Give it a value in [tool.kernelkit.parameters].",
            )


def is_literal(value: Parameter) -> bool:
    """Whether a value of a TOML file can be written into the notebook, as a Python literal."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(is_literal(item) for item in value)
    if isinstance(value, dict):
        return all(is_literal(item) for item in value.values())
    if isinstance(value, int):
        return abs(value) < 2**63  # TOML promises no more
    return isinstance(value, str)


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


def _description(project: Path, stated: str) -> str:
    """The text itself, also where it is in a file of the project."""
    if not is_markdown_file(stated):
        return stated
    path = project / stated
    where = f'[tool.kernelkit] "description" = "{stated}"'
    if not path.resolve().is_relative_to(project):
        raise ConfigError(f"{where} is a link that leads out of the project")
    try:
        text = decoded(path.read_bytes()).replace("\r\n", "\n").strip()
    except FileNotFoundError:
        raise ConfigError(
            f"{where}: no such file in {project}", "Name a file, or write the text itself."
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{where} cannot be read: {reason}") from None
    if len(text) > DESCRIPTION_CHARACTERS:
        raise ConfigError(
            f"{where} has {len(text):,} characters",
            f"Shorten it to {DESCRIPTION_CHARACTERS:,}.",
        )
    return text


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


@dataclass(frozen=True)
class ConfigValue:
    """One value of the configuration, and where it comes from."""

    key: str
    """As `--set` and the project file name it: `layout`, `kernel.title`, `parameters.epochs`."""

    value: Parameter
    origin: str
    """The project file, a profile, --set, --only-reachable, an environment variable, or default."""


def config_values(config: Config) -> list[ConfigValue]:
    """Every value of a configuration with its origin, in the order of the models."""
    top = [name for name in ProjectFile.model_fields if name in Config.model_fields]
    values = {name: getattr(config, name) for name in [*top, "endpoint"]}
    for name in ("kernel", "submission", "sweep"):
        section = values.pop(name)
        for key, value in vars(section).items() if section else ():
            values[f"{name}.{key}"] = value
    values |= {f"parameters.{key}": value for key, value in values.pop("parameters").items()}
    return [
        ConfigValue(
            key,
            str(value.relative_to(config.project)) if isinstance(value, Path) else value,
            config.origins.get(key, "default"),
        )
        for key, value in values.items()
    ]
