"""A local server with scripted responses, and a client that is connected to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, Timeouts


class Script:
    """The server's responses, one per request (the last one repeats), and its requests."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str, bytes]] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    def say(self, body: object, code: int = 200, kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.append((code, kind, content))

    def redirect(self, address: str) -> None:
        self.answers.append((302, address, b""))

    def hang_up(self) -> None:
        """Read the request, then close without a response."""
        self.answers.append((0, "", b""))


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def kaggle(script: Script) -> Iterator[Kaggle]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.requests.append((self.path, dict(self.headers), body))
            last = len(script.answers) == 1
            code, kind, content = script.answers[0] if last else script.answers.pop(0)
            if not code:
                self.close_connection = True
                return
            self.send_response(code)
            self.send_header("Location" if code == 302 else "Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield Kaggle(Credentials("ann", "the test", key="k"), address, timeouts=Timeouts(retry=0))
    server.shutdown()
    server.server_close()
