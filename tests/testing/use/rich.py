"""rich: circular imports, and more than a megabyte of source."""

import io

import pytest
from rich.console import Console
from rich.json import JSON
from rich.markdown import Markdown
from rich.progress import Progress
from rich.syntax import Syntax
from rich.table import Table
from rich.traceback import Traceback
from rich.tree import Tree


def shown(thing: object) -> str:
    console = Console(file=io.StringIO(), width=40, color_system=None)
    console.print(thing)
    return console.file.getvalue()


def test_markup_and_emoji() -> None:
    assert shown("[bold]strong[/] :rocket:") == "strong 🚀\n"


@pytest.mark.parametrize(
    ("thing", "word"),
    [
        (Markdown("# Title"), "Title"),
        (JSON('{"a": [1]}'), '"a": ['),
        (Syntax("x = 1", "python"), "x = 1"),
    ],
    ids=["markdown", "json", "syntax"],
)
def test_renderables(thing: object, word: str) -> None:
    assert word in shown(thing)


def test_a_table_and_a_tree() -> None:
    table = Table("name")
    table.add_row("row")
    tree = Tree("root")
    tree.add(table)
    assert "└── " in shown(tree)
    assert "row" in shown(tree)


def test_a_traceback_with_source() -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        assert "_ = 1 / 0" in shown(Traceback())


def test_progress() -> None:
    with Progress(console=Console(file=io.StringIO())) as progress:
        assert list(progress.track([1, 2])) == [1, 2]
