"""Which number of the epochs says how good a run is, and whether more of it is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

PREFERRED = ("val_iou", "val_score", "val_f1", "val_auc", "val_accuracy", "val_loss")
"""Before any other number that looks like one of the validation."""

_VALIDATION = re.compile(
    r"(?:val|valid|validation|eval|dev|cv|oof|test)[_./-].+|.+[_./-](?:val|cv)"
)
_LOWER_IS_BETTER = re.compile(
    r"(?:^|[_./-])(?:\w*loss|error|err|\w*rmse|rmsle|mae|mape|\w*mse|log_?loss|nll|ppl|perplexity|wer|cer|fid|"
    r"brier|bce|deviance|distance)(?:$|[_./-])"
)


def goal_of(name: str) -> Literal["minimize", "maximize"]:
    """The direction that the name of a metric suggests."""
    return "minimize" if _LOWER_IS_BETTER.search(name.lower()) else "maximize"


def metric_among(names: Sequence[str]) -> str:
    """The first of PREFERRED, or else the first name that looks like a number of the validation.

    Empty where there is none.
    """
    guessed = [name for name in PREFERRED if name in names]
    guessed += [name for name in names if _VALIDATION.fullmatch(name.lower())]
    return next(iter(guessed), "")
