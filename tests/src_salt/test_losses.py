from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from src_salt.losses import (
    LOSS_FUNCTIONS,
    Loss,
    bce_dice,
    bce_dice_symmetric,
    jaccard_gradient,
    lovasz_hinge,
    symmetric_lovasz_hinge,
)


def maps(*rows: list[float]) -> Tensor:
    """A tensor (B, 1, 1, W) with one image per list."""
    return torch.tensor(rows).reshape(len(rows), 1, 1, -1)


def lovasz_by_hand(logits: Tensor, targets: Tensor) -> Tensor:
    """Loop over images and pixels: the loss grows by what the Jaccard index loses."""
    values = []
    for image, truth in zip(logits.flatten(1), targets.flatten(1), strict=True):
        errors = 1 - image * (2 * truth - 1)
        wrong: set[int] = set()
        before, value = 0.0, torch.zeros((), dtype=image.dtype)
        salt = {i for i, pixel in enumerate(truth.tolist()) if pixel == 1}
        for pixel in torch.argsort(errors, descending=True, stable=True).tolist():
            wrong.add(pixel)
            now = len(wrong) / len(salt | wrong)
            value = value + torch.relu(errors[pixel]) * (now - before)
            before = now
        values.append(value)
    return torch.stack(values).mean()


def test_bce_dice_by_hand() -> None:
    # Logits 0 are probabilities 1/2: BCE is ln 2. Dice over both images: the overlap is
    # 2 * (1/2 + 1/2) + 1 = 3, the total (4 * 1/2) + 2 + 1 = 5.
    value = bce_dice(maps([0.0, 0.0], [0.0, 0.0]), maps([1.0, 0.0], [1.0, 0.0]))
    assert value.item() == pytest.approx(math.log(2) + 1 - 3 / 5)


def test_bce_dice_by_hand_with_unequal_logits() -> None:
    # Probabilities 3/4 and 1/5 of a salt and an empty pixel.
    value = bce_dice(maps([math.log(3), -math.log(4)]), maps([1.0, 0.0]))
    bce = -(math.log(3 / 4) + math.log(4 / 5)) / 2
    assert value.item() == pytest.approx(bce + 1 - (2 * 0.75 + 1) / (0.95 + 1 + 1), abs=1e-6)


def test_lovasz_by_hand() -> None:
    # Errors: pixel 0 (salt) 1 - 0.5 = 0.5; pixel 1 (salt) 1 + 1 = 2; pixel 2 (empty) 1 - 3 < 0.
    # Sorted 2, 0.5, -2: the Jaccard loss is 1/2, 1, 1, so 2 * 1/2 + 0.5 * 1/2 = 1.25.
    assert lovasz_hinge(maps([0.5, -1.0, -3.0]), maps([1.0, 1.0, 0.0])).item() == 1.25


def test_lovasz_of_an_empty_mask_is_its_worst_pixel() -> None:
    assert lovasz_hinge(maps([-3.0, 1.0, -2.0]), maps([0.0, 0.0, 0.0])).item() == 2.0


def test_lovasz_is_the_mean_over_images() -> None:
    logits, targets = maps([0.5, -1.0, -3.0], [-3.0, 1.0, -2.0]), maps([1.0, 1, 0], [0.0, 0, 0])
    assert lovasz_hinge(logits, targets).item() == (1.25 + 2.0) / 2


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_and_its_gradient_equal_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 1, 7, 5, generator=generator)
    targets = (torch.rand(6, 1, 7, 5, generator=generator) > 0.6).float()
    targets[0], targets[1] = 0, 1
    ours, loop = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    lovasz_hinge(ours, targets).backward()
    lovasz_by_hand(loop, targets).backward()
    assert torch.allclose(lovasz_hinge(logits, targets), lovasz_by_hand(logits, targets))
    assert ours.grad is not None
    assert loop.grad is not None
    assert torch.allclose(ours.grad, loop.grad, atol=1e-6)


def test_lovasz_of_hard_logits_is_twice_the_jaccard_loss() -> None:
    # At the corners the extension equals the set function: every wrong pixel has error 2.
    targets = maps([1.0, 1.0, 1.0, 0.0, 0.0])
    logits = maps([1.0, 1.0, -1.0, 1.0, -1.0])  # IoU 2/4
    assert lovasz_hinge(logits, targets).item() == pytest.approx(2 * (1 - 2 / 4))


