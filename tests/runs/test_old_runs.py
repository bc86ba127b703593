"""Run folders of kernelkit 0.1.0 stay readable: tests/samples/old_runs has three.

v1 was pushed, pulled, verified and submitted; v2 failed; v3 was pushed and never pulled. The
notebooks of v1 and v3 are kept next to them, so that a local Kaggle can have these versions again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.config import KernelSettings
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SAMPLE = Path(__file__).parents[1] / "samples" / "old_runs"
OWNER = "old-runs"  # a separate account, because other tests share the local Kaggle
RECORDED_ENDPOINT = "http://127.0.0.1:43759"
SETTINGS = KernelSettings(id="plain-parcel", title="Plain parcel", competition_sources=("letters",))


def payload(name: str) -> str:
    """A stored notebook, as the earlier client sent it."""
    notebook = json.loads((SAMPLE / name).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
        cell["source"] = "".join(cell["source"])
    return json.dumps(notebook)


@pytest.fixture(scope="module")
def old_project(local_kaggle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old project, with its runs on the local Kaggle as versions 1 to 3."""
    project = Path(shutil.copytree(SAMPLE, tmp_path_factory.mktemp("old") / "project"))
    (project / "kept").rename(project / "runs")
    for path in (project / "runs").rglob("*.json"):
        text = path.read_text(encoding="utf-8").replace(RECORDED_ENDPOINT, local_kaggle)
        path.write_text(text.replace("rehearsal", OWNER), encoding="utf-8")
    kaggle = Kaggle(Credentials(OWNER, "the test", key="k"), local_kaggle)
    for version, name in enumerate(("v1.ipynb", "v1.ipynb", "v3.ipynb"), start=1):
        assert kaggle.save_kernel("plain-parcel", payload(name), SETTINGS).version == version
    return project


@pytest.fixture
def environment(local_kaggle: str) -> dict[str, str]:
    return {"KERNELKIT_ENDPOINT": local_kaggle, "KAGGLE_USERNAME": OWNER}


def test_old_runs_are_listed_unchanged(old_project: Path, cli: Cli, tmp_path: Path) -> None:
    project = shutil.copytree(old_project, tmp_path / "project")
    shutil.rmtree(project / "runs" / "plain-parcel" / "v3")  # other tests pull it
    rows = json.loads(cli("runs", "--json", cwd=project).stdout)
    expected = json.loads((SAMPLE / "expected-runs.json").read_text(encoding="utf-8"))[:2]
    assert [row.pop("failure") is None for row in rows] == [True, False]  # keys since then
    assert [row.pop("state_word") for row in rows] == ["complete", "failed"]
    assert [row.pop("campaign") for row in rows] == [None, None]
    assert [row["metric"].pop("goal") for row in rows] == ["maximize", "maximize"]
    assert [row["metric"].pop("numbers") for row in rows] == [{"seconds": 0.0}] * 2
    assert [{**row, "run": "rehearsal/plain-parcel"} for row in rows] == expected
    shown = json.loads(cli("runs", "show", "v1", "--json", cwd=project).stdout)
    assert shown["submissions"][0]["public_score"] == "1.00000"
    assert shown["outputs"][1]["path"] == "letters.zip"
    found = json.loads(cli("runs", "diff", "v1", "v2", "--json", cwd=project).stdout)
    assert found["parameters"] == {"fail": [None, True]}


def test_an_old_run_can_still_be_watched_and_pulled(
    old_project: Path, cli: Cli, environment: dict[str, str]
) -> None:
    watched = cli("watch", "v3", cwd=old_project, env=environment).stdout
    assert "counting  epoch 1/1  val IoU 1.0000" in watched
    status = json.loads(cli("status", "v3", "--json", cwd=old_project, env=environment).stdout)
    assert (status["state"], status["profile"]) == ("complete", "quick")
    pulled = json.loads(cli("pull", "v3", "--json", cwd=old_project, env=environment).stdout)
    assert pulled["verified"] is True
    folder = old_project / "runs" / "plain-parcel" / "v3"
    assert (folder / "table.csv").read_bytes() == (
        folder.with_name("v1") / "table.csv"
    ).read_bytes()
    assert json.loads((folder / "run.json").read_text())["run"]["version"] == 3
    assert "no failure" in cli("diagnose", "v3", cwd=old_project).stdout


def test_an_old_complete_run_is_still_verified(
    old_project: Path, cli: Cli, environment: dict[str, str]
) -> None:
    cli("verify", old_project / "runs" / "plain-parcel" / "v1")
    pulled = cli("pull", "v1", "--json", cwd=old_project, env=environment)
    assert json.loads(pulled.stdout)["verified"] is True
    cli("watch", "v1", cwd=old_project, env=environment)  # the local Kaggle runs it again
    assert "kernelkit digest 291a8c87" in cli("logs", "v1", cwd=old_project, env=environment).stdout


def test_an_old_submission_is_found_and_a_new_one_is_made(
    old_project: Path, cli: Cli, environment: dict[str, str], tmp_path: Path
) -> None:
    def submit(*options: str | Path) -> dict[str, object]:
        done = cli(
            "submit", "v1", "--no-wait", "--json", *options, cwd=old_project, env=environment
        )
        submitted: dict[str, object] = json.loads(done.stdout)
        return submitted

    before = submit()
    assert (before["ref"], before["sent"]) == (500000001, False)
    assert before["private_score"] == "0.60000"
    sample = tmp_path / "sample.csv"
    sample.write_text("id,rle_mask\nalpha,1 1\nbeta,1 1\n")
    again = submit("--again", "--sample", sample)
    assert (again["status"], again["sent"]) == ("pending", True)
    assert again.keys() == before.keys() - {"asked"}


def test_an_old_failed_run_is_diagnosed(old_project: Path, cli: Cli) -> None:
    folder = old_project / "runs" / "plain-parcel" / "v2"
    for source in ("v2", str(folder), str(folder / "plain-parcel.log")):
        found = json.loads(cli("diagnose", source, "--json", cwd=old_project).stdout)
        assert found["cause"] == "the code's own error"
        assert "asked to fail" in found["error"]
    assert "asked to fail" in cli("verify", folder, expect=6).stderr
