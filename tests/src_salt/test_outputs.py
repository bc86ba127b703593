from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest

from src_salt.outputs import atomic_write, emit, progress, write_json, write_zip


def test_failed_write_keeps_the_old_file_only(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_creates_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "results" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_zip_depends_only_on_names_and_contents(tmp_path: Path) -> None:
    members = [tmp_path / "models" / name for name in ("b.json", "a.pth")]
    members[0].parent.mkdir()
    for member in members:
        member.write_text(member.name)
    write_zip(tmp_path / "one.zip", tmp_path, members)
    members[1].unlink()
    members[1].write_text("a.pth")
    members[1].chmod(0o600)
    write_zip(tmp_path / "two.zip", tmp_path, reversed(members))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["models/a.pth", "models/b.json"]
        assert archive.read("models/b.json") == b"b.json"


def test_zip_with_a_missing_member_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_zip(tmp_path / "models.zip", tmp_path, [tmp_path / "missing"])
    assert list(tmp_path.iterdir()) == []


def test_non_finite_json_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    emit("epoch", epoch=1, note="two\nlines")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"event": "epoch", "epoch": 1, "note": "two\nlines"}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_appears_only_in_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress([1, 2, 3], "epoch 1")) == [1, 2, 3]
    assert ("epoch 1" in stream.getvalue()) is terminal
