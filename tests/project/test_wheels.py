"""Wheels for runs without internet: chosen by the real pip, from a folder instead of an index."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernelkit.bundle.requirements import LOCK_NAME
from kernelkit.config import load_config
from kernelkit.errors import ConfigError, UnreachableError, VerificationError
from kernelkit.project.wheels import PreparedWheels, dataset_slug, prepare_wheels
from tests.conftest import Cli
from tests.local_kaggle import LocalKaggle

ANY, ABI3 = "py3-none-any", "cp38-abi3-manylinux_2_17_x86_64"
CP312, CP311 = "cp312-cp312-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_28_x86_64"


@dataclass(frozen=True)
class Index:
    """A folder of wheels that stands in for an index."""

    folder: Path

    def add(
        self, name: str, version: str, tags: str = ANY, requires: Sequence[str] = (), **files: str
    ) -> Path:
        """Write a wheel with one module; `files` are more modules."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        lines = [f"Requires-Dist: {one}\n" for one in requires]
        extras = re.findall("extra == '(.+?)'", " ".join(requires))
        lines += [f"Provides-Extra: {extra}\n" for extra in extras]
        content = {
            f"{module}.py": f"VERSION = {version!r}\n",
            **{f"{other}.py": text for other, text in files.items()},
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + "".join(lines),
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n",
        }
        record = "".join(f"{path},{_record_hash(text)}\n" for path, text in content.items())
        content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
        wheel = self.folder / f"{module}-{version}-{tags}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in content.items():
                archive.writestr(path, text)
        return wheel


