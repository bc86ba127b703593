"""Records what a session on Kaggle looks like: its image, mounts and environment variables."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
from pathlib import Path

STAMPS = {"commit": Path("/etc/git_commit"), "built": Path("/etc/build_date")}
"""Files that contain the version of Kaggle's image."""

ENTRIES = 40  # listed of one folder; competitions mount thousands of files
OUTSIDE = ("pypi.org", 443)  # a session with internet can connect to it
OUTSIDE_SECONDS = 5


def run(output_dir, stamp="", then_fail=False):
    """Write `image.json`, in the format of kernelkit/bundle/image.json, and `session.json`.

    `stamp` makes each run a new version. `then_fail` raises an error at the end.
    """
    snapshot = take()
    _write(Path(output_dir, "image.json"), snapshot)
    _write(Path(output_dir, "session.json"), {"stamp": stamp, **describe()})
    print(len(snapshot["distributions"]), "distributions, Python", snapshot["python"])
    if then_fail:
        raise RuntimeError("this run was asked to fail")


def take():
    """The installed distributions, named as they name themselves."""
    found = importlib.metadata.distributions()
    versions = {d.metadata["Name"]: d.version for d in found if d.metadata["Name"]}
    modules = importlib.metadata.packages_distributions()
    return {
        "source": f"a run of examples/image {stamps()}",
        "complete": True,
        "python": platform.python_version(),
        "glibc": platform.libc_ver()[1] or "2.35",
        "distributions": dict(sorted(versions.items())),
        "absent": [],
        "modules": {module: names[0] for module, names in sorted(modules.items())},
    }


def stamps():
    """The version of the image, from the files in STAMPS."""
    return {name: path.read_text().strip() for name, path in STAMPS.items() if path.is_file()}


def describe():
    """The session. Only the names of environment variables: some values are secrets."""
    inputs = Path(os.environ.get("KAGGLE_INPUT_DIR", "/kaggle/input"))
    return {
        "image": stamps(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "mounts": sorted(_entries(inputs)),
        "environment": sorted(os.environ),
        "run_type": os.environ.get("KAGGLE_KERNEL_RUN_TYPE"),
        "container_name": _shape(os.environ.get("KAGGLE_CONTAINER_NAME")),
        "working_free_bytes": shutil.disk_usage(".").free,
        "internet": _reaches(OUTSIDE),
    }


def _entries(folder, depth=4):
    """Paths below a folder: /kaggle/input/competitions/<slug>/<file> is the third level."""
    try:
        below = sorted(folder.iterdir())
    except OSError:
        return
    for path in below[:ENTRIES]:
        yield f"{path}/" if path.is_dir() else str(path)
        if depth > 1 and path.is_dir():
            yield from _entries(path, depth - 1)
    if len(below) > ENTRIES:
        yield f"{folder}/ and {len(below) - ENTRIES} more"


def _shape(name):
    """The shape of a name: "kernel-123" becomes "aaaaaa-999"."""
    return name and re.sub("[A-Z]", "A", re.sub("[a-z]", "a", re.sub("[0-9]", "9", name)))


def _reaches(address):
    try:
        with socket.create_connection(address, OUTSIDE_SECONDS):
            return True
    except OSError:
        return False


def _write(path, document):
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
