"""The plain loop that src_salt is compared with: segmentation_models_pytorch's U-Net.

This is what a user of that library who knows PyTorch writes: channels last, half precision,
algorithms chosen by benchmark, AdamW, no waiting for the device within an epoch. Network,
losses and defaults are the library's. The batches come from albumentations, on a GPU in worker
processes, or (`device_batches`) from src_salt's own augmentation on the device, which leaves only
the network, the loss and the optimizer to compare.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src_salt.config import RECIPES, Settings
from src_salt.data import DeviceBatches, Images, LabelledImages, evaluation_loader, training_loader
from src_salt.device import SINGLE_PROCESS, Compute, pick_compute
from src_salt.losses import bce_dice_symmetric
from src_salt.metrics import Probabilities, iou
from src_salt.predict import BATCH_SIZE
from src_salt.transforms import normalize, resize_to_input, resize_to_original

MAX_WORKERS = 8
"""Processes that prepare batches on a GPU, at most; otherwise one for each core. A CPU has none."""


class MissingPeer(Exception):
    """The library is not installed."""


def add_packages(python: Path) -> None:
    """Let this process also import what is installed for another interpreter.

    Its packages come last, so this environment's PyTorch and NumPy stay in use.
    """
    root = python.parent.parent
    sys.path.append(sysconfig.get_path("purelib", "venv", {"base": str(root)}))


def library() -> Any:
    """Import segmentation_models_pytorch.

    Raises:
        MissingPeer: it is not installed.
    """
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except ImportError as error:
        raise MissingPeer(
            f"segmentation_models_pytorch cannot be imported ({error}); "
            "see benchmarks/requirements.txt"
        ) from error


class SmpLoop:
    """Trains, validates and predicts with segmentation_models_pytorch.

    Raises:
        MissingPeer: the library is not installed.
    """

    def __init__(
        self,
        backbone: str,
        loss: str,
        settings: Settings,
        train: LabelledImages,
        validation: LabelledImages,
        device_batches: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        smp = library()
        compute = pick_compute(on_device=True)
        self.compute: Compute = compute if dtype is None else replace(compute, dtype=dtype)
        workers = loaders_on(self.compute.device)
        self.settings = replace(settings, num_workers=workers, recipe="fast")
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(settings.seed)
        network = smp.Unet(backbone, encoder_weights=None, in_channels=3, classes=1)
        self.network: nn.Module = self.compute.place(network)
        self.loss = _loss(smp, loss)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.scaler = self.compute.scaler()
        if device_batches:
            shared = self.settings, self.compute, SINGLE_PROCESS
            augmentation = RECIPES["fast"].augmentation
            self.batches: Iterable[tuple[Tensor, Tensor]] = DeviceBatches(
                train, *shared, augmentation=augmentation
            )
            self.validation: Iterable[tuple[Tensor, Tensor]] = DeviceBatches(validation, *shared)
        else:
            self.batches = training_loader(train, self.settings)
            self.validation = evaluation_loader(validation, self.settings)

    def step(self, images: Tensor, masks: Tensor) -> Tensor:
        """Train on a batch and return its loss; the device may still be working on it."""
        inputs, targets = self._to_device(images, masks)
        self.optimizer.zero_grad(set_to_none=True)
        with self.compute.autocast():
            logits = self.network(inputs)
        loss: Tensor = self.loss(logits.float(), targets)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Train on batches, usually `self.batches`, and return their mean loss."""
        self.network.train()
        losses = [self.step(images, masks) for images, masks in batches]
        return float(torch.stack(losses).mean())

    @torch.inference_mode()
    def validate(self) -> tuple[float, float]:
        """Return mean loss and mean IoU."""
        self.network.eval()
        losses, ious = [], []
        for images, masks in self.validation:
            inputs, targets = self._to_device(images, masks)
            with self.compute.autocast():
                logits = self.network(inputs)
            losses.append(self.loss(logits.float(), targets))
            ious.append(iou(logits[:, 0] > 0, targets[:, 0] > 0).mean())
        return float(torch.stack(losses).mean()), float(torch.stack(ious).mean())

    def predict(self, images: Images) -> Iterator[Probabilities]:
        """Yield probabilities (B, 101, 101) of gray images, batch by batch."""
        self.network.eval()
        size, fit = self.settings.image_size, self.settings.resolved_recipe.fit
        for start in range(0, len(images), BATCH_SIZE):
            batch = resize_to_input(images[start : start + BATCH_SIZE], size, fit)
            pixels = torch.from_numpy(batch).to(self.compute.device).float()
            inputs = normalize(pixels).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), self.compute.autocast():
                logits = self.network(inputs)
                found = resize_to_original(torch.sigmoid(logits.float()), fit)
            yield found.cpu().numpy()

    def _to_device(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        inputs = images.to(
            self.compute.device, memory_format=torch.channels_last, non_blocking=True
        )
        return inputs, masks.to(self.compute.device, non_blocking=True)


def _loss(smp: Any, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the library's loss of this name; it has no symmetric Lovász hinge, so that is ours."""
    cross_entropy = smp.losses.SoftBCEWithLogitsLoss()
    dice = smp.losses.DiceLoss("binary")
    lovasz = smp.losses.LovaszLoss("binary", per_image=True)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "BCEDice": lambda logits, targets: cross_entropy(logits, targets) + dice(logits, targets),
        "Lovasz": lovasz,
        "BCEDiceSymmetric": bce_dice_symmetric,
    }
    return losses[name]


def loaders_on(device: torch.device) -> int:
    """Return how many processes load; on a CPU none, since they would slow down the training."""
    return 0 if device.type == "cpu" else min(MAX_WORKERS, os.cpu_count() or 1)
