"""What computes: the device, its number format, and this process among several."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.nn.functional import all_gather as gather_with_gradients
from torch.distributed.nn.functional import all_reduce as sum_with_gradients

T = TypeVar("T")

FAST_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Of the processors that multiply in bfloat16; the others imitate it, some fifteen times slower."""


@dataclass(frozen=True)
class Team:
    """This process among those that train one network together; alone by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Team:
        """The team that torchrun started this process in."""
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor, batch_size: int, fill: bool) -> Tensor:
        """This process's rows, such that the team's batches are those of one process.

        Every process needs as many: a last batch that does not divide is filled up with its last
        row, or else cut.
        """
        if self.size == 1:
            return rows
        mine = []
        for batch in torch.split(rows, batch_size):
            spare = len(batch) % self.size
            if spare and fill:
                batch = torch.cat([batch, batch[-1:].expand(self.size - spare)])
            elif spare:
                batch = batch[: len(batch) - spare]
            mine.append(batch[self.rank :: self.size])
        return torch.cat(mine)

    def gathered(self, values: Tensor) -> Tensor:
        """The whole batch of what each process has a `share` of, in its order, with gradients.

        Each process then computes the same loss of the whole batch. The gradients that flow back
        here are the sum over the team, which the mean that DistributedDataParallel takes undoes.
        """
        if self.size == 1:
            return values
        parts = gather_with_gradients(values.contiguous())  # type: ignore[no-untyped-call]
        return torch.stack(list(parts), dim=1).flatten(0, 1)

    def agreed(self, answer: T) -> T:
        """The leader's answer, in every process."""
        if self.size == 1:
            return answer
        answers = [answer]
        distributed.broadcast_object_list(answers, src=0)
        return answers[0]


ALONE = Team()


@dataclass(frozen=True)
class Compute:
    """Where and in which number format a network runs."""

    device: torch.device
    number_format: torch.dtype
    """Of convolutions; losses, normalisation and weights stay float32."""

    channels_last: bool

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, its convolutions' weights laid out for it."""
        model = model.to(self.device)
        if self.channels_last:
            # torch annotates the overload with memory_format alone as untyped.
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """Half precision for what is computed inside, where there is any."""
        half = self.number_format != torch.float32
        # Of float32 torch would warn, even where nothing is to be done.
        return torch.autocast(
            self.device.type, self.number_format if half else torch.bfloat16, enabled=half
        )

    def scaler(self) -> GradScaler:
        """float16 loses small gradients unless the loss is scaled; disabled it does nothing."""
        return GradScaler(self.device.type, enabled=self.number_format == torch.float16)


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_compute(on_device: bool, team: Team = ALONE) -> Compute:
    """float32 for the seed's path, else the narrowest format that this device computes fast.

    The processes of a team each have a GPU of their own, in the order of their ranks.
    """
    device = pick_device()
    if device.type == "cuda" and team.size > 1:
        device = torch.device("cuda", team.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not on_device:
        return Compute(device, torch.float32, channels_last=False)
    return Compute(device, _number_format(device), channels_last=True)


def _number_format(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        # A T4 imitates bfloat16: that is slow, so it is not counted.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if cpu_flags() & FAST_CPU_FLAGS else torch.float32


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The processor's abilities as Linux names them; nothing where there is no such file."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.startswith("flags") for word in line.split()[2:]}


def synchronised(model: nn.Module, team: Team) -> nn.Module:
    """The model with batch normalisation over the whole team's batch."""
    if team.size == 1:
        return model
    if torch.cuda.is_available():
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        converted: nn.Module = convert(model)  # type: ignore[no-untyped-call]
        return converted
    for parent in model.modules():
        for child in parent.children():
            if type(child) is nn.BatchNorm2d:
                child.__class__ = _TeamBatchNorm2d
    return model


class _TeamBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's SyncBatchNorm has no CPU form; a rehearsal of a team needs one."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(features)
        tracked, mean_so_far, variance_so_far = (
            self.num_batches_tracked,
            self.running_mean,
            self.running_var,
        )
        assert tracked is not None
        assert mean_so_far is not None
        assert variance_so_far is not None
        assert self.momentum is not None
        number_format, features = features.dtype, features.float()
        count = features.numel() / features.shape[1] * distributed.get_world_size()
        mean = _team_sum(features.sum((0, 2, 3))) / count
        centred = features - mean[:, None, None]
        variance = _team_sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            tracked.add_(1)
            mean_so_far.lerp_(mean, self.momentum)
            variance_so_far.lerp_(variance * count / (count - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        result = centred * scale[:, None, None] + self.bias[:, None, None]
        return result.to(number_format)


def _team_sum(values: Tensor) -> Tensor:
    total: Tensor = sum_with_gradients(values)  # type: ignore[no-untyped-call]
    return total


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is that of an allocator, of a GPU or of a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def seed_everything(seed: int, device: torch.device, exact: bool = True) -> None:
    """Make what follows repeat itself: bit for bit on a CPU, closely on CUDA.

    On CUDA the backward pass of bilinear upsampling adds in an arbitrary order. Its deterministic
    form is several times slower, so strictness stays a matter of the CPU. Without `exact` CUDA may
    also try which convolution is the fastest, and take another one in another run.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = exact
    torch.backends.cudnn.benchmark = not exact
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Memory that nobody reads before writing it need not be filled: 4% of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
