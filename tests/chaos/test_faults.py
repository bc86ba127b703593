"""Each fault as a client sees it; and without a fault, nothing changes."""

import email.utils
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from kagglesdk import KaggleClient, KaggleEnv, kaggle_env
from kagglesdk.kaggle_creds import KaggleCredentials

from tests.chaos import faults as catalog

PLUGIN = ("--plugin", "tests.chaos.plugin:FaultInjection")
BODY = bytes(range(256)) * 40
"""The content of `a.bin`, an output of the run that most tests read; 10,240 bytes."""
PENDING = "import time; print('one', flush=True); print('two', flush=True); time.sleep(60)"


@pytest.fixture
def inject(emulator):
    """Add faults; they are removed after the test."""
    return emulator.inject_for_all


@pytest.fixture(scope="session")
def done(emulator_server):
    """An account whose `my-kernel` has two versions that have ended, with the same outputs."""
    account = emulator_server.as_account("done-before")
    for _ in range(2):
        account.run(
            "my-kernel",
            "print('one'); print('two'); print('three')",
            "open('a.bin', 'wb').write(bytes(range(256)) * 40); open('b.txt', 'w').write('b')",
        )
    return account


@pytest.fixture
def running(emulator):
    """A kernel that is running and has logged two lines."""
    emulator.push("my-kernel", PENDING)
    log = emulator.events("my-kernel")
    assert [next(log)["data"] for _ in range(2)] == ["one\n", "two\n"]
    yield emulator
    number = emulator.session_id("my-kernel")
    emulator.call("CancelKernelSession", kernelSessionId=number)


def status(emulator, **fields):
    return emulator.call(
        "GetKernelSessionStatus", userName=emulator.account, kernelSlug="my-kernel", **fields
    )


def test_the_table_lists_every_fault_with_its_keys():
    """The table documents each name, default call, key and mark."""
    table = catalog.__doc__.split("  -----", 1)[1]
    rows = re.findall(r"^    ([a-z]\S+)  +(\S+)  +((?:.*\n)(?:^ {30,}.*\n)*)", table, re.M)
    assert sorted(name for name, *_ in rows) == sorted(catalog.FAULTS)
    short = {"status": catalog.STATUS, "quota": catalog.QUOTA, "listing": catalog.LISTING}
    for name, call, text in rows:
        assert re.search(r"\[[VDA?]\]", text), name
        made = catalog.make(name)
        assert made.call == short.get(call, call), name
        own = {k for k in vars(made) if not k.startswith("_")} - set(catalog.CONTROL)
        defaults = dict(reversed(re.findall(r"\b(\w+)=(\S*?)[,;:)]?(?=\s)", text)))
        assert own <= set(defaults), name
        for key in own - {"message"}:
            default = getattr(made, key)
            plain = str(default).lower() if isinstance(default, bool) else default
            assert defaults[key] == (f"{plain:g}" if isinstance(plain, float) else f"{plain}"), name
        assert (made.times == 0) == ("(times=0)" in text), name


@pytest.mark.parametrize(
    ("fault", "code", "kind"),
    [
        ("forbidden", 403, "json"),
        ("forbidden,code=404", 404, "json"),
        *((f"server-error,code={code}", code, "json") for code in (500, 502, 503, 504)),
        ("rate-limit", 429, "json"),
        ("html", 200, "html"),
        ("html,code=502", 502, "html"),
        ("error-in-200", 200, "json"),
        ("error-in-200,code=401,message=No", 200, "json"),
    ],
)
def test_a_response_is_replaced_once(done, inject, fault, code, kind):
    inject(fault)
    answer = status(done)
    assert answer.status_code == code
    assert kind in answer.headers["Content-Type"]
    if kind == "json":
        assert answer.json()["code"] >= 400
        assert answer.json()["message"]
    else:
        assert answer.text.startswith("<!DOCTYPE html>")
    assert status(done).json() == {"status": "COMPLETE"}
    assert [r["faults"] for r in done.journal()[-2:]] == [[fault.partition(",")[0]], []]
    assert [r["code"] for r in done.journal()[-2:]] == [code, 200]


