"""The doctor with a real local Kaggle: good, bad and unknown results, and no secret in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kernelkit.config import load_config
from kernelkit.console import checked as print_checks
from kernelkit.doctor.checks import CheckResult, Health, examine
from kernelkit.errors import ConfigError
from kernelkit.workflow import connect_to, push

Project = Callable[..., Path]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local Kaggle with a closed competition, a dataset that is never ready, and no quota."""
    folder = tmp_path_factory.mktemp("strict")
    for name in ("open", "closed", "points", "slow", "net/pytorch/small/1"):
        (folder / "inputs" / name).mkdir(parents=True)
        (folder / "inputs" / name / "data.txt").write_text("data")
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "kernelkit.emulator", "--port", "0"]
    command += ["--inputs", str(folder / "inputs"), "--ready-file", str(ready)]
    command += ["--rules-not-accepted", "closed", "--dataset-pending", "someone/slow:9999"]
    command += ["--gpu-quota", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not ready.exists() and process.poll() is None:
            time.sleep(0.05)
        yield json.loads(ready.read_text())["endpoint"]
    finally:
        process.terminate()
        process.wait(30)


def diagnosed(
    project: Path,
    endpoint: str | None,
    environment: Mapping[str, str] | None = None,
    **more: object,
) -> dict[str, CheckResult]:
    """The findings by their subjects."""
    config = load_config(project, endpoint=endpoint)
    found = examine(project, config, endpoint, environment=environment or {}, **more)  # type: ignore[arg-type]
    return {finding.subject: finding for finding in found}


def test_a_valid_project_passes_every_check(plain: Path, cli: Callable, local_kaggle: str) -> None:
    printed = cli("doctor", "--endpoint", local_kaggle, cwd=plain).stdout
    assert re.search(r"good +quota +0\.0 of \d", printed)
    assert re.search(r"endpoint +http://127.*a local Kaggle", printed)
    assert re.search(r"good +competition letters +its rules are accepted", printed)
    assert re.search(r"good +clock +within \d+ s", printed)
    assert " bad" not in printed


def test_missing_credentials_do_not_stop_the_other_checks(plain: Path, cli: Callable) -> None:
    document = json.loads(cli("doctor", "--json", cwd=plain, expect=9).stdout)
    printed = {finding["subject"]: finding for finding in document}
    assert printed["credentials"]["health"] == "bad"
    assert "https://www.kaggle.com/settings" in printed["credentials"]["remedy"]
    assert printed["project"]["health"] == "good"
    assert "B free" in printed["disk"]["words"]  # the result depends on this machine
    assert {printed[name]["health"] for name in ("quota", "kernel", "competition letters")} == {
        "unknown"
    }


def test_a_broken_project_file_does_not_stop_the_other_checks(
    plain: Path, cli: Callable, local_kaggle: str
) -> None:
    (plain / "pyproject.toml").write_text("[tool.kernelkit")
    printed = cli("doctor", "--endpoint", local_kaggle, cwd=plain, expect=2).stdout
    assert re.search(r"bad +project .*TOML", printed)
    assert re.search(r"good +quota", printed)


def test_every_data_source_is_checked(make_project: Project, strict: str) -> None:
    project = make_project(
        {},
        extra="""
competition_sources = ["open", "closed", "absent"]
dataset_sources = ["someone/points", "someone/slow", "someone/absent"]
kernel_sources = ["someone/notebook"]
model_sources = ["someone/net/pytorch/small/1", "someone/absent/pytorch/small/1"]
machine_shape = "NvidiaTeslaT4"
""",
    )
    found = diagnosed(project, strict)
    words = {name: (finding.health, finding.exit_code) for name, finding in found.items()}
    assert words["competition open"] == (Health.GOOD, 0)
    assert words["competition closed"] == (Health.BAD, 4)
    assert "competitions/closed/rules" in found["competition closed"].remedy
    assert words["competition absent"] == (Health.BAD, 4)
    assert "no competition absent" in found["competition absent"].words
    assert words["dataset someone/points"] == (Health.GOOD, 0)
    assert words["dataset someone/slow"] == (Health.BAD, 5)
    assert "NOT_YET_PERSISTED" in found["dataset someone/slow"].words
    assert words["dataset someone/absent"] == (Health.BAD, 4)
    assert words["notebook someone/notebook"] == (Health.BAD, 4)
    assert words["model someone/net/pytorch/small/1"] == (Health.GOOD, 0)
    assert words["model someone/absent/pytorch/small/1"] == (Health.BAD, 4)
    assert words["quota"] == (Health.BAD, 5)


def test_the_gpu_quota_is_ignored_for_a_cpu_run(plain: Path, strict: str) -> None:
    assert diagnosed(plain, strict)["quota"].health == Health.GOOD


def test_an_existing_kernel_is_reported_with_its_owner(
    make_project: Project, local_kaggle: str
) -> None:
    project = make_project({})
    assert "does not exist yet" in diagnosed(project, local_kaggle)["kernel"].words
    config = load_config(project, endpoint=local_kaggle)
    push(config, connect_to(config))
    assert "at version 1, private" in diagnosed(project, local_kaggle)["kernel"].words
    other = load_config(project, settings=["kernel.id=other/some-kernel"], endpoint=local_kaggle)
    environment = {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "secret-key"}
    found = examine(project, other, local_kaggle, environment=environment)
    (kernel,) = (finding for finding in found if finding.subject == "kernel")
    assert (kernel.health, kernel.exit_code) == (Health.BAD, 4)
    assert "the account is alice" in kernel.words
    assert not any("secret-key" in f"{finding}" for finding in found)


def test_a_wrong_clock_is_reported(plain: Path, local_kaggle: str) -> None:
    clock = diagnosed(plain, local_kaggle, clock=lambda: time.time() - 3600)["clock"]
    assert (clock.health, clock.exit_code) == (Health.BAD, 10)
    assert "60 minutes behind" in clock.words


def test_an_unreachable_kaggle_is_called_only_once(plain: Path) -> None:
    found = diagnosed(plain, "http://127.0.0.1:9", {"KERNELKIT_RETRY_SECONDS": "0.5"})
    assert found["quota"].exit_code == 9
    assert found["kernel"].words == "not checked: Kaggle did not answer (quota)"
    assert found["clock"].health == Health.UNKNOWN


def test_conflicting_credentials_are_reported(plain: Path, local_kaggle: str) -> None:
    token = {"KAGGLE_API_TOKEN": "a-token-of-mine"}  # the local Kaggle's user is `rehearsal`
    found = diagnosed(plain, local_kaggle, {**token, "KAGGLE_USERNAME": "alice"})
    assert (found["credentials"].health, found["credentials"].exit_code) == (Health.BAD, 9)
    assert "overrides KAGGLE_USERNAME, alice" in found["credentials"].words
    found = diagnosed(plain, local_kaggle, {**token, "KAGGLE_USERNAME": "rehearsal"})
    assert found["credentials"].health == Health.GOOD
    assert "a-token-of-mine" not in str(found)


def test_credential_files_readable_by_others_are_reported(plain: Path) -> None:
    """Reported without a call: the file cannot be used."""
    folder = Path.home() / ".kaggle"
    folder.mkdir()
    (folder / "kaggle.json").write_text(json.dumps({"username": "", "key": "hidden-key"}))
    (folder / "kaggle.json").chmod(0o644)
    finding = diagnosed(plain, None)["key file"]
    assert (finding.health, finding.exit_code) == (Health.BAD, 9)
    assert finding.remedy.startswith("chmod 600")
    (folder / "kaggle.json").chmod(0o600)
    found = diagnosed(plain, None)
    assert found["key file"].health == Health.GOOD
    assert "hidden-key" not in str(found)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"KAGGLE_API_ENVIRONMENT": "TEST"}, "sends TEST to the real Kaggle"),
        ({"KAGGLE_CONFIG_DIR": "/no/such/folder"}, "which is not a folder"),
    ],
)
def test_environment_variables_that_change_the_client_are_reported(
    plain: Path, local_kaggle: str, environment: Mapping[str, str], words: str
) -> None:
    finding = diagnosed(plain, local_kaggle, environment)["environment"]
    assert (finding.health, finding.exit_code) == (Health.BAD, 2)
    assert words in finding.words


