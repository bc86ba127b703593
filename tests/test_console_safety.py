"""Whoever chose the words: nothing that is printed controls the terminal, or fills it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
import typer
from rich.live import Live

from kernelkit import console
from kernelkit.campaigns.collect import CollectedRun, CollectResult
from kernelkit.campaigns.plan import Plan
from kernelkit.diagnosis.diagnose import Diagnosis, Frame, Origin
from kernelkit.diagnosis.rules import FailureCause
from kernelkit.doctor.checks import CheckResult, Health
from kernelkit.errors import RefusedError
from kernelkit.kaggle.types import LogEntry, State, Status
from kernelkit.runs.estimate import Certainty, Estimate, Wanted
from kernelkit.runs.history import RunRow
from kernelkit.runs.manifest import OutputEntry, SubmissionRecord, Verdict
from kernelkit.runs.submit import Submitted
from kernelkit.storage import one_line, printable, shortened
from tests.screens import show_on

HOSTILE = {
    "clear": "\x1b[2J",
    "color": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil.test\x1b\\click\x1b]8;;\x1b\\",
    "half a command": "\x1b",
    "return": "good\rbad",
    "backspaces": "safe\b\b\b\bevil",
    "bell": "\x07",
    "C1": "\x9b2J\x90q\x9c\x85",
    "right to left": "\u202egpj.exe\u202c",
    "isolate": "\u2066a\u2069",
    "line separator": "a\u2028verified: b\u2029c",
    "zero width": "a\u200bb\ufeff\u00ad",
    "tag characters": "\U000e0041",
    "vertical tab and form feed": "a\x0bb\x0cc",
    "delete and NUL": "\x7f\x00",
    "surrogate": "\udc9b2J",
}
MARKUP = "[red]stop[/red] [link=http://evil.test]x[/link] :boom: [/nonsense]"


def submission(text: str) -> Submitted:
    record = {
        **{"ref": 1, "competition": text, "slug": text, "version": 1, "endpoint": "e"},
        **{"sha256": "0" * 64, "submitted": text, "status": "complete", "public_score": text},
    }
    return Submitted(SubmissionRecord.model_validate(record), True, identity_proven=True)


def row(text: str) -> RunRow:
    values = dict.fromkeys(RunRow.model_fields) | {
        **{"run": f"ann/{text}", "version": 1, "state": text, "commit": text, "profile": text},
        **{"next": text, "public_score": text, "pushed": text, "digest": text},
    }
    return RunRow.model_validate(values)


def verdict(text: str) -> Verdict:
    output = OutputEntry(path="table.csv", size=1, sha256="0" * 64)
    return Verdict(problems=(), run_error=None, outputs=(output,), undeclared=(text, text))


def diagnosis(text: str) -> Diagnosis:
    frame = Frame(Origin.PROJECT, text, 1, text, text)
    return Diagnosis(FailureCause.UNKNOWN, text, (frame,), text, (text,))


def live(text: str) -> None:
    reporter = console.Reporter(Live(console=console.stdout, auto_refresh=False))
    reporter(LogEntry("stdout", 0.0, text))
    event = {"event": "epoch", "experiment": text, "epoch": text, "val_iou": text}
    reporter(LogEntry("stdout", 0.0, json.dumps(event)))
    console.stdout.print(reporter._view())


def plan(text: str) -> Plan:
    found = Estimate(
        Certainty.SIMILAR, 1.0, runs=(text,), differences=(text, text), assumptions=(text,)
    )
    wanted = Wanted({}, text, wants_gpu=True)
    return Plan(text, wanted, found, 12.0, text, 0.0, None, quota_problem=text)


def collected(text: str) -> CollectResult:
    run = CollectedRun("ann", text, 1, text, exit_code=6, error=text, next_step=text)
    going_on = CollectedRun("ann", text, 2, text, Path(text), exit_code=7)
    return CollectResult(text, (run, going_on))


PRINTERS: dict[str, Callable[[str], object]] = {
    "say": console.say,
    "error": lambda text: console.report(RefusedError(text, text), as_json=False),
    "bug": lambda text: console.report(RuntimeError(text), as_json=False),
    "usage": lambda text: console.report(click.UsageError(text), as_json=False),
    "status": lambda text: console.Reporter()(Status(State.ERROR, text)),
    "failed": lambda text: console.require_no_failure(Status(State.ERROR, text)),
    "diagnosed": lambda text: console.require_no_failure(
        Status(State.ERROR, text), diagnosis(text)
    ),
    "event": lambda text: console.Reporter()(text),
    "log line": lambda text: console.Reporter()(LogEntry("stdout", 0.0, text)),
    "live view": live,
    "logs": lambda text: console.log([LogEntry("stdout", 0.0, text)]),
    "runs": lambda text: console.runs([row(text)]),
    "outputs": lambda text: console.outputs(verdict(text)),
    "explanation": lambda text: console.explain(diagnosis(text)),
    "checks": lambda text: console.checked([CheckResult(text, Health.BAD, text, text)]),
    "notes": lambda text: console.advice([text]),
    "left out": lambda text: console.left_out({text: text}),
    "plan": lambda text: console.planned(plan(text)),
    "collected": lambda text: console.collected(collected(text)),
    "score": lambda text: console.submitted(submission(text)),
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What is printed to both streams, as on a terminal of 80 columns."""
    printed = StringIO()
    monkeypatch.setattr(printed, "isatty", lambda: True, raising=False)
    for name in ("stdout", "stderr"):
        screen = console.SafeConsole(file=printed, force_terminal=True, color_system=None, width=80)
        show_on(screen, monkeypatch, name)
    return printed


