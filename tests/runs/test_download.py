"""Pulls from a scripted local server: many files, unusual names, and every kind of failure."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kernelkit import workflow
from kernelkit.errors import ConfigError, LocalError, RefusedError, UnreachableError
from kernelkit.kaggle import transfer
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, Timeouts
from kernelkit.runs import download
from kernelkit.runs.download import Progress, Selection, pull_run
from kernelkit.runs.store import RunFolder
from kernelkit.runs.verify import verify

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
DIGEST = "d" * 64
LOG = json.dumps([{"stream_name": "stdout", "time": 0, "data": f"kernelkit digest {DIGEST}\n"}])
HTML = b"<html>Something went wrong</html>"


class Shelf(ThreadingHTTPServer):
    """A complete run, its files, and the failures of their downloads."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: list[tuple[str, bytes]] = []
        self.state, self.failure, self.log = "COMPLETE", "", LOG
        self.sizes = True
        self.instead: dict[str, list[bytes | int]] = {}  # responses before the correct one
        self.generation = 0  # of addresses; older ones are rejected
        self.expires = False  # all listed addresses expire with the first download
        self.block_seconds = 0.0  # between two blocks of a download
        self.calls: list[str] = []
        self.fetched: list[str] = []
        self.ranges: list[str] = []

    def content(self, name: str) -> bytes:
        return dict(self.files)[name]

    def declare(self, *names: str, **more: object) -> None:
        """Add the run's manifest, which describes these files."""
        described = [
            {
                "path": name,
                "size": len(self.content(name)),
                "sha256": hashlib.sha256(self.content(name)).hexdigest(),
            }
            for name in names
        ]
        manifest = {"digest": DIGEST, "status": "complete", "outputs": described, **more}
        self.files.append(("run-manifest.json", json.dumps(manifest).encode()))

    def record(
        self, folder: Path, *declared: str, slug: str = "some-kernel", **identity: str
    ) -> RunFolder:
        """The run folder after the push; `identity` is its push_id."""
        folder.mkdir(parents=True)
        made = {"slug": slug, "digest": DIGEST, **identity}
        address = {"owner": "ann", "version": 2, "url": "u", "endpoint": self.endpoint}
        (folder / "push.json").write_text(json.dumps({**address, **made}))
        bundle = {**made, "outputs": list(declared)}
        (folder / "bundle.json").write_text(json.dumps(bundle))
        return RunFolder(folder)


class Handler(BaseHTTPRequestHandler):
    server: Shelf
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        method = self.path.rpartition("/")[2]
        self.server.calls.append(method)
        if method == "GetKernelSessionStatus":
            failure = {"failureMessage": self.server.failure} if self.server.failure else {}
            self.say(200, json.dumps({"status": self.server.state, **failure}).encode())
        else:
            self.say(200, json.dumps(self.page(method, asked)).encode())

    def page(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        shelf = self.server
        start, size = int(asked.get("pageToken", 0)), min(asked.get("pageSize", 20), 200)
        shown = list(enumerate(shelf.files))[start : start + size]
        more = {"nextPageToken": str(start + size)} if start + size < len(shelf.files) else {}
        if method == "ListKernelFiles":
            # As in Kaggle's responses, fields with default values are left out.
            sized = [(n, {"size": len(c)} if shelf.sizes and c else {}) for _, (n, c) in shown]
            return {"files": [{"name": name, **size} for name, size in sized], **more}
        if start == 0 and shelf.expires:
            shelf.generation += 1
        address = f"{shelf.endpoint}/file?of={shelf.generation}&n="
        listed = [{"fileName": name, "url": f"{address}{n}"} for n, (name, _) in shown]
        return {"log": shelf.log, "files": listed, **more}

    def do_GET(self) -> None:
        shelf = self.server
        query = parse_qs(urlsplit(self.path).query)
        name, content = shelf.files[int(query["n"][0])]
        with suppress(BrokenPipeError, ConnectionResetError):
            if shelf.expires and int(query["of"][0]) < 2:
                self.say(403, b"<Error>expired</Error>")
                return
            if shelf.instead.get(name):
                answer = shelf.instead[name].pop(0)
                self.say(*((answer, HTML) if isinstance(answer, int) else (200, answer)))
                return
            shelf.fetched.append(name)
            self.send_content(content)

    def send_content(self, content: bytes) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:9]}"'
        start = 0
        if self.headers.get("If-Range") == tag:
            self.server.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        part = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for header in (("ETag", tag), ("Content-Length", str(len(content) - start))):
            self.send_header(*header)
        if start:
            self.send_header("Content-Range", part)
        self.end_headers()
        for at in range(start, len(content), 1 << 16):
            self.wfile.write(content[at : at + (1 << 16)])
            time.sleep(self.server.block_seconds)

    def say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.002)
    server = Shelf()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def kaggle(shelf: Shelf) -> Kaggle:
    return Kaggle(
        Credentials("ann", "the test", key="k"), shelf.endpoint, timeouts=Timeouts(retry=0)
    )


