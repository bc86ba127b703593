"""A throw-away Python environment for one run, on top of the interpreter's own.

Kaggle's image is disposable, so `pip install` in a notebook changes nothing for anyone. Here the
packages go into a virtual environment that lives as long as the run. Its path continues with the
packages of the interpreter, so that nothing has to be copied. What pip installs comes first, also
where it replaces a package of the interpreter; pip refuses to uninstall that one, because it is
outside of the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

SCRIPT_BYTES = 100_000
"""A larger file is a program, not a script that starts Python."""
_PTH = "_interpreter.pth"
_SHEBANG = re.compile(rb"#! *(/\S*/)python[\d.]*((?: [^\n]*)?)\n")
_EXEC = re.compile(rb"""#!/bin/sh\n'''exec' (["']?)(/[^"'\n]*/)python[\d.]*\1""")


def create_environment(folder: Path, place: Path) -> None:
    """Make the environment in `folder`; the run sees it at `place`."""
    sees_system = sys.base_prefix in site.PREFIXES
    venv.EnvBuilder(system_site_packages=sees_system, symlinks=True).create(folder)
    paths = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    packages, scripts = Path(paths["purelib"]), Path(paths["scripts"])
    if sys.prefix != sys.base_prefix:
        lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
        (packages / _PTH).write_text("".join(lines), encoding="utf-8")
    _copy_scripts(scripts, place / scripts.relative_to(folder))
    if find_spec("pip") is None:
        _add_pip(packages, scripts, place / scripts.relative_to(folder))


def _copy_scripts(scripts: Path, place: Path) -> None:
    """Copy the commands of the interpreter's environment, so that they run in this one."""
    own = Path(sys.executable).parent
    for command in own.iterdir():
        if not command.is_file() or (scripts / command.name).exists():
            continue
        if not os.access(command, os.X_OK | os.R_OK) or command.stat().st_size > SCRIPT_BYTES:
            continue
        content = command.read_bytes()
        folder = os.fsencode(own) + b"/"
        if (found := _SHEBANG.match(content)) and found[1] == folder:
            content = _head(place, os.fsdecode(found[2])) + content[found.end() :]
        elif (found := _EXEC.match(content)) and found[2] == folder:
            content = _head(place).rpartition(b' "$0"')[0] + content[found.end() :]
        else:
            continue
        (scripts / command.name).write_bytes(content)
        shutil.copymode(command, scripts / command.name)


def _head(place: Path, options: str = "") -> bytes:
    """The first lines of a script, valid for sh and for Python: a `#!` line must be short."""
    return os.fsencode(f"#!/bin/sh\n'''exec' \"{place}/python\"{options} \"$0\" \"$@\"\n' '''\n")


def _add_pip(packages: Path, scripts: Path, place: Path) -> None:
    """Unpack Python's own copy of pip, which an environment of uv lacks. Kaggle's image has pip."""
    spec = find_spec("ensurepip")
    bundled = Path(spec.origin or "").parent / "_bundled" if spec else Path()
    for wheel in bundled.glob("pip-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        for name in ("pip", "pip3"):
            code = b"import sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
            (scripts / name).write_bytes(_head(place) + code)
            (scripts / name).chmod(0o755)
