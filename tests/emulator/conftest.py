"""A real emulator process for every test: port 0, the real client, real notebooks."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
KERNELS = "kernels.KernelsApiService"
TIMEOUT = (5, 90)
"""Seconds for a connection, and for an answer: two runs at once on a busy machine take long."""


def notebook(*cells, kernelspec=KERNELSPEC):
    """The source of a notebook with these cells."""
    book = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    if kernelspec:
        book.metadata["kernelspec"] = kernelspec
    return nbformat.writes(book)


@dataclass
class Emulator:
    """A local Kaggle that is listening, and one account's way to it."""

    process: subprocess.Popen
    state: Path
    ready_file: Path
    facts: dict
    account: str = "alice"

    notebook = staticmethod(notebook)

    @property
    def endpoint(self):
        return self.facts["endpoint"]

    @property
    def port(self):
        return self.facts["port"]

    def as_account(self, account):
        return Emulator(self.process, self.state, self.ready_file, self.facts, account)

    @property
    def headers(self):
        token = base64.b64encode(f"{self.account}:key".encode()).decode()
        return {"Authorization": f"Basic {token}"}

    def call(self, method, /, service=KERNELS, headers=None, data=None, **fields):
        """The raw response of a call."""
        url = f"{self.endpoint}/api/v1/{service}/{method}"
        body = json.dumps(fields).encode() if data is None else data
        headers = self.headers if headers is None else headers
        with no_proxy() as session:
            return session.post(url, data=body, headers=headers, timeout=TIMEOUT)

    def ask(self, method, /, slug, **fields):
        """The JSON of a call about one of the account's kernels."""
        response = self.call(method, userName=self.account, kernelSlug=slug, **fields)
        response.raise_for_status()
        return response.json()

    def push(self, slug, *cells, text=None, **fields):
        """The JSON of a push of a notebook with these cells."""
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

    def events(self, slug, label=""):
        """The log events, as they come; ends with the run."""
        url = f"{self.endpoint}/api/v1/kernels/logs/stream/{self.account}/{slug}"
        query = {"versionLabel": label} if label else {}
        with (
            no_proxy() as session,
            session.get(
                url, params=query, headers=self.headers, stream=True, timeout=TIMEOUT
            ) as answer,
        ):
            answer.raise_for_status()
            if answer.headers["Content-Type"] == "application/json":
                yield from answer.json()
                return
            assert answer.headers["Content-Type"] == "text/event-stream"
            for line in answer.iter_lines(decode_unicode=True):
                if line == "data: END_OF_LOG":
                    return
                if line.startswith("data: "):
                    yield json.loads(line[6:])
        raise AssertionError("the stream ended without END_OF_LOG")

    def finish(self, slug, label=""):
        """Wait for the run's end: its status, and all of its log."""
        log = list(self.events(slug, label))
        pinned = {"versionLabel": label} if label else {}
        return self.ask("GetKernelSessionStatus", slug, **pinned), log

    def run(self, slug, *cells, **fields):
        """Push and wait; the run must complete. What it printed."""
        answer = self.push(slug, *cells, **fields)
        status, log = self.finish(slug, f"v{answer['versionNumber']}")
        assert status == {"status": "COMPLETE"}, said(log)
        return said(log)

    def outputs(self, slug, **fields):
        """The first page of output files: names to addresses."""
        files = self.ask("ListKernelSessionOutput", slug, **fields).get("files", [])
        return {file["fileName"]: file["url"] for file in files}

    def fetch(self, url, method="GET", **headers):
        with no_proxy() as session:
            return session.request(method, url, headers=headers, timeout=TIMEOUT)

    def folder(self, slug, version=1):
        return self.state / self.account / slug / f"v{version}"

    def stop(self, number=signal.SIGTERM):
        """Its exit status and what it wrote to stderr."""
        self.process.send_signal(number)
        try:
            _, stderr = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler shows where it stands
            raise AssertionError(self.process.communicate()[1]) from None
        return self.process.returncode, stderr


def no_proxy():
    """A session that goes straight to the emulator, whatever the environment says."""
    session = requests.Session()
    session.trust_env = False
    return session


def said(log):
    """All text of a log."""
    return "".join(entry["data"] for entry in log)


def clean_environment(home, **more):
    """An environment without credentials, proxies or anything of Kaggle."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "TZ", "TMPDIR") if key in os.environ}
    return kept | {"HOME": str(home)} | more


def start(folder, *options, inputs=None, environment=None, prefix=(), state=True):
    """An emulator that has said that it listens; `state` may be the folder of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    arguments = ["--ready-file", str(ready), *options]
    kept = folder / "state" if state is True else state
    if kept:
        arguments += ["--state", str(kept)]
    if inputs:
        arguments += ["--inputs", str(inputs)]
    process = subprocess.Popen(
        [*prefix, sys.executable, "-X", "faulthandler", "-m", "kernelkit.emulator", *arguments],
        cwd=ROOT,
        env=clean_environment(folder) if environment is None else environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline(), process.stdout.readline()]
    if not ready.exists():
        _, stderr = process.communicate(timeout=30)
        raise AssertionError(f"no emulator: {lines} {stderr}")
    facts = json.loads(ready.read_text()) | {"lines": lines}
    assert urllib.parse.urlsplit(facts["endpoint"]).hostname == "127.0.0.1"
    return Emulator(process, kept, ready, facts)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder of inputs by slug."""
    folder = tmp_path_factory.mktemp("inputs")
    for slug, text in {"some-competition": "rows", "some-dataset": "points"}.items():
        (folder / slug / "deep").mkdir(parents=True)
        (folder / slug / "data.txt").write_text(text)
        (folder / slug / "deep" / "more.txt").write_text(text * 2)
    return folder


@pytest.fixture(scope="session")
def starter():
    """`start`, for a module that shares an emulator of its own."""
    return start


@pytest.fixture
def launch(tmp_path, inputs):
    """Start emulators with options of the test's own; all of them end with the test."""
    started = []

    def launcher(*options, **more):
        emulator = start(
            tmp_path / f"emulator{len(started)}", *options, **{"inputs": inputs, **more}
        )
        started.append(emulator)
        return emulator

    yield launcher
    for emulator in started:
        if emulator.process.poll() is None:
            emulator.stop()
        emulator.process.communicate()


@pytest.fixture(scope="session")
def shared(tmp_path_factory, inputs):
    """The emulator that most tests share, one account and slug each."""
    emulator = start(tmp_path_factory.mktemp("shared"), inputs=inputs)
    yield emulator
    code, stderr = emulator.stop()
    assert code == 0
    assert "Traceback" not in stderr


@pytest.fixture
def emulator(shared, request):
    """The shared emulator, with an account of the test's own."""
    return shared.as_account("".join(c if c.isalnum() else "-" for c in request.node.name))
