from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import numpy as np
import torch

from src_salt.config import Settings
from src_salt.data import LabelledImages
from src_salt.predict import predict


class Brightness(torch.nn.Module):
    """A network whose logit is the pixel's normalized value, so that the result is known."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] + self.nothing


class Left(Brightness):
    """Predicts salt only in the left half of its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(images.shape[-1])
        weights[: images.shape[-1] // 2] = 1
        return super().forward(images) * weights


def test_mirrored_predictions_are_mirrored_back(settings: Callable[..., Settings]) -> None:
    """For a bright left half the two predictions differ, and their mean is known."""
    image = np.zeros((1, 101, 101), np.uint8)
    image[..., :50] = 255
    chosen = settings(recipe="best", image_size=128)
    assert chosen.resolved_recipe.flip_tta
    found = next(predict([Left()], image, chosen, ""))[0]
    bright = 1 / (1 + np.exp(-(1 - 0.485) / 0.229))
    dark = 1 / (1 + np.exp(0.485 / 0.229))
    assert np.allclose(found[:, :45], (bright + 0.5) / 2, atol=1e-4)
    assert np.allclose(found[:, 55:], (0.5 + dark) / 2, atol=1e-4)


def test_probabilities_have_full_size_and_the_order_of_the_images(
    settings: Callable[..., Settings],
) -> None:
    levels = np.linspace(0, 255, 10).astype(np.uint8)
    flat = np.repeat(levels, 101 * 101).reshape(10, 101, 101)
    batches = []
    for batch in predict([Brightness()], flat, settings(num_workers=2), "test"):
        assert not multiprocessing.active_children()  # a worker that dies would cost the submission
        batches.append(batch)
    assert [batch.shape for batch in batches] == [(4, 101, 101), (4, 101, 101), (2, 101, 101)]
    expected = 1 / (1 + np.exp(-(levels / 255 - 0.485) / 0.229))
    found = np.concatenate(batches)
    assert found.dtype == np.float32
    assert np.allclose(found, expected[:, None, None], atol=1e-4)


def test_positions_are_preserved(
    easy_images: LabelledImages, settings: Callable[..., Settings]
) -> None:
    found = np.concatenate(list(predict([Brightness()], easy_images.images, settings(), "test")))
    agreement = ((found > 0.5) == (easy_images.masks > 0)).mean()
    assert agreement > 0.95  # edges are inexact at 32 pixels


def test_callers_gradient_mode_is_unchanged_between_batches(
    easy_images: LabelledImages, settings: Callable[..., Settings]
) -> None:
    for _ in predict([Brightness()], easy_images.images, settings(), "test"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
