"""IoU, the competition's score, and the post-processing of probabilities.

Both metrics take masks (B, H, W) of bool and return one value per image: float (B,).
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
    """Return the IoU of each image, (B,) float. An empty prediction of an empty mask gives 1."""
    intersection, union = _overlap(predictions, truths)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))


def competition_score(predictions: Tensor, truths: Tensor) -> Tensor:
    """Return the competition's score of each image, (B,) float; the leaderboard shows the mean.

    The score is the share of the thresholds 0.50, 0.55 … 0.95 that the IoU exceeds. For an empty
    mask it is 1 if the prediction is empty too, otherwise 0. (The notebook version built on
    np.histogram gives 0.6 to an empty prediction of a mask that covers 79%; it should be 0.)
    """
    return _score_of_overlap(*_overlap(predictions, truths))


Probabilities = npt.NDArray[np.float32]
"""Probability of salt at each pixel, (N, 101, 101)."""

Masks = npt.NDArray[np.bool_]
"""(N, 101, 101)."""

THRESHOLDS = tuple(round(0.30 + 0.05 * step, 2) for step in range(9))
MIN_AREAS = (0, 10, 20, 40, 80, 160)
"""The values that `tune_threshold` tries. Areas are in pixels; an image has 10,201."""


@dataclass(frozen=True)
class Postprocessing:
    """How probabilities become a mask."""

    threshold: float = THRESHOLD
    """A pixel is salt above this probability."""

    min_area: int = 0
    """Connected regions with fewer pixels are removed."""

    def apply(self, probabilities: Probabilities) -> Masks:
        """Convert probabilities (N, H, W) to masks of the same shape."""
        masks: Masks = probabilities > self.threshold
        if self.min_area:
            for row, mask in enumerate(masks):
                if mask.any():
                    masks[row] = self._without_small_regions(mask)
        return masks

    def _without_small_regions(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        _, labels, regions, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        large = regions[:, cv2.CC_STAT_AREA] >= self.min_area
        large[0] = False  # the background
        kept: npt.NDArray[np.bool_] = large[labels]
        return kept


CANDIDATES = tuple(
    Postprocessing(threshold, area) for area in MIN_AREAS for threshold in THRESHOLDS
)


def image_scores(masks: Masks, truths: Masks) -> npt.NDArray[np.float32]:
    """Return the `competition_score` of NumPy masks, (N,)."""
    scores = competition_score(torch.from_numpy(masks), torch.from_numpy(truths))
    values: npt.NDArray[np.float32] = scores.numpy()
    return values


def tune_threshold(
    probabilities: Probabilities, truths: Masks
) -> tuple[Postprocessing, dict[Postprocessing, float]]:
    """Return the post-processing with the highest mean score, and the score of each candidate.

    Of several equal ones, the one closest to a plain threshold of 0.5 wins.
    """
    return _best(_score_table(probabilities, truths))


def cross_fitted_masks(probabilities: Probabilities, truths: Masks) -> Masks:
    """Return masks whose post-processing was tuned on other images.

    The images with even and with odd numbers each use the post-processing that is best for the
    other half, so the score of these masks is not inflated by the tuning.
    """
    table = _score_table(probabilities, truths)
    masks = np.zeros(probabilities.shape, np.bool_)
    for first in (0, 1):
        half, other_half = slice(first, None, 2), slice(1 - first, None, 2)
        chosen = _best(table[other_half])[0] if len(table) > 1 else Postprocessing()
        masks[half] = chosen.apply(probabilities[half])
    return masks


def _best(table: npt.NDArray[np.float32]) -> tuple[Postprocessing, dict[Postprocessing, float]]:
    means = table.mean(axis=0, dtype=np.float64).tolist()
    scores = dict(zip(CANDIDATES, means, strict=True))
    best = max(
        scores, key=lambda one: (scores[one], -one.min_area, -abs(one.threshold - THRESHOLD))
    )
    return best, scores


def _score_table(probabilities: Probabilities, truths: Masks) -> npt.NDArray[np.float32]:
    """Return the competition's score of each image for each of `CANDIDATES`, (N, candidates).

    The sizes and overlaps of the regions are computed once per threshold. Making the masks of
    every candidate would take thirty times as long.
    """
    intersection = np.zeros((len(truths), len(MIN_AREAS), len(THRESHOLDS)), np.int64)
    predicted = np.zeros_like(intersection)
    for row, (image, truth) in enumerate(zip(probabilities, truths, strict=True)):
        for column, threshold in enumerate(THRESHOLDS):
            mask = (image > threshold).view(np.uint8)
            count, labels = cv2.connectedComponents(mask)
            sizes = np.bincount(labels.ravel(), minlength=count)[1:]
            overlaps = np.bincount(labels[truth], minlength=count)[1:]
            for index, min_area in enumerate(MIN_AREAS):
                predicted[row, index, column] = sizes[sizes >= min_area].sum()
                intersection[row, index, column] = overlaps[sizes >= min_area].sum()
    union = truths.sum(axis=(1, 2))[:, None, None] + predicted - intersection
    table = _score_of_overlap(torch.from_numpy(intersection), torch.from_numpy(union))
    values: npt.NDArray[np.float32] = table.reshape(len(truths), -1).numpy()
    return values


def _score_of_overlap(intersection: Tensor, union: Tensor) -> Tensor:
    """Return the competition's score for numbers of pixels of any shape."""
    # In integers, IoU > k/20 is 20 * intersection > k * union: no rounding at the thresholds.
    twentieths = torch.arange(10, 20, device=union.device)
    hits = 20 * intersection[..., None] > twentieths * union[..., None]
    return torch.where(union == 0, 1.0, hits.double().mean(dim=-1)).float()


def _overlap(predictions: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels of intersection and union of each image, (B,) int64 each."""
    intersection = (predictions & truths).flatten(1).sum(dim=1)
    union = (predictions | truths).flatten(1).sum(dim=1)
    return intersection, union