def test_a_rate_limit_has_retry_after(done, inject):
    inject(
        "rate-limit,retry_after=7",
        "rate-limit,form=date,retry-after=7,at=2",
        "rate-limit,form=none,at=3",
    )
    values = [status(done).headers.get("Retry-After") for _ in range(3)]
    assert (values[0], values[2]) == ("7", None)
    moment = email.utils.parsedate_to_datetime(values[1]).timestamp()
    assert 4 < moment - time.time() < 9


def raw(emulator, request):
    """All bytes of the response to a request, except its date."""
    with socket.create_connection(("127.0.0.1", emulator.port), 20) as connection:
        connection.sendall(request)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return re.sub(rb"Date: .*?\r\n", b"", answer)


def test_faults_of_another_account_change_nothing(done, inject):
    """Byte for byte: every fault is active, but not for this account."""
    about = {"userName": done.account, "kernelSlug": "my-kernel"}
    address = done.outputs("my-kernel")["b.txt"]
    download = address.removeprefix(done.endpoint)
    key = f"Authorization: {done.headers['Authorization']}\r\nConnection: close\r\n"
    requests_ = [
        f"GET {download} HTTP/1.1\r\n{key}\r\n",
        f"GET {download} HTTP/1.1\r\nRange: bytes=0-0\r\n{key}\r\n",
        f"HEAD {download} HTTP/1.1\r\n{key}\r\n",
        f"GET /api/v1/kernels/logs/stream/{done.account}/my-kernel HTTP/1.1\r\n{key}\r\n",
        f"DELETE {download} HTTP/1.1\r\n{key}\r\n",
        f"GET /nothing HTTP/1.1\r\n{key}\r\n",
    ]
    service = "/api/v1/kernels.KernelsApiService"
    for method, fields in [
        ("GetKernel", about),
        (catalog.STATUS, about),
        ("ListKernelFiles", {**about, "pageSize": 1}),
        ("ListKernelSessionOutput", about),
        ("ListKernelFiles", {**about, "pageSize": -1}),
        (catalog.QUOTA, {}),
        ("Unknown", {}),
    ]:
        body = json.dumps(fields)
        head = f"POST {service}/{method} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
        requests_.append(f"{head}{key}\r\n{body}")
    before = [raw(done, request.encode()) for request in requests_]
    inject(*({"fault": name, "account": "another", "times": 0} for name in catalog.FAULTS))
    assert [raw(done, request.encode()) for request in requests_] == before
    assert {answer.split()[1] for answer in before} == {b"200", b"206", b"400", b"501"}
    assert not any(record["faults"] for record in done.journal()[-len(before) + 2 :])


def test_keys_select_the_requests(done, inject):
    def codes(count):
        return [status(done).status_code for _ in range(count)]

    inject("forbidden,at=2,times=2")
    assert codes(5) == [200, 403, 403, 200, 200]
    inject("forbidden,times=0,account=another", "forbidden,times=0,kernel=another")
    assert codes(1) == [200]
    inject("forbidden,kernel=my-kernel,account=done-before", {"fault": "server-error", "at": 2})
    assert codes(3) == [403, 502, 200]
    inject("server-error,call=GetKernel+ListKernelFiles")
    assert codes(1) == [200]
    assert done.call("ListKernelFiles").status_code == 502
    inject("forbidden,lasting=0.6")
    began = time.monotonic()
    while status(done).status_code == 403:
        assert time.monotonic() - began < 5
    assert time.monotonic() - began > 0.5
    assert codes(2) == [200, 200]


def test_the_seed_determines_random_faults(launch):
    """With the same seed the same requests are struck, with another seed others."""

    def struck(seed):
        emulator = launch(*PLUGIN, "--seed", seed, "--fault", "html,chance=0.5,times=0")
        return "".join(status(emulator).headers["Content-Type"][-1] for _ in range(24))

    first = struck("1")
    assert len(set(first)) == 2
    assert struck("1") == first != struck("2")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("lost-before,call=any", "RemoteDisconnected"),
        ("reset", "ConnectionResetError"),
        ("lost-before,call=any,reset=true", "ConnectionResetError"),
    ],
)
def test_a_connection_can_close_without_a_response(done, inject, fault, error):
    inject(fault)
    with pytest.raises(requests.ConnectionError, match=error):
        status(done)
    assert done.journal()[-1]["code"] is None
    assert status(done).ok


