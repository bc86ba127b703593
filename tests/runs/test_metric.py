"""The metric of a run: declared, preferred, or by its name."""

import pytest

from kernelkit.notebook.runtime import RunEvent, goal_of
from kernelkit.runs.metric import best_metric


def epochs(**series: list[float]) -> list[RunEvent]:
    length = len(next(iter(series.values())))
    return [
        RunEvent("epoch", "a", {"epoch": n + 1, **{key: s[n] for key, s in series.items()}})
        for n in range(length)
    ]


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        *[(name, "minimize") for name in ("val_rmse", "valid/loss", "eval_loss", "mae", "dev-wer")],
        *[(name, "minimize") for name in ("val_cross_entropy_loss", "val_logloss", "test_mse")],
        *[(name, "maximize") for name in ("val_iou", "val_acc", "val_map", "eval_bleu", "val_r2")],
    ],
)
def test_a_name_suggests_a_direction(name: str, goal: str) -> None:
    assert goal_of(name) == goal


@pytest.mark.parametrize(
    ("series", "name", "value", "epoch"),
    [
        ({"loss": [3.0, 1.0], "val_rmse": [2.0, 2.5]}, "val_rmse", 2.0, 1),
        ({"valid_map": [0.1, 0.3], "seconds": [9.0, 8.0]}, "valid_map", 0.3, 2),
        ({"val_rmse": [1.0, 2.0], "val_iou": [0.1, 0.2]}, "val_iou", 0.2, 2),
        ({"acc/val": [0.5, 0.4], "loss": [1.0, 2.0]}, "acc/val", 0.5, 1),
    ],
)
def test_a_validation_value_is_found(
    series: dict[str, list[float]], name: str, value: float, epoch: int
) -> None:
    metric = best_metric(epochs(**series))
    assert metric is not None
    assert (metric.name, metric.value, metric.epoch) == (name, value, epoch)


def test_the_project_file_decides() -> None:
    events = epochs(val_iou=[0.1, 0.2], score=[5.0, 3.0])
    metric = best_metric(events, "score", "minimize")
    assert metric is not None
    assert (metric.value, metric.goal, metric.numbers) == (3.0, "minimize", {"val_iou": 0.2})
    assert best_metric(events, "score").value == 5.0  # type: ignore[union-attr]
    assert best_metric(events, "never_reported") is None


def test_training_values_alone_are_no_metric() -> None:
    assert best_metric(epochs(loss=[1.0], train_loss=[2.0], seconds=[3.0])) is None
    assert best_metric([]) is None
