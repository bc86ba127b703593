"""Where the time of a training step goes: operations, kernels, launches and gaps.

The profiler's trace gives the time of each kernel, which the profiler does not change. It slows
down the host, so the gaps are what remains of a step that was timed without it.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.programs import Program
from benchmarks.gpu.results import StepProfile
from benchmarks.gpu.trace import Trace, read_trace
from benchmarks.workload import now

STEPS = 4  # in a trace
REPETITIONS = 5  # of the steps without the profiler
SHOWN = 8  # kernels in a table
SHOWN_GAPS = 3
MAX_NAME = 70  # of a kernel in a table; templates make names of hundreds of characters


class OperationCounter(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches, also those of the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count: int = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Count and call an operation."""
        self.count += 1
        return function(*arguments, **(keywords or {}))


def profile_step(program: Program, flops: int) -> StepProfile:
    """Profile a training step of a program that is warmed up and does `flops` per image."""
    batches = _endless(program)
    operations = _operations(program, next(batches))
    wall = median(_seconds_per_step(program, batches) for _ in range(REPETITIONS))
    activities = [ProfilerActivity.CPU]
    if program.compute.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities):  # the first use of the profiler initializes it
        program.steps([next(batches)])
        now()
    with profile(activities=activities) as recorded:
        profiled = _seconds_per_step(program, batches)
    trace = Trace((), 0)
    if program.compute.device.type == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(path))
            content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
            trace = read_trace(content["traceEvents"])
        slowest = trace.slowest()
    else:
        slowest = [
            (str(one.key), int(one.count), one.self_cpu_time_total / 1e6)
            for one in sorted(recorded.key_averages(), key=lambda one: -one.self_cpu_time_total)
        ]
    return StepProfile(
        cell=program.cell,
        dtype=str(program.compute.dtype).removeprefix("torch."),
        operations=operations,
        wall=wall,
        profiled=profiled,
        kernels=round(sum(one.is_kernel for one in trace.kernels) / STEPS),
        launches=round(trace.launches / STEPS),
        busy=trace.busy / STEPS,
        arithmetic=trace.arithmetic / STEPS,
        other=trace.other / STEPS,
        largest_gaps=tuple(trace.gaps[:SHOWN_GAPS]),
        flops=program.cell.batch_size * flops,
        slowest=_per_step(slowest),
    )


def _endless(program: Program) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of full size, epoch after epoch."""
    while True:
        for images, masks in program.batches:
            if len(images) == program.cell.batch_size:
                yield images, masks


def _operations(program: Program, batch: tuple[Tensor, Tensor]) -> int:
    """Count the operations of a step, without making the batch."""
    with OperationCounter() as counter:
        program.steps([batch])
    count: int = counter.count
    return count


def _seconds_per_step(program: Program, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    began = now()
    program.steps(itertools.islice(batches, STEPS))
    return (now() - began) / STEPS


def _per_step(slowest: Sequence[tuple[str, int, float]]) -> tuple[tuple[str, int, float], ...]:
    return tuple(
        (name[:MAX_NAME], max(1, round(count / STEPS)), seconds / STEPS)
        for name, count, seconds in slowest[:SHOWN]
    )
