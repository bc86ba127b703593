"""What the results cell shows, in a real IPython shell."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import CapturedIO, capture_output
from traitlets.config import Config

from kernelkit.notebook.runtime import results
from kernelkit.notebook.runtime.charts import line_chart
from kernelkit.notebook.runtime.epochs import EpochHistory
from kernelkit.notebook.runtime.events import RunEvent
from kernelkit.notebook.runtime.tables import HEAD_CHARACTERS, csv_head, number_text

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(autouse=True, scope="module")
def shell() -> Iterator[None]:
    config = Config()
    config.HistoryManager.enabled = False  # it would write into the user's own history
    InteractiveShell.instance(config=config)
    yield
    InteractiveShell.clear_instance()


@pytest.fixture
def working(tmp_path: Path) -> Path:
    folder = tmp_path / "working"
    folder.mkdir()
    return folder


def shown(folder: Path, declared: list[str], history: EpochHistory | None = None) -> CapturedIO:
    with capture_output() as captured:
        results.show_results(folder, declared, history or EpochHistory())
    return captured


def texts(captured: CapturedIO, kind: str) -> str:
    return "\n".join(one.data[kind] for one in captured.outputs if kind in (one.data or {}))


def epochs(count: int, *names: str) -> EpochHistory:
    history = EpochHistory("val_iou", "maximize")
    for rank, name in enumerate(names):
        for epoch in range(1, count + 1):
            numbers = {"epoch": epoch, "epochs": count, "train_loss": 1 / epoch}
            value = 0.9 if (rank, epoch) == (1, 2) else 0.5 - rank / 10
            history.add(RunEvent("epoch", name, {**numbers, "val_iou": value}))
    return history


def test_the_metric_with_its_best_epoch_a_curve_and_the_epochs_are_shown(working: Path) -> None:
    captured = shown(working, [], epochs(3, "plain", "lovasz"))
    html, text = texts(captured, "text/html"), texts(captured, "text/plain")
    assert "val_iou 0.9000" in html
    assert "The highest of 6 epochs in 2 experiments: epoch 2 of <b>lovasz</b>." in html
    first, *rest = text.split("\n")
    assert first == "val_iou 0.9000: the highest of 6 epochs in 2 experiments, epoch 2 of lovasz"
    assert [line.split() for line in rest] == [
        ["Experiments"],
        ["experiment", "val_iou", "at", "epoch", "epochs"],
        ["lovasz", "0.9000", "2", "3", "(best)"],
        ["plain", "0.5000", "1", "3"],
        ["Epochs", "of", "lovasz"],
        ["epoch", "val_iou", "train_loss"],
        ["1", "0.4000", "1"],
        ["2", "0.9000", "0.5000", "(best)"],
        ["3", "0.4000", "0.3333"],
    ]
    metric, losses = map(base64.b64decode, re.findall(r"svg\+xml;base64,([^\"]+)", html))
    for svg, curves in [(metric, 2), (losses, 1)]:
        root = ElementTree.fromstring(svg)
        assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == curves


def test_many_epochs_and_numbers_are_bounded(working: Path) -> None:
    history = EpochHistory()
    for epoch in range(5000):
        numbers = {f"number_{n}": float(n) for n in range(50)}
        value = 2.0 if epoch == 1234 else 0.0
        history.add(RunEvent("epoch", "", {"epoch": epoch, "val_loss": -value, **numbers}))
    captured = shown(working, [], history)
    text = texts(captured, "text/plain")
    assert "val_loss -2: the lowest of 5,000 epochs, epoch 1234" in text
    assert len(text.split("\n")) < results.MAX_ROWS + 6
    (best,) = [line for line in text.split("\n") if "(best)" in line]
    assert best.split()[0] == "1234"
    assert len(texts(captured, "text/html")) < 40_000


def test_what_files_and_events_say_is_escaped(working: Path) -> None:
    (working / "out.csv").write_text(f"id,{EVIL}\n1,{EVIL}\n")
    (working / "odd<b>.csv").write_text("id\n1\n")
    history = EpochHistory()
    for epoch in (1, 2):
        history.add(RunEvent("epoch", EVIL, {"epoch": epoch, f"val_{EVIL}": 1.0, "val_x": 2.0}))
    html = texts(shown(working, ["*.csv"], history), "text/html")
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "odd&lt;b&gt;.csv" in html
    for packed in re.findall(r"svg\+xml;base64,([^\"]+)", html):
        svg = base64.b64decode(packed).decode()
        assert "<script" not in svg
        ElementTree.fromstring(svg)


def test_heads_of_tables_are_bounded(working: Path) -> None:
    wide = ",".join(f"c{n}" for n in range(40))
    (working / "wide.csv").write_text(f"{wide}\n" + f"{wide}\n" * 100)
    (working / "masks.csv").write_text("id,rle\n" + f"a,{'1 2 ' * HEAD_CHARACTERS}\n")
    (working / "few.csv").write_text('id,x\n1,"a\nb"\n')
    (working / "binary.csv").write_bytes(b"\xff\xfe\0")
    (working / "empty.csv").touch()
    text = texts(shown(working, ["*.csv"]), "text/plain")
    assert "few.csv (13 B): 1 row\n" in text
    assert "a·b" in text
    assert "masks.csv (4,194,314 B): first 1 row\n" in text
    assert "first 5 rows" in text
    assert "and 30 more columns" in text
    assert max(map(len, text.split("\n"))) < 1000
    assert csv_head(working / "binary.csv", "x") is None
    assert csv_head(working / "empty.csv", "x") is None


def test_markdown_and_images_are_shown_and_bounded(working: Path) -> None:
    (working / "results").mkdir()
    (working / "results" / "table.md").write_text("| a |\n|---|\n" + "| 1 |\n" * 10_000)
    (working / "results" / "plot.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (working / "results" / "huge.png").write_bytes(bytes(results.MAX_IMAGE_BYTES + 1))
    (working / "secret.png").symlink_to(working / "results" / "plot.png")
    (working / "z").mkdir()
    for number in range(30):
        (working / "z" / f"{number}.md").write_text("x")
    captured = shown(working, [])
    markdown = [o.data["text/markdown"] for o in captured.outputs if "text/markdown" in o.data]
    assert len(markdown[0]) < results.MAX_MARKDOWN_CHARACTERS + 10
    assert len([o for o in captured.outputs if "image/png" in o.data]) == 1
    assert "results/huge.png is not shown: 1,000,001 B" in captured.stdout
    assert "… and 13 more tables and images" in captured.stdout


def test_what_cannot_be_read_is_named_and_does_not_end_the_run(working: Path) -> None:
    (working / "plot.png").write_bytes(b"no picture")
    (working / "a.csv").write_text("id\n")
    captured = shown(working, ["a.csv"])
    assert "a.csv" in texts(captured, "text/plain")


def test_any_number_of_names_is_shown_at_once(working: Path) -> None:
    history = EpochHistory("val", "minimize")
    for epoch in range(2000):
        names = {f"loss_{epoch}_{number}": 1.0 for number in range(20)}
        history.add(RunEvent("epoch", "", {"epoch": epoch, "val": 1.0, **names}))
    started = time.perf_counter()
    assert "without loss_" in texts(shown(working, [], history), "text/plain")
    assert time.perf_counter() - started < 2  # it was 9 s


def test_a_mark_of_the_encoding_is_no_part_of_a_column(working: Path) -> None:
    (working / "a.csv").write_bytes("\ufeffid,b\n1,2\n".encode())
    table = csv_head(working / "a.csv", "a.csv")
    assert table is not None
    assert table.columns == ["id", "b"]


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e308, -1e308], [1e-300, 2e-300], [5, 5], [-3, 7]])
def test_any_finite_values_give_a_chart(values: list[float]) -> None:
    curve = [(float(x), float(y)) for x, y in enumerate(values)]
    ElementTree.fromstring(line_chart("any", {"a": curve}, curve[0]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (17.409, "17.409"),
        (0.123456, "0.1235"),
        (1e-9, "1e-09"),
        (2e20, "2e+20"),
    ],
)
def test_numbers_have_few_digits(value: float | None, text: str) -> None:
    assert number_text(value) == text
