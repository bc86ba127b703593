"""The recipes of src_salt and the plain loop, behind one interface."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu.results import BASELINE, SMP, SMP_DEVICE, Cell
from benchmarks.smp import SmpLoop
from benchmarks.workload import (
    EPOCHS,
    Predictor,
    flops_of,
    now,
    postprocessing_of,
    predictor,
    time_prediction,
)
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.device import Compute
from src_salt.losses import Loss
from src_salt.metrics import Postprocessing
from src_salt.train import Trainer

LIMITED_BY_LOADER = (BASELINE,)
"""Programs whose workers make few images a second. They get half as many images."""

WARM_UP_STEPS = 3
WARM_UP_IMAGES = 256  # before a prediction: two of its batches


@dataclass(frozen=True)
class Plan:
    """How large the measurements are."""

    images: int
    """Of an epoch; half as many for validation."""

    pixels: int
    workers: int
    """Processes that prepare the baseline's batches."""


@dataclass(frozen=True)
class Turn:
    """Seconds per image, and the mean training loss."""

    training: float
    validation: float
    loss: float


@dataclass(frozen=True)
class Flags:
    """PyTorch's global switches, which each program sets in its own way."""

    deterministic: bool
    benchmark: bool
    algorithms: bool

    @classmethod
    def current(cls) -> Flags:
        """Return the switches as they are."""
        cudnn = torch.backends.cudnn
        algorithms = torch.are_deterministic_algorithms_enabled()
        return cls(cudnn.deterministic, cudnn.benchmark, algorithms)

    def set(self) -> None:
        """Set them again."""
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = self.benchmark
        torch.use_deterministic_algorithms(self.algorithms)


@dataclass(frozen=True)
class Program:
    """A training that is measured. It is created like a user's, and warmed up afterwards."""

    cell: Cell
    compute: Compute
    network: nn.Module
    loss: Loss
    train_images: LabelledImages
    validation_images: LabelledImages
    batches: Iterable[tuple[Tensor, Tensor]]
    """Of an epoch."""

    train: Callable[[Iterable[tuple[Tensor, Tensor]]], float]
    """Trains on batches, and returns the mean loss. It waits for the device at the end."""

    validate: Callable[[], object]
    """Validates on all images. It waits for the device at the end."""

    predictor: Predictor
    postprocessing: Postprocessing
    flags: Flags = field(default_factory=Flags.current)

    def warm_up(self) -> None:
        """Let the device choose its algorithms for every size of a batch."""
        # A last batch of another size has algorithms of its own.
        even = len(self.train_images) % self.cell.batch_size == 0
        self.steps(itertools.islice(self.batches, WARM_UP_STEPS if even else None))
        self.validate()

    def steps(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Train on batches, and return the mean loss."""
        self.flags.set()
        return self.train(batches)

    def turn(self) -> Turn:
        """Train and validate once."""
        began = now()
        loss = self.steps(self.batches)
        trained = now()
        self.validate()
        ended = now()
        return Turn(
            (trained - began) / len(self.train_images),
            (ended - trained) / len(self.validation_images),
            loss,
        )

    def flops(self, size: int) -> int:
        """Return the operations per image of a step, forward and backward."""
        self.flags.set()
        torch.backends.cudnn.benchmark = False  # its batch of two is not worth a benchmark
        return flops_of(self.network, self.loss, self.compute, size)

    def predict(self, folder: Path) -> float:
        """Return seconds per image from bytes to the validated csv."""
        self.flags.set()
        self.network.eval()
        warm = min(WARM_UP_IMAGES, len(self.train_images))
        data = self.train_images
        return time_prediction(self.predictor, self.postprocessing, folder, data, warm)[0]


def build(
    cell: Cell, plan: Plan, images: LabelledImages, validation: LabelledImages, folder: Path
) -> Program:
    """Create the program of a cell, as a training begins, without pretrained weights.

    Raises:
        MissingPeer: the plain loop's library is not installed.
        RuntimeError: memory is full, or the device fails.
    """
    plain = cell.program in (SMP, SMP_DEVICE)
    settings = Settings(
        data_dir=folder,
        output_dir=folder,
        recipe="fast" if plain else cell.program,
        epochs=EPOCHS,
        batch_size=cell.batch_size,
        image_size=plan.pixels,
        pretrained=False,
        num_workers=plan.workers,
    )
    if cell.program in LIMITED_BY_LOADER:
        images = images.subset(range(half_of(plan.images, cell.batch_size)))
    return (_plain if plain else _ours)(cell, settings, images, validation)


def _ours(
    cell: Cell, settings: Settings, images: LabelledImages, validation: LabelledImages
) -> Program:
    trainer = Trainer(Experiment(cell.backbone, cell.loss), settings, images, validation)
    if cell.dtype:
        trainer.compute = replace(trainer.compute, dtype=getattr(torch, cell.dtype))
        trainer.scaler = trainer.compute.scaler()
    return Program(
        cell=cell,
        compute=trainer.compute,
        network=trainer.network,
        loss=trainer.loss,
        train_images=images,
        validation_images=validation,
        batches=trainer.batches,
        train=lambda batches: trainer._train_pass(batches)[0],
        validate=lambda: trainer._validation_pass(trainer.validation),
        predictor=predictor(trainer, settings),
        postprocessing=postprocessing_of(settings.resolved_recipe),
    )


def _plain(
    cell: Cell, settings: Settings, images: LabelledImages, validation: LabelledImages
) -> Program:
    loop = SmpLoop(
        *(cell.backbone, cell.loss, settings, images, validation),
        device_batches=cell.program == SMP_DEVICE,
        dtype=getattr(torch, cell.dtype) if cell.dtype else None,
    )
    return Program(
        cell=cell,
        compute=loop.compute,
        network=loop.network,
        loss=loop.loss,
        train_images=images,
        validation_images=validation,
        batches=loop.batches,
        train=loop.train,
        validate=loop.validate,
        predictor=loop.predict,
        postprocessing=Postprocessing(),
    )


def half_of(images: int, batch_size: int) -> int:
    """Return about half as many images, in whole batches if there is one."""
    half = images // 2
    return max(2, half - half % batch_size if half >= batch_size else half)
