"""Readable output for users, whatever a run prints."""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console
from rich.live import Live

from kernelkit import console
from kernelkit.cli import app
from kernelkit.kaggle.types import LogEntry, State, state_word
from kernelkit.runs.history import RunRow
from kernelkit.runs.manifest import OutputEntry, Verdict
from kernelkit.runs.verify import verify
from tests.screens import show_on

HUGE = 10**400
"""JSON integers can be too large for a float."""


def entry(text: str) -> LogEntry:
    return LogEntry(stream="stdout", seconds=0.0, text=text)


def epoch(**details: Any) -> LogEntry:
    return entry(json.dumps({"event": "epoch", "experiment": "a", **details}))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    shown = StringIO()
    show_on(Console(file=shown, width=80, soft_wrap=True), monkeypatch)
    return shown


@pytest.mark.usefixtures("screen")
@pytest.mark.parametrize(
    "details",
    [
        {"epoch": 1, "epochs": HUGE, "seconds": 1.5},
        {"epoch": -HUGE, "epochs": 3, "seconds": 1.5},
        {"epoch": 1, "epochs": 3, "seconds": HUGE},
        {"epoch": 1, "epochs": 3, "seconds": 1.7e308},
        {"epoch": 1, "epochs": 3, "seconds": float("inf")},
        {"epoch": {}, "epochs": [], "seconds": 1.5},
        {"epoch": "[/x]", "epochs": True, "val_iou": "high"},
    ],
)
def test_the_live_table_shows_any_number(details: dict[str, Any]) -> None:
    reporter = console.Reporter(Live(console=console.stdout, auto_refresh=False))
    reporter(epoch(**details))
    left = reporter.seconds_left()
    assert left is None or 0 <= left < float("inf")


@pytest.mark.usefixtures("screen")
def test_the_time_left_counts_the_remaining_epochs() -> None:
    reporter = console.Reporter(Live(console=console.stdout, auto_refresh=False))
    reporter(entry('{"event": "start", "experiments": ["a", "b"], "epochs": 3}'))
    reporter(epoch(epoch=1, epochs=3, seconds=2.0))
    assert reporter.seconds_left() == pytest.approx(2 * 2.0 + 3 * 2.0)


@pytest.mark.parametrize("live", [False, True])
def test_a_log_cannot_control_the_terminal(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    screen = Console(file=shown, force_terminal=live, color_system=None, width=80)
    show_on(screen, monkeypatch)
    view = Live(console=screen, auto_refresh=False) if live else None
    reporter = console.Reporter(view)
    for line in ("\x1b[31mred\x1b[0m \x1b[2Jend", "\x1b]0;title\x07\x0e\x9b2J", "10%\r20%"):
        reporter(entry(f"{line}\n"))
    reporter(epoch(experiment="e\n\x1b[2J", epoch="\x1b[2J", epochs=2))
    if view:
        screen.print(view.get_renderable())
    said = shown.getvalue()
    assert {"red end", "20%"} <= {part.strip() for part in said.split("\n")}
    assert not set(said) & set("\x1b\x07\x0e\x9b\r")


def test_results_shows_tables_and_the_paths_of_images(screen: StringIO, tmp_path: Path) -> None:
    (tmp_path / "run-manifest.json").write_text(
        '{"digest": "d", "status": "complete", "outputs": [], "seconds": 3}'
    )
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "table.md").write_text("# Title\x1b[2J\n")
    (tmp_path / "plot.png").write_bytes(b"")
    console.results(tmp_path, Verdict(problems=(), run_error=None, outputs=(), undeclared=()))
    said = screen.getvalue()
    for expected in ("Title", "plot.png", "the run took 3 s"):
        assert expected in said
    for refused in ("folder.md", "folder.png", "\x1b"):
        assert refused not in said


