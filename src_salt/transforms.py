"""Image transforms: 101×101 pixels to the network's input and back, and augmentation.

The baseline augments with albumentations 2, or with its successor AlbumentationsX. Each sample gets
its own seed (see `augment`), because the library keeps the random state in the pipeline object:
with that state, a batch would depend on the number of workers and on which worker made it. The
library is imported only for that recipe.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from src_salt.config import SaltError, first_line

if TYPE_CHECKING:
    import albumentations

IMAGE_SIZE = 101
"""Width and height of the competition's images and masks, in pixels."""

PADDED_SIZE = 128
"""Size of a reflection-padded image: the next one that can be halved five times."""

Image = npt.NDArray[np.uint8]
"""One gray image or 0/1 mask (101, 101), or several (N, 101, 101)."""


class TransformError(SaltError):
    """albumentations cannot be used."""


def training_transform(size: int) -> albumentations.Compose:
    """Resize, augment and normalize a pair of (101, 101) arrays; use it with `augment`."""
    return _compose(
        lambda library: [
            library.Resize(size, size),
            library.HorizontalFlip(p=0.5),
            library.VerticalFlip(p=0.5),
            library.RandomRotate90(p=0.5),
            # ShiftScaleRotate in the form of albumentations 2: one scale for both axes, and a
            # mirrored border, so that no black corner looks like the edge of a survey.
            library.Affine(
                translate_percent=(-0.0625, 0.0625),
                scale=(0.9, 1.1),
                rotate=(-15, 15),
                keep_ratio=True,
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.5,
            ),
            library.RandomBrightnessContrast(p=0.5),
            library.Normalize(),  # its defaults are ImageNet's mean and standard deviation
            library.ToTensorV2(),
        ]
    )


def evaluation_transform(size: int) -> albumentations.Compose:
    """Resize and normalize, without augmentation."""
    return _compose(
        lambda library: [library.Resize(size, size), library.Normalize(), library.ToTensorV2()]
    )


def _compose(steps: Callable[[ModuleType], list[object]]) -> albumentations.Compose:
    """Import albumentations and build a pipeline.

    Raises:
        TransformError: it cannot be imported, or its version is another one.
    """
    # On import, albumentations asks PyPI for its newest version. Without a network that takes two
    # seconds and prints a warning. Its successor AlbumentationsX reports every pipeline to its
    # authors. These variables of the libraries turn both off.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("ALBUMENTATIONS_NO_TELEMETRY", "1")
    try:
        import albumentations

        pipeline = albumentations.Compose(steps(albumentations))
        pipeline.set_random_state  # noqa: B018  older versions do not have it
    except Exception as error:  # a broken library may raise anything
        raise TransformError(
            f"The recipe baseline needs albumentations 2, which cannot be used here "
            f"({type(error).__name__}: {first_line(error)}). Install albumentations, or choose the "
            "recipe fast, which augments in the same way without it."
        ) from error
    return pipeline


def augment(
    transform: albumentations.Compose, image: Image, mask: Image, seed: int
) -> tuple[Tensor, Tensor]:
    """Do the same as `apply_to_pair`, with every random choice decided by `seed`."""
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return apply_to_pair(transform, image, mask)


def apply_to_pair(
    transform: albumentations.Compose, image: Image, mask: Image
) -> tuple[Tensor, Tensor]:
    """Convert a gray (101, 101) image and its 0/1 mask to float tensors (3, S, S), (1, S, S)."""
    result = transform(image=cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), mask=mask)
    return result["image"], result["mask"][None].float()


def apply_to_image(transform: albumentations.Compose, image: Image) -> Tensor:
    """Convert a gray (101, 101) image to a float tensor (3, S, S)."""
    tensor: Tensor = transform(image=cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))["image"]
    return tensor


# --- resizing -----------------------------------------------------------------------------------


