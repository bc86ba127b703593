"""The emulator's plugin that injects faults and keeps a journal.

    python -m kernelkit.emulator --plugin tests.chaos.plugin:FaultInjection --fault lost-after

`--fault NAME[,key=value]...` sets a fault from the start, `--help` lists them all. While the
emulator runs:

    POST /emulator/faults     a JSON list of faults, each in the same words or an object with
                              `fault` and the keys
    DELETE /emulator/faults   removes all faults
    GET /emulator/journal     all requests and their effects (see `journal`)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

from kernelkit.emulator.plugin import EmulatorPlugin, PluginError
from kernelkit.emulator.responses import EventStream, Reply, RequestRefused, json_reply
from kernelkit.emulator.server import ApiCall, EmulatorServer, HttpRequest
from tests.chaos import faults
from tests.chaos.faults import Fault, FaultContext, FaultError, FaultSchedule, ReplaceResponse
from tests.chaos.journal import Journal
from tests.chaos.outage import UnstableServer
from tests.chaos.throttle import FaultyReply


class FaultInjection(EmulatorPlugin):
    """Applies the faults that strike a request around its effect, and writes the journal."""

    server_class = UnstableServer

    def __init__(self, options: argparse.Namespace, server: EmulatorServer) -> None:
        super().__init__(options, server)
        self.journal = Journal(server.folder / "journal.jsonl")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.epilog = faults.__doc__
        parser.add_argument("--fault", action="append", default=[], metavar="NAME[,key=value]...")
        parser.add_argument("--seed", type=int, default=0, help="of faults that strike by chance")

    def configure(self) -> None:
        assert isinstance(self.server, UnstableServer)
        server = self.server
        self.context = FaultContext(server.kaggle, server.runner, server.endpoint, server.go_down)
        names = {name.rpartition("/")[2] for name in server.calls}
        self.schedule = FaultSchedule(self.options.seed, names)
        try:
            self.schedule.add(self.options.fault)
        except FaultError as error:
            raise PluginError(f"--fault {error}") from error

    def control(self, request: HttpRequest) -> Reply | None:
        match request.method, request.path:
            case "POST", "/emulator/faults":
                self._add(request.body)
                return json_reply(200, {})
            case "DELETE", "/emulator/faults":
                self.schedule.clear()
                return json_reply(200, {})
            case "GET", "/emulator/journal":
                return json_reply(200, self.journal.read())
        return None

    def respond(self, call: ApiCall, proceed: Callable[[ApiCall], Reply]) -> Reply:
        with self.journal.entry(call) as entry:
            struck = self.schedule.strike(call, self.context)
            entry.faults = [fault.name for fault in struck]
            reply = self._respond(call, proceed, struck, entry.add_effect)
            entry.code = reply.code
        return reply

    def _respond(
        self,
        call: ApiCall,
        proceed: Callable[[ApiCall], Reply],
        struck: list[Fault],
        on_effect: Callable[[Reply], None],
    ) -> Reply:
        try:
            for fault in struck:
                fault.before(call, self.context)
            true_reply = proceed(call)
            on_effect(true_reply)
            reply = FaultyReply.of(true_reply)
            for fault in struck:
                reply = fault.after(call, self.context, reply)
        except ReplaceResponse as replaced:
            return replaced.reply.throttled()
        if isinstance(reply.body, EventStream):
            events = reply.body.events
            for fault in struck:
                events = fault.events(events)
            reply = replace(reply, body=EventStream(events))
        return reply.throttled()

    def _add(self, body: bytes) -> None:
        try:
            wanted = json.loads(body)
            if not isinstance(wanted, list):
                raise FaultError("expected a JSON list of faults")
            self.schedule.add(wanted)
        except (ValueError, RecursionError):
            raise RequestRefused(400, "The request is not valid JSON") from None
        except FaultError as error:
            raise RequestRefused(400, str(error)) from None
