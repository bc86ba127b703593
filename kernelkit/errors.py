"""Every failure that kernelkit can end with, its exit code, and what to do next.

    KernelkitError
    ├── ConfigError         2   the project file or the command line is wrong
    ├── BundleError         2   the package cannot be carried as it is
    ├── TemplateError       2   a template does not render
    ├── PreflightError      3   Kaggle would refuse this kernel: nothing was sent
    ├── RefusedError        4   Kaggle refused, or gave other than was asked
    │   └── NotFoundError   4   there is no such kernel or version, or it is not ours to see
    ├── CapacityError       5   try later
    │   ├── SessionCapError 5   all sessions of this account are taken
    │   ├── QuotaError      5   the week's accelerator hours are spent, or reserved
    │   └── RateLimitedError 5  too many calls
    ├── RunFailedError      6   the run itself failed
    ├── DeadlineError       7   the deadline passed and the run goes on
    ├── VerificationError   8   what was pulled, or written, is not what it must be
    ├── UnreachableError    9   Kaggle does not answer
    │   └── AnswerLostError 9   a push was sent, and its answer never came
    ├── CredentialsError    9   none, or not accepted
    └── MachineError       10   this machine: disk full, port taken, a program missing

Exit code 0 is done, 1 a bug of ours (anything that is not in this tree), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class KernelkitError(Exception):
    """A failure with words for a person: what was wrong, where, and what to do next.

    `next_step` is one sentence, or empty where there is nothing to advise. `about` is what a script
    wants to know besides: the run that goes on, the problems one by one.
    """

    exit_code = 1

    def __init__(
        self, message: str, next_step: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.next_step = next_step
        self.details = dict(details or {})


class ConfigError(KernelkitError):
    """The project file, a profile, `--set` or the environment says something unusable."""

    exit_code = 2


class BundleError(KernelkitError):
    """The package holds something that a notebook cannot carry faithfully."""

    exit_code = 2


class TemplateError(KernelkitError):
    """A template has a fault: its name and line are in the message."""

    exit_code = 2


class PreflightError(KernelkitError):
    """Kaggle would refuse the kernel, or run it other than meant; nothing was sent."""

    exit_code = 3


class RefusedError(KernelkitError):
    """Kaggle said no, dropped a part, or gave other than was asked."""

    exit_code = 4


class NotFoundError(RefusedError):
    """No such kernel or version, or it belongs to somebody else."""


class CapacityError(KernelkitError):
    """The same call may pass later."""

    exit_code = 5


class SessionCapError(CapacityError):
    """As many sessions run as the account may have; queued ones count."""


class QuotaError(CapacityError):
    """Accelerator hours: spent until the week's refresh, or held back by the user's reserve."""


class RateLimitedError(CapacityError):
    """Too many calls. `retry_after` is what Kaggle asks for, in seconds, if it says so."""

    retry_after: float | None = None


class RunFailedError(KernelkitError):
    """The run ended with an error: Kaggle says so, or the run's own manifest."""

    exit_code = 6


class DeadlineError(KernelkitError):
    """The time that was given is over; the run on Kaggle is untouched by that."""

    exit_code = 7


class VerificationError(KernelkitError):
    """A pulled folder does not match its manifest, or a notebook not the package it carries."""

    exit_code = 8


class UnreachableError(KernelkitError):
    """No usable answer from Kaggle in the time that a call is given."""

    exit_code = 9


class AnswerLostError(UnreachableError):
    """The push left this machine and no answer came back: it may have been accepted."""


class CredentialsError(KernelkitError):
    """No credentials were found, or Kaggle does not accept them."""

    exit_code = 9


class LocalError(KernelkitError):
    """This machine stands in the way."""

    exit_code = 10
