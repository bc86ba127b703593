"""Each lie of the local Kaggle, seen through the wire; and that without one nothing is changed."""

import email.utils
import hashlib
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from kagglesdk import KaggleClient, KaggleEnv, kaggle_env
from kagglesdk.kaggle_creds import KaggleCredentials

from kernelkit.emulator import faults as catalogue

BODY = bytes(range(256)) * 40
"""What the run that most tests read has left in `a.bin`; 10,240 bytes."""
PENDING = "import time; print('one', flush=True); print('two', flush=True); time.sleep(60)"


@pytest.fixture
def lie(emulator):
    """Set faults; none is left after the test."""
    address = f"{emulator.endpoint}/emulator/faults"

    def setter(*faults):
        answer = requests.post(address, json=list(faults), timeout=10)
        assert answer.ok, answer.text

    yield setter
    assert requests.delete(address, timeout=10).ok


@pytest.fixture(scope="module")
def done(shared):
    """An account whose `my-kernel` has two versions that have ended, with the same outputs."""
    account = shared.as_account("done-before")
    for _ in range(2):
        account.run(
            "my-kernel",
            "print('one'); print('two'); print('three')",
            "open('a.bin', 'wb').write(bytes(range(256)) * 40); open('b.txt', 'w').write('b')",
        )
    return account


@pytest.fixture
def running(emulator):
    """A kernel whose run goes on, and has logged two lines."""
    emulator.push("my-kernel", PENDING)
    log = emulator.events("my-kernel")
    assert [next(log)["data"] for _ in range(2)] == ["one\n", "two\n"]
    yield emulator
    number = session_of(emulator, "my-kernel")
    emulator.call("CancelKernelSession", kernelSessionId=number)


def session_of(emulator, slug, version=1):
    """The number of a run's session."""
    return json.loads((emulator.folder(slug, version) / "version.json").read_text())["session_id"]


def status(emulator, **fields):
    return emulator.call(
        "GetKernelSessionStatus", userName=emulator.account, kernelSlug="my-kernel", **fields
    )


def journal(emulator, kind="requests"):
    """The account's part of the journal."""
    told = emulator.fetch(f"{emulator.endpoint}/emulator/journal").json()[kind]
    return [record for record in told if record["account"] == emulator.account]


def test_the_table_lists_every_fault_with_its_keys():
    """The table is the one place that says them: each name, default call, key and mark."""
    table = catalogue.__doc__.split("  -----", 1)[1]
    rows = re.findall(r"^    ([a-z]\S+)  +(\S+)  +((?:.*\n)(?:^ {30,}.*\n)*)", table, re.M)
    assert sorted(name for name, *_ in rows) == sorted(catalogue.FAULTS)
    short = {"status": catalogue.STATUS, "quota": catalogue.QUOTA, "listing": catalogue.LISTING}
    for name, call, words in rows:
        assert re.search(r"\[[VDA?]\]", words), name
        made = catalogue.make(name)
        assert made.call == short.get(call, call), name
        own = {k for k in vars(made) if not k.startswith("_")} - set(catalogue.CONTROL)
        told = dict(reversed(re.findall(r"\b(\w+)=(\S*?)[,;:)]?(?=\s)", words)))
        assert own <= set(told), name
        for key in own - {"message"}:
            default = getattr(made, key)
            plain = str(default).lower() if isinstance(default, bool) else default
            assert told[key] == (f"{plain:g}" if isinstance(plain, float) else f"{plain}"), name
        assert (made.times == 0) == ("(times=0)" in words), name


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
def test_another_answer_once(done, lie, fault, code, kind):
    lie(fault)
    answer = status(done)
    assert answer.status_code == code
    assert kind in answer.headers["Content-Type"]
    if kind == "json":
        assert answer.json()["code"] >= 400
        assert answer.json()["message"]
    else:
        assert answer.text.startswith("<!DOCTYPE html>")
    assert status(done).json() == {"status": "COMPLETE"}
    assert [r["faults"] for r in journal(done)[-2:]] == [[fault.partition(",")[0]], []]
    assert [r["code"] for r in journal(done)[-2:]] == [code, 200]


def test_retry_after(done, lie):
    lie(
        "rate-limit,retry_after=7",
        "rate-limit,form=date,retry-after=7,at=2",
        "rate-limit,form=none,at=3",
    )
    told = [status(done).headers.get("Retry-After") for _ in range(3)]
    assert (told[0], told[2]) == ("7", None)
    moment = email.utils.parsedate_to_datetime(told[1]).timestamp()
    assert 4 < moment - time.time() < 9