def test_a_response_can_be_delayed(done, inject):
    inject("timeout,seconds=0.5", "timeout,seconds=0.5,when=after,at=2")
    for _ in range(2):
        began = time.monotonic()
        assert status(done).json() == {"status": "COMPLETE"}
        assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize(
    ("fault", "versions"),
    [
        ("lost-before", 0), ("lost-after", 1), ("lost-after,reset=true", 1),
        ("server-error,call=SaveKernel", 0), ("server-error,call=SaveKernel,when=after", 1),
        ("html,call=SaveKernel,when=after", 1), ("error-in-200,call=SaveKernel,when=after", 1),
        ("rate-limit,call=SaveKernel,when=after", 1), ("save-error,message=Kaput", 0),
        ("session-cap", 0), ("session-cap,kind=CPU", 0), ("quota", 0),
    ],
)  # fmt: skip
def test_the_response_to_a_push_can_be_lost(emulator, inject, fault, versions):
    """The journal and GetKernel show whether the push was carried out."""
    inject(fault)
    text = emulator.notebook(f'\'"digest": "{"a1" * 32}"\'')
    try:
        answer = emulator.push("my-kernel", text=text)
        assert "versionNumber" not in answer
        messages = {"save-error": "Kaput", "quota": "GPU quota", "session-cap": "session count"}
        if not versions:
            assert messages[fault.partition(",")[0]] in answer["error"]
    except requests.RequestException:
        pass
    except ValueError:
        assert fault.startswith("html")
    effects = emulator.journal("effects")
    digests = [(e["effect"], e["kernel"], e["number"], e["digest"]) for e in effects]
    made = [("version", f"{emulator.account}/my-kernel", 1, "a1" * 32)]
    assert digests == made * versions
    assert [e["text_sha256"] for e in effects] == [
        hashlib.sha256(text.encode()).hexdigest()
    ] * versions
    assert emulator.call("GetKernel", kernelSlug="my-kernel", userName=emulator.account).ok == bool(
        versions
    )


def test_the_previous_version_can_be_shown(emulator, inject):
    inject("stale-status,times=0", "stale-kernel,times=0")
    emulator.run("my-kernel", "print(1)")  # without a previous version nothing is stale
    emulator.push("my-kernel", PENDING)
    for pinned in ({}, {"versionLabel": "v2"}):
        assert status(emulator, **pinned).json() == {"status": "COMPLETE"}
    shown = emulator.ask("GetKernel", "my-kernel")
    assert shown["metadata"]["currentVersionNumber"] == 1
    assert PENDING not in shown["blob"]["source"]
    lost = {"userName": emulator.account, "kernelSlug": "my-kernel", "versionLabel": "v2"}
    assert emulator.call("GetKernel", **lost).status_code == 404
    emulator.remove_faults()
    assert status(emulator).json() != {"status": "COMPLETE"}
    assert emulator.ask("GetKernel", "my-kernel")["metadata"]["currentVersionNumber"] == 2
    inject("queued")
    assert status(emulator, versionLabel="v1").json() == {}
    emulator.call("CancelKernelSession", kernelSessionId=emulator.session_id("my-kernel", 2))


@pytest.mark.parametrize(
    ("kind", "reported"),
    [("competition", True), ("dataset", False), ("kernel", True), ("model", False)],
)
@pytest.mark.usefixtures("done")
def test_data_sources_can_be_dropped(emulator, inject, kind, reported):
    sources = {
        "competition": "some-competition",
        "dataset": "someone/some-dataset",
        "kernel": "done-before/my-kernel",
        "model": "someone/model/pyTorch/base/1",
    }
    inject(f"dropped-source,kind={kind},reported={str(reported).lower()}")
    fields = {f"{name}DataSources": [source] for name, source in sources.items()}
    answer = emulator.push("my-kernel", "print(1)", **fields)
    dropped = answer.get(f"invalid{kind.capitalize()}Sources", [])
    assert dropped == ([sources[kind]] if reported else [])
    metadata = emulator.ask("GetKernel", "my-kernel")["metadata"]
    assert f"{kind}DataSources" not in metadata
    assert ("competitionDataSources" in metadata) == (kind != "competition")
    emulator.finish("my-kernel")


