"""Probabilities at full size from a trained network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from src_salt.config import Experiment, Settings
from src_salt.data import Pictures, image_loader
from src_salt.model import UNet
from src_salt.outputs import Outputs, progress
from src_salt.train import pick_device
from src_salt.transforms import restored

Probabilities = npt.NDArray[np.float32]
"""Of salt at each pixel, (N, 101, 101)."""


def load_model(experiment: Experiment, outputs: Outputs) -> nn.Module:
    """The network with the best weights of an experiment, ready to predict."""
    model = UNet(experiment.backbone)
    path = outputs.weights(experiment.name)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.to(pick_device()).eval()


def predict(
    model: nn.Module, images: Pictures, settings: Settings, title: str
) -> Iterator[Probabilities]:
    """Probabilities of gray images (N, 101, 101), batch by batch, in their order.

    An iterator, since those of 18,000 images would take 730 MB at once.
    """
    device = next(model.parameters()).device
    for batch in progress(image_loader(images, settings), title):
        # Inside the loop: around a generator the mode would hold for whoever consumes it.
        with torch.inference_mode():
            logits = model(batch.to(device, non_blocking=True))
            probabilities = restored(torch.sigmoid(logits))
        yield probabilities.cpu().numpy()
