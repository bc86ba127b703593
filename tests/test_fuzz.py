"""Invalid input of every kind, derived from valid input, gives a clear error, never a traceback."""

from __future__ import annotations

import copy
import gc
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kernelkit import console
from kernelkit.bundle.bundle import read_bundle
from kernelkit.config import KernelSettings, checked_endpoint, load_config
from kernelkit.errors import ConfigError, KernelkitError
from kernelkit.kaggle.competitions import Competition
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.logs import parse_log
from kernelkit.kaggle.types import (
    Credentials,
    KernelInfo,
    LogEntry,
    PushResponse,
    Quota,
    Scoring,
    State,
    Status,
    Submission,
    Terms,
    Timeouts,
)
from kernelkit.notebook.preflight import advise, check
from kernelkit.notebook.render import render
from kernelkit.notebook.runtime import parse_event
from kernelkit.runs.identity import log_identity
from kernelkit.runs.manifest import RunManifest
from tests.screens import show_on

SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
ODD_TEXT = st.sampled_from(
    ["", " ", "\0", "\x1b[2J", "[red]", "[/]", "..", "/", "a" * 300, "é\u202e", "{{ x }}", "%s"]
) | st.text(max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63])
    | st.floats()
    | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3),
    max_leaves=6,
)


def spots(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, starting with the root."""
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from spots(value, (*path, key))


def mutated(draw: st.DrawFn, good: Any, values: st.SearchStrategy[Any]) -> Any:
    """`good` with one to three of its values replaced or removed."""
    document = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(spots(document))))
        if not path:
            continue
        *above, last = path
        place = document
        for key in above:
            place = place[key]
        if isinstance(place, dict) and draw(st.booleans()) and draw(st.booleans()):
            del place[last]
        else:
            place[last] = draw(values)
    return document


TOML = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | ODD_TEXT
    | st.datetimes()
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3),
    max_leaves=5,
)
PROJECT = {
    "project": {"name": "plain"},
    "tool": {
        "kernelkit": {
            "package": "parcel",
            "entry": "parcel.main:run",
            "outputs": ["table.csv", "letters.zip"],
            "include": ["*.txt"],
            "exclude": ["x"],
            "only_reachable": False,
            "layout": "auto",
            "pip": ["einops>=0.1"],
            "gpu_reserve_hours": 1.5,
            "allow_secrets": [],
            "templates": "parcel",
            "image": "image.json",
            "kernel": {
                "id": "plain-parcel",
                "title": "Plain parcel",
                "is_private": True,
                "machine_shape": "",
                "enable_internet": True,
                "competition_sources": ["letters"],
                "dataset_sources": ["ann/some"],
                "model_sources": ["ann/model/framework/instance/1"],
                "keywords": [],
                "session_timeout_seconds": 3,
            },
            "parameters": {"data_dir": "kaggle://input/letters", "epochs": 2, "seconds": 0.0},
            "profiles": {
                "quick": {"parameters": {"epochs": 1}, "kernel": {"title": "Plain parcel"}}
            },
        }
    },
}
FEATURES = ("templates", "image", "project")  # usually left out, because they end a load early


@st.composite
def project_files(draw: st.DrawFn) -> bytes:
    good = copy.deepcopy(PROJECT)
    for name in FEATURES:
        if draw(st.integers(0, 3)):
            good.pop(name, None)
            good["tool"]["kernelkit"].pop(name, None)
    document = mutated(draw, good, TOML)
    try:
        text = tomlkit.dumps(document)
    except Exception:  # a document that TOML cannot represent
        text = tomlkit.dumps(good)
    content = text.encode(errors="surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        lines = content.split(b"\n")
        at = draw(st.integers(0, len(lines) - 1))
        lines.insert(draw(st.integers(0, len(lines))), lines[at])
        content = b"\n".join(lines)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(content)))
        odd = st.sampled_from([b"\0", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80"])
        content = content[:at] + draw(odd | st.binary(max_size=4)) + content[at:]
    return content


def settle(project: Path, profile: str | None, given: list[str]) -> None:
    config = load_config(project, profile=profile, settings=given, environment={})
    kernel = render(read_bundle(config), config)
    check(kernel)
    advise(kernel)


@settings(max_examples=60, suppress_health_check=SHARED)
@given(
    content=project_files(),
    profile=st.sampled_from([None, "quick"]) | ODD_TEXT,
    given_=st.lists(
        st.tuples(
            st.sampled_from(["epochs", "kernel.title", "kernel.id", "kernel.", ""]) | ODD_TEXT,
            st.sampled_from(["=", " = ", ""]),
            st.sampled_from(["1", "[1]", "nan", "1979-05-27", "'x'", "1\ny=2"]) | ODD_TEXT,
        ).map("".join),
        max_size=2,
    ),
)
def test_a_project_file_loads_or_is_a_clear_error(
    plain: Path, content: bytes, profile: str | None, given_: list[str]
) -> None:
    (plain / "pyproject.toml").write_bytes(content)
    (plain / "image.json").write_text('{"complete": 1, "python": 3}')
    with suppress(KernelkitError):
        settle(plain, profile, given_)


KEYS = "[tool.kernelkit]\n"
HUGE = "0x" + "f" * 5000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (KEYS, KEYS + f'templates = "{"a" * 300}"\n'),
        (KEYS, KEYS + f'image = "{"x/" * 3000}"\n'),
        ('"parcel"', f'"{"a" * 300}"'),
        ("epochs = 2", f"epochs = {'[' * 120}{']' * 120}"),
        ("epochs = 2", f"epochs = {HUGE}"),
        ("competition_sources", f"session_timeout_seconds = {HUGE}\ncompetition_sources"),
        ('"parcel.main:run"', HUGE),
        (KEYS, KEYS + f"gpu_reserve_hours = {HUGE}\n"),
    ],
)
def test_a_value_that_is_too_long_or_too_deep_is_a_clear_error(
    plain: Path, old: str, new: str
) -> None:
    path = plain / "pyproject.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError):
        settle(plain, None, [])


@pytest.mark.parametrize("setting", [f"epochs={HUGE}", f"kernel.id={HUGE}"])
def test_a_setting_that_is_too_long_is_a_clear_error(plain: Path, setting: str) -> None:
    with pytest.raises(ConfigError):
        settle(plain, None, [setting])


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://\u2100.com", "http://127.0.0.1:99999"])
def test_an_invalid_endpoint_is_a_clear_error(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="not an http address"):
        checked_endpoint(endpoint)


SNAPSHOT = {
    "complete": True,
    "python": "3.12.3",
    "distributions": {"numpy": "2.0", "einops": None},
    "absent": ["x"],
    "modules": {"sklearn": "scikit-learn", "einops": "einops"},
}


@st.composite
def snapshots(draw: st.DrawFn) -> Any:
    return mutated(draw, SNAPSHOT, JSON)


@settings(max_examples=40, suppress_health_check=SHARED)
@given(snapshot=snapshots())
@example(
    snapshot={
        **{"complete": True, "python": "3.12.3", "distributions": {}, "absent": []},
        "modules": {"einops": ""},
    }
)
def test_a_snapshot_of_an_image_is_read_or_is_a_clear_error(plain: Path, snapshot: Any) -> None:
    path = plain / "pyproject.toml"
    text = path.read_text()
    if "image.json" not in text:
        keys = 'image = "image.json"\npip = ["einops; python_version > \'3\'"]\n'
        path.write_text(text.replace("[tool.kernelkit]\n", f"[tool.kernelkit]\n{keys}"))
        with (plain / "parcel" / "main.py").open("a") as stream:
            stream.write("\nimport einops, sklearn, numpy\n")
    (plain / "image.json").write_text(json.dumps(snapshot))
    with suppress(KernelkitError):
        settle(plain, None, [])


class Answer:
    """The server's response to every request."""

    def __init__(self) -> None:
        self.code = 200
        self.headers: list[tuple[str, str]] = []
        self.body = b""


@pytest.fixture(scope="module")
def answer() -> Answer:
    return Answer()


@pytest.fixture(scope="module")
def kaggle(answer: Answer) -> Iterator[Kaggle]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response_only(answer.code)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    now = iter(range(10**9))
    timeouts = Timeouts(
        connect=2, read=2, retry=0, grace=0, outage=0, clock=lambda: next(now) * 100.0,
        sleep=lambda _: None,
    )  # fmt: skip
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield Kaggle(Credentials("ann", "the test", key="k"), address, timeouts=timeouts)
    server.shutdown()
    server.server_close()


SETTINGS = KernelSettings(id="some-kernel", title="Some kernel")
SUBMISSION = {
    "ref": 5,
    "status": "COMPLETE",
    "publicScore": "0.5",
    "privateScore": "0.4",
    "errorDescription": "",
    "description": "mark",
    "date": "2026-01-02T03:04:05.678Z",
}
Call = Callable[[Kaggle], object]
CALLS: dict[str, tuple[Any, Call]] = {
    "save": (
        {"ref": "r", "url": "u", "versionNumber": 3, "error": "", "invalidDatasetSources": ["a"]},
        lambda k: k.save_kernel("some-kernel", "{}", SETTINGS),
    ),
    "kernel": (
        {
            "metadata": {
                "currentVersionNumber": 2,
                "isPrivate": True,
                "enableInternet": False,
                "machineShape": "T4",
                "dockerImage": "i",
                "datasetDataSources": ["a/b"],
            },
            "blob": {"source": "{}"},
        },
        lambda k: k.kernel("ann", "k", 1),
    ),
    "status": (
        {"status": "ERROR", "failureMessage": "m"},
        lambda k: k.status("ann", "k", 1),
    ),
    "outputs": (
        {"files": [{"fileName": "f", "url": "u"}], "log": "[]", "nextPageToken": ""},
        lambda k: k.outputs("ann", "k", 1),
    ),
    "sizes": (
        {"files": [{"name": "f", "size": 3}], "nextPageToken": ""},
        lambda k: k.output_sizes("ann", "k", 1),
    ),
    "quota": (
        {
            "gpuQuota": {"timeUsed": "3600s", "totalTimeAllowed": "108000.5s"},
            "quotaRefreshTime": "2026-01-02T03:04:05Z",
        },
        lambda k: k.quota(),
    ),
    "cancel": ({"errorMessage": "no"}, lambda k: k.cancel(3)),
    "dataset": ({"status": "READY"}, lambda k: k.dataset_status("ann", "d")),
    "access": ({"files": [{"name": "f"}]}, lambda k: k.competition_access("c")),
    "stream": ([{"stream_name": "stdout", "time": 1.0, "data": "x"}],
               lambda k: list(k.log_stream("ann", "k", 1, 2))),
    "terms": (
        {"maxDailySubmissions": 5, "isKernelsSubmissionsOnly": True, "userHasEntered": True,
         "submissionsDisabled": False},
        lambda k: Competition(k, "c").terms(),
    ),
    "left": (
        {"numAllowedNow": 3, "numToday": 1, "limitedByTotal": False},
        lambda k: Competition(k, "c").left_today(5),
    ),
    "submissions": (
        {"submissions": [SUBMISSION], "nextPageToken": ""},
        lambda k: list(Competition(k, "c").submissions()),
    ),
    "submission": (SUBMISSION, lambda k: Competition(k, "c").submission(5)),
    "submit": (
        {"ref": 7, "message": "m"},
        lambda k: Competition(k, "c").submit_version("ann", "k", 1, "f", "mark", "mark"),
    ),
}  # fmt: skip


def is_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_declared(value: Any) -> bool:
    """Whether a value matches its declared type."""
    match value:
        case PushResponse():
            named = [name for names in value.dropped.values() for name in names]
            return is_text(value.url, *named) and is_int(value.version)
        case KernelInfo():
            flags = (value.is_private, value.enable_internet)
            named = [name for names in value.sources.values() for name in names]
            return (
                (value.version is None or is_int(value.version))
                and is_text(value.source, value.machine_shape, value.docker_image, *named)
                and all(flag is None or isinstance(flag, bool) for flag in flags)
            )
        case Status():
            return isinstance(value.state, State) and is_text(value.failure)
        case Quota():
            return (
                isinstance(value.used, float)
                and isinstance(value.allowed, float)
                and isinstance(value.refresh, datetime | None)
            )
        case Terms():
            flags = (value.code_only, value.entered, value.closed)
            return all(isinstance(flag, bool) for flag in flags) and (
                value.daily is None or is_int(value.daily)
            )
        case Submission():
            texts = (value.public_score, value.private_score, value.error, value.description)
            return (
                is_int(value.ref)
                and isinstance(value.status, Scoring)
                and is_text(*texts)
                and isinstance(value.date, datetime | None)
            )
        case LogEntry():
            return is_text(value.stream, value.text) and value.seconds == value.seconds
        case (files, log) if isinstance(files, list):
            return is_text(log, *(text for file in files for text in (file.name, file.url)))
        case list():
            return all(map(is_declared, value))
        case dict():
            return is_text(*value) and all(map(is_int, value.values()))
        case _:
            return value is None or is_int(value) or is_text(value)


def say(answer: Answer, body: bytes, kind: str = "application/json", code: int = 200) -> None:
    answer.code, answer.body = code, body
    answer.headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]