def raw(emulator, request):
    """All bytes of an answer to a request, but for its date."""
    with socket.create_connection(("127.0.0.1", emulator.port), 20) as connection:
        connection.sendall(request)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return re.sub(rb"Date: .*?\r\n", b"", answer)


def test_faults_that_strike_others_change_nothing(done, lie):
    """Byte for byte: every fault is set, and none for this account."""
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
        (catalogue.STATUS, about),
        ("ListKernelFiles", {**about, "pageSize": 1}),
        ("ListKernelSessionOutput", about),
        ("ListKernelFiles", {**about, "pageSize": -1}),
        (catalogue.QUOTA, {}),
        ("Unknown", {}),
    ]:
        body = json.dumps(fields)
        head = f"POST {service}/{method} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
        requests_.append(f"{head}{key}\r\n{body}")
    before = [raw(done, request.encode()) for request in requests_]
    lie(*({"fault": name, "account": "nobody", "times": 0} for name in catalogue.FAULTS))
    assert [raw(done, request.encode()) for request in requests_] == before
    assert {answer.split()[1] for answer in before} == {b"200", b"206", b"400", b"501"}
    assert not any(record["faults"] for record in journal(done)[-len(before) + 2 :])


def test_which_requests_are_struck(done, lie):
    def codes(count):
        return [status(done).status_code for _ in range(count)]

    lie("forbidden,at=2,times=2")
    assert codes(5) == [200, 403, 403, 200, 200]
    lie("forbidden,times=0,account=nobody", "forbidden,times=0,kernel=another")
    assert codes(1) == [200]
    lie("forbidden,kernel=my-kernel,account=done-before", {"fault": "server-error", "at": 2})
    assert codes(3) == [403, 502, 200]
    lie("server-error,call=GetKernel+ListKernelFiles")
    assert codes(1) == [200]
    assert done.call("ListKernelFiles").status_code == 502
    lie("forbidden,lasting=0.6")
    began = time.monotonic()
    while status(done).status_code == 403:
        assert time.monotonic() - began < 5
    assert time.monotonic() - began > 0.5
    assert codes(2) == [200, 200]


def test_chance_is_the_seeds(launch):
    """The same requests of the same seed are struck, of another seed others."""

    def struck(seed):
        emulator = launch("--seed", seed, "--fault", "html,chance=0.5,times=0")
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
def test_no_answer(done, lie, fault, error):
    lie(fault)
    with pytest.raises(requests.ConnectionError, match=error):
        status(done)
    assert journal(done)[-1]["code"] is None
    assert status(done).ok


def test_silence(done, lie):
    lie("timeout,seconds=0.5", "timeout,seconds=0.5,when=after,at=2")
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
def test_a_push_without_its_answer(emulator, lie, fault, versions):
    """Whether it was done, the journal and GetKernel tell."""
    lie(fault)
    text = emulator.notebook(f'\'"digest": "{"a1" * 32}"\'')
    try:
        answer = emulator.push("my-kernel", text=text)
        assert "versionNumber" not in answer
        words = {"save-error": "Kaput", "quota": "GPU quota", "session-cap": "session count"}
        if not versions:
            assert words[fault.partition(",")[0]] in answer["error"]
    except requests.RequestException:
        pass
    except ValueError:
        assert fault.startswith("html")
    effects = journal(emulator, "effects")
    digests = [(e["effect"], e["kernel"], e["number"], e["digest"]) for e in effects]
    made = [("version", f"{emulator.account}/my-kernel", 1, "a1" * 32)]
    assert digests == made * versions
    assert [e["text_sha256"] for e in effects] == [
        hashlib.sha256(text.encode()).hexdigest()
    ] * versions
    assert emulator.call("GetKernel", kernelSlug="my-kernel", userName=emulator.account).ok == bool(
        versions
    )


def test_what_is_told_of_the_version_before(emulator, lie):
    lie("stale-status,times=0", "stale-kernel,times=0")
    emulator.run("my-kernel", "1")  # there is none before: nothing stale to tell
    emulator.push("my-kernel", PENDING)
    for pinned in ({}, {"versionLabel": "v2"}):
        assert status(emulator, **pinned).json() == {"status": "COMPLETE"}
    shown = emulator.ask("GetKernel", "my-kernel")
    assert shown["metadata"]["currentVersionNumber"] == 1
    assert PENDING not in shown["blob"]["source"]
    lost = {"userName": emulator.account, "kernelSlug": "my-kernel", "versionLabel": "v2"}
    assert emulator.call("GetKernel", **lost).status_code == 404
    requests.delete(f"{emulator.endpoint}/emulator/faults", timeout=10)
    assert status(emulator).json() != {"status": "COMPLETE"}
    assert emulator.ask("GetKernel", "my-kernel")["metadata"]["currentVersionNumber"] == 2
    lie("queued")
    assert status(emulator, versionLabel="v1").json() == {}
    emulator.call("CancelKernelSession", kernelSessionId=session_of(emulator, "my-kernel", 2))


