"""A server that never ends an answer: every wait ends, and nothing grows without a limit."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kernelkit.config import KernelSettings
from kernelkit.errors import DeadlineError, KernelkitError, RefusedError, UnreachableError
from kernelkit.kaggle import connection, kernels, logs, transfer
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.logs import parse_log
from kernelkit.kaggle.types import Credentials, OutputFile, Timeouts
from tests.kaggle.conftest import Script

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
Answer = Callable[[socket.socket, str], None]


def drip(start: bytes, piece: bytes = b" ", pause: float = 0.05) -> Answer:
    """Send `start`, and then a piece now and then, for ever."""

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(start)
        while True:
            client.sendall(piece)
            time.sleep(pause)

    return answer


def flood(start: bytes, piece: bytes = b"x" * 65536) -> Answer:
    return drip(start, piece, 0)


def redirect(client: socket.socket, address: str) -> None:
    time.sleep(0.2)
    location = f"Location: {address}/again\r\n".encode()
    client.sendall(
        b"HTTP/1.1 307 Go\r\nConnection: close\r\nContent-Length: 0\r\n" + location + b"\r\n"
    )


ENDLESS: dict[str, Answer] = {
    "no answer": lambda *_: time.sleep(60),
    "status line": drip(b"HTTP/1.1 200 ", b"x"),
    "headers": drip(OK, b"X-A: b\r\n"),
    "a header": drip(OK + b"X-A: ", b"b"),
    "body": drip(OK + b"Content-Length: 1000000\r\n\r\n{"),
    "body without length": drip(OK + b"\r\n{"),
    "chunks": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "error": drip(b"HTTP/1.1 500 No\r\n\r\n", b"x"),
    "continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "redirections": redirect,
    "a day": lambda client, _: client.sendall(
        b"HTTP/1.1 429 No\r\nRetry-After: 86400\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    ),
    "a date in years": lambda client, _: client.sendall(
        b"HTTP/1.1 503 No\r\nRetry-After: Thu, 31 Dec 2099 23:59:59 GMT\r\n"
        b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    ),
}


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Kaggle]]:
    """Start a server that gives one answer, and connect to it."""
    servers: list[socket.socket] = []

    def start(answer: Answer) -> Kaggle:
        server = socket.create_server(("127.0.0.1", 0), backlog=50)
        servers.append(server)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def talk(client: socket.socket) -> None:
            with client, suppress(OSError):
                client.recv(1 << 16)
                answer(client, address)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):  # a request that is not read resets the connection
                    pass

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=talk, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return Kaggle(Credentials("ann", "the test", key="k"), address)

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.mark.parametrize("kind", ENDLESS)
def test_every_call_ends_at_the_deadline(kind: str, serve: Callable[[Answer], Kaggle]) -> None:
    kaggle = serve(ENDLESS[kind])
    started = time.monotonic()
    error = KernelkitError if kind.startswith("a d") else DeadlineError  # at once, or in time
    with pytest.raises(error, match="the quota: "), kaggle.ends_in(0.4):
        kaggle.quota()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("kind", [kind for kind in ENDLESS if not kind.startswith("a d")])
def test_a_call_without_a_deadline_ends_if_it_makes_no_progress(
    kind: str, serve: Callable[[Answer], Kaggle]
) -> None:
    kaggle = serve(ENDLESS[kind])
    kaggle.timeouts = Timeouts(connect=0.2, read=0.3, push=0.3, retry=0)
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        kaggle.quota()
    assert time.monotonic() - started < 4


def test_a_push_is_not_begun_after_the_deadline_and_never_cut_off(
    kaggle: Kaggle, script: Script, serve: Callable[[Answer], Kaggle]
) -> None:
    settings = KernelSettings(id="some-kernel", title="Some kernel")
    with pytest.raises(DeadlineError, match="was not sent"), kaggle.ends_in(0.0):
        kaggle.save_kernel("some-kernel", "{}", settings)
    assert script.requests == []

    def answer(client: socket.socket, _: str) -> None:
        time.sleep(1.0)
        body = b'{"versionNumber": 3, "url": "u"}'
        client.sendall(OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    slow = serve(answer)
    with slow.ends_in(0.3):
        assert slow.save_kernel("some-kernel", "{}", settings).version == 3


def test_pauses_end_at_the_deadline(kaggle: Kaggle) -> None:
    before = kaggle.timeouts
    started = time.monotonic()
    with kaggle.ends_in(0.3):
        kaggle.timeouts.sleep(60)
        kaggle.timeouts.sleep(60)
        assert kaggle.is_late
    assert time.monotonic() - started < 2
    assert kaggle.timeouts is before
    assert not kaggle.is_late


def test_a_slow_answer_that_makes_progress_is_awaited(serve: Callable[[Answer], Kaggle]) -> None:
    def answer(client: socket.socket, _: str) -> None:
        body = b'{"status": "RUNNING"' + b" " * 400_000 + b"}"
        client.sendall(OK + f"Content-Length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), 70_000):
            client.sendall(body[start : start + 70_000])
            time.sleep(0.25)

    kaggle = serve(answer)
    kaggle.timeouts = Timeouts(connect=0.5, read=0.5, retry=0)
    assert kaggle.status("ann", "k", 1).word == "running"


FLOODS: dict[str, Answer] = {
    "body": flood(OK + b"\r\n"),
    "error": flood(b"HTTP/1.1 500 No\r\nContent-Type: application/json\r\n\r\n"),
    "redirection": flood(b"HTTP/1.1 302 Go\r\nLocation: /x\r\n\r\n"),
    "zipped": lambda client, _: client.sendall(
        OK + b"Content-Encoding: gzip\r\n\r\n" + bomb() + bomb() + bomb()
    ),
}


def bomb() -> bytes:
    import gzip

    return gzip.compress(b" " * 20_000_000)


@pytest.mark.parametrize("kind", FLOODS)
def test_a_body_without_end_is_given_up(
    kind: str, serve: Callable[[Answer], Kaggle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BODY_BYTES", 4 << 20)
    kaggle = serve(FLOODS[kind])
    kaggle.timeouts = Timeouts(retry=0)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        kaggle.quota()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.monotonic() - started < 20


STREAMS = {
    "no newline": flood(EVENTS, b"x" * 65536),
    "a slow line": drip(EVENTS, b"x"),
    "comments": drip(EVENTS, b": ping\n"),
    "silence": lambda client, _: (client.sendall(EVENTS), time.sleep(60)),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "plain text": flood(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"),
    "an array": drip(OK + b"\r\n[", b'{"data": "x"},'),
    "an error": drip(b"HTTP/1.1 404 No\r\nContent-Type: application/json\r\n\r\n", b"{"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_log_stream_ends_in_time_and_in_little_memory(
    kind: str, serve: Callable[[Answer], Kaggle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ENTRY_CHARACTERS", 1 << 20)
    monkeypatch.setattr(logs, "LOG_BYTES", 8 << 20)
    kaggle = serve(STREAMS[kind])
    started = time.monotonic()
    tracemalloc.start()
    with suppress(KernelkitError):
        for entry in kaggle.log_stream("ann", "k", 1, 0.5):
            assert len(entry.text) < 10 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - started < 4
    assert peak < 80 << 20


def test_a_line_that_is_too_long_leaves_a_note(
    serve: Callable[[Answer], Kaggle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ENTRY_CHARACTERS", 100_000)
    event = b'data: {"stream_name": "stdout", "time": 1, "data": "%s\\n"}\n\n'
    content = event % b"first" + event % (b"x" * 5_000_000) + event % b"last"

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(EVENTS + content + b"data: END_OF_LOG\n\n")

    texts = [entry.text for entry in serve(answer).log_stream("ann", "k", 1, 20)]
    assert (texts[0], texts[-1]) == ("first\n", "last\n")
    assert len(texts) == 3
    assert texts[1].startswith("(a line of 5,000,0")


def test_a_stored_log_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ENTRY_CHARACTERS", 1000)
    monkeypatch.setattr(logs, "ENTRIES", 10)
    monkeypatch.setattr(logs, "JOINED_CHARACTERS", 500)
    many = json.dumps([{"data": f"line {n}\n", "stream_name": "stdout"} for n in range(1000)])
    entries = parse_log(many)
    assert "".join(entry.text for entry in entries) == "".join(f"line {n}\n" for n in range(1000))
    assert len(entries) < 40
    assert len(parse_log("\n" * 100_000)) < 300
    (long,) = parse_log(json.dumps([{"data": "x" * 1_000_000}]))
    assert long.text.endswith("… (999,000 more characters are left out)\n")
    mixed = [{"data": "a", "stream_name": ("stdout", "stderr")[n % 2]} for n in range(20)]
    assert [entry.stream for entry in parse_log(json.dumps(mixed))][10:12] == ["stdout", "stderr"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"data": null}]', [""]),
        ('[{"data": 3}, {"data": true}]', ["3", "true"]),
        ('[{"data": [1, "a"]}, {"data": {"é": null}}]', ['[1, "a"]', '{"é": null}']),
        ('[{}, {"stream_name": null, "data": "x"}]', ["", "x"]),
        ('[{"stream_name": 3, "time": [], "data": "y"}]', ["y"]),
        ("[INFO] plain\n[1] text\n", ["[INFO] plain\n", "[1] text\n"]),
        ('[{"data": "cut"}, {"da', ['[{"data": "cut"}, {"da']),
        ('[{"data": "a"},]', ['[{"data": "a"},]']),
        ('[{"data": "a"} {"data": "b"}]', ['[{"data": "a"} {"data": "b"}]']),
        (' \n[ {"data": "a"}\n, {"data": "b"} ] \n', ["a", "b"]),
        ('[{"data": "a"}] more', ['[{"data": "a"}] more']),
        ("[]", []),
        ("null", []),
        ("[" * 100_000, ["[" * 100_000]),
        ('{"data": "one"}', ["one"]),
    ],
)
def test_odd_logs_are_read(text: str, expected: list[str]) -> None:
    entries = parse_log(text)
    assert [entry.text for entry in entries] == expected
    assert {entry.stream for entry in entries} <= {"stdout"}


def test_a_null_in_a_stream_prints_nothing(serve: Callable[[Answer], Kaggle]) -> None:
    lines = [b'{"data": null}', b"null", b'{"data": 5}', b"plain", b'{"data": "end"}']

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(EVENTS + b"".join(b"data: %s\n\n" % line for line in lines))

    texts = [entry.text for entry in serve(answer).log_stream("ann", "k", 1, 20)]
    assert texts == ["", "5", "plain", "end"]


def test_a_listing_without_end_is_refused(
    kaggle: Kaggle, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "PAGES", 5)
    for number in range(20):
        script.say(
            {"files": [{"fileName": f"f{number}", "url": "u"}], "nextPageToken": f"{number}"}
        )
    with pytest.raises(RefusedError, match="has no end"):
        kaggle.outputs("ann", "k", 1)
    assert len(script.requests) <= 6


@pytest.mark.parametrize("kind", ["body", "headers"])
def test_a_download_that_hardly_moves_is_given_up(
    kind: str,
    serve: Callable[[Answer], Kaggle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("SLOW_SECONDS", "FAILING_SECONDS", "SILENCE_SECONDS", "CONNECT_SECONDS"):
        monkeypatch.setattr(transfer, name, 0.5)
    kaggle = serve(ENDLESS[kind])
    file = OutputFile("f", f"{kaggle.endpoint}/f", size=1_000_000)
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        transfer.download(kaggle.file_session(), file, tmp_path / "f")
    assert time.monotonic() - started < 8
