"""Intersection over union, the competition's score, and the cut that makes masks for it.

Both metrics take masks (B, H, W) of bool, and give one value for each image: float (B,).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

THRESHOLD = 0.5
"""A pixel is salt above this probability, which is a logit above 0."""


def iou(predictions: Tensor, truths: Tensor) -> Tensor:
    """IoU of each image, (B,) float; an empty prediction of an empty mask is 1."""
    intersection, union = _overlap(predictions, truths)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))


def competition_score(predictions: Tensor, truths: Tensor) -> Tensor:
    """The competition's score of each image, (B,) float; the leaderboard shows the mean.

    The share of the thresholds 0.50, 0.55 … 0.95 that the IoU exceeds. For an empty mask that is 1
    if the prediction is empty too, else 0. (The notebook version built on np.histogram gives 0.6
    to an empty prediction of a mask that covers 79%; it should be 0.)
    """
    return _score_of_overlap(*_overlap(predictions, truths))


Probabilities = npt.NDArray[np.float32]
"""Of salt at each pixel, (N, 101, 101)."""

Masks = npt.NDArray[np.bool_]
"""(N, 101, 101)."""

THRESHOLDS = tuple(round(0.30 + 0.05 * step, 2) for step in range(9))
SMALLEST_AREAS = (0, 10, 20, 40, 80, 160)
"""What `best_cut` tries: probabilities, and pixels of the 10,201 of a picture."""


@dataclass(frozen=True)
class Cut:
    """How probabilities become a mask."""

    threshold: float = THRESHOLD
    """A pixel is salt above this probability."""

    smallest: int = 0
    """Connected regions of fewer pixels are left out."""

    def masks(self, probabilities: Probabilities) -> Masks:
        """(N, H, W) of probabilities to masks of the same shape."""
        masks: Masks = probabilities > self.threshold
        if self.smallest:
            for row, mask in enumerate(masks):
                if mask.any():
                    masks[row] = self._without_small(mask)
        return masks

    def _without_small(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        _, labels, regions, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        large = regions[:, cv2.CC_STAT_AREA] >= self.smallest
        large[0] = False  # the background
        kept: npt.NDArray[np.bool_] = large[labels]
        return kept


CUTS = tuple(Cut(threshold, area) for area in SMALLEST_AREAS for threshold in THRESHOLDS)


def scores(masks: Masks, truths: Masks) -> npt.NDArray[np.float32]:
    """`competition_score` of arrays, (N,)."""
    found = competition_score(torch.from_numpy(masks), torch.from_numpy(truths))
    values: npt.NDArray[np.float32] = found.numpy()
    return values


def best_cut(probabilities: Probabilities, truths: Masks) -> tuple[Cut, dict[Cut, float]]:
    """The cut with the highest mean score, and the score of every one that was tried.

    Of several equal ones the nearest to the plain threshold of one half.
    """
    return _best(_scores_by_cut(probabilities, truths))


def cross_cut(probabilities: Probabilities, truths: Masks) -> Masks:
    """Masks of which none is cut by a cut that was chosen on its own image.

    Every second image is cut as is best for the others, so that a score of these masks does not
    flatter the choice.
    """
    table = _scores_by_cut(probabilities, truths)
    masks = np.zeros(probabilities.shape, np.bool_)
    for first in (0, 1):
        mine, others = slice(first, None, 2), slice(1 - first, None, 2)
        cut = _best(table[others])[0] if len(table) > 1 else Cut()
        masks[mine] = cut.masks(probabilities[mine])
    return masks


def _best(table: npt.NDArray[np.float32]) -> tuple[Cut, dict[Cut, float]]:
    tried = dict(zip(CUTS, table.mean(axis=0, dtype=np.float64).tolist(), strict=True))
    best = max(tried, key=lambda cut: (tried[cut], -cut.smallest, -abs(cut.threshold - THRESHOLD)))
    return best, tried


def _scores_by_cut(probabilities: Probabilities, truths: Masks) -> npt.NDArray[np.float32]:
    """The competition's score of each image by each of `CUTS`, (N, cuts).

    From the regions' sizes and overlaps, which are found once for each threshold: making the masks
    of every cut takes thirty times as long.
    """
    both = np.zeros((len(truths), len(SMALLEST_AREAS), len(THRESHOLDS)), np.int64)
    found = np.zeros_like(both)
    for row, (picture, truth) in enumerate(zip(probabilities, truths, strict=True)):
        for column, threshold in enumerate(THRESHOLDS):
            mask = (picture > threshold).view(np.uint8)
            count, labels = cv2.connectedComponents(mask)
            sizes = np.bincount(labels.ravel(), minlength=count)[1:]
            overlaps = np.bincount(labels[truth], minlength=count)[1:]
            for place, smallest in enumerate(SMALLEST_AREAS):
                found[row, place, column] = sizes[sizes >= smallest].sum()
                both[row, place, column] = overlaps[sizes >= smallest].sum()
    either = truths.sum(axis=(1, 2))[:, None, None] + found - both
    table = _score_of_overlap(torch.from_numpy(both), torch.from_numpy(either))
    values: npt.NDArray[np.float32] = table.reshape(len(truths), -1).numpy()
    return values


def _score_of_overlap(both: Tensor, either: Tensor) -> Tensor:
    """The competition's score for pixels in both masks and pixels in either, of any shape."""
    # In whole numbers, IoU > k/20 is 20 * both > k * either: no rounding at the thresholds.
    twentieths = torch.arange(10, 20, device=either.device)
    hits = 20 * both[..., None] > twentieths * either[..., None]
    return torch.where(either == 0, 1.0, hits.double().mean(dim=-1)).float()


def _overlap(predictions: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in both and pixels in either, (B,) int64."""
    both = (predictions & truths).flatten(1).sum(dim=1)
    either = (predictions | truths).flatten(1).sum(dim=1)
    return both, either
