"""Writes down what is installed where it runs: Python, distributions, and the modules of each."""

import importlib.metadata
import json
import platform
from pathlib import Path

STAMPS = {"commit": Path("/etc/git_commit"), "built": Path("/etc/build_date")}
"""Files in which Kaggle's image tells its own version."""


def run(output_dir):
    """Leave `image.json` in the folder, in the form of kernelkit's own."""
    snapshot = take()
    text = json.dumps(snapshot, indent=1, ensure_ascii=False) + "\n"
    Path(output_dir, "image.json").write_text(text, encoding="utf-8")
    print(len(snapshot["distributions"]), "distributions, Python", snapshot["python"])


def take():
    """The snapshot; names as the distributions spell them."""
    stamps = {name: path.read_text().strip() for name, path in STAMPS.items() if path.is_file()}
    found = importlib.metadata.distributions()
    versions = {d.metadata["Name"]: d.version for d in found if d.metadata["Name"]}
    brought = importlib.metadata.packages_distributions()
    return {
        "source": f"a run of examples/image {stamps}",
        "complete": True,
        "python": platform.python_version(),
        "distributions": dict(sorted(versions.items())),
        "absent": [],
        "modules": {module: names[0] for module, names in sorted(brought.items())},
    }
