"""The one hook of the local Kaggle: a class that can act around requests and runs.

    python -m kernelkit.emulator --plugin MODULE:CLASS

The class is a subclass of `EmulatorPlugin`. The tests use it to inject faults (`tests/chaos`) and
to replay notebook runs; the emulator itself does neither.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import ClassVar

from kernelkit.emulator.responses import Reply
from kernelkit.emulator.runner import EmulatedSession, Isolation
from kernelkit.emulator.server import ApiCall, EmulatorServer, HttpRequest
from kernelkit.emulator.state import KernelVersion


class PluginError(Exception):
    """A plugin cannot be loaded or rejects its options; the message says why."""


class EmulatorPlugin:
    """Changes nothing. Override what should be different.

    Requests are served in parallel threads, and so are runs.
    """

    server_class: ClassVar[type[EmulatorServer]] = EmulatorServer
    """The server to use. A subclass can refuse or cut connections."""

    def __init__(self, options: argparse.Namespace, server: EmulatorServer) -> None:
        """`server` has its port, but nothing to serve yet."""
        self.options = options
        self.server = server

    def configure(self) -> None:
        """Called once, before the first request: `server` has its services and calls.

        Raises PluginError for options that cannot work.
        """

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the plugin's own options to the emulator's command line."""

    def control(self, request: HttpRequest) -> Reply | None:  # noqa: ARG002
        """Answer a request to /emulator/…, which Kaggle does not have; None if it is unknown."""
        return None

    def respond(self, call: ApiCall, proceed: Callable[[ApiCall], Reply]) -> Reply:
        """Answer a request. `proceed` carries it out and returns the true response.

        May change the call, the response or both, wait, skip `proceed`, force the end of a run
        (`self.server.runner.force_end`), or raise ConnectionDropped. The body of the response
        decides how its bytes are sent (`responses.Body`).
        """
        return proceed(call)

    def new_session(
        self, version: KernelVersion, isolation: Isolation, limit: float
    ) -> EmulatedSession:
        """The run of a version that was just pushed. A subclass can run it in another way."""
        return EmulatedSession(version, isolation, limit)


def load_plugin(name: str) -> type[EmulatorPlugin]:
    """The class that MODULE:CLASS names. Raises PluginError."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise PluginError(f"{name!r} is not MODULE:CLASS")
    try:
        plugin = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise PluginError(f"{module} cannot be imported: {error}") from error
    if not isinstance(plugin, type) or not issubclass(plugin, EmulatorPlugin):
        raise PluginError(f"{name} is not a subclass of kernelkit.emulator.plugin.EmulatorPlugin")
    return plugin
