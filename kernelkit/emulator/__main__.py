"""`python -m kernelkit.emulator`: serve a local Kaggle on loopback until stopped.

SIGTERM, SIGHUP and Ctrl-C stop it: it ends its runs, cleans up, and exits with status 0. A signal
before it listens, or a second one, ends it at once, with status 128 + the signal's number.

Exit status 2 for a wrong argument; 10 if this machine prevents it (the port is taken, nbclient is
not installed).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kernelkit.emulator.competitions import DAILY, SCORING, Competitions, CompetitionSettings
from kernelkit.emulator.competitions_api import CompetitionsApi
from kernelkit.emulator.datasets import Datasets
from kernelkit.emulator.datasets_api import DatasetsApi
from kernelkit.emulator.downloads import Downloads
from kernelkit.emulator.kernels_api import KernelsApi
from kernelkit.emulator.limits import HOUR, QUOTAS, SESSIONS, TIME_LIMITS, AccountLimits, Clock
from kernelkit.emulator.metric import InvalidCsv
from kernelkit.emulator.plugin import EmulatorPlugin, PluginError, load_plugin
from kernelkit.emulator.runner import Isolation, SessionRunner, why_no_namespace
from kernelkit.emulator.scoring import METRICS
from kernelkit.emulator.server import EmulatorServer
from kernelkit.emulator.state import (
    DELETED_LISTED,
    EmulatedKaggle,
    KaggleSettings,
    is_account,
)
from kernelkit.emulator.storage import StateError, lock_file, write_json
from kernelkit.emulator.uploads import Uploads

FASTEST = 1_000_000.0
"""The fastest clock: a week passes in 0.6 s."""
USAGE, MACHINE = 2, 10
"""Exit statuses, the same as kernelkit's."""
MARK = "emulator.json"
"""A file that marks a folder as a state folder. It is locked while an emulator uses the folder."""
FORMAT = {"format": 1}
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""They stop the emulator, except for a SIGHUP that `nohup` ignores."""


class PortError(Exception):
    """The port cannot be used; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the options, listen, announce the address, serve, and clean up."""
    _handle_signals(_end_at_once)
    try:
        options, plugin_class = _parse(arguments)
    except PluginError as error:
        return _fail(f"--plugin {error}", USAGE)
    if missing := [m for m in ("nbclient", "ipykernel") if importlib.util.find_spec(m) is None]:
        return _fail(f"{' and '.join(missing)} not installed: pip install '.[emulator]'")
    isolation, reason = _isolation(options.isolation)
    if isolation is None:
        return MACHINE
    if options.check:
        print(isolation if not reason else f"{isolation}: {reason}")
        return 0
    with _state_folder(options.state) as folder, contextlib.ExitStack() as stack:
        try:
            _lock_state(folder)
            server = stack.enter_context(_server(options, folder, plugin_class, isolation))
        except StateError as error:
            return _fail(f"--state {error}")
        except (InvalidCsv, PluginError) as error:
            return _fail(str(error), USAGE)
        except PortError as error:
            return _fail(str(error))
        signaled, wake = _stop_on_signals()  # before anyone can learn our process id
        for version in server.kaggle.unfinished:
            server.runner.launch(version)
        if options.lifeline:
            threading.Thread(target=_wait_for_end_of_input, args=(wake,), daemon=True).start()
        threading.Thread(target=server.serve, daemon=True).start()
        with _announced(server, options, isolation, reason):
            os.read(signaled, 1)
            _handle_signals(_end_at_once)
            server.shutdown()
            server.runner.stop()
            _handle_signals(_ignore)
    return 0


def _server(
    options: argparse.Namespace,
    folder: Path,
    plugin_class: type[EmulatorPlugin],
    isolation: Isolation,
) -> EmulatorServer:
    """The server with everything that it serves.

    Raises StateError, InvalidCsv, PluginError or PortError.
    """
    settings = _competition_settings(options)
    datasets = Datasets(folder / "_datasets", options.inputs, dict(options.dataset_pending))
    limits = _limits(options)
    kaggle_settings = KaggleSettings(
        mounts=options.mounts,
        limits=limits,
        rules_not_accepted=settings.rules_not_accepted,
        own_output=options.own_output == "mount",
        deleted_listed=options.deleted_listed,
    )
    kaggle = EmulatedKaggle(folder, options.inputs, kaggle_settings, datasets)
    submissions = folder / "_submissions"
    competitions = Competitions(submissions, options.inputs, options.solutions, settings)
    uploads = Uploads(folder / "_uploads")
    try:
        server = plugin_class.server_class(options.port, folder, options.verbose)
    except OSError as error:
        raise PortError(f"cannot listen on 127.0.0.1:{options.port}: {error.strerror}") from None
    try:
        server.kaggle, server.uploads = kaggle, uploads
        downloads = Downloads(folder / "_downloads", server.endpoint)
        server.downloads = downloads
        shared = (uploads, downloads, server.endpoint)
        competitions_api = CompetitionsApi(kaggle, competitions, *shared)
        datasets_api = DatasetsApi(datasets, *shared)
        server.plugin = plugin_class(options, server)
        server.runner = SessionRunner(
            kaggle, isolation, server.endpoint, limits, server.plugin.new_session
        )
        kernels_api = KernelsApi(kaggle, server.runner, server.endpoint, options.user)
        server.calls = kernels_api.calls | competitions_api.calls | datasets_api.calls
        server.identify_account = kernels_api.account
        server.plugin.configure()
    except BaseException:
        server.server_close()
        raise
    return server


def _handle_signals(handler: Callable[[int, object], None]) -> None:
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end_at_once(number: int, _frame: object) -> None:
    """Leave every `with` block, and so end the runs and remove temporary folders."""
    _handle_signals(_ignore)  # a further one must not interrupt that
    raise SystemExit(128 + number)


def _ignore(number: int, _frame: object) -> None:
    """A handler that does nothing."""


def _stop_on_signals() -> tuple[int, int]:
    """A pipe, reading end first, that gets a byte when a signal asks the emulator to stop.

    The interpreter's C handler writes it in whichever thread the signal arrives. A Python handler
    would have to wait for the main thread, which waits for the signal.
    """
    signaled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    _handle_signals(_ignore)
    return signaled, wake


def _wait_for_end_of_input(wake: int) -> None:
    """Wait until standard input is closed, which also happens when its writer is killed."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.write(wake, b"!")


