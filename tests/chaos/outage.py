"""A server that can go down for a while and come back on the same port."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelkit.emulator.server import EmulatorServer


@dataclass(frozen=True)
class Outage:
    """A time in which the server refuses every connection."""

    seconds: float
    started: threading.Event = field(default_factory=threading.Event)


class UnstableServer(EmulatorServer):
    """Remembers its connections, so that an outage can cut them. Runs go on meanwhile."""

    def __init__(self, port: int, folder: Path, verbose: bool) -> None:
        self._connections: set[socket.socket] = set()
        self._outage: Outage | None = None
        self._outage_lock = threading.Lock()
        self._closed = threading.Event()
        super().__init__(port, folder, verbose)

    def serve(self) -> None:
        """Serve until `shutdown`, through any number of outages."""
        while True:
            super().serve()
            outage = self._outage
            if outage is None:
                return
            self.socket.close()
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()  # keeps the port; connections are refused until it listens again
            # Only now: a client that was cut off must find the port closed.
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            outage.started.set()
            if self._closed.wait(outage.seconds):
                return
            self._outage = None
            self.server_activate()

    def go_down(self, seconds: float) -> None:
        """Start an outage, or join the current one. Returns once connections are refused."""
        with self._outage_lock:
            first, outage = self._outage is None, self._outage or Outage(seconds)
            self._outage = outage
        if first:
            self.shutdown()
        outage.started.wait()

    def server_close(self) -> None:
        self._closed.set()
        super().server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)
