"""Push, watch, pull, verify: the command line and the official client on a real local Kaggle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from kernelkit.storage import sha256_of

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(plain: Path, request: pytest.FixtureRequest) -> Path:
    """The sample project with its own slug, because the tests share a local Kaggle."""
    slug = request.node.name.replace("_", "-").split("[")[0][:45].strip("-")
    path = plain / "pyproject.toml"
    text = path.read_text().replace("plain-parcel", slug)
    path.write_text(text.replace("Plain parcel", slug.replace("-", " ")))
    return plain


def last_folder(project: Path, version: int = 1) -> Path:
    (slug,) = (project / "runs").glob("[!.]*")
    return slug / f"v{version}"


def test_a_run_is_downloaded_and_verified(project: Path, cli: Cli, local_kaggle: str) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    pushed = json.loads(cli("push", "--json", cwd=project, env=endpoint).stdout)
    assert pushed["version"] == 1
    watched = cli("watch", cwd=project, env=endpoint).stdout
    assert "counting  epoch 1/2  val IoU 0.5000" in watched
    assert "counting  epoch 2/2  val IoU 1.0000" in watched
    assert watched.count("kernelkit digest") == 1
    assert (
        json.loads(cli("status", "--json", cwd=project, env=endpoint).stdout)["state"] == "complete"
    )
    assert "not pulled" in cli("runs", cwd=project).stdout
    pulled = json.loads(cli("pull", "--json", cwd=project, env=endpoint).stdout)
    folder = last_folder(project)
    assert Path(pulled["folder"]) == folder
    assert pulled["verified"] is True
    assert (folder / "table.csv").read_text() == "id,length\nalpha,5\nbeta,4\n"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"bundle.json", "run.json", "run-manifest.json", "letters.zip", "push.json"}
    assert f"{pushed['slug']}.log" in names
    record = json.loads((folder / "run.json").read_text())
    assert (record["endpoint"], record["verified"]) == (local_kaggle, True)
    assert json.loads((folder / "bundle.json").read_text())["digest"] == pushed["digest"]
    cli("verify", folder)
    assert json.loads(cli("runs", "--json", cwd=project).stdout)[0]["verified"] is True
    log = cli("logs", cwd=project, env=endpoint).stdout
    assert log.index("kernelkit digest") < log.index("hardware:") < log.index("data_dir = ")


def test_logs_follow_a_run_to_its_end(project: Path, cli: Cli, local_kaggle: str) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    pushed = json.loads(cli("push", "--json", cwd=project, env=endpoint).stdout)
    followed = cli("logs", "--follow", cwd=project, env=endpoint).stdout
    log = cli("logs", cwd=project, env=endpoint).stdout
    assert followed == log
    assert log.count("kernelkit digest") == 1
    last = "".join(log.splitlines(keepends=True)[-2:])
    assert cli("logs", "--tail", "2", cwd=project, env=endpoint).stdout == last
    assert cli("logs", "-f", "--tail", "2", cwd=project, env=endpoint).stdout == last
    entries = json.loads(cli("logs", "-f", "--json", cwd=project, env=endpoint).stdout)
    assert "".join(entry["text"] for entry in entries) == log
    assert json.loads(cli("open", "--json", cwd=project).stdout) == {"url": pushed["url"]}


@pytest.mark.slow
def test_a_complete_folder_never_changes(project: Path, cli: Cli, local_kaggle: str) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    cli("run", cwd=project, env=endpoint)
    folder = last_folder(project)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "complete already" in cli("pull", cwd=project, env=endpoint).stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    reported = cli("pull", "--file", "tabel.csv", cwd=project, env=endpoint, expect=2)
    assert "the run left no tabel.csv" in reported.stderr
    reported = cli("pull", "--file", "table.csv", "--json", cwd=project, env=endpoint)
    assert json.loads(reported.stdout)["partial"] is True
    cli("push", "--set", "epochs=1", cwd=project, env=endpoint)
    cli("pull", cwd=project, env=endpoint)
    assert last_folder(project, 2).is_dir()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_tampered_folder_is_refused(project: Path, cli: Cli, local_kaggle: str) -> None:
    cli("run", cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle})
    (last_folder(project) / "table.csv").write_text("id,length\n")
    reported = cli("verify", last_folder(project), expect=8)
    assert "table.csv: 10 B, the run wrote" in reported.stderr
    assert "next:" in reported.stderr
    environment = {"KERNELKIT_ENDPOINT": local_kaggle}
    report = json.loads(cli("pull", "--json", cwd=project, env=environment, expect=8).stdout)
    assert (report["state"], report["verified"]) == ("complete", False)
    assert {"left_behind", "refused", "partial", "error", "next"} <= report.keys()


def test_a_failed_run_is_pulled_and_reported(project: Path, cli: Cli, local_kaggle: str) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    reported = cli("run", "--profile", "failing", cwd=project, env=endpoint, expect=6)
    assert "RuntimeError: asked to fail" in reported.stderr
    cli("status", cwd=project, env=endpoint, expect=6)
    folder = last_folder(project)
    manifest = json.loads((folder / "run-manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "parcel/main.py" in manifest["traceback"]
    assert "kernelkit-manifest {" in (folder / f"{folder.parent.name}.log").read_text()
    assert json.loads((folder / "run.json").read_text())["state"] == "error"
    cli("verify", folder, expect=6)
    cli("pull", cwd=project, env=endpoint, expect=6)


def test_a_missing_gpu_ends_the_run_early(project: Path, cli: Cli, local_kaggle: str) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine may have a GPU")
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    reported = cli("run", "--profile", "gpu", cwd=project, env=endpoint, expect=6)
    assert "asks for NvidiaTeslaT4 and the run has no GPU" in reported.stderr
    assert "parcel/main.py" not in reported.stdout


@pytest.mark.slow
def test_a_deadline_does_not_stop_the_run(project: Path, cli: Cli, local_kaggle: str) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    cli("push", "--profile", "slow", cwd=project, env=endpoint)
    reported = cli("watch", "--deadline", "2", cwd=project, env=endpoint, expect=7)
    assert "keeps running" in reported.stderr
    cli("status", cwd=project, env=endpoint)
    cli("pull", cwd=project, env=endpoint)


def test_ctrl_c_detaches_and_prints_how_to_reattach(
    project: Path, cli: Cli, local_kaggle: str
) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    cli("push", "--profile", "slow", cwd=project, env=endpoint)
    watching = subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "watch"],
        cwd=project,
        # A shell's background jobs ignore Ctrl-C; those of a terminal do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, **endpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    for line in watching.stdout:
        if "epoch 1/8" in line:
            break
    watching.send_signal(signal.SIGINT)
    _, reported = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "Come back with: " in reported
    assert "kernelkit watch v1" in reported
    again = cli("watch", cwd=project, env=endpoint).stdout
    assert [f"epoch {n}/8" in again for n in range(1, 9)] == [True] * 8


def asked(local_kaggle: str, slug: str) -> list[dict[str, object]]:
    """The calls about a kernel in the local Kaggle's journal."""
    journal = requests.get(f"{local_kaggle}/emulator/journal", timeout=10).json()
    return [call for call in journal["requests"] if call["kernel"] == slug]


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("competition", "nowhere", "the competition nowhere gives you no data"),
        ("dataset", "ann/nowhere", "there is no dataset ann/nowhere"),
    ],
)
def test_a_missing_source_is_reported_before_the_push(
    project: Path, cli: Cli, local_kaggle: str, kind: str, source: str, words: str
) -> None:
    slug = f"no-{kind}-there"
    names = [f'kernel.id="{slug}"', f'kernel.title="No {kind} there"']
    there = {"competition": "letters", "dataset": "ann/letters"}[kind]
    names += [f'kernel.{kind}_sources=["{there}", "{source}"]']
    options = [part for name in names for part in ("--set", name)]
    reported = cli(
        "push", *options, cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle}, expect=4
    )
    assert words in reported.stderr
    assert "Nothing was sent" in reported.stderr
    methods = {call["method"] for call in asked(local_kaggle, slug)}
    assert methods == {"GetKernel"}
    assert not list(project.glob("runs/*/v*"))


