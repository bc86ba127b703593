"""`prove` passes for src_salt, with the fast part of its own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config

ROOT = Path(__file__).parents[2]
QUICK = ("config", "losses", "metrics", "outputs", "architecture", "submission")


@pytest.mark.slow
def test_src_salt_is_proven() -> None:
    arguments = [f"tests/src_salt/test_{name}.py" for name in QUICK]
    proof = workflow.prove(load_config(ROOT), arguments)
    assert set(proof.numbers) == {"passed"}
    assert proof.numbers["passed"] > 80
