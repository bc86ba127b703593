"""Dtypes, distributed contexts, and batches on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from src_salt.config import Settings
from src_salt.data import (
    DataError,
    DeviceBatches,
    LabelledImages,
    coverage_classes,
    split,
    training_loader,
)
from src_salt.device import (
    SINGLE_PROCESS,
    DistributedContext,
    cpu_flags,
    pick_compute,
    sync_batch_norm,
)

MakeSettings = Callable[..., Settings]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [12, 13, 16, 17, 5])
def test_shards_make_up_the_batches_of_one_process(size: int, count: int) -> None:
    rows, batch_size = torch.arange(count), 6
    contexts = [DistributedContext(rank, size) for rank in range(size)]
    shards = [context.shard(rows, batch_size, fill=False) for context in contexts]
    assert len({len(shard) for shard in shards}) == 1
    for number, whole in enumerate(torch.split(rows, batch_size)):
        part = slice(number * batch_size // size, (number + 1) * batch_size // size)
        together = torch.stack([shard[part] for shard in shards], dim=1).flatten()
        assert together.tolist() == whole[: len(whole) - len(whole) % size].tolist()
    filled = [context.shard(rows, batch_size, fill=True) for context in contexts]
    assert len({len(shard) for shard in filled}) == 1
    assert set(torch.cat(filled).tolist()) == set(range(count))
    assert SINGLE_PROCESS.shard(rows, batch_size, fill=True) is rows


def test_loaders_of_all_processes_make_up_one_loader(
    labelled: LabelledImages, settings: MakeSettings
) -> None:
    whole = list(training_loader(labelled, settings()).sampler)
    contexts = [DistributedContext(rank, 2) for rank in (0, 1)]
    first, second = (list(training_loader(labelled, settings(), one).sampler) for one in contexts)
    assert sorted(map(tuple, first + second)) == sorted(map(tuple, whole))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma", {"fpu", "avx2", "fma"}),
        ("avx512f avx512_bf16", {"avx512f", "avx512_bf16"}),
    ],
)
def test_cpu_flags_are_read(flags: str, expected: set[str], tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre\n")
    assert cpu_flags(path) == expected
    assert cpu_flags(tmp_path / "none") == set()


def test_bfloat16_is_used_if_the_cpu_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src_salt.device.cpu_flags", lambda: {"avx2"})
    assert pick_compute(True).dtype == torch.float32
    monkeypatch.setattr("src_salt.device.cpu_flags", lambda: {"amx_bf16"})
    assert pick_compute(True).dtype == torch.bfloat16
    assert pick_compute(False).dtype == torch.float32  # the baseline
    with pick_compute(True).autocast():
        assert torch.nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2)).dtype == torch.bfloat16


def batches(
    labelled: LabelledImages, settings: Settings, augmentation: str | None
) -> DeviceBatches:
    return DeviceBatches(labelled, settings, pick_compute(True), SINGLE_PROCESS, augmentation)


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_batches_contain_every_image_except_a_single_last_one(
    count: int, sizes: list[int], labelled: LabelledImages, settings: MakeSettings
) -> None:
    few = labelled.subset(range(count))
    shuffled = batches(few, settings(recipe="fast"), "full")
    assert [len(images) for images, _ in shuffled] == sizes
    assert len(shuffled) == len(sizes)
    ordered = batches(few, settings(recipe="fast"), None)
    assert sum(len(images) for images, _ in ordered) == count


def test_seed_decides_the_batches_and_epochs_differ(
    labelled: LabelledImages, settings: MakeSettings
) -> None:
    def epochs(seed: int) -> list[torch.Tensor]:
        source = batches(labelled, settings(recipe="fast", seed=seed), "full")
        torch.rand(3)  # other random numbers of this process have no effect
        return [torch.cat([images for images, _ in source]) for _ in range(2)]

    first, again, other = epochs(1), epochs(1), epochs(2)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_masks_are_augmented_like_their_images(settings: MakeSettings) -> None:
    """An image that equals its mask still does after augmentation."""
    rng = np.random.default_rng(0)
    masks = np.kron(rng.integers(0, 2, (20, 5, 5)), np.ones((21, 21)))[:, :101, :101].astype(
        np.uint8
    )
    labelled = LabelledImages(tuple(map(str, range(20))), masks * 255, masks)
    source = batches(labelled, settings(recipe="fast", image_size=101), "full")
    for images, truths in source:
        gray = images[:, 0] * 0.229 + 0.485
        middle = (gray.amax((1, 2)) + gray.amin((1, 2)))[:, None, None] / 2  # brightness changes
        assert ((gray > middle) == (truths[:, 0] > 0)).float().mean() > 0.97


def test_each_image_is_in_the_validation_part_of_one_fold(settings: MakeSettings) -> None:
    masks = np.zeros((60, 101, 101), np.uint8)
    for row in range(60):
        masks[row, :, : 2 * max(0, row - 20)] = 1  # 21 empty masks, then growing ones
    labelled = LabelledImages(tuple(f"{row:02}" for row in range(60)), masks, masks)
    chosen = settings(folds=3, experiments="resnet34_Lovasz")
    assert [one.name for one in chosen.planned_experiments] == [
        f"resnet34_Lovasz_fold{n}" for n in (1, 2, 3)
    ]
    parts = [split(labelled, chosen, one.fold) for one in chosen.planned_experiments]
    assert sorted(i for _, validation in parts for i in validation.ids) == list(labelled.ids)
    for train, validation in parts:
        assert not set(train.ids) & set(validation.ids)
        assert (coverage_classes(validation.masks) == 0).sum() == 7
        assert abs(validation.masks.mean() - masks.mean()) < 0.03


def test_too_many_folds_are_an_error(labelled: LabelledImages, settings: MakeSettings) -> None:
    with pytest.raises(DataError, match=r"train\.csv: too few images for the folds"):
        split(labelled, settings(folds=19), fold=1)


def test_synchronized_batch_norm_equals_the_plain_one_in_half_precision(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        features = torch.rand(4, 3, 5, 5).to(torch.bfloat16)
        plain = torch.nn.BatchNorm2d(3)
        model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
        weight = model[0].weight
        ours = sync_batch_norm(model, DistributedContext(0, 2))
        assert type(ours[0]) is not torch.nn.BatchNorm2d
        assert ours[0].weight is weight  # the optimizer's parameter
        assert set(ours.state_dict()) == {f"0.{name}" for name in plain.state_dict()}
        found, expected = ours(features), plain(features)
    finally:
        distributed.destroy_process_group()
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected.float(), atol=0.02)
    assert torch.allclose(ours[0].running_var, plain.running_var, atol=1e-3)
