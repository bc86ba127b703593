"""Compiled extensions: carried in a dataset if Kaggle's image can load them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.bundle.bundle import Bundle, read_bundle
from kernelkit.bundle.extensions import misfit
from kernelkit.config import load_config
from kernelkit.errors import BundleError

Make = Callable[..., Path]


def elf(machine: int = 62, bits: int = 2) -> bytes:
    """The beginning of a shared library for Linux."""
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + (3).to_bytes(2, "little")
    return head + machine.to_bytes(2, "little") + bytes(40)


def bundle_of(project: Path, **settings: object) -> Bundle:
    return read_bundle(load_config(project).model_copy(update={"layout": "dataset", **settings}))


@pytest.mark.parametrize(
    ("name", "head", "reason"),
    [
        ("_a.abi3.so", elf(), None),
        ("_a.cpython-312-x86_64-linux-gnu.so", elf(), None),
        ("_a.cpython-312.so", elf(), None),
        ("lib/libjpeg.so", elf(), None),
        ("_a.cpython-311-x86_64-linux-gnu.so", elf(), "built for Python 3.11"),
        ("_a.cpython-313t-x86_64-linux-gnu.so", elf(), "built for Python 3.13"),
        ("_a.cpython-312d-x86_64-linux-gnu.so", elf(), "another kind of Python 3.12"),
        ("_a.cpython-312-x86_64-linux-musl.so", elf(), "built for x86_64-linux-musl"),
        ("_a.pypy310-pp73-x86_64-linux-gnu.so", elf(), "built for PyPy"),
        ("_a.abi3.so", elf(183), "built for ARM64"),
        ("_a.abi3.so", elf(3, 1), "built for 32-bit x86"),
        ("_a.cpython-312-darwin.so", b"\xcf\xfa\xed\xfe", "built for macOS"),
        ("_a.abi3.so", b"\xca\xfe\xba\xbe" + bytes(30), "built for macOS"),
        ("libjpeg.dylib", elf(), "built for macOS"),
        ("_a.cp312-win_amd64.pyd", b"MZ", "built for Windows"),
        ("_a.abi3.so", b"version https://git-lfs.github.com/spec/v1\n", "not a compiled extension"),
        ("_a.abi3.so", b"", "not a compiled extension"),
    ],
)
def test_only_what_the_image_can_load_fits(name: str, head: bytes, reason: str | None) -> None:
    found = misfit(f"pkg/{name}", head, (3, 12))
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


@pytest.mark.parametrize(("needed", "told"), [(b"2.2.5", None), (b"2.35", None), (b"2.38", "2.38")])
def test_a_newer_c_library_is_named(needed: bytes, told: str | None, make_project: Make) -> None:
    library = elf() + b"\0GLIBC_2.17\0GLIBC_" + needed + b"\0"
    notes = bundle_of(make_project({"pkg/_fast.abi3.so": library})).notes
    found = [note for note in notes if "glibc" in note]
    assert len(found) == bool(told)
    assert all(f"needs glibc {told}" in note for note in found)


def test_a_fitting_extension_is_a_module_of_the_package(make_project: Make) -> None:
    """Also if git ignores it, and if there are others for other machines."""
    project = make_project(
        {
            "pkg/main.py": "from pkg import _fast\nfrom ._fast import add\nimport pkg.deep._more\n"
            "def run(): add()\n",
            "pkg/deep/__init__.py": "",
            "pkg/deep/_more.abi3.so": elf(),
            "pkg/_fast.cpython-312-x86_64-linux-gnu.so": elf(),
            "pkg/_fast.cpython-311-x86_64-linux-gnu.so": elf(),
            "pkg/_fast.cpython-312-darwin.so": b"\xcf\xfa\xed\xfe",
            ".gitignore": "*.so\n",
        }
    )
    bundle = bundle_of(project)
    carried = {file.path for file in bundle.files if file.path.endswith(".so")}
    assert carried == {"pkg/deep/_more.abi3.so", "pkg/_fast.cpython-312-x86_64-linux-gnu.so"}
    assert "Python 3.11" in bundle.left_out["pkg/_fast.cpython-311-x86_64-linux-gnu.so"]
    assert "macOS" in bundle.left_out["pkg/_fast.cpython-312-darwin.so"]
    told = any("cannot import it in a rehearsal" in note for note in bundle.notes)
    assert told == (sys.version_info[:2] != (3, 12))
    assert not bundle.third_party


def test_an_extension_that_is_needed_must_fit(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/main.py": "from pkg._fast import add\ndef run(): add()\n",
            "pkg/_fast.cpython-311-x86_64-linux-gnu.so": elf(),
        }
    )
    with pytest.raises(
        BundleError, match=r"pkg/main.py:1: imports .*built for Python 3.11"
    ) as caught:
        bundle_of(project)
    assert "cibuildwheel" in caught.value.next_step
    bundle = bundle_of(project, optional_imports=("pkg._fast",))
    assert any("the run goes on without it" in note for note in bundle.notes)


def test_a_notebook_itself_carries_no_extension(make_project: Make) -> None:
    project = make_project({"pkg/_fast.abi3.so": elf()})
    with pytest.raises(BundleError, match="compiled extension") as caught:
        bundle_of(project, layout="auto")
    assert 'layout = "dataset"' in caught.value.next_step
