"""The journal: what the local Kaggle was asked, and what it did.

Lines of JSON in `journal.jsonl` of the state folder. A restarted emulator continues the file.

    {"n", "seconds", "method", "account", "kernel", "faults", "code"}   a request, before its answer
    {"n", "effect": "version" | "submission" | "cancel", ...}            an effect, when it happens

`n` counts the requests; an effect has the number of its request. `code` is the HTTP status of the
response, null if the connection is dropped; `seconds` is the time until the response was known. A
client that has a response finds its request in the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelkit.emulator.responses import Reply
from kernelkit.emulator.server import ApiCall

Record = dict[str, Any]

_DIGEST = re.compile(r"(?<![\w-])digest\W{1,12}([0-9a-f]{64})\b")
"""The digest in a pushed source, however it is escaped: `"digest": "…"`."""


@dataclass
class RequestEntry:
    """A request while it is served."""

    number: int
    started: float
    journal: Journal
    call: ApiCall
    faults: list[str] = field(default_factory=list)
    code: int | None = None

    def add_effect(self, reply: Reply) -> None:
        """Write what the call has changed, if it has changed anything."""
        if effect := _effect(self.call, reply):
            self.journal.write({"n": self.number, "account": self.call.account, **effect})

    def record(self) -> Record:
        return {
            "n": self.number,
            "seconds": round(time.monotonic() - self.started, 3),
            "method": self.call.method,
            "account": self.call.account,
            "kernel": self.call.kernel,
            "faults": self.faults,
            "code": self.code,
        }


class Journal:
    """The journal's file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._requests = max((record["n"] for record in self._read()), default=0)

    @contextlib.contextmanager
    def entry(self, call: ApiCall) -> Iterator[RequestEntry]:
        """The entry of a request; written at the end of the block, whether or not it raises."""
        with self._lock:
            self._requests += 1
            entry = RequestEntry(self._requests, time.monotonic(), self, call)
        try:
            yield entry
        finally:
            self.write(entry.record())

    def read(self) -> dict[str, list[Record]]:
        """All requests and all effects, sorted by the number of the request."""
        with self._lock:
            records = sorted(self._read(), key=lambda record: int(record["n"]))
        return {
            "requests": [r for r in records if "effect" not in r],
            "effects": [r for r in records if "effect" in r],
        }

    def write(self, record: Record) -> None:
        line = json.dumps(record) + "\n"
        # When the emulator stops, a temporary state folder is removed first.
        removed = contextlib.suppress(FileNotFoundError)
        with self._lock, removed, self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def _read(self) -> list[Record]:
        """All records. A last line that a killed process left unfinished is removed."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        whole, _, rest = text.rpartition("\n")
        if rest:
            self._path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]


def _effect(call: ApiCall, reply: Reply) -> Record | None:
    if reply.code != 200 or not isinstance(reply.body, bytes):
        return None
    match call.method:
        case "SaveKernel":
            answer = json.loads(reply.body)
            if "versionNumber" not in answer:
                return None
            text = str(call.fields.get("text", ""))
            digest = _DIGEST.search(text)
            return {
                "effect": "version",
                "kernel": answer["ref"].removeprefix("/code/"),
                "number": answer["versionNumber"],
                "digest": digest[1] if digest else "",
                "text_sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest(),
            }
        case "CancelKernelSession":
            if "errorMessage" not in json.loads(reply.body):
                return {"effect": "cancel", "session": call.fields.get("kernelSessionId")}
        case "CreateSubmission" | "CreateCodeSubmission":
            answer = json.loads(reply.body)
            if "ref" in answer:
                return {"effect": "submission", "ref": answer["ref"]}
    return None
