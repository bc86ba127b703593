"""Writes down what a session on Kaggle is: its image, its mounts, the names in its environment."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
from pathlib import Path

STAMPS = {"commit": Path("/etc/git_commit"), "built": Path("/etc/build_date")}
"""Files in which Kaggle's image tells its own version."""

ENTRIES = 40  # named of one folder; competitions mount thousands of files
OUTSIDE = ("pypi.org", 443)  # what a session with internet reaches
OUTSIDE_SECONDS = 5


def run(output_dir, stamp="", then_fail=False):
    """Leave `image.json`, in the form of kernelkit's own, and `session.json` in the folder.

    `stamp` makes each run another one. `then_fail` ends it with an error, to see what stays.
    """
    snapshot = take()
    _write(Path(output_dir, "image.json"), snapshot)
    _write(Path(output_dir, "session.json"), {"stamp": stamp, **describe()})
    print(len(snapshot["distributions"]), "distributions, Python", snapshot["python"])
    if then_fail:
        raise RuntimeError("this run was asked to fail")


def take():
    """The snapshot of the image; names as the distributions spell them."""
    found = importlib.metadata.distributions()
    versions = {d.metadata["Name"]: d.version for d in found if d.metadata["Name"]}
    brought = importlib.metadata.packages_distributions()
    return {
        "source": f"a run of examples/image {stamps()}",
        "complete": True,
        "python": platform.python_version(),
        "distributions": dict(sorted(versions.items())),
        "absent": [],
        "modules": {module: names[0] for module, names in sorted(brought.items())},
    }


def stamps():
    """The image's version in its own words."""
    return {name: path.read_text().strip() for name, path in STAMPS.items() if path.is_file()}


def describe():
    """The session. Of the environment the names alone: some of its values are secrets."""
    inputs = Path(os.environ.get("KAGGLE_INPUT_DIR", "/kaggle/input"))
    return {
        "image": stamps(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "mounts": sorted(_entries(inputs)),
        "environment": sorted(os.environ),
        "run_type": os.environ.get("KAGGLE_KERNEL_RUN_TYPE"),
        "container_name": _form(os.environ.get("KAGGLE_CONTAINER_NAME")),
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


def _form(name):
    """The form of a name without the name: "kernel-123" is "aaaaaa-999"."""
    return name and re.sub("[A-Z]", "A", re.sub("[a-z]", "a", re.sub("[0-9]", "9", name)))


def _reaches(address):
    try:
        with socket.create_connection(address, OUTSIDE_SECONDS):
            return True
    except OSError:
        return False


def _write(path, document):
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
