"""`python -m kernelkit.emulator`: serve a local Kaggle on loopback until stopped.

Exit status 0 after SIGTERM or Ctrl-C; 2 for a wrong argument; 10 where this machine does not let
it (the port is taken, nbclient is not installed).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernelkit.emulator import faults
from kernelkit.emulator.api import Api
from kernelkit.emulator.contest import DAILY, SCORING, Contest, Terms
from kernelkit.emulator.faults import BadFault, House, Plan
from kernelkit.emulator.journal import Journal
from kernelkit.emulator.library import Library
from kernelkit.emulator.metric import BadFile
from kernelkit.emulator.runner import TIME_LIMIT, Isolation, Runner, why_no_namespace
from kernelkit.emulator.server import Server
from kernelkit.emulator.services import Services
from kernelkit.emulator.state import GPU_HOURS, BadState, Kaggle, is_account
from kernelkit.emulator.uploads import Uploads

USAGE, MACHINE = 2, 10
"""Exit statuses, as kernelkit's own."""
MARK = "emulator.json"
"""The file in a state folder that tells that it is one, and that is locked while it is in use."""
FORMAT = {"format": 1}


def main(arguments: list[str] | None = None) -> int:
    """Parse, listen, say so, serve, and clean up."""
    options = _parse(arguments)
    if missing := [m for m in ("nbclient", "ipykernel") if importlib.util.find_spec(m) is None]:
        return _fail(f"{' and '.join(missing)} not installed: pip install 'kernelkit[emulator]'")
    isolation = _isolation(options.isolation)
    if isolation is None:
        return MACHINE
    with _state_folder(options.state) as folder:
        terms = _terms(options)
        not_accepted = terms.rules_not_accepted
        try:
            _claim(folder)
            library = Library(folder / "_datasets", options.inputs, dict(options.dataset_pending))
            kaggle = Kaggle(
                folder, options.inputs, options.mounts, options.gpu_quota, library, not_accepted
            )
            contest = Contest(folder / "_submissions", options.inputs, options.solutions, terms)
        except BadState as error:
            return _fail(f"--state {error}")
        except BadFile as error:
            return _fail(str(error), USAGE)
        try:
            server = Server(options.port, kaggle, options.verbose)
        except OSError as error:
            return _fail(f"cannot listen on 127.0.0.1:{options.port}: {error.strerror}")
        runner = Runner(kaggle, isolation, server.endpoint, options.time_limit)
        server.api = Api(kaggle, runner, server.endpoint, options.user)
        server.contest, server.uploads = contest, Uploads(folder / "_uploads")
        services = Services(kaggle, contest, server.uploads, library, server.endpoint)
        server.api.calls |= services.calls
        server.house = House(kaggle, runner, server.endpoint, server.die)
        server.journal = Journal(folder / "journal.jsonl")
        server.plan = Plan(options.seed, {name.rpartition("/")[2] for name in server.api.calls})
        try:
            server.plan.add(options.fault)
        except BadFault as error:
            server.server_close()
            return _fail(f"--fault {error}", USAGE)
        for version in kaggle.unfinished:
            runner.launch(version)
        heard, bell = _on_signals()  # before anybody learns our process id
        if options.lifeline:
            threading.Thread(target=_wait_for_end_of_input, args=(bell,), daemon=True).start()
        threading.Thread(target=server.serve, daemon=True).start()
        with server, _announced(server, options, isolation):
            os.read(heard, 1)
            server.shutdown()
            runner.stop()
    return 0


def _on_signals() -> tuple[int, int]:
    """A pipe, reading end first, into which a signal to stop writes.

    The interpreter's own handler does that, in whichever thread the signal arrives; a handler in
    Python would wait until the main thread, which waits for it, wakes.
    """
    heard, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return heard, bell