@pytest.mark.parametrize("name", CALLS)
def test_a_valid_response_is_accepted(kaggle: Kaggle, answer: Answer, name: str) -> None:
    good, call = CALLS[name]
    say(answer, json.dumps(good).encode())
    if name == "cancel":
        with pytest.raises(KernelkitError):
            call(kaggle)
    else:
        assert is_declared(call(kaggle))


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, bytes, int]:
    name = draw(st.sampled_from(sorted(CALLS)))
    good = CALLS[name][0]
    if draw(st.integers(0, 5)) == 0:
        document = draw(JSON | st.fixed_dictionaries({"code": JSON}, optional={"message": JSON}))
    else:
        document = mutated(draw, good, JSON)
    return name, json.dumps(document).encode(), draw(st.sampled_from([200, 200, 200, 400, 500]))


@settings(max_examples=300, suppress_health_check=SHARED)
@example(("save", b'{"url": 3, "versionNumber": "x"}', 200))
@example(("save", b'{"versionNumber": 1, "invalidDatasetSources": 3}', 200))
@example(("kernel", b'{"metadata": {"isPrivate": "yes"}, "blob": {"source": 3}}', 200))
@example(("status", b'{"status": "ERROR", "failureMessage": [3]}', 200))
@example(("outputs", b'{"files": [{"fileName": 3}], "nextPageToken": [3]}', 200))
@example(("quota", b'{"gpuQuota": {"timeUsed": "99999999999999999999s"}}', 200))
@example(("terms", b'{"maxDailySubmissions": "many"}', 200))
@example(("submission", b'{"ref": [], "date": "2026-01-02T03:04:05Z"}', 200))
@example(("submission", b'{"ref": 1, "date": "0001-01-01T00:00:00+14:00"}', 200))
@example(("submit", b'{"ref": {}}', 200))
@example(("status", b'{"code": Infinity}', 400))
@example(("status", b'{"code": 1' + b"0" * 400 + b"}", 200))
@example(("status", b"[" * 100_000, 200))
@example(("status", b"[" * 100_000, 500))
@example(("stream", b"[" * 100_000, 200))
@example(("stream", b'[{"time": 1' + b"0" * 400 + b"}]", 200))
@example(("stream", b'[{"time": NaN}]', 200))
@given(case=answers())
def test_an_invalid_response_gives_a_declared_type_or_our_error(
    kaggle: Kaggle, answer: Answer, case: tuple[str, bytes, int]
) -> None:
    name, body, code = case
    say(answer, body, code=code)
    with suppress(KernelkitError):
        assert is_declared(CALLS[name][1](kaggle))


