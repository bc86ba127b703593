"""Probabilities at full size from trained networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from src_salt.config import Experiment, Settings
from src_salt.data import Pictures, image_loader
from src_salt.device import Compute, is_out_of_memory, pick_compute
from src_salt.metrics import Probabilities
from src_salt.model import UNet
from src_salt.outputs import Outputs, emit, progress
from src_salt.transforms import fitted, normalised, restored

BATCH_SIZE = 128
"""Images that go through the network at once on the fast path: no gradients are kept."""


def load_model(experiment: Experiment, settings: Settings, outputs: Outputs) -> nn.Module:
    """The network with the best weights of an experiment, ready to predict."""
    model = UNet(experiment.backbone, settings.training.decoder)
    path = outputs.weights(experiment.name)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return pick_compute(settings.training.on_device).place(model).eval()


def predict(
    models: Sequence[nn.Module], images: Pictures, settings: Settings, title: str
) -> Iterator[Probabilities]:
    """Probabilities of gray images (N, 101, 101), batch by batch, in their order.

    The mean over the models, and over the mirrored views where the recipe has them. An iterator,
    since the probabilities of 18,000 images would take 730 MB at once.
    """
    recipe = settings.training
    compute = pick_compute(recipe.on_device)
    ready: Tensor | None = None
    for batch in _inputs(images, settings, compute, title):
        # Inside the loop: around a generator the mode would hold for whoever consumes it.
        with torch.inference_mode():
            inputs = batch.to(compute.device, non_blocking=True)
            views = [_probabilities(model, inputs, compute) for model in models]
            if recipe.flip_views:
                mirrored = inputs.flip(-1)
                views += [_probabilities(model, mirrored, compute).flip(-1) for model in models]
            following = restored(torch.stack(views).mean(dim=0), recipe.fit)
        # A batch late: a GPU computes the next one while this one is cut and written.
        if ready is not None:
            yield ready.cpu().numpy()
        ready = following
    if ready is not None:
        yield ready.cpu().numpy()


def predict_all(
    models: Sequence[nn.Module], images: Pictures, settings: Settings, title: str
) -> Probabilities:
    """The same for as many images as fit into memory."""
    return np.concatenate(list(predict(models, images, settings, title)))


def _probabilities(model: nn.Module, inputs: Tensor, compute: Compute) -> Tensor:
    """(B, 1, S, S), in smaller pieces where memory gives out."""
    try:
        with compute.autocast():
            logits = model(inputs)
        return torch.sigmoid(logits.float())
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(inputs) == 1:
            raise
        emit("out_of_memory", message=str(error).splitlines()[0], images_at_once=len(inputs) // 2)
    # Out here the error no longer holds what the failed attempt had in memory.
    return torch.cat([_probabilities(model, piece, compute) for piece in inputs.chunk(2)])


def _inputs(images: Pictures, settings: Settings, compute: Compute, title: str) -> Iterator[Tensor]:
    """The network's inputs (B, 3, S, S)."""
    if not settings.training.on_device:
        yield from progress(image_loader(images, settings), title)
        return
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    for start in progress(range(0, len(images), BATCH_SIZE), title):
        batch = fitted(
            images[start : start + BATCH_SIZE], settings.image_size, settings.training.fit
        )
        pixels = torch.from_numpy(batch).to(compute.device, non_blocking=True).float()
        yield normalised(pixels).contiguous(memory_format=layout)
