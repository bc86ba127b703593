"""What the local Kaggle was asked and what came of it, for whoever checks a campaign of faults.

One line of JSON each in `journal.jsonl` of the state folder, which a restart goes on with:

    {"n", "seconds", "method", "account", "kernel", "faults", "code"}    a request, when it is over
    {"n", "effect": "version" | "submission" | "cancel", ...}             an effect, when it happens

`n` counts requests in the order of their arrival; an effect has that of its request. `code` is
the HTTP status that was sent, null where the connection was cut before.
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

from kernelkit.emulator.faults import Call

Record = dict[str, Any]

_DIGEST = re.compile(r"(?<![\w-])digest\W{1,12}([0-9a-f]{64})\b")
"""The digest that a pushed source carries, whatever wraps it: `"digest": "…"` in some escaping."""


@dataclass
class Entry:
    """One request while it is served."""

    number: int
    began: float
    journal: Journal
    call: Call = field(default_factory=Call)
    faults: list[str] = field(default_factory=list)
    code: int | None = None

    def happened(self, answer: Record) -> None:
        """Write what the call has changed, if it has."""
        if effect := _effect(self.call, answer):
            self.journal.write({"n": self.number, "account": self.call.account, **effect})

    def record(self) -> Record:
        """The line that tells of it."""
        return {
            "n": self.number,
            "seconds": round(time.monotonic() - self.began, 3),
            "method": self.call.method,
            "account": self.call.account,
            "kernel": self.call.kernel,
            "faults": self.faults,
            "code": self.code,
        }


class Journal:
    """The file, and the one that writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._requests = max((record["n"] for record in self._read()), default=0)

    @contextlib.contextmanager
    def entry(self) -> Iterator[Entry]:
        """One more request; written when it is over, however it ended."""
        with self._lock:
            self._requests += 1
            entry = Entry(self._requests, time.monotonic(), self)
        try:
            yield entry
        finally:
            self.write(entry.record())

    def told(self) -> dict[str, list[Record]]:
        """All requests and all effects, each in the order of arrival."""
        with self._lock:
            records = sorted(self._read(), key=lambda record: int(record["n"]))
        return {
            "requests": [r for r in records if "effect" not in r],
            "effects": [r for r in records if "effect" in r],
        }

    def write(self, record: Record) -> None:
        """One more line."""
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _read(self) -> list[Record]:
        """What is written; a last line that a killed process left unfinished is none."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        whole, _, rest = text.rpartition("\n")
        if rest:
            self._path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]


def _effect(call: Call, answer: Record) -> Record | None:
    match call.method:
        case "SaveKernel" if "versionNumber" in answer:
            text = str(call.fields.get("text", ""))
            digest = _DIGEST.search(text)
            return {
                "effect": "version",
                "kernel": answer["ref"].removeprefix("/code/"),
                "number": answer["versionNumber"],
                "digest": digest[1] if digest else "",
                "text_sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest(),
            }
        case "CancelKernelSession" if "errorMessage" not in answer:
            return {"effect": "cancel", "session": call.fields.get("kernelSessionId")}
        case "CreateSubmission" | "CreateCodeSubmission" if "ref" in answer:
            return {"effect": "submission", "ref": answer["ref"]}
    return None
