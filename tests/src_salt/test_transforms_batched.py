"""Augmentation in batches on the device, compared with albumentations."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from src_salt.transforms import (
    DRAWS,
    Image,
    augment,
    augment_batch,
    evaluation_transform,
    normalize,
    resize_to_input,
    resize_to_original,
    training_transform,
)

SIZE = 64
COUNT = 3000


def shape() -> Image:
    """An asymmetric image of 101 pixels, so that every transformation can be measured."""
    rows, columns = np.mgrid[:101, :101]
    image = np.full((101, 101), 60, np.uint8)
    image[(abs(rows - 50) < 22) & (abs(columns - 50) < 8)] = 200
    image[(abs(rows - 34) < 6) & (columns > 50) & (columns < 72)] = 200
    return image


def pose(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure center, size, direction of the long side and mirroring of masks (N, S, S) in 0…1."""
    size = images.shape[-1]
    places = (np.arange(size) + 0.5) / size - 0.5
    mass = images.sum(axis=(1, 2))
    x = (images * places).sum(axis=(1, 2)) / mass
    y = (images * places[:, None]).sum(axis=(1, 2)) / mass
    dx, dy = places - x[:, None], places - y[:, None]

    def moment(px: int, py: int) -> np.ndarray:
        return np.einsum("nyx,ny,nx->n", images, dy**py, dx**px) / mass

    angle = 0.5 * np.arctan2(2 * moment(1, 1), moment(2, 0) - moment(0, 2))
    return {
        "x": x,
        "y": y,
        "size": np.sqrt(mass / size**2),
        # The long side is horizontal.
        "across": (np.abs(np.sin(angle)) < math.sqrt(0.5)).astype(float),
        "tilt": np.minimum(
            np.abs(angle) % (math.pi / 2), math.pi / 2 - np.abs(angle) % (math.pi / 2)
        ),
        "skew x": moment(3, 0),
        "skew y": moment(0, 3),
    }


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Measures of images augmented by albumentations, and in batches."""
    image = shape()
    mask = (image > 100).astype(np.uint8)
    one_by_one = training_transform(SIZE)
    pairs = [augment(one_by_one, image, mask, seed) for seed in range(COUNT)]
    normal_image = torch.stack([image[0] for image, _ in pairs])
    expected = (normal_image * 0.229 + 0.485) * 255, torch.stack([mask[0] for _, mask in pairs])
    images = torch.from_numpy(resize_to_input(image[None], SIZE, "resize")).expand(COUNT, -1, -1)
    masks = torch.from_numpy(resize_to_input(mask[None], SIZE, "resize", nearest=True))
    draws = torch.rand((COUNT, DRAWS), generator=torch.Generator().manual_seed(0))
    result = augment_batch(images, masks.expand(COUNT, -1, -1), draws, "full")
    ours = result[:, 0], result[:, 1]
    return tuple(  # type: ignore[return-value]
        pose(found[1].numpy().astype(np.float64))
        | {
            "dark": found[0].flatten(1).quantile(0.05, dim=1).numpy(),
            "bright": found[0].flatten(1).quantile(0.98, dim=1).numpy(),
        }
        for found in (expected, ours)
    )


@pytest.mark.parametrize(
    ("measure", "tolerance"),
    [
        ("x", 0.003),
        ("y", 0.003),
        ("size", 0.003),
        ("across", 0.04),  # 0.25 of them; the standard error of a difference of shares is 0.012
        ("tilt", 0.01),
        ("skew x", 5e-5),
        ("skew y", 5e-5),
        ("dark", 2.0),
        ("bright", 3.0),
    ],
)
def test_batches_are_augmented_like_albumentations(
    measure: str,
    tolerance: float,
    both: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> None:
    expected, ours = (found[measure] for found in both)
    levels = [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]
    if measure == "across":
        assert ours.mean() == pytest.approx(expected.mean(), abs=tolerance)
        assert 0.2 < ours.mean() < 0.3
        return
    assert ours.mean() == pytest.approx(expected.mean(), abs=tolerance)
    assert ours.std() == pytest.approx(expected.std(), rel=0.1)
    differences = np.quantile(ours, levels) - np.quantile(expected, levels)
    assert np.abs(differences).max() < 4 * tolerance
    # The measure varies by more than the tolerance, so the comparison means something.
    assert expected.std() > 1.5 * tolerance


def test_mild_has_no_vertical_flips_or_right_angles() -> None:
    mask = torch.from_numpy(
        resize_to_input((shape()[None] > 100).astype(np.uint8), SIZE, "resize", True)
    )
    mask = mask.expand(300, -1, -1)
    draws = torch.rand((300, DRAWS), generator=torch.Generator().manual_seed(0))
    found = pose(augment_batch(mask, mask, draws, "mild")[:, 1].numpy().astype(np.float64))
    assert found["across"].sum() == 0
    upright = pose(mask[:1].numpy().astype(np.float64))["skew y"][0]
    assert (np.sign(found["skew y"]) == np.sign(upright)).all()
    mirrored = np.sign(found["skew x"]) != np.sign(found["skew x"][0])
    assert 0.4 < mirrored.mean() < 0.6


def test_neutral_draws_return_the_pixels() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8))
    masks = (images > 128).to(torch.uint8)
    still = torch.full((3, DRAWS), 0.9)  # every choice falls on "not this one"
    result = augment_batch(images, masks, still, "full")
    assert torch.allclose(result[:, 0], images.float(), atol=1e-2)
    assert torch.equal(result[:, 1], masks.float())
    flipped = still.clone()
    flipped[:, 0] = 0.1
    result = augment_batch(images, masks, flipped, "full")
    assert torch.allclose(result[:, 0], images.float().flip(-1), atol=1e-2)
    assert torch.equal(result[:, 1], masks.float().flip(-1))


def test_pixels_are_normalized_like_albumentations() -> None:
    image = np.random.default_rng(0).integers(0, 256, (101, 101), np.uint8)
    expected = evaluation_transform(101)(image=np.repeat(image[..., None], 3, axis=-1))["image"]
    found = normalize(torch.from_numpy(image)[None].float())
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_padding_is_reversed_exactly() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 101, 101), np.uint8)
    padded = resize_to_input(images, 128, "reflect")
    assert padded.shape == (2, 128, 128)
    assert np.array_equal(padded[:, 13:114, 13:114], images)
    assert np.array_equal(padded[:, 12], padded[:, 14])  # mirrored
    assert np.array_equal(padded[..., 114], padded[..., 112])
    back = resize_to_original(torch.from_numpy(padded)[:, None].float(), "reflect")
    assert np.array_equal(back.numpy(), images)


@pytest.mark.parametrize(("size", "inner"), [(32, 25), (64, 50), (101, 80), (256, 202)])
def test_other_sizes_are_padded_in_proportion(size: int, inner: int) -> None:
    places = np.arange(101)
    smooth = (60 + places + np.sin(places / 9)[:, None] * 50).astype(np.uint8)
    padded = resize_to_input(smooth[None], size, "reflect")
    before = (size - inner) // 2
    inside = slice(before, before + inner)
    assert np.array_equal(padded[0, inside, inside], cv2.resize(smooth, (inner, inner)))
    assert np.array_equal(padded[:, before - 1], padded[:, before + 1])
    back = resize_to_original(torch.from_numpy(padded)[:, None].float(), "reflect")[0].numpy()
    # The smallest size is inexact at the border. A shift would appear everywhere.
    assert np.abs(back - smooth)[4:-4, 4:-4].max() < 3


def test_resizing_equals_the_baseline() -> None:
    image = shape()
    expected = evaluation_transform(128)(image=np.repeat(image[..., None], 3, axis=-1))["image"]
    ours = normalize(torch.from_numpy(resize_to_input(image[None], 128, "resize")).float())
    assert torch.allclose(ours[0], expected, atol=1e-5)
    mask = (image > 100).astype(np.uint8)
    expected = evaluation_transform(128)(image=np.repeat(image[..., None], 3, axis=-1), mask=mask)
    assert np.array_equal(
        resize_to_input(mask[None], 128, "resize", nearest=True)[0], expected["mask"]
    )