def test_settings_can_differ_from_the_request(emulator, inject):
    inject("public", "internet-flipped", "other-machine,shape=", "quota-used")
    emulator.push("my-kernel", "print(1)", machineShape="NvidiaTeslaT4", isPrivate=True)
    emulator.finish("my-kernel")
    metadata = emulator.ask("GetKernel", "my-kernel")["metadata"]
    assert (metadata["isPrivate"], metadata["enableInternet"]) == (False, True)
    assert metadata["enableGpu"]
    assert "machineShape" not in metadata
    gpu = emulator.call("GetAcceleratorQuotaStatistics").json()["gpuQuota"]
    assert gpu["timeUsed"] == gpu["totalTimeAllowed"]
    inject("other-machine")
    assert emulator.ask("GetKernel", "my-kernel")["metadata"]["machineShape"] == "NvidiaTeslaP100"


@pytest.mark.parametrize(
    ("fault", "status", "outputs"),
    [
        ("run-cancelled", "CANCEL_ACKNOWLEDGED", []),
        ("run-cancelled,seconds=0.2", "CANCEL_ACKNOWLEDGED", []),
        ("run-error,outputs=kept", "ERROR", ["out.txt"]),
        ("run-error", "ERROR", []),
    ],
)
def test_the_end_of_a_run_can_be_forced(emulator, inject, fault, status, outputs):
    inject(fault)
    emulator.push("my-kernel", "open('out.txt', 'w').write('x')" if "=0" not in fault else PENDING)
    assert emulator.finish("my-kernel")[0]["status"] == status
    assert list(emulator.outputs("my-kernel")) == outputs


def read_stream(emulator):
    """The entries of the log stream, whether END_OF_LOG came, and how the stream broke off."""
    url = f"{emulator.endpoint}/api/v1/kernels/logs/stream/{emulator.account}/my-kernel"
    entries, ended, broken = [], False, ""
    try:
        with requests.get(url, headers=emulator.headers, stream=True, timeout=20) as answer:
            for line in answer.iter_lines(decode_unicode=True):
                ended = ended or line == "data: END_OF_LOG"
                if line.startswith("data: {"):
                    entries.append(json.loads(line[6:])["data"].strip())
    except requests.RequestException as error:
        broken = repr(error)
    return entries, ended, broken


def test_streams_can_break_off_pause_and_repeat(running, inject):
    inject("stream-cut,entries=1")
    entries, ended, broken = read_stream(running)
    assert (entries, ended) == (["one"], False)
    assert "IncompleteRead" in broken or "ended prematurely" in broken
    inject("stream-cut,entries=1,reset=true")
    assert "ConnectionResetError" in read_stream(running)[2]
    inject("stream-cut,bytes=90")
    assert read_stream(running)[0] == ["one"]
    inject("stream-silent,entries=1,seconds=0.7", "stream-cut,entries=2")
    began = time.monotonic()
    assert read_stream(running)[0] == ["one", "two"]
    assert time.monotonic() - began >= 0.7
    inject("stream-replayed,entries=2", "stream-cut,entries=4")
    assert read_stream(running)[0] == ["one", "two", "one", "two"]


def test_a_stream_can_miss_its_end(emulator, inject):
    emulator.push("my-kernel", "print('one', flush=True); import time; time.sleep(1)")
    inject("stream-endless")
    assert read_stream(emulator) == (["one"], False, "")


def test_pages_can_be_small_and_repeat(done, inject):
    inject("pages,size=1")
    first = done.ask("ListKernelSessionOutput", "my-kernel", pageSize=100)
    second = done.ask("ListKernelSessionOutput", "my-kernel", pageToken=first["nextPageToken"])
    assert [f["fileName"] for f in first["files"] + second["files"]] == ["a.bin", "b.txt"]
    assert "nextPageToken" not in second
    inject("page-circle")
    token = done.ask("ListKernelFiles", "my-kernel", pageToken=first["nextPageToken"])[
        "nextPageToken"
    ]
    for _ in range(2):
        page = done.ask("ListKernelFiles", "my-kernel", pageToken=token)
        assert [f["name"] for f in page["files"]] == ["a.bin"]
        token = done.ask("ListKernelFiles", "my-kernel", pageToken=page["nextPageToken"])[
            "nextPageToken"
        ]


