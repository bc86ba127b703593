"""Submitting a verified run with the real client through a faulty proxy to a local Kaggle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from kernelkit import workflow
from kernelkit.errors import (
    CapacityError,
    ConfigError,
    DeadlineError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    VerificationError,
)
from kernelkit.kaggle import competitions, uploads
from kernelkit.kaggle.competitions import Competition
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, Timeouts
from kernelkit.runs import store
from kernelkit.runs.submit import SubmitOptions
from kernelkit.storage import sha256_of

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
IDS = [f"image{number}" for number in range(6)]
SAMPLE = "id,rle_mask\n" + "".join(f"{name},1 1\n" for name in IDS)
TRUTH = ["", "1 100", "1 50", "200 40", "", "5 5"]


class Line:
    """A proxy between client and local Kaggle: forwards every call and adds the named faults.

    `spoil[method]` is a list of faults, one per call: `lost` (done, no answer), `never` (not done,
    no answer), `half` (the first half of an upload arrives, then 503), `cut` (the same, and then
    nothing), `no ref` (done, the number is left out), `ignored` (not done, and
    answered as if), `absent` (404).
    """

    def __init__(self, kaggle: str) -> None:
        self.kaggle, self.spoil, self.calls = kaggle, dict[str, list[str]](), list[str]()
        line = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = self.path.strip("/").split("/")[0]
                method = kind if self.command != "POST" else self.path.rsplit("/", 1)[1]
                line.calls.append(method)
                error = line.spoil.get(method) or [""]
                self.hand_on(body, error.pop(0) if error != [""] else "")

            def hand_on(self, body: bytes, error: str) -> None:
                if error == "never":
                    self.close_connection = True
                    return
                if error == "ignored":
                    self.send(200, {"Content-Type": "application/json"}, b'{"message": "Done"}')
                    return
                if error == "absent":
                    self.send(404, {}, b'{"code": 404, "message": "Not found"}')
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                if error in ("half", "cut"):
                    whole, body = len(body), body[: len(body) // 2]
                    headers["Content-Range"] = f"bytes 0-{len(body) - 1}/{whole}"
                    headers["Content-Length"] = str(len(body))
                with requests.Session() as session:
                    session.trust_env = False
                    got = session.request(
                        self.command,
                        line.kaggle + self.path,
                        data=body,
                        headers=headers,
                        timeout=30,
                        allow_redirects=False,
                    )
                content = got.content.replace(line.kaggle.encode(), line.endpoint.encode())
                if error in ("lost", "cut"):
                    self.close_connection = True
                    return
                if error == "no ref":
                    content = json.dumps({"message": json.loads(content)["message"]}).encode()
                self.send(got.status_code, dict(got.headers), content)

            def send(self, code: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(code)
                for name in ("Content-Type", "Range", "Location"):
                    if name in headers:
                        value = headers[name].replace(line.kaggle, line.endpoint)
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local Kaggle with a scored competition, `salt`, and a code competition."""
    folder = tmp_path_factory.mktemp("contest")
    for slug in ("salt", "code-only", "strict", "bare"):
        (folder / "inputs" / slug).mkdir(parents=True)
        (folder / "inputs" / slug / "rows.txt").write_text("nothing")
    for slug in ("salt", "code-only", "strict"):
        (folder / "inputs" / slug / "sample_submission.csv").write_text(SAMPLE)
        rows = [
            f"{name},{rle},{'Public' if number % 2 else 'Private'}\n"
            for number, (name, rle) in enumerate(zip(IDS, TRUTH, strict=True))
        ]
        (folder / "solutions" / slug).mkdir(parents=True)
        solution = folder / "solutions" / slug / "solution.csv"
        rows += ["unknown,,Private\n"] if slug == "strict" else []
        solution.write_text("id,rle_mask,Usage\n" + "".join(rows))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kernelkit.emulator", "--inputs", str(folder / "inputs")),
            *("--solutions", str(folder / "solutions"), "--ready-file", str(folder / "ready.json")),
            *("--scoring-seconds", "0.3", "--daily-submissions", "3"),
            *("--code-competition", "code-only"),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 30
        while not (folder / "ready.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        yield json.loads((folder / "ready.json").read_text())["endpoint"]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def pulled(contest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run that was pushed, pulled and verified."""
    project = tmp_path_factory.mktemp("project")
    (project / "pkg").mkdir()
    (project / "pkg" / "__init__.py").write_text("")
    table = SAMPLE.replace("image0,1 1", "image0,")
    (project / "pkg" / "main.py").write_text(
        "import json\nfrom pathlib import Path\n"
        "def run(folder):\n"
        "    for epoch, iou in enumerate((0.25, 0.75, 0.5), 1):\n"
        "        event = {'event': 'epoch', 'experiment': 'one', 'epoch': epoch, 'epochs': 3}\n"
        "        print(json.dumps({**event, 'val_iou': iou, 'val_loss': 1 - iou}), flush=True)\n"
        f"    Path(folder, 'submission.csv').write_text({table!r})\n"
    )
    (project / "pyproject.toml").write_text(
        "[tool.kernelkit]\npackage = 'pkg'\nentry = 'pkg.main:run'\noutputs = ['submission.csv']\n"
        "[tool.kernelkit.kernel]\nid = 'salt-kernel'\ntitle = 'Salt kernel'\n"
        "competition_sources = ['salt']\n"
        "[tool.kernelkit.parameters]\nfolder = 'kaggle://working'\n"
    )
    command = [sys.executable, "-m", "kernelkit", "run", "--endpoint", contest]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def line(contest: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(competitions, "LISTED_SECONDS", 1)
    line = Line(contest)
    yield line
    line.close()


@pytest.fixture
def kaggle(line: Line, request: pytest.FixtureRequest) -> Kaggle:
    """Kaggle behind the proxy, with an account for this test."""
    account = request.node.name.split("[")[0].replace("_", "-")
    return connected(line, account)


@pytest.fixture
def record(pulled: Path, line: Line, tmp_path: Path) -> store.RunFolder:
    """A copy of the pulled run, as if it had been downloaded through the proxy."""
    shutil.copytree(pulled / "runs", tmp_path / "runs")
    record = store.find(tmp_path / "runs", "salt-kernel")
    push = {**record.read().document, "endpoint": line.endpoint}
    (record.path / "push.json").write_text(json.dumps(push))
    return record


def connected(line: Line, account: str) -> Kaggle:
    return Kaggle(Credentials(account, "t", key="k"), line.endpoint, timeouts=Timeouts(retry=0))


def entered(kaggle: Kaggle, competition: str = "salt") -> list[Any]:
    return list(Competition(kaggle, competition).submissions())


def test_a_submission_is_checked_submitted_and_scored(
    kaggle: Kaggle, record: store.RunFolder
) -> None:
    before = {path: path.stat().st_mtime_ns for path in record.path.rglob("*")}
    reported: list[str] = []
    done = workflow.submit(
        kaggle,
        record,
        SubmitOptions(message="mine"),
        on_event=lambda event: reported.append(str(event)),
    )
    (there,) = entered(kaggle)
    run, sha256 = record.read(), sha256_of(record.path / "submission.csv")
    mark = f"kernelkit {run.owner}/salt-kernel v1 {run.digest[:12]} sha256 {sha256}"
    assert there.description == f"mine ({mark})"
    assert done.sent
    assert (done.record.ref, done.record.status) == (there.ref, "complete")
    # Private: images 0, 2, 4, of which image 0 alone is right; public: none is.
    assert done.record.private_score == there.private_score == "0.33333"
    assert done.record.public_score == "0.00000"
    assert "3 left today" in reported
    assert {path: path.stat().st_mtime_ns for path in record.path.rglob("*")} == before
    (kept,) = store.submissions(record.root)
    assert kept == done.record


def test_the_same_file_is_not_sent_twice(kaggle: Kaggle, record: store.RunFolder) -> None:
    first = workflow.submit(kaggle, record, SubmitOptions(), wait=False)
    assert first.record.status == "pending"
    again = workflow.submit(kaggle, record, SubmitOptions())
    assert (again.record.ref, again.sent) == (first.record.ref, False)
    assert again.record.private_score == "0.33333"
    shutil.rmtree(record.path.parent / "submissions")  # as from another machine
    assert workflow.submit(kaggle, record, SubmitOptions()).record.ref == first.record.ref
    assert len(entered(kaggle)) == 1
    assert workflow.submit(kaggle, record, SubmitOptions(again=True)).sent
    assert len(entered(kaggle)) == 2


def by_hand(kaggle: Kaggle, file: Path, description: str) -> int:
    """A submission that a team mate, or an older kernelkit, has made."""
    return Competition(kaggle, "salt").submit_file(file, description, description)


@pytest.mark.parametrize(
    "description",
    [
        "kernelkit salt-kernel v1 {digest}",  # of an older kernelkit: it names no owner
        "theirs (kernelkit salt-kernel v1 {digest})",
        "kernelkit bob/salt-kernel v1 {digest} sha256 {sha256}",
        "kernelkit {owner}/salt-kernel v1 {digest} sha256 " + "0" * 64,
        "kernelkit {owner}/salt-kernel v11 {digest} sha256 {sha256}",
        "{sha256}",
        "",
    ],
)
def test_a_submission_of_another_run_or_file_is_not_taken_for_ours(
    line: Line, record: store.RunFolder, description: str
) -> None:
    kaggle = connected(line, f"team-{zlib.crc32(description.encode()):x}")
    run, file = record.read(), record.path / "submission.csv"
    facts = {"owner": run.owner, "digest": run.digest[:12], "sha256": sha256_of(file)}
    theirs = by_hand(kaggle, file, description.format(**facts))
    done = workflow.submit(kaggle, record, SubmitOptions(), wait=False)
    assert done.sent
    assert done.record.ref != theirs
    again = workflow.submit(kaggle, record, SubmitOptions(), wait=False)
    assert (again.sent, again.record.ref) == (False, done.record.ref)


def test_a_copied_description_of_another_file_is_not_taken_for_ours(
    kaggle: Kaggle, record: store.RunFolder, tmp_path: Path
) -> None:
    first = workflow.submit(kaggle, record, SubmitOptions(), wait=False)
    other = tmp_path / "submission.csv"
    other.write_text(SAMPLE)
    copied = by_hand(kaggle, other, first.record.description or "")
    shutil.rmtree(record.path.parent / "submissions")  # as from another machine
    messages: list[str] = []
    found = workflow.submit(
        kaggle, record, SubmitOptions(), wait=False, on_event=lambda e: messages.append(str(e))
    )
    assert (found.sent, found.record.ref) == (False, first.record.ref)
    assert any(f"note: submission {copied}" in message for message in messages)


@pytest.mark.parametrize("message", ["x" * 400, "é\n" * 300, "short (with brackets)"])
def test_a_long_message_leaves_room_for_the_mark(
    line: Line, record: store.RunFolder, message: str
) -> None:
    kaggle = connected(line, f"long-{len(message)}")
    done = workflow.submit(kaggle, record, SubmitOptions(message=message), wait=False)
    (there,) = entered(kaggle)
    assert len(there.description) <= 500
    assert there.description[:20] == message[:20]
    shutil.rmtree(record.path.parent / "submissions")
    found = workflow.submit(kaggle, record, SubmitOptions(), wait=False)
    assert (found.sent, found.record.ref) == (False, done.record.ref)


@pytest.mark.parametrize("error", ["lost", "never", "no ref"])
def test_a_submission_with_a_lost_response_is_submitted_once(
    error: str, line: Line, record: store.RunFolder
) -> None:
    kaggle = connected(line, f"ann-{error.replace(' ', '-')}")
    line.spoil["CreateSubmission"] = [error]
    done = workflow.submit(kaggle, record, SubmitOptions())
    (there,) = entered(kaggle)
    assert (done.record.ref, done.sent) == (there.ref, True)
    assert line.calls.count("CreateSubmission") == (2 if error == "never" else 1)


def test_a_submission_that_cannot_be_found_is_not_a_success(
    line: Line, kaggle: Kaggle, record: store.RunFolder
) -> None:
    line.spoil["CreateSubmission"] = ["never"] * 3
    with pytest.raises(UnreachableError, match="may have been accepted"):
        workflow.submit(kaggle, record, SubmitOptions())
    assert line.calls.count("CreateSubmission") == 2
    assert store.submissions(record.root) == []


def test_an_accepted_but_unlisted_submission_is_not_a_success(
    line: Line, kaggle: Kaggle, record: store.RunFolder
) -> None:
    line.spoil["CreateSubmission"] = ["ignored"]
    with pytest.raises(RefusedError, match="lists no such submission"):
        workflow.submit(kaggle, record, SubmitOptions())
    assert line.calls.count("CreateSubmission") == 1
    assert store.submissions(record.root) == []


@pytest.mark.parametrize("faults", [["half"], ["cut"], ["never", "", "half"], ["lost"]])
def test_an_interrupted_upload_is_resumed(
    faults: list[str], line: Line, record: store.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "UPLOAD_PAUSES", (0.0,) * 6)
    kaggle = connected(line, "up-" + "-".join(faults))
    line.spoil["upload"] = list(faults)
    assert workflow.submit(kaggle, record, SubmitOptions()).record.private_score == "0.33333"


def test_an_endless_upload_is_given_up(
    line: Line, kaggle: Kaggle, record: store.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "UPLOAD_PAUSES", (0.0,) * 3)
    line.spoil["upload"] = ["never"] * 20
    with pytest.raises(UnreachableError):
        workflow.submit(kaggle, record, SubmitOptions())
    assert "CreateSubmission" not in line.calls


def test_the_daily_limit_is_checked_first(
    line: Line, kaggle: Kaggle, record: store.RunFolder
) -> None:
    for _ in range(3):
        workflow.submit(kaggle, record, SubmitOptions(again=True))
    line.calls.clear()
    with pytest.raises(CapacityError, match="used up") as caught:
        workflow.submit(kaggle, record, SubmitOptions(again=True))
    assert "after midnight UTC" in caught.value.next_step
    assert not {"StartSubmissionUpload", "CreateSubmission"} & set(line.calls)
    line.spoil["GetSubmissionLimits"] = ["absent"]  # then the list is counted
    with pytest.raises(CapacityError, match="3 per day"):
        workflow.submit(kaggle, record, SubmitOptions(again=True))


def test_an_invalid_file_is_not_submitted(
    line: Line, kaggle: Kaggle, record: store.RunFolder, tmp_path: Path
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text(SAMPLE + "image6,1 1\n")
    with pytest.raises(VerificationError, match="id 'image6' is missing"):
        workflow.submit(kaggle, record, SubmitOptions(sample=sample))
    (tmp_path / "salt").mkdir()
    (tmp_path / "salt" / "sample_submission.csv").write_text(SAMPLE.replace("image5", "image7"))
    with pytest.raises(VerificationError, match="image7"):
        workflow.submit(kaggle, record, SubmitOptions(data=tmp_path))
    assert not {"StartSubmissionUpload", "CreateSubmission"} & set(line.calls)


def test_without_a_sample_nothing_is_submitted(kaggle: Kaggle, record: store.RunFolder) -> None:
    with pytest.raises(NotFoundError, match="no file with the name of a sample") as caught:
        workflow.submit(kaggle, record, SubmitOptions(competition="bare"))
    assert "--sample FILE" in caught.value.next_step


def test_a_scoring_error_is_an_error(kaggle: Kaggle, record: store.RunFolder) -> None:
    with pytest.raises(RefusedError, match="Unable to find 1 required key") as caught:
        workflow.submit(kaggle, record, SubmitOptions(competition="strict"))
    assert caught.value.details.document["status"] == "error"
    (kept,) = store.submissions(record.root)
    assert "Unable to find" in (kept.error or "")


def test_a_code_competition_receives_the_notebook_version(
    line: Line, record: store.RunFolder
) -> None:
    owner = connected(line, str(record.read().owner))
    done = workflow.submit(owner, record, SubmitOptions(competition="code-only"))
    assert done.record.private_score == "0.33333"
    assert "CreateCodeSubmission" in line.calls
    assert "StartSubmissionUpload" not in line.calls


def test_a_deadline_does_not_cancel_the_submission(kaggle: Kaggle, record: store.RunFolder) -> None:
    with pytest.raises(DeadlineError, match="scoring continues"):
        workflow.submit(kaggle, record, SubmitOptions(), deadline=0.1)
    assert workflow.submit(kaggle, record, SubmitOptions()).sent is False
    assert len(entered(kaggle)) == 1


def test_two_simultaneous_commands_submit_once(kaggle: Kaggle, record: store.RunFolder) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [
            Kaggle(kaggle.credentials, kaggle.endpoint) for _ in range(4)
        ]  # a session each, like separate processes
        done = list(pool.map(lambda one: workflow.submit(one, record, SubmitOptions()), made))
    assert sorted(one.sent for one in done) == [False, False, False, True]
    assert len({one.record.ref for one in done}) == len(entered(kaggle)) == 1


def test_submit_needs_a_known_output_the_right_kaggle_and_a_verified_run(
    kaggle: Kaggle, record: store.RunFolder
) -> None:
    with pytest.raises(ConfigError, match="which output"):
        workflow.submit(kaggle, record, SubmitOptions(file="other.csv"))
    with pytest.raises(RefusedError, match="is a run of"):
        workflow.submit(
            Kaggle(kaggle.credentials, kaggle.endpoint.replace("127.0.0.1", "localhost")),
            record,
            SubmitOptions(),
        )
    (record.path / "submission.csv").write_text(SAMPLE)
    with pytest.raises(VerificationError, match="not a complete and verified run"):
        workflow.submit(kaggle, record, SubmitOptions())
