"""Losses of segmentation as pure functions.

Each takes logits (B, 1, H, W) and targets (B, 1, H, W) in {0, 1} and returns a scalar. All of them
compute in float32, also where the model ran in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

DICE_SMOOTH = 1.0
"""Added to both sides of the Dice fraction, in pixels: an empty batch gives 0/0 without it."""


def bce_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy plus (1 - soft Dice); Dice is taken over the whole batch at once.

    Over the batch, since the Dice of a single empty mask (39% of them are) has no slope until
    every pixel is already right.
    """
    logits, targets = logits.float(), targets.float()
    probabilities = torch.sigmoid(logits)
    overlap = 2 * (probabilities * targets).sum() + DICE_SMOOTH
    total = probabilities.sum() + targets.sum() + DICE_SMOOTH
    return functional.binary_cross_entropy_with_logits(logits, targets) + 1 - overlap / total


def lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """Lovász hinge, the mean over images (Berman, Triki and Blaschko 2018, algorithm 1).

    All images of the batch are sorted together, which gives the same value as a loop over them.
    """
    errors, truths = worst_first(logits, targets)
    return (functional.relu(errors) * jaccard_slopes(truths)).sum(dim=1).mean()


def symmetric_lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of the Lovász hinge for salt and of that for its absence.

    The first alone has in an image without salt a slope at its worst pixel only. Salt and its
    absence make the same errors, so one order serves both.
    """
    errors, truths = worst_first(logits, targets)
    slopes = (jaccard_slopes(truths) + jaccard_slopes(1 - truths)) / 2
    return (functional.relu(errors) * slopes).sum(dim=1).mean()


def worst_first(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge errors and targets of each image's pixels, both (B, H * W), the largest error first."""
    logits, targets = logits.float().flatten(1), targets.float().flatten(1)
    errors = 1 - logits * (2 * targets - 1)
    # Stable, so that pixels with equal errors keep their order and two runs agree.
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    return errors, targets.gather(1, order)


def jaccard_slopes(sorted_targets: Tensor) -> Tensor:
    """Growth of the Jaccard loss as each next pixel (B, P), worst first, turns wrong."""
    positives = sorted_targets.sum(dim=1, keepdim=True)
    intersection = positives - sorted_targets.cumsum(dim=1)
    union = positives + (1 - sorted_targets).cumsum(dim=1)
    jaccard = 1 - intersection / union
    return torch.diff(jaccard, dim=1, prepend=torch.zeros_like(positives))


def bce_dice_symmetric(logits: Tensor, targets: Tensor) -> Tensor:
    """With the symmetric Lovász hinge: smooth far from the goal, and about IoU near it."""
    return bce_dice(logits, targets) + symmetric_lovasz_hinge(logits, targets)


LOSS_FUNCTIONS: Mapping[str, Loss] = MappingProxyType(
    {"bcedice": bce_dice, "lovasz": lovasz_hinge, "bcedice_symmetric": bce_dice_symmetric}
)
"""By the name that an experiment gives."""
