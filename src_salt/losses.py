"""Segmentation losses as pure functions.

Each takes logits (B, 1, H, W) and targets (B, 1, H, W) in {0, 1} and returns a scalar. All compute
in float32, even if the model runs in half precision. Only float64 stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

DICE_SMOOTH = 1.0
"""Pixels added to numerator and denominator of Dice; without it, an empty batch gives 0/0."""


def bce_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy plus (1 - soft Dice), with Dice over the whole batch at once.

    39% of the masks are empty. The Dice of a single empty mask has almost no gradient until every
    pixel is correct, so Dice per image would not help.
    """
    logits, targets = _at_least_float32(logits), _at_least_float32(targets)
    probabilities = torch.sigmoid(logits)
    overlap = 2 * (probabilities * targets).sum() + DICE_SMOOTH
    total = probabilities.sum() + targets.sum() + DICE_SMOOTH
    return functional.binary_cross_entropy_with_logits(logits, targets) + 1 - overlap / total


def lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """Lovász hinge, the mean over images (Berman, Triki and Blaschko 2018, algorithm 1).

    All images of the batch are sorted in one call, which gives the same value as a loop.
    """
    errors, truths = sort_by_error(logits, targets)
    return (functional.relu(errors) * jaccard_gradient(truths)).sum(dim=1).mean()


def symmetric_lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of the Lovász hinges for salt and for background.

    In an image without salt, the hinge for salt has a gradient at its worst pixel only. Both hinges
    have the same errors, so the pixels are sorted once.
    """
    errors, truths = sort_by_error(logits, targets)
    slopes = (jaccard_gradient(truths) + jaccard_gradient(1 - truths)) / 2
    return (functional.relu(errors) * slopes).sum(dim=1).mean()


def sort_by_error(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return hinge errors and targets of each image's pixels, both (B, H * W), by falling error."""
    logits = _at_least_float32(logits).flatten(1)
    targets = targets.to(logits.dtype).flatten(1)
    errors = 1 - logits * (2 * targets - 1)
    # A stable order of equal errors makes runs repeatable.
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    return errors, targets.gather(1, order)


def jaccard_gradient(sorted_targets: Tensor) -> Tensor:
    """Return how much each pixel (B, P), worst first, adds to the Jaccard loss once it is wrong.

    A wrong salt pixel takes one pixel from the intersection I, which adds 1 / union. A wrong empty
    pixel adds one to the union U, which adds I / (U - 1) - I / U = I / (U (U - 1)). Subtracting the
    Jaccard losses of neighbors instead would cancel in float32: at 128×128, 4% of the result is
    wrong for a mask of 9 pixels, and 81% for one pixel.
    """
    salt = sorted_targets > 0
    positives = sorted_targets.sum(dim=1, keepdim=True)
    intersection = positives - sorted_targets.cumsum(dim=1)
    union = positives + (1 - sorted_targets).cumsum(dim=1)
    # A union of one pixel is wrong as a whole: the loss jumps from 0 to 1.
    alone = salt | (union == 1)
    return torch.where(alone, 1, intersection / (union - 1).clamp(min=1)) / union


def bce_dice_symmetric(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of BCE-Dice, which is smooth, and the symmetric Lovász hinge, which optimizes IoU."""
    return bce_dice(logits, targets) + symmetric_lovasz_hinge(logits, targets)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


LOSS_FUNCTIONS: Mapping[str, Loss] = MappingProxyType(
    {"BCEDice": bce_dice, "Lovasz": lovasz_hinge, "BCEDiceSymmetric": bce_dice_symmetric}
)
"""The losses by their names in `config.LOSSES`."""