@pytest.mark.parametrize("reported", [True, False])
def test_a_dropped_source_is_an_error_and_is_recorded(
    project: Path, cli: Cli, local_kaggle: str, reported: bool
) -> None:
    """Kaggle may report a dropped source in its response, or only show a kernel without it."""
    slug = f"dropped-{'aloud' if reported else 'in-silence'}"
    names = [f'kernel.id="{slug}"', f'kernel.title="{slug.replace("-", " ")}"']
    names += ['kernel.dataset_sources=["ann/letters"]']
    fault = f"dropped-source,kind=dataset,kernel={slug},reported={str(reported).lower()}"
    assert requests.post(f"{local_kaggle}/emulator/faults", json=[fault], timeout=10).ok
    options = [part for name in names for part in ("--set", name)]
    refused = cli("push", *options, cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle}, expect=4)
    assert "dataset_sources: requested 'ann/letters', not attached" in refused.stderr
    assert ("Kaggle dropped 'ann/letters'" in refused.stderr) == reported
    assert "runs all the same" in refused.stderr
    (pushed,) = [call for call in asked(local_kaggle, slug) if call["method"] == "SaveKernel"]
    assert pushed["faults"] == ["dropped-source"]
    assert (last_folder(project) / "push.json").is_file()


def test_the_session_limit_exits_with_5(
    plain: Path, cli: Cli, tmp_path: Path, local_kaggle: str
) -> None:
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle, "KAGGLE_USERNAME": "crowded"}
    for number in range(6):
        project = Path(shutil.copytree(plain, tmp_path / f"p{number}"))
        names = [f"kernel.id=crowd-{number}", f"kernel.title=crowd {number}", "seconds=60.0"]
        options = [part for name in names for part in ("--set", name)]
        if number < 5:
            cli("push", *options, cwd=project, env=endpoint)
        else:
            reported = cli("push", *options, cwd=project, env=endpoint, expect=5)
    assert "session count" in reported.stderr


