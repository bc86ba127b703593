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
    is_out_of_memory,
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


def chained(cause: Exception, error: Exception, explicit: bool) -> Exception:
    """An error that was raised from another one, or while another one was handled."""
    try:
        try:
            raise cause
        except Exception as caught:
            if explicit:
                raise error from caught
            raise error  # noqa: B904
    except Exception as caught:
        return caught


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: "


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError(""),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THC.cpp:50"),
        RuntimeError("ncclUnhandledCudaError: Call to CUDA failed. Cuda failure 2 'out of memory'"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDn`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.95 GB, max allowed: 18 GB)."),
        RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB."),
        RuntimeError(ALLOCATOR + "can't allocate memory: you tried to allocate 800 bytes."),
        RuntimeError(ALLOCATOR + "not enough memory: you tried to allocate 800 bytes."),
        RuntimeError("unable to mmap 64 bytes from file </torch_1>: Cannot allocate memory (12)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        chained(torch.OutOfMemoryError("full"), ValueError("no result"), explicit=True),
        chained(MemoryError(), KeyError("name"), explicit=False),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[-30:]}",
)
def test_full_memory_is_recognized(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
            "that dataloader's workers are out of shared memory. Please try to raise your limit."
        ),
        RuntimeError("required rank 4 tensor to use channels_last format in memory"),
        RuntimeError("set expandable_segments to avoid CUDA out of memory errors"),
        OSError(28, "No space left on device"),
        ValueError("memory"),
        RuntimeError(""),
    ],
    ids=lambda error: str(error)[-30:],
)
def test_other_errors_are_not_taken_for_full_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_hidden_cause_of_an_error_does_not_count() -> None:
    def hide() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("wrong") from None

    with pytest.raises(ValueError, match="wrong") as error:
        hide()
    assert not is_out_of_memory(error.value)
    loop = ValueError("a")
    loop.__cause__ = RuntimeError("b")
    loop.__cause__.__cause__ = loop
    assert not is_out_of_memory(loop)


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