def resize_to_input(images: Image, size: int, fit: str, nearest: bool = False) -> Image:
    """Resize (N, 101, 101) bytes to the network's input size, (N, S, S) bytes.

    `resize` matches albumentations' Resize: bilinear, or `nearest` for masks. `reflect` pads with
    the mirror image. At a size of 128 it keeps every original pixel; at 256 it pads around 202
    pixels, and so on in proportion.
    """
    inner, before = inner_region(size, fit)
    after = size - inner - before
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    result = np.empty((len(images), size, size), np.uint8)
    for row, image in enumerate(images):
        resized = cv2.resize(image, (inner, inner), interpolation=interpolation)
        result[row] = cv2.copyMakeBorder(
            resized, before, after, before, after, cv2.BORDER_REFLECT_101
        )
    return result


def resize_to_original(probabilities: Tensor, fit: str = "resize") -> Tensor:
    """Reverse `resize_to_input`: (B, 1, S, S) to (B, 101, 101)."""
    inner, before = inner_region(probabilities.shape[-1], fit)
    inside = slice(before, before + inner)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    full = functional.interpolate(
        probabilities[..., inside, inside], size, mode="bilinear", align_corners=False
    )
    return torch.squeeze(full, dim=1)


def inner_region(size: int, fit: str) -> tuple[int, int]:
    """Return the size and the offset of the image in the network's input: 101 and 13 of 128."""
    inner = round(size * IMAGE_SIZE / PADDED_SIZE) if fit == "reflect" else size
    return inner, (size - inner) // 2


# --- augmentation in batches on the device ------------------------------------------------------

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, for pixels in 0…1."""

TRANSLATE, SCALE, ROTATE, LIGHT = 0.0625, 0.1, math.radians(15), 0.2
"""Largest shift (as a share of the size), scale change, rotation, and brightness change."""

DRAWS = 11
"""Random numbers per image that `augment_batch` needs."""


def augment_batch(images: Tensor, masks: Tensor, draws: Tensor, kind: str) -> Tensor:
    """Augment images and 0/1 masks, both (B, S, S) bytes at the network's input size.

    Args:
        images: bytes, (B, S, S).
        masks: 0 or 1, (B, S, S).
        draws: uniform random numbers in [0, 1) on the same device, (B, DRAWS). They decide
            everything, with the same distribution as `training_transform`.
        kind: `full`, or `mild` without vertical flips and rotations by 90 degrees.

    Returns:
        Float (B, 2, S, S): images in 0…255 and masks in {0, 1}.
    """
    size = images.shape[-1]
    u = draws.T
    flip_x = torch.where(u[0] < 0.5, -1.0, 1.0)
    flip_y = torch.where(u[1] < 0.5, -1.0, 1.0)
    # RandomRotate90 rotates half of the images, by a multiple of 90° drawn from all four.
    quarters = torch.where(u[2] < 0.5, (u[2] * 8).floor(), 0.0)
    if kind == "mild":
        flip_y, quarters = torch.ones_like(flip_y), torch.zeros_like(quarters)
    moved = (u[3] < 0.5).to(draws.dtype)
    scale = 1 + moved * SCALE * (2 * u[4] - 1)
    angle = moved * ROTATE * (2 * u[5] - 1)
    # In whole pixels, rounded towards zero. The grid goes from -1 to 1, so a pixel is 2/S.
    shift = moved * (TRANSLATE * size * (2 * u[6:8] - 1)).trunc() * 2 / size

    # The grid maps a position in the result to a position in the source: first shift, rotation
    # and scale, then the rotation by 90 degrees, then the flips.
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


def normalize(pixels: Tensor) -> Tensor:
    """Convert gray pixels (B, S, S) in 0…255 to the network's input (B, 3, S, S)."""
    # Python numbers, not tensors: tensors would be copied to the device for each batch.
    channels = [
        (pixels - 255 * mean) / (255 * deviation) for mean, deviation in zip(MEAN, STD, strict=True)
    ]
    return torch.stack(channels, dim=1)
