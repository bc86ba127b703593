from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from src_salt import report
from src_salt.config import EXPERIMENTS
from src_salt.experiments import Result
from src_salt.train import Epoch


def results(epochs: int) -> list[Result]:
    def epoch(number: int, place: int) -> Epoch:
        iou = 0.5 + 0.02 * number - 0.003 * (number - 12 + place) ** 2 / 4 + 0.01 * place
        losses = 1.2 / number**0.3, 1.25 / number**0.25
        return Epoch(number, *losses, iou - 0.01, iou, iou - 0.05, 1e-4)

    return [
        Result(experiment, tuple(epoch(number, place) for number in range(1, epochs + 1)))
        for place, experiment in enumerate(EXPERIMENTS)
    ]


def cases(count: int) -> list[report.Case]:
    rng = np.random.default_rng(0)
    rows = np.arange(101)[:, None] + np.zeros((1, 101))
    return [
        report.Case(
            f"{n:010x}",
            rng.integers(0, 255, (101, 101), dtype=np.uint8),
            rows > 101 - 20 * n,
            rows > 60,
            0.5,
        )
        for n in range(count)
    ]


def draw(folder: Path, epochs: int = 20, count: int = 6, shown: slice = slice(None)) -> list[Path]:
    paths = [folder / name for name in ("iou.png", "loss.png", "predictions.png")]
    report.plot_iou_comparison(results(epochs)[shown], paths[0])
    report.plot_losses(results(epochs)[shown], paths[1])
    report.plot_predictions(cases(count), "Validation", paths[2])
    return paths


@pytest.mark.parametrize(
    ("epochs", "count", "shown"),
    [(20, 6, slice(None)), (1, 1, slice(1)), (2, 2, slice(3))],
)
def test_pictures_are_drawn_for_any_number(
    epochs: int, count: int, shown: slice, tmp_path: Path
) -> None:
    for path in draw(tmp_path, epochs, count, shown):
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05  # something is drawn
        assert path.with_name(f".{path.name}").exists() is False
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for one, other in zip(draw(tmp_path / "a"), draw(tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_notebooks_style_neither_enters_nor_is_changed(tmp_path: Path) -> None:
    plain = draw(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "savefig.facecolor": "red"}):
        styled = draw(tmp_path / "b")
        assert matplotlib.rcParams["font.size"] == 30
    assert plain[0].read_bytes() == styled[0].read_bytes()


def test_the_tables_show_what_was_measured(tmp_path: Path) -> None:
    csv, markdown = tmp_path / "table.csv", tmp_path / "table.md"
    given = results(20)
    report.write_table(given, 0.61234, csv, markdown)
    lines = csv.read_text().splitlines()
    assert lines[0] == "experiment,backbone,loss,best_val_iou,best_epoch,epochs"
    assert len(lines) == 5
    assert "\r" not in csv.read_text()
    values = [float(line.split(",")[3]) for line in lines[1:]]
    assert values == sorted((result.best.val_iou for result in given), reverse=True)
    winner = max(given, key=lambda result: result.best.val_iou)
    text = markdown.read_text()
    labels = {
        "resnet34": "ResNet34",
        "resnet50": "ResNet50",
        "bcedice": "BCE+Dice",
        "lovasz": "Lovász",
    }
    backbone, loss = labels[winner.experiment.backbone], labels[winner.experiment.loss]
    row = f"| {winner.experiment.name} | {backbone} | {loss} | {winner.best.val_iou:.4f} |"
    assert text.splitlines()[2].startswith(row)
    assert f"Best: {winner.experiment.name}." in text
    assert "0.6123" in text
