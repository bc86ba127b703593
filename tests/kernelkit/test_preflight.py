from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import pipeline
from kernelkit.config import load_config

Make = Callable[..., Path]


def subjects(project: Path, *settings: str) -> list[str]:
    config = load_config(project, settings=settings, environment={})
    return [problem.subject for problem in pipeline.preflight(config)]


def test_a_good_kernel_has_no_problems(plain: Path) -> None:
    assert subjects(plain) == []
    assert subjects(plain, "kernel.machine_shape=NvidiaTeslaT4") == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["kernel.title=Something else"], ["title"]),
        (["kernel.title=ab", "kernel.id=ab"], ["title", "id"]),
        (["kernel.enable_gpu=true"], ["machine_shape"]),
        (["kernel.machine_shape=NvidiaTeslaP100"], ["machine_shape"]),
        (["kernel.machine_shape=NvidiaTeslaT4", "kernel.enable_tpu=true"], ["enable_tpu"]),
        (["kernel.competition_sources=[]"], ["parameters.data_dir"]),
        (['kernel.dataset_sources=["no-owner"]'], ["dataset_sources"]),
        (['data_dir=["kaggle://input/else/where"]'], ["parameters.data_dir"]),
        (["data_dir=kaggle://imput/letters"], ["parameters.data_dir"]),
        (
            ["data_dir=kaggle://input/ann", 'kernel.dataset_sources=["ann/salt"]'],
            ["parameters.data_dir"],
        ),
        (["data_dir=kaggle://input/salt/x", 'kernel.dataset_sources=["ann/salt/3"]'], []),
    ],
)
def test_each_problem_is_found(plain: Path, settings: list[str], found: list[str]) -> None:
    assert subjects(plain, *settings) == found


def test_all_problems_are_shown_at_once(plain: Path) -> None:
    assert subjects(plain, "kernel.title=Something", "kernel.enable_gpu=true") == [
        "title",
        "machine_shape",
    ]


def test_the_size_is_that_of_the_escaped_source(make_project: Make) -> None:
    """A letter beyond ASCII takes twelve bytes as it is sent, and four on disk."""
    text = "# " + "🧂" * 76_000 + "\n"
    project = make_project({"pkg/big.py": text})
    assert len(text.encode()) < 310_000
    assert subjects(project) == ["notebook"]


def test_incompressible_data_counts_too(make_project: Make) -> None:
    assert subjects(make_project({"pkg/weights.bin": os.urandom(700_000)})) == ["notebook"]
