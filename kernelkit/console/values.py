"""Times, numbers, scores and metrics, as people read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kernelkit.console.output import CELL_CHARACTERS
from kernelkit.storage import one_line

if TYPE_CHECKING:
    from pydantic import JsonValue

    from kernelkit.notebook.runtime import RunEvent
    from kernelkit.runs.metric import Metric

EPOCH_COLUMNS = (  # of an epoch's event: heading, key, digits
    ("train loss", "train_loss", 4),
    ("val loss", "val_loss", 4),
    ("val IoU", "val_iou", 4),
    ("val score", "val_score", 4),
    ("s", "seconds", 1),
)


NOT_MEASURED = frozenset({"epoch", "epochs", *(key for _, key, _ in EPOCH_COLUMNS)})
MORE_COLUMNS = 12  # other numbers of an epoch


def ago(when: object) -> str:
    """A time in ISO 8601 as people say it: "3 h ago"; unchanged if it is not one."""
    try:
        moment = datetime.fromisoformat(str(when))
        seconds = (datetime.now(UTC) - moment).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: without a time zone
        return str(when or "")
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def number(value: Any, digits: int = 4) -> str:
    """A number that a run reports; empty if it is not one."""
    try:
        return f"{value:.{digits}f}" if isinstance(value, int | float) else ""
    except OverflowError:  # JSON has integers that no float can hold
        return "∞"


def metric_text(metric: Metric | None) -> str:
    """The name and the value of a metric."""
    return f"{metric.name} {number(metric.value)}" if metric else ""


def value_text(value: JsonValue) -> str:
    """A value that differs between two runs; of a metric only its name and value."""
    if isinstance(value, dict) and {"name", "value", "epoch"} <= value.keys():
        return f"{value['name']} {number(value['value'])}"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def score_text(public: str | None, private: str | None, state: str | None) -> str:
    """The scores of a submission as Kaggle shows them, or its state."""
    return f"{public or '?'} / {private or '?'}" if public or private else state or ""


def epoch_columns(events: Sequence[RunEvent]) -> list[tuple[str, str, int]]:
    """Heading, key and digits of every number that the events report."""
    known = [one for one in EPOCH_COLUMNS if any(one[1] in event.numbers for event in events)]
    keys = dict.fromkeys(key for event in events for key in event.numbers)
    other = [key for key in keys if key not in NOT_MEASURED][:MORE_COLUMNS]
    more = [(one_line(key.replace("_", " "), CELL_CHARACTERS), key, 4) for key in other]
    last = [one for one in known if one[1] == "seconds"]
    return [one for one in known if one not in last] + more + last
