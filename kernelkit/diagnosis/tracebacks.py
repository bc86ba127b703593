"""Finds the tracebacks of Python and IPython in a text, in the order of the text.

It reads chains, exception groups, workers whose traceback is part of a message (torch's DataLoader,
multiprocessing), torchrun, recursion, syntax errors and crashes that faulthandler reports. It reads
each line once, and no pattern has nested repetition, so that the time is linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MESSAGE_LINES = 30  # of an exception's message: a tree of inputs, torchrun's block

_ERROR = re.compile(r"[^\W\d][\w.<>]*+(?::(?: |$)|$)")
HEADER = "Traceback (most recent call last)"
_IPYTHON_HEADER = re.compile(r"[^\W\d][\w.]*+\s+$")  # before HEADER, without a colon
PAPERMILL = re.compile(r'Exception encountered at "In \[(\d+| )\]":')
_RANK = re.compile(r"\[(?:rank|default)\d+\]: ?")  # torch ≥ 2.4, torchrun
_GROUP_MEMBER = re.compile(r"\s*\+[-+]*+ (?:\d+|\.\.\.) -+$")
_GROUP_MARGIN = re.compile(r"\s*(?:\| ?|\+-+$)")
_CHAIN_MESSAGES = {
    "The above exception was the direct cause of the following exception:": "cause",
    "During handling of the above exception, another exception occurred:": "context",
}
_PROCESS_MESSAGE = re.compile(r"-- Process \d+ terminated with the following error:")
_QUOTES = ('"""', "'''")
_PLAIN_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+)(?:, in (.+))?$')
_CRASH_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+) in (.+)$')
_IPYTHON_FRAME = re.compile(r"\s*File (.+?):(\d+)(?:,? in (.+))?$")
_OLD_IPYTHON_FRAME = re.compile(r"([/~<][^()]*) in (.+)$")  # 7.x; an arrow gives the line
_CELL_FRAME = re.compile(
    r"\s*(?:Cell|Input) In ?\[(\d+)\], (?:line (\d+))?(?:,? ?in (.+))?$"  # 8.0 to 9.x
)
_ARROW = re.compile(r"-+> (\d+)(?: (.*))?$")
_REPEATED = re.compile(
    r"\s*\[(?:Previous line repeated (\d+) more times?"
    r"|\.\.\. skipping similar frames: .* \((\d+) times\))\]"
)
_NUMBERED_LINE = re.compile(r"\s*\d+(?: |$)")


@dataclass
class Call:
    """One call in a traceback; the path of a notebook's cell is `<cell 12>`."""

    path: str
    line: int | None
    function: str
    source: str = ""
    times: int = 1


@dataclass(eq=False)
class Traceback:
    """One traceback as it was printed."""

    start: int = 0
    """Number of its first line."""

    end: int = 0
    """Number of the line with the error; its message may have further lines."""

    frames: list[Call] = field(default_factory=list)
    error: str = ""
    """`Type: message`, with all lines of the message."""

    link: str = ""
    """Relation to the traceback before it: "", "cause", "context", "member" of its group, or part
    of its "message"."""

    within: str = ""
    """"group", or "worker": raised in another process, whose text was printed here."""

    @property
    def kind(self) -> str:
        """The type of the exception, without its module."""
        return self.error.partition("\n")[0].partition(":")[0].rpartition(".")[2].strip()


def read_tracebacks(lines: list[str]) -> list[Traceback]:
    """Every traceback in the text, in the order in which they begin."""
    reader = _Reader()
    begun = [reader.read(number, line) for number, line in enumerate(lines)]
    return [traceback for traceback in begun if traceback]


