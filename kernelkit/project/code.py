"""Publishes the packages of a kernel with `layout = "dataset"` before the kernel is pushed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kernelkit.notebook.code_dataset import write_code
from kernelkit.notebook.render import Kernel
from kernelkit.project.datasets import DatasetRequest, OnEvent, publish_dataset

if TYPE_CHECKING:
    from kernelkit.kaggle.kernels import Kaggle


def publish_code(kaggle: Kaggle, kernel: Kernel, on_event: OnEvent) -> Kernel:
    """Make the packages the current version of their dataset; the kernel then has it as a source.

    Nothing is uploaded if the current version holds them. Preflight has searched them for
    credentials. The journal is in the project's build/datasets.

    Raises:
        KernelkitError: what `publish_dataset` raises.
    """
    with tempfile.TemporaryDirectory(prefix="kernelkit-code-") as folder:
        write_code(kernel.bundle, Path(folder))
        request = DatasetRequest(
            Path(folder),
            kernel.manifest.code_dataset,
            message=f"The code of {kernel.slug}, {kernel.manifest.source_digest[:12]}",
            is_searched=False,
        )
        state = kernel.project / "build" / "datasets"
        published = publish_dataset(kaggle, request, state, on_event=on_event)
    return kernel.with_code(published.source, published.version)
