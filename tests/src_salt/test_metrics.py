from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from src_salt.metrics import (
    Postprocessing,
    competition_score,
    cross_fitted_masks,
    image_scores,
    iou,
    tune_threshold,
)


def strip(*lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Predictions and truths (B, 1, 100) with the first pixels set, by number."""
    row = torch.arange(100)
    predictions, truths = zip(*((row < p, row < t) for p, t in lengths), strict=True)
    return torch.stack(predictions)[:, None], torch.stack(truths)[:, None]


def test_iou_by_hand() -> None:
    values = iou(*strip((10, 20), (20, 10), (30, 30), (0, 5), (5, 0), (0, 0)))
    assert values.tolist() == [0.5, 0.5, 1.0, 0.0, 0.0, 1.0]


def test_iou_by_brute_force() -> None:
    masks = [
        torch.tensor(bits).reshape(1, 2, 2) for bits in itertools.product([False, True], repeat=4)
    ]
    for one, other in itertools.product(masks, masks):
        a, b = ({i for i, bit in enumerate(m.flatten().tolist()) if bit} for m in (one, other))
        expected = len(a & b) / len(a | b) if a | b else 1.0
        assert iou(one, other).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [
        (100, 100, 1.0),
        (50, 100, 0.0),  # an IoU of 0.50 does not exceed 0.50
        (51, 100, 0.1),
        (55, 100, 0.1),  # nor 0.55 the next
        (73, 100, 0.5),  # exceeds 0.50, 0.55, 0.60, 0.65 and 0.70
        (95, 100, 0.9),
        (96, 100, 1.0),
        (0, 79, 0.0),  # the widely copied notebook says 0.6
        (79, 0, 0.0),
        (0, 0, 1.0),
    ],
)
def test_competition_score_by_hand(prediction: int, truth: int, score: float) -> None:
    assert competition_score(*strip((prediction, truth))).item() == pytest.approx(score)


def test_every_image_has_its_own_score() -> None:
    scores = competition_score(*strip((100, 100), (73, 100), (0, 1)))
    assert scores.tolist() == pytest.approx([1.0, 0.5, 0.0])


# --- post-processing ----------------------------------------------------------------------------


def blobs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with regions of many sizes and values; the truths contain some of them."""
    rng = np.random.default_rng(0)
    probabilities = np.zeros((count, 101, 101), np.float32)
    truths = np.zeros((count, 101, 101), np.bool_)
    for row in range(count):
        for _ in range(4):
            y, x, side = rng.integers(0, 80), rng.integers(0, 80), rng.integers(2, 20)
            probabilities[row, y : y + side, x : x + side] = rng.uniform(0.2, 1)
            truths[row, y : y + side, x : x + side] |= rng.random() < 0.5
    return probabilities, truths


def test_min_area_removes_only_small_regions() -> None:
    probabilities = np.zeros((1, 101, 101), np.float32)
    probabilities[0, :3, :3] = 0.9  # 9 pixels
    probabilities[0, 50:60, 50:60] = 0.6  # 100 pixels, and a corner touches a region of 4
    probabilities[0, 60:62, 60:62] = 0.6
    masks = Postprocessing(0.5, 10).apply(probabilities)
    assert masks.sum() == 104
    assert not masks[0, :3, :3].any()
    assert Postprocessing(0.5, 105).apply(probabilities).sum() == 0
    assert Postprocessing(0.5, 0).apply(probabilities).sum() == 113
    assert Postprocessing(0.7, 0).apply(probabilities).sum() == 9


def test_tuning_finds_the_best_candidate() -> None:
    probabilities, truths = blobs(12)
    best, tried = tune_threshold(probabilities, truths)
    slowly = {
        one: float(image_scores(one.apply(probabilities), truths).mean(dtype=np.float64))
        for one in tried
    }
    assert tried == pytest.approx(slowly)
    assert tried[best] == max(slowly.values())
    assert tried[best] > tried[Postprocessing(0.5, 0)]


def test_plain_threshold_wins_among_equal_candidates() -> None:
    truths = blobs(3)[1]
    assert tune_threshold(truths.astype(np.float32), truths)[0].min_area == 0
    assert tune_threshold(truths.astype(np.float32), truths)[0].threshold == 0.5


def test_cross_fitting_tunes_on_other_images() -> None:
    probabilities, truths = blobs(9)
    masks = cross_fitted_masks(probabilities, truths)
    for first in (0, 1):
        others = tune_threshold(probabilities[1 - first :: 2], truths[1 - first :: 2])[0]
        assert np.array_equal(masks[first::2], others.apply(probabilities[first::2]))
    assert np.array_equal(
        cross_fitted_masks(probabilities[:1], truths[:1]), Postprocessing().apply(probabilities[:1])
    )