def test_download_addresses_can_expire(done, inject):
    before = done.outputs("my-kernel")["b.txt"]
    inject("expired-url,uses=1")
    assert [done.fetch(before).status_code for _ in range(2)] == [200, 403]
    urls = done.outputs("my-kernel")
    assert done.fetch(urls["b.txt"]).text == "b"
    expired = done.fetch(urls["b.txt"])
    assert (expired.status_code, expired.headers["Content-Type"]) == (403, "application/xml")
    assert done.fetch(urls["a.bin"]).content == BODY
    assert done.fetch(done.outputs("my-kernel")["b.txt"]).text == "b"
    done.remove_faults()
    inject("expired-url,uses=0,seconds=0.5,code=404,form=html")
    urls = done.outputs("my-kernel")
    assert done.fetch(urls["b.txt"]).text == "b"
    time.sleep(0.6)
    expired = done.fetch(urls["b.txt"])
    assert (expired.status_code, expired.headers["Content-Type"][:9]) == (404, "text/html")
    assert done.fetch(done.outputs("my-kernel")["b.txt"]).text == "b"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("download-cut,bytes=1000", "1000 bytes read, 9240 more expected"),
        ("download-cut,bytes=1000,reset=true", "ConnectionResetError"),
        ("wrong-length,by=10", "10240 bytes read, 10 more expected"),
    ],
)
def test_downloads_can_break_off(done, inject, fault, error):
    url = done.outputs("my-kernel")["a.bin"]
    inject(fault)
    with pytest.raises(requests.RequestException, match=error):
        done.fetch(url)
    assert done.fetch(url).content == BODY


def test_downloads_can_be_corrupted(done, inject):
    url = done.outputs("my-kernel")["a.bin"]
    inject("download-short,bytes=1000", "wrong-length,by=-10,at=2", "error-page,at=3")
    assert done.fetch(url).content == BODY[:1000]
    assert done.fetch(url).content == BODY[:-10]
    page = done.fetch(url)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert done.fetch(url).content == BODY

    inject("etag-changes")
    assert len({done.fetch(url).headers["ETag"] for _ in range(3)}) == 3
    inject("no-range")
    whole = done.fetch(url, Range="bytes=5-9")
    assert (whole.status_code, whole.content) == (200, BODY)
    assert "Accept-Ranges" not in whole.headers

    inject("download-slow,rate=20000")
    began = time.monotonic()
    assert done.fetch(url).content == BODY
    assert time.monotonic() - began >= 0.45


def test_listings_can_contain_hostile_names(done, inject):
    inject("hostile-names")
    listed = done.ask("ListKernelSessionOutput", "my-kernel")["files"]
    names = [file["fileName"] for file in listed]
    hostile = [name for kind in catalog.HOSTILE.values() for name in kind]
    assert names == ["a.bin", "b.txt", *hostile]
    assert {"../escaped.txt", "/tmp/escaped.txt", "CON", "nul\0byte.txt", "..\\escaped.txt"} < {
        *names
    }
    assert {done.fetch(file["url"]).content for file in listed[2:]} == {b"hostile\n"}
    files = done.ask("ListKernelFiles", "my-kernel")["files"]
    assert [file["name"] for file in files] == names
    done.remove_faults()
    assert done.fetch(listed[2]["url"]).status_code == 404
    inject("hostile-names,kind=reserved")
    assert list(done.outputs("my-kernel")) == ["a.bin", "b.txt", *catalog.HOSTILE["reserved"]]


def status_once_back(emulator):
    """The status from a server that was down, within 10 seconds."""
    began = time.monotonic()
    while True:
        try:
            return status(emulator).json()
        except requests.ConnectionError:
            assert time.monotonic() - began < 10
            time.sleep(0.05)


def test_a_server_can_stop_and_restart(running, inject):
    stream = running.events("my-kernel")
    next(stream)
    inject("server-dies,seconds=1,call=GetKernelSessionStatus")
    with pytest.raises(requests.ConnectionError):
        status(running)
    with pytest.raises(requests.RequestException):
        list(stream)
    with pytest.raises(requests.ConnectionError, match="refused"):
        status(running)
    assert status_once_back(running) == {"status": "RUNNING"}
    assert [next(running.events("my-kernel"))["data"]] == ["one\n"]


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_two_simultaneous_outages_count_as_one(done, inject, seconds):
    inject(f"server-dies,seconds={seconds},call=GetKernelSessionStatus,times=2")

    def fail(_):
        with pytest.raises(requests.ConnectionError):
            status(done)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fail, range(2)))
    assert status_once_back(done) == {"status": "COMPLETE"}


