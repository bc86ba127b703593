"""The wire: HTTP/1.1 on loopback, the log stream and downloads.

Calls come as `POST /api/v1/{service}/{Method}` or, from a client that takes this server for its
http_proxy, with the whole address in the request line (`POST http://localhost/api/v1/…`). Errors
are `{"code", "message"}`. The standard library's server, bare, because later the local Kaggle is
to fail as networks do: cut bodies, wrong lengths, resets.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import sys
import time
import traceback
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from kernelkit.emulator.api import Api, Fields, Json, Reply
from kernelkit.emulator.contest import Contest
from kernelkit.emulator.state import Kaggle, OutputFile, Refusal, Version
from kernelkit.emulator.uploads import Uploads

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request; a source of 1 MB, escaped at its worst, is 6 MB."""
IDLE = 120.0
"""Seconds a kept connection may be silent."""
KEEP_ALIVE = 15.0
"""Seconds of a silent log after which a comment shows whether the client is still there."""
BLOCK = 256 * 1024
"""Bytes read and sent at once in a download."""


@dataclass(frozen=True)
class Request:
    """What is left of a request once its line and body are read."""

    path: str
    query: dict[str, str]
    body: bytes


class Server(ThreadingHTTPServer):
    """The listening socket. What it serves is set once the port, and so the endpoint, is known."""

    daemon_threads = True
    block_on_close = False  # a log stream may last for hours
    request_queue_size = 128

    def __init__(self, port: int, kaggle: Kaggle, verbose: bool) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.kaggle = kaggle
        self.verbose = verbose
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.api: Api
        self.contest: Contest
        self.uploads: Uploads

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business; anything else is a bug of ours."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "LocalKaggle"
    timeout = IDLE
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a call otherwise

    def do_POST(self) -> None:
        """A call."""
        self._answer(self._post)

    def do_GET(self) -> None:
        """A log stream or a download."""
        self._answer(self._get)

    def do_PUT(self) -> None:
        """An upload."""
        self._answer(self._put)

    def do_HEAD(self) -> None:
        """A download's headers."""
        self._answer(self._get)

    def send_error(self, code: int, message: str | None = None, _: str | None = None) -> None:
        """The base class's complaints about a request (bad line, unknown method), as JSON too."""
        self.close_connection = True
        self.request_version = self.protocol_version  # an unreadable line counts as HTTP/0.9
        self._send(_error(code, message or "Bad request"))

    def log_message(self, format: str, *args: Any) -> None:
        """The access log; silent unless --verbose."""
        if self.server.verbose:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {format % args}\n")

    def _answer(self, serve: Callable[[Request], Reply | None]) -> None:
        """Read the whole request, serve it, and turn whatever goes wrong into Kaggle's JSON."""
        self._begun = False
        try:
            reply = serve(self._request())
        except Refusal as refusal:
            reply = _error(refusal.code, str(refusal))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as bug:
            traceback.print_exc()
            if self._begun:
                self.close_connection = True
                return
            reply = _error(500, f"{type(bug).__name__}: {bug}")
        if reply is not None:
            self._send(reply)

    def _request(self) -> Request:
        """Path, query and body; an address of another host is refused, for this is no proxy."""
        body = b"" if self.command == "PUT" else self._body()  # an upload is too large to hold
        try:
            parts = urllib.parse.urlsplit(self.path)
        except ValueError:
            raise Refusal(400, "Bad request") from None
        if parts.netloc and parts.hostname not in ("localhost", "127.0.0.1"):
            raise Refusal(421, f"This is a local Kaggle, no way to {parts.hostname}")
        return Request(parts.path, dict(urllib.parse.parse_qsl(parts.query)), body)

    def _body(self) -> bytes:
        """The request's body, bounded; one without a known end ends the connection."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,12}", length):
            self.close_connection = True
            raise Refusal(411, "A valid Content-Length is required")
        if int(length) > MAX_BODY:
            self._skip(int(length))
            raise Refusal(413, "The request is too large")
        return self.rfile.read(int(length))

    def _skip(self, length: int) -> None:
        """Read and forget: a client that is still sending would not see the answer."""
        while length > 0 and (block := self.rfile.read(min(BLOCK, length))):
            length -= len(block)

    def _account(self) -> str:
        return self.server.api.account(self.headers.get("Authorization", ""))

    def _post(self, request: Request) -> Reply:
        name = request.path.removeprefix("/api/v1/")
        call = self.server.api.calls.get(name)
        # Asked at `import kaggle`, when the client may not yet be signed in [V].
        account = "" if name.endswith("/IntrospectToken") else self._account()
        if call is None or name == request.path:
            raise Refusal(501, f"unimplemented: {name}")
        answer = call(account, Fields(_json_object(request.body)))
        return answer if isinstance(answer, Reply) else _json(200, answer)

    def _get(self, request: Request) -> Reply | None:
        kind, _, rest = request.path.lstrip("/").partition("/")
        if kind == "download":
            return self._download(rest)
        stream = re.fullmatch(r"/api/v1/kernels/logs/stream/([^/]+)/([^/]+)", request.path)
        if stream is None or self.command == "HEAD":
            raise Refusal(501, f"unimplemented: {self.command} {request.path}")
        label = request.query.get("versionLabel", "")
        owner, slug = map(urllib.parse.unquote, stream.groups())
        version = self.server.kaggle.find(self._account(), owner, slug, label)[1]
        if version.status.over:
            return _json(200, list(version.log))
        self._stream_log(version)
        return None

    def _put(self, request: Request) -> Reply:
        """A file's bytes, or the question how many of them have arrived."""
        kind, _, key = request.path.lstrip("/").partition("/")
        body, length = self._upload_body()
        try:
            if kind != "upload":
                raise Refusal(501, f"unimplemented: PUT {request.path}")
            wanted = self.headers.get("Content-Range", "")
            received = self.server.uploads.receive(key, wanted, body, length)
        except Refusal:
            self._skip(length)
            raise
        some = received.code == 308 and received.size
        return Reply(
            received.code, headers={"Range": f"bytes=0-{received.size - 1}"} if some else {}
        )

    def _upload_body(self) -> tuple[BufferedIOBase, int]:
        """The body and its length. Clients send an empty file in chunks: there is none to read."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            if self.rfile.read(5) == b"0\r\n\r\n":
                return self.rfile, 0
            self.close_connection = True
            raise Refusal(411, "A valid Content-Length is required")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length):
            self.close_connection = True
            raise Refusal(411, "A valid Content-Length is required")
        return self.rfile, int(length)

    def _stream_log(self, version: Version) -> None:
        """Server-sent events from the first entry on, until the run's end."""
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        seen, over = 0, False
        while not over:
            entries, over = self.server.kaggle.wait_log(version, seen, KEEP_ALIVE)
            seen += len(entries)
            events = "".join(f"data: {json.dumps(entry)}\n\n" for entry in entries)
            self._chunk(events or ("" if over else ": still running\n\n"))
        self._chunk("data: END_OF_LOG\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        if text:  # an empty chunk would end the body
            data = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _download(self, rest: str) -> Reply | None:
        """A file, or the part of it that Range asks for. The address is its own permission."""
        key, _, quoted = rest.partition("/")
        name = os.fsdecode(urllib.parse.unquote_to_bytes(quoted))
        found = self.server.kaggle.download(key, name) or self.server.contest.download(key, name)
        if found is None:
            raise Refusal(404, "Not found")
        path, output = found
        headers = _file_headers(output)
        wanted = self._range(output.size, headers)
        if wanted is None:
            self._send_file(path, 200, headers, 0, output.size)
            return None
        first, last = wanted
        if first > last:
            return Reply(416, headers={"Content-Range": f"bytes */{output.size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{output.size}"
        self._send_file(path, 206, headers, first, last + 1 - first)
        return None

    def _range(self, size: int, headers: dict[str, str]) -> tuple[int, int] | None:
        """First and last byte (inclusive); first > last if there are none; None for the whole.

        Only one range is understood; others, and those of another state of the file (If-Range),
        are answered with the whole, as HTTP allows.
        """
        match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, headers["ETag"], headers["Last-Modified"])
        if match is None or not same or match.groups() == ("", ""):
            return None
        begin, end = match.groups()
        if not begin:
            return max(0, size - int(end)), size - 1
        return int(begin), min(int(end), size - 1) if end else size - 1

    def _send_file(
        self, path: Path, code: int, headers: dict[str, str], start: int, length: int
    ) -> None:
        """Stream `length` bytes from `start`, in constant memory."""
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(start)
            self._head(code, headers | {"Content-Length": str(length)})
            while length and self.command != "HEAD":
                block = file.read(min(BLOCK, length))
                if not block:  # shorter than promised: only a cut connection can say so
                    self.close_connection = True
                    return
                self.wfile.write(block)
                length -= len(block)

    def _send(self, reply: Reply) -> None:
        self._head(reply.code, reply.headers | {"Content-Length": str(len(reply.body))})
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self._begun = True
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _file_headers(output: OutputFile) -> dict[str, str]:
    state = hashlib.sha256(f"{output.size}:{output.modified}:".encode() + os.fsencode(output.name))
    return {
        "Content-Type": "application/octet-stream",
        "Last-Modified": email.utils.formatdate(output.modified, usegmt=True),
        "ETag": f'"{state.hexdigest()[:32]}"',
        "Accept-Ranges": "bytes",
    }


def _json_object(body: bytes) -> Json:
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refusal(400, "The request is not valid JSON") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "The request is not a JSON object")
    return fields


def _json(code: int, value: Any) -> Reply:
    return Reply(code, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _error(code: int, message: str) -> Reply:
    return _json(code, {"code": code, "message": message})
