"""One experiment: epochs, the best weights, the history.

The best weights are written whenever validation improves; the history is written last, and its
presence is what says that the experiment is complete.
"""

from __future__ import annotations

import io
import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from src_salt.config import Experiment, SaltError, Settings
from src_salt.data import LabelledImages, Pairs, evaluation_loader, training_loader
from src_salt.losses import LOSS_FUNCTIONS, Loss
from src_salt.metrics import iou
from src_salt.model import UNet, load_encoder_weights
from src_salt.outputs import Outputs, emit, progress, whole

PLATEAU_FACTOR = 0.1
PLATEAU_PATIENCE = 5
"""Epochs without a better validation IoU before the learning rate falls to a tenth."""


class TrainingError(SaltError):
    """Training broke down; the message names experiment and epoch."""


@dataclass(frozen=True)
class Epoch:
    """One line of a history. IoU is the mean over images at the network's size, as losses are."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float
    train_iou: float  # of the augmented images, while the weights still move
    val_iou: float
    learning_rate: float


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int, device: torch.device) -> None:
    """Make what follows repeat itself: bit for bit on a CPU, closely on CUDA.

    On CUDA the backward pass of bilinear upsampling adds in an arbitrary order. Its deterministic
    form is several times slower, so strictness stays a matter of the CPU.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(device.type == "cpu")


def train_experiment(
    experiment: Experiment,
    settings: Settings,
    train: LabelledImages,
    validation: LabelledImages,
    outputs: Outputs,
) -> list[Epoch]:
    """Train one experiment, keep its best weights in `outputs`, and return every epoch.

    It seeds itself, so its result does not depend on what ran before it in this process.
    TrainingError if a loss is no longer a number.
    """
    device = pick_device()
    seed_everything(settings.seed, device)
    weights = load_encoder_weights(experiment.backbone, settings)
    model = UNet(experiment.backbone, weights).to(device)
    optimizer = Adam(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    scheduler = ReduceLROnPlateau(
        optimizer, mode="max", factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
    )
    loaders = training_loader(train, settings), evaluation_loader(validation, settings)
    history: list[Epoch] = []
    for number in range(1, settings.epochs + 1):
        started = time.monotonic()
        epoch = _one_epoch(number, experiment, model, optimizer, loaders)
        if epoch.val_iou > max((earlier.val_iou for earlier in history), default=-math.inf):
            save_weights(model, outputs, experiment)
        history.append(epoch)
        scheduler.step(epoch.val_iou)
        _announce(epoch, experiment, settings.epochs, time.monotonic() - started)
    return history


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The first epoch with the highest validation IoU: the one whose weights are kept."""
    return max(history, key=lambda epoch: epoch.val_iou)


def _one_epoch(
    number: int,
    experiment: Experiment,
    model: nn.Module,
    optimizer: Optimizer,
    loaders: tuple[Pairs, Pairs],
) -> Epoch:
    loss = LOSS_FUNCTIONS[experiment.loss]
    learning_rate = float(optimizer.param_groups[0]["lr"])
    title = f"{experiment.name} epoch {number}"
    train_loss, train_iou = _train_pass(model, loss, optimizer, progress(loaders[0], title))
    _require_finite(train_loss, "training", experiment, number)
    val_loss, val_iou = _validation_pass(model, loss, progress(loaders[1], f"{title} validation"))
    _require_finite(val_loss, "validation", experiment, number)
    return Epoch(number, train_loss, val_loss, train_iou, val_iou, learning_rate)


class _Means:
    """Means over images, summed on the device: reading a number there would stop the GPU."""

    def __init__(self) -> None:
        self.images = 0
        self.sums: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count in one batch; `loss` is its mean."""
        ious = iou(logits.detach()[:, 0] > 0, targets[:, 0] > 0)  # logit 0 is probability 0.5
        sums = torch.stack([loss.detach().double() * len(targets), ious.double().sum()])
        self.sums = sums if self.sums is None else self.sums + sums
        self.images += len(targets)

    def read(self) -> tuple[float, float]:
        """Mean loss and mean IoU."""
        assert self.sums is not None, "a loader always gives at least one batch"
        loss, mean_iou = (self.sums / self.images).tolist()
        return loss, mean_iou


def _train_pass(
    model: nn.Module, loss: Loss, optimizer: Optimizer, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    model.train()
    device = next(model.parameters()).device
    means = _Means()
    for images, masks in batches:
        targets = masks.to(device, non_blocking=True)
        logits = model(images.to(device, non_blocking=True))
        value = loss(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        means.add(value, logits, targets)
    return means.read()


@torch.inference_mode()
def _validation_pass(
    model: nn.Module, loss: Loss, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    model.eval()
    device = next(model.parameters()).device
    means = _Means()
    for images, masks in batches:
        targets = masks.to(device, non_blocking=True)
        logits = model(images.to(device, non_blocking=True))
        means.add(loss(logits, targets), logits, targets)
    return means.read()


def _require_finite(value: float, side: str, experiment: Experiment, number: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{experiment.name}: the {side} loss of epoch {number} is {value}. "
            "A lower learning_rate usually helps."
        )


def save_weights(model: nn.Module, outputs: Outputs, experiment: Experiment) -> None:
    """Write the state_dict, on the CPU, in one piece and with the same bytes every time."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    content = io.BytesIO()  # a file's name would be written into the archive
    torch.save(state, content)
    with whole(outputs.weights(experiment.name)) as temporary:
        temporary.write_bytes(content.getbuffer())


def _announce(epoch: Epoch, experiment: Experiment, epochs: int, seconds: float) -> None:
    values = asdict(epoch)
    values.pop("epoch")
    emit(
        "epoch",
        experiment=experiment.name,
        epoch=epoch.epoch,
        epochs=epochs,
        **values,
        seconds=round(seconds, 2),
    )
