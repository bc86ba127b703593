"""What a run installs: the project's requirements and the metadata of its own distribution."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .documents import DistributionDocument
from .faults import RuntimeFault

PIP_CHARACTERS = 2000  # of its output: the end has the reason


def pip_install(requirements: Sequence[str], options: Sequence[str] = ()) -> None:
    """Install the project's own requirements; `options` are pip's.

    Raises:
        RuntimeFault: pip fails; the message holds its output.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, *requirements]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        retries = [line for line in lines if line.startswith("WARNING: Retrying ")]
        lines = [*retries[-1:], *(line for line in lines if line not in retries)]
        output = "\n".join(lines)[-PIP_CHARACTERS:]
        raise RuntimeFault(f"pip could not install {', '.join(requirements)}:\n{output}")
    importlib.invalidate_caches()
    print(f"installed {', '.join(requirements)}")


def install_metadata(distribution: DistributionDocument, folder: Path) -> None:
    """Write the dist-info of the project's distribution, in place of that of another version."""
    name = distribution["folder"].partition("-")[0]
    for other in folder.glob(f"{name}-*.dist-info"):
        shutil.rmtree(other)
    target = folder / distribution["folder"]
    target.mkdir(parents=True)
    for file, text in distribution["files"].items():
        (target / file).write_text(text, encoding="utf-8", newline="\n")
    loaded = sys.modules.get("pkg_resources")  # it looks for distributions only once
    if loaded is not None:
        loaded.working_set.add_entry(str(folder))
