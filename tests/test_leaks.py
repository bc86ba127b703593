"""No credential, however it comes in, is in any words that go out."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from kernelkit import console
from kernelkit.bundle.secrets import declare_credential, own_secrets
from kernelkit.console.safety import HIDDEN, without_signatures
from kernelkit.errors import CredentialsError, KernelkitError
from kernelkit.kaggle.answers import calling
from kernelkit.kaggle.credentials import find_credentials
from kernelkit.kaggle.types import LogEntry

Cli = Callable[..., "object"]

BEGIN, END = "0d1f5c7a9b3e2468", "97f3a1c5e8b20d64"
STRAY = {
    "return": "\r",
    "newline": "\n",
    "folded header": "\r\n X-Evil: 1",
    "ellipsis": "…",
    "quote": '"',
    "apostrophe": "'",
    "typographic quote": "\u201c",
    "byte-order mark": "\ufeff",
    "zero-width space": "\u200b",
    "no-break space": "\u00a0",
    "space": " ",
    "tab": "\t",
    "escape": "\x1b[2J",
    "letter beyond latin-1": "Ж",
    "latin-1 letter": "é",
    "lone surrogate": "\udcff",
}
Place = Callable[[Path, str], dict[str, str]]
"""Writes a secret to one place; returns the variables to set."""


def file(name: str, content: Callable[[str], str]) -> Place:
    def write(home: Path, secret: str) -> dict[str, str]:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(secret).encode(errors="surrogateescape"))
        return {}

    return write


def in_config_dir(home: Path, secret: str) -> dict[str, str]:
    key_json(home, secret)
    return {"KAGGLE_CONFIG_DIR": str(home / ".kaggle")}


def named_file(home: Path, secret: str) -> dict[str, str]:
    access_token(home, secret)
    return {"KAGGLE_API_TOKEN": str(home / ".kaggle" / "access_token")}


def as_key(secret: str) -> str:
    return json.dumps({"username": "ann", "key": secret})


access_token = file(".kaggle/access_token", str)
key_json = file(".kaggle/kaggle.json", as_key)
PLACES: dict[str, Place] = {
    "KAGGLE_KEY": lambda _, secret: {"KAGGLE_USERNAME": "ann", "KAGGLE_KEY": secret},
    "KAGGLE_API_TOKEN": lambda _, secret: {"KAGGLE_API_TOKEN": secret},
    "the key as username": lambda _, secret: {"KAGGLE_USERNAME": secret, "KAGGLE_KEY": "k"},
    "access_token": access_token,
    "access_token.txt": file(".kaggle/access_token.txt", str),
    "file named by KAGGLE_API_TOKEN": named_file,
    "kaggle.json": key_json,
    "kaggle.json in .config": file(".config/kaggle/kaggle.json", as_key),
    "kaggle.json in KAGGLE_CONFIG_DIR": in_config_dir,
    "broken kaggle.json": file(".kaggle/kaggle.json", lambda s: as_key(s)[:-1] + f", {s}"),
    "kaggle.json that is a text": file(".kaggle/kaggle.json", json.dumps),
    "kaggle.json in another encoding": file(".kaggle/kaggle.json", lambda s: as_key(s) + "\udcff"),
    "login": file(
        ".kaggle/credentials.json",
        lambda s: json.dumps({"refresh_token": s, "access_token": s, "username": "ann"}),
    ),
    "login with an odd date": file(
        ".kaggle/credentials.json",
        lambda s: json.dumps({"refresh_token": "r", "access_token_expiration": s}),
    ),
    "broken login": file(".kaggle/credentials.json", lambda s: f'{{"refresh_token": "{s}'),
}
OUTPUTS = [["push"], ["push", "--json"], ["doctor"], ["doctor", "--json"]]


def environment(place: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for scheme in ("http", "https"):  # nothing that these tests do may leave this machine
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    variables = PLACES[place](Path.home(), secret)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def require_clean(text: str) -> None:
    assert BEGIN not in text
    assert END not in text


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("place", PLACES)
def test_a_credential_with_a_stray_character_is_refused_without_being_quoted(
    place: str, stray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment(place, f"{BEGIN}{STRAY[stray]}{END}", monkeypatch)
    with pytest.raises(CredentialsError) as caught:
        find_credentials(None, variables)
    require_clean("".join(traceback.format_exception(caught.value)) + caught.value.next_step)


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
@pytest.mark.parametrize("place", PLACES)
def test_no_command_prints_a_credential(
    place: str, arguments: list[str], plain: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(place, f"{BEGIN}…{END}", monkeypatch)
    done = cli(*arguments, cwd=plain, expect=9)
    require_clean(done.stdout + done.stderr)  # type: ignore[attr-defined]
    for path in plain.rglob("*.json"):
        require_clean(path.read_text())


ADDRESSES = {  # of `notify_env`: its value, and the exit code of a command that would send
    "in the path": (f"json://127.0.0.1:9/{BEGIN}{END}", 9),
    "as a password": (f"jsons://ann:{BEGIN}{END}@127.0.0.1:9/", 9),
    "in the query": (f"json://127.0.0.1:9/?token={BEGIN}{END}", 9),
    "as the host": (f"tgram://{BEGIN}{END}/123", 2),
    "alone": (f"{BEGIN}{END}", 2),
    "with stray characters": (f"nosuch://\x1b[2J{BEGIN}…\n{END}", 2),
}


@pytest.mark.parametrize("arguments", [["run"], ["config", "--json"]], ids=" ".join)
@pytest.mark.parametrize("place", ADDRESSES)
def test_no_command_prints_the_address_of_messages(
    place: str, arguments: list[str], plain: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, code = ADDRESSES[place]
    monkeypatch.setenv("MESSAGES", address)
    path = plain / "pyproject.toml"
    section = '[tool.kernelkit]\nnotify_env = "MESSAGES"\n'
    path.write_text(path.read_text().replace("[tool.kernelkit]\n", section))
    done = cli(*arguments, cwd=plain, expect=code if arguments == ["run"] else 0)
    require_clean(done.stdout + done.stderr)  # type: ignore[attr-defined]


def test_the_traceback_of_a_bug_does_not_contain_the_address_of_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"tgram://{BEGIN}/{END}"
    monkeypatch.setenv("MESSAGES", address)
    declare_credential("MESSAGES")
    bug = RuntimeError(f"cannot send to {address}")
    bug.__cause__ = ValueError(f"https://api.telegram.org/bot{BEGIN}/sendMessage: {END}")
    assert console.report(bug, as_json=False) == 1
    console.configure()
    require_clean("".join(capsys.readouterr()))


@pytest.mark.parametrize("stray", ["\udcff", "\x1b[2J", "Ж"])
def test_the_doctor_reports_any_stray_character(
    stray: str, plain: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment("KAGGLE_API_TOKEN", f"{BEGIN}{stray}{END}", monkeypatch)
    done = cli("doctor", cwd=plain, expect=9)
    require_clean(done.stdout + done.stderr)  # type: ignore[attr-defined]


@pytest.mark.parametrize("blank", ["\n", "\r\n", " ", "\ufeff", "\u200b", "\x00", "\u00a0\t"])
@pytest.mark.parametrize("place", ["KAGGLE_KEY", "kaggle.json", "kaggle.json in .config"])
def test_blanks_around_a_credential_are_ignored(place: str, blank: str) -> None:
    secret = f"{blank}{BEGIN}{blank}"
    variables = PLACES[place](Path.home(), secret)
    found = find_credentials(None, variables)
    assert (found.username, found.key) == ("ann", BEGIN)


@pytest.mark.parametrize("name", ["kaggle.json", "access_token", "credentials.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "huge", "nested", "empty", "dangling"])
def test_odd_key_files_are_refused_or_ignored(name: str, kind: str) -> None:
    path = Path.home() / ".kaggle" / name
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.write_text({"huge": BEGIN * 10_000, "nested": '["' * 20_000, "empty": ""}[kind])
    started = time.monotonic()
    with pytest.raises(CredentialsError) as caught:
        find_credentials(None, {})
    require_clean(str(caught.value))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_token_as_windows_writes_it_is_read(
    encoding: str, local_kaggle: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes(f"{BEGIN}\r\n".encode(encoding))
    found = find_credentials(local_kaggle, {"KAGGLE_API_TOKEN": str(path)})
    assert found.token == BEGIN


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("place", ["KAGGLE_KEY", "KAGGLE_API_TOKEN", "kaggle.json", "access_token"])
def test_the_traceback_of_a_bug_does_not_contain_credentials(
    place: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = f"{BEGIN}{END}"
    environment(place, secret, monkeypatch)
    request = requests.Request("POST", "http://127.0.0.1:9", auth=("ann", secret)).prepare()
    low = ValueError(f"Invalid header value {secret + chr(13)!r}: {request.headers}")
    bug = RuntimeError(f"http://ann:{secret}@host/f?X-Goog-Signature={END}")
    bug.__cause__ = low
    assert console.report(bug, as_json=as_json) == 1
    console.configure()
    printed = "".join(capsys.readouterr())
    require_clean(printed)
    assert str(request.headers["Authorization"])[6:] not in printed or place != "KAGGLE_KEY"
    assert HIDDEN in printed


LOW_LEVEL: list[BaseException] = [
    requests.exceptions.InvalidHeader(f"Invalid character in header value: '{BEGIN}\\r'"),
    requests.exceptions.InvalidURL(f"https://storage/f?sig={BEGIN}"),
    requests.ConnectionError(f"Max retries exceeded with url: /f?sig={BEGIN}"),
    UnicodeEncodeError("latin-1", f"Bearer {BEGIN}…", 7, 8, "ordinal not in range(256)"),
    UnicodeDecodeError("utf-8", BEGIN.encode(), 0, 1, "invalid start byte"),
    ValueError(BEGIN),
    KeyError(BEGIN),
    RuntimeError(BEGIN),
    OSError(f"no number: {BEGIN}"),
]


@pytest.mark.parametrize("error", LOW_LEVEL, ids=lambda error: type(error).__name__)
def test_a_low_level_exception_is_never_quoted(error: BaseException) -> None:
    with pytest.raises(KernelkitError) as caught, calling("the push"):
        raise error
    require_clean(str(caught.value) + caught.value.next_step)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"GET https://u:{BEGIN}@host/f", f"GET https://{HIDDEN}@host/f"),
        (f"https://h/f?a=1&X-Amz-Signature={BEGIN}&b=2 end", f"https://h/f?{HIDDEN} end"),
        (f"/f?GoogleAccessId=a&Expires=1&Signature={BEGIN}", f"/f?{HIDDEN}"),
        (f'"https://h/f?access_token={BEGIN}"', f'"https://h/f?{HIDDEN}"'),
        ("https://www.kaggle.com/code/a/b?scriptVersionId=12", None),
        ("Is it there? key=value", None),
    ],
)
def test_addresses_lose_what_permits(text: str, expected: str | None) -> None:
    assert without_signatures(text) == (text if expected is None else expected)


def test_pieces_of_a_broken_credential_are_known() -> None:
    variables = {"KAGGLE_USERNAME": "ann", "KAGGLE_KEY": f"{BEGIN}\n{END}"}
    assert {BEGIN, END} <= set(own_secrets(variables, Path.home()))
    assert own_secrets({"KAGGLE_KEY": "short"}, Path.home()) == []


@pytest.fixture
def odd_headers() -> Iterator[str]:
    """A server whose headers cannot be parsed; urllib3 warns of that with the whole address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 404 No\r\nbroken header\r\nA: b\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


def test_libraries_print_no_warnings(odd_headers: str, plain: Path, cli_process: Cli) -> None:
    done = cli_process("logs", "plain-parcel/v1", "--endpoint", odd_headers, cwd=plain, expect=4)
    assert "Failed to parse headers" not in done.stderr  # type: ignore[attr-defined]
    assert done.stderr.startswith("error: ")  # type: ignore[attr-defined]


def test_the_log_of_a_run_keeps_its_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    text = "GET https://u:p@host/f?token=abc\n"
    console.log([LogEntry("stdout", 0.0, text)])
    assert capsys.readouterr().out == text
    console.configure(as_json=True)
    console.log([LogEntry("stdout", 0.0, text)])
    console.configure()
    assert json.loads(capsys.readouterr().out)[0]["text"] == text
