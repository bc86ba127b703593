"""Reads the trace of torch.profiler: the kernels on the GPU, and the gaps between them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
LAUNCH = re.compile(r"Launch(Cooperative)?Kernel|GraphLaunch")
ARITHMETIC = re.compile(
    r"gemm|gemv|cutlass|nvjet|xmma|fprop|dgrad|wgrad|winograd|convolve|conv2d|conv_depthwise",
    re.IGNORECASE,
)
"""Names of kernels that convolve or multiply matrices, in cuDNN, cuBLAS and CUTLASS."""


@dataclass(frozen=True)
class Kernel:
    """One kernel or copy on the device; times in microseconds."""

    name: str
    is_kernel: bool
    start: float
    duration: float

    @property
    def end(self) -> float:
        """When it ended."""
        return self.start + self.duration


@dataclass(frozen=True)
class Trace:
    """What the profiler saw on the device."""

    kernels: tuple[Kernel, ...]
    launches: int

    @property
    def busy(self) -> float:
        """Seconds in which the device worked; kernels at the same time count once."""
        return sum(end - start for start, end in self._spans()) / 1e6

    @property
    def gaps(self) -> list[float]:
        """Seconds between two kernels while the device did nothing, the longest first."""
        pauses = [following[0] - span[1] for span, following in itertools.pairwise(self._spans())]
        return sorted((pause / 1e6 for pause in pauses), reverse=True)

    @property
    def arithmetic(self) -> float:
        """Seconds in convolutions and matrix products."""
        return sum(one.duration for one in self.kernels if ARITHMETIC.search(one.name)) / 1e6

    @property
    def other(self) -> float:
        """Seconds in all other kernels and copies."""
        return sum(one.duration for one in self.kernels if not ARITHMETIC.search(one.name)) / 1e6

    def slowest(self) -> list[tuple[str, int, float]]:
        """Return the name, number and seconds of the kernels, the slowest first."""
        sums: dict[str, tuple[int, float]] = {}
        for one in self.kernels:
            count, seconds = sums.get(one.name, (0, 0.0))
            sums[one.name] = count + 1, seconds + one.duration / 1e6
        ordered = sorted(sums.items(), key=lambda entry: -entry[1][1])
        return [(name, count, seconds) for name, (count, seconds) in ordered]

    def _spans(self) -> list[tuple[float, float]]:
        """Return the times without a pause, in order."""
        spans: list[tuple[float, float]] = []
        for one in sorted(self.kernels, key=lambda kernel: kernel.start):
            if spans and one.start <= spans[-1][1]:
                spans[-1] = spans[-1][0], max(spans[-1][1], one.end)
            else:
                spans.append((one.start, one.end))
        return spans


def read_trace(events: Iterable[dict[str, Any]]) -> Trace:
    """Read the events of a Chrome trace that torch.profiler exported."""
    kernels, launches = [], 0
    for event in events:
        if event.get("ph") != "X":
            continue
        category, name = str(event.get("cat", "")).lower(), str(event.get("name", ""))
        if category in DEVICE_WORK:
            start, duration = float(event["ts"]), float(event["dur"])
            kernels.append(Kernel(name, category == "kernel", start, duration))
        elif category in {"cuda_runtime", "cuda_driver"} and LAUNCH.search(name):
            launches += 1
    return Trace(tuple(kernels), launches)
