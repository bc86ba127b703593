"""Watching a run on an unreliable Kaggle: the real client with a scripted local server."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kernelkit.errors import DeadlineError, UnreachableError, VerificationError
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, LogEntry, Status, Timeouts
from kernelkit.notebook.runtime import RunEvent, parse_event
from kernelkit.runs import watch
from kernelkit.runs.manifest import RunAddress
from kernelkit.runs.watch import RequestedHardware

DIGEST = "d" * 64
FIRST = f"kernelkit digest {DIGEST}\n"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Responds with the `statuses` and `streams` of a test, by the last word of the path."""

    def __init__(self) -> None:
        self.statuses: list[tuple[int, Any]] = []
        self.streams: list[Answer] = []
        self.log: list[str] = []
        self.kernel: dict[str, Any] = {"metadata": {"currentVersionNumber": 2}, "blob": {}}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if "/logs/stream/" in handler.path:
            take(self.streams)(handler)
        elif handler.path.endswith("GetKernelSessionStatus"):
            send(handler, *take(self.statuses))
        elif handler.path.endswith("GetKernel"):
            send(handler, 200, self.kernel)
        elif handler.path.endswith("ListKernelSessionOutput"):
            entries = [{"stream_name": "stdout", "time": 0, "data": text} for text in self.log]
            send(handler, 200, {"log": json.dumps(entries)})


def take(answers: list[Any]) -> Any:
    return answers.pop(0) if len(answers) > 1 else answers[0]


