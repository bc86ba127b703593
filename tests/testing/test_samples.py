"""`prove` passes for every sample: one tiny package for each kind of difficulty."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.config import load_config

SAMPLES = Path(__file__).parent.parent / "samples"

PROVEN = [
    "awkward_source",
    "command_line",
    "introspection",
    "lazy_imports",
    "names",
    "namespace",
    "nested",
    "package_data",
    "pickling",
    "relative_imports",
    "single_module",
    "src_layout",
    "two_packages",
]


QUICK = ("awkward_source",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROVEN],
)
def test_a_sample_is_proven(name: str) -> None:
    proof = workflow.prove(load_config(SAMPLES / name))
    assert set(proof.numbers) == {"passed"}
    tests = sum(
        path.read_text(encoding="utf-8").count("\ndef test_")
        for path in (SAMPLES / name / "tests").glob("*.py")
    )
    assert len(proof.outcomes) >= tests > 1
