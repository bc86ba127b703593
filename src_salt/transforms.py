"""Everything that changes a picture: 101×101 to the network's input and back.

Augmentation is albumentations' own. Each sample is drawn with a seed of its own (see
`augmented`), because the library's random state belongs to the pipeline object: with it, a batch
would depend on the number of workers and on which of them made it.
"""

from __future__ import annotations

import math
import os
import random

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

# On import albumentations asks PyPI for its newest version: two seconds and a warning without a
# network, an advertisement with one. Its own switch for that is this variable.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations

PICTURE_SIZE = 101
"""Side of the competition's images and masks, in pixels."""

PADDED_SIZE = 128
"""Side to which a picture is padded by reflection: the next that can be halved five times."""

Picture = npt.NDArray[np.uint8]


def training_transform(size: int) -> albumentations.Compose:
    """Resize, augment and normalise: a (101, 101) pair to what `augmented` returns."""
    return albumentations.Compose(
        [
            albumentations.Resize(size, size),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.VerticalFlip(p=0.5),
            albumentations.RandomRotate90(p=0.5),
            # ShiftScaleRotate in the form of albumentations 2: one scale for both axes, and the
            # border mirrored, so that no black corner looks like the edge of a survey.
            albumentations.Affine(
                translate_percent=(-0.0625, 0.0625),
                scale=(0.9, 1.1),
                rotate=(-15, 15),
                keep_ratio=True,
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.5,
            ),
            albumentations.RandomBrightnessContrast(p=0.5),
            albumentations.Normalize(),  # ImageNet's mean and deviation are its defaults
            albumentations.ToTensorV2(),
        ]
    )


def evaluation_transform(size: int) -> albumentations.Compose:
    """Resize and normalise only."""
    return albumentations.Compose(
        [
            albumentations.Resize(size, size),
            albumentations.Normalize(),
            albumentations.ToTensorV2(),
        ]
    )


def augmented(
    transform: albumentations.Compose, image: Picture, mask: Picture, seed: int
) -> tuple[Tensor, Tensor]:
    """`applied`, with every random choice decided by `seed` alone."""
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return applied(transform, image, mask)


def applied(
    transform: albumentations.Compose, image: Picture, mask: Picture
) -> tuple[Tensor, Tensor]:
    """A gray (101, 101) image and its 0/1 mask as float tensors (3, S, S) and (1, S, S)."""
    result = transform(image=cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), mask=mask)
    return result["image"], result["mask"][None].float()


def applied_to_image(transform: albumentations.Compose, image: Picture) -> Tensor:
    """A gray (101, 101) image as a float tensor (3, S, S)."""
    tensor: Tensor = transform(image=cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))["image"]
    return tensor


# --- the network's size, and back ---------------------------------------------------------------


def fitted(pictures: Picture, size: int, fit: str, nearest: bool = False) -> Picture:
    """Pictures (N, 101, 101) at the network's size, (N, S, S), still bytes.

    `resize` is what albumentations' Resize does, bilinear for images and `nearest` for masks.
    `reflect` mirrors the picture around itself: at 128 it leaves every pixel as it is, at 256 it
    pads 202 pixels, and so on in proportion.
    """
    inner, before = _inside(size, fit)
    after = size - inner - before
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    result = np.empty((len(pictures), size, size), np.uint8)
    for row, picture in enumerate(pictures):
        resized = cv2.resize(picture, (inner, inner), interpolation=interpolation)
        result[row] = cv2.copyMakeBorder(
            resized, before, after, before, after, cv2.BORDER_REFLECT_101
        )
    return result


def restored(probabilities: Tensor, fit: str = "resize") -> Tensor:
    """The inverse of `fitted`: (B, 1, S, S) at the network's size to (B, 101, 101)."""
    inner, before = _inside(probabilities.shape[-1], fit)
    inside = slice(before, before + inner)
    size = (PICTURE_SIZE, PICTURE_SIZE)
    full = functional.interpolate(
        probabilities[..., inside, inside], size, mode="bilinear", align_corners=False
    )
    return torch.squeeze(full, dim=1)


def _inside(size: int, fit: str) -> tuple[int, int]:
    """Side of the picture within the network's input, and where it begins: 101 and 13 of 128."""
    inner = round(size * PICTURE_SIZE / PADDED_SIZE) if fit == "reflect" else size
    return inner, (size - inner) // 2


# --- the same augmentation, in batches on the device --------------------------------------------

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's channels, for pixels in 0…1, as torchvision's weights expect them."""

TRANSLATE, SCALE, ROTATE, LIGHT = 0.0625, 0.1, math.radians(15), 0.2
"""Greatest shift (share of the side), change of size, turn, change of brightness and contrast."""

DRAWS = 11
"""Random numbers that the augmentation of one image takes."""


def augmented_batch(images: Tensor, masks: Tensor, draws: Tensor, kind: str) -> Tensor:
    """Augment (B, S, S) bytes of images and 0/1 masks at the network's size.

    `draws` are uniform numbers in [0, 1), (B, DRAWS), on the same device; they decide everything.
    The distribution is that of `training_transform`, in another order of random numbers. `mild`
    leaves out the vertical flip and the right angles. Returns both as float (B, 2, S, S): images
    in 0…255 and masks in {0, 1}.
    """
    size = images.shape[-1]
    u = draws.T
    flip_x = torch.where(u[0] < 0.5, -1.0, 1.0)
    flip_y = torch.where(u[1] < 0.5, -1.0, 1.0)
    # RandomRotate90 turns half of the pictures by a multiple of 90° drawn from all four.
    quarters = torch.where(u[2] < 0.5, (u[2] * 8).floor(), 0.0)
    if kind == "mild":
        flip_y, quarters = torch.ones_like(flip_y), torch.zeros_like(quarters)
    moved = (u[3] < 0.5).to(draws.dtype)
    scale = 1 + moved * SCALE * (2 * u[4] - 1)
    angle = moved * ROTATE * (2 * u[5] - 1)
    # In whole pixels, cut towards zero; one pixel is 2/S where a side goes from -1 to 1.
    shift = moved * (TRANSLATE * size * (2 * u[6:8] - 1)).trunc() * 2 / size

    # From a place in the result back to the place in the source: shift, turn and size, then the
    # right angles, then the flips.
    turn = angle + quarters * (math.pi / 2)
    cosine, sine = torch.cos(turn) / scale, torch.sin(turn) / scale
    rows = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
    offset = -(rows @ shift.T[..., None])
    flips = torch.stack([flip_x, flip_y], dim=1)[..., None]
    matrices = flips * torch.cat([rows, offset], dim=2)
    grid = functional.affine_grid(matrices, [len(images), 1, size, size], align_corners=False)
    both = torch.stack([images, masks], dim=1).to(draws.dtype)
    both = functional.grid_sample(
        both, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    lit = (u[8] < 0.5).to(draws.dtype)
    contrast = 1 + lit * LIGHT * (2 * u[9] - 1)
    brightness = lit * LIGHT * 255 * (2 * u[10] - 1)
    pixels = both[:, 0] * contrast[:, None, None] + brightness[:, None, None]
    return torch.stack([pixels.clamp(0, 255), (both[:, 1] >= 0.5).to(draws.dtype)], dim=1)


def normalised(pixels: Tensor) -> Tensor:
    """Gray pixels (B, S, S) in 0…255 to the network's input (B, 3, S, S)."""
    # Numbers, not tensors: those would have to travel to the device for each batch.
    channels = [
        (pixels - 255 * mean) / (255 * deviation)
        for mean, deviation in zip(MEAN, DEVIATION, strict=True)
    ]
    return torch.stack(channels, dim=1)
