"""What counts as progress of a session; a chain ends without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from kernelkit.campaigns.progress import Reached, came_no_further, fingerprint, last_point
from kernelkit.kaggle.types import State, Status
from kernelkit.runs.download import PulledRun
from kernelkit.runs.manifest import RunFacts, Verdict


def session(
    folder: Path,
    *events: dict[str, JsonValue],
    checkpoint: str = "",
    files: dict[str, str] | None = None,
    manifest: dict[str, JsonValue] | None = None,
) -> PulledRun:
    """A pulled session with these events in its log; `manifest` is the last one it described."""
    folder = folder / "my-training" / "v1"
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"stream_name": "stdout", "time": number, "data": json.dumps(event) + "\n"}
        for number, event in enumerate(events)
    ]
    (folder / "my-training.log").write_text(json.dumps(entries))
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    described = [{"path": "state.pt", "size": 1, "sha256": 64 * checkpoint}] if checkpoint else []
    verdict = Verdict.model_validate(
        {
            "problems": [],
            "run_error": None,
            "outputs": [],
            "undeclared": list(files or {}),
            "checkpoints": described,
            "last_event": manifest or {},
        }
    )
    return PulledRun(folder, Status(State.COMPLETE), verdict, {})


EPOCH: dict[str, JsonValue] = {"event": "epoch", "epoch": 3, "epochs": 9, "seconds": 1.5}
INCOMPLETE: dict[str, JsonValue] = {"event": "incomplete"}


def test_the_log_knows_the_last_event_and_the_manifest_an_older_one(tmp_path: Path) -> None:
    pulled = session(tmp_path, EPOCH, INCOMPLETE, manifest={**EPOCH, "epoch": 2})
    assert last_point(pulled).document["epoch"] == 3
    (pulled.folder / "my-training.log").unlink()
    assert last_point(pulled).document["epoch"] == 2


@pytest.mark.parametrize(
    ("event", "checkpoint", "files", "is_same"),
    [
        (EPOCH, "a", {}, True),
        ({**EPOCH, "seconds": 9.0, "images_per_second": 7}, "a", {}, True),
        ({**EPOCH, "epoch": 4}, "a", {}, False),
        (EPOCH, "b", {}, False),
        (EPOCH, "a", {"train.txt": "12:00"}, True),  # the checkpoints carry the state
    ],
)
def test_a_later_event_or_another_checkpoint_is_progress(
    event: dict[str, JsonValue],
    checkpoint: str,
    files: dict[str, str],
    is_same: bool,
    tmp_path: Path,
) -> None:
    before = fingerprint(session(tmp_path, EPOCH, INCOMPLETE, checkpoint="a"))
    after = fingerprint(session(tmp_path, event, INCOMPLETE, checkpoint=checkpoint, files=files))
    assert (before == after) is is_same


@pytest.mark.parametrize("name", ["timesteps", "memory_blocks", "hyper_step", "time_step"])
def test_a_name_that_only_contains_a_word_of_time_is_progress(name: str, tmp_path: Path) -> None:
    before = fingerprint(session(tmp_path, {"event": "point", name: 1}, checkpoint="a"))
    after = fingerprint(session(tmp_path, {"event": "point", name: 2}, checkpoint="a"))
    assert before != after


LOSS: dict[str, JsonValue] = {"event": "epoch", "experiment": "a", "epoch": 3, "val_loss": 0.41236}


@pytest.mark.parametrize(
    ("event", "is_idle"),
    [
        ({**LOSS, "val_loss": 0.41235}, True),  # trained anew on a GPU
        ({**LOSS, "epoch": 2}, True),
        ({**LOSS, "epoch": 4}, False),
        ({**LOSS, "experiment": "b", "epoch": 1}, False),
        ({**LOSS, "fold": 2, "epoch": 1}, False),
        ({"event": "point", "val_loss": 0.41235}, False),  # counts nothing
    ],
)
def test_the_number_of_the_epoch_decides_although_loss_and_files_differ(
    event: dict[str, JsonValue], is_idle: bool
) -> None:
    first, now = (Reached(RunFacts.model_validate(one), str(one)) for one in (LOSS, event))
    assert came_no_further(now, [first]) is is_idle
    slower = Reached(RunFacts.model_validate({**LOSS, "epoch": 1}), "slower")
    assert came_no_further(now, [first, slower]) is is_idle  # the furthest one counts


def test_a_step_counts_within_its_epoch() -> None:
    def at(epoch: int, step: int) -> Reached:
        facts = {"event": "step", "epoch": epoch, "step": step}
        return Reached(RunFacts.model_validate(facts), f"{epoch} {step}")

    assert not came_no_further(at(4, 10), [at(3, 900)])
    assert not came_no_further(at(3, 901), [at(3, 900)])
    assert came_no_further(at(3, 900), [at(3, 900)])


def test_files_without_a_description_count_by_their_content(tmp_path: Path) -> None:
    first = fingerprint(session(tmp_path, INCOMPLETE, files={"state.json": "1"}))
    again = fingerprint(session(tmp_path, INCOMPLETE, files={"state.json": "1"}))
    later = fingerprint(session(tmp_path, INCOMPLETE, files={"state.json": "2"}))
    assert first == again != later
    assert fingerprint(session(tmp_path, INCOMPLETE)) == ""
