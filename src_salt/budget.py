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
    """What the last epoch took, of whichever experiment; 0 before the first."""

    image_seconds: float = 0.0
    """What one process took to predict an image, in the last validation."""

    def allows(self, epochs: int) -> bool:
        """Whether so many more epochs and the closing fit in; the first one always does."""
        if self.hours is None or not self.epoch_seconds:
            return True
        return CAUTION * self.epoch_seconds * epochs <= self._seconds_left()

    def epochs_left(self) -> int:
        """How many more epochs, with the closing, fit in; only where there is a limit."""
        return max(0, int(self._seconds_left() / (CAUTION * self.epoch_seconds)))

    def _seconds_left(self) -> float:
        """For training, once the closing is put aside."""
        assert self.hours is not None
        closing = CLOSING_SECONDS + CAUTION * self.image_seconds * self.closing_images
        return self.hours * 3600 - (time.monotonic() - self.started) - closing
