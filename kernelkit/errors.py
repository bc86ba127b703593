"""Every way in which kernelkit can fail, with its exit code and the next step.

    KernelkitError
    ├── ConfigError          2   the project file or the command line is wrong
    ├── BundleError          2   the package cannot be carried as it is
    ├── TemplateError        2   a template does not render
    ├── PreflightError       3   Kaggle would refuse this kernel: nothing was sent
    ├── RefusedError         4   Kaggle refused, or changed the requested settings
    │   └── NotFoundError    4   there is no such kernel or version, or it is private
    ├── CapacityError        5   try later
    │   ├── SessionCapError  5   all sessions of this account are taken
    │   ├── QuotaError       5   the week's accelerator hours are spent, or reserved
    │   └── RateLimitedError 5   too many calls
    ├── RunFailedError       6   the run itself failed
    ├── DeadlineError        7   the deadline passed, and the run continues
    ├── VerificationError    8   what was pulled or written does not match its manifest
    ├── UnreachableError     9   Kaggle does not answer
    │   └── AnswerLostError  9   a push was sent, and its response never came
    ├── CredentialsError     9   there are none, or Kaggle does not accept them
    └── LocalError          10   this machine: disk full, port taken, a damaged file

Exit code 0 means done, 1 a bug in kernelkit (any exception outside this tree), 130 interrupted.
"""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, Self


class Details(Protocol):
    """What an error says to scripts: a model of the package that raises it."""

    @property
    def document(self) -> Mapping[str, object]:
        """The keys that it adds to the document of `--json`."""


class KernelkitError(Exception):
    """A failure that is explained to a person: what is wrong, where, and what to do next.

    `next_step` is one sentence, or empty where there is nothing to advise. `details` are for
    scripts: the run that continues, or the problems one by one.
    """

    exit_code = 1

    def __init__(self, message: str, next_step: str = "", details: Details | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step
        self.details = details

    def with_message(
        self, message: str, next_step: str | None = None, details: Details | None = None
    ) -> Self:
        """The same error in other words: its class and all other attributes stay."""
        error = type(self).__new__(type(self), message)
        error.__dict__.update(self.__dict__)
        if next_step is not None:
            error.next_step = next_step
        if details is not None:
            error.details = details
        return error


class ConfigError(KernelkitError):
    """The project file, a profile, `--set` or the environment contains something unusable."""

    exit_code = 2


class BundleError(KernelkitError):
    """The package contains something that a notebook cannot carry faithfully."""

    exit_code = 2


class TemplateError(KernelkitError):
    """A template has an error; the message names the template and the line."""

    exit_code = 2


class PreflightError(KernelkitError):
    """Kaggle would refuse the kernel, or run it differently; nothing was sent."""

    exit_code = 3


class RefusedError(KernelkitError):
    """Kaggle refused, dropped a part, or changed the requested settings."""

    exit_code = 4


class NotFoundError(RefusedError):
    """There is no such kernel or version, or this account may not see it."""


class CapacityError(KernelkitError):
    """The same call may succeed later."""

    exit_code = 5


class SessionCapError(CapacityError):
    """The account runs as many sessions as it may; queued ones count."""


class QuotaError(CapacityError):
    """The accelerator hours are spent until the weekly refresh, or the user reserves the rest."""


class RateLimitedError(CapacityError):
    """Too many calls. `retry_after` is how long Kaggle asks to wait, in seconds, if it says so."""

    retry_after: float | None = None


class RunFailedError(KernelkitError):
    """The run ended with an error: by Kaggle's status, or by the run's own manifest."""

    exit_code = 6


class DeadlineError(KernelkitError):
    """The deadline passed; the run on Kaggle continues."""

    exit_code = 7


class VerificationError(KernelkitError):
    """A pulled folder does not match its manifest, or a notebook not its package."""

    exit_code = 8


class UnreachableError(KernelkitError):
    """Kaggle, or a package index, gave no usable response within the time limit of a call."""

    exit_code = 9


class AnswerLostError(UnreachableError):
    """The push was sent and no response came: Kaggle may have accepted it."""


class CredentialsError(KernelkitError):
    """No credentials were found, or Kaggle does not accept them."""

    exit_code = 9


class LocalError(KernelkitError):
    """A problem of this machine: its disk, a file, a program, a port."""

    exit_code = 10


_LIMITS = {
    errno.EMFILE: "Close other programs, or allow more open files: ulimit -n.",
    errno.ENFILE: "Close other programs.",
    errno.EAGAIN: "Close other programs, or allow more processes: ulimit -u.",
    errno.ENOMEM: "Close other programs.",
    errno.ENOSPC: "Make room, then run the same command again.",
    errno.EDQUOT: "Make room, then run the same command again.",
}


def limit_of_machine(error: BaseException) -> LocalError | None:
    """The same failure as a limit of this machine, or of its output; None if it is none."""
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        what, next_step = "it starts no more threads", _LIMITS[errno.EAGAIN]
    elif isinstance(error, MemoryError):
        what, next_step = "it has no more memory", _LIMITS[errno.ENOMEM]
    elif isinstance(error, BlockingIOError) and hasattr(error, "characters_written"):
        # Only a buffered stream sets it: the pipe behind standard output is full.
        return LocalError(
            "the output cannot be written: it is non-blocking, and its reader is too slow",
            "Write it to a file, or through `| cat`.",
        )
    elif isinstance(error, OSError) and error.errno in _LIMITS:
        what, next_step = f"{error.strerror}".lower(), _LIMITS[error.errno]
        what += f": {error.filename}" if error.filename else ""
    else:
        return None
    return LocalError(f"this machine has reached a limit: {what}", next_step)


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules that an extra of kernelkit installs are installed.

    Raises:
        ConfigError: one is missing; the next step is the command that installs them.
    """
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        what = f'kernelkit\'s extra "{extra}"'
        raise ConfigError(
            f"{' and '.join(missing)} {verb} not installed: this needs {what}",
            f"Install it: {command}" if (command := install_command(extra)) else f"Install {what}.",
        )


@contextmanager
def silent(level: int) -> Iterator[None]:
    """Without warnings, and without log records up to `level`: those of a library of an extra."""
    import logging  # it takes a few milliseconds at the start of every command
    import warnings

    before = logging.root.manager.disable
    logging.disable(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def install_command(extra: str) -> str:
    """The command that installs what an extra of kernelkit needs; empty if there is no such extra.

    It names the packages themselves: it is the same for a checkout and for a wheel.
    """
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in requires("kernelkit") or ()]
    except PackageNotFoundError:  # a checkout that is only on the path
        return ""
    needed = [
        f"{requirement.name}{requirement.specifier}"
        for requirement in declared
        if requirement.marker
        and not requirement.marker.evaluate({"extra": ""})
        and requirement.marker.evaluate({"extra": extra})
    ]
    return shlex.join([sys.executable, "-m", "pip", "install", *needed]) if needed else ""
