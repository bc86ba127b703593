from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from src_salt.metrics import competition_score, iou


def strip(*lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Predictions and truths of (B, 1, 100): the first so many pixels are salt."""
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
