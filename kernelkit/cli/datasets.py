"""Commands about datasets: publish a folder as one, and the wheels for runs without internet."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.options import (
    COMMON,
    INTERRUPTED,
    REMOTE,
    Deadline,
    Options,
    project_or_none,
    shares,
)
from kernelkit.cli.root import app
from kernelkit.errors import ConfigError

dataset_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(dataset_app, name="dataset", help="Publish a folder as a private dataset.")


@dataset_app.callback()
@shares(*REMOTE, *COMMON)
def dataset(options: Options) -> None:
    """Publish a folder as a private dataset."""


@dataset_app.command("push")
@shares(*REMOTE, *COMMON)
def push_dataset(
    options: Options,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Its files become the dataset.")],
    slug: Annotated[str, typer.Option(metavar="NAME", help="Name of the dataset.")],
    title: Annotated[
        str, typer.Option(help="Title of a new dataset.", show_default="the name")
    ] = "",
    message: Annotated[
        str, typer.Option("--message", "-m", help="Note about this version.", show_default="none")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Let all users read it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about --public.")] = False,
    deadline: Deadline = None,
) -> None:
    """Make a folder the new version of a dataset.

    Creates the dataset, or adds a version that holds exactly the files of the folder, and waits
    until Kaggle has processed it. Nothing is uploaded if the current version has these files.
    """
    from kernelkit import console
    from kernelkit.bundle.secrets import own_credentials
    from kernelkit.config import checked_endpoint
    from kernelkit.kaggle.kernels import connect
    from kernelkit.project.datasets import DatasetRequest, default_state_folder, publish_dataset

    project = project_or_none(options)
    config = options.config() if project else None
    request = DatasetRequest(
        folder,
        slug,
        title=title,
        message=message,
        is_private=not public,
        place=_place(folder, project),
        allowed_secrets=config.allow_secrets if config else (),
    )
    request.require_valid()
    if public and not yes:
        if options.as_json or not sys.stdin.isatty():
            raise ConfigError("--public asks before it uploads", "Agree in advance: --public --yes")
        if not typer.confirm(f"All users of Kaggle can then read the files of {folder}. Continue?"):
            raise typer.Exit(INTERRUPTED)
    endpoint = config.endpoint if config else checked_endpoint(options.endpoint)
    kaggle = connect(endpoint, local_user=config.kernel.owner if config else None)
    own = own_credentials(os.environ, Path.home(), project or Path.cwd())
    state = config.build_folder("datasets") if config else default_state_folder()
    interrupted = "interrupted: the same command resumes the upload"
    with console.watching(interrupted) as reporter, kaggle.ends_in(deadline):
        published = publish_dataset(kaggle, request, state, own=own, on_event=reporter)
    console.published(published, config.kernel if config else None)


def _place(folder: Path, project: Path | None) -> str:
    """The folder as `allow_secrets` writes it: relative to the project, where it is inside."""
    if project and folder.resolve().is_relative_to(project.resolve()):
        return folder.resolve().relative_to(project.resolve()).as_posix()
    return str(folder)


@app.command("wheels")
@shares("endpoint", *COMMON)
def wheels(
    options: Options,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Download to DIR, and publish nothing.", show_default="build/wheels"
        ),
    ] = None,
    download_only: Annotated[
        bool, typer.Option("--download-only", help="Publish nothing.")
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Choose again, although the lock fits.")
    ] = False,
    deadline: Deadline = None,
) -> None:
    """Publish wheels for a run without internet.

    Downloads the wheels of the requirements that Kaggle's image lacks, with all that they need, and
    publishes them as a private dataset. kernelkit-wheels.json names each with its SHA-256: the
    notebook installs only these files. Nothing is built, and no code of a package is executed.
    """
    from kernelkit import console
    from kernelkit.bundle.secrets import own_credentials
    from kernelkit.kaggle.kernels import connect
    from kernelkit.project.wheels import prepare_wheels, publish_wheels

    config = options.config()
    published = None
    with console.watching("interrupted: the same command goes on") as reporter:
        prepared = prepare_wheels(config, out, upgrade=upgrade, on_event=reporter)
        if prepared.lock and not download_only and out is None:
            kaggle = connect(config.endpoint, local_user=config.kernel.owner)
            own = own_credentials(os.environ, Path.home(), config.project)
            with kaggle.ends_in(deadline):
                published = publish_wheels(config, prepared, kaggle, own, on_event=reporter)
    console.wheels_ready(prepared, published, config.kernel)
