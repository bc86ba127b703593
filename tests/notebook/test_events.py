"""The events that an entry prints, and the epochs that the notebook keeps of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading

import pytest

from kernelkit.notebook.runtime.epochs import MAX_EPOCHS, EpochHistory
from kernelkit.notebook.runtime.events import OutputTap, RunEvent, parse_event


def line(**values: object) -> str:
    return json.dumps({"event": "epoch", **values})


def test_events_are_seen_however_the_program_writes_them() -> None:
    events: list[RunEvent] = []
    tap = OutputTap(events.append)
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        with tap.listening():
            print(line(epoch=1))
            print("text", line(epoch=99))
            print(end="")
            sys.stdout.write(line(epoch=2)[:9])
            sys.stdout.write(line(epoch=2)[9:] + "\n\n" + line(epoch=3) + "\n{")
            sys.stdout.write('"event": "other"}\n')
            print(*["no", "event"], sep="\n")
            print("{" + "x" * (1 << 17))
            print("  " + line(epoch=4))
        print(line(epoch=5))
    assert [event.numbers.get("epoch") for event in events] == [1, 2, 3, None, 4]
    assert "write" not in vars(stream)  # nothing of the tap stays
    assert stream.getvalue().count('"event"') == 7


def test_a_program_cannot_close_the_stream_that_the_notebook_needs() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        with OutputTap(list[RunEvent]().append).listening():
            sys.stdout.close()
        print("the next cell")
        assert stream.getvalue() == "the next cell\n"
        sys.stdout.close()
    assert stream.closed  # nothing of the tap stays


def test_events_of_several_threads_and_of_a_forked_child_are_seen() -> None:
    events: list[RunEvent] = []
    tap = OutputTap(events.append)
    with contextlib.redirect_stdout(io.StringIO()), tap.listening():
        threads = [
            threading.Thread(target=sys.stdout.write, args=[line(epoch=n) + "\n"])
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if (child := os.fork()) == 0:
            print(line(epoch=20))
            os._exit(0)
        os.waitpid(child, 0)
    assert sorted(event.numbers["epoch"] for event in events) == [*range(21)]


def test_a_mistake_in_handling_an_event_ends_neither_the_program_nor_its_children() -> None:
    def fail(event: RunEvent) -> None:
        raise ValueError(event)

    with contextlib.redirect_stdout(io.StringIO()) as stream, OutputTap(fail).listening():
        print(line(epoch=1))
        if (child := os.fork()) == 0:
            for epoch in range(5000):  # more than a pipe holds
                print(line(epoch=epoch))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert stream.getvalue() == line(epoch=1) + "\n"


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"event": 1}', '{"event": "x"', "x" * 10, '{"event": "x"}' * 2]
)
def test_other_lines_are_no_events(text: str) -> None:
    assert parse_event(text) is None


def test_an_event_has_only_finite_numbers() -> None:
    text = '{"event": "epoch", "a": NaN, "b": true, "c": 1, "d": 1e999, "e": [1], "f": 1%s}'
    event = parse_event(text % ("0" * 400))
    assert event is not None
    assert event.numbers == {"c": 1}


def test_the_best_epoch_is_kept_however_many_there_are() -> None:
    progress = EpochHistory()
    for epoch in range(10 * MAX_EPOCHS):
        value = 1.0 if epoch == 4321 else epoch / 1e6
        progress.add(RunEvent("epoch", "a", {"epoch": epoch, "val_iou": value, "loss": -value}))
    assert (progress.metric, progress.goal) == ("val_iou", "maximize")
    (_, best), one = progress.ranked[0], progress.experiments["a"]
    assert (best.number, best.numbers["val_iou"]) == (4321, 1.0)
    assert one.total == 10 * MAX_EPOCHS
    assert len(one.epochs) <= 2 * MAX_EPOCHS


def test_a_declared_metric_and_goal_decide() -> None:
    progress = EpochHistory("score", "minimize")
    for name, value in [("a", 3.0), ("b", 1.0), ("c", 2.0)]:
        progress.add(RunEvent("epoch", name, {"score": value, "val_iou": value}))
    assert [name for name, _ in progress.ranked] == ["b", "c", "a"]
    assert EpochHistory("missing").metric == ""
