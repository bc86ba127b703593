"""Compiled extensions: which of them Kaggle's image can load, by name and content."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

COMPILED_SUFFIXES = frozenset({".so", ".pyd", ".dylib", ".dll"})
HEAD_BYTES = 20  # of an ELF file, up to the machine

_MACHINES = {3: "32-bit x86", 40: "32-bit ARM", 62: "x86-64", 183: "ARM64", 243: "RISC-V"}
_X86_64 = 62
_MACH_O = (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")
_CPYTHON = re.compile(r"cpython-(\d)(\d+)([a-z]*)(?:-(.+))?")
BUILT_FOR = "built for"
"""The beginning of the reason why an extension does not fit."""

_PLATFORM = "x86_64-linux-gnu"
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\0")
IMAGE_GLIBC = 35
"""Minor version of glibc 2 in the image: it is made from Ubuntu 22.04 [A]."""


def is_compiled(path: str) -> bool:
    """Whether a path has the ending of a compiled extension."""
    return PurePosixPath(path).suffix in COMPILED_SUFFIXES


def extension_module(path: str) -> str | None:
    """The path without the tags of its platform: `pkg/_fast.abi3.so` → `pkg/_fast`.

    None where no import statement can name it.
    """
    folder, _, name = path.rpartition("/")
    stem = name.partition(".")[0]
    return f"{folder}/{stem}".lstrip("/") if is_compiled(path) and stem.isidentifier() else None


def python_of(path: str) -> tuple[int, int] | None:
    """The only Python that can load an extension, by its name; None if there may be several."""
    tag = _tag(path)
    found = _CPYTHON.fullmatch(tag)
    return (int(found[1]), int(found[2])) if found else None


def newer_glibc(content: bytes) -> str | None:
    """The version of the C library that an extension needs, if the image's is older."""
    needed = max((int(found) for found in _GLIBC.findall(content)), default=0)
    return f"2.{needed}" if needed > IMAGE_GLIBC else None


def misfit(path: str, head: bytes, python: tuple[int, int]) -> str | None:
    """Why Kaggle's image, Linux on x86-64 with this Python, cannot load an extension.

    `head` is the beginning of its content. None if it can, as far as that shows.
    """
    suffix = PurePosixPath(path).suffix
    if suffix in (".pyd", ".dll") or head.startswith(b"MZ"):
        return f"{BUILT_FOR} Windows"
    if suffix == ".dylib" or head.startswith(_MACH_O) or "darwin" in _tag(path):
        return f"{BUILT_FOR} macOS"
    if not head.startswith(b"\x7fELF") or len(head) < HEAD_BYTES:
        return "not a compiled extension, though its name says so"
    machine = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    if head[4] != 2 or machine != _X86_64:
        return f"{BUILT_FOR} {_MACHINES.get(machine, 'another processor')}; Kaggle's is x86-64"
    return _misfit_of_tag(_tag(path), python)


def _misfit_of_tag(tag: str, python: tuple[int, int]) -> str | None:
    if tag.startswith("pypy"):
        return f"{BUILT_FOR} PyPy"
    found = _CPYTHON.fullmatch(tag)
    if found is None:  # abi3, or no tag
        return None
    built, image = f"{found[1]}.{found[2]}", ".".join(map(str, python))
    if built != image:
        return f"{BUILT_FOR} Python {built}; Kaggle's image has {image}"
    if found[3]:
        return f"{BUILT_FOR} another kind of Python {built} ({tag})"
    if found[4] and found[4] != _PLATFORM:
        return f"{BUILT_FOR} {found[4]}; Kaggle's image is {_PLATFORM}"
    return None


def _tag(path: str) -> str:
    """`_fast.cpython-312-x86_64-linux-gnu.so` → `cpython-312-x86_64-linux-gnu`."""
    return PurePosixPath(path).name.partition(".")[2].rpartition(".")[0]