def send(handler: BaseHTTPRequestHandler, code: int, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def stream(*texts: str, end: bool = True, then: float = 0, ping: float = 0) -> Answer:
    """Server-sent events: texts, then silence or pings, then the end or a disconnect."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for text in texts:
            event = json.dumps({"stream_name": "stdout", "time": 0, "data": text})
            handler.wfile.write(f"data: {event}\n\n".encode())
        handler.wfile.flush()
        until = time.monotonic() + then
        while time.monotonic() < until:
            time.sleep(ping or then)
            if ping:
                handler.wfile.write(b": ping\n\n")
        if end:
            handler.wfile.write(b"data: END_OF_LOG\n\n")
        handler.close_connection = True

    return answer


def failing(code: int) -> Answer:
    return lambda handler: send(handler, code, {"code": code, "message": "no"})


RUNNING, COMPLETE = (200, {"status": "RUNNING"}), (200, {"status": "COMPLETE"})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def kaggle(server: Server) -> Iterator[Kaggle]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with suppress(BrokenPipeError, ConnectionResetError):
                server.answer(self)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{http.server_address[1]}"
    yield Kaggle(Credentials("ann", "the test", key="k"), address, timeouts=QUICK)
    http.shutdown()
    http.server_close()


def run_at(kaggle: Kaggle) -> RunAddress:
    return RunAddress(
        owner="ann", slug="some-kernel", version=2, url="u", digest=DIGEST, endpoint=kaggle.endpoint
    )


QUICK = Timeouts(retry=0, grace=1.5, outage=0.5, first_pause=0.05, longest_pause=0.1, cancelling=1)
CPU = RequestedHardware(machine_shape="", docker_image="", wants_gpu=False)


def watched(kaggle: Kaggle, **options: Any) -> tuple[list[str], str]:
    """The states, and the log as shown."""
    states, log = [], ""
    for event in watch.watch_run(kaggle, run_at(kaggle), CPU, **options):
        if isinstance(event, Status):
            states.append(str(event.state))
        elif isinstance(event, LogEntry):
            log += event.text
    return states, log


def test_an_interrupted_stream_loses_and_repeats_nothing(kaggle: Kaggle, server: Server) -> None:
    lines = [FIRST, "one\n", "two\n", "three\n"]
    server.log = lines
    server.statuses = [RUNNING] * 4 + [COMPLETE]
    server.streams = [
        stream(*lines[:2], end=False),
        stream(*lines[:2], end=False),
        failing(502),
        stream(*lines[:3]),
    ]
    assert watched(kaggle) == (["running", "complete"], "".join(lines))


def test_the_stored_log_may_be_split_differently(kaggle: Kaggle, server: Server) -> None:
    server.statuses = [RUNNING, COMPLETE]
    server.streams = [stream(FIRST, "one\n", "two\n")]
    server.log = [FIRST + "one\n", "two\nthree\n", "four\n"]
    assert watched(kaggle)[1] == FIRST + "one\ntwo\nthree\nfour\n"


def test_nothing_is_lost_where_live_and_stored_log_differ(kaggle: Kaggle, server: Server) -> None:
    server.statuses = [RUNNING, COMPLETE]
    server.streams = [stream(FIRST, "live only\n")]
    server.log = [FIRST, "kept\n", "end\n"]
    assert watched(kaggle)[1] == FIRST + "live only\nkept\nend\n"


def test_the_log_of_another_version_is_not_shown(kaggle: Kaggle, server: Server) -> None:
    server.statuses = [RUNNING, RUNNING, COMPLETE]
    server.streams = [stream("kernelkit digest " + "e" * 64 + "\n", "not ours\n"), stream(FIRST)]
    server.log = [FIRST, "ours\n"]
    assert watched(kaggle)[1] == FIRST + "ours\n"


def pushed_again(kaggle: Kaggle) -> RunAddress:
    """A run whose version before has the same digest."""
    return run_at(kaggle).updated(push_id="a" * 32)


def test_the_log_of_an_earlier_push_of_the_same_digest_is_not_shown(
    kaggle: Kaggle, server: Server
) -> None:
    earlier = stream(FIRST, "kernelkit push " + "b" * 32 + "\n", "not ours\n")
    ours = [FIRST, "Writing a file\n", "kernelkit push " + "a" * 32 + "\n", "ours\n"]
    server.statuses, server.log = [RUNNING, RUNNING, COMPLETE], ours
    server.streams = [earlier, stream(FIRST, "not yet known whose\n"), stream(*ours)]
    events = watch.watch_run(kaggle, pushed_again(kaggle), CPU)
    shown = [event.text for event in events if isinstance(event, LogEntry)]
    assert "".join(shown) == "".join(ours)


def test_an_earlier_end_is_not_the_end_of_a_new_push(kaggle: Kaggle, server: Server) -> None:
    """During the grace period the run counts as queued; afterwards another log is an error."""
    server.statuses, server.streams = [COMPLETE], [failing(404)]
    server.log = [FIRST, "kernelkit push " + "b" * 32 + "\n"]
    run = pushed_again(kaggle)
    assert watch.read_status(kaggle, run, age=0).state == "queued"
    with pytest.raises(VerificationError, match="the log of another run"):
        list(watch.watch_run(kaggle, run, CPU))
    server.log = [FIRST]  # no push_id: it may have failed before it printed one
    assert watch.read_status(kaggle, run, age=0).state == "queued"
    assert next(watch.watch_run(kaggle, run, CPU, age=9)).state == "complete"


@pytest.mark.parametrize(
    ("shown", "said", "state"),
    [
        ("CANCEL_ACKNOWLEDGED", "complete", "queued"),
        ("ERROR", "complete", "queued"),
        ("COMPLETE", "failed", "queued"),
        ("CANCEL_ACKNOWLEDGED", "running", "cancel_acknowledged"),
        ("ERROR", "failed", "error"),
        ("ERROR", "stalled", "error"),
        ("COMPLETE", "complete", "complete"),
        ("COMPLETE", None, "complete"),
    ],
)
def test_an_earlier_end_is_not_that_of_a_run_which_has_ended_otherwise(
    kaggle: Kaggle, server: Server, shown: str, said: str | None, state: str
) -> None:
    """A short run has ended, and Kaggle still shows the state of the version before."""
    server.statuses = [(200, {"status": shown})]
    end = f'kernelkit-manifest {{"error": "", "status": "{said}"}}\n' if said else "kernelkit-"
    server.log = [FIRST, "kernelkit push " + "a" * 32 + "\n", end]
    run = pushed_again(kaggle)
    assert watch.read_status(kaggle, run, age=0).state == state
    assert watch.read_status(kaggle, run, age=math.inf).state == shown.lower()


@pytest.mark.parametrize(
    ("before", "shown", "state"),
    [
        ("CANCEL_ACKNOWLEDGED", "CANCEL_ACKNOWLEDGED", "queued"),
        ("ERROR", "ERROR", "queued"),
        ("COMPLETE", "ERROR", "error"),
        ("ERROR", "CANCEL_ACKNOWLEDGED", "cancel_acknowledged"),
    ],
)
def test_an_earlier_end_is_not_that_of_a_run_whose_log_goes_on(
    kaggle: Kaggle, server: Server, before: str, shown: str, state: str
) -> None:
    """Kaggle may send the log of a run while it runs."""
    server.log = [FIRST, "kernelkit push " + "a" * 32 + "\n", "epoch 1\n"]
    run = pushed_again(kaggle).updated(version=2)
    server.statuses = [(200, {"status": shown}), (200, {"status": before})]
    assert watch.read_status(kaggle, run, age=0).state == state
    server.statuses = [(200, {"status": shown})]
    assert watch.read_status(kaggle, run, age=math.inf).state == shown.lower()


@pytest.mark.parametrize("code", [400, 404, 429, 500, 502])
def test_an_unavailable_log_does_not_end_the_watch(
    kaggle: Kaggle, server: Server, code: int
) -> None:
    server.statuses = [RUNNING, RUNNING, COMPLETE]
    server.streams = [failing(code)]
    server.log = [FIRST, "all\n"]
    assert watched(kaggle) == (["running", "complete"], FIRST + "all\n")


def test_a_watch_survives_an_outage(kaggle: Kaggle, server: Server) -> None:
    no = {"code": 503, "message": "down"}
    slow = {"code": 429, "message": "slowly"}
    server.statuses = [RUNNING, (503, no), (429, slow), (503, no), COMPLETE]
    server.streams = [stream(FIRST)]
    server.log = [FIRST]
    assert watched(kaggle) == (["running", "complete"], FIRST)


def test_a_long_outage_ends_the_watch(kaggle: Kaggle, server: Server) -> None:
    server.statuses = [RUNNING, (503, {"code": 503, "message": "down"})]
    server.streams = [stream(FIRST)]
    with pytest.raises(UnreachableError):
        watched(kaggle)


def test_an_unreachable_kaggle_is_reported_at_once(kaggle: Kaggle, server: Server) -> None:
    server.statuses = [(503, {"code": 503, "message": "down"})]
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        watched(kaggle)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "answer", [stream(FIRST, then=20), stream(FIRST, then=20, ping=0.2), stream(then=20, ping=0.2)]
)
def test_a_silent_stream_does_not_delay_the_deadline(
    kaggle: Kaggle, server: Server, answer: Answer
) -> None:
    server.statuses = [RUNNING]
    server.streams = [answer]
    started = time.monotonic()
    with pytest.raises(DeadlineError):
        watched(kaggle, deadline=2)
    assert 1.5 < time.monotonic() - started < 8


@pytest.mark.parametrize("log", [[], [FIRST]])
def test_a_call_that_the_deadline_cuts_off_is_not_reported(
    kaggle: Kaggle, server: Server, log: list[str]
) -> None:
    server.statuses, server.streams, server.log = [COMPLETE], [failing(404)], log
    kaggle.timeouts = replace(QUICK, grace=60)
    events: list[object] = []
    with kaggle.ends_in(0.7), pytest.raises(DeadlineError):
        events.extend(watch.watch_run(kaggle, pushed_again(kaggle), CPU, deadline=0.7))
    assert not [event for event in events if isinstance(event, str)]


def test_a_stream_that_outlives_its_run_does_not_block_the_watch(
    kaggle: Kaggle, server: Server
) -> None:
    kaggle.timeouts = replace(QUICK, stream=0.3)
    server.statuses = [RUNNING, COMPLETE]
    server.streams = [stream(FIRST, then=20, ping=0.1)]
    server.log = [FIRST]
    started = time.monotonic()
    assert watched(kaggle) == (["running", "complete"], FIRST)
    assert time.monotonic() - started < 8


def test_a_new_push_may_not_be_visible_at_first(kaggle: Kaggle, server: Server) -> None:
    missing = (404, {"code": 404, "message": "Not found"})
    server.statuses = [missing, (403, {"code": 403, "message": "no"}), RUNNING, COMPLETE]
    server.streams = [stream(FIRST)]
    server.log = [FIRST]
    assert watched(kaggle)[0] == ["queued", "running", "complete"]


@pytest.mark.parametrize("text", ['{"a":' * 3000, '{"event": 3}', "{", "[]", ""])
def test_a_line_that_is_not_an_event_is_ignored(text: str) -> None:
    assert parse_event(text) is None


def test_an_event_has_a_kind_an_experiment_and_finite_numbers() -> None:
    values = f'"epoch": 2, "val_iou": NaN, "loss": 1e999, "big": 1{"0" * 400}, "on": true'
    text = f'{{"event": "epoch", "experiment": "a", "seconds": 1.5, "word": "x", {values}}}'
    event = parse_event(f"  {text}\n")
    assert event == RunEvent("epoch", "a", {"epoch": 2, "seconds": 1.5})
    start = '{"event": "start", "experiments": ["a", 3, null], "epochs": 20}'
    event = parse_event(start)
    assert event == RunEvent("start", None, {"epochs": 20}, experiments=("a",))
    long = '{"event": "epoch", "word": "' + "x" * 100_000 + '"}'
    assert parse_event(long) is None


def test_a_long_line_does_not_delay_the_log(kaggle: Kaggle, server: Server) -> None:
    lines = [FIRST, *(["x" * 999_999 + "\n"] * 20)]
    server.statuses = [RUNNING, COMPLETE]
    server.streams = [stream(*lines)]
    server.log = lines
    started = time.monotonic()
    assert watched(kaggle)[1] == "".join(lines)
    assert time.monotonic() - started < 20