@pytest.mark.slow
def test_the_same_version_on_another_kaggle_does_not_reuse_old_results(
    project: Path, cli: Cli, local_kaggle: str
) -> None:
    """Each Kaggle counts from 1: an existing v1 is moved aside, complete."""
    cli("run", cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle})
    (folder,) = (project / "runs").glob("[!.]*")
    old = (folder / "v1" / "run.json").read_bytes()
    (folder / "v1").rename(folder / "v2")  # as if pushed to an earlier Kaggle
    cli("push", "--again", cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle})
    assert not (folder / "v2" / "run.json").exists()
    assert (folder / "v2.1" / "run.json").read_bytes() == old
    pulled = json.loads(
        cli("pull", "--json", cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle}).stdout
    )
    assert json.loads((folder / "v2" / "run.json").read_text())["run"]["version"] == 2
    assert pulled["verified"] is True


def test_a_rehearsal_only_changes_its_own_folder(plain: Path, cli: Cli) -> None:
    inputs = Path(__file__).parent / "samples" / "inputs"
    (plain / "runs").mkdir()
    reported = cli("rehearse", "--inputs", inputs, "--out", "runs", cwd=plain, expect=2).stderr
    assert "contains real runs" in reported
    mine = plain / "mine" / "plain-parcel" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    reported = cli("rehearse", "--inputs", inputs, "--out", "mine", cwd=plain, expect=2).stderr
    assert "notes.txt" in reported
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_two_rehearsals_do_not_share_a_folder(plain: Path, cli: Cli) -> None:
    inputs = Path(__file__).parent / "samples" / "inputs"
    first = subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "rehearse", "--inputs", inputs, "--profile", "slow"],
        cwd=plain,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    first.stdout.readline()
    reported = cli("rehearse", "--inputs", inputs, cwd=plain, expect=10).stderr
    assert "another rehearsal is using" in reported
    first.terminate()
    assert first.wait(30) == 130
    first.stdout.close()


@pytest.mark.slow
def test_a_rehearsal_does_not_need_the_owners_account(plain: Path, cli: Cli) -> None:
    inputs = Path(__file__).parent / "samples" / "inputs"
    named = ["--set", "kernel.id=ann/plain-parcel"]
    printed = cli("rehearse", "--inputs", inputs, *named, cwd=plain).stdout
    assert "as ann" in printed
    folder = plain / "build" / "rehearsal" / "plain-parcel" / "v1"
    assert printed.splitlines()[-1] == f"verified: {folder}"


@pytest.mark.slow
def test_folders_and_patterns_are_pulled_and_verified(
    make_project: Callable[..., Path], cli: Cli
) -> None:
    project = make_project(
        {
            "pkg/main.py": "from pathlib import Path\ndef run():\n"
            "    for name in ('a.csv', 'b.csv', 'ckpt/1/w.pt', 'logs/x/y.txt', 'logs/z.md'):\n"
            "        Path(name).parent.mkdir(parents=True, exist_ok=True)\n"
            "        Path(name).write_text(name)\n"
        }
    )
    path = project / "pyproject.toml"
    stated = '["*.csv", "ckpt/", "logs/**/*.txt"]'
    path.write_text(path.read_text().replace('["out.txt"]', stated))
    reported = json.loads(cli("rehearse", "--json", cwd=project).stdout)
    outputs = {output["path"]: output["sha256"] for output in reported["outputs"]}
    assert set(outputs) == {"a.csv", "b.csv", "ckpt/1/w.pt", "logs/x/y.txt"}
    assert reported["undeclared"] == ["logs/z.md"]
    folder = Path(reported["folder"])
    for name, sha256 in outputs.items():
        assert sha256_of(folder / name) == sha256
    (folder / "ckpt" / "1" / "w.pt").write_text("CKPT/1/w.pt")
    assert "ckpt/1/w.pt: the content differs" in cli("verify", folder, expect=8).stderr


