"""The Kaggle client against a real local server with scripted responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.config import KernelSettings
from kernelkit.errors import (
    AnswerLostError,
    CapacityError,
    CredentialsError,
    KernelkitError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    RefusedError,
    SessionCapError,
    UnreachableError,
)
from kernelkit.kaggle import competitions
from kernelkit.kaggle import types as client
from kernelkit.kaggle.competitions import Competition
from kernelkit.kaggle.kernels import Kaggle, connect
from kernelkit.kaggle.logs import parse_log
from kernelkit.kaggle.types import Credentials, State, Timeouts
from tests.kaggle.conftest import Script

Cli = Callable[..., object]
SETTINGS = KernelSettings(id="some-kernel", title="Some kernel")


def push(kaggle: Kaggle) -> client.PushResponse:
    return kaggle.save_kernel("some-kernel", "{}", SETTINGS)


def test_an_accepted_push_returns_its_version(kaggle: Kaggle, script: Script) -> None:
    script.say({"ref": "/ann/some-kernel", "url": "u", "versionNumber": 3})
    assert push(kaggle) == client.PushResponse("u", 3, {})
    path, headers, body = script.requests[0]
    assert path == "/api/v1/kernels.KernelsApiService/SaveKernel"
    assert headers["Authorization"].startswith("Basic ")
    sent = json.loads(body)
    assert (sent["slug"], sent["newTitle"]) == ("ann/some-kernel", "Some kernel")
    assert sent["enableInternet"] is False  # the server's default would be True


def test_dropped_sources_of_every_kind_are_detected(kaggle: Kaggle, script: Script) -> None:
    kinds = ["Competition", "Dataset", "Kernel", "Model"]
    answer = {f"invalid{kind}Sources": [f"some-{kind}"] for kind in kinds}
    script.say({"versionNumber": 1, "url": "u", **answer})
    assert push(kaggle).dropped == {f"{k.lower()}_sources": [f"some-{k}"] for k in kinds}


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ({"error": "Maximum batch GPU session count of 2 reached."}, 200, SessionCapError),
        ({"error": "You have used your GPU quota"}, 200, QuotaError),
        ({"error": "Something else"}, 200, RefusedError),
        ({"error": "TooManyAssignments"}, 200, SessionCapError),
        ({"error": "too_many_assignments for this account"}, 200, SessionCapError),
        ({"code": 400, "message": "toomanyassignments"}, 400, SessionCapError),
        ({"code": 400, "message": "Precondition failed."}, 400, SessionCapError),
        ({"code": 400, "message": "FAILED_PRECONDITION: busy"}, 200, SessionCapError),
        ({"code": 412, "message": "no"}, 412, SessionCapError),
        (b"<html>412</html>", 412, SessionCapError),
        ({"error": "HTTP status 412"}, 200, SessionCapError),
        ({"error": "Maximum number of GPU sessions reached"}, 200, SessionCapError),
        ({"code": 403, "message": "No accelerator quota"}, 403, QuotaError),
        ({"code": 400, "message": "no quota for NvidiaH100"}, 400, QuotaError),
        (
            {"code": 500, "message": "Maximum batch GPU session count of 2 reached."},
            500,
            SessionCapError,
        ),
        ({"code": 429, "message": "quota of calls"}, 429, RateLimitedError),
        ({"error": "You have too many active notebooks running"}, 200, SessionCapError),
        ({"error": "All GPUs are in use, try again later"}, 200, SessionCapError),
        ({"code": 400, "message": "Weekly GPU limit reached"}, 400, QuotaError),
        ({"code": 400, "message": "team used its daily Submission allowance"}, 400, CapacityError),
        ({"error": "The notebook has 412 cells: too many"}, 200, RefusedError),
        ({"error": "sessionTimeoutSeconds exceeds the maximum session length"}, 200, RefusedError),
        ({"error": "Exceeded the private dataset storage quota"}, 200, RefusedError),
        ({"error": "Dataset not found: ann/gpu-quota"}, 200, RefusedError),
        ({"error": "Session timeout must be positive"}, 200, RefusedError),
        ({"code": 400, "message": "too large"}, 400, RefusedError),
        ({"code": 400, "message": "in a 200"}, 200, RefusedError),
        ({"code": 401, "message": "who?"}, 401, CredentialsError),
        ({"code": 404, "message": "Not found"}, 404, NotFoundError),
        ({"code": 429, "message": "slowly"}, 429, RateLimitedError),
        ({"code": 500, "message": "oops"}, 500, AnswerLostError),
        (b"<html>maintenance</html>", 200, AnswerLostError),
        (b"<html>bad gateway</html>", 502, AnswerLostError),
        ({}, 200, AnswerLostError),
    ],
)
def test_every_error_response_to_a_push_has_its_exception(
    kaggle: Kaggle, script: Script, body: object, code: int, error: type[KernelkitError]
) -> None:
    script.say(body, code, "application/json" if isinstance(body, dict) else "text/html")
    with pytest.raises(error) as caught:
        push(kaggle)
    assert type(caught.value) is error
    assert len(script.requests) == 1


def test_a_push_without_a_response_is_not_retried(kaggle: Kaggle, script: Script) -> None:
    kaggle.timeouts = Timeouts(retry=5)
    script.hang_up()
    with pytest.raises(AnswerLostError, match="may have been accepted"):
        push(kaggle)
    assert len(script.requests) == 1


def test_a_push_that_was_never_sent_has_its_own_error() -> None:
    unreachable = Kaggle(Credentials("ann", "the test", key="k"), "http://127.0.0.1:9")
    with pytest.raises(UnreachableError) as caught:
        push(unreachable)
    assert not isinstance(caught.value, AnswerLostError)


def test_a_read_only_call_is_retried(kaggle: Kaggle, script: Script) -> None:
    kaggle.timeouts = Timeouts(retry=10)
    script.hang_up()
    script.say({"code": 503, "message": "busy"}, 503)
    script.say({"status": "RUNNING"})
    assert kaggle.status("ann", "k", 2).state is State.RUNNING
    assert len(script.requests) == 3
    assert json.loads(script.requests[0][2])["versionLabel"] == "v2"


@pytest.mark.parametrize(
    ("answer", "state"),
    [({}, "queued"), ({"status": "ERROR", "failureMessage": "m"}, "error")],
)
def test_a_missing_status_is_queued(
    kaggle: Kaggle, script: Script, answer: dict[str, str], state: str
) -> None:
    script.say(answer)
    assert kaggle.status("ann", "k", 1) == client.Status(
        State(state), answer.get("failureMessage", "")
    )


def test_an_unknown_status_does_not_crash(kaggle: Kaggle, script: Script) -> None:
    script.say({"status": "MEDITATING"})
    with pytest.raises(UnreachableError, match="not the API's"):
        kaggle.status("ann", "k", 1)


def test_every_page_of_outputs_is_read(kaggle: Kaggle, script: Script) -> None:
    for number in range(3):
        page = {"files": [{"fileName": f"f{number}", "url": "u"}], "log": "" if number else "[]"}
        script.say({**page, **({"nextPageToken": f"t{number}"} if number < 2 else {})})
    files, log = kaggle.outputs("ann", "k", 1)
    assert ([file.name for file in files], log) == (["f0", "f1", "f2"], "[]")
    assert [json.loads(body).get("pageToken") for _, _, body in script.requests] == [
        None,
        "t0",
        "t1",
    ]


def test_rehearsals_only_connect_to_this_machine(kaggle: Kaggle) -> None:
    with pytest.raises(RefusedError, match="another machine"):
        kaggle.file_session().get("http://192.0.2.1/f")
    with pytest.raises(AssertionError):
        Kaggle(Credentials("ann", "the test", key="k"), "http://192.0.2.1:80")


@pytest.mark.parametrize(
    "address",
    [
        *("http://192.0.2.1/f?sig=abc", "http://127.0.0.1@192.0.2.1/f", "http://[::ffff:1.2.3.4]/"),
        *("//192.0.2.1/f", "http://127.0.0.1.evil.test/", "http://2130706433.evil.test/"),
    ],
)
def test_redirections_of_a_rehearsal_stay_on_this_machine(
    kaggle: Kaggle, script: Script, address: str
) -> None:
    script.redirect(address)
    with pytest.raises(RefusedError, match="another machine") as caught:
        kaggle.quota()
    assert "abc" not in str(caught.value)


def test_proxies_are_not_used_for_a_local_kaggle(
    kaggle: Kaggle, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    script.say({"status": "COMPLETE"})
    assert kaggle.status("ann", "k", 1).state is State.COMPLETE


def test_a_local_kaggle_never_receives_stored_credentials() -> None:
    home = Path.home()
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "access_token").write_text("secret-token")
    (home / ".kaggle" / "kaggle.json").write_text('{"username": "real", "key": "secret"}')
    local = connect("http://127.0.0.1:9", {})
    assert local.credentials.username == "rehearsal"
    assert "secret" not in str(local.session.auth)


def test_credentials_are_found_like_by_the_official_client(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="no Kaggle credentials"):
        connect(None, {})
    (tmp_path / "kaggle.json").write_text('{"username": "file", "key": "k"}')
    where = {"KAGGLE_CONFIG_DIR": str(tmp_path)}
    assert connect(None, where).credentials.username == "file"
    assert (
        connect(None, {**where, "KAGGLE_USERNAME": "env", "KAGGLE_KEY": "k"}).credentials.username
        == "env"
    )


def test_the_owner_of_a_token_is_looked_up(kaggle: Kaggle, script: Script) -> None:
    script.say({"active": True, "username": "ann"})
    found = connect(kaggle.endpoint, {"KAGGLE_API_TOKEN": "t"})
    assert found.credentials.username == "ann"
    assert script.requests[0][1]["Authorization"] == "Bearer t"
    script.answers[:] = [(200, "application/json", b'{"active": false}')]
    with pytest.raises(CredentialsError, match="invalid or expired"):
        connect(kaggle.endpoint, {"KAGGLE_API_TOKEN": "t"})


def test_a_submission_is_uploaded_and_submitted(
    kaggle: Kaggle, script: Script, tmp_path: Path
) -> None:
    table = tmp_path / "submission.csv"
    table.write_text("id,rle_mask\n")
    script.say({})
    script.say({"token": "t", "createUrl": kaggle.endpoint + "/upload"})
    script.say(b"", 201, "text/plain")
    script.say({"message": "Successfully submitted", "ref": 7})
    assert Competition(kaggle, "salt").submit_file(table, "v1 by hand", "v1") == 7
    (_, (_, _, start), (path, headers, body), (_, _, enter)) = script.requests
    assert json.loads(start)["contentLength"] == len(body) == 12
    assert (path, body) == ("/upload", table.read_bytes())
    assert "Authorization" not in headers
    assert json.loads(enter)["blobFileTokens"] == "t"
    assert json.loads(enter)["submissionDescription"] == "v1 by hand"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ({"message": "The deadline of this competition has passed."}, RefusedError, "has passed"),
        ({"message": "Your team is too large"}, RefusedError, "Kaggle says: Your team is too"),
        ({"message": "x\r\n\x1b[2Jverified: y"}, RefusedError, "Kaggle says: x verified: y"),
        ({"message": "You have used your submission limit"}, CapacityError, "used your"),
        ({"message": "Maximum number of daily submissions reached"}, CapacityError, "Maximum"),
        ({"message": "Only 5 submissions per day", "ref": 0}, CapacityError, "Only 5"),
        ({}, RefusedError, "gives no reason"),
        ({"message": None, "ref": None}, RefusedError, "gives no reason"),
    ],
)
def test_kaggles_words_about_a_submission_without_number_are_reported(
    kaggle: Kaggle,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, object],
    error: type[KernelkitError],
    words: str,
) -> None:
    monkeypatch.setattr(competitions, "LISTED_SECONDS", 0)
    table = tmp_path / "submission.csv"
    table.write_text("id,rle_mask\n")
    script.say({})
    script.say({"token": "t", "createUrl": kaggle.endpoint + "/upload"})
    script.say(b"", 201, "text/plain")
    script.say(answer)
    script.say({})
    with pytest.raises(error) as caught:
        Competition(kaggle, "salt").submit_file(table, "v1", "v1")
    assert words in str(caught.value)


def test_an_upload_is_not_redirected(kaggle: Kaggle, script: Script, tmp_path: Path) -> None:
    """Only the first address was checked; a file must not go to another one."""
    table = tmp_path / "submission.csv"
    table.write_text("id,rle_mask\n")
    script.say({})
    script.say({"token": "t", "createUrl": kaggle.endpoint + "/upload"})
    script.redirect("/elsewhere")
    with pytest.raises(RefusedError, match=r"redirected to 127\.0\.0\.1"):
        Competition(kaggle, "salt").submit_file(table, "v1", "v1")
    assert [path for path, *_ in script.requests][2:] == ["/upload"]


def test_a_refused_upload_is_not_submitted(kaggle: Kaggle, script: Script, tmp_path: Path) -> None:
    table = tmp_path / "submission.csv"
    table.write_text("id,rle_mask\n")
    script.say({})
    script.say({"token": "t", "createUrl": kaggle.endpoint + "/upload"})
    script.say(b"too large", 413, "text/plain")
    with pytest.raises(RefusedError, match="413"):
        Competition(kaggle, "salt").submit_file(table, "v1", "v1")
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("reserved", "left", "shown"),
    [("7200s", 18.0, 2.0), ("0s", 20.0, 0.0), (None, 20.0, 0.0), ("360000s", 0.0, 100.0)],
)
def test_hours_reserved_by_running_sessions_are_not_left(
    kaggle: Kaggle, script: Script, reserved: str | None, left: float, shown: float
) -> None:
    quota = {"timeUsed": "36000s", "totalTimeAllowed": "108000s"}
    quota |= {"timeReserved": reserved} if reserved else {}
    script.say({"gpuQuota": quota, "quotaRefreshTime": "2026-12-01T00:00:00Z"})
    found = kaggle.quota()
    assert (found.used, found.allowed, found.reserved, found.left) == (10.0, 30.0, shown, left)


def test_an_unsupported_call_is_reported(kaggle: Kaggle, script: Script) -> None:
    script.say({"code": 501, "message": "unimplemented: X"}, 501)
    with pytest.raises(RefusedError, match="does not have the call"):
        kaggle.quota()


def test_a_server_that_is_not_kaggle_is_reported(kaggle: Kaggle, script: Script) -> None:
    script.say(b"<html>Unsupported method ('POST')</html>", 501, "text/html")
    with pytest.raises(UnreachableError, match="is not Kaggle"):
        kaggle.quota()


def test_repeating_page_tokens_are_rejected(kaggle: Kaggle, script: Script) -> None:
    for token in ("a", "b", "a"):
        script.say({"files": [{"fileName": "f", "url": "u"}], "nextPageToken": token})
    with pytest.raises(RefusedError, match="has no end"):
        kaggle.outputs("ann", "k", 1)


def test_a_broken_login_file_is_reported(kaggle: Kaggle) -> None:
    folder = Path.home() / ".kaggle"
    folder.mkdir()
    (folder / "credentials.json").write_text("[1]")
    with pytest.raises(CredentialsError, match=r"credentials\.json cannot be read"):
        connect(None, {})
    assert kaggle.credentials.username == "ann"


def test_logs_are_read_in_every_format() -> None:
    entry = {"stream_name": "stderr", "time": 1.5, "data": "x\n"}
    assert parse_log(json.dumps([entry])) == [client.LogEntry("stderr", 1.5, "x\n")]
    assert [e.text for e in parse_log("plain\nlines\n")] == ["plain\n", "lines\n"]
    assert parse_log("") == []
    assert parse_log('[{"time": "soon"}, 3, null]') == [client.LogEntry("stdout", 0.0, "")]