class _Reader:
    """Reads tracebacks line by line; the state says which lines can follow."""

    def __init__(self) -> None:
        self._current = Traceback()
        self._state = "outside"  # frames, message, crash
        self._indent = 0  # of the current header: its error line is not indented more
        self._ipython = False
        self._in_group = False
        self._link = self._within = ""  # of the next traceback
        self._previous = ""  # the last line that was not blank
        self._crash = ""
        self._rank = ""  # torch prints it before every line of a traceback

    def read(self, number: int, line: str) -> Traceback | None:
        """Read the next line; returns the traceback that begins with it, if one does."""
        rank = _RANK.match(line) if line.startswith("[") else None
        who = rank[0].rstrip() if rank else ""
        if HEADER in line:
            self._rank = who
        elif self._rank != who and self._state != "outside":
            return None  # a line of another rank, in between
        line = self._without_margin(line[rank.end() :] if rank else line)
        words, previous = line.strip(), self._previous
        self._previous = words or previous
        if HEADER in line:
            return self._header(number, line, previous)
        if PAPERMILL.match(line):
            self._link, self._within, self._in_group = "", "", False
            return self._begin(number, ipython=True)
        if self._in_group and _GROUP_MEMBER.match(line):
            self._link, self._within = "member", "group"
            return self._begin(number)
        if line.startswith("Fatal Python error: "):
            self._crash = line
        elif line.startswith("Current thread 0x") and self._crash:
            started = self._begin(number)
            started.error, started.end, self._state = self._crash, number, "crash"
            return started
        elif words in _CHAIN_MESSAGES and self._current.error:
            self._link, self._state = _CHAIN_MESSAGES[words], "outside"
        elif words in _QUOTES and self._within == "worker":
            self._within, self._state = "", "outside"
        else:
            self._continue(number, line)
        return None

    def _without_margin(self, line: str) -> str:
        """The line without the prefix of an exception group."""
        if not self._in_group or _GROUP_MEMBER.match(line) or not line:
            return line
        if margin := _GROUP_MARGIN.match(line):
            return line[margin.end() :]
        self._in_group = False
        self._within = "" if self._within == "group" else self._within
        return line

    def _header(self, number: int, line: str, previous: str) -> Traceback | None:
        before, _, after = line.partition(HEADER)
        indent = len(before) - len(before.lstrip())
        ipython = not after.startswith(":") and _IPYTHON_HEADER.match(before) is not None
        if before.rstrip().endswith("Exception Group"):
            self._in_group = True
        inside = before.strip() in ("Original", "traceback :") or previous in _QUOTES
        if inside or _PROCESS_MESSAGE.match(previous):
            self._link = "message" if self._state == "message" else ""
            self._within = "worker"
        elif self._state == "frames" and not (self._current.frames or self._current.error):
            self._ipython, self._indent = ipython, indent  # papermill or a group has announced it
            return None
        elif not self._link:
            self._within = ""
        return self._begin(number, ipython=ipython, indent=indent)

    def _begin(self, number: int, *, ipython: bool = False, indent: int = 0) -> Traceback:
        self._current = Traceback(number, link=self._link, within=self._within)
        self._link, self._state = "", "frames"
        self._ipython, self._indent = ipython, indent
        return self._current

    def _continue(self, number: int, line: str) -> None:
        match self._state:
            case "frames":
                self._frame_line(line)
            case "message":
                self._message_line(line)
            case "crash":
                self._crash_line(line)
        if self._state == "message" and not self._current.end:
            self._current.end = number

    def _frame_line(self, line: str) -> None:
        current = self._current
        last = current.frames[-1] if current.frames else None
        words = line.strip()
        if frame := _frame(line, old_ipython=self._ipython):
            current.frames.append(frame)
        elif last and (repeated := _REPEATED.match(line)):
            last.times += _int(repeated[1] or repeated[2])
        elif last and (arrow := _ARROW.match(line)):
            last.line, last.source = _int(arrow[1]), (arrow[2] or "").strip()
        elif _ERROR.match(words) and len(line) - len(line.lstrip()) <= self._indent:
            current.error, self._state = words, "message"
        elif self._ipython and _NUMBERED_LINE.match(line):
            pass  # the lines around the one with the arrow
        elif last and not last.source:
            last.source = words

    def _message_line(self, line: str) -> None:
        current = self._current
        if line.strip():
            current.error += "\n" + line[self._indent :]
        ended = not line.strip() and not current.error.endswith(":")
        if ended or current.error.count("\n") >= MESSAGE_LINES:
            self._state = "outside"

    def _crash_line(self, line: str) -> None:
        if frame := _CRASH_FRAME.match(line):  # faulthandler prints the innermost call first
            self._current.frames.insert(0, Call(frame[1], _int(frame[2]), frame[3]))
        else:
            self._state = "outside"


def _frame(line: str, *, old_ipython: bool) -> Call | None:
    if found := _PLAIN_FRAME.match(line) or _IPYTHON_FRAME.match(line):
        return Call(found[1], _int(found[2]), found[3] or "")
    if found := _CELL_FRAME.match(line):
        return Call(f"<cell {found[1]}>", _int(found[2]) if found[2] else None, found[3] or "")
    if old_ipython and (found := _OLD_IPYTHON_FRAME.match(line)):
        return Call(found[1], None, found[2])
    return None


def _int(digits: str) -> int:
    return int(digits[:9])  # a log may contain a number of a million digits