@pytest.mark.parametrize(
    ("kind", "told"),
    [("competition", True), ("dataset", False), ("kernel", True), ("model", False)],
)
@pytest.mark.usefixtures("done")
def test_dropped_sources(emulator, lie, kind, told):
    sources = {
        "competition": "some-competition",
        "dataset": "someone/some-dataset",
        "kernel": "done-before/my-kernel",
        "model": "someone/model/pyTorch/base/1",
    }
    lie(f"dropped-source,kind={kind},told={str(told).lower()}")
    fields = {f"{name}DataSources": [source] for name, source in sources.items()}
    answer = emulator.push("my-kernel", "1", **fields)
    dropped = answer.get(f"invalid{kind.capitalize()}Sources", [])
    assert dropped == ([sources[kind]] if told else [])
    metadata = emulator.ask("GetKernel", "my-kernel")["metadata"]
    assert f"{kind}DataSources" not in metadata
    assert ("competitionDataSources" in metadata) == (kind != "competition")
    emulator.finish("my-kernel")


def test_other_than_asked(emulator, lie):
    lie("public", "internet-flipped", "other-machine,shape=", "quota-used")
    emulator.push("my-kernel", "1", machineShape="NvidiaTeslaT4", isPrivate=True)
    emulator.finish("my-kernel")
    metadata = emulator.ask("GetKernel", "my-kernel")["metadata"]
    assert (metadata["isPrivate"], metadata["enableInternet"]) == (False, True)
    assert metadata["enableGpu"]
    assert "machineShape" not in metadata
    gpu = emulator.call("GetAcceleratorQuotaStatistics").json()["gpuQuota"]
    assert gpu["timeUsed"] == gpu["totalTimeAllowed"]
    lie("other-machine")
    assert emulator.ask("GetKernel", "my-kernel")["metadata"]["machineShape"] == "NvidiaTeslaP100"


@pytest.mark.parametrize(
    ("fault", "told", "outputs"),
    [
        ("run-cancelled", "CANCEL_ACKNOWLEDGED", []),
        ("run-cancelled,seconds=0.2", "CANCEL_ACKNOWLEDGED", []),
        ("run-error,outputs=kept", "ERROR", ["out.txt"]),
        ("run-error", "ERROR", []),
    ],
)
def test_another_end(emulator, lie, fault, told, outputs):
    lie(fault)
    emulator.push("my-kernel", "open('out.txt', 'w').write('x')" if "=0" not in fault else PENDING)
    assert emulator.finish("my-kernel")[0]["status"] == told
    assert list(emulator.outputs("my-kernel")) == outputs


def read_stream(emulator):
    """The entries of the log stream, whether its end was told, and how it broke off."""
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


def test_streams(running, lie):
    lie("stream-cut,entries=1")
    entries, ended, broken = read_stream(running)
    assert (entries, ended) == (["one"], False)
    assert "IncompleteRead" in broken or "ended prematurely" in broken
    lie("stream-cut,entries=1,reset=true")
    assert "ConnectionResetError" in read_stream(running)[2]
    lie("stream-cut,bytes=90")
    assert read_stream(running)[0] == ["one"]
    lie("stream-silent,entries=1,seconds=0.7", "stream-cut,entries=2")
    began = time.monotonic()
    assert read_stream(running)[0] == ["one", "two"]
    assert time.monotonic() - began >= 0.7
    lie("stream-replayed,entries=2", "stream-cut,entries=4")
    assert read_stream(running)[0] == ["one", "two", "one", "two"]


def test_an_end_that_is_not_told(emulator, lie):
    emulator.push("my-kernel", "print('one', flush=True); import time; time.sleep(1)")
    lie("stream-endless")
    assert read_stream(emulator) == (["one"], False, "")


