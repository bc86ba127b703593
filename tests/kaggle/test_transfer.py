"""Downloads from a real local server that breaks off, refuses, or changes the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from kernelkit.errors import CapacityError, KernelkitError, NotFoundError, UnreachableError
from kernelkit.kaggle import transfer
from kernelkit.kaggle.transfer import Stopped, Transfer, WrongContentError, download
from kernelkit.kaggle.types import OutputFile

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[["Handler"], None]


class Store(ThreadingHTTPServer):
    """Sends `content` correctly once the scripted responses are used up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file"
        self.content, self.etag = CONTENT, '"one"'
        self.script: list[Answer] = []
        self.asked: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers))
        with suppress(BrokenPipeError, ConnectionResetError):
            (self.server.script.pop(0) if self.server.script else good)(self)

    def answer(self, code: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        given = {"Content-Length": str(len(body) if length is None else length), **headers}
        for name, value in given.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def good(handler: Handler, stop: int | None = None, **headers: str) -> None:
    """The file, or the requested range; the connection closes before the byte `stop`."""
    store, size = handler.server, len(handler.server.content)
    headers = {"ETag": store.etag, **headers}
    start = 0
    asked = handler.headers.get("Range", "")
    if asked and handler.headers.get("If-Range") in headers.values():
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers["Content_Range"] = f"bytes {start}-{size - 1}/{size}"
    handler.close_connection = stop is not None
    body = store.content[start:stop]
    handler.answer(206 if start else 200, body, size - start, **headers)


def cut(stop: int, **headers: str) -> Answer:
    return lambda handler: good(handler, stop, **headers)


def say(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: handler.answer(code, body, **headers)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.002)
    server = Store()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(store: Store, folder: Path, transfer: Transfer | None = None, **details: object) -> Path:
    file = OutputFile("out.bin", store.url, len(CONTENT), SHA256)
    with requests.Session() as session:
        session.trust_env = False
        download(session, replace(file, **details), folder / "sub" / "out.bin", None, transfer)
    return folder / "sub" / "out.bin"


def is_whole(path: Path) -> bool:
    return path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_complete_file_is_downloaded(store: Store, tmp_path: Path) -> None:
    assert is_whole(fetch(store, tmp_path))
    assert len(store.asked) == 1
    assert store.asked[0]["Accept-Encoding"] == "identity"
    assert "Authorization" not in store.asked[0]


def test_an_interrupted_download_is_resumed(store: Store, tmp_path: Path) -> None:
    stops = range(100_000, 1_000_000, 100_000)  # more interruptions than consecutive retries
    store.script = [cut(stop) for stop in stops]
    assert is_whole(fetch(store, tmp_path))
    ranges = [headers.get("Range") for headers in store.asked]
    assert ranges == [None, *(f"bytes={stop}-" for stop in stops)]
    assert {headers.get("If-Range") for headers in store.asked[1:]} == {'"one"'}


@pytest.mark.parametrize(
    "answers",
    [
        [hang_up, say(500), say(503, Retry_After="0"), say(429)],
        [say(408), cut(300_000), hang_up, hang_up, hang_up],
        [cut(300_000), lambda h: h.answer(200, CONTENT, ETag='"one"')],  # ignores Range
        [cut(300_000), say(416)],
        [cut(300_000), say(206, CONTENT[5:], Content_Range="bytes 5-1048575/1048576")],
        [cut(300_000), say(206, CONTENT, Content_Range="nonsense")],
        [cut(300_000), say(200, b"<html>moved</html>", Content_Type="text/html")],
        [say(200, b"<html>sorry</html>", Content_Type="text/html")] * 2,
        [say(200, b'{"code": 500, "message": "no"}', Content_Type="application/json")],
        [say(200, CONTENT[:-1])],  # a complete response that is too short
        [say(200, CONTENT + b"x")],
        [say(200, CONTENT[::-1])],  # the right size, but different content
        [cut(300_000, ETag='W/"weak"'), cut(500_000, ETag="")],
    ],
    ids=lambda answers: str(len(answers)),
)
def test_temporary_errors_are_retried(store: Store, tmp_path: Path, answers: list[Answer]) -> None:
    store.script = list(answers)
    assert is_whole(fetch(store, tmp_path))
    assert not store.script


def test_an_error_page_keeps_the_partial_download(store: Store, tmp_path: Path) -> None:
    store.script = [cut(300_000), say(200, b"<html>moved</html>", Content_Type="text/html")]
    assert is_whole(fetch(store, tmp_path))
    assert store.asked[-1]["Range"] == "bytes=300000-"


def test_a_changed_file_is_downloaded_from_the_start(store: Store, tmp_path: Path) -> None:
    store.content = CONTENT[::-1]

    def change(handler: Handler) -> None:
        store.content, store.etag = CONTENT, '"two"'
        good(handler)

    store.script = [cut(300_000), change]
    assert is_whole(fetch(store, tmp_path))
    assert len(store.asked) == 2


@pytest.mark.parametrize("mark", ["ETag", "Last_Modified"])
def test_a_later_process_resumes_the_download(store: Store, tmp_path: Path, mark: str) -> None:
    changed = formatdate(0, usegmt=True)
    headers = {"ETag": "", "Last_Modified": changed} if mark == "Last_Modified" else {}
    store.script = [cut(700_000, **headers), *[say(500)] * 5]
    with pytest.raises(UnreachableError):
        fetch(store, tmp_path)
    assert not (tmp_path / "sub" / "out.bin").exists()
    store.script = [lambda handler: good(handler, **headers)]
    heard: list[int] = []
    assert is_whole(fetch(store, tmp_path, Transfer(heard.append)))
    assert store.asked[-1]["Range"] == "bytes=700000-"
    assert store.asked[-1]["If-Range"] == (changed if headers else '"one"')
    assert sum(heard) == len(CONTENT)


def test_a_process_killed_before_the_rename_is_resumed(store: Store, tmp_path: Path) -> None:
    partial = tmp_path / "sub" / "out.bin.partial"
    partial.parent.mkdir()
    note = {"name": "out.bin", "state": '"one"', "size": len(CONTENT)}
    partial.with_name("out.bin.partial.json").write_text(json.dumps(note))
    partial.write_bytes(CONTENT)
    assert is_whole(fetch(store, tmp_path))
    assert store.asked == []


@pytest.mark.parametrize(
    ("note", "have"),
    [
        ({"name": "out.bin", "state": '"one"', "size": len(CONTENT)}, b"spoilt"),
        ({"name": "out.bin", "state": '"one"', "size": 3}, b"longer than that"),
        ({"name": "out.bin", "state": '"one"', "size": 3}, b"not"),
        ({"name": "other", "state": '"one"', "size": len(CONTENT)}, b"x"),
        ({"name": "out.bin", "state": 3, "size": "many"}, b"x"),
        ({"name": "out.bin"}, b"x"),
        ("[" * 5000, b"x"),
        ("", CONTENT[:9]),
    ],
)
def test_a_partial_download_of_another_file_is_not_reused(
    store: Store, tmp_path: Path, note: object, have: bytes
) -> None:
    partial = tmp_path / "sub" / "out.bin.partial"
    partial.parent.mkdir()
    text = note if isinstance(note, str) else json.dumps(note)
    partial.with_name("out.bin.partial.json").write_text(text)
    partial.write_bytes(have)
    assert is_whole(fetch(store, tmp_path))


@pytest.mark.parametrize(
    ("answer", "details", "error"),
    [
        (say(404, b"<html>gone</html>"), {}, NotFoundError),
        (say(403), {}, NotFoundError),
        (say(503), {}, UnreachableError),
        (say(429), {}, CapacityError),
        (say(429, Retry_After="3600"), {}, CapacityError),
        (hang_up, {}, UnreachableError),
        (say(200, b"<html>x</html>"), {}, WrongContentError),
        (say(200, b"<html>x</html>"), {"sha256": None}, WrongContentError),
        (say(200, CONTENT), {"sha256": "0" * 64}, WrongContentError),
        (say(200, CONTENT), {"size": 3, "sha256": None}, WrongContentError),
        (lambda h: h.answer(200, CONTENT[:9], len(CONTENT)), {}, UnreachableError),
        (say(200, CONTENT), {"url": "nowhere"}, NotFoundError),
    ],
)
def test_a_permanent_error_leaves_no_file(
    store: Store, tmp_path: Path, answer: Answer, details: dict[str, object], error: type
) -> None:
    def always(handler: Handler) -> None:
        store.script.append(always)
        handler.close_connection = True
        answer(handler)

    store.script = [always]
    with pytest.raises(error):
        fetch(store, tmp_path, **details)
    assert not (tmp_path / "sub" / "out.bin").exists()
    assert len(store.asked) <= transfer.FAILURES_IN_A_ROW


def test_retry_after_is_respected(store: Store, tmp_path: Path) -> None:
    store.script = [say(429, Retry_After="1")]
    started = time.monotonic()
    assert is_whole(fetch(store, tmp_path))
    assert 1.0 <= time.monotonic() - started < 5


def test_an_expired_address_is_requested_again(store: Store, tmp_path: Path) -> None:
    store.script = [cut(500_000), say(403), say(410)]
    renewed: list[str] = []

    def renew(file: OutputFile) -> OutputFile:
        renewed.append(file.url)
        return replace(file, url=f"{store.url}?{len(renewed)}")

    assert is_whole(fetch(store, tmp_path, Transfer(renew=renew)))
    assert renewed == [store.url, f"{store.url}?1"]
    assert store.asked[-1]["Range"] == "bytes=500000-"


def test_an_unrequested_content_encoding_is_decoded(store: Store, tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)

    def half(handler: Handler) -> None:
        handler.close_connection = True
        marks = {"ETag": '"one"', "Content_Encoding": "gzip"}
        handler.answer(200, packed[:900], len(packed), **marks)

    store.script = [half, say(200, packed, ETag='"one"', Content_Encoding="gzip")]
    assert is_whole(fetch(store, tmp_path))
    assert "Range" not in store.asked[1]


def test_a_download_without_a_length_is_never_complete(store: Store, tmp_path: Path) -> None:
    def until_closed(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT[:99])

    store.script = [until_closed] * 3
    with pytest.raises(WrongContentError, match="length is unknown"):
        fetch(store, tmp_path, size=None, sha256=None)
    store.script = [until_closed]
    assert is_whole(fetch(store, tmp_path))


def test_a_stalled_download_times_out_but_a_slow_one_does_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SILENCE_SECONDS", 0.5)

    def slow(handler: Handler) -> None:
        handler.answer(200, b"", len(CONTENT), ETag='"one"')
        for start in range(0, len(CONTENT), 1 << 17):
            time.sleep(0.15)  # 1.2 s in total, with no pause of half a second
            handler.wfile.write(CONTENT[start : start + (1 << 17)])

    def silent(handler: Handler) -> None:
        handler.close_connection = True
        handler.answer(200, b"", len(CONTENT), ETag='"one"')
        time.sleep(1)

    store.script = [silent, slow]
    assert is_whole(fetch(store, tmp_path))
    assert len(store.asked) == 2


def test_stopping_keeps_the_partial_download(store: Store, tmp_path: Path) -> None:
    stop = threading.Event()

    def heard(more: int) -> None:
        if more > 0:
            stop.set()

    with pytest.raises(Stopped):
        fetch(store, tmp_path, Transfer(heard, stop=stop))
    assert not (tmp_path / "sub" / "out.bin").exists()
    assert (tmp_path / "sub" / "out.bin.partial").stat().st_size > 0
    assert is_whole(fetch(store, tmp_path))
    assert "Range" in store.asked[-1]


def test_a_full_disk_is_reported_and_the_download_can_be_resumed(
    store: Store, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE stops a write like a full disk does; needs a separate process."""
    program = f"""
        import resource, requests
        from pathlib import Path
        from kernelkit.kaggle.transfer import download
        from kernelkit.kaggle.types import OutputFile
        from kernelkit.errors import LocalError
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        session = requests.Session()
        session.trust_env = False
        try:
            download(session, OutputFile("out.bin", {store.url!r}, {len(CONTENT)}, {SHA256!r}),
                     Path({str(tmp_path)!r}, "sub", "out.bin"))
        except LocalError as fault:
            print(fault.exit_code, fault)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("10 "), done.stdout + done.stderr
    assert not (tmp_path / "sub" / "out.bin").exists()
    came = (tmp_path / "sub" / "out.bin.partial").stat().st_size
    assert 0 < came <= 600_000
    assert is_whole(fetch(store, tmp_path))
    assert store.asked[-1]["Range"] == f"bytes={came}-"


def test_a_file_name_that_the_disk_rejects_is_reported(store: Store, tmp_path: Path) -> None:
    file = OutputFile("x", store.url, len(CONTENT), SHA256)
    with requests.Session() as session:
        session.trust_env = False
        with pytest.raises(KernelkitError) as caught:
            download(session, file, tmp_path / ("x" * 300), tmp_path / "partial")
    assert caught.value.exit_code == 4  # an error of this file, not of the machine


def test_memory_does_not_grow_with_the_file(store: Store, tmp_path: Path) -> None:
    size, block = 300 << 20, bytes(1 << 20)

    def large(handler: Handler) -> None:
        handler.answer(200, b"", size, ETag='"one"')
        for _ in range(size >> 20):
            handler.wfile.write(block)

    store.script = [large]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = fetch(store, tmp_path, size=size, sha256=None)
    assert path.stat().st_size == size
    path.unlink()
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 50 << 20
