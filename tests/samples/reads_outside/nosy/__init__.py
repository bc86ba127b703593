"""Reads a file next to the package, which the notebook does not contain."""

import json
from pathlib import Path


def run() -> int:
    text = (Path(__file__).parent.parent / "settings.json").read_text(encoding="utf-8")
    return int(json.loads(text)["depth"])


def harmless() -> int:
    return 1
