"""Prediction: probabilities at the original image size from trained networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from src_salt.config import Experiment, Recipe, Settings, first_line
from src_salt.data import Images, image_loader
from src_salt.device import Compute, is_out_of_memory, pick_compute, release_memory
from src_salt.metrics import Postprocessing, Probabilities
from src_salt.model import UNet
from src_salt.outputs import Outputs, emit, progress, write_json
from src_salt.transforms import (
    IMAGE_SIZE,
    MEAN,
    STD,
    inner_region,
    normalize,
    resize_to_input,
    resize_to_original,
)

PREDICTION_SCHEMA = 1

BATCH_SIZE = 128
"""Images per batch on the fast path, before mirrored views are added. Prediction keeps no
gradients, so the batch can be larger than in training."""


def load_model(experiment: Experiment, settings: Settings, outputs: Outputs) -> nn.Module:
    """Load the network with the best weights of an experiment, in evaluation mode."""
    model = UNet(experiment.backbone, settings.resolved_recipe.normalized_decoder)
    path = outputs.weights(experiment.name)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return pick_compute(settings.resolved_recipe.on_device).place(model).eval()


def write_prediction(
    experiments: Sequence[Experiment],
    postprocessing: Postprocessing,
    settings: Settings,
    outputs: Outputs,
) -> None:
    """Write how these networks make the submission, for programs without this package.

    docs/src_salt.md contains such a program.
    """
    recipe, size = settings.resolved_recipe, settings.image_size
    compute = pick_compute(recipe.on_device)
    inner, offset = inner_region(size, recipe.fit)
    content = {
        "schema": PREDICTION_SCHEMA,
        "networks": [
            {"weights": outputs.weights(one.name).name, "backbone": one.backbone}
            for one in experiments
        ],
        "image_size": size,
        "fit": recipe.fit,  # resize to inner_size, then mirror the border at offset
        "inner_size": inner,
        "offset": offset,
        "mean": MEAN,
        "std": STD,
        "flip_tta": recipe.flip_tta,
        "threshold": postprocessing.threshold,
        "min_area": postprocessing.min_area,
        "original_size": IMAGE_SIZE,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "channels_last": compute.channels_last,
    }
    write_json(outputs.prediction, content)


def predict(
    models: Sequence[nn.Module], images: Images, settings: Settings, title: str
) -> Iterator[Probabilities]:
    """Yield probabilities of gray images (N, 101, 101) batch by batch, in order.

    They are the mean over the models, and over the mirrored image if the recipe says so. This is an
    iterator because the probabilities of 18,000 images take 730 MB. If memory runs out, smaller
    pieces are predicted.
    """
    compute = pick_compute(settings.resolved_recipe.on_device)
    at_once = max(1, len(images))
    ready: Tensor | None = None
    for batch in _input_batches(images, settings, compute, title):
        # Entered for each batch: around the whole generator it would also affect the caller.
        with torch.inference_mode():
            inputs = batch.to(compute.device, non_blocking=True)
            following = None
            while following is None:
                try:
                    following = _predict_batch(
                        models, inputs, at_once, settings.resolved_recipe, compute
                    )
                except (RuntimeError, MemoryError) as error:
                    at_once = min(at_once, len(inputs)) // 2
                    if not at_once or not is_out_of_memory(error):
                        raise
                    message = first_line(error)
                    emit("out_of_memory", message=message, images_at_once=at_once)
                if following is None:
                    release_memory()
        # One batch late: a GPU computes the next batch while the caller processes this one.
        if ready is not None:
            yield ready.cpu().numpy()
        ready = following
    if ready is not None:
        yield ready.cpu().numpy()


def predict_all(
    models: Sequence[nn.Module], images: Images, settings: Settings, title: str
) -> Probabilities:
    """Return the probabilities of all images at once, (N, 101, 101)."""
    return np.concatenate(list(predict(models, images, settings, title)))


def _predict_batch(
    models: Sequence[nn.Module], inputs: Tensor, at_once: int, recipe: Recipe, compute: Compute
) -> Tensor:
    """Return mean probabilities (B, 101, 101) of network inputs (B, 3, S, S)."""
    results = []
    for piece in torch.split(inputs, at_once):
        views = torch.cat([piece, piece.flip(-1)]) if recipe.flip_tta else piece
        with compute.autocast():
            logits = torch.stack([model(views) for model in models])
        mean = torch.sigmoid(logits.float()).mean(dim=0)
        if recipe.flip_tta:
            original, mirrored = mean.chunk(2)
            mean = (original + mirrored.flip(-1)) / 2
        results.append(resize_to_original(mean, recipe.fit))
    return torch.cat(results)


def _input_batches(
    images: Images, settings: Settings, compute: Compute, title: str
) -> Iterator[Tensor]:
    """Yield network inputs (B, 3, S, S)."""
    if not settings.resolved_recipe.on_device:
        yield from progress(image_loader(images, settings), title)
        return
    for start in progress(range(0, len(images), BATCH_SIZE), title):
        batch = resize_to_input(
            images[start : start + BATCH_SIZE], settings.image_size, settings.resolved_recipe.fit
        )
        pixels = torch.from_numpy(batch).to(compute.device, non_blocking=True).float()
        yield normalize(pixels).contiguous(memory_format=torch.channels_last)
