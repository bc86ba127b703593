from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from src_salt import plots, report
from src_salt.config import EXPERIMENTS, Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.evaluate import Evaluation
from src_salt.experiments import Result, select_best
from src_salt.metrics import (
    Postprocessing,
    cross_fitted_masks,
    image_scores,
    iou,
    tune_threshold,
)
from src_salt.outputs import Outputs
from src_salt.train import Epoch

from .conftest import quick_plots


def epoch(number: int, position: float) -> Epoch:
    value = 0.5 + 0.02 * number - 0.003 * (number - 12 + position) ** 2 / 4 + 0.01 * position
    rate = 1e-4 if number < 14 else 1e-5
    losses = 1.2 / number**0.3, 1.25 / number**0.25
    return Epoch(number, *losses, value - 0.01, value, value - 0.08, rate)


def results(epochs: int = 20, folds: int = 1, ended: str = "") -> list[Result]:
    """The four experiments; the last result ended early if there is a reason."""
    found = [
        Result(
            replace(experiment, fold=None if folds == 1 else fold),
            tuple(epoch(number, position + 0.2 * fold) for number in range(1, epochs + 1)),
        )
        for position, experiment in enumerate(EXPERIMENTS)
        for fold in range(1, folds + 1)
    ]
    found[-1] = replace(found[-1], ended=ended)
    return found


