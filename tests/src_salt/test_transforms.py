from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src_salt.transforms import (
    TransformError,
    apply_to_image,
    apply_to_pair,
    augment,
    evaluation_transform,
    resize_to_original,
    training_transform,
)

from .conftest import python


def half_salt() -> tuple[np.ndarray, np.ndarray]:
    """The left half is dark and salt, the right half is bright."""
    image = np.full((101, 101), 200, np.uint8)
    mask = np.zeros((101, 101), np.uint8)
    image[:, :50], mask[:, :50] = 40, 1
    return image, mask


def test_evaluation_resizes_and_normalizes_with_imagenet_statistics() -> None:
    image, mask = apply_to_pair(evaluation_transform(128), *half_salt())
    assert image.shape == (3, 128, 128)
    assert image.dtype == torch.float32
    assert mask.shape == (1, 128, 128)
    expected = (torch.tensor([40 / 255] * 3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(image[:, 5, 5], expected, atol=1e-4)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(50 / 101, abs=0.01)


def test_albumentations_is_asked_to_send_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By variables: each pipeline of AlbumentationsX would report itself to the authors."""
    names = ("NO_ALBUMENTATIONS_UPDATE", "ALBUMENTATIONS_NO_TELEMETRY")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    evaluation_transform(32)
    assert [os.environ[name] for name in names] == ["1", "1"]


def test_image_without_mask_is_transformed_as_in_a_pair() -> None:
    image, mask = half_salt()
    transform = evaluation_transform(64)
    assert torch.equal(apply_to_image(transform, image), apply_to_pair(transform, image, mask)[0])


def test_seed_decides_the_augmentation() -> None:
    first, second = training_transform(64), training_transform(64)
    for seed in (7, 8, 9):
        second(image=np.zeros((101, 101, 3), np.uint8))  # changes the pipeline's own random state
        one, other = augment(first, *half_salt(), seed), augment(second, *half_salt(), seed)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_seeds_give_all_kinds_of_augmentation() -> None:
    images = [augment(training_transform(64), *half_salt(), seed) for seed in range(60)]
    # Two flips, a rotation, affine and brightness, each with probability one half: nearly all 60
    # differ, and the salt is on each side at least once.
    assert len({image.numpy().tobytes() for image, _ in images}) > 30
    left, top = torch.tensor([[mask[0, 32, 3], mask[0, 3, 32]] for _, mask in images]).T
    assert 0 < left.mean() < 1
    assert 0 < top.mean() < 1
    assert len({mask.numpy().tobytes() for _, mask in images}) > 10


def test_mask_is_augmented_like_the_image() -> None:
    for seed in range(40):
        image, mask = augment(training_transform(64), *half_salt(), seed)
        middle = (image[0].min() + image[0].max()) / 2
        assert ((image[0] < middle) == (mask[0] > 0)).float().mean() > 0.97


def test_resize_to_original_reverses_the_resize() -> None:
    rows, columns = np.mgrid[0:101, 0:101]
    smooth = (127 + 60 * np.sin(rows / 15) + 60 * np.cos(columns / 20)).astype(np.uint8)
    _, mask = half_salt()
    image, resized_mask = apply_to_pair(evaluation_transform(128), smooth, mask)
    gray = image[:1] * 0.229 + 0.485
    assert (resize_to_original(gray[None])[0] - torch.from_numpy(smooth) / 255).abs().max() < 0.02
    back = resize_to_original(resized_mask[None])[0] > 0.5
    assert back.shape == (101, 101)
    assert (back.numpy() != (mask > 0)).mean() <= 0.01  # at most one column at the edge


BROKEN = {
    "missing": "raise ModuleNotFoundError(\"No module named 'albumentations'\")",
    "import error": "raise ImportError('libGL.so.1: cannot open shared object file')",
    "another error": "raise AttributeError('module numpy has no attribute bool8')\n",
    "no class": "Compose = list",
    "another version": "class Compose:\n    def __init__(self, steps):\n        pass\n"
    "def __getattr__(name):\n    return lambda *_, p=1: None",
    "old version": "class Compose:\n    def __init__(self, steps):\n        pass\n"
    "def __getattr__(name):\n    return lambda *_, **__: None",
}
"""The content of albumentations/__init__.py."""


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_albumentations_is_reported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "albumentations").mkdir()
    (tmp_path / "albumentations" / "__init__.py").write_text(BROKEN[kind])
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "albumentations"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(TransformError, match=r"needs albumentations 2.* recipe fast"):
        training_transform(32)
    sys.modules.pop("albumentations", None)


@pytest.mark.slow
def test_recipes_without_albumentations_do_not_import_it(
    competition_dir: Path, tmp_path: Path
) -> None:
    """One recipe trains and predicts; the other says what is wrong before it trains."""
    (tmp_path / "albumentations").mkdir()
    (tmp_path / "albumentations" / "__init__.py").write_text("raise SystemError('broken')")
    program = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from src_salt.config import Settings
        from src_salt.data import load_competition
        from src_salt.main import run
        from src_salt.model import UNet
        from src_salt.predict import predict_all
        from src_salt.train import Trainer
        chosen = dict(data_dir={str(competition_dir)!r}, output_dir={str(tmp_path / "out")!r},
            image_size=32, pretrained=False)
        data = load_competition(Settings.from_parameters(chosen).data_dir)
        for recipe in ("fast", "best"):
            settings = Settings.from_parameters(dict(chosen, recipe=recipe))
            Trainer(settings.planned_experiments[0], settings, data.labelled, data.labelled)
            predict_all([UNet("resnet34").eval()], data.test.images, settings, "")
        print("fine without")
        run(**chosen)
    """
    done = python(program)
    assert done.stdout == "fine without\n", done.stderr[-2000:]
    assert "TransformError: The recipe baseline needs albumentations 2" in done.stderr
    assert not (tmp_path / "out" / "models").exists()