def test_a_proxy_is_shown_without_its_password(
    plain: Path, local_kaggle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:password@proxy.example:8080")
    finding = diagnosed(plain, local_kaggle)["proxy"]
    assert finding.words == "https through proxy.example"


def test_untested_versions_are_unknown(
    plain: Path, local_kaggle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kernelkit.doctor.checks.TESTED", {"kaggle": ("0.1",), "no-such-thing": ("1",)}
    )
    found = diagnosed(plain, local_kaggle)
    assert "kernelkit is tested with" in found["kaggle"].words
    assert found["kaggle"].health == found["no-such-thing"].health == Health.UNKNOWN


def test_git_and_preflight_describe_the_project(plain: Path, local_kaggle: str) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=plain, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert "no changes" in diagnosed(plain, local_kaggle)["git"].words
    (plain / "new.txt").write_text("new")
    assert "1 changed file" in diagnosed(plain, local_kaggle)["git"].words
    config = load_config(plain, settings=["kernel.title=Otherwise"], endpoint=local_kaggle)
    found = {f.subject: f for f in examine(plain, config, local_kaggle, environment={})}
    assert found["preflight"].exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_runs_folder_is_reported(plain: Path, local_kaggle: str) -> None:
    (plain / "runs").mkdir(mode=0o500)
    assert diagnosed(plain, local_kaggle)["runs"].exit_code == 10


def test_a_file_in_place_of_the_runs_folder_is_reported(plain: Path, local_kaggle: str) -> None:
    (plain / "runs").write_text("in the way")
    assert diagnosed(plain, local_kaggle)["runs"].exit_code == 10


def test_the_report_is_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_checks(
        [
            CheckResult("short", Health.GOOD, "fine"),
            CheckResult("a longer one", Health.BAD, "one\ntwo \x1b", "do this", 4),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "good    short         fine",
        "bad     a longer one  one; two \\x1b",
        "                      → do this",
        "1 good, 1 bad",
    ]


def test_a_project_error_is_a_finding(tmp_path: Path, local_kaggle: str) -> None:
    found = examine(tmp_path, ConfigError("broken", "fix it"), local_kaggle, environment={})
    assert CheckResult("project", Health.BAD, "broken", "fix it", 2) in found


def test_the_local_kaggle_is_tried(
    plain: Path, local_kaggle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = diagnosed(plain, local_kaggle)["local Kaggle"]
    assert finding.health == Health.GOOD
    assert re.match("runs are in (private namespaces|ordinary folders)", finding.words)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['nbclient'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = diagnosed(plain, local_kaggle)["local Kaggle"]
    assert finding.health == Health.UNKNOWN
    assert "nbclient not installed: pip install" in finding.words
