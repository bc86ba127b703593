"""Evaluation of the best networks on the validation images, at full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from src_salt.config import Settings
from src_salt.data import LabelledImages, split
from src_salt.experiments import Result
from src_salt.metrics import (
    Masks,
    Postprocessing,
    Probabilities,
    cross_fitted_masks,
    image_scores,
    iou,
    tune_threshold,
)
from src_salt.predict import predict_all


@dataclass(frozen=True)
class Evaluation:
    """Predictions for every validation image, by a network that was not trained on it."""

    validation: LabelledImages
    probabilities: Probabilities
    postprocessing: Postprocessing
    """What makes the submission's masks."""

    candidates: dict[Postprocessing, float]
    """Every post-processing that was tried, with its mean competition score on these images."""

    masks: Masks
    """If the threshold was tuned, each mask uses a threshold that was tuned without its image."""

    ious: npt.NDArray[np.float32]  # (N,)
    scores: npt.NDArray[np.float32]  # (N,) the competition's

    tuned: bool = False
    """Whether the post-processing was tuned on these images."""

    @property
    def score(self) -> float:
        """The mean competition score of all images."""
        return float(self.scores.mean())

    @property
    def iou(self) -> float:
        """The mean IoU of all images."""
        return float(self.ious.mean())


def evaluate(
    results: Sequence[Result],
    models: Sequence[nn.Module],
    labelled: LabelledImages,
    settings: Settings,
) -> Evaluation:
    """Predict each fold's validation images with its own network, and tune the post-processing.

    `models` holds the network of each result, in the same order.
    """
    parts = [split(labelled, settings, result.experiment.fold)[1] for result in results]
    probabilities = np.concatenate(
        [
            predict_all([model], part.images, settings, "validation")
            for model, part in zip(models, parts, strict=True)
        ]
    )
    validation = LabelledImages(
        tuple(image_id for part in parts for image_id in part.ids),
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.masks for part in parts]),
    )
    truths = validation.masks > 0
    best, candidates = tune_threshold(probabilities, truths)
    tuned = settings.resolved_recipe.tune_threshold and len(truths) > 1
    postprocessing = best if tuned else Postprocessing()
    if tuned:
        masks = cross_fitted_masks(probabilities, truths)
    else:
        masks = postprocessing.apply(probabilities)
    return Evaluation(
        validation=validation,
        probabilities=probabilities,
        postprocessing=postprocessing,
        candidates=candidates,
        masks=masks,
        ious=iou(torch.from_numpy(masks), torch.from_numpy(truths)).numpy(),
        scores=image_scores(masks, truths),
        tuned=tuned,
    )
