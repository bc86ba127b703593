"""A notebook whose package is in a private dataset: what is published, and what a run accepts."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.bundle.bundle import read_bundle
from kernelkit.config import load_config
from kernelkit.notebook.code_dataset import CODE_FOLDER, code_dataset, write_code
from kernelkit.notebook.edits import plan
from kernelkit.notebook.preflight import advise, check
from kernelkit.notebook.render import Kernel, render, write_kernel
from kernelkit.notebook.runtime import CODE_FILE, NotebookRun, RuntimeFault
from kernelkit.notebook.runtime.sources import Sources
from tests.conftest import Cli

Make = Callable[..., Path]
FILES: dict[str, str | bytes] = {
    "pkg/main.py": "def run(**parameters):\n    return 7\n",
    "pkg/tool.sh": "#!/bin/sh\n",
    "pkg/data.bin": bytes(range(256)) * 10,
}


@pytest.fixture
def kernel(make_project: Make) -> Kernel:
    project = make_project(FILES, keys='layout = "dataset"')
    (project / "pkg/tool.sh").chmod(0o755)
    return kernel_of(project)


def kernel_of(project: Path) -> Kernel:
    config = load_config(project)
    return render(read_bundle(config), config)


@pytest.fixture
def mounted(kernel: Kernel, tmp_path: Path) -> Path:
    """The dataset as a run finds it."""
    folder = tmp_path / "input" / "datasets" / "ann" / "some-kernel-code"
    write_code(kernel.bundle, folder)
    return folder


def test_the_notebook_carries_no_file_of_the_package(kernel: Kernel) -> None:
    assert kernel.manifest.code_dataset == "some-kernel-code"
    assert "kernelkit_run.load_sources('some-kernel-code')" in kernel.payload
    assert "return 7" not in kernel.payload
    assert "Everything else is in this notebook" not in kernel.payload
    assert {entry.form for entry in kernel.budget if entry.path} == {"dataset"}
    assert check(kernel) == []


def test_the_digest_covers_the_code_and_not_the_owner(make_project: Make) -> None:
    project = make_project(FILES, keys='layout = "dataset"')
    before = kernel_of(project)
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace('id = "some', 'id = "ann/some'))
    owned = kernel_of(project)
    assert owned.digest == before.digest
    assert owned.metadata.dataset_sources == ("ann/some-kernel-code",)
    (project / "pkg/data.bin").write_bytes(b"other")
    assert kernel_of(project).digest != before.digest


def test_the_official_client_gets_all_it_needs(kernel: Kernel, tmp_path: Path) -> None:
    write_kernel(kernel, tmp_path / "kernel")
    metadata = json.loads((tmp_path / "kernel/kernel-metadata.json").read_text())
    assert metadata["dataset_sources"] == ["some-kernel-code"]
    code = tmp_path / "kernel" / CODE_FOLDER
    assert json.loads((code / "dataset-metadata.json").read_text())["id"] == "some-kernel-code"
    write_code(kernel.bundle, tmp_path / "again")
    assert (tmp_path / "again" / CODE_FILE).read_bytes() == (code / CODE_FILE).read_bytes()


@pytest.mark.parametrize("owner", ["", "ann/"])
def test_an_owner_is_asked_for_where_the_official_client_needs_it(
    make_project: Make, cli: Cli, owner: str
) -> None:
    project = make_project(FILES, keys='layout = "dataset"')
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace('id = "some', f'id = "{owner}some'))
    hint = 'id = "OWNER/some-kernel"'
    assert (hint in cli("render", cwd=project).stdout) == (owner == "")


@pytest.mark.parametrize("length", [5, 46, 50])
def test_the_name_of_the_dataset_is_one_that_kaggle_accepts(length: int) -> None:
    name = code_dataset("a" * (length - 5) + "-kern")
    assert name.endswith("-code")
    assert 6 <= len(name) <= 50
    assert "--" not in name


@pytest.mark.usefixtures("mounted")
def test_a_run_gets_every_file_with_its_executable_bit(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_INPUT_DIR", str(tmp_path / "input"))
    monkeypatch.setenv("KAGGLE_WORKING_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = NotebookRun(kernel.manifest.document, tmp_path / "src")  # type: ignore[arg-type]
    run.load_sources("some-kernel-code")
    run.check_sources()
    for name, content in FILES.items():
        expected = content if isinstance(content, bytes) else content.encode()
        assert (tmp_path / "src" / name).read_bytes() == expected
    assert (tmp_path / "src/pkg/__init__.py").read_bytes() == b""
    assert (tmp_path / "src/pkg/tool.sh").stat().st_mode & 0o100
    with pytest.raises(RuntimeFault, match="private dataset other-code"):
        run.load_sources("other-code")


def packed(folder: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(folder / CODE_FILE, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/hosts"
            tar.addfile(member, io.BytesIO(content))


def unpacked(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / CODE_FILE) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def altered(folder: Path) -> None:
    packed(folder, unpacked(folder) | {"pkg/main.py": b"import os\n"})


def missing(folder: Path) -> None:
    files = unpacked(folder)
    del files["pkg/main.py"]
    packed(folder, files)


def added(folder: Path) -> None:
    packed(folder, unpacked(folder) | {"pkg/extra.py": b"import os\n"})


def outside(folder: Path) -> None:
    packed(folder, unpacked(folder) | {"../../evil.py": b"import os\n"})


def links(folder: Path) -> None:
    packed(folder, dict.fromkeys(unpacked(folder), b""), tarfile.SYMTYPE)


def next_to_it(folder: Path) -> None:
    (folder / "numpy.py").write_text("import os\n")


def cut_off(folder: Path) -> None:
    (folder / CODE_FILE).write_bytes((folder / CODE_FILE).read_bytes()[:2000])


def no_archive(folder: Path) -> None:
    (folder / CODE_FILE).write_bytes(b"nothing")


def gone(folder: Path) -> None:
    (folder / CODE_FILE).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (altered, "pkg/main.py: has different content"),
        (missing, "pkg/main.py: is missing"),
        (added, "pkg/extra.py: is not in the manifest"),
        (outside, "evil.py: is not in the manifest"),
        (links, "pkg/main.py: is not in the manifest"),
        (next_to_it, "numpy.py: is not in the manifest"),
        (cut_off, "is missing"),
        (no_archive, "cannot be read"),
        (gone, "sources.pack: is missing"),
    ],
)
def test_anything_else_in_the_dataset_is_refused(
    change: Callable[[Path], None], message: str, kernel: Kernel, mounted: Path, tmp_path: Path
) -> None:
    change(mounted)
    sources = Sources(kernel.manifest.document, tmp_path / "src")  # type: ignore[arg-type]
    with pytest.raises(RuntimeFault, match=message):
        sources.load(mounted)
    assert not (tmp_path / "evil.py").exists()
    assert not (tmp_path / "src/pkg/extra.py").exists()


def test_sync_finds_nothing_gone(kernel: Kernel) -> None:
    found = plan(kernel.notebook, load_config(kernel.project))
    assert (found.changes, found.gone, found.left) == ((), (), ())
    assert any("in the dataset some-kernel-code" in note for note in found.notes)


def test_the_rules_of_a_competition_are_named(make_project: Make) -> None:
    project = make_project(FILES, keys='layout = "dataset"', extra='competition_sources = ["salt"]')
    assert any("may forbid" in note for note in advise(kernel_of(project)))
