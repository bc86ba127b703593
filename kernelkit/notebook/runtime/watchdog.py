"""Runs next to the program: keeps the manifest up to date, warns of the deadline, ends a stall.

A run can be ended from outside at any time, without a warning. So the manifest on the disk always
says what the run had made some seconds before. Nothing of this may slow the program: the thread
sleeps nearly all the time, hashes only files that changed (hashlib and reading release the GIL),
and rests twenty times as long as its last work took.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from .deadline import WARNINGS_SECONDS
from .documents import STALLED_NAME
from .events import SHOWN_CHARACTERS, OutputTap
from .files import NOT_OUTPUTS

TICK_SECONDS = 0.5
REFRESH_SECONDS = 30.0  # between two writes of the manifest
EVENT_SECONDS = 1.5  # after an event: what the program wrote before it has settled
REST = 20.0  # so many times as long as the last refresh took
SCANNED = 100_000  # files, for a change of any of them
STOP_SECONDS = 10.0  # for the program to end after an interrupt, before its process is ended
ARM_SECONDS = 10.0  # between two promises that this thread can run
FROZEN_SECONDS = 60.0  # after a stall, if not even this thread can run
STACK_CHARACTERS = 20_000
MOST_PROCESSES = 20


class Watchdog:
    """Watches one call of the program.

    `refresh` writes the manifest, and gets a function that says whether to stop early.
    `end_stalled` writes the manifest of a run that has stalled, with the reason. `folders` are
    those in which a changed file is a sign of life. `stall_seconds` is 0 for no watch.
    """

    def __init__(
        self,
        tap: OutputTap,
        *,
        refresh: Callable[[Callable[[], bool]], None],
        end_stalled: Callable[[str, str], None],
        working: Path,
        folders: Sequence[Path],
        deadline: float,
        stall_seconds: float,
    ) -> None:
        self._tap, self._refresh, self._end_stalled = tap, refresh, end_stalled
        self._working, self._folders = working, folders
        self._deadline, self._stall = deadline, stall_seconds
        self._stop = threading.Event()
        self._warned = 0
        self._noted = False
        self._file_sign, self._next_scan = -math.inf, -math.inf
        self._newest = ""
        self._armed = -math.inf
        self._stacks_file: IO[str] | None = None
        self.stalled = ""
        """Why the run was ended; empty if it was not."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what happens meanwhile."""
        thread = threading.Thread(target=self._watch, name="kernelkit", daemon=True)
        with self._tap.listening():
            if not self._tap.hears:  # else every run would seem to stall
                self._stall = 0.0
            with self._frozen_watch():
                thread.start()
                try:
                    yield
                finally:
                    self._stop.set()
                    thread.join()

    def _watch(self) -> None:
        events, due = self._tap.events, time.monotonic() + REFRESH_SECONDS
        is_first = True
        while not self._stop.wait(TICK_SECONDS):
            now = time.monotonic()
            self._warn_of_deadline()
            if is_first and self._tap.events != events:
                due, is_first = min(due, now + EVENT_SECONDS), False
            if now >= due:
                with contextlib.suppress(Exception):  # such as a full disk: the next one may do
                    self._refresh(self._stop.is_set)
                took = time.monotonic() - now
                due, is_first = time.monotonic() + max(REFRESH_SECONDS, REST * took), False
            self._arm(now)
            if self._stall and self._has_stalled(now):
                self._end()
                return

    def _warn_of_deadline(self) -> None:
        left = self._deadline - time.time()
        warning = [seconds for seconds in WARNINGS_SECONDS if seconds >= left]
        if len(warning) > self._warned:
            self._warned = len(warning)
            event = {"event": "deadline", "seconds_left": max(0, round(left))}
            self._tap.print(json.dumps(event))

    def _has_stalled(self, now: float) -> bool:
        """Whether nothing has been printed, and no file changed, for too long."""
        quiet = now - max(self._tap.last_output, self._file_sign)
        if quiet < self._stall / 2:
            self._noted = False
            return False
        if now < self._next_scan:
            return False
        self._next_scan = now + self._stall / 20
        self._newest, age = _newest_file(self._working, self._folders)
        self._file_sign = max(self._file_sign, now - max(0.0, age))
        quiet = now - max(self._tap.last_output, self._file_sign)
        if quiet >= self._stall:
            return True
        if quiet >= self._stall / 2 and not self._noted:
            self._noted = True
            self._tap.print(
                f"kernelkit: nothing was printed and no file changed for {_span(quiet)}; after "
                f"{_span(self._stall)} the run ends (stall_minutes)"
            )
        return False

    def _end(self) -> None:
        """End the run: as an error of the program if it still reacts, else with its process."""
        quiet = self._stall
        processes = _descendants(os.getpid())
        seen = [f"nothing was printed and no file changed for {_span(quiet)} (stall_minutes)"]
        if self._tap.last_text:
            seen.append(f"Last output: {self._tap.last_text.strip()}")
        if self._tap.last_event and '"event"' not in self._tap.last_text:
            event = json.dumps(self._tap.last_event.document)
            seen.append(f"Last event: {event[:SHOWN_CHARACTERS]}")
        if self._newest:
            seen.append(f"Newest file: {self._newest}")
        if processes:
            listed = "; ".join(text for _, text in processes[:MOST_PROCESSES])
            seen.append(f"Processes of the program: {listed}")
        self.stalled = ". ".join(seen)
        with contextlib.suppress(Exception):
            self._end_stalled(self.stalled, _stacks())
        for process, _ in processes:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        if self._stop.is_set():
            return
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGINT)
        if not self._stop.wait(STOP_SECONDS):
            self._tap.print("kernelkit: the program does not react, so its process is ended")
            time.sleep(1)  # Jupyter sends what was printed from another thread
            os._exit(1)

    @contextlib.contextmanager
    def _frozen_watch(self) -> Iterator[None]:
        """End the process if not even this thread can run: compiled code can keep Python's lock.

        `faulthandler` has a thread that needs no lock. It writes the stacks to a file, whose
        presence shows that the run has stalled.
        """
        if not self._stall:
            yield
            return
        path = self._working / STALLED_NAME
        with path.open("w", encoding="utf-8") as self._stacks_file:
            self._arm(time.monotonic())
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                path.unlink(missing_ok=True)

    def _arm(self, now: float) -> None:
        file, often = self._stacks_file, min(ARM_SECONDS, self._stall / 4)
        if self._stall and file is not None and now - self._armed > often:
            self._armed = now
            seconds = self._stall + FROZEN_SECONDS
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)


def _newest_file(working: Path, folders: Sequence[Path]) -> tuple[str, float]:
    """The file that changed last, and how many seconds ago; of at most `SCANNED` entries."""
    newest, name, left = 0.0, "", SCANNED
    pending = [str(folder) for folder in (working, *folders)]
    while pending and left > 0:
        folder = pending.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                left -= 1
                if folder == str(working) and entry.name in NOT_OUTPUTS:
                    continue
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    changed = entry.stat(follow_symlinks=False).st_mtime
                    if changed > newest:
                        newest, name = changed, entry.path
    age = time.time() - newest
    return (f"{name}, {_span(age)} ago" if name else ""), age


def _descendants(process: int) -> list[tuple[int, str]]:
    """The processes that a process has started, and those that these have, with what they do."""
    children: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            number = int(folder.name)
            children.setdefault(int(parent), []).append(number)
            texts[number] = f"{number} ({state}) {' '.join(words).strip()[:SHOWN_CHARACTERS]}"
    found, pending = list[int](), [process]
    while pending:
        pending += (below := children.get(pending.pop(), []))
        found += below
    return [(number, texts[number]) for number in found]


def _stacks() -> str:
    """What every thread of this process is doing."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()[-STACK_CHARACTERS:]


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
