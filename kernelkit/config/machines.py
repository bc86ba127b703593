"""Kaggle's machines: what each `machine_shape` is, in one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MachineShape:
    """The machine of a `machine_shape`."""

    shape: str
    gpu: str = ""
    """A part of its GPU's name in the output of nvidia-smi; empty for a TPU."""

    gpus: int = 0
    """How many of them a session has."""

    tflops: float = 0.0
    """Of one of them in float32, by NVIDIA's data sheet."""

    is_listed: bool = True
    """Whether Kaggle's documentation names it."""


P100 = "NvidiaTeslaP100"  # CUDA capability 6.0, for which the image's torch has no code

_ALL = (
    MachineShape("NvidiaTeslaT4", "T4", 2, 8.1),  # two, by Kaggle's documentation [D]
    MachineShape(P100, "P100", 1, 9.3),
    MachineShape("NvidiaTeslaA100", "A100", 1, 19.5),
    MachineShape("NvidiaL4", "L4", 4, 30.3),  # four, by reports of its competitions [A]
    MachineShape("NvidiaL4X1", "L4", 1, 30.3),
    MachineShape("NvidiaH100", "H100", 1, 66.9),
    MachineShape("NvidiaRtxPro6000", "RTX PRO 6000", 1, 125.0),
    MachineShape("TpuV5E8"),
    MachineShape("TpuV6E8"),
    MachineShape("NvidiaTeslaT4Highmem", "T4", 2, 8.1, is_listed=False),
)

MACHINES = {one.shape: one for one in _ALL}
"""Every known `machine_shape`; Kaggle has had these names since February 2026."""

SHAPES = tuple(one.shape for one in _ALL if one.is_listed)
"""Those that Kaggle documents; another name in a project file gives a warning."""


def gpu_tflops(name: str) -> float | None:
    """The peak of a GPU in Tflop/s, by its name in the output of nvidia-smi; None if unknown."""
    return next((one.tflops for one in _ALL if one.gpu and one.gpu in name), None)