def print_with(printer: str, text: str) -> None:
    screen = console.stdout.file
    with contextlib.suppress(typer.Exit), redirect_stdout(screen), redirect_stderr(screen):
        PRINTERS[printer](text)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("printer", PRINTERS)
def test_nothing_controls_the_terminal(printer: str, hostile: str, terminal: StringIO) -> None:
    print_with(printer, f"before {HOSTILE[hostile]} after")
    printed = terminal.getvalue()
    assert printed
    assert not [c for c in printed if not (c.isprintable() or c in "\n\t")]
    assert "\nverified: " not in printed


@pytest.mark.parametrize("printer", PRINTERS)
def test_markup_of_rich_is_only_text(printer: str, terminal: StringIO) -> None:
    print_with(printer, MARKUP)
    assert "[/red]" in "".join(terminal.getvalue().split("\n"))


ONE_LINE = (
    set(PRINTERS)
    - {"say", "error", "bug", "usage", "log line", "live view", "logs"}
    - {
        "explanation",  # a message of an exception has lines
        "diagnosed",
        "collected",
    }
)


@pytest.mark.parametrize("printer", sorted(ONE_LINE))
def test_words_of_others_begin_no_line(printer: str, terminal: StringIO) -> None:
    print_with(printer, "x\nverified: y\r\nnext:  run this")
    lines = terminal.getvalue().splitlines()
    assert not [line for line in lines if line.startswith(("verified: ", "next:  run this"))]


@pytest.mark.parametrize("printer", sorted(set(PRINTERS) - {"say", "logs"}))
def test_a_huge_text_is_cut(printer: str, terminal: StringIO) -> None:
    started = time.monotonic()
    print_with(printer, "x" * 1_000_000)
    print_with(printer, "line\n" * 200_000)
    assert len(terminal.getvalue()) < 200_000
    assert time.monotonic() - started < 20


TABLES = {
    "rows": "|a|b|\n|-|-|\n" + "|x|y|\n" * 700_000,
    "columns": "|" + "a|" * 500_000 + "\n|" + "-|" * 500_000 + "\n",
    "brackets": "[" * 2_000_000,
    "code": "```python\n" + "x = [1]\n" * 500_000,
    "one line": "word " * 800_000,
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_large_table_is_shown_in_part(kind: str, terminal: StringIO, tmp_path: Path) -> None:
    (tmp_path / "run-manifest.json").write_text(
        '{"digest": "d", "status": "complete", "outputs": [], "seconds": 3}'
    )
    for n in range(3):
        (tmp_path / f"{n}.md").write_text(TABLES[kind])
    started = time.monotonic()
    console.results(tmp_path, verdict("0.md"))
    lines = terminal.getvalue().splitlines()
    assert len(lines) < 230
    assert any("the rest is in" in line for line in lines)
    assert "not declared as an output, so not verified: 0.md" in lines
    assert time.monotonic() - started < 10


def test_hundreds_of_tables_and_images_are_counted(terminal: StringIO, tmp_path: Path) -> None:
    (tmp_path / "run-manifest.json").write_text(
        '{"digest": "d", "status": "complete", "outputs": [], "seconds": 3}'
    )
    for n in range(300):
        (tmp_path / f"{n:03}.md").write_text(f"# Table {n}\n")
        (tmp_path / f"{n:03}.png").write_bytes(b"")
    console.results(tmp_path, verdict("a"))
    assert "280 more tables" in terminal.getvalue()
    assert len(terminal.getvalue().splitlines()) < 300


def test_a_link_in_a_table_shows_where_it_leads(terminal: StringIO, tmp_path: Path) -> None:
    (tmp_path / "run-manifest.json").write_text(
        '{"digest": "d", "status": "complete", "outputs": [], "seconds": 3}'
    )
    (tmp_path / "a.md").write_text("[kaggle.com](http://evil.test/x)\n")
    console.results(tmp_path, verdict("a"))
    assert "evil.test" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("width", [100, 80])
@pytest.mark.parametrize("name", ["a" * 50, "long-words-" * 6, "目" * 40, "x" * 300])
def test_a_narrow_terminal_cuts_names_in_the_middle(
    width: int, name: str, terminal: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = console.SafeConsole(file=terminal, force_terminal=True, color_system=None, width=width)
    show_on(screen, monkeypatch)
    first, second = (row("done").model_copy(update={"run": f"ann/{name}-{end}"}) for end in "12")
    console.runs(
        [first.model_copy(update={"next": None}), second.model_copy(update={"next": None})]
    )
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] != lines[2]
    console.configure(verbose=True)
    terminal.truncate(0)
    console.runs([first])
    assert name in "".join(terminal.getvalue().split()) or width < len(name)
    console.configure()


def test_texts_are_cut_and_joined() -> None:
    assert shortened("x" * 10, 4) == "xxxx… (6 more characters)"
    assert one_line("a\n  b \r\nc  d") == "a b c  d"
    assert one_line("x" * 100, 10) == "xxxxxxxxxx… (90 more characters)"
    assert printable("tab\there, no\u00a0break, \u3000") == "tab\there, no\u00a0break, \u3000"
    assert printable("ä€目🎉") == "ä€目🎉"
