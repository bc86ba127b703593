"""Muon, the optimizer of the recipe `best`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from src_salt.device import SINGLE_PROCESS, DistributedContext

MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
"""Coefficients a, b and c of the iteration s ← as + bs³ + cs⁵ (Jordan et al. 2024)."""

NEWTON_SCHULZ_STEPS = 5
MIN_NORM = 1e-7

BLOCK_ROWS = 128
"""A matrix with a multiple of so many rows is orthogonalized in blocks of so many, as Khaled et al.
2025 do in most steps ("MuonBP", https://arxiv.org/abs/2510.16981). A step of Muon then takes less
than a third of the time for ResNet-34, and the score is the same (docs/experiments.md)."""

UPDATE_RMS = 0.2
"""Root mean square of an update at a learning rate of 1. It is about that of AdamW, so both can use
the same learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2)."""


class Muon(AdamW):
    """Updates convolutions with orthogonalized momentum, and all other parameters like AdamW.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: a weight (out, in, h, w) is
    treated as a matrix (out, h * w * in). Its momentum keeps its singular vectors, and the singular
    values become 1. A direction that few images contribute to therefore moves as far as one that
    all images contribute to.

    To start an operation costs more than many of these small products. So a step starts few: all
    momenta are in one buffer, and matrices are multiplied together (see `orthogonalize`).

    PyTorch and timm multiply in bfloat16, which a T4 and most CPUs only emulate. This class uses
    float32, and multiplies small matrices instead of large ones. Matrices with a multiple of
    BLOCK_ROWS rows are divided, to save time.

    Args:
        params: all parameters of a network, on one device.
        lr: the learning rate.
        weight_decay: the share of a weight that a step at a learning rate of 1 removes.
        context: the processes that train the network. Each orthogonalizes some of the matrices
            and sends them to the others.
    """

    grad_scale: Tensor | None
    """Set by a GradScaler; None if it has already divided the gradients."""

    found_inf: Tensor
    """Set by a GradScaler. Both attributes exist only during its step of a fused optimizer."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self._context = context
        [group] = self.param_groups
        self._weights = [parameter for parameter in group["params"] if parameter.ndim == 4]
        self._buffers: _Buffers | None = None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(dict(state_dict))
        self._buffers = None  # the momenta are no longer in it

    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        with torch.no_grad():
            self._step_convolutions()
        super().step()  # AdamW skips the convolutions: their gradients are None now

    def _step_convolutions(self) -> None:
        weights = [weight for weight in self._weights if weight.grad is not None]
        if not weights:
            return
        if self._buffers is None or not self._buffers.belong_to(weights):
            self._buffers = _Buffers(weights, self.state, self._context)
        buffers = self._buffers
        for part in buffers.parts:
            gradients = [weight.grad for weight in part.weights if weight.grad is not None]
            torch._foreach_copy_(part.inputs, gradients)
        factor: Tensor | float = 1.0
        if getattr(self, "found_inf", None) is not None:
            # A tensor, since reading the value would stop the GPU. 0 skips the step.
            factor = 1 - self.found_inf
            scale = 1.0 if self.grad_scale is None else self.grad_scale
            buffers.inputs.copy_(torch.where(self.found_inf > 0, 0.0, buffers.inputs / scale))
        buffers.momenta.lerp_(buffers.inputs, (1 - MOMENTUM) * factor)
        buffers.inputs.lerp_(buffers.momenta, MOMENTUM)  # Nesterov's
        buffers.orthogonalize()
        [group] = self.param_groups
        rate, decay = group["lr"], group["weight_decay"]
        torch._foreach_mul_(weights, 1 - rate * decay * factor)
        if isinstance(factor, Tensor):
            buffers.outputs.mul_(factor)
        for part in buffers.parts:
            torch._foreach_add_(list(part.weights), part.outputs, alpha=-rate)
        for weight in weights:
            weight.grad = None


@dataclass(frozen=True)
class _Stack:
    """Matrices (N, R, C) of equal shape, R ≤ C, that one process orthogonalizes.

    A matrix with a multiple of BLOCK_ROWS rows is here as several, one below the other.
    """

    rank: int
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class _Part:
    """Some weights, and their places in the buffers: all with equal strides, or all without."""

    weights: list[nn.Parameter]
    inputs: list[Tensor]
    """Views that are shaped like the weights."""

    outputs: list[Tensor]
    """Views that are shaped like the weights."""


