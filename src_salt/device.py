"""Device, dtype, and the processes of distributed training."""

from __future__ import annotations

import errno
import faulthandler
import gc
import os
import random
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.amp.grad_scaler import GradScaler

T = TypeVar("T")

FAST_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""CPUs with one of these compute in bfloat16. Others emulate it, about fifteen times slower."""


@dataclass(frozen=True)
class DistributedContext:
    """This process among the processes that train one network; by default there is only one."""

    rank: int = 0
    world_size: int = 1
    hang_seconds: float | None = None
    """This process ends if it does not communicate for so long; None waits forever."""

    @classmethod
    def from_torchrun(cls, hang_seconds: float) -> DistributedContext:
        """Join the process group that torchrun started this process in."""
        faulthandler.dump_traceback_later(hang_seconds, exit=True)
        device = None
        if torch.cuda.is_available():
            # Known from the start, so that NCCL connects at once, and a process does not also
            # allocate memory on the first GPU.
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "gloo" if device is None else "nccl",
            timeout=timedelta(seconds=hang_seconds),
            device_id=device,
        )
        return cls(distributed.get_rank(), distributed.get_world_size(), hang_seconds)

    def _restart_timer(self) -> None:
        """Show that this process still makes progress.

        The timer is a thread of the interpreter that needs no lock, so it also ends a process
        that hangs inside a library.
        """
        if self.hang_seconds is not None:
            faulthandler.dump_traceback_later(self.hang_seconds, exit=True)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints events."""
        return self.rank == 0

    def shard(self, rows: Tensor, batch_size: int, fill: bool) -> Tensor:
        """Return this process's part of each batch of `rows`.

        Together the processes get the same batches as a single process would. All get the same
        number of rows: if the last batch cannot be split evenly, it repeats its last row (`fill`)
        or loses the remainder.
        """
        if self.world_size == 1:
            return rows
        shards = []
        for batch in torch.split(rows, batch_size):
            remainder = len(batch) % self.world_size
            if remainder and fill:
                batch = torch.cat([batch, batch[-1:].expand(self.world_size - remainder)])
            elif remainder:
                batch = batch[: len(batch) - remainder]
            shards.append(batch[self.rank :: self.world_size])
        return torch.cat(shards)

    def all_gather(self, values: Tensor) -> Tensor:
        """Return the whole batch, in its order and with gradients, from every process's shard.

        Each process then computes the loss of the whole batch. The backward pass sums the
        gradients of all processes here; DistributedDataParallel's mean cancels that sum.
        """
        if self.world_size == 1:
            return values
        self._restart_timer()
        parts: Tensor = _Gather.apply(values.contiguous())  # type: ignore[no-untyped-call]
        return parts.transpose(0, 1).flatten(0, 1)

    def broadcast(self, value: T) -> T:
        """Return the main process's value in every process."""
        if self.world_size == 1:
            return value
        self._restart_timer()
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_tensor(self, values: Tensor, rank: int) -> None:
        """Overwrite `values` in every process with those of the process `rank`."""
        if self.world_size > 1:
            self._restart_timer()
            distributed.broadcast(values, src=rank)


SINGLE_PROCESS = DistributedContext()