@settings(max_examples=100, suppress_health_check=SHARED)
@example(
    name="status", code=302, kind="text/html", encoding="deflate", length="short", location="/",
    retry=None, more="", body=b"{}",
)  # fmt: skip
@given(
    name=st.sampled_from(sorted(CALLS)),
    code=st.integers(200, 599) | st.sampled_from([200, 302, 429, 503]),
    kind=st.sampled_from(
        ["application/json", "text/html", "text/event-stream", "application/json; charset=x-no"]
    ),
    encoding=st.sampled_from([None, None, "gzip", "deflate", "br", "zstd", "nonsense"]),
    length=st.sampled_from(["right", "right", "short", "-1", "x", "1e3"]),
    location=st.sampled_from([None, "", "/", "http://", "http://[", "//x:y", "\xff", "ftp://h"]),
    retry=st.sampled_from([None, "nan", "inf", "-1", "1e400", "x", "Mon, 99 Foo", "9" * 20]),
    more=st.sampled_from(["", "x" * 70_000]),
    body=st.sampled_from(sorted(CALLS)).map(lambda n: json.dumps(CALLS[n][0]).encode())
    | st.binary(max_size=30)
    | st.just(b'data: {"time": 1e999}\n\ndata: [\ndata: \xff\ndata: END_OF_LOG\n'),
)
def odd_http(
    kaggle: Kaggle, answer: Answer, name: str, code: int, kind: str, encoding: str | None,
    length: str, location: str | None, retry: str | None, more: str, body: bytes,
) -> None:  # fmt: skip
    stated = {"right": len(body), "short": len(body) + 1}.get(length, length)
    headers = {
        "Content-Type": kind,
        "Content-Encoding": encoding,
        "Content-Length": str(stated),
        "Location": location,
        "Retry-After": retry,
        "X-More": more or None,
    }
    answer.code, answer.body = code, body
    answer.headers = [(name, value) for name, value in headers.items() if value is not None]
    with suppress(KernelkitError):
        assert is_declared(CALLS[name][1](kaggle))


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_invalid_http_gives_our_error(kaggle: Kaggle, answer: Answer) -> None:
    odd_http(kaggle=kaggle, answer=answer)
    # A broken redirect leaves a urllib3 socket open until it is collected. Collect it here, not in
    # another test.
    gc.collect()