def evaluation_of(count: int = 40, empty: bool = False, tuned: bool = False) -> Evaluation:
    """Discs of salt of many sizes, a third of them empty, predicted with blurred, noisy edges."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:101, :101]
    away = np.hypot(rows - rng.integers(0, 101, (count, 1, 1)), columns - 50)
    radius = rng.uniform(5, 70, (count, 1, 1)) * (rng.random((count, 1, 1)) > 0.35)
    inside = (radius - away) / 6 if not empty else np.full((count, 101, 101), -5.0)
    truths = inside > 0
    noise = rng.normal(0, 0.8, (count, 1, 1)) + rng.normal(0, 0.4, truths.shape)
    probabilities = (1 / (1 + np.exp(-(inside + noise)))).astype(np.float32)
    images = (120 + 60 * truths + rng.integers(0, 60, truths.shape)).astype(np.uint8)
    ids = tuple(f"{number:010x}" for number in range(count))
    validation = LabelledImages(ids, images, truths.astype(np.uint8))
    best, candidates = tune_threshold(probabilities, truths)
    used = best if tuned else Postprocessing()
    masks = cross_fitted_masks(probabilities, truths) if tuned else used.apply(probabilities)
    ious = iou(torch.from_numpy(masks), torch.from_numpy(truths)).numpy()
    scores = image_scores(masks, truths)
    return Evaluation(validation, probabilities, used, candidates, masks, ious, scores, tuned)


def write(folder: Path, shown: list[Result], evaluation: Evaluation, settings: Settings) -> Outputs:
    outputs = Outputs(folder)
    report.write_report(shown, evaluation, settings, outputs)
    return outputs


class Page(HTMLParser):
    """A parsed page: text, links and images; its tags must be balanced."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.ids.add(values.get("id") or "")
        if tag == "img":
            self.images.append(values)
        if tag == "a":
            self.links.append(values["href"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in {"td", "th", "dt", "dd"} else ""

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.mark.parametrize(
    ("shown", "evaluation"),
    [
        (results(20, ended="out of time after epoch 20"), evaluation_of(tuned=True)),
        (results(1)[:1], evaluation_of(1)),
        (results(1, folds=2)[:2], evaluation_of(4, empty=True, tuned=True)),
    ],
    ids=["four experiments", "one of everything", "only empty masks"],
)
@pytest.mark.slow
def test_report_of_ordinary_and_extreme_results(
    shown: list[Result], evaluation: Evaluation, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    outputs = write(tmp_path, shown, evaluation, settings())
    assert sorted(tmp_path.rglob("*.*")) == sorted(outputs.results)
    for path in outputs.results:
        if path.suffix == ".png":
            pixels = imread(path)
            assert min(pixels.shape[:2]) > 300
            assert pixels[..., :3].std() > 0.05  # something is drawn


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outputs, Settings]:
    """A report of three epochs and nine images; do not change it."""
    folder = tmp_path_factory.mktemp("report")
    settings = Settings(data_dir=Path("data"), output_dir=folder)
    with quick_plots():
        return write(folder, results(3), evaluation_of(9), settings), settings


def test_page_needs_no_other_files(ordinary: tuple[Outputs, Settings]) -> None:
    outputs, _ = ordinary
    text = outputs.page.read_text(encoding="utf-8")
    page = Page(text)
    pngs = [path for path in outputs.results if path.suffix == ".png"]
    assert len(page.images) == len(pngs)
    assert all((one["src"] or "").startswith("data:image/png;base64,") for one in page.images)
    assert all(len(one["alt"] or "") > 10 for one in page.images)
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|url\(|@import", outside)


def test_page_shows_the_results(settings: Callable[..., Settings], tmp_path: Path) -> None:
    shown = results(6, folds=2, ended="loss <nan> & gone")
    evaluation = evaluation_of(12, tuned=True)
    with quick_plots():
        outputs = write(tmp_path, shown, evaluation, settings(recipe="best"))
    raw = outputs.page.read_text(encoding="utf-8")
    text = " ".join(Page(raw).text.split())
    assert f"{evaluation.score:.4f}" in text
    assert "cross-fitted" in text
    assert "early: loss <nan> & gone" in text
    assert "loss <nan>" not in raw  # escaped
    for result in shown:
        assert f"{plots.experiment_label(result.experiment)}" in text
        assert f"{result.best.val_iou:.4f}" in text
    assert text.count("★ best") == len(select_best(shown)) == 2
    for one in plots.scores_by_coverage(evaluation):
        assert f"{one.label} {one.images} {one.score:.4f} {one.iou:.4f}" in text


def test_same_input_gives_the_same_bytes_with_any_style(
    ordinary: tuple[Outputs, Settings], tmp_path: Path
) -> None:
    plain, settings = ordinary
    style = {"font.size": 30, "savefig.facecolor": "red"}
    with quick_plots(), matplotlib.rc_context(style):
        styled = write(tmp_path, results(3), evaluation_of(9), settings)
        assert matplotlib.rcParams["font.size"] == 30
    for one, other in zip(plain.results, styled.results, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_post_processing_is_described() -> None:
    assert "fixed before training" in report.describe_postprocessing(evaluation_of(4))
    tuned = replace(evaluation_of(4), postprocessing=Postprocessing(0.4, 20), tuned=True)
    text = report.describe_postprocessing(tuned)
    assert "above 0.40 are salt, and regions of fewer than 20 pixels are removed" in text


def test_coverage_classes_contain_every_image_once() -> None:
    evaluation = evaluation_of()
    classes = plots.scores_by_coverage(evaluation)
    assert [one.label for one in classes][:2] == ["none", "0 to 10%"]
    assert sum(one.images for one in classes) == len(evaluation.validation)
    mean = sum(one.images * one.score for one in classes) / len(evaluation.validation)
    assert mean == pytest.approx(evaluation.score)
    empty = evaluation.validation.masks.sum(axis=(1, 2)) == 0
    assert classes[0].score == pytest.approx(evaluation.scores[empty].mean())


def test_cases_are_ranked_by_score() -> None:
    evaluation = evaluation_of()
    best, median, worst = (report._ranked(evaluation, position) for position in (0.0, 0.5, 1.0))
    means = [evaluation.scores[rows].mean() for rows in (best, median, worst)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[2]
    assert len({*best.tolist(), *median.tolist(), *worst.tolist()}) == 18
    seen = evaluation.masks | (evaluation.validation.masks > 0)
    assert seen[np.concatenate([best, median, worst])].any(axis=(1, 2)).all()


def test_id_is_not_parsed_as_a_formula(tmp_path: Path) -> None:
    case = report._cases(evaluation_of(1), np.array([0]))[0]
    plots.plot_predictions([replace(case, image_id=r"$\bad{$")], "Title", tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_tables_show_the_results(tmp_path: Path) -> None:
    csv, markdown = tmp_path / "table.csv", tmp_path / "table.md"
    given, evaluation = results(20, ended="a | b"), evaluation_of(4)
    report.write_table(given, evaluation, csv, markdown)
    lines = csv.read_text().splitlines()
    assert lines[0] == (
        "experiment,backbone,loss,selected_by,best_val_iou,best_val_score,best_epoch,epochs,ended"
    )
    assert len(lines) == 5
    assert "\r" not in csv.read_text()
    values = [float(line.split(",")[4]) for line in lines[1:]]
    assert values == sorted((result.best.val_iou for result in given), reverse=True)
    winner = max(given, key=lambda result: result.best.val_iou)
    text = markdown.read_text()
    assert text.splitlines()[2].startswith(f"| {winner.experiment.name} | ")
    assert f"| {winner.best.val_iou:.4f} | {winner.best.val_score:.4f} |" in text
    assert f"Best by validation IoU: {winner.experiment.name}." in text
    assert f"{evaluation.score:.4f}" in text
    assert r"a \| b" in text


@pytest.mark.parametrize("by", ["val_iou", "val_score"])
def test_best_is_chosen_by_the_selected_metric(by: str, tmp_path: Path) -> None:
    one = replace(epoch(1, 0), val_iou=0.7, val_score=0.5)
    other = replace(epoch(1, 0), val_iou=0.6, val_score=0.55)
    given = [
        Result(Experiment("resnet34", "BCEDice"), (one,), by),
        Result(Experiment("resnet34", "Lovasz"), (other,), by),
    ]
    report.write_table(given, evaluation_of(4), tmp_path / "t.csv", tmp_path / "t.md")
    first = report.table(given).iloc[0]["experiment"]
    assert first == ("resnet34_BCEDice" if by == "val_iou" else "resnet34_Lovasz")
    assert f"{report.SELECTED_BY[by]}: {first}." in (tmp_path / "t.md").read_text()


def test_table_and_page_say_what_happened_on_the_way(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    shown = results(epochs=3)
    notes = "A training process ended.", "Out of memory <1 GiB>.\nContinued | so."
    shown[1] = replace(shown[1], notes=notes)
    name = shown[1].experiment.name
    report.write_table(shown, evaluation_of(8), tmp_path / "a.csv", tmp_path / "a.md")
    lines = (tmp_path / "a.md").read_text().splitlines()
    assert f"- {name}: A training process ended." in lines
    assert f"- {name}: Out of memory <1 GiB>. Continued | so." in lines
    report.write_page(tmp_path / "a.html", shown, evaluation_of(8), settings(), [])
    assert notes[1].replace("\n", " ") in " ".join(
        Page((tmp_path / "a.html").read_text()).text.split()
    )
