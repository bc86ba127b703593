"""The probe against a local Kaggle: what it reports, and what it never saves."""

from __future__ import annotations

import copy
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from kernelkit.bundle.image import read_snapshot
from kernelkit.config import load_config
from kernelkit.doctor.checks import CheckResult, Health
from kernelkit.doctor.probe import (
    SLUG,
    Report,
    Transcript,
    compare_sources,
    differences,
    probe,
    shape,
)
from kernelkit.errors import RefusedError
from kernelkit.kaggle.kernels import Kaggle, connect
from kernelkit.kaggle.types import Credentials
from kernelkit.runs.store import find

USER, KEY = "salome-marten", "0123456789abcdef-the-key"


@dataclass(frozen=True)
class Probed:
    """One probe of the local Kaggle, for all tests here."""

    report: Report
    folder: Path

    @property
    def found(self) -> dict[str, CheckResult]:
        return {finding.subject: finding for finding in self.report.findings}

    @property
    def transcript(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "transcript.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def probed(local_kaggle: str, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    folder = tmp_path_factory.mktemp("probe")
    kaggle = connect(local_kaggle, {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY})
    return Probed(probe(kaggle, folder, ["letters"]), folder)


def test_a_confirmed_assumption_is_good(probed: Probed) -> None:
    good = {name for name, finding in probed.found.items() if finding.health == Health.GOOD}
    assert good >= {
        *("run", "requested settings", "status", "version label", "internet", "mount letters"),
        *("environment", "session id", "read-back", "saved log", "outputs"),
        *("failed run", "outputs of a failed run", "log of a failed run"),
        *("cells after the failing one", "failure message"),
    }
    assert probed.found["log stream"].health != Health.BAD
    assert "2026" in probed.found["mount letters"].words
    assert "asked to fail" in probed.found["failure message"].words
    assert "cells equal; cell ids kept; metadata added: kaggle" in probed.found["read-back"].words
    assert "COMPLETE" in probed.found["status"].words
    own = probed.found["own output as an input"].words
    assert own == 'mounted: chain = "one kernel" works'


def test_a_dropped_source_of_its_own_output_is_reported(probed: Probed) -> None:
    from kernelkit.doctor.probe import _Attempt, _own_output

    dropped = ("kernel_sources: requested 'a/kernelkit-probe', not attached",)
    attempt = _Attempt(None, find(probed.folder, SLUG, 2), dropped, "", None, (), "")  # type: ignore[arg-type]
    assert "a chain needs its two kernels" in _own_output(attempt).words


def test_a_refuted_assumption_is_bad(probed: Probed) -> None:
    """This machine is not Kaggle's image, and the report says so."""
    assert probed.found["freeze"].health == Health.BAD
    assert probed.found["image"].health == Health.UNKNOWN


def test_the_snapshot_can_be_used_unchanged(probed: Probed) -> None:
    image = read_snapshot(json.loads((probed.folder / "image.json").read_text(encoding="utf-8")))
    assert image.complete
    assert image.python == sys.version.split()[0]


def test_the_transcript_and_the_report_contain_no_secret(probed: Probed) -> None:
    basic = "Basic"
    for name in ("transcript.json", "report.json"):
        text = (probed.folder / name).read_text(encoding="utf-8")
        for secret in (USER, KEY, basic, "authorization", "/download/", "kernelkit digest"):
            assert secret.lower() not in text.lower(), (name, secret)
    calls = {exchange["call"].rpartition("/")[2] for exchange in probed.transcript["exchanges"]}
    assert calls >= {"SaveKernel", "GetKernel", "GetKernelSessionStatus", "GET file", "stream"}


def test_the_session_lists_names_without_values(probed: Probed) -> None:
    path = probed.folder / "kernelkit-probe" / "v1" / "session.json"
    session = json.loads(path.read_text(encoding="utf-8"))
    assert "KAGGLE_CONTAINER_NAME" in session["environment"]
    assert set(session["container_name"]) <= set("aA9-_")
    assert session["run_type"] == "Batch"


def answer(body: object, status: int = 200, url: str = "https://h.example/v1/s.S/Do") -> Any:
    """A response of requests to a call that contained secrets."""
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps(body).encode()
    response.headers["Content-Type"] = "application/json"
    response.headers["Set-Cookie"] = "session=hidden"
    sent = {"token": "hidden", "userName": USER, "text": "hidden source", "name": 1}
    response.request = requests.Request(
        "POST", url, json=sent, headers={"Authorization": "Bearer hidden"}
    ).prepare()
    return response


def test_free_text_is_redacted_too() -> None:
    transcript = Transcript(Credentials(USER, "a test", key="hidden-key", token="hidden-token"))
    words = f"{USER.upper()} may not, see https://h.example/x?sig=hidden or 123456789: hidden-token"
    transcript(answer({"message": words, "token": "hidden", "code": 403}, 403), False)
    (exchange,) = transcript.document["exchanges"]
    text = json.dumps(exchange)
    assert "hidden" not in text
    assert exchange["values"]["message"] == (
        "<user> may not, see https://h.example/… or <number>: <secret>"
    )
    assert exchange["fields"] == {
        **dict.fromkeys(("token", "userName", "text"), "string"),
        "name": "number",
    }
    assert exchange["call"] == "s.S/Do"


def test_url_signatures_are_removed_but_their_parameter_names_kept() -> None:
    transcript = Transcript(Credentials(USER, "a test", key="k"))
    signed = answer({}, url="https://storage.example/bucket/hidden?X-Goog-Signature=hidden&X-E=60")
    signed.request.method = "GET"
    transcript(signed, True)
    (exchange,) = transcript.exchanges
    assert exchange["query"] == ["X-E", "X-Goog-Signature"]
    assert (exchange["call"], exchange["host"]) == ("GET file", "storage.example")
    assert "hidden" not in json.dumps(exchange)


def test_a_document_is_reduced_to_its_shape() -> None:
    document = {"b": [{"x": 1}, {"y": "https://a/b"}], "a": None, "c": True, "d": [], "e": ["s"]}
    assert shape(document) == {
        "a": None,
        "b": [{"x": "number", "y": "url"}],
        "c": "boolean",
        "d": [],
        "e": ["string"],
    }


def test_transcripts_are_compared_by_shape_only(probed: Probed) -> None:
    ours = probed.transcript
    assert differences(ours, ours) == []
    theirs = copy.deepcopy(ours)
    for exchange in theirs["exchanges"]:
        exchange["seconds"] += 1
        exchange["values"] = {}
    theirs["exchanges"].append(theirs["exchanges"][0])
    assert differences(theirs, ours) == []
    for exchange in theirs["exchanges"]:
        if exchange["call"].endswith("/GetKernel") and exchange["status"] == 200:
            exchange["body"]["metadata"]["id"] = "string"
            exchange["body"]["metadata"]["machineShape"] = "string"
        if exchange["call"].endswith("/ListKernelSessionOutput"):
            del exchange["body"]["log"]
    refused = copy.deepcopy(theirs["exchanges"][-2]) | {"status": 403}
    theirs["exchanges"].append(refused)
    found = differences(theirs, ours)
    assert len(found) == 4, found
    assert any("metadata.id is ['string'] there, ['number'] here" in line for line in found)
    assert any("machineShape is ['string'] there, ['missing'] here" in line for line in found)
    assert any("log is ['missing'] there, ['string'] here" in line for line in found)
    assert any("403: only there" in line for line in found)


@pytest.mark.parametrize(
    ("given", "health", "words"),
    [
        ('{"cells": [{"source": "a", "id": "1"}], "metadata": {}}', Health.GOOD, "the same bytes"),
        ('{"cells": [{"source": ["a"], "id": "2"}], "metadata": {}}', Health.GOOD, "ids changed"),
        ('{"cells": [{"source": "b", "id": "1"}], "metadata": {}}', Health.BAD, "cells CHANGED"),
        ("<html>", Health.BAD, "something else"),
        ("[]", Health.BAD, "something else"),
    ],
)
def test_the_pushed_kernel_is_compared_with_the_request(
    given: str, health: Health, words: str
) -> None:
    sent = '{"cells": [{"source": "a", "id": "1"}], "metadata": {}}'
    finding = compare_sources(sent, given)
    assert finding.health == health
    assert words in finding.words


def test_a_refused_push_still_saves_its_transcript(local_kaggle: str, tmp_path: Path) -> None:
    kaggle = connect(local_kaggle, {"KAGGLE_USERNAME": "refused", "KAGGLE_KEY": KEY})
    with pytest.raises(RefusedError):
        probe(kaggle, tmp_path, ["no-such-competition"])
    exchanges = json.loads((tmp_path / "transcript.json").read_text(encoding="utf-8"))["exchanges"]
    assert exchanges[-1]["status"] == 404


def faulty_kaggle(endpoint: str, account: str, *faults: str) -> Kaggle:
    """A new account of the local Kaggle. Only its requests have these faults."""
    printed = [f"{error},account={account}" for error in faults]
    with requests.Session() as session:
        session.trust_env = False
        session.post(f"{endpoint}/emulator/faults", json=printed, timeout=30).raise_for_status()
    return connect(endpoint, {"KAGGLE_USERNAME": account, "KAGGLE_KEY": KEY})


@pytest.mark.slow
def test_unexpected_behavior_is_reported(local_kaggle: str, tmp_path: Path) -> None:
    kaggle = faulty_kaggle(
        *(local_kaggle, "teller", "forbidden,times=2", "internet-flipped"),
        *("dropped-source,kind=competition", "run-error,at=2,outputs=gone"),
    )
    found = {f.subject: f for f in probe(kaggle, tmp_path, ["letters"]).findings}
    assert found["status"].words.startswith("HTTP 403")
    given = found["requested settings"]
    assert given.health == Health.BAD
    assert "enable_internet: requested False, got True" in given.words
    assert "letters" in given.words
    assert found["mount letters"].health == Health.BAD
    assert found["outputs of a failed run"].health == Health.BAD
    assert found["cells after the failing one"].health == Health.UNKNOWN


def test_a_public_kernel_ends_the_probe(local_kaggle: str, tmp_path: Path) -> None:
    kaggle = faulty_kaggle(local_kaggle, "exposed", "public")
    with pytest.raises(RefusedError, match="is_private: requested True, got False"):
        probe(kaggle, tmp_path)
    exchanges = json.loads((tmp_path / "transcript.json").read_text(encoding="utf-8"))["exchanges"]
    assert sum(e["call"].endswith("/SaveKernel") for e in exchanges) == 1


def test_the_probe_asks_before_it_pushes(plain: Path, cli: Callable, local_kaggle: str) -> None:
    done = cli("doctor", "--probe", "--endpoint", local_kaggle, cwd=plain, expect=2)
    assert "one tiny private kernel, kernelkit-probe" in done.stdout
    assert "attaches letters" in " ".join(done.stdout.split())
    assert "--probe --yes" in done.stderr
    assert not (plain / "runs").exists()


def test_answering_no_pushes_nothing(plain: Path, local_kaggle: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "doctor", "--probe", "--endpoint", local_kaggle],
        cwd=plain,
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.write(ours, b"n\n")
    printed, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "Continue? [y/N]" in printed
    assert process.returncode == 130
    assert not (plain / "runs").exists()


@pytest.mark.slow
def test_the_probe_works_without_a_project(
    cli: Callable, local_kaggle: str, tmp_path: Path
) -> None:
    command = ("doctor", "--probe", "--yes", "--json", "--endpoint", local_kaggle)
    document = json.loads(cli(*command, cwd=tmp_path).stdout)
    assert {finding["subject"] for finding in document["findings"]} >= {"run", "read-back"}
    assert (tmp_path / document["folder"] / "transcript.json").is_file()


def test_the_probe_is_an_ordinary_project() -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "image"
    kernel = load_config(example).kernel
    assert (kernel.slug, kernel.is_private) == ("kernelkit-probe", True)
    assert (kernel.wants_gpu, kernel.enable_internet) == (False, False)
