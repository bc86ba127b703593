"""Outputs on their way to this disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import requests
import tenacity

from kernelkit.client.answers import TransientError, retrying, words
from kernelkit.client.connection import CONNECT_SECONDS

DOWNLOAD_ATTEMPTS, DOWNLOAD_READ_SECONDS = 3, 20  # of silence; a whole file may take hours
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class OutputFile:
    """One file among a run's outputs, and where it can be fetched for a while."""

    name: str
    url: str


def download(session: requests.Session, file: OutputFile, target: Path) -> None:
    """Stream one output to `target`, whole or not at all."""
    stop = tenacity.stop_after_attempt(DOWNLOAD_ATTEMPTS)
    retrying(stop)(_download, session, file, target)


def _download(session: requests.Session, file: OutputFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with words(f"the output {file.name}"):
        timeout = (CONNECT_SECONDS, DOWNLOAD_READ_SECONDS)
        response = session.get(file.url, stream=True, timeout=timeout)
        with response:
            response.raise_for_status()
            _store(response, partial)
    partial.replace(target)


def _store(response: requests.Response, target: Path) -> None:
    expected = response.headers.get("Content-Length")
    size = 0
    with target.open("wb") as stream:
        for chunk in response.iter_content(CHUNK_BYTES):
            size += stream.write(chunk)
    encoded = "Content-Encoding" in response.headers  # then the length is not that of the file
    if expected is not None and not encoded and size != int(expected):
        raise TransientError(f"{target.name}: {size} of {expected} B came")
