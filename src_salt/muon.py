"""Muon, the optimiser of the recipe `best`."""

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
"""Coefficients a, b and c of the step from s to as + bs³ + cs⁵ (Jordan et al. 2024)."""

NEWTON_SCHULZ_STEPS = 5
LEAST_NORM = 1e-7

UPDATE_SIZE = 0.2
"""Root mean square of an update for a learning rate of 1: about that of AdamW, so that both may
have the same rate (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2)."""


class Muon(AdamW):
    """Moves convolutions by their orthogonalised momentum, and all else as AdamW does.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: a weight (out, in, h, w) is
    taken for a matrix (out, in * h * w), and of its momentum's singular values only the vectors
    are kept, so that what few images ask for moves as far as what all of them do.

    PyTorch's and timm's form multiply in bfloat16, which neither a T4 nor most CPUs can do other
    than by imitation. This one stays in float32, and multiplies small matrices where they multiply
    large ones (see `orthogonalised`).
    """

    grad_scale: Tensor | None
    """None where the GradScaler has divided by it already."""

    found_inf: Tensor
    """As grad_scale there only while a GradScaler steps: it leaves both to a fused optimiser."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)

    def step(self) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for convolutions in _of_one_shape(group["params"]):
                    self._step_of_convolutions(convolutions, group["lr"], group["weight_decay"])
        super().step()  # AdamW passes over what has no gradient any more

    def _step_of_convolutions(
        self, weights: Sequence[nn.Parameter], rate: float, decay: float
    ) -> None:
        # Together, since on a GPU each small product costs little more than its start.
        directions = orthogonalised(
            torch.stack([self._momentum(weight).flatten(1) for weight in weights])
        )
        size = UPDATE_SIZE * math.sqrt(max(directions.shape[1:]))
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(1 - rate * decay * self._kept())
            weight.sub_(direction.reshape(weight.shape) * (rate * size * self._kept()))
            weight.grad = None

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        """Nesterov's: what the momentum will be if the gradient stays as it is."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # AdamW expects one when it is loaded
        gradient = weight.grad
        assert gradient is not None
        if self._scaled():
            scale = 1.0 if self.grad_scale is None else self.grad_scale
            gradient = torch.where(self.found_inf > 0, 0.0, gradient / scale)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, (1 - MOMENTUM) * self._kept())
        return gradient.lerp(momentum, MOMENTUM)

    def _scaled(self) -> bool:
        """Whether a GradScaler takes this step."""
        return getattr(self, "found_inf", None) is not None

    def _kept(self) -> Any:
        """0 where a scaled gradient has overflown and the step is passed over, else 1.

        A tensor then, since to ask the GPU would stop it.
        """
        return 1 - self.found_inf if self._scaled() else 1.0


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C) with all singular values brought near 1, from 0.7 to 1.2.

    Newton and Schulz's iteration X ← aX + b(XXᵀ)X + c(XXᵀ)²X is a product of polynomials of XXᵀ,
    so it needs no more of X than that: for 512x4608 a good third of the work. The smallest singular
    values get lost in the rounding of the squares, and would hardly have been raised.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    matrices = matrices / norms.clamp(min=LEAST_NORM)
    square = matrices @ matrices.mT
    product = factor = _factor(square)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        square = factor @ square @ factor
        factor = _factor(square)
        product = factor @ product
    return product @ matrices


def _factor(square: Tensor) -> Tensor:
    """aI + bS + cS², by which one step multiplies X."""
    a, b, c = NEWTON_SCHULZ
    factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def _of_one_shape(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """The convolutions' weights that have a gradient."""
    alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.ndim == 4 and parameter.grad is not None:
            alike[parameter.shape].append(parameter)
    return alike.values()
