"""The emulator's plugin that the tests use: fault injection, and replay of notebook runs.

    python -m kernelkit.emulator --plugin tests.replay:RecordAndReplay --replay FOLDER

A real notebook run takes seconds, most of them to start a Jupyter kernel. With `--replay`, the
emulator keeps what a run has printed and written, in FOLDER. When the same notebook is pushed again
with the same settings and sources, by any account and under any slug, the emulator replays the
recording: the session goes from queued to running to its end in milliseconds, with the same log and
the same files. What identifies a push, and runs print, is replaced by that of the current one: the
number of the session, the push_id, the digest, the mark of a campaign's session, the owner.

The key of a recording is the whole source that was pushed, except for these, and the outputs of
other kernels that it had as inputs. So a replayed run is one of the same program. Everything else
of the emulator is real: the API, the log stream, listings, downloads, forced ends. Several
emulators can share FOLDER.

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
from collections.abc import Callable, Iterator, Mapping
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
_IDENTITY = {
    "push_id": re.compile(r"push_id\W{1,12}([0-9a-f]{32})\b"),
    "digest": re.compile(r"(?<![\w-])digest\W{1,12}([0-9a-f]{64})\b"),
    "mark": re.compile(r"\bsession\W{1,12}((?:chain|sweep)-[0-9a-f]{12}[\w-]*)"),
    "seconds": re.compile(r"session_seconds\W{1,12}(\d{4,})"),  # what the quota leaves
}
"""What identifies a push in its source, however it is escaped."""
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
        self._identity = _identity(version)
        self._recording = recordings / _key(version, isolation, self._identity)
        self._pushed = pushed

    def replay_from(self, name: str) -> None:
        """Replay the recording of this name, whatever was pushed."""
        self._recording = self._recording.with_name(name)

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
        for line in _restored(log, self._identity).splitlines():
            if self.is_killed:
                return
            yield line.encode() + b"\n"
        outputs = self._recording / "working"
        # Without times and modes: these files are new.
        shutil.copytree(
            outputs, self.version.working, copy_function=shutil.copyfile, dirs_exist_ok=True
        )
        _rewrite(self.version.working / RUN_MANIFEST_NAME, self._identity, _restored)
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
            _rewrite(recording / "working" / RUN_MANIFEST_NAME, self._identity, _anonymous)
            log = _anonymous(log, self._identity)
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


def _key(version: KernelVersion, isolation: Isolation, identity: Mapping[str, str]) -> str:
    settings = {name: value for name, value in asdict(version.push).items() if name not in _NAMES}
    mounts = [[str(mount.target), _content(mount.source)] for mount in version.mounts]
    details = json.dumps([isolation, settings, mounts], sort_keys=True)
    text = _anonymous(f"{details}\n{version.push.text}", identity)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(source: Path) -> str:
    """An input: its place, or the content of the outputs of another kernel.

    Their manifest is left out: it identifies their push.
    """
    if source.name != "working":
        return str(source)
    state = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != RUN_MANIFEST_NAME:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            state.update(f"{path.relative_to(source)} {content}\n".encode())
    return state.hexdigest()


def _identity(version: KernelVersion) -> dict[str, str]:
    """What identifies a push, by its name."""
    text = version.push.text
    found = {name: pattern.search(text) for name, pattern in _IDENTITY.items()}
    known = {name: match[1] for name, match in found.items() if match}
    return known | {"number": str(version.session_id), "owner": version.push.owner}


def _anonymous(text: str, identity: Mapping[str, str]) -> str:
    """A text with names in place of what identifies a push."""
    for name, value in identity.items():
        text = re.sub(rf"(?<!\w){re.escape(value)}(?![\w-])", f"<{name}>", text)
    return text


def _restored(text: str, identity: Mapping[str, str]) -> str:
    """A recorded text with the identity of another push."""
    for name, value in identity.items():
        text = text.replace(f"<{name}>", value)
    return text


def _rewrite(
    path: Path, identity: Mapping[str, str], change: Callable[[str, Mapping[str, str]], str]
) -> None:
    """Change a file that a run may have left."""
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        path.write_text(change(text, identity), encoding="utf-8", errors="surrogateescape")


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"
