"""The part of the runtime that installs wheels of a dataset, called as a cell calls it."""

from __future__ import annotations

import hashlib
import itertools
import platform
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.tags import parse_tag, sys_tags

from kernelkit.notebook.runtime.documents import WheelsDocument
from kernelkit.notebook.runtime.faults import RuntimeFault
from kernelkit.notebook.runtime.inputs import RunFolders
from kernelkit.notebook.runtime.wheels import fits, install_wheels

HERE = f"cp3{sys.version_info.minor}"
PYTHONS = ["py3-none", "py2.py3-none", "py2-none", "py36-none", "py399-none", f"{HERE}-none"]
PYTHONS += [f"{HERE}-{HERE}", "cp38-abi3", f"{HERE}-abi3", "cp399-abi3", "cp399-cp399", "cp38-cp38"]
PLATFORMS = ["any", "linux_x86_64", "manylinux1_x86_64", "manylinux2014_x86_64", "win_amd64"]
PLATFORMS += ["manylinux_2_17_x86_64.manylinux2014_x86_64", "manylinux_2_99_x86_64"]
PLATFORMS += ["manylinux_2_17_aarch64", "musllinux_1_2_x86_64", "macosx_11_0_arm64"]


def test_the_same_wheels_fit_as_for_packaging() -> None:
    supported = set(sys_tags())
    for python, place in itertools.product(PYTHONS, PLATFORMS):
        tag = f"{python}-{place}"
        if platform.machine() == "x86_64" or "x86_64" not in place:
            assert fits(f"leaf-1.0-{tag}.whl") == bool(parse_tag(tag) & supported), tag
    assert fits("leaf-1.0-2build-py3-none-any.whl")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mounted dataset; pip installs into `target` and not into this environment."""
    monkeypatch.setenv("KAGGLE_INPUT_DIR", str(tmp_path / "input"))
    monkeypatch.setenv("KAGGLE_CONTAINER_NAME", "kaggle_abc-123")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    folder = tmp_path / "input" / "datasets" / "someone" / "demo-wheels"
    folder.mkdir(parents=True)
    return folder


def add(folder: Path, name: str, tags: str = "py3-none-any", place: str = "") -> dict[str, str]:
    """Write a wheel that can be installed; `place` is another name for its file."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    file = f"{name}-1.0-{tags}.whl"
    with zipfile.ZipFile(folder / (place or file), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    content = (folder / (place or file)).read_bytes()
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}


def wheels(*files: dict[str, str], install: tuple[str, ...] = ("leaf",)) -> WheelsDocument:
    return WheelsDocument(dataset="demo-wheels", python="3.12", files=files, install=install)  # type: ignore[typeddict-item]


@pytest.mark.slow
def test_only_the_wheels_of_the_manifest_are_installed(dataset: Path, tmp_path: Path) -> None:
    """By their hashes: Kaggle may rename files, and the dataset may hold others."""
    leaf = add(dataset, "leaf", place="renamed by Kaggle.bin")
    add(dataset, "other")
    install_wheels(["leaf>=1"], wheels(leaf), RunFolders())
    assert (tmp_path / "target" / "leaf.py").is_file()
    with pytest.raises(RuntimeFault, match="pip could not install other"):
        install_wheels(["other"], wheels(leaf), RunFolders())


def test_an_altered_or_missing_wheel_stops_the_run(dataset: Path, tmp_path: Path) -> None:
    leaf, other = add(dataset, "leaf"), add(dataset, "other")
    (dataset / leaf["file"]).write_bytes(b"altered")
    (dataset / other["file"]).unlink()
    with pytest.raises(RuntimeFault) as caught:
        install_wheels(["leaf"], wheels(leaf, other), RunFolders())
    assert f"{leaf['file']} has different content, {other['file']} is missing" in str(caught.value)
    assert "`kernelkit wheels`" in str(caught.value)
    assert not (tmp_path / "target").exists()


def test_a_dataset_that_is_not_attached(dataset: Path) -> None:
    leaf = add(dataset, "leaf")
    dataset.rename(dataset.with_name("another"))
    with pytest.raises(RuntimeFault, match="The wheels of this notebook are not here"):
        install_wheels(["leaf"], wheels(leaf), RunFolders())


def test_wheels_for_another_python_are_refused_on_kaggle(dataset: Path) -> None:
    leaf = add(dataset, "leaf", tags="cp399-cp399-any")
    with pytest.raises(RuntimeFault, match=r"does not fit .* chosen for Python 3\.12"):
        install_wheels(["leaf"], wheels(leaf), RunFolders())


def test_a_rehearsal_leaves_out_wheels_that_do_not_fit(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_CONTAINER_NAME", "kaggle-local-300000001")
    packaging = add(dataset, "packaging", tags="cp399-cp399-any")
    leaf = add(dataset, "no_such_leaf", tags="cp399-cp399-any")
    install_wheels([], wheels(packaging, leaf, install=("packaging", "no-such-leaf")), RunFolders())
    printed = capsys.readouterr().out
    assert "rehearsal: packaging-1.0-cp399-cp399-any.whl does not fit Python 3" in printed
    assert "the run uses packaging " in printed
    assert "no-such-leaf is not installed, and an import of it fails here" in printed