def test_pages(done, lie):
    lie("pages,size=1")
    first = done.ask("ListKernelSessionOutput", "my-kernel", pageSize=100)
    second = done.ask("ListKernelSessionOutput", "my-kernel", pageToken=first["nextPageToken"])
    assert [f["fileName"] for f in first["files"] + second["files"]] == ["a.bin", "b.txt"]
    assert "nextPageToken" not in second
    lie("page-circle")
    token = done.ask("ListKernelFiles", "my-kernel", pageToken=first["nextPageToken"])[
        "nextPageToken"
    ]
    for _ in range(2):
        page = done.ask("ListKernelFiles", "my-kernel", pageToken=token)
        assert [f["name"] for f in page["files"]] == ["a.bin"]
        token = done.ask("ListKernelFiles", "my-kernel", pageToken=page["nextPageToken"])[
            "nextPageToken"
        ]


def test_addresses_that_expire(done, lie):
    before = done.outputs("my-kernel")["b.txt"]
    lie("expired-url,uses=1")
    assert [done.fetch(before).status_code for _ in range(2)] == [200, 403]
    urls = done.outputs("my-kernel")
    assert done.fetch(urls["b.txt"]).text == "b"
    expired = done.fetch(urls["b.txt"])
    assert (expired.status_code, expired.headers["Content-Type"]) == (403, "application/xml")
    assert done.fetch(urls["a.bin"]).content == BODY
    assert done.fetch(done.outputs("my-kernel")["b.txt"]).text == "b"
    requests.delete(f"{done.endpoint}/emulator/faults", timeout=10)
    lie("expired-url,uses=0,seconds=0.5,code=404,form=html")
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
def test_downloads_that_break(done, lie, fault, error):
    url = done.outputs("my-kernel")["a.bin"]
    lie(fault)
    with pytest.raises(requests.RequestException, match=error):
        done.fetch(url)
    assert done.fetch(url).content == BODY


def test_downloads_that_lie(done, lie):
    url = done.outputs("my-kernel")["a.bin"]
    lie("download-short,bytes=1000", "wrong-length,by=-10,at=2", "error-page,at=3")
    assert done.fetch(url).content == BODY[:1000]
    assert done.fetch(url).content == BODY[:-10]
    page = done.fetch(url)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert done.fetch(url).content == BODY

    lie("etag-changes")
    assert len({done.fetch(url).headers["ETag"] for _ in range(3)}) == 3
    lie("no-range")
    whole = done.fetch(url, Range="bytes=5-9")
    assert (whole.status_code, whole.content) == (200, BODY)
    assert "Accept-Ranges" not in whole.headers

    lie("download-slow,rate=20000")
    began = time.monotonic()
    assert done.fetch(url).content == BODY
    assert time.monotonic() - began >= 0.45


def test_names_that_escape(done, lie):
    lie("hostile-names")
    listed = done.ask("ListKernelSessionOutput", "my-kernel")["files"]
    names = [file["fileName"] for file in listed]
    hostile = [name for kind in catalogue.HOSTILE.values() for name in kind]
    assert names == ["a.bin", "b.txt", *hostile]
    assert {"../escaped.txt", "/tmp/escaped.txt", "CON", "nul\0byte.txt", "..\\escaped.txt"} < {
        *names
    }
    assert {done.fetch(file["url"]).content for file in listed[2:]} == {b"hostile\n"}
    files = done.ask("ListKernelFiles", "my-kernel")["files"]
    assert [file["name"] for file in files] == names
    requests.delete(f"{done.endpoint}/emulator/faults", timeout=10)
    assert done.fetch(listed[2]["url"]).status_code == 404
    lie("hostile-names,kind=reserved")
    assert list(done.outputs("my-kernel")) == ["a.bin", "b.txt", *catalogue.HOSTILE["reserved"]]


def status_once_back(emulator):
    """What a server that was dead answers, within 10 seconds."""
    began = time.monotonic()
    while True:
        try:
            return status(emulator).json()
        except requests.ConnectionError:
            assert time.monotonic() - began < 10
            time.sleep(0.05)


def test_a_server_that_dies_and_comes_back(running, lie):
    stream = running.events("my-kernel")
    next(stream)
    lie("server-dies,seconds=1,call=GetKernelSessionStatus")
    with pytest.raises(requests.ConnectionError):
        status(running)
    with pytest.raises(requests.RequestException):
        list(stream)
    with pytest.raises(requests.ConnectionError, match="refused"):
        status(running)
    assert status_once_back(running) == {"status": "RUNNING"}
    assert [next(running.events("my-kernel"))["data"]] == ["one\n"]


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_server_that_dies_twice_at_once_comes_back(done, lie, seconds):
    lie(f"server-dies,seconds={seconds},call=GetKernelSessionStatus,times=2")

    def asked(_):
        with pytest.raises(requests.ConnectionError):
            status(done)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(asked, range(2)))
    assert status_once_back(done) == {"status": "COMPLETE"}


