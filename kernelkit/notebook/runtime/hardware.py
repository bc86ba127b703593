"""What the run's machine has, and whether its GPUs compute."""

from __future__ import annotations

import os
import platform
import re
import subprocess

from .documents import Hardware
from .faults import RuntimeFault

NVIDIA_SMI_TIMEOUT_SECONDS = 30


def session_number() -> str | None:
    """Kaggle cancels a run by this number, and shows it nowhere else; None outside Kaggle."""
    session = re.search(r"\d+$", os.environ.get("KAGGLE_CONTAINER_NAME", ""))
    return session[0] if session else None


def read_hardware() -> Hardware:
    """The machine's processor and the GPUs that its driver reports."""
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": nvidia_gpus(),
        "gpu_checked": False,
    }


def require_gpu(machine_shape: str | None, gpus: list[str]) -> bool:
    """Whether every GPU has computed; False without PyTorch.

    Raises:
        RuntimeFault: there is no GPU, or it cannot compute.
    """
    asked = machine_shape or "a GPU"
    if not gpus:
        raise RuntimeFault(
            f"This kernel asks for {asked} and the run has no GPU. On Kaggle: is the "
            "account verified by phone, and is there GPU quota left? For a run on a CPU "
            "set enable_gpu = false and machine_shape = ''."
        )
    return compute_on_gpu(asked, gpus)


def nvidia_gpus() -> list[str]:
    """The names of the GPUs that the driver reports."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def compute_on_gpu(asked: str, gpus: list[str]) -> bool:
    """Multiply on every GPU: `torch.cuda.is_available()` is True even on cards torch cannot use.

    Returns False without PyTorch.
    """
    try:
        import torch
    except ImportError:
        return False
    try:
        for index in range(torch.cuda.device_count()):
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            if float((ones @ ones).sum()) != 64.0**3:
                raise RuntimeError(f"cuda:{index} multiplies wrongly")
        if not torch.cuda.device_count():
            raise RuntimeError("torch sees no CUDA device")
    except RuntimeError as error:
        raise RuntimeFault(
            f"This kernel asks for {asked}; the run has {', '.join(gpus)}, and torch "
            f"{torch.__version__} cannot compute there: {error}. Set another machine_shape."
        ) from error
    return True
