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

    def seconds_left(self, seconds_per_image: float) -> float:
        """For training, once the closing is put aside; infinite without a limit.

        `seconds_per_image` is what validation took for one.
        """
        if self.hours is None:
            return float("inf")
        closing = CLOSING_SECONDS + CAUTION * seconds_per_image * self.closing_images
        return self.hours * 3600 - (time.monotonic() - self.started) - closing

    def epochs_left(self, epoch_seconds: float, seconds_per_image: float) -> int:
        """How many more epochs and the closing fit in; a limit is needed."""
        return max(0, int(self.seconds_left(seconds_per_image) / (CAUTION * epoch_seconds)))