def _record_hash(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"sha256={digest},{len(text.encode())}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """pip finds its wheels here, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Index(folder)


MAIN = """
from pathlib import Path

def run(**parameters):
    import leaf
    Path("out.txt").write_text(leaf.VERSION)
"""


def prepared(project: Path, upgrade: bool = False) -> PreparedWheels:
    return prepare_wheels(load_config(project, environment={}), upgrade=upgrade)


def files_of(result: PreparedWheels) -> list[str]:
    assert result.lock is not None
    names = [wheel.file for wheel in result.lock.wheels]
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(names)
    return names


@pytest.mark.slow
def test_wheels_are_chosen_for_the_image(
    index: Index, make_project: Callable[..., Path], tmp_path: Path
) -> None:
    requires = [
        "leaf>=1",
        "numpy>=2",
        "torch",
        "scipy",
        "only-old; python_version < '3.12'",
        "only-win; sys_platform == 'win32'",
    ]
    index.add("pkg-a", "1.5", requires=requires)
    for tags in (CP311, CP312):
        index.add("leaf", "2.0", tags)
    for version in ("1.0", "3.0"):
        index.add("leaf", version, CP311)  # the newest has no wheel for the image
    index.add("numpy", "2.4.0", CP312)  # the image's own version fits
    project = make_project({}, keys='pip = ["pkg-a>=1", "tqdm", "pandas>=2,<3"]')
    first = prepared(project)
    assert files_of(first) == ["pkg_a-1.5-py3-none-any.whl", f"leaf-2.0-{CP312}.whl"]
    assert first.changed
    text = (project / LOCK_NAME).read_text()
    assert "://" not in text
    assert str(tmp_path) not in text
    assert json.loads(text)["dataset"] == "some-kernel-wheels"
    index.add("leaf", "2.5", CP312)  # the lock still fits
    (first.folder / "old-1-py3-none-any.whl").write_bytes(b"left by an earlier lock")
    (first.folder / f"leaf-2.0-{CP312}.whl").write_bytes(b"damaged")
    again = prepared(project)
    assert files_of(again) == files_of(first)
    assert not again.changed
    assert (project / LOCK_NAME).read_text() == text
    assert files_of(prepared(project, upgrade=True))[1] == f"leaf-2.5-{CP312}.whl"


@pytest.mark.slow
def test_extras_of_a_package_of_the_image_are_followed(
    index: Index, make_project: Callable[..., Path]
) -> None:
    index.add("pkg-a", "1.0", requires=["jinja2[i18n]>=3"])
    index.add("jinja2", "3.1.6", requires=["leaf; extra == 'i18n'", "other; extra == 'x'"])
    index.add("jinja2", "3.2.0", requires=["leaf; extra == 'i18n'"])
    index.add("leaf", "1.0")
    result = prepared(make_project({}, keys='pip = ["pkg-a"]'))
    assert files_of(result) == [
        "pkg_a-1.0-py3-none-any.whl",
        "jinja2-3.1.6-py3-none-any.whl",
        "leaf-1.0-py3-none-any.whl",
    ]


@pytest.mark.slow
def test_a_package_of_the_image_may_be_replaced(
    index: Index, make_project: Callable[..., Path]
) -> None:
    index.add("leaf", "1.0", requires=["numpy<2"])
    index.add("numpy", "1.26.4", CP312)
    result = prepared(make_project({}, keys='pip = ["leaf"]'))
    assert [one.requirement for one in result.plan.requirements if one.replaces] == ["numpy<2"]


@pytest.mark.slow
def test_the_index_may_not_change_a_wheel(index: Index, make_project: Callable[..., Path]) -> None:
    project = make_project({}, keys='pip = ["leaf"]')
    wheel = index.add("leaf", "1.0")
    result = prepared(project)
    index.add("leaf", "1.0", more="CHANGED = True\n")
    (result.folder / wheel.name).unlink()
    with pytest.raises(VerificationError, match="has another file of leaf==1"):
        prepared(project)


@pytest.mark.slow
def test_hashes_of_a_requirements_file_hold_for_wheels(
    index: Index, make_project: Callable[..., Path]
) -> None:
    digest = hashlib.sha256(index.add("leaf", "1.0").read_bytes()).hexdigest()
    project = make_project({}, keys='pip = "requirements.txt"')
    for stated, fits in ((digest, True), ("0" * 64, False)):
        lines = f"leaf==1.0 --hash=sha256:{'1' * 64} --hash=sha256:{stated}\n"
        (project / "requirements.txt").write_text(lines)
        if fits:
            assert len(files_of(prepared(project))) == 1
        else:
            with pytest.raises(VerificationError, match="none of the 2 hashes"):
                prepared(project)


def test_nothing_is_built(index: Index, make_project: Callable[..., Path], tmp_path: Path) -> None:
    """A wheel may require the address of a source distribution, which pip would run."""
    mark = tmp_path / "was-run"
    source = tmp_path / "evil-1.0.tar.gz"
    setup = f"open({str(mark)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='evil')\n"
    with tarfile.open(source, "w:gz") as tar:
        entry = tarfile.TarInfo("evil-1.0/setup.py")
        entry.size = len(setup)
        tar.addfile(entry, io.BytesIO(setup.encode()))
    index.add("leaf", "1.0", requires=[f"evil @ {source.as_uri()}"])
    with pytest.raises(ConfigError, match=r"evil.* is not a wheel, and nothing is built here"):
        prepared(make_project({}, keys='pip = ["leaf"]'))
    assert not mark.exists()
    assert not (tmp_path / "project" / LOCK_NAME).exists()


def test_a_requirement_without_a_wheel_is_named(
    index: Index, make_project: Callable[..., Path]
) -> None:
    index.add("leaf", "1.0", CP311)
    with pytest.raises(ConfigError, match=r"no wheel of leaf for Python 3\.12 on Linux") as caught:
        prepared(make_project({}, keys='pip = ["leaf"]'))
    assert "PIP_FIND_LINKS" in caught.value.next_step


def test_metadata_that_cannot_be_read(index: Index, make_project: Callable[..., Path]) -> None:
    index.add("other", "1.0")
    index.add("leaf", "1.0", requires=["other (>dev)"])  # newer versions of pip refuse it
    with pytest.raises(ConfigError, match="leaf"):
        prepared(make_project({}, keys='pip = ["leaf"]'))


@pytest.mark.slow
def test_an_index_that_does_not_answer(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://user:secret@127.0.0.1:9/simple"  # nothing listens on port 9
    for name, value in {"INDEX_URL": address, "EXTRA_INDEX_URL": "", "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(UnreachableError, match="the package index does not answer") as caught:
        prepared(make_project({}, keys='pip = ["leaf"]'))
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9" not in str(caught.value)


def test_only_addresses_of_wheels_are_taken(make_project: Callable[..., Path]) -> None:
    project = make_project({}, keys='pip = ["leaf @ git+https://example.com/leaf.git"]')
    with pytest.raises(ConfigError, match=r"does not end in \.whl, and kernelkit builds no wheels"):
        prepared(project)


@pytest.mark.parametrize(
    ("kernel", "start"), [("abc", "abc-wheels"), ("a" * 42 + "-bcdefg", "a" * 36 + "-")]
)
def test_the_dataset_is_named_by_the_kernel(kernel: str, start: str) -> None:
    slug = dataset_slug(kernel)
    assert slug.startswith(start)
    assert slug.endswith("-wheels")
    assert len(slug) <= 50
    assert slug != dataset_slug(f"{kernel[:-1]}x")


def test_without_internet_and_wheels_preflight_refuses(
    index: Index, make_project: Callable[..., Path], cli: Cli
) -> None:
    index.add("leaf", "1.0")
    project = make_project({"pkg/main.py": MAIN}, keys='pip = ["leaf", "tqdm"]')
    done = cli("preflight", cwd=project, expect=3)
    assert "no internet to install leaf: the project has no wheels" in done.stderr
    assert "kernelkit wheels" in done.stderr
    document = json.loads(cli("wheels", "--download-only", "--json", cwd=project).stdout)
    assert [wheel["file"] for wheel in document["wheels"]] == ["leaf-1.0-py3-none-any.whl"]
    assert document["dataset"] is None
    assert document["lock_changed"] is True
    table = cli("preflight", cwd=project).stdout
    assert "wheel 1.0" in table
    assert "some-kernel-wheels" in table
    manifest = project / "pyproject.toml"
    manifest.write_text(manifest.read_text().replace('"leaf"', '"leaf>=2"'))
    stale = cli("preflight", cwd=project, expect=3).stderr
    assert f"{LOCK_NAME} has leaf 1.0" in stale
    online = cli("render", "--set", "kernel.enable_internet=true", "--json", cwd=project).stdout
    assert "wheels" not in json.loads(online)
    assert json.loads(online)["requirements"][0]["origin"] == "from PyPI"


@pytest.mark.slow
def test_out_is_only_filled(
    index: Index, make_project: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    index.add("leaf", "1.0")
    out = tmp_path / "by-hand"
    out.mkdir()
    (out / "own.whl").write_bytes(b"mine")
    project = make_project({}, keys='pip = ["leaf"]')
    assert "published" not in cli("wheels", "--out", out, cwd=project).stdout
    assert sorted(path.name for path in out.iterdir()) == ["leaf-1.0-py3-none-any.whl", "own.whl"]


@pytest.mark.slow
def test_wheels_are_published_once(
    index: Index, make_project: Callable[..., Path], cli: Cli, emulator: LocalKaggle
) -> None:
    index.add("leaf", "1.0")
    project = make_project({"pkg/main.py": MAIN}, keys='pip = ["leaf"]')
    cli("wheels", "--download-only", cwd=project)
    missing = cli("push", cwd=project, env=emulator.environment, expect=4)
    assert "there is no dataset" in missing.stderr
    assert "kernelkit wheels" in missing.stderr
    first = cli("wheels", cwd=project, env=emulator.environment).stdout
    assert "some-kernel-wheels version 1, private and current" in first
    again = json.loads(cli("wheels", "--json", cwd=project, env=emulator.environment).stdout)
    assert (again["dataset"]["version"], again["dataset"]["uploaded"]) == (1, False)
    index.add("leaf", "1.1")
    cli("wheels", "--upgrade", "--download-only", cwd=project)
    stale = cli("push", cwd=project, env=emulator.environment, expect=4).stderr
    assert "lacks leaf-1.1-py3-none-any.whl, which the notebook installs" in stale
    second = cli("wheels", cwd=project, env=emulator.environment).stdout
    assert "version 2, private and current" in second


@pytest.mark.slow
def test_a_rehearsal_installs_what_fits(
    index: Index, make_project: Callable[..., Path], cli: Cli
) -> None:
    """Also: a wheel that was altered in the dataset stops the run before anything is installed."""
    index.add("leaf", "1.0", ABI3, requires=["numpy", "deep>=1"])
    index.add("deep", "1.0", "cp312-cp312-manylinux_2_17_x86_64")
    project = make_project({"pkg/main.py": MAIN}, keys='pip = ["leaf"]')
    cli("wheels", "--download-only", cwd=project)
    done = cli("rehearse", cwd=project)
    assert done.stdout.rstrip().splitlines()[-1].startswith("verified: ")
    assert "2 wheels of the dataset some-kernel-wheels" in done.stdout
    run = project / "build" / "rehearsal" / "some-kernel" / "v1"
    assert (run / "out.txt").read_text() == "1.0"
    (folder,) = (project / "build" / "wheels").glob("*-wheels")
    (wheel,) = folder.glob("leaf-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    assert "lacks leaf-1.0" in cli("rehearse", cwd=project, expect=2).stderr
    inputs = folder.parent  # named by the dataset, so that it is the dataset in the run
    failed = cli("rehearse", "--inputs", inputs, cwd=project, expect=6)
    assert "leaf-1.0-cp38-abi3-manylinux_2_17_x86_64.whl has different content" in failed.stderr


@pytest.mark.slow
def test_a_real_package_from_the_configured_index(
    make_project: Callable[..., Path], cli: Cli
) -> None:
    """A pure one, and one with a wheel of its own for each Python."""
    main = MAIN.replace("leaf.VERSION", 'leaf.camelize("some_words")').replace("leaf", "inflection")
    keys = 'pip = ["inflection", "pyahocorasick"]'
    project = make_project({"pkg/main.py": main}, keys=keys)
    try:
        cli("wheels", "--download-only", cwd=project)
    except AssertionError as error:
        pytest.skip(f"no package index: {error}")
    names = [wheel["file"] for wheel in json.loads((project / LOCK_NAME).read_text())["wheels"]]
    assert [name.split("-")[0] for name in names] == ["inflection", "pyahocorasick"]
    assert "-cp312-cp312-manylinux" in names[1]
    cli("rehearse", cwd=project)
    run = project / "build" / "rehearsal" / "some-kernel" / "v1"
    assert (run / "out.txt").read_text() == "SomeWords"