def test_a_rehearsal_names_the_folder_that_is_missing(
    plain: Path, cli: Cli, tmp_path: Path
) -> None:
    before = plain / "build" / "rehearsal" / "plain-parcel" / "v1" / "run.json"
    before.parent.mkdir(parents=True)
    before.write_text("{}")
    (tmp_path / "other" / "letter").mkdir(parents=True)
    for given in ([], ["--inputs", tmp_path / "other"]):
        reported = cli("rehearse", *given, cwd=plain, expect=2).stderr
        assert 'competition_sources "letters"' in reported
        assert "kaggle.com" not in reported
    assert 'Is it "letter"?' in reported
    assert before.exists()  # the last rehearsal is kept


def test_a_push_to_a_local_kaggle_without_data_says_where_it_belongs(
    plain: Path, cli: Cli, local_kaggle: str
) -> None:
    unknown = ["--set", 'kernel.competition_sources=["no-such-competition"]']
    data = ["--set", "data_dir=kaggle://input/no-such-competition"]
    reported = cli("push", "--endpoint", local_kaggle, *unknown, *data, cwd=plain, expect=4).stderr
    assert "local Kaggle's --inputs" in " ".join(reported.split())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_rehearsal_without_namespaces_says_so(make_project: Callable[..., Path]) -> None:
    """It also reads the outputs of a kernel that the inputs folder stands for."""
    read = "Path('out.txt').write_text((Path(data) / 'kept.txt').read_text())"
    project = make_project(
        {
            "pkg/main.py": f"from pathlib import Path\ndef run(data):\n    {read}\n",
            "inputs/some-kernel/kept.txt": "from the run before",
        },
        extra='kernel_sources = ["ann/some-kernel"]\n[tool.kernelkit.parameters]\n'
        'data = "kaggle://input/some-kernel"',
    )
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    wrapped = ("unshare", "-Ur", "sh", "-c", forbid, "sh")
    if subprocess.run([*wrapped, "true"], capture_output=True).returncode:
        pytest.skip("cannot forbid namespaces here")
    command = [sys.executable, "-m", "kernelkit", "rehearse", "--inputs", "inputs"]
    for options in ([], ["--json"]):
        done = subprocess.run(
            [*wrapped, *command, *options], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if options:
            assert json.loads(done.stdout)["isolation"] == "folders"
        else:
            assert "note: runs are not isolated" in done.stdout
            assert "the network is open" in " ".join(done.stdout.split())
    outputs = project / "build" / "rehearsal" / "some-kernel" / "v1"
    assert (outputs / "out.txt").read_text() == "from the run before"


@pytest.mark.slow
def test_unreadable_results_do_not_fail_the_run(
    make_project: Callable[..., Path], cli: Cli
) -> None:
    project = make_project(
        {
            "pkg/main.py": "from pathlib import Path\ndef run():\n"
            "    Path('out.txt').write_text('x')\n"
            "    Path('table.csv').write_bytes(b'id\\n\\xff\\n')\n"
            "    Path('odd.md').write_bytes(b'\\xff')\n"
            "    Path('gone.png').symlink_to('nowhere')\n"
        }
    )
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('["out.txt"]', '["out.txt", "table.csv"]'))
    reported = json.loads(cli("rehearse", "--json", cwd=project).stdout)
    assert reported["outputs"][1]["rows"] is None
    assert reported["isolation"] in ("namespace", "folders")


@pytest.mark.slow
def test_a_run_of_another_kaggle_is_not_changed(project: Path, cli: Cli, local_kaggle: str) -> None:
    cli("run", cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle})
    other = local_kaggle.replace("127.0.0.1", "localhost")
    reported = cli("status", cwd=project, env={"KERNELKIT_ENDPOINT": other}, expect=4)
    assert "is a run of" in reported.stderr


def test_watching_without_a_push_is_an_error(project: Path, cli: Cli) -> None:
    reported = cli("watch", cwd=project, expect=2)
    assert "Push first" in reported.stderr


