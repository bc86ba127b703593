"""Competitions, submissions, datasets and models: over HTTP, and with the official client."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import requests
from kagglesdk import KaggleClient, KaggleEnv, kaggle_env
from kagglesdk.competitions.types import competition_api_service as asked
from kagglesdk.competitions.types.submission_status import SubmissionStatus
from kagglesdk.datasets.types.dataset_api_service import (
    ApiGetDatasetRequest,
    ApiGetDatasetStatusRequest,
    ApiListDatasetFilesRequest,
)
from kagglesdk.datasets.types.dataset_enums import DatabundleVersionStatus
from kagglesdk.models.types.model_api_service import ApiGetModelInstanceRequest, ApiGetModelRequest
from kagglesdk.models.types.model_enums import ModelFramework

from kernelkit.emulator.competitions import Competitions, CompetitionSettings
from kernelkit.emulator.datasets import Datasets, StoredDataset
from kernelkit.emulator.responses import RequestRefused
from kernelkit.emulator.uploads import Uploads
from tests.local_kaggle import start_emulator

COMPETITIONS = "competitions.CompetitionApiService"
DATASETS = "datasets.DatasetApiService"
GOOD = b"id,rle_mask\na,1 4\nb,\n"
SOLUTION = "id,rle_mask,Usage\na,1 5,Public\nb,,Private\n"
"""GOOD has an IoU of 0.8 on its public image and is correct on the private one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory, replay_options):
    """An emulator with competitions, solutions, a slow dataset and a model."""
    folder = tmp_path_factory.mktemp("contest")
    files = {
        "salt/deep/more file.csv": "more",
        "salt/empty.csv": "",
        "sealed/secret.csv": "rows",
        "notebooks-only/rows.csv": "rows",
        "unscored/rows.csv": "rows",
        "slow-set/points.csv": "points",
        "resnet/pytorch/base/1/weights.bin": "first",
        "resnet/pytorch/base/2/weights.bin": "second",
    }
    for name, text in files.items():
        path = folder / "inputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "far.csv").write_text("rows")
    (folder / "inputs" / "salt" / "train.csv").symlink_to(folder / "far.csv")
    for slug in ("salt", "notebooks-only"):
        (folder / "solutions" / slug).mkdir(parents=True)
        (folder / "solutions" / slug / "solution.csv").write_text(SOLUTION)
    settings = {
        "--solutions": folder / "solutions",
        "--scoring-seconds": 0.4,
        "--rules-not-accepted": "sealed",
        "--code-competition": "notebooks-only",
        "--dataset-pending": "bob/slow-set:1.2",
    }
    options = [str(word) for pair in settings.items() for word in pair]
    options += replay_options
    emulator = start_emulator(folder / "emulator", *options, inputs=folder / "inputs")
    yield emulator
    code, stderr = emulator.stop()
    assert (code, stderr) == (0, "")


@pytest.fixture
def emulator(server, request):
    """The emulator with an account of the test's own."""
    return server.as_account("".join(c if c.isalnum() else "-" for c in request.node.name))


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


@pytest.fixture
def competitions(sdk):
    return sdk.competitions.competition_api_client


def request_of(kind, **fields):
    request = kind()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def call(emulator, method, service=COMPETITIONS, **fields):
    """Status and JSON of a call."""
    answer = emulator.call(method, service, **fields)
    return answer.status_code, answer.json()


def put(url, data=b"", **headers):
    with requests.Session() as session:
        session.trust_env = False
        return session.put(url, data=data, headers=headers, timeout=30)


def upload(emulator, data, slug="salt", size=None):
    """Announce and send a file: its token, its address, and the response to the PUT."""
    size = len(data) if size is None else size
    fields = {"competitionName": slug, "fileName": "submission.csv", "contentLength": size}
    code, answer = call(emulator, "StartSubmissionUpload", **fields)
    assert code == 200, answer
    return answer["token"], answer["createUrl"], put(answer["createUrl"], data)


def submit(emulator, data=GOOD, slug="salt"):
    """Status and JSON of CreateSubmission after an upload."""
    token = upload(emulator, data, slug)[0]
    return call(emulator, "CreateSubmission", competitionName=slug, blobFileTokens=token)


def scored(emulator, ref):
    """The submission once it is no longer PENDING; the API leaves that status out."""
    for _ in range(100):
        code, answer = call(emulator, "GetSubmission", ref=ref)
        assert code == 200
        if "status" in answer:
            return answer
        time.sleep(0.05)
    raise AssertionError("still PENDING")


