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

from src_salt import pictures, report
from src_salt.assess import Assessment
from src_salt.config import EXPERIMENTS, Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.experiments import Result, best_of
from src_salt.metrics import Cut, best_cut, cross_cut, iou, scores
from src_salt.outputs import Outputs
from src_salt.train import Epoch


def epoch(number: int, place: float) -> Epoch:
    value = 0.5 + 0.02 * number - 0.003 * (number - 12 + place) ** 2 / 4 + 0.01 * place
    rate = 1e-4 if number < 14 else 1e-5
    losses = 1.2 / number**0.3, 1.25 / number**0.25
    return Epoch(number, *losses, value - 0.01, value, value - 0.08, rate)


def results(epochs: int = 20, folds: int = 1, ended: str = "") -> list[Result]:
    """The grid of four; the last run ends early where `ended` says why."""
    found = [
        Result(
            replace(experiment, fold=None if folds == 1 else fold),
            tuple(epoch(number, place + 0.2 * fold) for number in range(1, epochs + 1)),
        )
        for place, experiment in enumerate(EXPERIMENTS)
        for fold in range(1, folds + 1)
    ]
    found[-1] = replace(found[-1], ended=ended)
    return found


def assessment(count: int = 40, empty: bool = False, chosen: bool = False) -> Assessment:
    """Discs of salt of every size, a third of them none, predicted with blurred, noisy edges."""
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
    cut, tried = best_cut(probabilities, truths)
    cut = cut if chosen else Cut()
    masks = cross_cut(probabilities, truths) if chosen else cut.masks(probabilities)
    ious = iou(torch.from_numpy(masks), torch.from_numpy(truths)).numpy()
    found = scores(masks, truths)
    return Assessment(validation, probabilities, cut, tried, masks, ious, found, chosen)


def drawn(folder: Path, shown: list[Result], assessed: Assessment, settings: Settings) -> Outputs:
    outputs = Outputs(folder)
    report.write_report(shown, assessed, settings, outputs)
    return outputs


class Page(HTMLParser):
    """What a browser would make of it: tags in balance, text, links, pictures."""

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
    ("shown", "assessed"),
    [
        (results(20, ended="out of time after epoch 20"), assessment(chosen=True)),
        (results(1)[:1], assessment(1)),
        (results(1, folds=2)[:2], assessment(4, empty=True, chosen=True)),
    ],
    ids=["the grid", "one of everything", "nothing but empty masks"],
)
def test_a_report_is_written_of_anything(
    shown: list[Result], assessed: Assessment, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    outputs = drawn(tmp_path, shown, assessed, settings())
    assert sorted(tmp_path.rglob("*.*")) == sorted(outputs.results)
    for path in outputs.results:
        if path.suffix == ".png":
            pixels = imread(path)
            assert min(pixels.shape[:2]) > 300
            assert pixels[..., :3].std() > 0.05  # something is drawn


def test_the_page_needs_nothing_but_itself(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    outputs = drawn(tmp_path, results(3), assessment(9), settings())
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


def test_the_page_tells_what_was_measured(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    shown = results(6, folds=2, ended="loss <nan> & gone")
    assessed = assessment(12, chosen=True)
    outputs = drawn(tmp_path, shown, assessed, settings(recipe="best"))
    raw = outputs.page.read_text(encoding="utf-8")
    text = " ".join(Page(raw).text.split())
    assert f"{assessed.score:.4f}" in text
    assert "cross-chosen" in text
    assert "early: loss <nan> & gone" in text
    assert "loss <nan>" not in raw  # escaped
    for result in shown:
        assert f"{pictures.label(result.experiment)}" in text
        assert f"{result.best.val_iou:.4f}" in text
    assert text.count("★ best") == len(best_of(shown)) == 2
    for one in pictures.by_coverage(assessed):
        assert f"{one.label} {one.images} {one.score:.4f} {one.iou:.4f}" in text


def test_the_same_input_gives_the_same_bytes_under_any_style(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    given = results(3), assessment(9)
    plain = drawn(tmp_path / "a", *given, settings())
    with matplotlib.rc_context({"font.size": 30, "savefig.facecolor": "red"}):
        styled = drawn(tmp_path / "b", *given, settings())
        assert matplotlib.rcParams["font.size"] == 30
    for one, other in zip(plain.results, styled.results, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_cut_that_was_not_chosen_is_not_called_so() -> None:
    assert "fixed beforehand" in report.cut_in_words(assessment(4))
    words = report.cut_in_words(replace(assessment(4), cut=Cut(0.4, 20), chosen=True))
    assert "0.40, without regions of fewer than 20 pixels" in words


def test_classes_of_coverage_hold_every_image_once() -> None:
    assessed = assessment()
    classes = pictures.by_coverage(assessed)
    assert [one.label for one in classes][:2] == ["none", "0 to 10%"]
    assert sum(one.images for one in classes) == len(assessed.validation)
    mean = sum(one.images * one.score for one in classes) / len(assessed.validation)
    assert mean == pytest.approx(assessed.score)
    empty = assessed.validation.masks.sum(axis=(1, 2)) == 0
    assert classes[0].score == pytest.approx(assessed.scores[empty].mean())


def test_cases_are_ranked() -> None:
    assessed = assessment()
    best, median, worst = (report._ranked(assessed, place) for place in (0.0, 0.5, 1.0))
    means = [assessed.scores[rows].mean() for rows in (best, median, worst)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[2]
    assert len({*best.tolist(), *median.tolist(), *worst.tolist()}) == 18
    seen = assessed.masks | (assessed.validation.masks > 0)
    assert seen[np.concatenate([best, median, worst])].any(axis=(1, 2)).all()


def test_an_id_is_no_formula_and_no_path(tmp_path: Path) -> None:
    case = report._cases(assessment(1), np.array([0]))[0]
    pictures.plot_predictions([replace(case, image_id=r"$\bad{$")], "Title", tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_the_tables_show_what_was_measured(tmp_path: Path) -> None:
    csv, markdown = tmp_path / "table.csv", tmp_path / "table.md"
    given, assessed = results(20, ended="a | b"), assessment(4)
    report.write_table(given, assessed, csv, markdown)
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
    assert f"{assessed.score:.4f}" in text
    assert r"a \| b" in text


@pytest.mark.parametrize("by", ["val_iou", "val_score"])
def test_the_best_is_by_what_was_selected(by: str, tmp_path: Path) -> None:
    one = replace(epoch(1, 0), val_iou=0.7, val_score=0.5)
    other = replace(epoch(1, 0), val_iou=0.6, val_score=0.55)
    given = [
        Result(Experiment("resnet34", "bcedice"), (one,), by),
        Result(Experiment("resnet34", "lovasz"), (other,), by),
    ]
    report.write_table(given, assessment(4), tmp_path / "t.csv", tmp_path / "t.md")
    first = report.table(given).iloc[0]["experiment"]
    assert first == ("resnet34_bcedice" if by == "val_iou" else "resnet34_lovasz")
    assert f"{report.SELECTED_BY[by]}: {first}." in (tmp_path / "t.md").read_text()
