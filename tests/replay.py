"""The emulator's plugin that the tests use: fault injection, and replay of notebook runs.

    python -m kernelkit.emulator --plugin tests.replay:RecordAndReplay --replay FOLDER

A real notebook run takes seconds, most of them to start a Jupyter kernel. With `--replay`, the
emulator keeps what a run has printed and written, in FOLDER. When the same notebook is pushed again
with the same settings and sources, by any account and under any slug, the emulator replays the
recording: the session goes from queued to running to its end in milliseconds, with the same log and
the same files. The number of the session and the push_id, which runs print, are replaced by the
current ones.

The key of a recording is the whole source that was pushed, except for the push_id and the mark of
a campaign's session, so a replayed run belongs to the digest in it. Everything else of the emulator
is real: the API, the log stream, listings, downloads, forced ends. Several emulators can share
FOLDER.

These runs are not recorded, so they are always real:

- runs of accounts whose names begin with `live-`;
- runs that take longer than LONGEST, because a notebook that sleeps is meant to run;
- runs that were cancelled, killed or timed out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from kernelkit.emulator.responses import Reply
from kernelkit.emulator.runner import EmulatedSession, Isolation
from kernelkit.emulator.server import ApiCall, EmulatorServer
from kernelkit.emulator.state import EmulatedKaggle, KernelVersion
from kernelkit.runs.manifest import RUN_MANIFEST_NAME
from tests.chaos.plugin import FaultInjection

LONGEST = 5.0
"""Seconds from the start of the first cell to the end of the last one."""
PUSH = 1.0
"""Seconds that a replay waits for the faults of its push, which may force its end."""
_SESSION = "<number of the session>"
_PUSH = "<push_id>"
_PUSH_ID = re.compile(r"push_id\W{1,12}([0-9a-f]{32})\b")
"""In a pushed source, however it is escaped."""
_MARK = re.compile(r"(session\W{1,12})(?:chain|sweep)-[0-9a-f]{12}[\w-]*")
"""The mark of a campaign's session in a pushed source."""
_NAMES = ("owner", "slug", "kernel_id", "title", "text", "tags", "is_private")
"""Fields of a push that do not change its run; `text` is hashed apart from them."""


class ReplaySession(EmulatedSession):
    """A run that is replayed if there is a recording, else executed and recorded."""

    def __init__(
        self,
        version: KernelVersion,
        isolation: Isolation,
        limit: float,
        recordings: Path,
        pushed: threading.Event | None,
    ) -> None:
        """`pushed` is set once the push has its faults."""
        super().__init__(version, isolation, limit)
        self._recording = recordings / _key(version, isolation)
        self._pushed = pushed

    def run_notebook(self, kaggle: EmulatedKaggle, endpoint: str) -> None:
        if self._recording.is_dir():
            if self._pushed is not None:
                self._pushed.wait(PUSH)
            self.follow(self._replayed(), kaggle)
            return
        super().run_notebook(kaggle, endpoint)
        started, own_end = self.version.started, self._end
        if own_end and not self.is_killed and started and time.time() - started < LONGEST:
            with contextlib.suppress(OSError, shutil.Error):  # such as a FIFO among the outputs
                self._record({"status": own_end.status, "failure": own_end.failure})

    def _replayed(self) -> Iterator[bytes]:
        """The recorded report; it ends early if the run is killed."""
        yield _line({"event": "running"})
        log = (self._recording / "log.jsonl").read_text(encoding="utf-8")
        push_id = _push_id(self.version.push.text)
        log = log.replace(_SESSION, str(self.version.session_id)).replace(_PUSH, push_id)
        for line in log.splitlines():
            if self.is_killed:
                return
            yield line.encode() + b"\n"
        outputs = self._recording / "working"
        # Without times and modes: these files are new.
        shutil.copytree(
            outputs, self.version.working, copy_function=shutil.copyfile, dirs_exist_ok=True
        )
        _replace(self.version.working / RUN_MANIFEST_NAME, _PUSH, push_id)
        if not self.is_killed:
            end = json.loads((self._recording / "end.json").read_text(encoding="utf-8"))
            yield _line({"event": "end", **end})

    def _record(self, end: dict[str, str]) -> None:
        """Publish the recording as a whole; another emulator may have been faster."""
        folder = self._recording.parent
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
            recording = Path(temporary) / "recording"
            shutil.copytree(self.version.working, recording / "working", symlinks=True)
            log = (self.version.folder / "log.jsonl").read_text(encoding="utf-8")
            log = log.replace(str(self.version.session_id), _SESSION)
            if push_id := _push_id(self.version.push.text):
                log = log.replace(push_id, _PUSH)
                _replace(recording / "working" / RUN_MANIFEST_NAME, push_id, _PUSH)
            (recording / "log.jsonl").write_text(log, encoding="utf-8")
            (recording / "end.json").write_text(json.dumps(end), encoding="utf-8")
            recording.rename(self._recording)


class RecordAndReplay(FaultInjection):
    """Fault injection, and replay of runs if `--replay` names a folder."""

    def __init__(self, options: argparse.Namespace, server: EmulatorServer) -> None:
        super().__init__(options, server)
        self._thread = threading.local()
        if options.replay:
            options.replay.mkdir(parents=True, exist_ok=True)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument("--replay", type=Path, metavar="FOLDER", help="of recorded runs")

    def respond(self, call: ApiCall, proceed: Callable[[ApiCall], Reply]) -> Reply:
        """Let the replay of a push begin only when its response is ready.

        A real run takes long enough to start; a replay could end before a fault forces its end.
        """
        self._thread.pushed = threading.Event()
        try:
            return super().respond(call, proceed)
        finally:
            self._thread.pushed.set()

    def new_session(
        self, version: KernelVersion, isolation: Isolation, limit: float
    ) -> EmulatedSession:
        if self.options.replay is None or version.push.owner.startswith("live-"):
            return super().new_session(version, isolation, limit)
        pushed = getattr(self._thread, "pushed", None)  # None for runs of an earlier emulator
        return ReplaySession(version, isolation, limit, self.options.replay.resolve(), pushed)


def _key(version: KernelVersion, isolation: Isolation) -> str:
    settings = {name: value for name, value in asdict(version.push).items() if name not in _NAMES}
    mounts = [[str(mount.target), str(mount.source)] for mount in version.mounts]
    details = json.dumps([isolation, settings, mounts], sort_keys=True)
    text = version.push.text
    if push_id := _push_id(text):
        text = text.replace(push_id, _PUSH)
    text = _MARK.sub(r"\1<mark>", text)
    return hashlib.sha256(f"{details}\n{text}".encode()).hexdigest()


def _push_id(text: str) -> str:
    """The identity of the push in a pushed source; empty if it has none."""
    found = _PUSH_ID.search(text)
    return found[1] if found else ""


def _replace(path: Path, before: str, after: str) -> None:
    """Replace a text in a file that a run may have left."""
    if path.is_file():
        content = path.read_bytes()
        path.write_bytes(content.replace(before.encode(), after.encode()))


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"