def test_the_files_of_a_competition_are_listed(competitions):
    request = request_of(asked.ApiListDataFilesRequest, competition_name="salt", page_size=2)
    first = competitions.list_data_files(request)
    assert [(f.name, f.total_bytes) for f in first.files] == [
        ("deep/more file.csv", 4),
        ("empty.csv", 0),
    ]
    request.page_token = first.next_page_token
    second = competitions.list_data_files(request)
    assert [f.name for f in second.files] == ["train.csv"]
    assert not second.next_page_token


def test_files_of_a_competition_are_downloaded(emulator, competitions):
    one = request_of(asked.ApiDownloadDataFileRequest, competition_name="salt")
    one.file_name = "deep/more file.csv"
    with competitions.download_data_file(one) as response:
        assert response.content == b"more"
        assert [r.status_code for r in response.history] == [302]
        other = response.url.replace("more", "less")
    assert emulator.fetch(other).status_code == 404
    request = request_of(asked.ApiDownloadDataFilesRequest, competition_name="salt")
    with competitions.download_data_files(request) as response:
        archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.read("train.csv") == b"rows"
    assert archive.namelist() == ["deep/more file.csv", "empty.csv", "train.csv"]
    with competitions.download_data_files(request) as again:
        assert again.url != response.url
        assert (
            again.headers["ETag"] == response.headers["ETag"]
        )  # so an interrupted download can be resumed


@pytest.mark.parametrize("name", ["none.csv", "../sealed/secret.csv", "/etc/passwd", "deep", ""])
def test_other_files_cannot_be_downloaded(emulator, name):
    fields = {"competitionName": "salt", "fileName": name}
    assert call(emulator, "DownloadDataFile", **fields)[0] == 404


@pytest.mark.parametrize("method", ["ListDataFiles", "DownloadDataFiles", "StartSubmissionUpload"])
def test_unknown_and_closed_competitions_are_refused(emulator, method):
    for slug in ("none-such", "..", "", "salt/deep", "a\0b", "x" * 5000):
        assert call(emulator, method, competitionName=slug)[0] == 404
    code, answer = call(emulator, method, competitionName="sealed")
    assert code == 403
    assert answer["message"].startswith("You must accept this competition's rules before")


def test_a_competition_has_its_settings(competitions):
    def get(name):
        request = request_of(asked.ApiGetCompetitionRequest, competition_name=name)
        return competitions.get_competition(request)

    salt = get("salt")
    assert (salt.ref, salt.max_daily_submissions, salt.user_has_entered) == ("salt", 5, True)
    assert (salt.is_kernels_submissions_only, salt.deadline.year) == (False, 2020)
    assert "Intersection over Union" in salt.evaluation_metric
    assert get("sealed").user_has_entered is False
    assert get("notebooks-only").is_kernels_submissions_only is True
    with pytest.raises(requests.HTTPError, match="Not found"):
        get("none-such")


def test_an_uploaded_submission_is_scored(emulator, competitions):
    code, made = submit(emulator)
    assert code == 200
    assert made["message"] == "Successfully submitted to salt"
    request = request_of(asked.ApiGetSubmissionRequest, ref=made["ref"])
    early = competitions.get_submission(request)
    assert (early.status, early.public_score) == (SubmissionStatus.PENDING, "")
    scored(emulator, made["ref"])
    late = competitions.get_submission(request)
    assert (late.status, late.file_name) == (SubmissionStatus.COMPLETE, "submission.csv")
    assert (late.public_score, late.private_score) == ("0.60000", "1.00000")
    assert late.submitted_by == emulator.account
    assert (emulator.state / "_submissions" / str(made["ref"]) / "submission.csv").read_bytes()


def test_submissions_are_listed_newest_first_and_in_pages(emulator, competitions):
    refs = [submit(emulator)[1]["ref"] for _ in range(3)]
    assert len(set(refs)) == 3
    request = request_of(asked.ApiListSubmissionsRequest, competition_name="salt", page_size=2)
    first = competitions.list_submissions(request)
    assert [s.ref for s in first.submissions] == refs[:0:-1]
    request.page_token = first.next_page_token
    assert [s.ref for s in competitions.list_submissions(request).submissions] == refs[:1]
    request.page_token, request.page = "", 2
    assert [s.ref for s in competitions.list_submissions(request).submissions] == refs[:1]
    stranger = emulator.as_account("stranger")
    assert call(stranger, "ListSubmissions", competitionName="salt") == (200, {})
    assert call(stranger, "GetSubmission", ref=refs[0])[0] == 403
    assert call(stranger, "GetSubmission", ref=1)[0] == 404
    other = {"competitionName": "unscored", "pageToken": first.next_page_token}
    assert call(emulator, "ListSubmissions", **other)[0] == 400