def test_uploads_are_struck_too(done, lie):
    """An answer that is lost after the effect: the bytes are there."""
    competition = "competitions.CompetitionApiService"
    about = {"competitionName": "some-competition"}
    begun = done.call(
        "StartSubmissionUpload", competition, **about, contentLength=7, fileName="s.csv"
    ).json()
    lie("server-error,call=Upload,code=503", "lost-after,call=Upload,at=2")
    with requests.Session() as session:
        assert session.put(begun["createUrl"], b"id,rle\n", timeout=10).status_code == 503
        asked = {"Content-Range": "bytes */7"}
        with pytest.raises(requests.ConnectionError):
            session.put(begun["createUrl"], b"id,rle\n", timeout=10)
        assert session.put(begun["createUrl"], headers=asked, timeout=10).status_code == 200
    lie("lost-after,call=CreateSubmission")
    fields = {**about, "blobFileTokens": begun["token"], "submissionDescription": "x"}
    with pytest.raises(requests.ConnectionError):
        done.call("CreateSubmission", competition, **fields)
    listed = done.call("ListSubmissions", competition, **about).json()["submissions"]
    refs = [e["ref"] for e in journal(done, "effects") if e["effect"] == "submission"]
    assert refs == [submission["ref"] for submission in listed]
    assert len(refs) == 1


def test_credentials_that_expire(done, lie, monkeypatch, tmp_path):
    """A refresh token gives a new access token by the SDK's own way; another key is good too."""

    def ask(token):
        return done.call("GetAcceleratorQuotaStatistics", headers=token).status_code

    def bearer(token):
        return {"Authorization": f"Bearer {token}"}

    def active(token):
        return done.call("IntrospectToken", "security.OAuthService", token=token).json()

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, KaggleEnv.TEST, done.endpoint)
    lie("expired-credentials,at=3,times=1")
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
    # With the expired one for a signature too; without a refresh token it is of no use.
    for fields, code in [({"refreshToken": "refresh"}, 200), ({}, 401)]:
        answer = done.call("GenerateAccessToken", "users.AccountService", bearer("old"), **fields)
        assert answer.status_code == code
    unsigned = done.call("GenerateAccessToken", "users.AccountService", {})
    assert unsigned.status_code == 401

    requests.delete(f"{done.endpoint}/emulator/faults", timeout=10)
    lie("expired-credentials,seconds=0.4,times=0")
    assert [ask(bearer("short")), ask(done.headers)] == [200, 200]
    time.sleep(0.5)
    assert [ask(bearer("short")), ask(done.headers), ask(bearer("new"))] == [401, 401, 200]


def test_cancel(running):
    number = session_of(running, "my-kernel")
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
    effects = [(e["effect"], e.get("session")) for e in journal(running, "effects")]
    assert effects[1:] == [("cancel", number)]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (["forbiden"], "no fault 'forbiden'; did you mean forbidden?"),
        (["xyzzy"], "no fault 'xyzzy'; there are forbidden, "),
        (["forbidden,cod=3"], "forbidden: no key 'cod'; did you mean code?"),
        (["forbidden,call=GetKernal"], "no call 'GetKernal'; did you mean GetKernel?"),
        (["forbidden,at=0"], "forbidden: at=0 is out of range"),
        (["forbidden,chance=2"], "chance=2 is out of range"),
        (["forbidden,times=some"], "times=some must be a number without a point"),
        (["timeout,seconds=nan"], "seconds=nan must be a number"),
        (["run-error,outputs=lost"], "outputs=lost must be one of gone, kept"),
        (["reset,when"], "'when' is no key=value"),
        (["lost-after,reset=maybe"], "must be true or false"),
        ([{"fault": "html", "code": [1]}], "code=[1] must be a number"),
        ([{"code": 1}], "no fault ''"),
        ([7], "7 is neither"),
        ({}, "a JSON list of faults is wanted"),
    ],
)
def test_what_is_no_fault(done, faults, words):
    answer = requests.post(f"{done.endpoint}/emulator/faults", json=faults, timeout=10)
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert status(done).ok


def test_nothing_of_the_controls_is_kaggles(done):
    for method, path in [("GET", "faults"), ("POST", "journal"), ("GET", "none")]:
        answer = done.fetch(f"{done.endpoint}/emulator/{path}", method)
        assert (answer.status_code, answer.json()["code"]) == (501, 501)
    count = len(journal(done))
    done.fetch(f"{done.endpoint}/emulator/journal")
    assert len(journal(done)) == count