@pytest.mark.parametrize("name", ["results.md", "deep/table.md", "plot.png"])
@pytest.mark.parametrize("declared", [True, False])
def test_an_undeclared_result_is_marked(
    screen: StringIO, tmp_path: Path, name: str, declared: bool
) -> None:
    entry = {"path": name, "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    outputs = [entry] if declared else []
    manifest = {"digest": "d", "status": "complete", "outputs": outputs, "seconds": 3}
    (tmp_path / "run-manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "bundle.json").write_text('{"digest": "d", "outputs": []}')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    console.results(tmp_path, verify(tmp_path))
    assert ("not verified" in screen.getvalue()) is not declared


def test_thousands_of_undeclared_files_are_counted(screen: StringIO) -> None:
    names = tuple(f"many{i:04}.txt" for i in range(3000))
    console.outputs(Verdict(problems=(), run_error=None, outputs=(), undeclared=names))
    assert "many0019.txt and 2980 more" in screen.getvalue()
    assert len(screen.getvalue()) < 1000


def test_thousands_of_outputs_are_counted(screen: StringIO) -> None:
    entries = tuple(
        OutputEntry(path=f"ckpt/{i:04}.pt", size=10, sha256="a" * 64) for i in range(3000)
    )
    console.outputs(Verdict(problems=(), run_error=None, outputs=entries, undeclared=()))
    assert "… and 2,950 more outputs, 29.5 kB" in screen.getvalue()
    assert len(screen.getvalue()) < 10_000


def shown_at(width: int, message: str, **options: Any) -> list[str]:
    """The lines that `say` prints on a terminal of that width."""
    shown = StringIO()
    screen = Console(file=shown, force_terminal=True, color_system=None, width=width)
    console.say(message, to=screen, **options)
    return shown.getvalue().splitlines()


def test_prose_wraps_between_words() -> None:
    lines = shown_at(30, "error: the project file names a folder that is missing", indent=7)
    assert lines == [
        "error: the project file names",
        "       a folder that is",
        "       missing",
    ]


@pytest.mark.parametrize(
    "whole",
    [
        "/a/path/that/is/much/longer/than/the/terminal/is/wide",
        "`kernelkit push --again --profile smoke`",
    ],
)
def test_paths_and_commands_stay_whole(whole: str) -> None:
    lines = shown_at(30, f"Look at what is in {whole} and then decide.")
    assert whole in lines
    assert "kernelkit watch owner/some-kernel/v12" in shown_at(
        30, "Come back with: kernelkit watch owner/some-kernel/v12"
    )


def test_a_narrow_terminal_loses_digests_before_names(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tgs-salt-unet-resnet50-lovasz"
    row = {
        **{"run": f"somebody/{name}", "version": 12, "digest": "0123456789ab"},
        **{"commit": "012345678+", "profile": "smoke", "pushed": "2020-01-01T00:00:00+00:00"},
        **{
            "state": "cancel_acknowledged",
            "failure": None,
            "verified": None,
            "metric": None,
            "next": None,
        },
        **{"gpu_seconds": 12.0, "public_score": None, "private_score": None, "submission": None},
    }
    for width, dropped in ((80, True), (200, False)):
        shown = StringIO()
        screen = Console(file=shown, force_terminal=True, color_system=None, width=width)
        show_on(screen, monkeypatch)
        console.runs([RunRow.model_validate(row)])
        assert name in shown.getvalue()
        assert max(map(len, shown.getvalue().splitlines())) <= width
        assert ("0123456789ab" not in shown.getvalue()) == dropped
        assert "cancelled" in " ".join(shown.getvalue().split())


def test_a_time_is_relative_and_a_state_is_one_word() -> None:
    hours = datetime.now(UTC) - timedelta(hours=3, minutes=10)
    assert console.ago(hours.isoformat()) == "3 h ago"
    assert console.ago(datetime.now(UTC).isoformat()) == "just now"
    assert console.ago("not a time") == "not a time"
    words = [state_word(state) for state in State]
    assert words == [
        *("queued", "running", "complete", "failed", "running", "cancelled", "queued"),
    ]
    assert state_word(State.ERROR, "Your notebook hit a timeout") == "timed out"
    exceeded = "Your notebook was stopped because it exceeded the max allowed execution duration."
    assert state_word(State.CANCEL_ACKNOWLEDGED, exceeded) == "timed out"
    for failure in ("Ran for longer than allowed", "Error: exceeded max allowed run-time"):
        assert state_word(State.CANCEL_ACKNOWLEDGED, failure) == "timed out"
    for failure in (
        "TimeoutError: the host did not answer",
        "Cell 3 failed: subprocess.TimeoutExpired: it timed out after 60 s",
        "Traceback (most recent call last):\n  socket.timeout: timed out",
    ):
        assert state_word(State.ERROR, failure) == "failed"


def test_the_traceback_at_the_end_of_a_log_is_left_to_diagnose(screen: StringIO) -> None:
    lines = ("step 1", "papermill.exceptions.PapermillExecutionError: ", "RuntimeError: no")
    reporter = console.Reporter()
    for line in lines:
        reporter(entry(f"{line}\n"))
    assert screen.getvalue() == "step 1\n"
    console.configure(verbose=True)
    for line in lines:
        reporter(entry(f"{line}\n"))
    console.configure()
    assert "RuntimeError: no" in screen.getvalue()


def test_the_files_of_the_runtime_are_only_listed_with_verbose(screen: StringIO) -> None:
    lines = [
        f"Writing /tmp/kernelkit-0/{path}\n" for path in ("kernelkit_runtime/a.py", "pkg/a.py")
    ]
    for line in lines:
        console.Reporter()(entry(line))
    assert screen.getvalue() == lines[1]
    console.configure(verbose=True)
    console.Reporter()(entry(lines[0]))
    console.configure()
    assert lines[0] in screen.getvalue()


@pytest.mark.parametrize(
    ("program", "path", "shown"),
    [
        ("kernelkit", "", "kernelkit"),
        ("{here}/.venv/bin/kernelkit", "", ".venv/bin/kernelkit"),
        ("{here}/.venv/bin/kernelkit", "{here}/.venv/bin", "kernelkit"),
        ("/elsewhere/bin/kernelkit", "", "/elsewhere/bin/kernelkit"),
        ("{here}/kernelkit/__main__.py", "", "kernelkit"),
    ],
)
def test_advice_names_the_command_as_the_user_called_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, path: str, shown: str
) -> None:
    command = tmp_path / ".venv" / "bin" / "kernelkit"
    command.parent.mkdir(parents=True)
    command.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.format(here=tmp_path))
    monkeypatch.setattr(sys, "argv", [program.format(here=tmp_path)])
    text = (
        "Come back with: kernelkit watch v1 && kernelkit pull, or `kernelkit runs`. kernelkit runs."
    )
    expected = (
        f"Come back with: {shown} watch v1 && {shown} pull, or `{shown} runs`. kernelkit runs."
    )
    assert console.as_called(text) == expected


def test_advice_names_the_targets_of_make(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (Path(__file__).parent.parent / "Makefile").read_text().splitlines()
    (stated,) = (line for line in lines if line.startswith("export KERNELKIT_MAKE"))
    names = stated.partition(":=")[2].split()
    assert set(names) <= {line.partition(":")[0] for line in lines}
    assert set(names) <= set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "argv", ["kernelkit"])
    monkeypatch.setenv("KERNELKIT_MAKE", " ".join(names))
    for advice, expected in {
        "Come back with: kernelkit watch v1": "Come back with: make watch ARGS=v1",
        "`kernelkit pull --profile smoke a/b/v2` and more": "`make pull PROFILE=smoke ARGS=a/b/v2` "
        "and more",
        "Try: kernelkit logs --tail 5 v1": 'Try: make logs ARGS="--tail 5 v1"',
        "To check: kernelkit verify runs/a/v1": "To check: kernelkit verify runs/a/v1",
        "See what runs: kernelkit runs shows it": "See what runs: make runs shows it",
        "next:  kernelkit run": "next:  make run",
    }.items():
        assert console.as_called(advice) == expected
