"""The wire: HTTP/1.1 on loopback, the log stream and downloads.

Calls come as `POST /api/v1/{service}/{Method}` or, from a client that takes this server for its
http_proxy, with the whole address in the request line (`POST http://localhost/api/v1/…`). Errors
are `{"code", "message"}`. The standard library's server, bare, because the local Kaggle can fail as
networks do: cut bodies, wrong lengths, resets (`faults`). `/emulator/…` is no part of Kaggle: there
faults are set and the journal is read.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

from kernelkit.emulator.api import Api, Fields, Json, Reply
from kernelkit.emulator.contest import Contest
from kernelkit.emulator.delivery import BLOCK, Lost, Part
from kernelkit.emulator.faults import BadFault, Call, House, Instead, Plan
from kernelkit.emulator.journal import Entry, Journal
from kernelkit.emulator.state import Kaggle, OutputFile, Refusal, Version
from kernelkit.emulator.uploads import Uploads

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request; a source of 1 MB, escaped at its worst, is 6 MB."""
IDLE = 120.0
"""Seconds a kept connection may be silent."""
KEEP_ALIVE = 15.0
"""Seconds of a silent log after which a comment shows whether the client is still there."""
POLL = 0.05
"""Seconds until a serving thread notices that it is to stop."""
UNSIGNED = ("IntrospectToken", "GenerateAccessToken")
"""Asked at `import kaggle`, when the client may not yet be signed in [V]."""
LINGER_NONE = struct.pack("ii", 1, 0)
"""A socket so closed is reset at once."""


@dataclass(frozen=True)
class Request:
    """What is left of a request once its line and body are read."""

    path: str
    query: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Death:
    """A while in which the server refuses every connection."""

    seconds: float
    begun: threading.Event = field(default_factory=threading.Event)