@contextlib.contextmanager
def _announced(
    server: EmulatorServer, options: argparse.Namespace, isolation: Isolation, reason: str
) -> Iterator[None]:
    """Print the address and write the ready file; remove the file at the end."""
    ready: Path | None = options.ready_file
    if ready is not None:
        port, pid = server.server_address[1], os.getpid()
        details = {"endpoint": server.endpoint, "port": port, "pid": pid, "user": options.user}
        write_json(ready, details | {"isolation": isolation, "reason": reason})
    proxy = f"KAGGLE_API_ENVIRONMENT=LOCALHOST http_proxy={server.endpoint} no_proxy="
    credentials = f"KAGGLE_USERNAME={options.user} KAGGLE_KEY=any"
    print(f"Local Kaggle at {server.endpoint} (isolation: {isolation})")
    print(f"export KERNELKIT_ENDPOINT={server.endpoint}")
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


def _lock_state(folder: Path) -> None:
    """Mark the folder as a state folder and lock it until this process ends.

    Raises StateError if another emulator uses it.
    """
    try:
        file = lock_file(folder / MARK)
    except BlockingIOError:
        raise StateError(f"{folder} is in use by another emulator") from None
    os.ftruncate(file, 0)
    os.write(file, json.dumps(FORMAT).encode() + b"\n")