def downloaded_files(folder: Path) -> dict[str, bytes]:
    """The files that a pull has downloaded, without kernelkit's own."""
    own = {"bundle.json", "push.json", "run.json", "run-manifest.json", "some-kernel.log"}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {n: p.read_bytes() for n, p in found.items() if p.is_file() and n not in own}


def zipped(**members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without a time: the same bytes again
    return stream.getvalue()


def test_thousands_of_files_are_downloaded_quickly(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [(f"part{n % 7}/{n}.txt", str(n).encode() * (n % 3)) for n in range(1000)]
    shelf.declare("part0/0.txt")
    record = shelf.record(tmp_path / "v2", "part0/0.txt")
    heard: list[object] = []
    started = time.monotonic()
    pulled = pull_run(kaggle, record, on_event=heard.append)
    assert time.monotonic() - started < 60
    assert pulled.verdict.problems == ()
    assert downloaded_files(record.path) == dict(shelf.files[:-1])
    assert shelf.calls.count("ListKernelSessionOutput") == 6
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert (last.files, last.of) == (1000, 1000)
    assert last.received == last.size == sum(len(content) for _, content in shelf.files[:-1])
    assert record.is_complete()
    assert not (record.path / ".partial").exists()


HOSTILE = {
    "../out": "leads out",
    "a/../../out": "leads out",
    "/etc/out": "relative",
    "C:\\out": "relative",
    "c:out": "relative",
    "a\\..\\out": "relative",
    "": "empty",
    "./": "empty",
    "nul": "device",
    "sub/COM1.txt": "device",
    "aux .md": "device",
    "dot.": "dot or a space",
    "space /x": "dot or a space",
    "line\nbreak": "control",
    "bell\a": "control",
    "null\0": "control",
    "x" * 256: "longer than 255",
    "é" * 128: "longer than 255",
    "/".join(["deep" * 20] * 20): "too long",
    "bundle.json": "uses this name",
    "./run.json": "uses this name",
    "push.json/": "uses this name",
    "BUNDLE.json": "uses this name",
    "run.json/x": "uses this name",
    "run.json.partial": "uses this name",
    "Some-Kernel.log": "uses this name",
    ".partial/x": "uses this name",
    "good.unpacked/x": "uses this name",
    "GOOD.zip": "'good.zip' has this path",
    "good.zip/x": "'good.zip' is a file",
    "sub": "is a folder of 'sub/fine.txt'",
    "cafe\N{COMBINING ACUTE ACCENT}": "has this path",
    "link/x": "is a link",
    "linked.txt": "is a link",
    "folder": "is a folder",
    "\ud800": "not valid text",
}


def test_no_file_name_escapes_the_folder_or_overwrites_another_file(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    fine = ["good.zip", "sub/fine.txt", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 255]
    fine += [".hidden", "a b/c:d", "out.partial", "console.txt", "…/sub"]
    shelf.files = [(name, zipped(a="b")) for name in [*fine, *HOSTILE]]
    shelf.declare("good.zip")
    record = shelf.record(tmp_path / "deep" / "v2", "good.zip")
    (tmp_path / "elsewhere").mkdir()
    (record.path / "link").symlink_to(tmp_path / "elsewhere")
    (record.path / "linked.txt").symlink_to(tmp_path / "elsewhere" / "linked.txt")
    (record.path / "folder").mkdir()
    before = (record.path / "bundle.json").read_bytes()
    reported: list[object] = []
    pulled = pull_run(kaggle, record, on_event=reported.append)
    assert pulled.verdict.problems == ()
    assert downloaded_files(record.path) == dict.fromkeys(fine, zipped(a="b"))
    assert (record.path / "bundle.json").read_bytes() == before
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "elsewhere"}
    left_behind = json.loads((record.path / "run.json").read_text())["left_behind"]
    assert len(left_behind) == len(HOSTILE)
    for name, reason in HOSTILE.items():
        printable = name.encode("utf-8", "backslashreplace").decode()
        assert reason in left_behind[printable], name
    assert sum("left on Kaggle" in str(event) for event in reported) == len(HOSTILE)


def test_a_declared_output_with_a_conflicting_name_is_a_failure(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [("out.csv", b"id\n"), ("OUT.csv", b"id\n")]
    shelf.declare("out.csv", "OUT.csv")
    record = shelf.record(tmp_path / "v2", "out.csv", "OUT.csv")
    pulled = pull_run(kaggle, record)
    (problem,) = pulled.verdict.problems
    assert "OUT.csv: 'out.csv' has this path" in problem
    assert not record.is_complete()


@pytest.mark.parametrize("name", ["out.csv", "run-manifest.json", "other.bin"])
@pytest.mark.parametrize("answer", [HTML, 404, 500])
def test_a_corrupted_download_is_repeated(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, name: str, answer: bytes | int
) -> None:
    shelf.files = [("out.csv", b"id\na\n"), ("other.bin", b"x" * 99)]
    shelf.declare("out.csv")
    shelf.instead = {name: [answer] * 2}
    record = shelf.record(tmp_path / "v2", "out.csv")
    assert pull_run(kaggle, record).verdict.verified
    assert downloaded_files(record.path) == dict(shelf.files[:2])


def test_a_file_that_stays_corrupted_is_a_failure(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [("out.csv", b"id\na\n"), ("page.bin", b"x" * 99), ("fine.bin", b"y")]
    shelf.declare("out.csv")
    shelf.instead = {"out.csv": [HTML] * 99, "page.bin": [HTML] * 99}
    record = shelf.record(tmp_path / "v2", "out.csv")
    pulled = pull_run(kaggle, record)
    (problem,) = pulled.verdict.problems
    assert "out.csv: Kaggle does not send the file of 5 B: it sends 33 B" in problem
    assert set(pulled.refused) == {"out.csv", "page.bin"}
    assert not record.is_complete()
    assert downloaded_files(record.path) == {"fine.bin": b"y"}
    shelf.instead, shelf.fetched = {}, []
    assert pull_run(kaggle, record).verdict.verified
    assert sorted(shelf.fetched) == ["out.csv", "page.bin", "run-manifest.json"]


PAGES = [
    HTML,
    b"\xef\xbb\xbf\n<!DOCTYPE html><html lang=en>",
    b"<!-- maintenance -->\n<HTML>",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    b'{"code": 403, "message": "Permission denied"}',
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", ["page.bin", "results.md", "data.csv"])
def test_a_page_is_not_kept_as_an_output_of_unknown_size(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, page: bytes, name: str
) -> None:
    shelf.sizes = False
    shelf.files = [("out.csv", b"id\na\n"), (name, b"# <html> in a text, and <Error> too")]
    shelf.declare("out.csv")
    shelf.instead = {name: [page] * 99}
    record = shelf.record(tmp_path / "v2", "out.csv")
    pulled = pull_run(kaggle, record)
    assert set(pulled.refused) == {name}
    assert "page" in pulled.refused[name]
    assert not record.is_complete()
    with pytest.raises(RefusedError, match=name):
        workflow.require_success(pulled)
    shelf.instead = {name: [page]}  # only the first time
    workflow.require_success(pull_run(kaggle, record))
    assert downloaded_files(record.path) == dict(shelf.files[:2])


def test_a_file_that_is_a_page_is_kept(shelf: Shelf, kaggle: Kaggle, tmp_path: Path) -> None:
    shelf.sizes = False
    shelf.files = [("report.html", HTML), ("notes.xml", PAGES[3]), ("one.json", b'{"code": 7}')]
    shelf.declare()
    record = shelf.record(tmp_path / "v2")
    workflow.require_success(pull_run(kaggle, record))
    assert downloaded_files(record.path) == dict(shelf.files[:3])


def test_a_failed_undeclared_output_is_not_a_success(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [("out.csv", b"id\na\n"), ("page.bin", b"x" * 99)]
    shelf.declare("out.csv")
    shelf.instead = {"page.bin": [HTML] * 99}
    record = shelf.record(tmp_path / "v2", "out.csv")
    pulled = pull_run(kaggle, record)
    assert pulled.verdict.verified
    assert not record.is_complete()
    with pytest.raises(RefusedError, match=r"page\.bin: Kaggle does not send the file of 99 B"):
        workflow.require_success(pulled)
    shelf.instead = {"page.bin": [404] * 99}
    assert "refused (404)" in pull_run(kaggle, record).refused["page.bin"]
    workflow.require_success(pull_run(kaggle, record, Selection(names=("out.csv",))))
    shelf.instead = {}
    workflow.require_success(pull_run(kaggle, record))
    assert record.is_complete()


@pytest.mark.parametrize("name", ["ckpt", "ckpt/", "ckpt/a", "ckpt/a/1.pt"])
def test_the_name_of_a_folder_selects_its_files(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, name: str
) -> None:
    shelf.files = [("ckpt/a/1.pt", b"one"), ("ckpt2/b.pt", b"two"), ("out.csv", b"id\na\n")]
    shelf.declare("ckpt/a/1.pt", "out.csv")
    record = shelf.record(tmp_path / "v2", "ckpt/", "out.csv")
    pulled = pull_run(kaggle, record, Selection(names=(name,)))
    assert [output.path for output in pulled.verdict.outputs] == ["ckpt/a/1.pt"]
    assert pulled.verdict.verified
    assert downloaded_files(record.path) == {"ckpt/a/1.pt": b"one"}


def test_the_manifest_takes_precedence_over_the_listing(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [("out.csv", b"id\na\n")]
    shelf.declare("out.csv")
    shelf.files[0] = ("out.csv", b"id\nb\n")  # of the same size
    record = shelf.record(tmp_path / "v2", "out.csv")
    assert "another sha256" in pull_run(kaggle, record).verdict.problems[0]
    assert downloaded_files(record.path) == {}


def test_expired_addresses_are_refreshed_with_one_listing(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [(f"{n}.bin", b"x" * n) for n in range(1, 30)]
    shelf.declare("1.bin")
    shelf.expires = True
    record = shelf.record(tmp_path / "v2", "1.bin")
    assert pull_run(kaggle, record).verdict.verified
    assert len(downloaded_files(record.path)) == 29
    assert shelf.calls.count("ListKernelSessionOutput") == 2


def test_files_without_sizes_are_downloaded(shelf: Shelf, kaggle: Kaggle, tmp_path: Path) -> None:
    shelf.files = [("out.csv", b"id\n"), ("empty", b"")]
    shelf.declare("out.csv")
    shelf.sizes = False
    record = shelf.record(tmp_path / "v2", "out.csv")
    assert pull_run(kaggle, record).verdict.verified
    assert downloaded_files(record.path) == dict(shelf.files[:2])


def test_selected_files_are_downloaded(shelf: Shelf, kaggle: Kaggle, tmp_path: Path) -> None:
    shelf.files = [("out.csv", b"id\n"), ("m.zip", zipped(a="b")), ("m/a", b"b"), ("n/a", b"b")]
    shelf.declare("out.csv", "m.zip")
    record = shelf.record(tmp_path / "v2", "out.csv", "m.zip")
    pulled = pull_run(kaggle, record, Selection(names=("out.csv",)))
    assert (pulled.verdict.verified, pulled.partial) == (True, True)
    assert [output.path for output in pulled.verdict.outputs] == ["out.csv"]
    assert set(downloaded_files(record.path)) == {"out.csv"}
    pull_run(kaggle, record, Selection(patterns=("m*",)))
    assert set(downloaded_files(record.path)) == {"out.csv", "m.zip", "m/a"}
    with pytest.raises(ConfigError, match=r"no ou\.csv") as caught:
        pull_run(kaggle, record, Selection(names=("ou.csv",)))
    assert "out.csv" in caught.value.next_step
    with pytest.raises(ConfigError, match=r"no \*\.md"):
        pull_run(kaggle, record, Selection(patterns=("*.md",)))
    assert not record.is_complete()
    shelf.fetched = []
    assert pull_run(kaggle, record).verdict.verified
    assert sorted(shelf.fetched) == ["n/a", "run-manifest.json"]
    assert record.is_complete()


def test_problems_of_selected_files_are_reported(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [("out.csv", b"id\n"), ("m.zip", b"no zip")]
    shelf.declare("out.csv", "m.zip")
    record = shelf.record(tmp_path / "v2", "out.csv", "m.zip", "gone.md")
    assert pull_run(kaggle, record, Selection(names=("out.csv",))).verdict.verified
    wrong = pull_run(kaggle, record, Selection(names=("m.zip",))).verdict.problems
    assert [problem.split(":")[0] for problem in wrong] == ["m.zip"]
    gone = pull_run(kaggle, record, Selection(names=("gone.md",))).verdict.problems
    assert gone == ("gone.md: not in the manifest",)


def test_a_failed_run_is_pulled_too(shelf: Shelf, kaggle: Kaggle, tmp_path: Path) -> None:
    shelf.files = [("half.bin", b"x")]
    shelf.declare(status="failed", error="RuntimeError: no")
    shelf.state = "ERROR"
    record = shelf.record(tmp_path / "v2", "out.csv")
    pulled = pull_run(kaggle, record)
    assert pulled.verdict.run_error == "RuntimeError: no"
    assert downloaded_files(record.path) == {"half.bin": b"x"}
    assert record.is_complete()


@pytest.mark.parametrize("state", ["CANCEL_ACKNOWLEDGED", "ERROR"])
def test_a_run_without_outputs_is_pulled(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, state: str
) -> None:
    shelf.state = state
    record = shelf.record(tmp_path / "v2", "out.csv")
    pulled = pull_run(kaggle, record)
    assert pulled.verdict.problems == ("run-manifest.json: missing",)
    assert (record.is_complete(), pulled.verdict.verified) == (True, False)


@pytest.mark.parametrize("manifest", [None, b"{}", b"{", HTML, b'{"digest": "of another"}'])
def test_without_a_manifest_nothing_is_verified(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, manifest: bytes | None
) -> None:
    shelf.files = [("out.csv", b"id\n")]
    shelf.files += [("run-manifest.json", manifest)] if manifest else []
    record = shelf.record(tmp_path / "v2", "out.csv")
    pulled = pull_run(kaggle, record)
    assert pulled.verdict.problems
    assert not record.is_complete()
    assert shelf.fetched.count("run-manifest.json") == (
        download.MANIFEST_ATTEMPTS if manifest else 0
    )


def test_one_failed_file_does_not_stop_the_others(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [(f"{n}.bin", b"x" * n) for n in range(1, 20)]
    shelf.declare("1.bin")
    shelf.instead = {"3.bin": [500] * 5}
    record = shelf.record(tmp_path / "v2", "1.bin")
    with pytest.raises(UnreachableError, match=r"not all files arrived: 3\.bin") as caught:
        pull_run(kaggle, record)
    assert "continues from there. 3 B are missing" in caught.value.next_step
    assert set(downloaded_files(record.path)) == {f"{n}.bin" for n in range(1, 20)} - {"3.bin"}
    assert not record.is_complete()
    shelf.fetched = []
    assert pull_run(kaggle, record).verdict.verified
    assert shelf.fetched == ["run-manifest.json", "3.bin"]


def test_a_download_without_progress_ends_soon(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path
) -> None:
    shelf.files = [(f"{n}.bin", b"x" * n) for n in range(1, 400)]
    shelf.declare("1.bin")
    shelf.instead = {name: [503] * 99 for name, _ in shelf.files[:-1]}
    record = shelf.record(tmp_path / "v2", "1.bin")
    with pytest.raises(UnreachableError):
        pull_run(kaggle, record)
    tried = sum(99 - len(answers) for answers in shelf.instead.values())
    assert tried <= 12 * transfer.FAILURES_IN_A_ROW


def test_a_full_disk_is_reported_before_the_download(
    shelf: Shelf, kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.files = [("big.bin", b"x" * 1000)]
    shelf.declare("big.bin")
    record = shelf.record(tmp_path / "v2", "big.bin")
    monkeypatch.setattr(download, "SPARE_BYTES", 1 << 60)
    with pytest.raises(LocalError, match="are free") as caught:
        pull_run(kaggle, record)
    assert "Make room for" in caught.value.next_step
    assert shelf.fetched == []
    monkeypatch.undo()
    assert pull_run(kaggle, record).verdict.verified


@pytest.fixture
def project(shelf: Shelf, plain: Path) -> Path:
    """A project with one run whose outputs take some seconds to download."""
    shelf.files = [(f"{n}.bin", os.urandom(3 << 20)) for n in range(3)]
    shelf.files.insert(0, ("table.csv", b"id\na\n"))
    shelf.files.insert(1, ("letters.zip", zipped(a="b")))
    shelf.declare("table.csv", "letters.zip")
    shelf.record(folder_of(plain), "table.csv", "letters.zip", slug="plain-parcel")
    shelf.block_seconds = 0.05
    return plain


def folder_of(project: Path) -> Path:
    return project / "runs" / "plain-parcel" / "v2"


def start(project: Path, shelf: Shelf, largest: int | None = None) -> subprocess.Popen[str]:
    """A pull in a separate process; `largest` stops a write like a full disk does."""

    def prepare() -> None:
        # A shell's background jobs ignore Ctrl-C; those of a terminal do not.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "pull", "v2"],
        cwd=project,
        env={**os.environ, "KERNELKIT_ENDPOINT": shelf.endpoint},
        preexec_fn=prepare,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_partials(project: Path, goes_on: Callable[[], bool]) -> None:
    """Wait until every large file is partly downloaded and none completely."""
    while goes_on():
        sizes = [path.stat().st_size for path in (folder_of(project) / ".partial").glob("*")]
        if sum(size > 1 << 19 for size in sizes) == 3:
            return
        time.sleep(0.05)
    raise AssertionError("it has ended")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_is_resumed(
    shelf: Shelf, kaggle: Kaggle, project: Path, number: signal.Signals
) -> None:
    pulling = start(project, shelf)
    wait_for_partials(project, lambda: pulling.poll() is None)
    pulling.send_signal(number)
    started = time.monotonic()
    said, _ = pulling.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert pulling.returncode == (130 if number == signal.SIGINT else -9), said
    record = RunFolder(folder_of(project))
    assert set(downloaded_files(record.path)) >= {"table.csv", "letters.zip"}
    assert not list(record.path.glob("*.bin"))
    assert not record.is_complete()
    assert any(".partial" in name for name in verify(record.path).undeclared)
    shelf.block_seconds, shelf.fetched = 0, []
    reported: list[object] = []
    assert pull_run(kaggle, record, on_event=reported.append).verdict.verified
    assert "0.bin" in [event.name for event in reported if isinstance(event, Progress)]
    assert len(shelf.ranges) == 3
    assert {"table.csv", "letters.zip"}.isdisjoint(shelf.fetched)
    for name, content in shelf.files:
        assert (record.path / name).read_bytes() == content
    assert record.is_complete()


def test_a_disk_that_fills_exits_with_10_and_the_pull_can_be_resumed(
    shelf: Shelf, kaggle: Kaggle, project: Path
) -> None:
    shelf.block_seconds = 0
    said, _ = (pulling := start(project, shelf, largest=1 << 20)).communicate(timeout=60)
    assert pulling.returncode == 10, said
    assert "MB are still missing" in said
    record = RunFolder(folder_of(project))
    assert not list(record.path.glob("*.bin"))
    assert not record.is_complete()
    assert pull_run(kaggle, record).verdict.verified
    assert shelf.ranges
    assert all((record.path / name).read_bytes() == content for name, content in shelf.files)


def test_two_pulls_of_the_same_version_take_turns(
    shelf: Shelf, kaggle: Kaggle, project: Path
) -> None:
    record, reported = RunFolder(folder_of(project)), [[], []]
    verdicts: list[bool] = []

    def pull(number: int) -> None:
        pulled = pull_run(kaggle, record, on_event=reported[number].append)
        verdicts.append(pulled.verdict.verified)

    threads = [threading.Thread(target=pull, args=(number,)) for number in range(2)]
    threads[0].start()
    wait_for_partials(project, threads[0].is_alive)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert verdicts == [True, True]
    assert "waiting for another pull" in reported[1][0]
    assert "is complete already" in reported[1][1]
    assert sorted(shelf.fetched) == sorted(name for name, _ in shelf.files)


def test_the_pull_command_downloads_selects_and_unpacks(
    shelf: Shelf, project: Path, cli: Cli
) -> None:
    shelf.block_seconds = 0
    here: dict[str, Any] = {"cwd": project, "env": {"KERNELKIT_ENDPOINT": shelf.endpoint}}
    reported = cli("pull", "v2", "--file", "tabel.csv", expect=2, **here)
    assert "Did you mean one of: table.csv" in reported.stderr
    reported = cli(
        "pull", "v2", "--file", "table.csv", "--only", "*.zip", "--unpack", "--json", **here
    )
    details = json.loads(reported.stdout)
    assert (details["verified"], details["partial"]) == (True, True)
    folder = folder_of(project)
    assert (folder / "letters.unpacked" / "a").read_text() == "b"
    assert not (folder / "0.bin").exists()
    shelf.files.append(("../evil", b"x"))
    details = json.loads(cli("pull", "v2", "--unpack", "--json", **here).stdout)
    assert details["undeclared"] == ["0.bin", "1.bin", "2.bin"]
    assert list(details["left_behind"]) == ["../evil"]
