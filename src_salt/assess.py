"""The best networks on the validation images at their full size: what the report shows."""

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
from src_salt.metrics import Cut, Masks, Probabilities, best_cut, cross_cut, iou, scores
from src_salt.predict import predict_all


@dataclass(frozen=True)
class Assessment:
    """Predictions for every validation image, by a network that was not trained on it."""

    validation: LabelledImages
    probabilities: Probabilities
    cut: Cut
    """What makes the submission's masks."""

    tried: dict[Cut, float]
    """The mean competition score of each cut on these images."""

    masks: Masks
    """Where the cut was chosen: of each image by a cut that was chosen without it."""

    ious: npt.NDArray[np.float32]  # (N,)
    scores: npt.NDArray[np.float32]  # (N,) the competition's

    chosen: bool = False
    """Whether the cut was chosen on these images."""

    @property
    def score(self) -> float:
        """The competition's, over all images."""
        return float(self.scores.mean())

    @property
    def iou(self) -> float:
        """The mean over all images."""
        return float(self.ious.mean())


def assess(
    results: Sequence[Result],
    models: Sequence[nn.Module],
    labelled: LabelledImages,
    settings: Settings,
) -> Assessment:
    """Each fold's network on its own validation images; the cut that suits all of them best."""
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
    best, tried = best_cut(probabilities, truths)
    chosen = settings.training.chosen_cut and len(truths) > 1
    cut = best if chosen else Cut()
    masks = cross_cut(probabilities, truths) if chosen else cut.masks(probabilities)
    ious = iou(torch.from_numpy(masks), torch.from_numpy(truths)).numpy()
    return Assessment(
        validation, probabilities, cut, tried, masks, ious, scores(masks, truths), chosen
    )
