"""Calls the entry: a function, a script, or a module as `python -m` does."""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from .documents import CommandDocument, Parameter
from .files import sha256_of
from .sources import Sources


def call_entry(
    sources: Sources, working_dir: Path, entry: str, parameters: Mapping[str, Parameter]
) -> object:
    """Import "package.module:function" from the sources and call it with the parameters.

    `sys.exit(0)`, with which many programs end, is a success.

    Raises:
        RuntimeFault: another copy of one of the packages was imported.
    """
    command = sources.bundle.get("command")
    module_name, _, function = entry.partition(":")
    result, process = None, os.getpid()
    with (
        _files_in_working_folder(sources, working_dir),
        _no_running_loop(),
        _forked_children_end(process),
    ):
        try:
            if command is not None:
                _run_program(sources, working_dir, command, parameters)
            else:
                sys.argv = [sources.file_of(module_name)]  # Jupyter's arguments are not its own
                module = importlib.import_module(module_name)
                sources.require_own_copies()  # before the run spends hours on the wrong code
                os.chdir(working_dir)
                result = getattr(module, function)(**parameters)
        except SystemExit as end:
            if end.code not in (None, 0) or os.getpid() != process:
                raise
            print("the entry ended with sys.exit()", flush=True)
    sources.require_own_copies()  # modules that the run imported later count too
    return result


def _run_program(
    sources: Sources,
    working_dir: Path,
    command: CommandDocument,
    parameters: Mapping[str, Parameter],
) -> None:
    """Run a script as `python script.py` does, or a module as `python -m` does."""
    from .command_line import command_line  # notebooks without a script do not carry it

    words = command_line(parameters, command["arguments"], command.get("options", ()))
    os.chdir(working_dir)
    if "path" in command:
        script = sources.folder / command["path"]
        print("$ python", shlex.join([command["path"], *words]), flush=True)
        sys.argv = [str(script), *words]
        runpy.run_path(str(script), run_name="__main__")
    else:
        print("$ python -m", shlex.join([command["module"], *words]), flush=True)
        sys.argv = [sources.file_of(command["module"]), *words]
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _forked_children_end(own: int) -> Iterator[None]:
    """End a forked child of process `own` where the program ends in it, as Python does.

    It would otherwise go on with the notebook, as a second kernel.
    """
    code = 0
    try:
        yield
    except BaseException as error:
        if os.getpid() == own:
            raise
        code = 1
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if error.code is not None and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        else:
            traceback.print_exc()
    finally:
        if os.getpid() != own:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code & 0xFF)


@contextlib.contextmanager
def _files_in_working_folder(sources: Sources, working_dir: Path) -> Iterator[None]:
    """While the entry runs, the working folder has the files that a program opens by name.

    Unchanged ones are removed afterwards, because Kaggle keeps every file there as an output.
    """
    copies = []
    for name in sources.bundle.get("working_files", ()):
        target = working_dir / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sources.folder / name, target)
            copies.append(name)
    try:
        yield
    finally:
        for name in copies:
            target = working_dir / name
            if sha256_of(target) == sha256_of(sources.folder / name):
                target.unlink()
            for folder in PurePath(name).parents[:-1]:
                with contextlib.suppress(OSError):  # it holds other files
                    (working_dir / folder).rmdir()


@contextlib.contextmanager
def _no_running_loop() -> Iterator[None]:
    """Hide Jupyter's event loop: `asyncio.run` refuses to start where another one runs."""
    asyncio = sys.modules.get("asyncio")
    running = asyncio._get_running_loop() if asyncio is not None else None
    if asyncio is None or running is None:
        yield
        return
    own = asyncio.new_event_loop()
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(own)
    try:
        yield
    finally:
        own.close()
        asyncio.set_event_loop(running)
        asyncio._set_running_loop(running)