class Server(ThreadingHTTPServer):
    """The listening socket. What it serves is set once the port, and so the endpoint, is known."""

    daemon_threads = True
    block_on_close = False  # a log stream may last for hours
    request_queue_size = 128

    def __init__(self, port: int, kaggle: Kaggle, verbose: bool) -> None:
        self._connections: set[socket.socket] = set()
        self._death: Death | None = None
        self._dying = threading.Lock()
        self._closed = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        self.kaggle = kaggle
        self.verbose = verbose
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.api: Api
        self.contest: Contest
        self.uploads: Uploads
        self.house: House
        self.plan: Plan
        self.journal: Journal

    def serve(self) -> None:
        """Serve until `shutdown`, through any number of deaths."""
        while True:
            self.serve_forever(POLL)
            death = self._death
            if death is None:
                return
            self.socket.close()
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()  # the port stays ours, and refuses until somebody listens
            # Only now: whoever comes back because it was cut must find the port closed.
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            death.begun.set()
            if self._closed.wait(death.seconds):
                return
            self._death = None
            self.server_activate()

    def die(self, seconds: float) -> None:
        """Refuse new connections for a while and cut all others; `serve` then comes back.

        Returns once both are so. Whoever asks for it meanwhile shares the same death.
        """
        with self._dying:
            first, death = self._death is None, self._death or Death(seconds)
            self._death = death
        if first:
            self.shutdown()
        death.begun.wait()

    def server_close(self) -> None:
        """Stop for good."""
        self._closed.set()
        super().server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection while it lasts."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget it."""
        self._connections.discard(request)
        super().shutdown_request(request)

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
        self._answer()

    def do_GET(self) -> None:
        """A log stream or a download."""
        self._answer()

    def do_PUT(self) -> None:
        """An upload."""
        self._answer()

    def do_HEAD(self) -> None:
        """A download's headers."""
        self._answer()

    def do_DELETE(self) -> None:
        """The end of all faults."""
        if self.path.startswith("/emulator/"):
            self._answer()
        else:
            self.send_error(501, f"Unsupported method ({self.command!r})")

    def send_error(self, code: int, message: str | None = None, _: str | None = None) -> None:
        """The base class's complaints about a request (bad line, unknown method), as JSON too."""
        self.close_connection = True
        self.request_version = self.protocol_version  # an unreadable line counts as HTTP/0.9
        self._send(_error(code, message or "Bad request"))

    def log_message(self, format: str, *args: Any) -> None:
        """The access log; silent unless --verbose."""
        if self.server.verbose:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {format % args}\n")

    def _answer(self) -> None:
        """Read the whole request, serve it, and turn whatever goes wrong into Kaggle's JSON."""
        self._code: int | None = None
        try:
            try:
                self._serve(self._request())
            except Refusal as refusal:
                self._send(_error(refusal.code, str(refusal)))
        except Lost as lost:
            self._hang_up(lost.reset)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as bug:
            traceback.print_exc()
            if self._code is not None:
                self.close_connection = True
            else:
                self._send(_error(500, f"{type(bug).__name__}: {bug}"))

    def _serve(self, request: Request) -> None:
        """Answer; what was asked and what comes of it is written down first, and can be read."""
        if request.path.startswith("/emulator/"):
            self._send(self._control(request))
            return
        with self.server.journal.entry() as entry:
            try:
                reply = self._reply(request, entry)
            except Refusal as refusal:
                reply = _error(refusal.code, str(refusal))
            entry.code = reply.code
        self._send(reply)

    def _reply(self, request: Request, entry: Entry) -> Reply:
        """The answer, with the faults that strike this request around its effect."""
        house = self.server.house
        call = entry.call = self._identified(request)
        faults = self.server.plan.strike(call, house)
        entry.faults = [fault.name for fault in faults]
        try:
            for fault in faults:
                fault.before(call, house)
            reply = self._carried_out(call, entry)
            for fault in faults:
                reply = fault.after(call, house, reply)
        except Instead as instead:
            if self.command == "PUT":
                self._skip(self._upload_body()[1])
            return instead.reply
        if isinstance(reply.body, Iterator):
            for fault in faults:
                reply = replace(reply, body=fault.events(reply.body))
        return reply

    def _carried_out(self, call: Call, entry: Entry) -> Reply:
        """The effect and its true answer; a refusal is an answer too."""
        try:
            if call.method == "Download":
                return self._download(call)
            if call.method == "Upload":
                return self._put(call)
            if call.method == "Log":
                return self._log(call)
            answer = self.server.api.calls[call.path](call.account, Fields(call.fields))
        except Refusal as refusal:
            return _error(refusal.code, str(refusal))
        if isinstance(answer, Reply):
            return answer
        entry.happened(answer)
        return _json(200, answer)

    def _control(self, request: Request) -> Reply:
        """The faults and the journal, for whoever tests with them; no part of Kaggle."""
        plan = self.server.plan
        match self.command, request.path:
            case "POST", "/emulator/faults":
                try:
                    wanted = json.loads(request.body)
                    if not isinstance(wanted, list):
                        raise BadFault("a JSON list of faults is wanted")
                    plan.add(wanted)
                except (ValueError, RecursionError):
                    raise Refusal(400, "The request is not valid JSON") from None
                except BadFault as error:
                    raise Refusal(400, str(error)) from None
                return _json(200, {})
            case "DELETE", "/emulator/faults":
                plan.clear()
                return _json(200, {})
            case "GET", "/emulator/journal":
                return _json(200, self.server.journal.told())
        raise Refusal(501, f"unimplemented: {self.command} {request.path}")

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

    def _account(self, optional: bool = False) -> str:
        try:
            return self.server.api.account(self.headers.get("Authorization", ""))
        except Refusal:
            if optional:
                return ""
            raise

    def _identified(self, request: Request) -> Call:
        """What is asked, by whom, about what. Raises Refusal: 401, 501, or 400 for a bad body."""
        call = Call(
            path=request.path,
            query=request.query,
            headers={name.lower(): value for name, value in self.headers.items()},
            token=self.headers.get("Authorization", ""),
        )
        if self.command == "POST":
            return self._rpc(call, request)
        if self.command == "PUT":
            account = self.server.uploads.whose(request.path.removeprefix("/upload/"))
            return replace(call, method="Upload", account=account)
        kind, _, rest = request.path.lstrip("/").partition("/")
        if kind == "download":
            account, kernel = self.server.kaggle.whose(rest.partition("/")[0])
            return replace(call, method="Download", path=rest, account=account, kernel=kernel)
        stream = re.fullmatch(r"/api/v1/kernels/logs/stream/([^/]+)/([^/]+)", request.path)
        if stream is None or self.command == "HEAD":
            raise Refusal(501, f"unimplemented: {self.command} {request.path}")
        owner, slug = map(urllib.parse.unquote, stream.groups())
        fields = {"userName": owner, "versionLabel": request.query.get("versionLabel", "")}
        fields["kernelSlug"] = slug
        return replace(call, method="Log", account=self._account(), kernel=slug, fields=fields)

    def _rpc(self, call: Call, request: Request) -> Call:
        name = request.path.removeprefix("/api/v1/")
        method = name.rpartition("/")[2]
        account = self._account(optional=method in UNSIGNED)
        if name not in self.server.api.calls or name == request.path:
            raise Refusal(501, f"unimplemented: {name}")
        fields = _json_object(request.body)
        about = fields.get("kernelSlug") or fields.get("slug") or ""
        kernel = str(about).rpartition("/")[2].lower()
        return replace(
            call, method=method, path=name, account=account, kernel=kernel, fields=fields
        )

    def _log(self, call: Call) -> Reply:
        """All of the log of a run that is over; else a stream."""
        owner, slug, label = (call.fields[n] for n in ("userName", "kernelSlug", "versionLabel"))
        version = self.server.kaggle.find(call.account, owner, slug, label)[1]
        if version.status.over:
            return _json(200, list(version.log))
        headers = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
        return Reply(200, self._events(version), headers)

    def _put(self, call: Call) -> Reply:
        """A file's bytes, or the question how many of them have arrived."""
        kind, _, key = call.path.lstrip("/").partition("/")
        body, length = self._upload_body()
        try:
            if kind != "upload":
                raise Refusal(501, f"unimplemented: PUT {call.path}")
            wanted = call.headers.get("content-range", "")
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

    def _events(self, version: Version) -> Iterator[str]:
        """Server-sent events from the first entry on, until the run's end."""
        seen, over = 0, False
        while not over:
            entries, over = self.server.kaggle.wait_log(version, seen, KEEP_ALIVE)
            seen += len(entries)
            for entry in entries:
                yield f"data: {json.dumps(entry)}\n\n"
            if not entries and not over:
                yield ": still running\n\n"
        yield "data: END_OF_LOG\n\n"

    def _download(self, call: Call) -> Reply:
        """A file, or the part of it that Range asks for. The address is its own permission."""
        key, _, quoted = call.path.partition("/")
        name = os.fsdecode(urllib.parse.unquote_to_bytes(quoted))
        found = self.server.kaggle.download(key, name) or self.server.contest.download(key, name)
        if found is None:
            raise Refusal(404, "Not found")
        path, output = found
        headers = _file_headers(output)
        wanted = _range(call.headers, output.size, headers)
        if wanted is None:
            return Reply(200, Part(path, 0, output.size), headers)
        first, last = wanted
        if first > last:
            return Reply(416, headers={"Content-Range": f"bytes */{output.size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{output.size}"
        return Reply(206, Part(path, first, last + 1 - first), headers)

    def _send(self, reply: Reply) -> None:
        body, headers, manner = reply.body, reply.headers, reply.manner
        if isinstance(body, Iterator):
            blocks = _chunks(body)
        else:
            length = body.length if isinstance(body, Part) else len(body)
            blocks = body.blocks() if isinstance(body, Part) else iter([body])
            headers = headers | {"Content-Length": str(manner.length(length))}
        self._head(reply.code, headers)
        if self.command == "HEAD":
            return
        for piece in manner.pieces(blocks):
            self.wfile.write(piece)
        if manner.told:
            self.close_connection = True  # what follows would be taken for a part of this

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self._code = code
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _hang_up(self, reset: bool) -> None:
        """Close the connection; with RST, which the base class's polite farewell would prevent."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            os.close(self.connection.detach())


def _range(asked: dict[str, str], size: int, headers: dict[str, str]) -> tuple[int, int] | None:
    """First and last byte (inclusive); first > last if there are none; None for the whole.

    Only one range is understood; others, and those of another state of the file (If-Range), are
    answered with the whole, as HTTP allows.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked.get("range", ""))
    same = asked.get("if-range") in (None, headers["ETag"], headers["Last-Modified"])
    if match is None or not same or match.groups() == ("", ""):
        return None
    begin, end = match.groups()
    if not begin:
        return max(0, size - int(end)), size - 1
    return int(begin), min(int(end), size - 1) if end else size - 1


def _chunks(stream: Iterator[str]) -> Iterator[bytes]:
    """Each string as a chunk of its own, and the end."""
    for text in stream:
        data = text.encode()
        yield b"%x\r\n%s\r\n" % (len(data), data)
    yield b"0\r\n\r\n"


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
