"""The time limit of a run: training stops early enough to write a submission."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

CLOSING_SECONDS = 60.0
"""Reserved for plots, tables and zip files after the last prediction."""

SAFETY_FACTOR = 1.15
"""An epoch or a prediction may take this many times as long as the last one."""


@dataclass
class Budget:
    """Hours since the start of the run; None means no limit."""

    hours: float | None = None
    final_images: int = 0
    """Number of images to predict after training."""

    started: float = field(default_factory=time.monotonic)

    epoch_seconds: float = 0.0
    """Duration of the last epoch of any experiment, including the wait for the previous epoch's
    files; 0 before the first epoch."""

    image_seconds: float = 0.0
    """Seconds that one process needed per image in the last validation."""

    def record(self, epoch_seconds: float, image_seconds: float) -> None:
        """Note the pace of an epoch that has just ended."""
        self.epoch_seconds, self.image_seconds = epoch_seconds, image_seconds

    def allows_epoch(self) -> bool:
        """Whether one more epoch fits into the time. The first epoch is always allowed."""
        return self.hours is None or not self.epoch_seconds or self.epochs_left() > 0

    def epochs_left(self) -> int:
        """Return how many more epochs fit. Only valid with a limit and after the first epoch."""
        assert self.hours is not None
        closing = CLOSING_SECONDS + SAFETY_FACTOR * self.image_seconds * self.final_images
        left = self.hours * 3600 - (time.monotonic() - self.started) - closing
        return max(0, int(left / (SAFETY_FACTOR * self.epoch_seconds)))