@pytest.mark.slow
def test_old_and_new_mounts_give_the_same_bytes(plain: Path, cli: Cli, tmp_path: Path) -> None:
    inputs = Path(__file__).parent / "samples" / "inputs"
    tables = []
    for mounts in ("old", "new"):
        out = tmp_path / mounts
        cli("rehearse", "--inputs", inputs, "--out", out, "--mounts", mounts, cwd=plain)
        folder = out / "plain-parcel" / "v1"
        manifest = json.loads((folder / "run-manifest.json").read_text())
        mount = {"old": "/letters", "new": "/competitions/letters"}[mounts]
        assert manifest["parameters"]["data_dir"] == f"/kaggle/input{mount}"
        tables.append((folder / "table.csv").read_bytes())
        assert (folder / "run.json").is_file()
    assert tables[0] == tables[1]
    assert not (plain / "runs").exists()


def official(*arguments: str | Path, endpoint: str, home: Path) -> str:
    """The unmodified `kaggle` command, redirected to the local Kaggle by a proxy variable."""
    assert urlsplit(endpoint).hostname == "127.0.0.1"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("kaggle")), *map(str, arguments)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": endpoint,
            "KAGGLE_USERNAME": "rehearsal",
            "KAGGLE_KEY": "no-secret",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_official_client_accepts_the_rendered_folder(
    project: Path, cli: Cli, local_kaggle: str, tmp_path: Path
) -> None:
    """And sends the same bytes as kernelkit, except for the push_id of the push."""
    home = tmp_path / "home"
    home.mkdir()
    cli("run", cwd=project, env={"KERNELKIT_ENDPOINT": local_kaggle})
    slug = last_folder(project).parent.name
    cli("render", "--set", f"kernel.id=rehearsal/{slug}", cwd=project)

    def client(*arguments: str | Path) -> str:
        return official(*arguments, endpoint=local_kaggle, home=home)

    assert "version 2 successfully pushed" in client(
        "kernels", "push", "-p", project / "build/kernel"
    )
    assert eventually(lambda: "COMPLETE" in client("kernels", "status", f"rehearsal/{slug}"))
    client("kernels", "output", f"rehearsal/{slug}", "-p", tmp_path / "pulled")
    ours = last_folder(project)
    assert (tmp_path / "pulled/table.csv").read_bytes() == (ours / "table.csv").read_bytes()
    assert "kernelkit digest" in client("kernels", "logs", f"rehearsal/{slug}")
    ours, theirs = (source_of(local_kaggle, slug, version) for version in (1, 2))
    push_id = json.loads((last_folder(project) / "push.json").read_text())["push_id"]
    assert ours.replace(f"\\n    'push_id': '{push_id}',", "") == theirs
    environment = {"KERNELKIT_ENDPOINT": local_kaggle}
    pulled = json.loads(cli("pull", "--json", f"{slug}/v2", cwd=project, env=environment).stdout)
    assert (pulled["verified"], pulled["identity_proven"]) == (True, False)
    said = cli("verify", pulled["folder"], cwd=project).stdout
    assert "is not proven" in said
    assert "is not proven" not in cli("verify", last_folder(project).with_name("v1")).stdout


def source_of(endpoint: str, slug: str, version: int) -> str:
    answer = requests.post(
        f"{endpoint}/api/v1/kernels.KernelsApiService/GetKernel",
        json={"userName": "rehearsal", "kernelSlug": slug, "versionLabel": f"v{version}"},
        auth=("rehearsal", "x"),
        timeout=10,
    )
    document = json.loads(answer.json()["blob"]["source"])
    document["metadata"].pop("kaggle", None)
    return json.dumps(document)


@pytest.mark.slow
def test_a_killed_rehearsal_leaves_nothing_running(plain: Path) -> None:
    inputs = Path(__file__).parent / "samples" / "inputs"
    options = ["--profile", "slow", "--set", "seconds=60.0"]
    rehearsing = subprocess.Popen(
        [sys.executable, "-m", "kernelkit", "rehearse", "--inputs", inputs, *options],
        cwd=plain,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rehearsing.stdout is not None
    address = rehearsing.stdout.readline().split()[-1]
    for line in rehearsing.stdout:
        if "seconds = 60.0" in line:
            break
    rehearsing.kill()
    rehearsing.wait()
    rehearsing.stdout.close()
    assert eventually(lambda: not listens(address))


def listens(address: str) -> bool:
    try:
        requests.get(address, timeout=5)
    except requests.ConnectionError:
        return False
    return True


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()