class _Buffers:
    """Momenta, inputs and outputs of the iteration, each in one piece of memory.

    In a buffer, a weight has the order of dimensions (out, h, w, in), which is that of
    channels_last, or (h, w, in, out) if that makes the matrix wide.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        state: Mapping[Tensor, dict[str, Any]],
        context: DistributedContext,
    ) -> None:
        self._weights, self._context = tuple(weights), context
        size = sum(weight.numel() for weight in weights)
        self.momenta, self.inputs, self.outputs = torch.zeros(3, size, device=weights[0].device)
        self._stacks: list[_Stack] = []
        self._segments: list[Tensor] = []
        """The outputs of each process."""

        views: dict[nn.Parameter, tuple[Tensor, Tensor, Tensor]] = {}
        start = 0
        for rank, part in enumerate(_split(weights, context.world_size)):
            first = start
            for (rows, columns), members in part.items():
                length = rows * columns * len(members)
                pieces = [
                    buffer[start : start + length].view(len(members), rows, columns)
                    for buffer in (self.momenta, self.inputs, self.outputs)
                ]
                start += length
                blocks = -1, rows // _blocks(rows), columns
                self._stacks.append(_Stack(rank, pieces[1].view(blocks), pieces[2].view(blocks)))
                for row, weight in enumerate(members):
                    momentum, gradient, direction = (_as_weight(p[row], weight) for p in pieces)
                    views[weight] = momentum, gradient, direction
            self._segments.append(self.outputs[first:start])
        for weight in weights:
            momentum = views[weight][0]
            if "momentum" in state[weight]:
                momentum.copy_(state[weight]["momentum"])
            state[weight]["momentum"] = momentum
            state[weight].setdefault("step", torch.zeros(()))  # AdamW expects it in a loaded state
        # PyTorch updates many tensors in one kernel only if they have equal strides.
        self.parts = [
            _Part(some, [views[w][1] for w in some], [views[w][2] for w in some])
            for fit in (True, False)
            if (some := [w for w in weights if (views[w][1].stride() == w.stride()) == fit])
        ]

    def belong_to(self, weights: Sequence[nn.Parameter]) -> bool:
        """Whether the buffers are for these weights, in this order."""
        return len(weights) == len(self._weights) and all(
            one is other for one, other in zip(weights, self._weights, strict=True)
        )

    def orthogonalize(self) -> None:
        """Compute `outputs` from `inputs`, in all processes together."""
        families: defaultdict[int, list[_Stack]] = defaultdict(list)
        for stack in self._stacks:
            if stack.rank == self._context.rank:
                families[stack.inputs.shape[1]].append(stack)
        for stacks in families.values():
            sizes = [UPDATE_RMS * math.sqrt(stack.inputs.shape[2]) for stack in stacks]
            orthogonalize([s.inputs for s in stacks], [s.outputs for s in stacks], sizes)
        for rank, segment in enumerate(self._segments):
            self._context.broadcast_tensor(segment, rank)


def orthogonalize(
    stacks: Sequence[Tensor], outputs: Sequence[Tensor], sizes: Sequence[float]
) -> None:
    """Move all singular values of matrices close to `sizes`, to between 0.7 and 1.2 of them.

    The Newton-Schulz iteration X ← aX + b(XXᵀ)X + c(XXᵀ)²X multiplies X by polynomials of XXᵀ, so
    it is enough to iterate on S = XXᵀ: for 512x4608 that is a little over a third of the work, and
    all matrices with R rows take part at once. The smallest singular values are lost in the
    rounding of the squares, but the iteration would hardly raise them anyway.

    One step is S ← FSF with F = aI + G and G = bS + cS². As FS is aS + GS, each is one product with
    one addition.

    Args:
        stacks: matrices (N, R, C) with one R ≤ C.
        outputs: where the results are written, (N, R, C).
        sizes: one number for each entry of `stacks`.
    """
    a, b, c = NEWTON_SCHULZ
    rows, counts = stacks[0].shape[1], [len(stack) for stack in stacks]
    squares = stacks[0].new_empty(sum(counts), rows, rows)
    for stack, square in zip(stacks, torch.split(squares, counts), strict=True):
        torch.bmm(stack, stack.mT, out=square)
    # The trace of XXᵀ is the square of X's norm.
    norms = squares.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt_().clamp_(min=MIN_NORM)[:, None, None]
    squares.div_(norms.square())
    change = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
    product = change.clone()
    product.diagonal(dim1=1, dim2=2).add_(a)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        half = torch.baddbmm(squares, change, squares, beta=a)
        squares = torch.baddbmm(half, half, change, beta=a)
        change = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        product = torch.baddbmm(product, change, product, beta=a)
    product.div_(norms)
    parts = torch.split(product, counts)
    for part, stack, output, size in zip(parts, stacks, outputs, sizes, strict=True):
        torch.bmm(part.mul_(size), stack, out=output)


def _split(
    weights: Sequence[nn.Parameter], processes: int
) -> list[defaultdict[tuple[int, int], list[nn.Parameter]]]:
    """Distribute weights over processes with about equal work each, grouped by matrix shape."""
    parts: list[defaultdict[tuple[int, int], list[nn.Parameter]]]
    parts = [defaultdict(list) for _ in range(processes)]
    work = [0] * processes
    # The largest first, so that the small ones fill up the differences.
    for weight in sorted(weights, key=_work, reverse=True):
        least = work.index(min(work))
        parts[least][_matrix_shape(weight)].append(weight)
        work[least] += _work(weight)
    return parts


def _work(weight: Tensor) -> int:
    """Return the multiplications that one iteration of a matrix needs."""
    rows, columns = _matrix_shape(weight)
    blocks = _blocks(rows)
    rows //= blocks
    return blocks * (2 * rows * rows * columns + (4 * (NEWTON_SCHULZ_STEPS - 1) + 1) * rows**3)


def _blocks(rows: int) -> int:
    """Return into how many matrices one with so many rows is divided."""
    return rows // BLOCK_ROWS if rows % BLOCK_ROWS == 0 else 1


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Return rows and columns, the smaller number first."""
    rows, columns = len(weight), weight[0].numel()
    return min(rows, columns), max(rows, columns)


def _as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
    """Return a view of a wide matrix (R, C) with the shape (out, in, h, w) of a weight."""
    out, inputs, height, width = weight.shape
    if out <= weight[0].numel():
        return matrix.view(out, height, width, inputs).permute(0, 3, 1, 2)
    return matrix.view(height, width, inputs, out).permute(3, 2, 0, 1)
