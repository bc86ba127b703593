from __future__ import annotations

import numpy as np
import pytest
import torch

from src_salt.transforms import (
    applied,
    applied_to_image,
    augmented,
    evaluation_transform,
    restored,
    training_transform,
)


def half_salt() -> tuple[np.ndarray, np.ndarray]:
    """Left half dark and salt, right half bright."""
    image = np.full((101, 101), 200, np.uint8)
    mask = np.zeros((101, 101), np.uint8)
    image[:, :50], mask[:, :50] = 40, 1
    return image, mask


def test_evaluation_resizes_and_normalises_by_imagenet() -> None:
    image, mask = applied(evaluation_transform(128), *half_salt())
    assert image.shape == (3, 128, 128)
    assert image.dtype == torch.float32
    assert mask.shape == (1, 128, 128)
    expected = (torch.tensor([40 / 255] * 3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(image[:, 5, 5], expected, atol=1e-4)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(50 / 101, abs=0.01)


def test_an_image_alone_is_treated_as_in_a_pair() -> None:
    image, mask = half_salt()
    transform = evaluation_transform(64)
    assert torch.equal(applied_to_image(transform, image), applied(transform, image, mask)[0])


def test_the_seed_alone_decides_the_augmentation() -> None:
    first, second = training_transform(64), training_transform(64)
    for seed in (7, 8, 9):
        second(image=np.zeros((101, 101, 3), np.uint8))  # its own state is elsewhere now
        one, other = augmented(first, *half_salt(), seed), augmented(second, *half_salt(), seed)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_other_seeds_give_other_pictures_of_every_kind() -> None:
    pictures = [augmented(training_transform(64), *half_salt(), seed) for seed in range(60)]
    # Two flips, a turn, affine and brightness, at one half each: nearly all 60 differ, and the
    # salt has come to lie on each side.
    assert len({image.numpy().tobytes() for image, _ in pictures}) > 30
    left, top = torch.tensor([[mask[0, 32, 3], mask[0, 3, 32]] for _, mask in pictures]).T
    assert 0 < left.mean() < 1
    assert 0 < top.mean() < 1
    assert len({mask.numpy().tobytes() for _, mask in pictures}) > 10


def test_the_mask_moves_with_the_image() -> None:
    for seed in range(40):
        image, mask = augmented(training_transform(64), *half_salt(), seed)
        middle = (image[0].min() + image[0].max()) / 2
        assert ((image[0] < middle) == (mask[0] > 0)).float().mean() > 0.97


def test_restored_undoes_the_resize() -> None:
    rows, columns = np.mgrid[0:101, 0:101]
    smooth = (127 + 60 * np.sin(rows / 15) + 60 * np.cos(columns / 20)).astype(np.uint8)
    _, mask = half_salt()
    image, resized_mask = applied(evaluation_transform(128), smooth, mask)
    gray = image[:1] * 0.229 + 0.485
    assert (restored(gray[None])[0] - torch.from_numpy(smooth) / 255).abs().max() < 0.02
    back = restored(resized_mask[None])[0] > 0.5
    assert back.shape == (101, 101)
    assert (back.numpy() != (mask > 0)).mean() <= 0.01  # at most the one column at the edge