def _wait_for_end_of_input(bell: int) -> None:
    """Whoever holds the other end may be killed and never say so: the pipe does."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.write(bell, b"!")


@contextlib.contextmanager
def _announced(server: Server, options: argparse.Namespace, isolation: Isolation) -> Iterator[None]:
    """Say where it listens, to people and in the ready file; take the file back at the end."""
    ready: Path | None = options.ready_file
    if ready is not None:
        facts = {"endpoint": server.endpoint, "port": server.server_address[1], "pid": os.getpid()}
        temporary = ready.with_name(f".{ready.name}.{os.getpid()}")
        temporary.write_text(json.dumps({**facts, "user": options.user, "isolation": isolation}))
        temporary.replace(ready)
    proxy = f"KAGGLE_API_ENVIRONMENT=LOCALHOST http_proxy={server.endpoint} no_proxy="
    credentials = f"KAGGLE_USERNAME={options.user} KAGGLE_KEY=any"
    print(f"Local Kaggle at {server.endpoint} (isolation: {isolation})")
    print(f"Official client: {proxy} {credentials} kaggle kernels ...", flush=True)
    try:
        yield
    finally:
        if ready is not None:
            ready.unlink(missing_ok=True)


@contextlib.contextmanager
def _state_folder(state: Path | None) -> Iterator[Path]:
    if state is not None:
        state.mkdir(parents=True, exist_ok=True)
        yield state.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="local-kaggle-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _claim(folder: Path) -> None:
    """Mark the folder as a state and hold it against a second emulator for as long as we live.

    Raises BadState where another one holds it.
    """
    file = os.open(folder / MARK, os.O_RDWR | os.O_CREAT, 0o644)  # closed, and free, at our death
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise BadState(f"{folder} is in use by another emulator") from None
    os.ftruncate(file, 0)
    os.write(file, json.dumps(FORMAT).encode() + b"\n")


def _isolation(asked: str) -> Isolation | None:
    """What this machine gives; None, after saying why, where what was asked for cannot be had."""
    if asked == "folders":
        return "folders"
    reason = why_no_namespace()
    if not reason:
        return "namespace"
    if asked == "namespace":
        _fail(f"no namespace on this machine: {reason}")
        return None
    print(f"No namespace on this machine ({reason}): runs get folders instead,", file=sys.stderr)
    print("with an open network and inputs that are not write-protected.", file=sys.stderr)
    return "folders"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kernelkit emulator",
        description="A local Kaggle.",
        epilog=faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=_port, default=0, help="0 takes a free one (default)")
    parser.add_argument("--inputs", type=_folder, help="folder of sub-folders named by slug")
    parser.add_argument("--state", type=_state, help="keep versions, outputs, logs here")
    parser.add_argument("--mounts", choices=["new", "old"], default="new")
    parser.add_argument("--user", type=_user, default="rehearsal", help="whom a token belongs to")
    parser.add_argument("--time-limit", type=_positive, default=TIME_LIMIT, metavar="SECONDS")
    parser.add_argument("--gpu-quota", type=_hours, default=GPU_HOURS, metavar="HOURS")
    parser.add_argument("--isolation", choices=["auto", "namespace", "folders"], default="auto")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[,key=value]...")
    parser.add_argument("--seed", type=int, default=0, help="of the faults that come by chance")
    parser.add_argument("--ready-file", type=Path, help="written as JSON once it listens")
    parser.add_argument("--lifeline", action="store_true", help="stop when standard input ends")
    parser.add_argument("--verbose", action="store_true", help="log every request to stderr")
    _add_contest(parser)
    options = parser.parse_args(arguments)
    if options.solutions and options.inputs and _lies_in(options.solutions, options.inputs):
        parser.error(f"{options.solutions} lies in the inputs: a run could read the solutions")
    return options


def _add_contest(parser: argparse.ArgumentParser) -> None:
    """The knobs of competitions and datasets."""
    add = parser.add_argument
    add("--solutions", type=_folder, help="folder of <slug>/solution.csv, never mounted")
    add("--scoring-seconds", type=_hours, default=SCORING, metavar="SECONDS", help="in PENDING")
    add("--daily-submissions", type=_count, default=DAILY, metavar="N", help="of one account")
    add("--silent-limit", action="store_true", help="beyond it, answer as if it were entered")
    knob: dict[str, Any] = {"action": "append", "default": [], "metavar": "SLUG"}
    add("--rules-not-accepted", type=str.lower, help="of this competition", **knob)
    add("--code-competition", type=str.lower, help="one that takes no uploads", **knob)
    knob |= {"metavar": "OWNER/SLUG:SECONDS"}
    add("--dataset-pending", type=_pending, help="READY after so long", **knob)


def _terms(options: argparse.Namespace) -> Terms:
    return Terms(
        options.daily_submissions,
        options.silent_limit,
        options.scoring_seconds,
        frozenset(options.rules_not_accepted),
        frozenset(options.code_competition),
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port (0 to 65535)")
    return port


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text).resolve()


def _state(text: str) -> Path:
    """A folder that is empty or to be made, or the state of an earlier emulator."""
    path = Path(text)
    ours = not path.exists() or (path / MARK).is_file()
    if not ours and (not path.is_dir() or any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{text} is neither empty nor an emulator's state")
    return path


def _user(text: str) -> str:
    if not is_account(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no account (letters, digits, - and _)")
    return text


def _positive(text: str) -> float:
    if not 0 < (seconds := float(text)) < threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds


def _hours(text: str) -> float:
    if not 0 <= (hours := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must not be negative")
    return hours


def _count(text: str) -> int:
    if (count := int(text)) < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return count


def _pending(text: str) -> tuple[str, float]:
    name, _, seconds = text.rpartition(":")
    owner, slash, slug = name.partition("/")
    if not slash or not is_account(owner) or not slug:
        raise argparse.ArgumentTypeError(f"{text!r} is not OWNER/SLUG:SECONDS")
    return name.lower(), _hours(seconds)


def _lies_in(solutions: Path, inputs: Path) -> bool:
    """Whether a run that gets the inputs, links followed, could read a solution."""
    mounted = [inputs, *(path.resolve() for path in inputs.iterdir())]
    secret = [solutions, *(path.resolve() for path in solutions.glob("*/solution.csv"))]
    return any(path.is_relative_to(place) for path in secret for place in mounted)


def _fail(message: str, code: int = MACHINE) -> int:
    print(f"kernelkit emulator: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
