"""How long a run may take, and `time_left`, which the program can ask."""

from __future__ import annotations

import os
import time

from .documents import BundleDocument

DEADLINE_VARIABLE = "KERNELKIT_DEADLINE"
"""When the run should have ended, as a Unix time; the processes of the program inherit it."""

SESSION_HOURS, TPU_SESSION_HOURS = 12.0, 9.0  # what Kaggle allows, by most reports
MARGIN_SECONDS = 600.0  # for the last files, and because the session began before its first cell
MARGIN_PART = 0.05  # of a short session
WARNINGS_SECONDS = (900.0, 300.0, 0.0)
"""So long before the deadline the log gets an event."""


def time_left() -> float | None:
    """Seconds until the run should have ended, at least 0; None outside a run of kernelkit."""
    try:
        return max(0.0, float(os.environ[DEADLINE_VARIABLE]) - time.time())
    except (KeyError, ValueError):
        return None


def allowed_seconds(bundle: BundleDocument) -> float:
    """How long the run may take: what the project says, but not more than Kaggle allows."""
    kernel = bundle["kernel"]
    is_tpu = "tpu" in (kernel["machine_shape"] or "").lower() or kernel.get("enable_tpu", False)
    limits = [(TPU_SESSION_HOURS if is_tpu else SESSION_HOURS) * 3600]
    known = (bundle.get("session_seconds"), kernel.get("session_timeout_seconds"))
    limits += [float(seconds) for seconds in known if seconds]
    limit = min(limits)
    allowed = limit - min(MARGIN_SECONDS, MARGIN_PART * limit)
    stated = bundle.get("deadline_hours")
    return min(allowed, stated * 3600) if stated else allowed
