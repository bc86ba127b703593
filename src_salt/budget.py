"""The time a run may take: it ends by itself before the platform ends it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

CLOSING_SECONDS = 60.0
"""For what follows the last epoch besides prediction: pictures, tables, zips."""

CAUTION = 1.15
"""An epoch or a prediction may take this much longer than the one it is judged by."""


@dataclass
class Budget:
    """Hours from the run's start, None for as long as it takes."""

    hours: float | None = None
    closing_images: int = 0
    """Images that are predicted once training has ended."""

    started: float = field(default_factory=time.monotonic)

    epoch_seconds: float = 0.0
    """What the last epoch took, of whichever experiment, with what it waited for the one before
    to be written; 0 before the first."""

    image_seconds: float = 0.0
    """What one process took to predict an image, in the last validation."""

    def allows_an_epoch(self) -> bool:
        """Whether one more, with the closing, fits in; the first one always does."""
        return self.hours is None or not self.epoch_seconds or self.epochs_left() > 0

    def epochs_left(self) -> int:
        """How many more epochs, with the closing, fit in; only where there is a limit."""
        assert self.hours is not None
        closing = CLOSING_SECONDS + CAUTION * self.image_seconds * self.closing_images
        left = self.hours * 3600 - (time.monotonic() - self.started) - closing
        return max(0, int(left / (CAUTION * self.epoch_seconds)))
