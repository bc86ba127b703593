"""The one door to Kaggle: typed calls of the official SDK, with timeouts, retries and plain errors.

    answers      Kaggle's faults as errors of ours; what is retried, and how long
    connection   the SDK as one account; timeouts; a local Kaggle stays on this machine
    credentials  whose account: found where the official client finds it
    logs         a run's log, live and kept
    files        outputs on their way to this disk
    kernels      the calls about kernels
    competitions the calls about a competition

The only package that imports the SDK. Nothing is printed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from kernelkit.kaggle.competitions import Competition, Scoring, Submission, Terms
from kernelkit.kaggle.connection import Connection, Credentials, Timeouts, endpoint_of
from kernelkit.kaggle.credentials import LOCAL_CREDENTIALS, find_credentials, key_files
from kernelkit.kaggle.files import OutputFile, Stopped, Transfer, download
from kernelkit.kaggle.kernels import Kaggle, KernelInfo, PushResponse, Quota, State, Status
from kernelkit.kaggle.logs import LogEntry, parse_log

__all__ = [
    "LOCAL_CREDENTIALS",
    "Competition",
    "Connection",
    "Credentials",
    "Kaggle",
    "KernelInfo",
    "LogEntry",
    "OutputFile",
    "PushResponse",
    "Quota",
    "Scoring",
    "State",
    "Status",
    "Stopped",
    "Submission",
    "Terms",
    "Timeouts",
    "Transfer",
    "connect",
    "download",
    "endpoint_of",
    "find_credentials",
    "key_files",
    "parse_log",
]


def connect(
    endpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    local_user: str | None = None,
) -> Kaggle:
    """Open a connection with the credentials that the official client would use.

    Where they stop being accepted they are looked for once more: a token may have been renewed.

    Raises:
        CredentialsError: there are none, or Kaggle does not know them.
        UnreachableError: a token's owner could not be asked for.
    """
    credentials = find_credentials(endpoint, environment, local_user)
    return Kaggle(
        credentials,
        endpoint,
        lambda: find_credentials(endpoint, environment, local_user, renew=True),
    )
