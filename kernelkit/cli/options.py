"""The options and arguments that commands share, and the project that they describe."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kernelkit.errors import ConfigError

if TYPE_CHECKING:
    from kernelkit.config import Config

DETACHED = "detached: the run on Kaggle continues. Come back with: kernelkit watch{}"
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """The options that commands share. Each works before and after the name of the command."""

    project: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the project's pyproject.toml.",
            show_default="the nearest one, upwards",
        ),
    ] = None
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Profile of the project file.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter, or kernel.FIELD."),
    ] = None
    only_reachable: Annotated[
        bool, typer.Option("--only-reachable", help="Carry only what the entry imports.")
    ] = False
    endpoint: Annotated[
        str | None,
        typer.Option(envvar="KERNELKIT_ENDPOINT", metavar="URL", help="Address of a local Kaggle."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document only.")] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the result and errors.")
    ] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more details.")] = False

    @property
    def folder(self) -> Path:
        """The project's folder: `--project`, else the nearest project from here upwards.

        Raises:
            ConfigError: there is no such folder, or no folder from here upwards is a project.
        """
        from kernelkit.config import find_project, project_folder

        return project_folder(self.project) if self.project else find_project(Path.cwd())

    def config(self, environment: Mapping[str, str] | None = None) -> Config:
        """The project as these options describe it."""
        from kernelkit.bundle.secrets import declare_credential
        from kernelkit.config import load_config

        config = load_config(
            self.folder,
            profile=self.profile,
            settings=self.settings or (),
            endpoint=self.endpoint,
            only_reachable=self.only_reachable,
            environment=os.environ if environment is None else environment,
        )
        declare_credential(config.notify_env)
        return config


@dataclass(frozen=True)
class Given:
    """Options, and the names of those that the user typed."""

    options: Options
    typed: frozenset[str]

    def after(self, before: Given) -> Given:
        """These on top of those before the command's name; each `--set` counts."""
        kept = {name: getattr(before.options, name) for name in before.typed - self.typed}
        if "settings" in before.typed & self.typed:
            kept["settings"] = [*(before.options.settings or ()), *(self.options.settings or ())]
        return Given(replace(self.options, **kept), before.typed | self.typed)


COMMON = ("project", "as_json", "quiet", "verbose")
BUILD = ("profile", "settings", "only_reachable")
REMOTE = ("profile", "settings", "endpoint")
DECLARED = inspect.signature(Options, eval_str=True).parameters
Command = Callable[..., None]


def shares(*names: str) -> Callable[[Command], Command]:
    """Let typer pass the options `names` to a function, whose first argument is an `Options`."""

    def decorate(function: Command) -> Command:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
            *(DECLARED[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names),
        ]

        def call(context: typer.Context, **values: Any) -> None:
            given = Given(
                Options(**{name: values.pop(name) for name in names}), _typed(context, names)
            )
            before: Given | None = context.obj
            if context.invoked_subcommand:  # a group: its sub-command gets them
                context.obj = given.after(before) if before else given
            else:
                function(_combined(context, names, before, given), **values)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def _combined(
    context: typer.Context, names: Sequence[str], before: Given | None, given: Given
) -> Options:
    """The options of this command on top of those before its name; the console obeys them.

    Raises:
        ConfigError: an option before the name is one that the command does not take.
    """
    from kernelkit import console

    if before:
        allowed = {*names, "quiet", "verbose"} if names else set()  # pytest has those of `prove`
        refused = sorted(before.typed - allowed)
        if refused:
            flag = {"settings": "--set"}.get(refused[0], f"--{refused[0].replace('_', '-')}")
            raise ConfigError(
                f"{context.command_path} does not take {flag}",
                f"Show what it takes: `{context.command_path} --help`",
            )
        given = given.after(before)
    options = given.options
    console.configure(as_json=options.as_json, quiet=options.quiet, verbose=options.verbose)
    return options


def _typed(context: typer.Context, names: Sequence[str]) -> frozenset[str]:
    """The options that the user typed: neither a default nor from the environment."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return frozenset(
        name for name, source in sources.items() if source and source.name == "COMMANDLINE"
    )


def finite(value: float | None) -> float | None:
    """An option's number; `nan` and `inf` are not numbers of seconds.

    Raises:
        BadParameter: it is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Again = Annotated[bool, typer.Option("--again", help="Push even if an identical run exists.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for a free session and for quota.")]


Deadline = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="SECONDS",
        help="How long to wait for the end.",
        show_default="none",
        callback=finite,
    ),
]


WaitDeadline = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="SECONDS",
        help="How long --wait waits.",
        show_default="none",
        callback=finite,
    ),
]


UntilDone = Annotated[
    bool, typer.Option("--until-done", help="Session after session until it is done.")
]
MaxSessions = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Of a chain, in all.", show_default="none"),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="v3, slug/v3, owner/slug or owner/slug/v3.",
        show_default="the latest run of this project",
    ),
]


class Mounts(StrEnum):
    """Layouts of /kaggle/input: `new` since 2026, `old` before."""

    NEW = "new"
    OLD = "old"


Inputs = Annotated[
    Path | None,
    typer.Option(
        envvar="KERNELKIT_DATA",
        exists=True,
        file_okay=False,
        help="Folder with one folder per source slug.",
    ),
]


def project_or_none(options: Options) -> Path | None:
    """The folder that `--project` names, else the nearest project, if there is one.

    Raises:
        ConfigError: `--project` names no folder.
    """
    if options.project:
        return options.folder
    try:
        return options.folder
    except ConfigError:
        return None
