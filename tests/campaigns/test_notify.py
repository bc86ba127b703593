"""Messages through the real Apprise to a real server on this machine; what they never contain."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kernelkit.campaigns.notify import messenger
from kernelkit.config import Config, load_config
from kernelkit.errors import ConfigError, PreflightError
from kernelkit.kaggle.types import Quota, State, Status
from kernelkit.notebook.manifest import Manifest
from kernelkit.runs.manifest import RunRecord
from kernelkit.runs.store import RunFolder, record_push
from kernelkit.runs.watch import EndedRun
from kernelkit.workflow import preflight
from tests.conftest import Cli
from tests.local_kaggle import LocalKaggle

PATH_WORD = "k3y0fTheHook9f8e7d6c"


@dataclass
class Receiver:
    """A server for Apprise's `json://` that keeps what it receives, or refuses it."""

    port: int = 0
    status: int = 200
    received: list[dict[str, object]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"json://user:{PATH_WORD}@127.0.0.1:{self.port}/{PATH_WORD}"

    @property
    def texts(self) -> list[object]:
        return [message["message"] for message in self.received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.received.append(json.loads(body))
            self.send_response(kept.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def config(make_project: Callable[..., Path]) -> Config:
    project = make_project({}, keys='notify_env = "HOOK"\nnotify_quota_hours = 5')
    return load_config(project, environment={})


def run_folder(config: Config, version: int = 1) -> RunFolder:
    record = RunRecord(
        owner="ann", slug="some-kernel", version=version, url="", digest="d" * 64, endpoint="e"
    )
    bundle = Manifest.model_validate({"digest": "d" * 64, "outputs": []})
    return record_push(config.project / "runs", record, bundle)


def listener(config: Config, events: list[object], receiver: Receiver) -> Callable[[object], None]:
    messages = messenger(config, events.append, {"HOOK": receiver.address})
    assert PATH_WORD not in repr(messages)
    return messages.listening(events.append)


def test_the_end_of_a_run_is_sent_once_with_slug_version_and_state(
    config: Config, receiver: Receiver
) -> None:
    events: list[object] = []
    for _ in range(2):  # such as `watch`, and later `pull`
        on_event = listener(config, events, receiver)
        on_event(EndedRun(run_folder(config), Status(State.ERROR, "a text of the run")))
    on_event(EndedRun(run_folder(config, 2), Status(State.COMPLETE)))
    assert receiver.texts == ["some-kernel v1: failed", "some-kernel v2: complete"]
    assert {message["title"] for message in receiver.received} == {"kernelkit"}
    assert len(events) == 3


def test_a_low_quota_is_sent_once_until_its_refresh(config: Config, receiver: Receiver) -> None:
    on_event = listener(config, [], receiver)
    refresh = datetime(2026, 11, 28, tzinfo=UTC)
    for used, day in ((20.0, 28), (26.0, 28), (27.0, 28), (0.0, 5), (26.5, 5)):
        on_event(Quota(used, 30.0, refresh.replace(day=day)))
    expected = ["some-kernel: 4.0 GPU hours left", "some-kernel: 3.5 GPU hours left"]
    assert receiver.texts == expected
    on_event(Quota(0.0, 0.0))  # Kaggle says nothing
    assert len(receiver.texts) == 2


def test_the_end_of_a_campaign_is_sent_once_for_each_state(
    config: Config, receiver: Receiver
) -> None:
    """A sweep that failed can be continued, and its end is news."""
    for state in ("failed", "failed", "complete", "complete"):
        messages = messenger(config, environment={"HOOK": receiver.address})
        messages.campaign_ended("sweep", "3f81c0de2a77", state)
    assert receiver.texts == ["some-kernel sweep: failed", "some-kernel sweep: complete"]


def test_a_message_that_cannot_be_recorded_does_not_end_the_command(
    config: Config, receiver: Receiver
) -> None:
    said: list[str] = []
    (config.project / "runs").write_text("no folder", encoding="utf-8")
    messages = messenger(config, said.append, environment={"HOOK": receiver.address})
    messages.campaign_ended("sweep", "3f81c0de2a77", "complete")
    assert receiver.texts == ["some-kernel sweep: complete"]
    assert "may be sent again" in said[0]


def test_a_message_that_fails_is_reported_and_tried_again(
    config: Config, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    events: list[object] = []
    receiver.status = 500
    on_event = listener(config, events, receiver)
    ended = EndedRun(run_folder(config), Status(State.COMPLETE))
    on_event(ended)
    assert events[1] == (
        "warning: the message 'some-kernel v1: complete' was not sent to $HOOK: "
        "the service did not accept it"
    )
    receiver.status = 200
    on_event(ended)
    assert receiver.texts == ["some-kernel v1: complete"] * 2
    assert PATH_WORD not in caplog.text + str(events)
    assert logging.root.manager.disable == 0


@pytest.mark.parametrize(
    "address", [f"nosuch://{PATH_WORD}", PATH_WORD, f"json://{PATH_WORD} x", "://"]
)
def test_an_invalid_address_is_refused_without_being_quoted(config: Config, address: str) -> None:
    try:
        messages = messenger(config, environment={"HOOK": address})
    except ConfigError as error:
        text = "".join(traceback.format_exception(error)) + error.next_step
        assert "HOOK" in text
    else:
        text = repr(messages)
        messages.listening()(EndedRun(run_folder(config), Status(State.COMPLETE)))
    assert PATH_WORD not in text


def test_the_name_of_the_variable_is_needed_and_not_its_value(make_project: object) -> None:
    assert callable(make_project)
    project = make_project({}, keys=f'notify_env = "json://127.0.0.1/{PATH_WORD}"')
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as caught:
        load_config(project, environment={})
    assert PATH_WORD not in "".join(traceback.format_exception(caught.value))


def test_without_a_value_nothing_is_sent_and_that_is_said(config: Config) -> None:
    events: list[object] = []
    assert messenger(config, events.append, {}).address == ""
    assert events == ["note: HOOK is not set, so no message is sent (notify_env)"]
    quiet = config.model_copy(update={"notify_env": ""})
    assert messenger(quiet, events.append, {"HOOK": "x"}).address == ""


@pytest.mark.parametrize(
    "address",
    [
        "json://example.com/x",
        "tgram://123456789:abcdefg_hij/123",
        "mailto://me:word@localhost?smtp=mail.example.com",
    ],
)
def test_a_local_kaggle_sends_nothing_to_other_machines(config: Config, address: str) -> None:
    events: list[object] = []
    local = config.model_copy(update={"endpoint": "http://127.0.0.1:8000"})
    assert messenger(local, events.append, {"HOOK": address}).address == ""
    assert events == ["note: a local Kaggle sends no messages to other machines (notify_env)"]
    assert messenger(config, environment={"HOOK": address}).address == address


def test_the_address_and_its_keys_never_leave_with_the_notebook(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", f"json://example.com/{PATH_WORD}")
    code = f"def run(**parameters):\n    return '{PATH_WORD}'\n"
    project = make_project({"pkg/main.py": code}, keys='notify_env = "HOOK"')
    with pytest.raises(PreflightError) as caught:
        preflight(load_config(project, environment={}))
    assert "pkg/main.py:2" in str(caught.value)
    assert PATH_WORD not in str(caught.value)


@pytest.mark.slow
def test_commands_send_a_message_and_print_no_address(
    plain: Path, emulator: LocalKaggle, receiver: Receiver, cli: Cli
) -> None:
    path = plain / "pyproject.toml"
    text = path.read_text().replace("[tool.kernelkit]\n", '[tool.kernelkit]\nnotify_env = "HOOK"\n')
    path.write_text(text)
    env = {**emulator.environment, "HOOK": receiver.address}
    done = cli("run", cwd=plain, env=env)
    assert receiver.texts == ["plain-parcel v1: complete"]
    again = cli("watch", "--json", cwd=plain, env=env)
    failed = cli("run", "--set", "epochs=1", "--profile", "failing", cwd=plain, env=env, expect=6)
    assert receiver.texts[1:] == ["plain-parcel v2: failed"]
    receiver.status = 500
    refused = cli("run", "--set", "epochs=1", cwd=plain, env=env)
    assert "was not sent to $HOOK" in refused.stdout + refused.stderr
    for one in (done, again, failed, refused):
        assert PATH_WORD not in one.stdout + one.stderr
    for file in plain.rglob("*"):
        assert not file.is_file() or PATH_WORD.encode() not in file.read_bytes()


def test_a_session_of_a_campaign_sends_no_message_of_its_own(
    config: Config, receiver: Receiver
) -> None:
    messages = messenger(config, environment={"HOOK": receiver.address})
    on_event = messages.listening(runs=False)
    on_event(EndedRun(run_folder(config), Status(State.COMPLETE)))
    assert receiver.texts == []
    on_event(Quota(29.0, 30.0))
    assert receiver.texts == ["some-kernel: 1.0 GPU hours left"]
