"""The HTTP server: calls, the log stream, downloads and uploads on loopback.

Calls arrive as `POST /api/v1/{service}/{Method}` or, from a client that uses this server as its
http_proxy, with the whole address in the request line (`POST http://localhost/api/v1/…`). Errors
are `{"code", "message"}`. It builds on the standard library's server so that a plugin can break
responses as real networks do: cut bodies, wrong lengths, resets. Addresses below `/emulator/` are
not part of Kaggle; the plugin answers them.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import socket
import struct
import sys
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelkit.emulator.downloads import Downloads
from kernelkit.emulator.fields import RequestFields
from kernelkit.emulator.responses import (
    BLOCK,
    ConnectionDropped,
    EventStream,
    FilePart,
    Reply,
    RequestRefused,
    error_reply,
    json_reply,
)
from kernelkit.emulator.runner import SessionRunner
from kernelkit.emulator.state import EmulatedKaggle, KernelVersion, StoredFile
from kernelkit.emulator.uploads import Uploads

if TYPE_CHECKING:
    from kernelkit.emulator.plugin import EmulatorPlugin

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request. A source of 1 MB can take 6 MB when every character is escaped."""
IDLE = 120.0
"""Seconds without a request after which a kept connection is closed."""
KEEP_ALIVE = 15.0
"""Seconds without a log entry after which a comment checks that the client is still connected."""
POLL = 0.05
"""Seconds until the serving thread notices that it must stop."""
UNSIGNED = ("IntrospectToken", "GenerateAccessToken")
"""Methods that `import kaggle` calls before the client is signed in [V]."""
LINGER_NONE = struct.pack("ii", 1, 0)
"""A socket closed with this option sends an RST."""

ApiMethod = Callable[[str, RequestFields], Reply]
"""A call of Kaggle: the caller's account and the fields in, a response out."""