@dataclass(frozen=True)
class Compute:
    """The device and the dtype that a network runs with."""

    device: torch.device
    dtype: torch.dtype
    """Of convolutions. Losses, normalization and weights stay float32."""

    channels_last: bool

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, with the memory format that its convolutions need."""
        model = model.to(self.device)
        if self.channels_last:
            # PyTorch annotates the overload with memory_format alone as untyped.
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context that computes in half precision, if the dtype is one."""
        half = self.dtype != torch.float32
        # PyTorch warns about float32 here, even with enabled=False.
        return torch.autocast(
            self.device.type, self.dtype if half else torch.bfloat16, enabled=half
        )

    def scaler(self) -> GradScaler:
        """Return a gradient scaler: without it, float16 loses small gradients.

        For other dtypes it is disabled and does nothing.
        """
        return GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def pick_device() -> torch.device:
    """Return CUDA if it is available, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_compute(on_device: bool, context: DistributedContext = SINGLE_PROCESS) -> Compute:
    """Return float32 for the baseline, otherwise the narrowest dtype that is fast here.

    With several processes, rank N uses GPU N.
    """
    device = pick_device()
    if device.type == "cuda" and context.world_size > 1:
        device = torch.device("cuda", context.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not on_device:
        return Compute(device, torch.float32, channels_last=False)
    return Compute(device, _fast_dtype(device), channels_last=True)


def _fast_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        # A T4 only emulates bfloat16, which is slow.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if cpu_flags() & FAST_CPU_FLAGS else torch.float32


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return the CPU's feature flags as Linux names them; an empty set on other systems."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.startswith("flags") for word in line.split()[2:]}


def sync_batch_norm(model: nn.Module, context: DistributedContext) -> nn.Module:
    """Make batch normalization use the statistics of the whole batch of all processes."""
    if context.world_size == 1:
        return model
    if torch.cuda.is_available():
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        converted: nn.Module = convert(model)  # type: ignore[no-untyped-call]
        return converted
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _CpuSyncBatchNorm2d.from_batch_norm(child))
    return model


class _CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """A synchronized batch normalization for the CPU, where PyTorch's own does not work."""

    @classmethod
    def from_batch_norm(cls, source: nn.BatchNorm2d) -> _CpuSyncBatchNorm2d:
        """Take over the parameters and running statistics of a layer."""
        layer = cls(source.num_features, source.eps, source.momentum)
        layer.weight, layer.bias = source.weight, source.bias
        layer.running_mean, layer.running_var = source.running_mean, source.running_var
        layer.num_batches_tracked = source.num_batches_tracked
        layer.train(source.training)
        return layer

    def forward(self, features: Tensor) -> Tensor:
        """Normalize (B, C, H, W); the shape stays."""
        if not self.training:
            return super().forward(features)
        tracked, running_mean, running_var = (
            self.num_batches_tracked,
            self.running_mean,
            self.running_var,
        )
        assert tracked is not None
        assert running_mean is not None
        assert running_var is not None
        assert self.momentum is not None
        dtype, features = features.dtype, features.float()
        count = features.numel() / features.shape[1] * distributed.get_world_size()
        mean = _sum_over_processes(features.sum((0, 2, 3))) / count
        centered = features - mean[:, None, None]
        variance = _sum_over_processes(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            tracked.add_(1)
            running_mean.lerp_(mean, self.momentum)
            running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        result = centered * scale[:, None, None] + self.bias[:, None, None]
        return result.to(dtype)


def _sum_over_processes(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


# PyTorch 2.15 deprecates torch.distributed.nn.functional, which has the next two functions.


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each has every gradient of it, so those are added up, too."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(None, gradient)


class _Gather(torch.autograd.Function):
    """The shards of all processes, (world size, …), in the order of their ranks."""

    @staticmethod
    def forward(_context: Any, shard: Tensor) -> Tensor:
        parts = [torch.empty_like(shard) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, shard)
        return torch.stack(parts)

    @staticmethod
    def backward(_context: Any, gradients: Tensor) -> Tensor:
        return _Sum.forward(None, gradients)[distributed.get_rank()]


OUT_OF_MEMORY = re.compile(
    # "CUDA error: out of memory", "Cuda failure 2 'out of memory'", "MPS backend out of memory".
    r"(?:^|:\s*|\bfailure(?: \d+)? '|\b(?:CUDA|HIP|XPU|backend|device|GPU|ran)\s+)"
    r"out of memory\b(?! (?:errors?|bounds|range|access)\b)"
    r"|\b(?:CUDNN|CUBLAS|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED\b|\bCUFFT_ALLOC_FAILED\b"
    r"|\bCUDA_ERROR_OUT_OF_MEMORY\b|\bcudaErrorMemoryAllocation\b"
    # The machine's own memory: PyTorch on Linux and on Windows, the C library, C++ and OpenCV.
    r"|can't allocate memory|not enough memory: you tried to allocate"
    r"|\bCannot allocate memory\b|\bbad_alloc\b|\bInsufficient memory\b",
    re.IGNORECASE | re.MULTILINE,
)
"""What PyTorch and its libraries say when memory is full."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine was too small.

    Also true if that was the cause of the error. A killed data worker is a case of its own
    (`data.is_worker_failure`).
    """
    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or OUT_OF_MEMORY.search(str(one)) is not None
        for one in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, as a traceback would show them."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        context = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or context


def release_memory() -> None:
    """Free what a failed step has left behind.

    PyTorch keeps freed GPU memory for itself, where libraries such as cuDNN cannot use it.
    """
    gc.collect()
    torch.cuda.empty_cache()


def seed_everything(seed: int, device: torch.device, deterministic: bool = True) -> None:
    """Seed every random generator: results repeat bit for bit on a CPU, and closely on CUDA.

    On CUDA the backward pass of bilinear upsampling adds in an arbitrary order. Its deterministic
    form is several times slower, so only the CPU uses deterministic algorithms. If
    `deterministic` is false, CUDA may also benchmark its convolution algorithms and choose
    different ones in different runs.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Filling uninitialized memory takes 4% of a step on a CPU, and no code reads that memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
