"""Lets a test read what kernelkit prints: replaces the streams of `kernelkit.console`."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console


def show_on(screen: Console, monkeypatch: pytest.MonkeyPatch, stream: str = "stdout") -> None:
    """Print on `screen` what kernelkit prints to a stream, until the test ends."""
    for name, module in list(sys.modules.items()):
        if name.startswith("kernelkit.console") and hasattr(module, stream):
            monkeypatch.setattr(module, stream, screen)