def test_an_invalid_file_is_an_error_and_does_not_count(emulator):
    made = submit(emulator, b"id,rle_mask\na,1\nc,\n")[1]
    answer = scored(emulator, made["ref"])
    assert answer["status"] == "ERROR"
    assert "publicScore" not in answer
    for message in ("ERROR: 1 run-length texts are not legal: a", "key values in the 'id'", "c"):
        assert message in answer["errorDescription"]
    limits = {"numTotal": 1, "numAllowedNow": 5}
    assert call(emulator, "GetSubmissionLimits", competitionName="salt") == (200, limits)


def test_the_daily_limit_holds_for_simultaneous_calls(emulator):
    tokens = [upload(emulator, GOOD)[0] for _ in range(8)]
    codes = []

    def create(token):
        answer = call(emulator, "CreateSubmission", competitionName="salt", blobFileTokens=token)
        codes.append((answer[0], answer[1]["message"]))

    threads = [threading.Thread(target=create, args=[token]) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(code for code, _ in codes) == [200] * 5 + [400] * 3
    assert {m for c, m in codes if c == 400} == {"You have exceeded your daily submission limit"}
    limits = call(emulator, "GetSubmissionLimits", competitionName="salt")[1]
    assert limits == {"numToday": 5, "numTotal": 5}


def test_without_a_solution_there_is_no_score(emulator):
    made = submit(emulator, b"anything", slug="unscored")[1]
    answer = scored(emulator, made["ref"])
    assert answer["status"] == "COMPLETE"
    assert not {"publicScore", "privateScore", "errorDescription"} & set(answer)


def test_a_token_is_valid_only_for_its_purpose(emulator):
    token, _, _ = upload(emulator, GOOD)
    short, _, answer = upload(emulator, GOOD[:-1], size=len(GOOD))
    assert answer.status_code == 503
    foreign = upload(emulator.as_account("stranger"), GOOD)[0]
    for slug, wrong in [("unscored", token), *(("salt", t) for t in (short, foreign, "x", ""))]:
        fields = {"competitionName": slug, "blobFileTokens": wrong}
        code, answer = call(emulator, "CreateSubmission", **fields)
        assert (code, "ref" in answer) == (400, False), wrong
    assert call(emulator, "ListSubmissions", competitionName="salt") == (200, {})


def test_an_interrupted_upload_can_be_resumed(emulator):
    token, url, _ = upload(emulator, b"", size=len(GOOD))
    nothing = put(url, **{"Content-Range": f"bytes */{len(GOOD)}"})
    assert (nothing.status_code, nothing.headers.get("Range")) == (308, None)
    with socket.create_connection(("127.0.0.1", emulator.port)) as cut:
        head = f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        cut.sendall(head.encode() + GOOD[:9])
    for _ in range(100):
        asked_again = put(url, **{"Content-Range": f"bytes */{len(GOOD)}"})
        if asked_again.headers.get("Range"):
            break
        time.sleep(0.02)
    assert (asked_again.status_code, asked_again.headers["Range"]) == (308, "bytes=0-8")
    wrong = put(url, GOOD[9:], **{"Content-Range": f"bytes 10-{len(GOOD)}/{len(GOOD)}"})
    assert wrong.status_code == 400
    last = f"bytes 9-{len(GOOD) - 1}/{len(GOOD)}"
    assert put(url, GOOD[9:], **{"Content-Range": last}).status_code == 200
    assert put(url, **{"Content-Range": f"bytes */{len(GOOD)}"}).status_code == 200
    fields = {"competitionName": "salt", "blobFileTokens": token}
    made = call(emulator, "CreateSubmission", **fields)[1]
    assert scored(emulator, made["ref"])["publicScore"] == "0.60000"


def test_invalid_uploads_are_refused(emulator):
    _, url, _ = upload(emulator, b"", size=5)
    assert put(url, b"123456").status_code == 400
    assert put(url, b"12", **{"Content-Range": "bytes 3-4/5"}).status_code == 400
    assert put(url, b"12", **{"Content-Range": "nonsense"}).status_code == 400
    assert put(url.replace("/upload/", "/upload/0"), b"12345").status_code == 404
    assert put(f"{emulator.endpoint}/elsewhere", b"1").status_code == 501
    fields = {"competitionName": "salt", "fileName": "a.csv", "contentLength": -1}
    assert call(emulator, "StartSubmissionUpload", **fields)[0] == 400
    for name in ("", "a\ud800", "a\nb", "x" * 300):
        fields |= {"fileName": name, "contentLength": 5}
        assert call(emulator, "StartSubmissionUpload", **fields)[0] == 400
    fields["fileName"] = "a.csv.zip"
    assert call(emulator, "StartSubmissionUpload", **fields)[0] == 501


def test_the_output_of_a_notebook_is_submitted(emulator):
    emulator.run("makes-one", f"open('submission.csv', 'w').write({GOOD.decode()!r})")
    fields = {"competitionName": "notebooks-only", "kernelOwner": emulator.account}
    fields |= {"kernelSlug": "makes-one", "kernelVersion": 1}
    code, made = call(emulator, "CreateCodeSubmission", **fields)
    assert code == 200, made
    assert scored(emulator, made["ref"])["publicScore"] == "0.60000"

    code, answer = call(emulator, "CreateCodeSubmission", **fields, fileName="other.csv")
    assert (code, answer["message"]) == (400, "Version 1 of the notebook has no output other.csv")
    fields["kernelVersion"] = 2
    assert call(emulator, "CreateCodeSubmission", **fields)[0] == 404
    emulator.push("makes-one", "open('submission.csv', 'w').write('x'); 1 / 0")
    code, answer = call(emulator, "CreateCodeSubmission", **fields)
    assert code == 400
    assert answer["message"].startswith("Version 2 of the notebook is ")
    emulator.finish("makes-one")
    code, answer = call(emulator, "CreateCodeSubmission", **fields)
    assert (code, answer["message"]) == (400, "Version 2 of the notebook is ERROR")

    code, answer = submit(emulator, slug="notebooks-only")
    assert (code, answer["code"]) == (400, 400)
    assert "only accepts Submissions from Notebooks" in answer["message"]


def test_a_run_sees_the_model_but_not_the_solution(emulator):
    program = "import os; print([f'{d}/{n}' for d, _, names in os.walk('/kaggle') for n in names])"
    weights = "print(open('/kaggle/input/models/bob/resnet/pytorch/base/2/weights.bin').read())"
    sources = {
        "competitionDataSources": ["salt", "sealed"],
        "modelDataSources": ["bob/resnet/pyTorch/base/2", "bob/resnet/pytorch/base/3", "bob"],
    }
    answer = emulator.push("has-a-model", program, weights, **sources)
    assert answer["invalidModelSources"] == ["bob/resnet/pytorch/base/3", "bob"]
    assert answer["invalidCompetitionSources"] == ["sealed"]  # its rules are not accepted
    status, log = emulator.finish("has-a-model")
    text = "".join(entry["data"] for entry in log)
    assert status == {"status": "COMPLETE"}, text
    assert text.endswith("second\n")
    assert "/kaggle/input/competitions/salt/train.csv" in text
    assert "solution" not in text


def test_models_are_found(sdk):
    api = sdk.models.model_api_client
    model = api.get_model(request_of(ApiGetModelRequest, owner_slug="bob", model_slug="resnet"))
    assert (model.ref, [i.slug for i in model.instances]) == ("bob/resnet", ["base"])
    about = {"owner_slug": "bob", "model_slug": "resnet", "instance_slug": "base"}
    request = request_of(ApiGetModelInstanceRequest, **about)
    request.framework = ModelFramework.MODEL_FRAMEWORK_PY_TORCH
    assert api.get_model_instance(request).version_number == 2
    request.framework = ModelFramework.MODEL_FRAMEWORK_JAX
    with pytest.raises(requests.HTTPError, match="Not found"):
        api.get_model_instance(request)
    with pytest.raises(requests.HTTPError, match="Not found"):
        api.get_model(request_of(ApiGetModelRequest, owner_slug="bob", model_slug="salt"))


def test_a_dataset_is_pending_then_ready(emulator, sdk):
    api = sdk.datasets.dataset_api_client
    about = {"owner_slug": "bob", "dataset_slug": "slow-set"}
    request = request_of(ApiGetDatasetStatusRequest, **about)
    assert api.get_dataset_status(request).status is DatabundleVersionStatus.NOT_YET_PERSISTED
    sources = {"text": "no notebook", "datasetDataSources": ["bob/slow-set"]}
    early = emulator.push("too-early", **sources)
    assert early["invalidDatasetSources"] == ["bob/slow-set"]
    seen = []
    while not seen or seen[-1] != "READY":
        seen.append(api.get_dataset_status(request).status.name)
        time.sleep(0.05)
    assert len(set(seen)) > 2
    assert api.get_dataset(request_of(ApiGetDatasetRequest, **about)).current_version_number == 1
    files = api.list_dataset_files(request_of(ApiListDatasetFilesRequest, **about))
    assert [(f.name, f.total_bytes) for f in files.dataset_files] == [("points.csv", 6)]
    assert "invalidDatasetSources" not in emulator.push("in-time", **sources)
    emulator.finish("too-early")
    emulator.finish("in-time")


def test_a_missing_dataset_is_reported(emulator):
    for owner, code in [("bob", 403), (emulator.account, 404)]:
        about = {"ownerSlug": owner, "datasetSlug": "none-such"}
        for method in ("GetDatasetStatus", "GetDataset", "ListDatasetFiles"):
            assert call(emulator, method, DATASETS, **about)[0] == code


ODD = (None, True, 0, -1, 2**70, 0.5, "", "x", "..", "\ud800", [], [None], [{}], {}, {"files": [0]})
FIELDS = {
    "GetCompetition": "competitionName",
    "ListDataFiles": "competitionName pageSize pageToken",
    "DownloadDataFile": "competitionName fileName",
    "DownloadDataFiles": "competitionName",
    "StartSubmissionUpload": "competitionName contentLength fileName lastModifiedEpochSeconds",
    "CreateSubmission": "competitionName blobFileTokens submissionDescription sandbox",
    "CreateCodeSubmission": "competitionName kernelOwner kernelSlug kernelVersion fileName",
    "ListSubmissions": "competitionName page pageSize pageToken sortBy",
    "GetSubmission": "ref",
    "GetSubmissionLimits": "competitionName",
    "StartBlobUpload": "type name contentLength",
    "GetDatasetStatus": "ownerSlug datasetSlug",
    "GetDataset": "ownerSlug datasetSlug",
    "ListDatasetFiles": "ownerSlug datasetSlug datasetVersionNumber pageSize",
    "CreateDataset": "ownerSlug slug title files isPrivate directories",
    "CreateDatasetVersion": "ownerSlug datasetSlug body",
    "GetModel": "ownerSlug modelSlug",
    "GetModelInstance": "ownerSlug modelSlug framework instanceSlug",
}
SERVICES = {"Blob": "blobs.BlobApiService", "Dataset": DATASETS, "Model": "models.ModelApiService"}


@pytest.mark.parametrize("method", FIELDS)
def test_odd_fields_are_refused_with_a_message(emulator, method):
    service = next((s for word, s in SERVICES.items() if word in method), COMPETITIONS)
    sound = {"competitionName": "salt", "contentLength": 3, "fileName": "a.csv", "type": "DATASET"}
    sound |= {"name": "a.csv", "ownerSlug": emulator.account, "datasetSlug": "salt"}
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update(emulator.headers)
        for name in FIELDS[method].split():
            for value in ODD:
                url = f"{emulator.endpoint}/api/v1/{service}/{method}"
                with session.post(url, json=sound | {name: value}, timeout=30) as answer:
                    code = answer.status_code
                assert code < 500 or code == 501, (name, value, answer.text)


MANY = """
import contextlib, io, json, sys
from kaggle import api
from kaggle.cli import main

done = []
for words in json.load(sys.stdin):
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if words[0] == "resume":
                said.write(str(api.upload_complete(words[1], words[2], True, resume=True)))
            else:
                sys.argv = ["kaggle", *words]
                main()
        except SystemExit as exit:
            code = exit.code or 0
        except Exception as error:
            said.write(f"{type(error).__name__}: {error}")
            code = 1
    done.append([code, said.getvalue()])
print(json.dumps(done))
"""
"""Calls the unmodified official command line many times in one process."""


@pytest.fixture
def kaggle(emulator, tmp_path):
    """Run commands of the official client with the emulator as its proxy: codes and outputs."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "config"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": emulator.endpoint,
        "no_proxy": "",
        "KAGGLE_USERNAME": emulator.account,
        "KAGGLE_KEY": "key",
    }
    assert environment["http_proxy"].startswith("http://127.0.0.1:")

    def run(*commands):
        done = subprocess.run(
            [sys.executable, "-c", MANY],
            input=json.dumps(commands),
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [tuple(answer) for answer in json.loads(done.stdout)]

    return run


def test_the_official_client_submits(emulator, kaggle, tmp_path):
    (tmp_path / "submission.csv").write_bytes(GOOD)
    (tmp_path / "empty.csv").touch()
    emulator.run("makes-one", f"open('submission.csv', 'w').write({GOOD.decode()!r})")
    kernel = f"{emulator.account}/makes-one"
    _, url, _ = upload(emulator, GOOD[:7], size=len(GOOD))
    about = ("-m", "my words")
    files, sealed, one, every, sent, empty, code, resumed = kaggle(
        ["competitions", "files", "salt", "--csv"],
        ["competitions", "files", "sealed"],
        ["competitions", "download", "salt", "-f", "train.csv", "-p", "one"],
        ["competitions", "download", "salt", "-p", "every"],
        ["competitions", "submit", "salt", "-f", "submission.csv", *about],
        ["competitions", "submit", "salt", "-f", "empty.csv", *about],
        ["competitions", "submit", "salt", "-f", "submission.csv", "-k", kernel, "-v", "1", *about],
        ["resume", "submission.csv", url],
    )
    assert files[0] == 0
    assert "train.csv,4," in files[1]
    assert sealed[0] == 1
    assert "You must accept this competition's rules" in sealed[1]
    assert one[0] == every[0] == 0
    assert (tmp_path / "one" / "train.csv").read_text() == "rows"
    assert zipfile.ZipFile(tmp_path / "every" / "salt.zip").read("train.csv") == b"rows"
    assert sent[0] == empty[0] == code[0] == 0
    assert "Successfully submitted to salt" in sent[1]
    assert "4 submissions remaining today." in sent[1]
    assert "Successfully submitted to salt" in code[1]
    assert resumed[1] == "1"  # ResumableUploadResult.COMPLETE
    assert put(url, **{"Content-Range": f"bytes */{len(GOOD)}"}).status_code == 200
    time.sleep(0.5)
    listed, limits, leaders, page, table, all_of_them = kaggle(
        ["competitions", "submissions", "salt", "--csv"],
        ["competitions", "submission-limits", "salt"],
        ["competitions", "leaderboard", "salt", "--show", "--csv"],
        ["competitions", "leaderboard", "salt", "--show", "--page-size", "1"],
        ["competitions", "leaderboard", "salt", "--download", "-p", "table"],
        ["competitions", "list", "--csv", "-s", "SALT"],
    )
    rows = listed[1].splitlines()[1:]
    assert ["COMPLETE" in row for row in rows] == [True, False, True]
    assert all("0.60000,1.00000" in row for row in (rows[0], rows[2]))
    assert "SubmissionStatus.ERROR" in rows[1]
    assert "Remaining today: 3" in limits[1]
    ranks = [line.split(",") for line in leaders[1].splitlines()]
    assert ranks[0] == ["teamId", "teamName", "submissionDate", "score"]
    mine = next(row for row in ranks[1:] if row[1] == emulator.account)
    assert mine[3] == "1.00000"  # the competition is over, so this is the private score
    assert ranks[1][1] in page[1]  # other tests have submitted to the same competition
    assert table[0] == 0
    with zipfile.ZipFile(tmp_path / "table" / "salt.zip") as archive:
        (name,) = archive.namelist()
        rows = archive.read(name).decode().splitlines()
    assert rows[0] == "Rank,TeamId,TeamName,LastSubmissionDate,Score,SubmissionCount"
    assert [row.split(",")[4:] for row in rows if emulator.account in row] == [["0.60000", "2"]]
    assert all_of_them[1].splitlines()[1].startswith(f"{emulator.endpoint}/competitions/salt,")


@pytest.mark.slow
def test_the_official_client_makes_a_dataset(emulator, kaggle, tmp_path):
    folder = tmp_path / "points"
    folder.mkdir()
    (folder / "points.csv").write_text("1,2")
    name = f"{emulator.account}/my-points"
    metadata = {"title": "My Points", "id": name, "licenses": [{"name": "CC0-1.0"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    made, again, status, files, models, absent = kaggle(
        ["datasets", "create", "-p", "points"],
        ["datasets", "create", "-p", "points"],
        ["datasets", "status", name],
        ["datasets", "files", name, "--csv"],
        ["models", "get", "bob/resnet"],
        ["datasets", "status", "bob/none-such"],
    )
    assert "Your private Dataset is being created" in made[1]
    assert "already in use by a dataset" in again[1]
    assert status[1].strip() == "ready"
    assert "points.csv,3," in files[1]
    assert "resnet" in models[1]
    assert absent[0] == 1
    assert call(emulator.as_account("eve"), "GetDataset", DATASETS, **about(name))[0] == 403

    (folder / "points.csv").write_text("3,4,5")
    ((_, words),) = kaggle(["datasets", "version", "-p", "points", "-m", "more"])
    assert "Dataset version is being created" in words
    assert call(emulator, "GetDataset", DATASETS, **about(name))[1]["currentVersionNumber"] == 2
    program = "print(open('/kaggle/input/datasets/" + name + "/points.csv').read())"
    assert emulator.run("reads-it", program, datasetDataSources=[name]) == "3,4,5\n"
    assert emulator.run("reads-it", program, datasetDataSources=[f"{name}/1"]) == "1,2\n"


@pytest.mark.slow
def test_the_official_client_reads_changes_and_deletes_a_dataset(emulator, kaggle, tmp_path):
    """Files, versions and metadata; the metadata of a dataset of the inputs folder, too."""
    folder, name = tmp_path / "points", f"{emulator.account}/my-points"
    (folder / "deep").mkdir(parents=True)
    (folder / "points.csv").write_text("1,2")
    (folder / "deep" / "more.json").write_text("{}")
    metadata = {"title": "My Points", "id": name, "licenses": [{"name": "CC0-1.0"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    kaggle(["datasets", "create", "-p", "points", "-r", "zip"])
    (folder / "points.csv").write_text("3,4,5")
    kaggle(["datasets", "version", "-p", "points", "-m", "more", "-r", "skip"])
    one, every, first, absent, got, salt = kaggle(
        ["datasets", "download", name, "-f", "points.csv", "-p", "one"],
        ["datasets", "download", name, "-p", "every", "--unzip"],
        ["datasets", "download", f"{name}/1", "-p", "first"],
        ["datasets", "download", name, "-f", "none.csv"],
        ["datasets", "metadata", name, "-p", "about"],
        ["datasets", "metadata", f"{emulator.account}/salt", "-p", "salt"],
    )
    assert [code for code, _ in (one, every, first, got, salt)] == [0] * 5
    assert absent[0] == 1
    assert (tmp_path / "one" / "points.csv").read_text() == "3,4,5"
    assert (tmp_path / "every" / "points.csv").read_text() == "3,4,5"
    with zipfile.ZipFile(tmp_path / "first" / "my-points.zip") as archive:
        assert archive.read("points.csv") == b"1,2"
        assert len(archive.namelist()) == 2

    path = tmp_path / "about" / "dataset-metadata.json"
    info = json.loads(path.read_text())["info"]
    assert (info["datasetSlug"], info["title"]) == ("my-points", "My Points")
    assert info["licenses"] == [{"name": "CC0-1.0"}]
    assert info["isPrivate"] is True
    assert [file["name"] for file in info["data"]] == ["points.csv"]
    changed = {
        **info,
        "title": "Better Points",
        "subtitle": "Points of many pictures",
        "keywords": ["tabular"],
        "isPrivate": False,
        "collaborators": [{"username": "bob", "role": "reader"}],
    }
    changed["data"] = [{"name": "points.csv", "description": "All of them"}]
    path.write_text(json.dumps({"info": changed}))
    other = tmp_path / "salt" / "dataset-metadata.json"
    other.write_text(json.dumps({"title": "All of the salt"}))
    codes = kaggle(
        ["datasets", "metadata", name, "-p", "about", "--update"],
        ["datasets", "metadata", name, "-p", "again"],
        ["datasets", "metadata", f"{emulator.account}/salt", "-p", "salt", "--update"],
        ["datasets", "metadata", "bob/salt", "-p", "salt", "--update"],
        ["datasets", "list", "--mine", "--csv"],
        ["datasets", "list", "-s", "salt", "--csv", "--user", emulator.account],
        ["datasets", "list", "--license", "gpl", "--mine"],
        ["datasets", "list", "--file-type", "csv", "--mine", "--max-size", "4"],
        ["datasets", "list", "-s", "better points", "--csv"],
    )
    again = json.loads((tmp_path / "again" / "dataset-metadata.json").read_text())["info"]
    assert again == {
        **{key: value for key, value in changed.items() if key != "isPrivate"},
        "collaborators": [{"username": "bob", "role": "READER"}],
        "data": [{"name": "points.csv", "description": "All of them", "totalBytes": 5}],
    }
    assert [code for code, _ in codes] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    mine, found, none, small, better = (words for _, words in codes[4:])
    assert f"{name},Better Points,5," in mine
    assert f"{emulator.account}/salt,All of the salt," in found
    assert "No datasets found" in none
    assert "No datasets found" in small
    assert name in better
    seen = call(emulator.as_account("eve"), "GetDataset", DATASETS, **about(name))
    assert (seen[0], seen[1]["subtitle"]) == (200, "Points of many pictures")

    deleted, gone, kept = kaggle(
        ["datasets", "delete", name, "-y"],
        ["datasets", "status", name],
        ["datasets", "delete", f"{emulator.account}/salt", "-y"],
    )
    assert "deleted successfully" in deleted[1]
    assert gone[0] == 1
    assert "unimplemented" in kept[1]


def test_invalid_datasets_are_not_created(tmp_path):
    """The official client checks before it sends these; the message comes inside a 200."""
    library = Datasets(tmp_path / "sets", None)
    file = tmp_path / "a.csv"
    file.write_text("1")

    def made(slug="my-points", title="My points", names=("a.csv",)):
        return library.create(StoredDataset("alice", slug, title), [(name, file) for name in names])

    for words, wrong in {
        "slug must be between": made(slug="short"),
        "slug may hold": made(slug="../../escapes"),
        "title must be between": made(title="x" * 51),
        "need different names": made(names=("a.csv", "a.csv")),
        "needs at least one file": made(names=()),
        "A dataset needs": made(names=("../a.csv",)),
    }.items():
        assert isinstance(wrong, str)
        assert words in wrong
    assert not (tmp_path / "sets").exists()
    assert isinstance(made(), StoredDataset)
    assert "already in use by a dataset" in made()


def about(name):
    owner, slug = name.split("/")
    return {"ownerSlug": owner, "datasetSlug": slug}


def test_unimplemented_calls_of_the_official_client_are_named(kaggle):
    """Each command fails with the name of the missing call, and none seems to work."""
    calls = {
        "competitions team-submissions 1": "ListTeamPublicSubmissions",
        "competitions episodes 1": "ListSubmissionEpisodes",
        "competitions hosts salt": "ListCompetitionHosts",
        "competitions topics list salt": "ListCompetitionTopics",
        "models list": "ListModels",
        "models instances list bob/resnet": "ListModelInstances",
        "models instances versions list bob/resnet/pyTorch/base": "ListModelInstanceVersions",
        "models delete bob/resnet -y": "DeleteModel",
        "forums list": "ListForums",
    }
    said = kaggle(*(words.split() for words in calls))
    found = dict(zip(calls, said, strict=True))
    unimplemented = {
        words: text.partition("unimplemented: ")[2].partition("\n")[0].rpartition("/")[2]
        for words, (_, text) in found.items()
    }
    assert unimplemented == calls
    assert {code for code, _ in said} == {1}


def test_submissions_uploads_and_datasets_survive_a_restart(tmp_path):
    inputs, file = tmp_path / "inputs", tmp_path / "submission.csv"
    (inputs / "salt").mkdir(parents=True)
    file.write_bytes(GOOD)
    arguments = (tmp_path / "_submissions", inputs, None, CompetitionSettings(scoring=0, daily=2))
    made = Competitions(*arguments).enter("alice", "salt", file, "submission.csv", "words", True)
    (tmp_path / "_submissions" / str(made.ref + 1)).mkdir()  # left by a killed process
    contest = Competitions(*arguments)
    (found,) = contest.submissions("alice", "salt")
    assert (found.ref, found.status, found.description) == (made.ref, "COMPLETE", "words")
    assert contest.enter("alice", "salt", file, "b.csv", "", True).ref == made.ref + 1
    with pytest.raises(RequestRefused, match="daily submission limit"):
        contest.enter("alice", "salt", file, "c.csv", "", True)
    silent = Competitions(
        *arguments[:3], CompetitionSettings(scoring=0, daily=2, silent_limit=True)
    )
    assert silent.enter("alice", "salt", file, "c.csv", "", True) is None
    assert len(silent.submissions("alice", "salt")) == 2

    upload = Uploads(tmp_path / "_uploads").begin("alice", "dataset", "a.csv", 4)
    uploads = Uploads(tmp_path / "_uploads")
    assert uploads.receive(upload.key, "", io.BytesIO(b"abcd"), 4).code == 200
    path = uploads.take(upload.token, "alice", "dataset")[1]

    about = StoredDataset("alice", "my-points", "My points", private=True)
    (tmp_path / "_datasets" / "alice" / "my-points" / "v1").mkdir(parents=True)
    made_set = Datasets(tmp_path / "_datasets", inputs).create(about, [("a.csv", path)])
    assert Datasets(tmp_path / "_datasets", inputs).dataset("Alice", "my-points") == made_set


@pytest.mark.parametrize("where", ["inputs", "inputs/salt", "link"])
def test_solutions_inside_the_inputs_are_refused(tmp_path, where):
    (tmp_path / "inputs" / "salt").mkdir(parents=True)
    if where == "link":
        (tmp_path / "link").mkdir()
        (tmp_path / "inputs" / "linked").symlink_to(tmp_path / "link")
    assert "a run could read the solutions" in refused(tmp_path, where)


def test_an_invalid_solution_is_refused(tmp_path):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "solutions" / "salt").mkdir(parents=True)
    (tmp_path / "solutions" / "salt" / "solution.csv").write_text("id,target\n")
    words = refused(tmp_path, "solutions")
    assert "salt/solution.csv: no metric is known for the columns id, target" in words


def refused(folder, solutions):
    """The message of an emulator that refuses its arguments."""
    options = ["--inputs", str(folder / "inputs"), "--solutions", str(folder / solutions)]
    command = [sys.executable, "-m", "kernelkit.emulator", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    return done.stderr