@settings(max_examples=100)
@example("[" * 100_000)
@example('{"time": 1' + "0" * 400 + "}")
@example("9" * 5000)
@given(
    st.text()
    | st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("stream_name", "time", "data"), JSON))
        | JSON,
        max_size=4,
    ).map(json.dumps)
)
def test_any_log_is_read(text: str) -> None:
    entries = parse_log(text)
    assert is_declared(entries)
    text = "".join(entry.text for entry in entries)
    log_identity(RunManifest(digest="d" * 64, status="complete", outputs=()), text)
    for entry in entries:
        parse_event(entry.text)


EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(["start", "epoch", "other"])},
    optional={
        "experiments": st.lists(ODD_TEXT, max_size=3) | JSON,
        "experiment": ODD_TEXT | JSON,
        "epoch": st.integers() | JSON,
        "epochs": st.integers() | JSON,
        **dict.fromkeys(("seconds", "train_loss", "val_loss", "val_iou"), st.floats() | JSON),
    },
)


@settings(max_examples=150, suppress_health_check=SHARED)
@example(['{"event": "epoch", "experiment": "a", "seconds": 1' + "0" * 400 + "}"])
@example(['{"event": "epoch", "experiment": "a", "seconds": 1.0, "epochs": 1' + "0" * 400 + "}"])
@example(["\x1b[2J\x1b]0;title\x07", "\x9b2J"])
@example(['{"event": "epoch", "experiment": "\\u001b[2J"}'])
@given(lines=st.lists(EVENTS.map(json.dumps) | ODD_TEXT, max_size=5))
def test_no_log_line_crashes_or_controls_the_terminal(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, width=100, color_system=None)
    show_on(screen, monkeypatch)
    reporter = console.Reporter()
    for line in lines:
        reporter(LogEntry("stdout", 0.0, line))
        reporter(Status(State.ERROR, line))
        reporter(line)
        reporter.seconds_left()
        screen.print(reporter._view())
    unseen = set(shown.getvalue()) - {"\n", "\t"}
    assert not [char for char in unseen if ord(char) < 32 or 127 <= ord(char) < 160]


@settings(max_examples=30, suppress_health_check=SHARED)
@given(
    used=st.floats() | st.integers(0, 10**300).map(float),
    refresh=st.none() | st.datetimes(),
)
def test_any_quota_is_shown(
    monkeypatch: pytest.MonkeyPatch, used: float, refresh: datetime | None
) -> None:
    show_on(Console(file=io.StringIO()), monkeypatch)
    console.Reporter()(Quota(used, used, refresh))
