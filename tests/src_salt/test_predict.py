from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import numpy as np
import torch

from src_salt.config import Settings
from src_salt.data import LabelledImages
from src_salt.predict import predict


class Brightness(torch.nn.Module):
    """A network whose logit is the pixel's own normalised value, so that answers are known."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] + self.nothing


class Left(Brightness):
    """Sees salt in the left half alone, wherever the picture has it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(images.shape[-1])
        weights[: images.shape[-1] // 2] = 1
        return super().forward(images) * weights


def test_mirrored_views_are_turned_back(settings: Callable[..., Settings]) -> None:
    """On a bright left half the two views differ; their mean is known."""
    image = np.zeros((1, 101, 101), np.uint8)
    image[..., :50] = 255
    chosen = settings(recipe="best", image_size=128)
    assert chosen.training.flip_views
    found = next(predict([Left()], image, chosen, ""))[0]
    bright = 1 / (1 + np.exp(-(1 - 0.485) / 0.229))
    dark = 1 / (1 + np.exp(0.485 / 0.229))
    assert np.allclose(found[:, :45], (bright + 0.5) / 2, atol=1e-4)
    assert np.allclose(found[:, 55:], (0.5 + dark) / 2, atol=1e-4)


def test_probabilities_are_full_size_and_in_order(settings: Callable[..., Settings]) -> None:
    levels = np.linspace(0, 255, 10).astype(np.uint8)
    flat = np.repeat(levels, 101 * 101).reshape(10, 101, 101)
    batches = []
    for batch in predict([Brightness()], flat, settings(num_workers=2), "test"):
        assert not multiprocessing.active_children()  # one that dies takes the submission along
        batches.append(batch)
    assert [batch.shape for batch in batches] == [(4, 101, 101), (4, 101, 101), (2, 101, 101)]
    expected = 1 / (1 + np.exp(-(levels / 255 - 0.485) / 0.229))
    found = np.concatenate(batches)
    assert found.dtype == np.float32
    assert np.allclose(found, expected[:, None, None], atol=1e-4)


def test_what_is_where_stays_there(
    pictures: LabelledImages, settings: Callable[..., Settings]
) -> None:
    found = np.concatenate(list(predict([Brightness()], pictures.images, settings(), "test")))
    agreement = ((found > 0.5) == (pictures.masks > 0)).mean()
    assert agreement > 0.95  # 32 pixels across leave the edges a little off


def test_the_gradient_mode_is_the_callers_between_batches(
    pictures: LabelledImages, settings: Callable[..., Settings]
) -> None:
    for _ in predict([Brightness()], pictures.images, settings(), "test"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