def test_uploads_can_fail(done, inject):
    """After a lost response, the bytes have arrived."""
    competition = "competitions.CompetitionApiService"
    about = {"competitionName": "some-competition"}
    begun = done.call(
        "StartSubmissionUpload", competition, **about, contentLength=7, fileName="s.csv"
    ).json()
    inject("server-error,call=Upload,code=503", "lost-after,call=Upload,at=2")
    with requests.Session() as session:
        assert session.put(begun["createUrl"], b"id,rle\n", timeout=10).status_code == 503
        asked = {"Content-Range": "bytes */7"}
        with pytest.raises(requests.ConnectionError):
            session.put(begun["createUrl"], b"id,rle\n", timeout=10)
        assert session.put(begun["createUrl"], headers=asked, timeout=10).status_code == 200
    inject("lost-after,call=CreateSubmission")
    fields = {**about, "blobFileTokens": begun["token"], "submissionDescription": "x"}
    with pytest.raises(requests.ConnectionError):
        done.call("CreateSubmission", competition, **fields)
    listed = done.call("ListSubmissions", competition, **about).json()["submissions"]
    refs = [e["ref"] for e in done.journal("effects") if e["effect"] == "submission"]
    assert refs == [submission["ref"] for submission in listed]
    assert len(refs) == 1


def test_credentials_can_expire(done, inject, monkeypatch, tmp_path):
    """The SDK gets a new access token with a refresh token; another key stays valid."""

    def ask(token):
        return done.call("GetAcceleratorQuotaStatistics", headers=token).status_code

    def bearer(token):
        return {"Authorization": f"Bearer {token}"}

    def active(token):
        return done.call("IntrospectToken", "security.OAuthService", token=token).json()

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, KaggleEnv.TEST, done.endpoint)
    inject("expired-credentials,at=3,times=1")
    assert [ask(bearer("old")) for _ in range(4)] == [200, 200, 401, 401]
    assert active("old") == {}
    assert (ask(bearer("other")), active("other")["active"]) == (200, True)
    assert ask(done.headers) == 200
    with KaggleClient(env=KaggleEnv.TEST) as client:
        credentials = KaggleCredentials(client, refresh_token="refresh", access_token="")
        credentials.refresh_access_token()
        assert credentials.introspect() == "rehearsal"
    assert ask(bearer(credentials.get_access_token())) == 200
    assert credentials.get_access_token() != "old"
    # Also signed with the expired token; without a refresh token it is refused.
    for fields, code in [({"refreshToken": "refresh"}, 200), ({}, 401)]:
        answer = done.call("GenerateAccessToken", "users.AccountService", bearer("old"), **fields)
        assert answer.status_code == code
    unsigned = done.call("GenerateAccessToken", "users.AccountService", {})
    assert unsigned.status_code == 401

    done.remove_faults()
    inject("expired-credentials,seconds=0.4,times=0")
    assert [ask(bearer("short")), ask(done.headers)] == [200, 200]
    time.sleep(0.5)
    assert [ask(bearer("short")), ask(done.headers), ask(bearer("new"))] == [401, 401, 200]


def test_a_run_can_be_cancelled(running):
    number = running.session_id("my-kernel")
    other = running.as_account("somebody-else").call("CancelKernelSession", kernelSessionId=number)
    assert (other.status_code, other.json()["code"]) == (403, 403)
    assert status(running).json() == {"status": "RUNNING"}
    answer = running.call("CancelKernelSession", kernelSessionId=number)
    assert (answer.status_code, answer.json()) == (200, {})
    assert running.finish("my-kernel")[0] == {"status": "CANCEL_ACKNOWLEDGED"}
    for ended in (number, 1, None):
        again = running.call("CancelKernelSession", kernelSessionId=ended)
        assert again.status_code == 200
        assert str(ended) in again.json()["errorMessage"]
    effects = [(e["effect"], e.get("session")) for e in running.journal("effects")]
    assert effects[1:] == [("cancel", number)]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["forbiden"], "no fault 'forbiden'; did you mean forbidden?"),
        (["xyzzy"], "no fault 'xyzzy'; there are forbidden, "),
        (["forbidden,cod=3"], "forbidden: no key 'cod'; did you mean code?"),
        (["forbidden,call=GetKernal"], "no call 'GetKernal'; did you mean GetKernel?"),
        (["forbidden,at=0"], "forbidden: at=0 is out of range"),
        (["forbidden,chance=2"], "chance=2 is out of range"),
        (["forbidden,times=some"], "times=some must be a whole number"),
        (["timeout,seconds=nan"], "seconds=nan must be a number"),
        (["run-error,outputs=lost"], "outputs=lost must be one of gone, kept"),
        (["reset,when"], "'when' is not key=value"),
        (["lost-after,reset=maybe"], "must be true or false"),
        ([{"fault": "html", "code": [1]}], "code=[1] must be a whole number"),
        ([{"code": 1}], "no fault ''"),
        ([7], "7 is neither"),
        ({}, "expected a JSON list of faults"),
    ],
)
def test_invalid_faults_are_refused(done, faults, message):
    answer = requests.post(f"{done.endpoint}/emulator/faults", json=faults, timeout=10)
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert status(done).ok


