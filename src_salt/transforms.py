"""Everything that changes a picture: 101×101 to the network's input and back.

Augmentation is albumentations' own. Each sample is drawn with a seed of its own (see
`augmented`), because the library's random state belongs to the pipeline object: with it, a batch
would depend on the number of workers and on which of them made it.
"""

from __future__ import annotations

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


def restored(probabilities: Tensor) -> Tensor:
    """The inverse of the resize: (B, 1, S, S) at the network's size to (B, 101, 101)."""
    size = (PICTURE_SIZE, PICTURE_SIZE)
    full = functional.interpolate(probabilities, size, mode="bilinear", align_corners=False)
    return torch.squeeze(full, dim=1)
