"""run-manifest.json: written whole, and printed as one log line where a run fails."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from .documents import RUN_MANIFEST_NAME, RunManifestDocument

MANIFEST_MARK = "kernelkit-manifest "
"""The beginning of the one log line that holds the manifest of a failed run."""

MANIFEST_LINE_CHARACTERS = 6000  # of a traceback: its end matters most


def save(manifest: RunManifestDocument, folder: Path) -> None:
    """Write the manifest whole, or not at all."""
    target = folder / RUN_MANIFEST_NAME
    partial = target.with_suffix(".partial")
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    try:
        partial.write_text(text + "\n", encoding="ascii")
        partial.replace(target)
    except OSError:  # such as a full disk: half a manifest would be an output of the run
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def print_line(manifest: RunManifestDocument) -> None:
    """Print the manifest as the one line that Kaggle keeps of a run without outputs."""
    ends = {
        "error": str(manifest["error"])[-MANIFEST_LINE_CHARACTERS:],
        "traceback": str(manifest["traceback"])[-MANIFEST_LINE_CHARACTERS:],
    }
    line = json.dumps({**manifest, **ends}, sort_keys=True, allow_nan=False)
    print(MANIFEST_MARK + line, flush=True)


def versions(third_party: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of the installed distributions that the package imports."""
    found = {"python": platform.python_version()}
    # The metadata of a distribution that something has broken must not prevent the manifest.
    with contextlib.suppress(Exception):
        distributions = importlib.metadata.packages_distributions() if third_party else {}
        names = {name for module in third_party for name in distributions.get(module, [])}
        for name in sorted(names):
            with contextlib.suppress(Exception):
                found[name] = str(importlib.metadata.version(name))
    return found


def timestamp(seconds: float) -> str:
    """A time in UTC, as ISO 8601 writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