def _isolation(option: str) -> tuple[Isolation | None, str]:
    """The isolation of runs, and why it is not a namespace.

    None, after a message, if this machine does not support the option.
    """
    if option == "folders":
        return "folders", "--isolation folders"
    reason = why_no_namespace()
    if not reason:
        return "namespace", ""
    if option == "namespace":
        _fail(f"no namespace on this machine: {reason}")
        return None, reason
    print(f"No namespace on this machine ({reason}): runs get folders instead,", file=sys.stderr)
    print("with an open network and inputs that are not write-protected.", file=sys.stderr)
    return "folders", reason


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, type[EmulatorPlugin]]:
    """The options and the plugin, which may add options of its own. Raises PluginError."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--plugin")
    name = first.parse_known_args(arguments)[0].plugin
    plugin_class = load_plugin(name) if name else EmulatorPlugin
    parser = argparse.ArgumentParser(
        prog="kernelkit emulator",
        description="A local Kaggle.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=_port, default=0, help="0 selects a free one (default)")
    add("--inputs", type=_folder, help="folder of sub-folders named by slug")
    add("--state", type=_state, help="keep versions, outputs, logs here")
    add("--mounts", choices=["new", "old"], default="new", help="layout of /kaggle/input")
    add(
        "--own-output", choices=["mount", "drop"], default="mount", help="of a kernel, as its input"
    )
    add("--user", type=_user, default="rehearsal", help="the account of every token")
    listed = "a deleted kernel stays in lists"
    add("--deleted-listed", type=_hours, default=DELETED_LISTED, metavar="SECONDS", help=listed)
    add("--check", action="store_true", help="print the isolation of runs, and serve nothing")
    add("--isolation", choices=["auto", "namespace", "folders"], default="auto")
    add("--ready-file", type=Path, help="write this JSON file once it listens")
    add("--lifeline", action="store_true", help="stop when standard input is closed")
    add("--verbose", action="store_true", help="log every request to stderr")
    add("--plugin", metavar="MODULE:CLASS", help="for tests: see kernelkit.emulator.plugin")
    _add_limit_options(parser)
    _add_competition_options(parser)
    plugin_class.add_options(parser)
    options = parser.parse_args(arguments)
    if options.solutions and options.inputs and _is_mounted(options.solutions, options.inputs):
        parser.error(f"{options.solutions} is in the inputs: a run could read the solutions")
    return options, plugin_class


def _add_limit_options(parser: argparse.ArgumentParser) -> None:
    """The options of sessions and quotas."""
    add = parser.add_argument
    for machine, most in SESSIONS.items():
        add(
            f"--{machine.lower()}-sessions",
            type=_count,
            default=most,
            metavar="N",
            help=f"of an account at once ({most})",
        )
    for machine, seconds in QUOTAS.items():
        add(
            f"--{machine.lower()}-quota",
            type=_hours,
            default=seconds / HOUR,
            metavar="HOURS",
            help="of an account in a week",
        )
    add("--time-limit", type=_positive, metavar="SECONDS", help="of a run, by Kaggle's clock")
    add("--queue", type=_hours, default=0.0, metavar="SECONDS", help="a run stays queued")
    add("--machines", type=_machines, metavar="N", help="runs at once; more stay queued")
    add("--clock", type=_speed, default=1.0, metavar="SPEED", help="60: an hour passes in a minute")


def _limits(options: argparse.Namespace) -> AccountLimits:
    chosen = vars(options)
    return AccountLimits(
        sessions={machine: chosen[f"{machine.lower()}_sessions"] for machine in SESSIONS},
        time={m: options.time_limit or seconds for m, seconds in TIME_LIMITS.items()},
        quota={machine: chosen[f"{machine.lower()}_quota"] * HOUR for machine in QUOTAS},
        queue=options.queue,
        machines=options.machines,
        clock=Clock(options.clock),
    )


def _add_competition_options(parser: argparse.ArgumentParser) -> None:
    """The options of competitions and datasets."""
    add = parser.add_argument
    add("--solutions", type=_folder, help="folder of <slug>/solution.csv, never mounted")
    add("--metric", default="", metavar="NAME", help=f"{', '.join(METRICS)}, or module:function")
    add("--scoring-seconds", type=_hours, default=SCORING, metavar="SECONDS", help="in PENDING")
    add("--daily-submissions", type=_count, default=DAILY, metavar="N", help="of one account")
    add("--silent-limit", action="store_true", help="accept more, but do not store them")
    for name, explanation in {
        "--rules-not-accepted": "of this competition",
        "--code-competition": "one that takes no uploads",
    }.items():
        add(name, action="append", default=[], metavar="SLUG", type=str.lower, help=explanation)
    add(
        "--dataset-pending",
        action="append",
        default=[],
        metavar="OWNER/SLUG:SECONDS",
        type=_pending,
        help="seconds until READY",
    )


def _competition_settings(options: argparse.Namespace) -> CompetitionSettings:
    return CompetitionSettings(
        options.daily_submissions,
        options.silent_limit,
        options.scoring_seconds,
        frozenset(options.rules_not_accepted),
        frozenset(options.code_competition),
        options.metric,
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port (0 to 65535)")
    return port


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text).resolve()


def _state(text: str) -> Path:
    """A folder that is new or empty, or the state of an earlier emulator."""
    path = Path(text)
    valid = not path.exists() or (path / MARK).is_file()
    if not valid and (not path.is_dir() or any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{text} is neither empty nor a state folder")
    return path


def _user(text: str) -> str:
    if not is_account(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an account (letters, digits, - and _)")
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


def _speed(text: str) -> float:
    if not 0 < (speed := float(text)) <= FASTEST:
        raise argparse.ArgumentTypeError(f"must be more than 0, and {FASTEST:.0f} at most")
    return speed


def _machines(text: str) -> int:
    if (machines := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return machines


def _pending(text: str) -> tuple[str, float]:
    name, _, seconds = text.rpartition(":")
    owner, slash, slug = name.partition("/")
    if not slash or not is_account(owner) or not slug:
        raise argparse.ArgumentTypeError(f"{text!r} is not OWNER/SLUG:SECONDS")
    return name.lower(), _hours(seconds)


def _is_mounted(solutions: Path, inputs: Path) -> bool:
    """Whether a run could read a solution in its inputs, also through a link."""
    mounted = [inputs, *(path.resolve() for path in inputs.iterdir())]
    secret = [solutions, *(path.resolve() for path in solutions.glob("*/solution.csv"))]
    return any(path.is_relative_to(place) for path in secret for place in mounted)


def _fail(message: str, code: int = MACHINE) -> int:
    print(f"kernelkit emulator: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
