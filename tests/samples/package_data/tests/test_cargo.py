import json
import pkgutil
from importlib import resources
from pathlib import Path

import cargo


def test_text_in_other_alphabets_is_kept() -> None:
    assert cargo.words() == ["Äpfel", "œuf", "日本"]


def test_all_byte_values_are_kept() -> None:
    assert cargo.table() == bytes(range(256)) + b"\r\n\x00\xff\xfe"


def test_line_endings_are_kept() -> None:
    assert pkgutil.get_data("cargo", "data/windows.csv") == b"a,b\r\n1,2\r\n"


def test_files_in_subfolders_are_found() -> None:
    deep = resources.files(cargo) / "data" / "deep"
    assert sorted(path.name for path in deep.iterdir()) == ["notes.md", "one.json"]
    assert deep.joinpath("notes.md").read_text() == "# {{ no template }} {% raw %}\n"
    assert deep.joinpath("one.json").read_bytes().endswith(b"}")
    assert json.loads(deep.joinpath("one.json").read_bytes()) == {"no": "newline at the end"}


def test_empty_files_exist() -> None:
    with resources.as_file(resources.files(cargo) / "data" / "empty.txt") as path:
        assert path.read_bytes() == b""


def test_type_stubs_and_py_typed_are_carried() -> None:
    home = Path(cargo.__file__).parent
    assert (home / "py.typed").read_bytes() == b""
    assert "def table() -> bytes: ..." in (home / "__init__.pyi").read_text()
