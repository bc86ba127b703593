"""Probabilities at full size from trained networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from src_salt.config import Experiment, Recipe, Settings, first_line
from src_salt.data import Pictures, image_loader
from src_salt.device import Compute, is_out_of_memory, pick_compute
from src_salt.metrics import Probabilities
from src_salt.model import UNet
from src_salt.outputs import Outputs, emit, progress
from src_salt.transforms import fitted, normalised, restored

BATCH_SIZE = 128
"""Images that go through the network at once on the fast path, with their mirrored views: no
gradients are kept."""


def load_model(experiment: Experiment, settings: Settings, outputs: Outputs) -> nn.Module:
    """The network with the best weights of an experiment, ready to predict."""
    model = UNet(experiment.backbone, settings.training.normalised_decoder)
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
    compute = pick_compute(settings.training.on_device)
    at_once = max(1, len(images))
    ready: Tensor | None = None
    for batch in _inputs(images, settings, compute, title):
        # Inside the loop: around a generator the mode would hold for whoever consumes it.
        with torch.inference_mode():
            inputs = batch.to(compute.device, non_blocking=True)
            following = None
            while following is None:
                try:
                    following = _mean(models, inputs, at_once, settings.training, compute)
                except RuntimeError as error:
                    at_once = min(at_once, len(inputs)) // 2
                    if not at_once or not is_out_of_memory(error):
                        raise
                    emit("out_of_memory", message=first_line(error), images_at_once=at_once)
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


def _mean(
    models: Sequence[nn.Module], inputs: Tensor, at_once: int, recipe: Recipe, compute: Compute
) -> Tensor:
    """(B, 101, 101) over models and views, of the network's inputs (B, 3, S, S)."""
    found = []
    for piece in torch.split(inputs, at_once):
        views = torch.cat([piece, piece.flip(-1)]) if recipe.flip_views else piece
        with compute.autocast():
            logits = torch.stack([model(views) for model in models])
        mean = torch.sigmoid(logits.float()).mean(dim=0)
        if recipe.flip_views:
            straight, mirrored = mean.chunk(2)
            mean = (straight + mirrored.flip(-1)) / 2
        found.append(restored(mean, recipe.fit))
    return torch.cat(found)


def _inputs(images: Pictures, settings: Settings, compute: Compute, title: str) -> Iterator[Tensor]:
    """The network's inputs (B, 3, S, S)."""
    if not settings.training.on_device:
        yield from progress(image_loader(images, settings), title)
        return
    for start in progress(range(0, len(images), BATCH_SIZE), title):
        batch = fitted(
            images[start : start + BATCH_SIZE], settings.image_size, settings.training.fit
        )
        pixels = torch.from_numpy(batch).to(compute.device, non_blocking=True).float()
        yield normalised(pixels).contiguous(memory_format=torch.channels_last)
