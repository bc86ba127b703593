"""The HTTP interface, as the SDK and a plain HTTP client see it."""

import base64
import http.client
import json
import socket
import threading

import pytest
import requests
from kagglesdk import KaggleClient, KaggleEnv, kaggle_env
from kagglesdk.kernels.types.kernels_api_service import (
    ApiDownloadKernelOutputRequest,
    ApiGetKernelRequest,
    ApiGetKernelSessionStatusRequest,
    ApiListKernelFilesRequest,
    ApiListKernelSessionOutputRequest,
    ApiSaveKernelRequest,
)
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

from tests.local_kaggle import TIMED_OUT

ODD_NAMES = ["ünï 盐.txt", "a&b?c#d%20e.txt", "sub/dir/deep.bin", "empty", ".hidden"]


@pytest.fixture
def sdk(emulator, monkeypatch, tmp_path):
    """The official SDK, pointed at the emulator."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_API_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, KaggleEnv.TEST, emulator.endpoint)
    with KaggleClient(env=KaggleEnv.TEST, username=emulator.account, password="key") as client:
        assert client.http_client()._endpoint.startswith("http://127.0.0.1:")
        yield client


def about(request_type, emulator, slug, **fields):
    request = request_type()
    request.user_name, request.kernel_slug = emulator.account, slug
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def save_request(emulator, slug, *cells):
    request = ApiSaveKernelRequest()
    request.slug, request.new_title = f"{emulator.account}/{slug}", slug
    request.text = emulator.notebook(*cells)
    request.language, request.kernel_type = "python", "notebook"
    request.is_private, request.enable_internet = True, False
    return request


def test_round_trip_through_the_sdk(emulator, sdk):
    api = sdk.kernels.kernels_api_client
    request = save_request(emulator, "round-trip", "open('a.txt', 'w').write('A'); print('hi')")
    request.competition_data_sources = ["some-competition", "none-such"]
    saved = api.save_kernel(request)
    assert saved.version_number == 1
    assert saved.ref == f"/code/{emulator.account}/round-trip"
    assert saved.invalid_competition_sources == ["none-such"]
    assert saved.invalid_dataset_sources == []
    assert not saved.error

    assert emulator.finish("round-trip")[0] == {"status": "COMPLETE"}
    pinned = {"version_label": "v1"}
    status = about(ApiGetKernelSessionStatusRequest, emulator, "round-trip", **pinned)
    answer = api.get_kernel_session_status(status)
    assert (answer.status, answer.failure_message) == (KernelWorkerStatus.COMPLETE, "")

    listing = about(ApiListKernelSessionOutputRequest, emulator, "round-trip", **pinned)
    outputs = api.list_kernel_session_output(listing)
    assert [file.file_name for file in outputs.files] == ["a.txt"]
    assert emulator.fetch(outputs.files[0].url).content == b"A"
    assert outputs.next_page_token == ""
    entries = json.loads(outputs.log)
    assert [(e["stream_name"], e["data"]) for e in entries] == [("stdout", "hi\n")]

    files = api.list_kernel_files(about(ApiListKernelFilesRequest, emulator, "round-trip"))
    assert [(file.name, file.size) for file in files.files] == [("a.txt", 1)]

    download = ApiDownloadKernelOutputRequest()
    download.owner_slug, download.kernel_slug = emulator.account, "round-trip"
    download.file_path, download.version_number = "a.txt", 1
    with api.download_kernel_output(download) as response:
        assert response.content == b"A"
        assert [r.status_code for r in response.history] == [302]


def test_a_pushed_kernel_can_be_read_back(emulator, sdk):
    request = save_request(emulator, "read-back", "print(1)")
    request.competition_data_sources = ["some-competition", "none-such"]
    request.dataset_data_sources = ["someone/some-dataset"]
    request.machine_shape = "NvidiaTeslaT4"
    sdk.kernels.kernels_api_client.save_kernel(request)
    emulator.finish("read-back")

    wanted = about(ApiGetKernelRequest, emulator, "read-back")
    kernel = sdk.kernels.kernels_api_client.get_kernel(wanted)
    sent, got = json.loads(request.text), json.loads(kernel.blob.source)
    assert got["cells"] == sent["cells"]
    assert got["metadata"].pop("kaggle")["isInternetEnabled"] is False
    assert got["metadata"] == sent["metadata"]
    assert kernel.metadata.ref == f"{emulator.account}/read-back"
    assert kernel.metadata.competition_data_sources == ["some-competition"]
    assert kernel.metadata.dataset_data_sources == ["someone/some-dataset"]
    assert kernel.metadata.current_version_number == 1
    assert kernel.metadata.machine_shape == "NvidiaTeslaT4"
    assert (kernel.metadata.is_private, kernel.metadata.enable_internet) == (True, False)
    assert kernel.metadata.last_run_time.year >= 2025
    assert kernel.blob.kernel_type == "notebook"


def test_the_quota_and_a_token_can_be_read(emulator, sdk):
    quota = sdk.kernels.kernels_api_client.get_accelerator_quota_statistics()
    assert quota.gpu_quota.total_time_allowed.total_seconds() == 30 * 3600
    assert quota.gpu_quota.time_used.total_seconds() == 0
    assert quota.quota_refresh_time.weekday() == 5
    request = IntrospectTokenRequest()
    request.token = "anything"
    answer = sdk.security.oauth_client.introspect_token(request)
    assert (answer.active, answer.username) == (True, "rehearsal")
    assert emulator.call("GetKernel", headers={"Authorization": "Bearer t"}).status_code == 404
    unsigned = emulator.call("IntrospectToken", "security.OAuthService", {}, token="t")
    assert unsigned.json()["active"] is True


def test_a_label_selects_a_version(emulator):
    for number in (1, 2):
        emulator.run("pinned-runs", f"open('v{number}.txt', 'w').write('{number}')")
    assert list(emulator.outputs("pinned-runs")) == ["v2.txt"]
    old = emulator.outputs("pinned-runs", versionLabel="v1")
    assert list(old) == ["v1.txt"]
    assert emulator.fetch(old["v1.txt"]).text == "1"
    pinned = emulator.ask("GetKernel", "pinned-runs", versionLabel="v1")
    assert "v1.txt" in pinned["blob"]["source"]
    assert "v1.txt" in emulator.ask("GetKernel", "pinned-runs/1")["blob"]["source"]
    assert pinned["metadata"]["currentVersionNumber"] == 2
    lost = {"userName": emulator.account, "kernelSlug": "pinned-runs", "versionLabel": "v3"}
    for method in ("GetKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"):
        response = emulator.call(method, **lost)
        assert (response.status_code, response.json()["code"]) == (404, 404)


def test_listings_have_pages(emulator):
    emulator.run("many-files", "for i in range(205): open(f'f{i:03}', 'w').write('x' * i)")
    pages, token = [], ""
    while True:
        page = emulator.ask("ListKernelSessionOutput", "many-files", pageToken=token)
        pages.append([file["fileName"] for file in page["files"]])
        if not (token := page.get("nextPageToken", "")):
            break
    assert [len(page) for page in pages] == [20] * 10 + [5]
    assert [name for page in pages for name in page] == [f"f{i:03}" for i in range(205)]

    assert len(emulator.outputs("many-files", pageSize=1000)) == 200
    files = emulator.ask("ListKernelFiles", "many-files", pageSize=2)
    assert [file["name"] for file in files["files"]] == ["f000", "f001"]
    assert "size" not in files["files"][0]  # a default is left out
    rest = emulator.ask("ListKernelFiles", "many-files", pageToken=files["nextPageToken"])
    assert [file["size"] for file in rest["files"]] == list(range(2, 22))
    for bad in ({"pageToken": "nonsense"}, {"pageSize": -1}, {"pageSize": "2"}):
        fields = {"userName": emulator.account, "kernelSlug": "many-files", **bad}
        assert emulator.call("ListKernelFiles", **fields).status_code == 400


def test_odd_names_can_be_downloaded(emulator):
    emulator.run(
        "odd-names",
        "import os, pathlib",
        f"for name in {ODD_NAMES!r}:\n"
        "    path = pathlib.Path(name)\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text('' if name == 'empty' else name)\n"
        "pathlib.Path(os.fsdecode(b'bad\\xff.bin')).write_bytes(b'\\xff')\n"
        "os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'folder'); os.mkfifo('pipe')",
    )
    outputs = emulator.outputs("odd-names")
    assert sorted(outputs) == sorted([*ODD_NAMES, "bad\ufffd.bin"])
    for name in ODD_NAMES:
        assert emulator.fetch(outputs[name]).text == ("" if name == "empty" else name)
    assert emulator.fetch(outputs["bad\ufffd.bin"]).content == b"\xff"

    key = outputs["empty"].removesuffix("/empty")
    for escape in ("..%2Fsource.ipynb", "link", "folder%2Fpasswd", "%2Fetc%2Fpasswd", "", "none"):
        assert emulator.fetch(f"{key}/{escape}").status_code == 404
    other = f"{emulator.endpoint}/download/{'0' * 32}/empty"
    assert emulator.fetch(other).status_code == 404


def test_a_range_of_a_file_can_be_downloaded(emulator):
    emulator.run("big-file", "open('big', 'wb').write(bytes(range(256)) * 4096)")
    content = bytes(range(256)) * 4096
    url = emulator.outputs("big-file")["big"]
    whole = emulator.fetch(url)
    assert whole.content == content
    assert whole.headers["Content-Length"] == str(len(content))
    assert whole.headers["Last-Modified"].endswith("GMT")
    etag = whole.headers["ETag"]

    head = emulator.fetch(url, "HEAD")
    assert (head.headers["ETag"], head.headers["Content-Length"]) == (etag, str(len(content)))
    size = len(content)
    for asked, part in {
        "bytes=10-19": content[10:20],
        "bytes=1000000-": content[1000000:],
        "bytes=-7": content[-7:],
        f"bytes={size - 1}-{size + 9}": content[-1:],
    }.items():
        answer = emulator.fetch(url, Range=asked)
        assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["Content-Range"] == f"bytes {size - 1}-{size - 1}/{size}"
    beyond = emulator.fetch(url, Range=f"bytes={size}-")
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    same = emulator.fetch(url, Range="bytes=1-1", **{"If-Range": etag})
    changed = emulator.fetch(url, Range="bytes=1-1", **{"If-Range": '"other"'})
    assert (same.status_code, changed.status_code) == (206, 200)
    assert emulator.fetch(url, Range="bytes=1-2,4-5").status_code == 200


def test_a_running_run_has_a_log_but_no_outputs(emulator):
    emulator.push(
        "live-log",
        "import pathlib, time\n"
        "print('first')\n"
        "print('partial', end='')\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
        "print(' line'); open('out', 'w')",
    )
    dropped = emulator.events("live-log")
    assert next(dropped)["data"] == "first\n"
    dropped.close()  # a client that disconnects changes nothing

    events = emulator.events("live-log")  # a new stream starts from the beginning
    assert [next(events)["data"], next(events)["data"]] == ["first\n", "partial"]
    assert emulator.ask("GetKernelSessionStatus", "live-log") == {"status": "RUNNING"}
    listing = emulator.ask("ListKernelSessionOutput", "live-log")
    assert "files" not in listing
    assert [e["data"] for e in json.loads(listing["log"])] == ["first\n", "partial"]
    assert (emulator.folder("live-log") / "log.jsonl").read_text().count("\n") == 2

    (emulator.folder("live-log") / "working" / "go").touch()
    assert [event["data"] for event in events] == [" line\n"]
    assert emulator.ask("GetKernelSessionStatus", "live-log") == {"status": "COMPLETE"}
    assert sorted(emulator.outputs("live-log")) == ["go", "out"]
    after = list(emulator.events("live-log"))  # now a JSON array
    assert [event["data"] for event in after] == ["first\n", "partial", " line\n"]
    assert sorted(after[0]) == ["data", "stream_name", "time"]
    assert 0 <= after[0]["time"] <= after[2]["time"] < 60


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"Authorization": "Basic nonsense"}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"me:").decode()}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"../x:key").decode()}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"me:key").decode()}, 404),
    ],
)
def test_credentials_are_checked(emulator, headers, code):
    response = emulator.call("GetKernel", headers=headers, userName="me", kernelSlug="none")
    assert (response.status_code, response.json()["code"]) == (code, code)
    assert response.json()["message"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"userName": 1}', 400),
        (b'{"userName": null, "unknown": 1}', 404),
        (b"", 404),
    ],
)
def test_request_bodies_are_checked(emulator, data, code):
    response = emulator.call("GetKernel", data=data)
    assert (response.status_code, response.json()["code"]) == (code, code)


def test_a_push_with_wrong_types_is_refused(emulator):
    for bad in ({"id": True}, {"isPrivate": "yes"}, {"kernelDataSources": [1]}, {"text": {}}):
        assert emulator.call("SaveKernel", **bad).status_code == 400


def test_an_unimplemented_call_is_named(emulator):
    response = emulator.call("ListForums", "discussions.DiscussionsApiService")
    message = "unimplemented: discussions.DiscussionsApiService/ListForums"
    assert (response.status_code, response.json()) == (501, {"code": 501, "message": message})
    for method, path in [("GET", "/"), ("PUT", "/x"), ("DELETE", "/api/v1/x"), ("HEAD", "/y")]:
        assert emulator.fetch(emulator.endpoint + path, method).status_code == 501


def test_kernels_of_other_accounts_are_protected(emulator):
    emulator.push("my-secret", "print(1)")
    stranger = emulator.as_account("stranger")
    mine = {"userName": emulator.account, "kernelSlug": "my-secret"}
    assert stranger.call("GetKernel", **mine).status_code == 403
    push = {"slug": f"{emulator.account}/my-secret", "language": "python", "text": "{}"}
    assert stranger.call("SaveKernel", kernelType="notebook", **push).status_code == 403
    emulator.finish("my-secret")


def test_one_connection_serves_many_calls(emulator):
    """Also after errors, bodies that are too large, and responses without a body."""
    connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=30)
    path = "/api/v1/kernels.KernelsApiService/GetAcceleratorQuotaStatistics"
    absolute = "http://localhost" + path
    calls = [
        ("POST", path, b"{}", 200),
        ("POST", absolute, b"{}", 200),
        ("POST", path, b"{", 400),
        ("POST", path, b" " * (16 * 1024 * 1024 + 1), 413),
        ("POST", "/nowhere", b"{}", 501),
        ("HEAD", "/nowhere", None, 501),
        ("POST", "http://api.kaggle.com" + path, b"{}", 421),
        ("POST", path, b"{}", 200),
    ]
    for method, target, body, code in calls:
        connection.request(method, target, body, emulator.headers)
        local = connection.sock.getsockname()
        response = connection.getresponse()
        answer = response.read()
        assert response.status == code
        assert method == "HEAD" or json.loads(answer)
        assert connection.sock.getsockname() == local
    connection.close()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_malformed_requests_get_json_errors(emulator, raw, code):
    with socket.create_connection(("127.0.0.1", emulator.port), 10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert code in answer.split(b"\r\n")[0]
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["code"] == int(code)


def test_many_clients_can_call_at_once(emulator):
    answers = []

    def ask():
        answers.extend(emulator.call("GetKernel").status_code for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [404] * 80


def test_simultaneous_pushes_become_separate_versions(launch):
    """The push beyond the session limit gets an error inside a 200."""
    emulator = launch()
    answers = []

    def push():
        answers.append(emulator.push("same-moment", "import time; time.sleep(600)"))

    threads = [threading.Thread(target=push) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a["versionNumber"] for a in answers if "error" not in a} == {1, 2, 3, 4, 5}
    full = {"error": "Maximum batch CPU session count of 5 reached."}
    assert [a for a in answers if "error" in a] == [full]
    assert emulator.stop() == (0, "")
    status = json.loads((emulator.folder("same-moment", 5) / "status.json").read_text())
    assert status["status"] == "CANCEL_ACKNOWLEDGED"


def test_a_push_can_set_a_time_limit(emulator):
    cell = "open('kept', 'w').write('so far'); print('saved'); import time; time.sleep(600)"
    emulator.push("too-slow", cell, sessionTimeoutSeconds=1)
    status, log = emulator.finish("too-slow")
    assert (status, [entry["data"] for entry in log]) == (TIMED_OUT, ["saved\n"])
    assert emulator.fetch(emulator.outputs("too-slow")["kept"]).text == "so far"


def test_an_sdk_error_has_kaggles_message(emulator, sdk):
    wanted = about(ApiGetKernelRequest, emulator, "none-such")
    with pytest.raises(requests.HTTPError, match="Not found"):
        sdk.kernels.kernels_api_client.get_kernel(wanted)
