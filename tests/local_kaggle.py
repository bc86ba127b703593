"""The local Kaggle in tests: starts real emulator processes and calls them over HTTP.

The fixtures are in `tests/conftest.py`:

    emulator      the worker's shared emulator, with an account of the test's own (LocalKaggle)
    launch        starts emulators with other options, without a plugin; they end with the test
    local_kaggle  the address of the shared emulator (str)
    kaggle        runs the official client against the shared emulator
    replay_options  for `launch`: the plugin and the recordings of the shared emulator

The shared emulator has the plugin `tests.replay:RecordAndReplay`. A notebook that was run before in
the same test run, by any worker, is replayed within milliseconds. The kernel's slug is part of the
notebook's source: tests that use the same project, settings and slug share a recording, so give
each test its own account, not its own slug. For a real run, take
`emulator.as_account("live-…")`.

    def test_a_run_is_pulled(emulator, cli, project):
        cli("run", cwd=project, env=emulator.environment)       # kernelkit against the emulator
        assert len(emulator.journal("effects")) == 1             # what the emulator has done

    def test_a_lost_response(emulator, cli, project):
        emulator.inject("lost-after")                            # only requests of this account
        cli("push", cwd=project, env=emulator.environment)
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import requests
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = "tests.replay:RecordAndReplay"
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
KERNELS = "kernels.KernelsApiService"
TIMEOUT = (5, 90)
"""Seconds for a connection and for a response: two runs on a busy machine take long."""

TIMED_OUT = {
    "status": "CANCEL_ACKNOWLEDGED",
    "failureMessage": "Your notebook was stopped because it exceeded the max allowed execution "
    "duration.",
}
"""The status of a run that reached its time limit."""


def notebook(*cells: str, kernelspec: Mapping[str, str] | None = KERNELSPEC) -> str:
    """The source of a notebook with these cells; always the same for the same cells."""
    book = new_notebook(cells=[new_code_cell(c, id=f"cell-{n}") for n, c in enumerate(cells)])
    if kernelspec:
        book.metadata["kernelspec"] = kernelspec
    return str(nbformat.writes(book))


@dataclass(frozen=True)
class LocalKaggle:
    """A running emulator, and one account on it."""

    process: subprocess.Popen[str]
    state: Path | None
    ready_file: Path
    ready: dict[str, Any]
    """The content of the ready file."""
    lines: Sequence[str]
    """Its output so far."""
    account: str = "alice"

    notebook = staticmethod(notebook)

    @property
    def endpoint(self) -> str:
        return str(self.ready["endpoint"])

    @property
    def port(self) -> int:
        return int(self.ready["port"])

    def as_account(self, account: str) -> LocalKaggle:
        """The same emulator with another account."""
        return replace(self, account=account)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for kernelkit: the endpoint and this account's credentials."""
        credentials = {"KAGGLE_USERNAME": self.account, "KAGGLE_KEY": "key"}
        return {"KERNELKIT_ENDPOINT": self.endpoint, **credentials}

    @property
    def headers(self) -> dict[str, str]:
        token = base64.b64encode(f"{self.account}:key".encode()).decode()
        return {"Authorization": f"Basic {token}"}

    # Kaggle's calls

    def call(
        self,
        method: str,
        /,
        service: str = KERNELS,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        **fields: Any,
    ) -> requests.Response:
        """The raw response of a call."""
        url = f"{self.endpoint}/api/v1/{service}/{method}"
        body = json.dumps(fields).encode() if data is None else data
        headers = self.headers if headers is None else headers
        with direct_session() as session:
            return session.post(url, data=body, headers=headers, timeout=TIMEOUT)

    def ask(self, method: str, /, slug: str, **fields: Any) -> Any:
        """The JSON of a call about one of the account's kernels."""
        response = self.call(method, userName=self.account, kernelSlug=slug, **fields)
        response.raise_for_status()
        return response.json()

    def push(self, slug: str, *cells: str, text: str | None = None, **fields: Any) -> Any:
        """Push a notebook with these cells; the JSON of the response."""
        request = {
            "slug": f"{self.account}/{slug}",
            "newTitle": slug,
            "text": notebook(*cells) if text is None else text,
            "language": "python",
            "kernelType": "notebook",
            "isPrivate": True,
        }
        response = self.call("SaveKernel", **(request | fields))
        response.raise_for_status()
        return response.json()

    def events(self, slug: str, label: str = "") -> Iterator[dict[str, Any]]:
        """The entries of the log as they arrive; ends with the run."""
        url = f"{self.endpoint}/api/v1/kernels/logs/stream/{self.account}/{slug}"
        query = {"versionLabel": label} if label else {}
        with (
            direct_session() as session,
            session.get(
                url, params=query, headers=self.headers, stream=True, timeout=TIMEOUT
            ) as response,
        ):
            response.raise_for_status()
            if response.headers["Content-Type"] == "application/json":
                yield from response.json()
                return
            assert response.headers["Content-Type"] == "text/event-stream"
            for line in response.iter_lines(decode_unicode=True):
                if line == "data: END_OF_LOG":
                    return
                if line.startswith("data: "):
                    yield json.loads(line[6:])
        raise AssertionError("the stream ended without END_OF_LOG")

    def finish(self, slug: str, label: str = "") -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait for the end of the run: its status and its whole log."""
        log = list(self.events(slug, label))
        pinned = {"versionLabel": label} if label else {}
        return self.ask("GetKernelSessionStatus", slug, **pinned), log

    def run(self, slug: str, *cells: str, **fields: Any) -> str:
        """Push and wait; the run must complete. Returns what it has printed."""
        answer = self.push(slug, *cells, **fields)
        status, log = self.finish(slug, f"v{answer['versionNumber']}")
        assert status == {"status": "COMPLETE"}, log_text(log)
        return log_text(log)

    def outputs(self, slug: str, **fields: Any) -> dict[str, str]:
        """The first page of output files: names and addresses."""
        files = self.ask("ListKernelSessionOutput", slug, **fields).get("files", [])
        return {file["fileName"]: file["url"] for file in files}

    def fetch(self, url: str, method: str = "GET", **headers: str) -> requests.Response:
        with direct_session() as session:
            return session.request(method, url, headers=headers, timeout=TIMEOUT)

    def folder(self, slug: str, version: int = 1) -> Path:
        """The folder of a version in the state folder."""
        assert self.state is not None
        return self.state / self.account / slug / f"v{version}"

    def session_id(self, slug: str, version: int = 1) -> int:
        """The number of a run's session."""
        record = json.loads((self.folder(slug, version) / "version.json").read_text())
        return int(record["session_id"])

    # The plugin's calls

    def inject(self, *faults: str) -> None:
        """Add faults for requests of this account only. Fixtures remove them."""
        self.inject_for_all(*(f"{fault},account={self.account}" for fault in faults))

    def inject_for_all(self, *faults: Any) -> None:
        """Add faults for all accounts, as text or objects."""
        with direct_session() as session:
            url = f"{self.endpoint}/emulator/faults"
            response = session.post(url, json=list(faults), timeout=TIMEOUT)
        assert response.ok, response.text

    def remove_faults(self) -> None:
        """Remove all faults, of all accounts."""
        assert self.fetch(f"{self.endpoint}/emulator/faults", "DELETE").ok

    def journal(self, kind: str = "requests") -> list[dict[str, Any]]:
        """The account's part of the journal; `kind` is requests or effects."""
        records = self.fetch(f"{self.endpoint}/emulator/journal").json()[kind]
        return [record for record in records if record["account"] == self.account]

    # The process

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait; the exit status and what was written to stderr."""
        self.process.send_signal(number)
        try:
            _, stderr = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler prints where it hangs
            raise AssertionError(self.process.communicate()[1]) from None
        return self.process.returncode, stderr


def direct_session() -> requests.Session:
    """A session that ignores proxies of the environment."""
    session = requests.Session()
    session.trust_env = False
    return session


def log_text(log: Sequence[Mapping[str, Any]]) -> str:
    """The text of a log."""
    return "".join(entry["data"] for entry in log)


def start_emulator(
    folder: Path,
    *options: str,
    inputs: Path | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    state: Path | bool = True,
) -> LocalKaggle:
    """Start an emulator and wait until it listens.

    `state`: a folder of an earlier emulator, True for a new one, False for a temporary one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    arguments = ["--ready-file", str(ready), *options]
    kept = folder / "state" if state is True else state or None
    if kept:
        arguments += ["--state", str(kept)]
    if inputs:
        arguments += ["--inputs", str(inputs)]
    passed = {
        name: os.environ[name] for name in ("PATH", "LANG", "TZ", "TMPDIR") if name in os.environ
    }
    process = subprocess.Popen(
        [*prefix, sys.executable, "-X", "faulthandler", "-m", "kernelkit.emulator", *arguments],
        cwd=ROOT,
        env={**passed, "HOME": str(folder)} if environment is None else environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    if not ready.exists():
        _, stderr = process.communicate(timeout=30)
        raise AssertionError(f"no emulator: {lines} {stderr}")
    details = json.loads(ready.read_text())
    assert urllib.parse.urlsplit(details["endpoint"]).hostname == "127.0.0.1"
    return LocalKaggle(process, kept, ready, details, lines)