def test_symmetric_lovasz_by_hand() -> None:
    # Salt as above: 1.25. Background is only pixel 2: as pixels 1 and 0 become wrong, the Jaccard
    # loss is 1/2, then 2/3, so 2 * 1/2 + 0.5 * 1/6.
    value = symmetric_lovasz_hinge(maps([0.5, -1.0, -3.0]), maps([1.0, 1.0, 0.0]))
    assert value.item() == pytest.approx((1.25 + 2 / 2 + 0.5 / 6) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_lovasz_is_the_mean_of_salt_and_background(seed: int) -> None:
    """Also with equal errors, and with empty or full masks."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 1, 7, 5, generator=generator).round(decimals=1)
    targets = (torch.rand(6, 1, 7, 5, generator=generator) > 0.6).float()
    targets[0], targets[1] = 0, 1
    sides = lovasz_hinge(logits, targets) + lovasz_hinge(-logits, 1 - targets)
    assert torch.allclose(symmetric_lovasz_hinge(logits, targets), sides / 2)


def test_combined_loss_is_the_sum() -> None:
    logits, targets = torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    total = bce_dice(logits, targets) + symmetric_lovasz_hinge(logits, targets)
    assert torch.equal(bce_dice_symmetric(logits, targets), total)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_better_logits_have_a_lower_loss_and_perfect_ones_none(name: str) -> None:
    loss = LOSS_FUNCTIONS[name]
    targets = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    right = 2 * targets - 1
    losses = [loss(scale * right, targets).item() for scale in (-20.0, -1.0, 0.0, 1.0, 20.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    loss = LOSS_FUNCTIONS[name]
    logits, targets = torch.full((2, 1, 101, 101), 3.0), torch.ones(2, 1, 101, 101)
    assert loss(logits.bfloat16(), targets.bfloat16()).dtype == torch.float32
    assert torch.equal(loss(logits.half(), targets.half()), loss(logits, targets))


# --- the Lovász gradient in float32 and float64 --------------------------------------------------


def masks_of(pixels: int, size: int = 128, count: int = 4) -> Tensor:
    """Masks (count, 1, size, size) with that many salt pixels at random places."""
    generator = torch.Generator().manual_seed(pixels)
    masks = torch.zeros(count, size * size)
    for mask in masks:
        mask[torch.randperm(size * size, generator=generator)[:pixels]] = 1
    return masks.reshape(count, 1, size, size)


def gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, targets).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("loss", [lovasz_hinge, symmetric_lovasz_hinge])
@pytest.mark.parametrize("pixels", [0, 1, 9, 300, 128 * 128 - 1, 128 * 128])
def test_lovasz_in_float32_is_as_exact_as_float32(pixels: int, loss: Loss) -> None:
    """Differences of Jaccard losses would be wrong by 4% for 9 pixels, and by 81% for one."""
    targets = masks_of(pixels)
    # Distinct in float32, so that both dtypes sort them alike.
    places = torch.randperm(targets.numel(), generator=torch.Generator().manual_seed(0))
    logits = (places / targets.numel() * 4 - 2).reshape(targets.shape)
    found = gradient(loss, logits, targets).double()
    exact = gradient(loss, logits.double(), targets.double())
    assert exact.dtype == torch.float64
    assert torch.allclose(found, exact, rtol=1e-5, atol=0)
    assert loss(logits, targets).item() == pytest.approx(
        loss(logits.double(), targets.double()).item(), rel=1e-5
    )


@pytest.mark.parametrize("pattern", range(32))
def test_jaccard_gradient_is_the_difference_of_the_set_function(pattern: int) -> None:
    """For every mask of five pixels, with the definition in exact fractions."""
    truth = [pattern >> place & 1 for place in range(5)]
    found = jaccard_gradient(torch.tensor([truth], dtype=torch.float64))[0]

    def jaccard_loss(wrong: set[int]) -> Fraction:
        salt = {place for place, value in enumerate(truth) if value}
        union = salt | wrong
        return 1 - Fraction(len(salt - wrong), len(union)) if union else Fraction(0)

    losses = [jaccard_loss(set(range(count))) for count in range(6)]
    expected = [float(after - before) for before, after in pairwise(losses)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
@pytest.mark.parametrize("salt", ["none", "all", "one", "some"])
def test_gradients_equal_finite_differences(name: str, salt: str) -> None:
    generator = torch.Generator().manual_seed(3)
    targets = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    if salt == "all":
        targets[:] = 1
    elif salt == "one":
        targets[:, 0, 1, 2] = 1
    elif salt == "some":
        targets[:, :, :2] = 1
    logits = torch.randn(targets.shape, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: LOSS_FUNCTIONS[name](values, targets), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixels", [0, 1, 9])
def test_lovasz_of_tiny_masks_survives_autocast(pixels: int, dtype: torch.dtype) -> None:
    targets = masks_of(pixels, size=64, count=2)
    logits = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.autocast("cpu", dtype):
        found = gradient(symmetric_lovasz_hinge, logits, targets)
    exact = gradient(symmetric_lovasz_hinge, logits.double(), targets.double())
    assert found.dtype == dtype
    assert torch.allclose(found.double(), exact, rtol=0.01, atol=1e-6)
