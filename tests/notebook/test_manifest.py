"""The typed documents read what is on disk and write back the same JSON."""

import json
from pathlib import Path

import pytest

from kernelkit.errors import LocalError
from kernelkit.notebook.manifest import KernelMetadata, Manifest
from kernelkit.storage import read_model

SAMPLE = Path(__file__).parent.parent / "samples" / "kernel_folder"
"""Rendered by kernelkit 0.1.0, with every key of its bundle.json."""

NEWER_KEYS = {
    "code_dataset",
    "command",
    "import_folders",
    "working_files",
    "metric",
    "metric_goal",
    "wheels",
    "session",
    "description",
    "deadline_hours",
    "stall_minutes",
    "session_seconds",
}
"""Absent unless the project file uses them."""

OPTIONAL_KEYS = NEWER_KEYS | {"push_id", "distribution", "session", "trials", "pruning"}
"""Also absent: in a notebook that kernelkit has not pushed, without name and version, and outside
campaigns."""


def test_every_key_of_a_stored_manifest_round_trips() -> None:
    text = (SAMPLE / "bundle.json").read_text()
    manifest = read_model(SAMPLE / "bundle.json", Manifest)
    assert not manifest.model_extra
    assert not manifest.kernel.model_extra
    assert json.dumps(manifest.document, indent=1, ensure_ascii=False) + "\n" == text
    known = {field.alias or name for name, field in Manifest.model_fields.items()}
    assert known - OPTIONAL_KEYS == set(json.loads(text))


def test_a_manifest_has_typed_values() -> None:
    manifest = read_model(SAMPLE / "bundle.json", Manifest)
    assert manifest.schema_version == 1
    assert manifest.kernel.competition_sources == ("tgs-salt-identification-challenge",)
    assert manifest.kernel.slug == manifest.slug == "plain-parcel"
    assert manifest.provenance.dirty is False
    assert manifest.parameters["deep"] == [1, 2.5, "größe", {"inner": True}]
    assert [file.path for file in manifest.files if file.executable] == ["parcel/send.sh"]


def test_a_stored_kernel_metadata_round_trips() -> None:
    text = (SAMPLE / "kernel-metadata.json").read_text()
    document = json.loads(text)
    lists = {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
    metadata = KernelMetadata.model_validate({**document, **lists})
    assert json.dumps(metadata.document, indent=1, ensure_ascii=False) + "\n" == text


def test_a_newer_manifest_keeps_its_unknown_keys() -> None:
    document = json.loads((SAMPLE / "bundle.json").read_text())
    document |= {"schema": 2, "campaign": {"name": "sweep"}}
    document["files"][0]["mode"] = 493
    document["provenance"]["branch"] = "main"
    document["kernel"]["priority"] = "high"
    assert Manifest.parse(json.dumps(document)).document == document


def test_an_older_manifest_may_lack_optional_keys() -> None:
    document = {"digest": "d" * 64, "outputs": ["models.zip"]}
    manifest = Manifest.parse(json.dumps(document))
    assert manifest.document == document
    assert manifest.kernel.machine_shape == ""
    assert manifest.provenance.commit is None
    assert not manifest.wants_gpu


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "bundle.json: cannot be read"),
        ("[]", "bundle.json: is not a JSON object"),
        ('{"outputs": []}', 'bundle.json: "digest": Field required'),
        ('{"digest": 3, "outputs": []}', 'bundle.json: "digest": Input should be a valid string'),
        ('{"digest": "d", "outputs": [], "files": [{"path": "a"}]}', '"files.0.sha256": Field'),
        ('{"digest": "d", "outputs": [], "kernel": {"session_timeout_seconds": 0}}',
         '"kernel.session_timeout_seconds": must be from 1 to 2,147,483,647'),
        ("[" * 100_000, "bundle.json: cannot be read"),
    ],
)  # fmt: skip
def test_an_error_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(text)
    with pytest.raises(LocalError) as raised:
        read_model(path, Manifest)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))


def test_a_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"bundle\.json: missing"):
        read_model(tmp_path / "bundle.json", Manifest)
