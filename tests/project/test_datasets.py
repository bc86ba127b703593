"""Folders that become datasets of the local Kaggle: once for each content, private, and whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.errors import (
    ConfigError,
    DeadlineError,
    KernelkitError,
    PreflightError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle.datasets import Dataset
from kernelkit.kaggle.kernels import Kaggle, connect
from kernelkit.project import datasets
from kernelkit.project.datasets import DatasetRequest, DatasetVersion, publish_dataset
from tests.local_kaggle import LocalKaggle

BLOBS = "blobs.BlobApiService"
Publish = Callable[..., DatasetVersion]


@pytest.fixture
def kaggle_api(emulator: LocalKaggle) -> Kaggle:
    kaggle = connect(emulator.endpoint, emulator.environment)
    kaggle.timeouts = dataclasses.replace(kaggle.timeouts, first_pause=0.01, grace=0.3, retry=0)
    return kaggle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(range(256)) * 4000)
    (folder / "deep/er/naïve name.txt").write_text("text\n")
    (folder / "deep/empty.py").touch()
    return folder


@pytest.fixture
def publish(kaggle_api: Kaggle, folder: Path, tmp_path: Path) -> Publish:
    def call(**request: object) -> DatasetVersion:
        asked = DatasetRequest(**{"folder": folder, "slug": "my-weights", **request})  # type: ignore[arg-type]
        return publish_dataset(kaggle_api, asked, tmp_path / "state", on_event=events.append)

    events: list[str] = []
    call.events = events  # type: ignore[attr-defined]
    return call


def calls(emulator: LocalKaggle, name: str) -> int:
    return sum(record["method"] == name for record in emulator.journal())


def mounted(emulator: LocalKaggle, version: int = 1) -> dict[str, bytes]:
    """The files as a run gets them."""
    assert emulator.state
    home = emulator.state / "_datasets" / emulator.account / "my-weights" / f"v{version}"
    return {str(f.relative_to(home)): f.read_bytes() for f in home.rglob("*") if f.is_file()}


def test_each_content_becomes_one_private_version(
    publish: Publish, folder: Path, emulator: LocalKaggle, kaggle_api: Kaggle, tmp_path: Path
) -> None:
    first = publish(title="My weights")
    assert (first.version, first.uploaded, first.is_private, first.files) == (1, True, True, 3)
    assert first.address == "kaggle://input/my-weights"
    expected = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.*")}
    assert mounted(emulator) == expected
    assert not publish().uploaded
    (tmp_path / "state").rename(tmp_path / "another machine's")
    assert not publish().uploaded
    (folder / "model.bin").write_bytes(b"better")
    second = publish(message="Better")
    assert (second.version, second.uploaded) == (2, True)
    details = Dataset(kaggle_api, emulator.account, "my-weights").details()
    assert details is not None
    assert details.notes[2].startswith("Better\nkernelkit sha256:")
    (folder / "model.bin").unlink()
    assert publish().version == 3
    assert "model.bin" not in mounted(emulator, 3)


def test_a_version_of_somebody_else_is_not_taken_for_ours(
    publish: Publish, folder: Path, emulator: LocalKaggle, kaggle_api: Kaggle
) -> None:
    publish()
    dataset = Dataset(kaggle_api, emulator.account, "my-weights")
    address = dataset.begin_upload(folder / "model.bin")
    kaggle_api.files.put(address.url, data=(folder / "model.bin").read_bytes())
    dataset.add_version({"model.bin": address.token}, "by hand")
    assert publish().version == 3


@pytest.mark.parametrize("ours_is_last", [True, False])
def test_another_version_at_the_same_time(
    ours_is_last: bool, publish: Publish, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    add = Dataset.add_version

    def add_two(dataset: Dataset, contents: dict[str, str], notes: str) -> None:
        both = [({"model.bin": contents["model.bin"]}, "by hand"), (contents, notes)]
        for one in both if ours_is_last else reversed(both):
            add(dataset, *one)

    monkeypatch.setattr(Dataset, "add_version", add_two)
    (folder / "model.bin").write_bytes(b"better")
    if ours_is_last:
        assert publish().version == 3
    else:
        with pytest.raises(RefusedError, match="somebody else"):
            publish()


@pytest.mark.parametrize("call", ["CreateDataset", "CreateDatasetVersion"])
@pytest.mark.parametrize("fault", ["lost-before", "lost-after"])
def test_a_lost_response_makes_no_second_version(
    call: str, fault: str, publish: Publish, folder: Path, emulator: LocalKaggle
) -> None:
    versions = 1
    if call == "CreateDatasetVersion":
        publish()
        (folder / "model.bin").write_bytes(b"better")
        versions = 2
    emulator.inject(f"{fault},call={call}")
    assert publish().version == versions
    assert len(mounted(emulator, versions)) == 3
    assert not mounted(emulator, versions + 1)


def test_an_interrupted_upload_goes_on(
    publish: Publish, folder: Path, emulator: LocalKaggle
) -> None:
    emulator.inject("server-error,call=CreateDataset,code=500,times=2,when=before")
    with pytest.raises(UnreachableError):
        publish()
    assert calls(emulator, "StartBlobUpload") == 3
    (folder / "deep/empty.py").write_text("not empty")
    assert publish().version == 1
    assert calls(emulator, "StartBlobUpload") == 4


def test_a_public_dataset_gets_no_private_files(
    publish: Publish, folder: Path, emulator: LocalKaggle
) -> None:
    assert not publish(is_private=False).is_private
    (folder / "model.bin").write_bytes(b"secret")
    with pytest.raises(RefusedError, match="is public"):
        publish()
    assert calls(emulator, "CreateDatasetVersion") == 0


def test_a_dataset_that_kaggle_makes_public_is_reported(
    publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Dataset.create

    def create_public(dataset: Dataset, title: str, contents: dict[str, str], **more: str) -> None:
        create(dataset, title, contents, is_private=False, description=more["description"])

    monkeypatch.setattr(Dataset, "create", create_public)
    with pytest.raises(RefusedError, match="is public") as caught:
        publish()
    assert caught.value.exit_code == 4


def test_a_long_upload_says_how_far_it_is(
    publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "PROGRESS_SECONDS", 0)
    publish()
    assert any("model.bin: 65.5 kB of 1.0 MB (6%)" in line for line in publish.events)  # type: ignore[attr-defined]


def test_credentials_are_not_uploaded(
    publish: Publish, folder: Path, emulator: LocalKaggle
) -> None:
    key = "AKIA" + "Q3EGRHBYJ5NXW2LC"
    (folder / "deep/settings.py").write_text(f"x = 1\nkey = {key!r}\n")
    (folder / "kaggle.json").write_text("{}")
    with (folder / "model.bin").open("ab") as stream:
        stream.write(b"-----BEGIN PRIVATE" + b" KEY-----")
    with pytest.raises(PreflightError) as caught:
        publish(place="weights")
    text = str(caught.value)
    assert "weights/deep/settings.py:2: looks like an AWS" in text
    assert "weights/kaggle.json: this is the usual name" in text
    assert "weights/model.bin: looks like a private key" in text
    assert not emulator.journal()
    (folder / "model.bin").write_bytes(b"weights")
    allowed = ("weights/deep/settings.py:2", "weights/kaggle.json")
    assert publish(place="weights", allowed_secrets=allowed).files == 5


def test_nothing_is_sent_to_another_machine(publish: Publish, kaggle_api: Kaggle) -> None:
    begin = Dataset.begin_upload

    def elsewhere(self: Dataset, file: Path) -> object:
        return dataclasses.replace(begin(self, file), url="http://192.0.2.1/upload")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "begin_upload", elsewhere)
        with pytest.raises(RefusedError, match="another machine"):
            publish()
    assert kaggle_api.endpoint.startswith("http://127.0.0.1")


def link_out(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hosts")


def link_to_folder(folder: Path) -> None:
    (folder / "link").symlink_to("deep")


def special(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def odd_name(folder: Path) -> None:
    (folder / "a\nb").touch()


def windows_name(folder: Path) -> None:
    (folder / "aux.txt").touch()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_out, "outside of the folder"),
        (link_to_folder, "is a link to a folder"),
        (special, "not a regular file"),
        (odd_name, "control characters"),
        (windows_name, "a device on Windows"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    change: Callable[[Path], None], message: str, publish: Publish, folder: Path
) -> None:
    change(folder)
    with pytest.raises(ConfigError, match=message):
        publish()


def test_what_is_left_out_is_said(publish: Publish, folder: Path, emulator: LocalKaggle) -> None:
    (folder / ".git").mkdir()
    (folder / ".git/config").touch()
    (folder / "empty").mkdir()
    (folder / "same.bin").symlink_to("model.bin")
    publish()
    said = "\n".join(publish.events)  # type: ignore[attr-defined]
    assert "note: .git/ is left out: git's own" in said
    assert "note: empty/ is left out: an empty folder" in said
    assert mounted(emulator)["same.bin"] == (folder / "model.bin").read_bytes()


@pytest.mark.parametrize("slug", ["short", "x" * 51, "My-Weights", "under_score", "-dash-dash"])
def test_names_that_kaggle_refuses_are_refused_first(slug: str, publish: Publish) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a dataset"):
        publish(slug=slug)


def test_a_version_must_become_current(
    publish: Publish, folder: Path, kaggle_api: Kaggle, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["BLOBS_RECEIVED", "READY", "FAILED"])
    state = Dataset.state
    monkeypatch.setattr(Dataset, "state", lambda self: next(states) if state(self) else None)
    assert publish().version == 1
    assert "my-weights: BLOBS_RECEIVED" in publish.events[-1]  # type: ignore[attr-defined]
    (folder / "model.bin").write_bytes(b"better")
    monkeypatch.setattr(Dataset, "state", lambda _: "FAILED")
    kaggle_api.timeouts = dataclasses.replace(kaggle_api.timeouts, grace=0)
    with pytest.raises(RefusedError, match="could not process"):
        publish()
    monkeypatch.setattr(Dataset, "state", lambda _: "BLOBS_RECEIVED")
    with pytest.raises(DeadlineError), kaggle_api.ends_in(0.05):
        publish()


def test_kaggles_reason_for_a_refusal_is_shown(publish: Publish, emulator: LocalKaggle) -> None:
    emulator.inject("error-in-200,call=CreateDataset,code=400,message=No space left for you")
    with pytest.raises(KernelkitError, match="No space left for you") as caught:
        publish()
    assert isinstance(caught.value, RefusedError)


def test_the_command_prints_address_and_source(
    cli: Callable[..., object], emulator: LocalKaggle, folder: Path, plain: Path
) -> None:
    arguments = ("dataset", "push", folder, "--slug", "my-weights")
    printed = cli(*arguments, cwd=plain, env=emulator.environment).stdout  # type: ignore[attr-defined]
    assert "address: kaggle://input/my-weights" in printed
    assert f'dataset_sources = ["{emulator.account}/my-weights"]' in " ".join(printed.split())
    cli(*arguments, "--public", expect=2, cwd=plain, env=emulator.environment)
    cli(*arguments, "--public", "--yes", expect=4, cwd=plain, env=emulator.environment)
    cli(*arguments, "--json", cwd=folder, env=emulator.environment)