@dataclass(frozen=True)
class HttpRequest:
    """A request whose line and body have been read."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes


@dataclass
class ApiCall:
    """An identified request. A plugin may change `fields` and `headers` before it is carried out.

    `method`: of an RPC its name (SaveKernel), else Log, Download or Upload. `path`: of a download
    what follows /download/, of an RPC service/method. `headers`: names in lower case. `kernel`: the
    slug, empty if the call is not about a kernel. `token`: the Authorization header.
    """

    method: str = ""
    account: str = ""
    token: str = ""
    kernel: str = ""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class EmulatorServer(ThreadingHTTPServer):
    """The listening socket. The services are set once the port, and so the endpoint, is known."""

    daemon_threads = True
    block_on_close = False  # a log stream may last for hours
    request_queue_size = 128

    kaggle: EmulatedKaggle
    runner: SessionRunner
    downloads: Downloads
    uploads: Uploads
    calls: dict[str, ApiMethod]
    identify_account: Callable[[str], str]
    plugin: EmulatorPlugin

    def __init__(self, port: int, folder: Path, verbose: bool) -> None:
        super().__init__(("127.0.0.1", port), RequestHandler)
        self.folder = folder
        self.verbose = verbose
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def serve(self) -> None:
        """Serve until `shutdown`."""
        self.serve_forever(POLL)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that has gone away; print the traceback of anything else."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class RequestHandler(BaseHTTPRequestHandler):
    """One connection."""

    server: EmulatorServer
    protocol_version = "HTTP/1.1"
    server_version = "LocalKaggle"
    timeout = IDLE
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a call otherwise

    def do_POST(self) -> None:
        """A call."""
        self._answer()

    def do_GET(self) -> None:
        """A log stream or a download."""
        self._answer()

    def do_PUT(self) -> None:
        """An upload."""
        self._answer()

    def do_HEAD(self) -> None:
        """The headers of a download."""
        self._answer()

    def do_DELETE(self) -> None:
        """Only the plugin's own addresses."""
        self._answer()

    def send_error(self, code: int, message: str | None = None, _: str | None = None) -> None:
        """Answer what the base class rejects (bad line, unknown method) in JSON too."""
        self.close_connection = True
        self.request_version = self.protocol_version  # an unreadable line counts as HTTP/0.9
        self._send(error_reply(code, message or "Bad request"))

    def log_message(self, format: str, *args: Any) -> None:
        """The access log; silent unless --verbose."""
        if self.server.verbose:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {format % args}\n")

    def _answer(self) -> None:
        """Read the whole request, answer it, and turn every error into Kaggle's JSON."""
        self._code: int | None = None
        self._body_unread = self.command == "PUT"
        try:
            try:
                reply = self._respond(self._request())
            except RequestRefused as refusal:
                reply = error_reply(refusal.code, str(refusal))
            self._send(reply)
        except ConnectionDropped as dropped:
            self._hang_up(dropped.reset)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            traceback.print_exc()
            if self._code is not None:
                self.close_connection = True
            else:
                self._send(error_reply(500, f"{type(error).__name__}: {error}"))

    def _respond(self, request: HttpRequest) -> Reply:
        plugin = self.server.plugin
        if request.path.startswith("/emulator/"):
            reply = plugin.control(request)
            if reply is None:
                raise RequestRefused(501, f"unimplemented: {self.command} {request.path}")
            return reply
        reply = plugin.respond(self._identify(request), self._carry_out)
        if self._body_unread:  # the plugin answered instead of the upload
            self._skip(self._upload_body()[1])
        return reply

    def _carry_out(self, call: ApiCall) -> Reply:
        """Do what the call asks for. A refusal is a response too."""
        try:
            if call.method == "Download":
                return self._download(call)
            if call.method == "Upload":
                return self._put(call)
            if call.method == "Log":
                return self._log(call)
            return self.server.calls[call.path](call.account, RequestFields(call.fields))
        except RequestRefused as refusal:
            return error_reply(refusal.code, str(refusal))

    def _request(self) -> HttpRequest:
        """Path, query and body. Other hosts are refused, because this is not a real proxy."""
        body = b"" if self.command == "PUT" else self._body()  # an upload is too large for memory
        try:
            parts = urllib.parse.urlsplit(self.path)
        except ValueError:
            raise RequestRefused(400, "Bad request") from None
        if parts.netloc and parts.hostname not in ("localhost", "127.0.0.1"):
            raise RequestRefused(421, f"This is a local Kaggle, not a proxy to {parts.hostname}")
        query = dict(urllib.parse.parse_qsl(parts.query))
        return HttpRequest(self.command, parts.path, query, body)

    def _body(self) -> bytes:
        """The body of a request, up to MAX_BODY. One without a known length ends the connection."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,12}", length):
            self.close_connection = True
            raise RequestRefused(411, "A valid Content-Length is required")
        if int(length) > MAX_BODY:
            self._skip(int(length))
            raise RequestRefused(413, "The request is too large")
        return self.rfile.read(int(length))

    def _skip(self, length: int) -> None:
        """Read and discard: a client that is still sending would not read the response."""
        while length > 0 and (block := self.rfile.read(min(BLOCK, length))):
            length -= len(block)

    def _account(self, optional: bool = False) -> str:
        try:
            return self.server.identify_account(self.headers.get("Authorization", ""))
        except RequestRefused:
            if optional:
                return ""
            raise

    def _identify(self, request: HttpRequest) -> ApiCall:
        """Who asks for what. Raises RequestRefused: 401, 501, or 400 for an invalid body."""
        call = ApiCall(
            path=request.path,
            query=request.query,
            headers={name.lower(): value for name, value in self.headers.items()},
            token=self.headers.get("Authorization", ""),
        )
        if self.command == "POST":
            return self._rpc(call, request)
        if self.command == "PUT":
            account = self.server.uploads.owner(request.path.removeprefix("/upload/"))
            return replace(call, method="Upload", account=account)
        kind, _, rest = request.path.lstrip("/").partition("/")
        if kind == "download" and self.command in ("GET", "HEAD"):
            account, kernel = self.server.kaggle.owner_of_download(rest.partition("/")[0])
            return replace(call, method="Download", path=rest, account=account, kernel=kernel)
        stream = re.fullmatch(r"/api/v1/kernels/logs/stream/([^/]+)/([^/]+)", request.path)
        if stream is None or self.command != "GET":
            raise RequestRefused(501, f"unimplemented: {self.command} {request.path}")
        owner, slug = map(urllib.parse.unquote, stream.groups())
        fields = {"userName": owner, "versionLabel": request.query.get("versionLabel", "")}
        fields["kernelSlug"] = slug
        return replace(call, method="Log", account=self._account(), kernel=slug, fields=fields)

    def _rpc(self, call: ApiCall, request: HttpRequest) -> ApiCall:
        name = request.path.removeprefix("/api/v1/")
        method = name.rpartition("/")[2]
        account = self._account(optional=method in UNSIGNED)
        if name not in self.server.calls or name == request.path:
            raise RequestRefused(501, f"unimplemented: {name}")
        fields = _json_object(request.body)
        kernel_name = fields.get("kernelSlug") or fields.get("slug") or ""
        kernel = str(kernel_name).rpartition("/")[2].lower()
        return replace(
            call, method=method, path=name, account=account, kernel=kernel, fields=fields
        )

    def _log(self, call: ApiCall) -> Reply:
        """The whole log of a run that has ended; otherwise a stream."""
        owner, slug, label = (call.fields[n] for n in ("userName", "kernelSlug", "versionLabel"))
        version = self.server.kaggle.find(call.account, owner, slug, label)[1]
        if version.status.has_ended:
            return json_reply(200, list(version.log))
        headers = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
        return Reply(200, EventStream(self._events(version)), headers)

    def _put(self, call: ApiCall) -> Reply:
        """Receive the bytes of a file, or say how many have arrived."""
        kind, _, key = call.path.lstrip("/").partition("/")
        body, length = self._upload_body()
        try:
            if kind != "upload":
                raise RequestRefused(501, f"unimplemented: PUT {call.path}")
            content_range = call.headers.get("content-range", "")
            received = self.server.uploads.receive(key, content_range, body, length)
        except RequestRefused:
            self._skip(length)
            raise
        incomplete = received.code == 308 and received.size
        return Reply(
            received.code, headers={"Range": f"bytes=0-{received.size - 1}"} if incomplete else {}
        )

    def _upload_body(self) -> tuple[BufferedIOBase, int]:
        """The body and its length. Clients send an empty file chunked, as a single final chunk."""
        self._body_unread = False
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            if self.rfile.read(5) == b"0\r\n\r\n":
                return self.rfile, 0
            self.close_connection = True
            raise RequestRefused(411, "A valid Content-Length is required")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length):
            self.close_connection = True
            raise RequestRefused(411, "A valid Content-Length is required")
        return self.rfile, int(length)

    def _events(self, version: KernelVersion) -> Iterator[str]:
        """Server-sent events from the first log entry to the end of the run."""
        seen, ended = 0, False
        while not ended:
            entries, ended = self.server.kaggle.wait_log(version, seen, KEEP_ALIVE)
            seen += len(entries)
            for entry in entries:
                yield f"data: {json.dumps(entry)}\n\n"
            if not entries and not ended:
                yield ": still running\n\n"
        yield "data: END_OF_LOG\n\n"

    def _download(self, call: ApiCall) -> Reply:
        """A file, or the part of it that Range asks for. The address needs no credentials."""
        key, _, quoted = call.path.partition("/")
        name = os.fsdecode(urllib.parse.unquote_to_bytes(quoted))
        found = self.server.kaggle.download(key, name)
        found = found or self.server.downloads.find(key, name)
        if found is None:
            raise RequestRefused(404, "Not found")
        path, file = found
        headers = _file_headers(file)
        byte_range = _range(call.headers, file.size, headers)
        if byte_range is None:
            return Reply(200, FilePart(path, 0, file.size), headers)
        first, last = byte_range
        if first > last:
            return Reply(416, headers={"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        return Reply(206, FilePart(path, first, last + 1 - first), headers)

    def _send(self, reply: Reply) -> None:
        body, headers = reply.body, reply.headers
        length = len(body) if isinstance(body, bytes) else body.length
        if length is not None:
            headers = headers | {"Content-Length": str(length)}
        self._head(reply.code, headers)
        if self.command == "HEAD":
            return
        sent = 0
        for block in [body] if isinstance(body, bytes) else body.blocks():
            self.wfile.write(block)
            sent += len(block)
        if length not in (None, sent):
            self.close_connection = True  # the client would take what follows for a part of this

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self._code = code
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _hang_up(self, reset: bool) -> None:
        """Close the connection. For an RST, bypass the orderly shutdown of the base class."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            os.close(self.connection.detach())


def _range(request: dict[str, str], size: int, headers: dict[str, str]) -> tuple[int, int] | None:
    """First and last byte (inclusive); first > last if the range is empty; None for the whole file.

    Several ranges, and a range of an earlier state of the file (If-Range), get the whole file, as
    HTTP allows.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.get("range", ""))
    same = request.get("if-range") in (None, headers["ETag"], headers["Last-Modified"])
    if match is None or not same or match.groups() == ("", ""):
        return None
    begin, end = match.groups()
    if not begin:
        return max(0, size - int(end)), size - 1
    return int(begin), min(int(end), size - 1) if end else size - 1


def _file_headers(file: StoredFile) -> dict[str, str]:
    state = hashlib.sha256(f"{file.size}:{file.modified}:".encode() + os.fsencode(file.name))
    return {
        "Content-Type": "application/octet-stream",
        "Last-Modified": email.utils.formatdate(file.modified, usegmt=True),
        "ETag": f'"{state.hexdigest()[:32]}"',
        "Accept-Ranges": "bytes",
    }


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise RequestRefused(400, "The request is not valid JSON") from None
    if not isinstance(fields, dict):
        raise RequestRefused(400, "The request is not a JSON object")
    return fields
