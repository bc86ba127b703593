"""Muon, the optimizer of the recipe `best`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
"""Coefficients a, b and c of the iteration s ← as + bs³ + cs⁵ (Jordan et al. 2024)."""

NEWTON_SCHULZ_STEPS = 5
MIN_NORM = 1e-7

UPDATE_RMS = 0.2
"""Root mean square of an update at a learning rate of 1. It is about that of AdamW, so both can use
the same learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2)."""


class Muon(AdamW):
    """Updates convolutions with orthogonalized momentum, and all other parameters like AdamW.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: a weight (out, in, h, w) is
    treated as a matrix (out, in * h * w). Its momentum keeps its singular vectors, and the singular
    values become 1. A direction that few images contribute to therefore moves as far as one that
    all images contribute to.

    PyTorch and timm multiply in bfloat16, which a T4 and most CPUs only emulate. This class uses
    float32, and multiplies small matrices instead of large ones (see `orthogonalize`).
    """

    grad_scale: Tensor | None
    """Set by a GradScaler; None if it has already divided the gradients."""

    found_inf: Tensor
    """Set by a GradScaler. Both attributes exist only during its step of a fused optimizer."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)

    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for convolutions in _group_by_shape(group["params"]):
                    self._step_convolutions(convolutions, group["lr"], group["weight_decay"])
        super().step()  # AdamW skips the convolutions: their gradients are None now

    def _step_convolutions(
        self, weights: Sequence[nn.Parameter], rate: float, decay: float
    ) -> None:
        # All at once: on a GPU, launching a small product costs more than computing it.
        directions = orthogonalize(
            torch.stack([self._momentum(weight).flatten(1) for weight in weights])
        )
        size = UPDATE_RMS * math.sqrt(max(directions.shape[1:]))
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(1 - rate * decay * self._step_factor())
            weight.sub_(direction.reshape(weight.shape) * (rate * size * self._step_factor()))
            weight.grad = None

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        """Update the momentum and return Nesterov's: the momentum after an equal next gradient."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # AdamW expects it when a state is loaded
        gradient = weight.grad
        assert gradient is not None
        if self._uses_scaler():
            scale = 1.0 if self.grad_scale is None else self.grad_scale
            gradient = torch.where(self.found_inf > 0, 0.0, gradient / scale)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, (1 - MOMENTUM) * self._step_factor())
        return gradient.lerp(momentum, MOMENTUM)

    def _uses_scaler(self) -> bool:
        """Whether a GradScaler runs this step."""
        return getattr(self, "found_inf", None) is not None

    def _step_factor(self) -> Any:
        """Return 0 if a scaled gradient overflowed and the step must be skipped, otherwise 1.

        With a scaler this is a tensor, since reading its value would stop the GPU.
        """
        return 1 - self.found_inf if self._uses_scaler() else 1.0


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move all singular values of matrices (N, R, C) close to 1, to between 0.7 and 1.2.

    The Newton-Schulz iteration X ← aX + b(XXᵀ)X + c(XXᵀ)²X multiplies X by polynomials of XXᵀ, so
    it is enough to iterate on XXᵀ: for 512x4608 that is a little over a third of the work. The
    smallest singular values are lost in the rounding of the squares, but the iteration would hardly
    raise them anyway.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    matrices = matrices / norms.clamp(min=MIN_NORM)
    square = matrices @ matrices.mT
    product = factor = _factor(square)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        square = factor @ square @ factor
        factor = _factor(square)
        product = factor @ product
    return product @ matrices


def _factor(square: Tensor) -> Tensor:
    """Return aI + bS + cS², the factor of one step."""
    a, b, c = NEWTON_SCHULZ
    factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def _group_by_shape(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Group the weights of convolutions that have a gradient by their shape."""
    groups: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.ndim == 4 and parameter.grad is not None:
            groups[parameter.shape].append(parameter)
    return groups.values()