def test_unknown_control_addresses_are_unimplemented(done):
    for method, path in [("GET", "faults"), ("POST", "journal"), ("GET", "none")]:
        answer = done.fetch(f"{done.endpoint}/emulator/{path}", method)
        assert (answer.status_code, answer.json()["code"]) == (501, 501)
    count = len(done.journal())
    done.fetch(f"{done.endpoint}/emulator/journal")
    assert len(done.journal()) == count


@pytest.mark.slow
def test_the_official_client_sees_the_faults(emulator, kaggle, kernel_folder, tmp_path):
    """It exits 0 after a refused push; it saves no output outside of its folder (2.2.5)."""
    name, push = f"{emulator.account}/my-first-kernel", ("kernels", "push", "-p", kernel_folder)
    emulator.inject("session-cap", "lost-after,at=2", "dropped-source,kind=competition,at=3")
    assert "Maximum batch GPU session count of 2 reached." in kaggle(*push)
    assert "closed connection without response" in kaggle(*push, code=1)
    assert "['some-competition', 'none-such']" in kaggle(*push)
    for version in ("v1", "v2"):
        emulator.finish("my-first-kernel", version)

    emulator.inject("stale-status", "forbidden,at=2")
    assert "COMPLETE" in kaggle("kernels", "status", name)
    assert "Permission 'kernels.get' was denied" in kaggle("kernels", "status", name, code=1)

    out = tmp_path / "deep" / "out"
    emulator.inject("pages,size=20", "error-page")
    kaggle("kernels", "output", name, "-p", str(out))
    assert (out / "out.txt").read_text().startswith("<!DOCTYPE html>")
    emulator.inject("hostile-names,kind=parent")
    kaggle("kernels", "output", name, "-p", str(out), code=1)
    assert (out / "sub" / "24").read_text() == "24"
    assert not (tmp_path / "deep" / "escaped.txt").exists()


def test_faults_can_be_set_on_the_command_line(tmp_path):
    """`kernelkit emulator` passes them on, and the plugin's help has the whole table."""
    command = [sys.executable, "-m", "kernelkit", "emulator", "--port", "0", "--seed", "3", *PLUGIN]
    done = subprocess.run([*command, "--fault", "forbiden"], capture_output=True)
    assert done.returncode == 2
    assert b"--fault no fault 'forbiden'; did you mean forbidden?" in done.stderr
    faults = ["--fault", "forbidden", "--fault", "quota-used", "--state", str(tmp_path / "state")]
    process = subprocess.Popen(
        [*command, *faults], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        endpoint = process.stdout.readline().split()[3]
        url = f"{endpoint}/api/v1/kernels.KernelsApiService/GetAcceleratorQuotaStatistics"
        gpu = requests.post(url, auth=("me", "key"), timeout=30).json()["gpuQuota"]
        assert gpu["timeUsed"] == gpu["totalTimeAllowed"]
        journal = (tmp_path / "state" / "journal.jsonl").read_text().splitlines()
        assert json.loads(journal[0])["faults"] == ["quota-used"]
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    help_ = subprocess.run(
        [sys.executable, "-m", "kernelkit.emulator", *PLUGIN, "--help"], capture_output=True
    )
    assert b"expired-credentials  any " in help_.stdout
