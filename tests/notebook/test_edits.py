"""Edits made in a notebook are synced, for every form of a cell, and none is lost."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kernelkit import workflow
from kernelkit.bundle.bundle import Bundle, SourceFile
from kernelkit.bundle.git import Provenance
from kernelkit.config import load_config
from kernelkit.errors import ConfigError, LocalError, VerificationError
from kernelkit.notebook.edits import SyncPlan, apply, plan, read_notebook, require_applicable
from kernelkit.notebook.render import render

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Make = Callable[..., Path]
Notebook = dict[str, Any]

SAMPLE = Path(__file__).parent.parent / "samples" / "plain"

FORMS = {
    "pkg/shown.py": b'"""Shown as it is."""\n\na = 1\n',
    "pkg/crlf.py": b"a = 1\r\nb = 2\r\n",
    "pkg/no_newline.txt": b"one\ntwo",
    "pkg/blank.py": b"a = '''\n   \n'''\n\n\n",
    "pkg/empty.py": b"",
    "pkg/latin.py": "# -*- coding: latin-1 -*-\na = 'é'\n".encode("latin-1"),
    "pkg/data.bin": bytes(range(256)),
    "pkg/with space.txt": b"data\n",
}


def rendered(project: Path, **options: Any) -> Notebook:
    kernel = workflow.render_kernel(load_config(project, environment={}, **options))
    return json.loads(kernel.notebook)


def as_an_editor_saves(notebook: Notebook) -> Notebook:
    """As an editor saves it: with outputs, without ids and tags, with trimmed cell ends."""
    for cell in notebook["cells"]:
        del cell["id"]
        cell["metadata"] = {}
        cell["source"] = "".join(cell["source"]).rstrip("\n")
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["Writing\n"]}]
    return {**notebook, "nbformat_minor": 4}


def cell_with(notebook: Notebook, text: str) -> Notebook:
    """The only cell with this text, except the embedded manifest, which names all files."""
    texts = [(cell, "".join(cell["source"])) for cell in notebook["cells"]]
    (found,) = [c for c, source in texts if text in source.replace("{'path': '", "")]
    return found


def edit(notebook: Notebook, text: str, old: str, new: str) -> None:
    cell = cell_with(notebook, text)
    source = "".join(cell["source"])
    assert old in source
    cell["source"] = source.replace(old, new)


def add(notebook: Notebook, source: str, at: int | None = None, kind: str = "code") -> None:
    cell = {"cell_type": kind, "metadata": {}, "source": source}
    cell |= {"outputs": [], "execution_count": None} if kind == "code" else {}
    notebook["cells"].insert(len(notebook["cells"]) if at is None else at, cell)


def planned(notebook: Notebook, project: Path, **options: Any) -> SyncPlan:
    return plan(json.dumps(notebook), load_config(project, environment={}, **options))


def files_of(project: Path) -> dict[str, bytes]:
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file()
    }


def changed(project: Path, before: dict[str, bytes]) -> dict[str, bytes]:
    return {name: text for name, text in files_of(project).items() if before.get(name) != text}


NOWHERE = Provenance()
NOTEBOOK = rendered(SAMPLE)


def test_an_unchanged_notebook_changes_and_reports_nothing(make_project: Make) -> None:
    project = make_project(FORMS, extra="[tool.kernelkit.parameters]\nepochs = 2\n")
    before = files_of(project)
    for notebook in (rendered(project), as_an_editor_saves(rendered(project))):
        found = planned(notebook, project)
        assert found == SyncPlan((), (), found.unchanged, (), (), (), (), found.project)
        assert set(FORMS) <= set(found.unchanged)
        apply(found)
    assert files_of(project) == before


def test_another_profile_or_an_older_package_reports_nothing(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain, profile="failing"))
    letters = plain / "parcel" / "letters.py"
    letters.write_text('"""Another summary."""\n' + letters.read_text())
    (plain / "parcel" / "more.py").write_text("def broken(:\n")
    found = planned(notebook, plain)
    assert (found.changes, found.left, found.parameters, found.notes) == ((), (), (), ())


def test_reordered_cells_change_nothing(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain))
    notebook["cells"].reverse()
    found = planned(notebook, plain)
    assert (found.changes, found.left, found.notes) == ((), (), ())


def test_edited_cells_of_every_form_are_synced_exactly(make_project: Make) -> None:
    project = make_project(FORMS)
    before = files_of(project)
    notebook = as_an_editor_saves(rendered(project))
    edit(notebook, "/pkg/shown.py", "a = 1", "a = 'ü'\n\n\ndef f():\n    '''\n    >>> f()\n    '''")
    edit(notebook, "'pkg/crlf.py'", "b = 2", "b = 3")
    edit(notebook, "'pkg/no_newline.txt'", "'two'", "'three'")
    edit(notebook, "'pkg/blank.py'", "a = ", "bb = ")
    edit(notebook, "'pkg/empty.py'", 'b""', '"".join(["x = 1\\n"]).encode()')
    apply(planned(notebook, project))
    assert changed(project, before) == {
        "pkg/shown.py": '"""Shown as it is."""\n\n'
        "a = 'ü'\n\n\ndef f():\n    '''\n    >>> f()\n    '''\n".encode(),
        "pkg/crlf.py": b"a = 1\r\nb = 3\r\n",
        "pkg/no_newline.txt": b"one\nthree",
        "pkg/blank.py": b"bb = '''\n   \n'''\n\n\n",
        "pkg/empty.py": b"x = 1\n",
    }


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("%%writefile {SRC}/pkg/crlf.py\na = 5", b"a = 5\n"),
        ("\n%%writefile  {SRC}/pkg/crlf.py \r\na = 5\r\n\r\n", b"a = 5\n"),
        ("%%writefile $SRC/pkg/./crlf.py\n\na = 5\n\n\n", b"\na = 5\n"),
        ("%%file /tmp/kernelkit-0123456789ab/pkg/crlf.py\na = 5", b"a = 5\n"),
        ("%%writefile '/var/f/T/kernelkit-0123456789ab/pkg/crlf.py'\na = 5", b"a = 5\n"),
        ("%%writefile {SRC}/pkg/crlf.py\n", b""),
        ("import zlib\nkernelkit_run.write_source('pkg/crlf.py', b'\\x00')", b"\0"),
        ("%%writefile {SRC}/pkg/new/mod.py\nx = 1", b"x = 1\n"),
        ('%%writefile "{SRC}/pkg/a b.txt"\nx', b"x\n"),
    ],
)
def test_a_cell_written_by_hand_is_read(make_project: Make, source: str, content: bytes) -> None:
    project = make_project({"pkg/crlf.py": "a = 1\r\n"})
    before = files_of(project)
    notebook = as_an_editor_saves(rendered(project))
    notebook["cells"].remove(cell_with(notebook, "'pkg/crlf.py'"))
    add(notebook, source)
    found = planned(notebook, project)
    apply(found)
    (written,) = changed(project, before).values()
    assert written == content
    assert not found.left


def packed(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    text = base64.encodebytes(buffer.getvalue()).decode()
    return f'kernelkit_run.unpack("""\n{text}""")'


def test_one_cell_may_carry_many_compressed_files(make_project: Make) -> None:
    project = make_project(FORMS)
    before = files_of(project)
    notebook = as_an_editor_saves(rendered(project))
    for path in FORMS:
        text = "}/pkg/shown.py" if path == "pkg/shown.py" else f"write_source({path!r}"
        notebook["cells"].remove(cell_with(notebook, text))
    add(notebook, packed(FORMS))
    found = planned(notebook, project)
    assert (found.changes, found.gone, found.left) == ((), (), ())
    add(notebook, "%%writefile {SRC}/pkg/shown.py\na = 2")  # how to edit compressed files
    found = planned(notebook, project)
    apply(found)
    assert changed(project, before) == {"pkg/shown.py": b"a = 2\n"}
    assert ["the later one counts" in note for note in found.notes] == [True]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE])
def test_a_compressed_cell_with_anything_but_files_is_rejected(plain: Path, kind: bytes) -> None:
    notebook = rendered(plain)
    add(notebook, packed({"parcel/main.py": b""}, kind))
    found = planned(notebook, plain)
    assert found.refused[0].reason == "only regular files can be carried"
    with pytest.raises(ConfigError, match="only regular files can be carried"):
        apply(found)


@pytest.mark.parametrize(
    "source",
    [
        "kernelkit_run.unpack('''!!''')",
        "kernelkit_run.unpack(open('x').read())",
        "kernelkit_run.write_source('parcel/main.py', zlib.decompress(b'xx'))",
        "kernelkit_run.write_source('parcel/main.py', zlib.decompress(b'x\\x9c'))",
        "kernelkit_run.write_source('parcel/main.py', open('x').read())",
        "kernelkit_run.write_source('parcel/main.py', 'text')",
        "kernelkit_run.write_source('parcel/main.py')",
        "kernelkit_run.write_source('parcel/main.py', '\\ud800'.encode())",
        "%%writefile {SRC}/parcel/main.py\n\ud800",
        "%%writefile -a {SRC}/parcel/main.py\nx = 1",
    ],
)
def test_a_cell_that_must_be_executed_to_be_read_is_reported(plain: Path, source: str) -> None:
    notebook = rendered(plain)
    add(notebook, source)
    found = planned(notebook, plain)
    assert not found.changes
    assert [cell.cell for cell in found.left] == [len(notebook["cells"])]
    assert found.left[0].reason != "your own cell"


def test_a_cell_is_never_executed(plain: Path, tmp_path: Path) -> None:
    notebook = rendered(plain)
    for source in (
        f"kernelkit_run.write_source('parcel/a.py', open({str(tmp_path / 'x')!r}, 'w'))",
        f"open({str(tmp_path / 'x')!r}, 'w')\nkernelkit_run.write_source('parcel/b.py', b'')",
    ):
        add(notebook, source)
    assert [change.path for change in planned(notebook, plain).changes] == ["parcel/b.py"]
    assert not (tmp_path / "x").exists()


def test_a_cell_bomb_does_not_fill_the_memory(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelkit.notebook.reader.MAX_UNPACKED_BYTES", 1000)
    notebook = rendered(plain)
    add(notebook, packed({"parcel/a.txt": bytes(2000)}))
    bomb = base64.b64encode(zlib.compress(bytes(2000))).decode()
    unpacking = f"zlib.decompress(base64.b64decode({bomb!r}))"
    add(notebook, f"kernelkit_run.write_source('parcel/b.txt', {unpacking})")
    reasons = [cell.reason for cell in planned(notebook, plain).left]
    assert ["more than" in reason for reason in reasons] == [True, True]


def test_a_new_module_is_added_and_a_deleted_cell_deletes_nothing(plain: Path) -> None:
    before = files_of(plain)
    notebook = as_an_editor_saves(rendered(plain))
    notebook["cells"].remove(cell_with(notebook, "/parcel/letters.py"))
    add(notebook, "%%writefile {SRC}/parcel/sub/deep/new.py\nX = 1")
    found = planned(notebook, plain)
    assert found.gone == ("parcel/letters.py",)
    assert [change.added for change in found.changes] == [True]
    assert not found.left
    apply(found)
    assert changed(plain, before) == {"parcel/sub/deep/new.py": b"X = 1\n"}
    assert (plain / "parcel" / "letters.py").is_file()


def test_the_later_of_two_cells_wins_with_a_note(plain: Path) -> None:
    notebook = rendered(plain)
    add(notebook, "%%writefile {SRC}/parcel/letters.py\nlate = 1")
    add(notebook, "%%writefile {SRC}/parcel/letters.py\nearly = 1", at=0)
    found = planned(notebook, plain)
    assert [change.after for change in found.changes] == [b"late = 1\n"]
    assert [note.endswith("the later one counts, as in a run") for note in found.notes] == [
        True
    ] * 2


def test_a_second_sync_changes_nothing(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain))
    edit(notebook, "/parcel/letters.py", '"""Reads', '"""Finds and reads')
    apply(planned(notebook, plain))
    found = planned(notebook, plain)
    assert (found.changes, found.left, found.notes) == ((), (), ())


def test_a_change_on_disk_only_is_kept(plain: Path) -> None:
    notebook = rendered(plain)
    letters = plain / "parcel" / "letters.py"
    letters.write_text("on_disk = 1\n")
    apply(planned(notebook, plain))
    assert letters.read_text() == "on_disk = 1\n"


def test_a_conflict_writes_nothing_at_all_unless_forced(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain))
    letters, main = plain / "parcel" / "letters.py", plain / "parcel" / "main.py"
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    edit(notebook, "/parcel/main.py", "import time\n", "")
    letters.write_text(letters.read_text() + "# on disk\n")
    before = files_of(plain)
    found = planned(notebook, plain)
    assert [change.path for change in found.conflicts] == ["parcel/letters.py"]
    with pytest.raises(
        VerificationError, match=r"parcel/letters\.py was changed in cell \d+"
    ) as raised:
        apply(found)
    assert "--force" in raised.value.next_step
    assert raised.value.exit_code == 8
    assert files_of(plain) == before
    apply(found, force=True)
    assert set(changed(plain, before)) == {"parcel/letters.py", "parcel/main.py"}
    assert b"rstrip" in letters.read_bytes()
    assert b"import time" not in main.read_bytes()


def test_a_file_deleted_on_disk_or_new_on_both_sides_is_a_conflict(plain: Path) -> None:
    notebook = rendered(plain)
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    add(notebook, "%%writefile {SRC}/parcel/new.py\nx = 1")
    (plain / "parcel" / "letters.py").unlink()
    (plain / "parcel" / "new.py").write_text("x = 2\n")
    found = planned(notebook, plain)
    assert [change.path for change in found.conflicts] == ["parcel/letters.py", "parcel/new.py"]


def test_an_edited_hash_does_not_hide_an_edit(plain: Path) -> None:
    notebook = rendered(plain)
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    manifest = workflow.render_kernel(load_config(plain, environment={})).manifest
    sums = {file.path: file.sha256 for file in manifest.files}
    (change,) = planned(notebook, plain).changes
    assert not change.conflict
    new = SourceFile("", change.after, None).sha256
    edit(notebook, "BUNDLE = {", sums["parcel/letters.py"], new)
    found = planned(notebook, plain)
    assert [change.path for change in found.conflicts] == ["parcel/letters.py"]
    assert "the hashes in BUNDLE" in found.notes[0]


@pytest.mark.parametrize(
    "path",
    [
        "../x.py",
        "parcel/../../x.py",
        "parcel/../x.py",
        "parcel/../parcel/x.py",
        "/etc/x",
        "/parcel/x.py",
        "next_to.py",
        "other/x.py",
        "pyproject.toml",
        ".git/hooks/pre-commit",
        "parcel/.git/config",
        "parcel/.hidden.py",
        "parcel/__pycache__/x.py",
        "parcel/x.pyc",
        "parcel/x.so",
        "parcel\\..\\x.py",
        "C:/x.py",
        "parcel/a\x1b[31m.py",
        "parcel/main.py/x.py",
        "parcel",
        "",
        "parcel/inside/x.py",
        "parcel/hooks/x.py",
        "parcel/loop/x.py",
        "parcel/pointer.py",
        "parcel/" + "long" * 100 + ".py",
    ],
)
@pytest.mark.parametrize("form", ["%%writefile {{SRC}}/{}\nx = 1", None])
def test_a_path_outside_the_package_is_rejected_and_nothing_is_written(
    plain: Path, tmp_path: Path, path: str, form: str | None
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (plain / ".git" / "hooks").mkdir(parents=True)
    (plain / "parcel" / ".git" / "hooks").mkdir(parents=True)
    (plain / "parcel" / "hooks").symlink_to(".git/hooks")
    (plain / "parcel" / "inside").symlink_to(outside)
    (plain / "parcel" / "pointer.py").symlink_to(outside / "target.py")
    (plain / "parcel" / "loop").symlink_to("loop")
    before = files_of(tmp_path)
    notebook = copy.deepcopy(NOTEBOOK)  # such links cannot be bundled
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    source = f"kernelkit_run.write_source({path!r}, b'x')" if form is None else form.format(path)
    add(notebook, source)
    found = planned(notebook, plain)
    try:
        apply(found)
    except (ConfigError, LocalError):
        assert files_of(tmp_path) == before
    else:  # the path does not belong to the package: the cell is reported
        assert found.left
        assert set(changed(tmp_path, before)) == {"plain/parcel/letters.py"}


def test_the_users_own_writefile_cells_are_not_package_files(plain: Path) -> None:
    notebook = rendered(plain)
    for source in (
        "%%writefile /etc/x\ny",
        "%%writefile ../x.py\ny",
        "%%writefile notes.txt\ny",
        "%%writefile\ny",
        "%%writefile 'a\ny",
        "%%bash\nls",
    ):
        add(notebook, source)
    found = planned(notebook, plain)
    assert {cell.reason for cell in found.left} == {"your own cell"}
    assert len(found.left) == 6
    assert not found.refused


def test_a_manifest_cannot_redirect_the_sync(plain: Path, tmp_path: Path) -> None:
    for roots in ({"parcel": ".."}, {"parcel": "/etc"}, {"parcel": str(tmp_path / "away")}):
        notebook = rendered(plain)
        edit(notebook, "BUNDLE = {", "'roots': {'parcel': '.'}", f"'roots': {roots!r}")
        edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
        with pytest.raises(ConfigError, match="outside parcel"):
            apply(planned(notebook, plain))


def test_a_package_in_a_subfolder_is_synced(make_project: Make) -> None:
    project = make_project({})
    (project / "src").mkdir()
    (project / "pkg").rename(project / "src" / "pkg")
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('"pkg"', '"src/pkg"'))
    before = files_of(project)
    for roots in ("", "'roots': {'pkg': 'src'},"):
        notebook = rendered(project)
        edit(notebook, "BUNDLE = {", "BUNDLE = {", f"BUNDLE = {{{roots}")
        edit(notebook, "/pkg/main.py", "pass", "return 1")
        (change,) = planned(notebook, project).changes
        assert change.name == "src/pkg/main.py"
        assert not change.conflict
    apply(planned(notebook, project))
    assert list(changed(project, before)) == ["src/pkg/main.py"]


def a_linked_package(project: Path, away: Path) -> None:
    (project / "src" / "pkg").rename(away / "pkg")
    (project / "src" / "pkg").symlink_to(away / "pkg")


def a_linked_parent(project: Path, away: Path) -> None:
    (project / "src").rename(away / "src")
    (project / "src").symlink_to(os.path.relpath(away / "src", project))


def a_link_to_a_link(project: Path, away: Path) -> None:
    (project / "src" / "pkg").rename(away / "pkg")
    (project / "hop").symlink_to(away)
    (project / "src" / "pkg").symlink_to("../hop/pkg")


@pytest.mark.parametrize("link", [a_linked_package, a_linked_parent, a_link_to_a_link])
def test_a_package_that_is_linked_from_elsewhere_is_not_written(
    make_project: Make, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    project, away = make_project({}), tmp_path / "away"
    away.mkdir()
    (project / "src").mkdir()
    (project / "pkg").rename(project / "src" / "pkg")
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('"pkg"', '"src/pkg"'))
    notebook = rendered(project)  # before: a render refuses such a link
    link(project, away)
    edit(notebook, "/pkg/main.py", "pass", "return 1")
    add(notebook, "%%writefile {SRC}/pkg/new/more.py\nx = 1")
    before = files_of(away)
    with pytest.raises(ConfigError, match="leads out of the project"):
        apply(planned(notebook, project))
    assert files_of(away) == before
    assert not (away / "pkg" / "new").exists()


def test_a_linked_module_is_not_written(tmp_path: Path, make_project: Make) -> None:
    project = make_project({"single.py": "a = 1\n"})
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('"pkg"', '["pkg", "single.py"]'))
    notebook = rendered(project)
    (project / "single.py").rename(tmp_path / "away.py")
    (project / "single.py").symlink_to(tmp_path / "away.py")
    edit(notebook, "/single.py", "a = 1", "a = 2")
    with pytest.raises(ConfigError, match="leads out of the project"):
        apply(planned(notebook, project))
    assert (tmp_path / "away.py").read_text() == "a = 1\n"


@pytest.mark.parametrize("swapped", ["pkg", "pkg/sub"])
def test_a_link_that_appears_between_check_and_write_is_not_followed(
    make_project: Make, tmp_path: Path, swapped: str
) -> None:
    project, away = (
        make_project({"pkg/sub/__init__.py": "", "pkg/sub/deep.py": "a = 1\n"}),
        tmp_path,
    )
    notebook = rendered(project)
    edit(notebook, "/pkg/sub/deep.py", "a = 1", "a = 2")
    found = planned(notebook, project)
    (project / swapped).rename(away / "moved")
    (project / swapped).symlink_to(away / "moved")
    before = files_of(away / "moved")
    with pytest.raises(LocalError, match="cannot be written"):
        apply(found)
    assert files_of(away / "moved") == before


def test_a_symbolic_link_inside_the_package_is_kept(make_project: Make) -> None:
    project = make_project({"pkg/real.py": "a = 1\n"})
    (project / "pkg" / "alias.py").symlink_to("real.py")
    notebook = rendered(project)
    edit(notebook, "/pkg/alias.py", "a = 1", "a = 2")
    apply(planned(notebook, project))
    assert (project / "pkg" / "alias.py").is_symlink()
    assert (project / "pkg" / "real.py").read_text() == "a = 2\n"
    notebook = rendered(project)
    edit(notebook, "/pkg/alias.py", "a = 2", "a = 3")
    edit(notebook, "/pkg/real.py", "a = 2", "a = 4")
    with pytest.raises(ConfigError, match="a link makes it"):
        apply(planned(notebook, project))


def test_a_file_keeps_its_mode(plain: Path) -> None:
    path = plain / "parcel" / "main.py"
    path.chmod(0o755)
    notebook = rendered(plain)
    edit(notebook, "/parcel/main.py", "import time\n", "")
    apply(planned(notebook, plain))
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_failed_write_changes_nothing(
    plain: Path,
) -> None:
    notebook = rendered(plain)
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    add(notebook, "%%writefile {SRC}/parcel/sub/new.py\nx = 1")
    found = planned(notebook, plain)
    (plain / "parcel" / "sub").write_text("in the way since")
    before = files_of(plain)
    with pytest.raises(LocalError, match="cannot be written"):
        apply(found)
    assert files_of(plain) == before


def test_a_syntax_error_is_synced_with_a_warning(plain: Path) -> None:
    notebook = rendered(plain)
    edit(notebook, "/parcel/letters.py", "def read_letters(", "def read_letters(:")
    found = planned(notebook, plain)
    assert str(found.changes[0].syntax_error).startswith("parcel/letters.py:6: ")
    apply(found)
    assert b"(:" in (plain / "parcel" / "letters.py").read_bytes()


def test_changed_parameters_are_reported_with_their_table(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain))
    edit(notebook, "data_dir = ", "epochs = 2", "epochs = 5\nextra = 2 * 3")
    edit(notebook, "data_dir = ", "seconds = 0.0\n", "")
    found = planned(notebook, plain)
    assert [(p.name, p.before, p.after) for p in found.parameters] == [
        ("epochs", "2", "5"),
        ("seconds", "0.0", None),
        ("extra", None, "2 * 3"),
    ]
    assert {p.section for p in found.parameters} == {"[tool.kernelkit.parameters]"}
    assert not found.left


def test_parameters_equal_to_the_project_file_are_not_reported(plain: Path) -> None:
    notebook = rendered(plain)
    edit(notebook, "data_dir = ", "epochs = 2", "epochs = 5")
    path = plain / "pyproject.toml"
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 5"))
    assert not planned(notebook, plain).parameters


def test_changed_parameters_of_a_profile_are_reported_for_it(plain: Path) -> None:
    notebook = rendered(plain, profile="quick")
    edit(notebook, "data_dir = ", "epochs = 1", "epochs = 2")
    (parameter,) = planned(notebook, plain).parameters
    assert parameter.section == "[tool.kernelkit.profiles.quick.parameters]"


def test_code_in_the_parameters_cell_is_reported(plain: Path) -> None:
    for extra in ("print(epochs)", "!ls", "epochs: int = 3", "# a thought"):
        notebook = rendered(plain)
        edit(notebook, "data_dir = ", "epochs = 2", f"epochs = 2\n{extra}")
        (cell,) = planned(notebook, plain).left
        assert cell.reason == "besides its assignments it differs from its template"


def test_added_and_edited_cells_are_distinguished(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain))
    edit(notebook, "result = kernelkit_run", "result = ", "result = None or ")
    edit(notebook, "BUNDLE = {", "\nprint(", "\nprint('mine', ")
    edit(notebook, "# Plain parcel", "To run it:", "To run it all:")
    notebook["cells"].remove(cell_with(notebook, "run.show_results"))
    add(notebook, "# Parameters\nepochs = 9", at=4)
    add(notebook, "   \n")
    add(notebook, "kernelkit_run.check_sources()")
    add(notebook, "\n## Thoughts\n\nmany", kind="markdown")
    add(notebook, "raw", kind="raw")
    found = planned(notebook, plain)
    template = "it differs from its template"
    assert [(cell.first_line, cell.reason) for cell in found.left] == [
        ("# Plain parcel", template),
        ("# Parameters", "papermill's parameters of one run"),
        ("# The check cell compares the files below with this.", template),
        ("result = None or kernelkit_run.call('parcel.main:run', parameters)", "your own cell"),
        ("kernelkit_run.check_sources()", "your own cell"),
        ("## Thoughts", "your own cell"),
        ("raw", "your own cell"),
    ]  # fmt: skip
    missing = "no cell equals its template: "
    assert found.notes == (f"{missing}run", f"{missing}results")


def test_an_edit_of_the_runtime_is_reported(plain: Path) -> None:
    notebook = as_an_editor_saves(rendered(plain))
    edit(notebook, "/kernelkit_runtime/inputs.py", "SEARCH_DEPTH", "DEPTH")
    found = planned(notebook, plain)
    assert not found.changes
    assert [cell.reason for cell in found.left] == [
        "the runtime belongs to kernelkit, not to the package"
    ]
    assert found.notes == ()


def test_code_in_the_cell_of_a_file_is_reported(make_project: Make) -> None:
    project = make_project(FORMS)
    notebook = rendered(project)
    edit(notebook, "'pkg/crlf.py'", "kernelkit_run", "print(1)\nkernelkit_run")
    (cell,) = planned(notebook, project).left
    assert cell.reason == "besides the files that it carries it has code of your own"


DAMAGED: dict[str, str | bytes] = {
    "a script": "import os\n",
    "nothing": "",
    "a list": "[]",
    "another json": "{}",
    "nbformat 3": '{"nbformat": 3, "worksheets": []}',
    "no cells": '{"nbformat": 4}',
    "cells of another kind": '{"nbformat": 4, "cells": [1]}',
    "a cell without source": '{"nbformat": 4, "cells": [{"cell_type": "code"}]}',
    "another's": '{"nbformat": 4, "cells": [{"cell_type": "code", "source": ["BUNDLE = 1"]}]}',
    "endless": "[" * 100_000,
    "latin-1": '{"nbformat": 4, "title": "é"}'.encode("latin-1"),
    "a picture": b"\x89PNG\r\n\x1a\n\0",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_notebook_of_another_tool_is_a_clear_error(
    plain: Path, tmp_path: Path, name: str
) -> None:
    content = DAMAGED[name]
    path = tmp_path / "odd.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as raised:
        workflow.plan_sync(load_config(plain, environment={}), path)
    assert raised.value.next_step


def test_a_missing_or_too_large_notebook_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path, tmp_path / "nowhere.ipynb", Path("a\0b"), Path("/dev/null")):
        with pytest.raises(ConfigError):
            read_notebook(path)
    monkeypatch.setattr("kernelkit.notebook.edits.MAX_NOTEBOOK_BYTES", 3)
    (tmp_path / "large.ipynb").write_text("four")
    with pytest.raises(ConfigError, match="larger than"):
        read_notebook(tmp_path / "large.ipynb")


def test_a_byte_order_mark_is_accepted(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "windows.ipynb"
    path.write_text(json.dumps(rendered(plain), indent=1), encoding="utf-8-sig", newline="\r\n")
    assert not workflow.plan_sync(load_config(plain, environment={}), path).changes


@pytest.mark.parametrize(
    "odd", ["[]", "{'files': 1}", "dict()", "{'package': 1}", "{'files': [{'path': 1}]}"]
)
def test_an_invalid_manifest_is_rejected(plain: Path, odd: str) -> None:
    notebook = rendered(plain)
    cell_with(notebook, "BUNDLE = {")["source"] = f"BUNDLE = {odd}"
    with pytest.raises(ConfigError, match="kernelkit has not rendered this notebook"):
        planned(notebook, plain)


def test_the_notebook_of_another_package_is_rejected(plain: Path, make_project: Make) -> None:
    with pytest.raises(ConfigError, match="carries parcel; this project's package is pkg"):
        planned(rendered(plain), make_project({}))


def test_a_notebook_of_several_packages_is_synced(plain: Path) -> None:
    notebook = rendered(plain)
    edit(
        notebook,
        "BUNDLE = {",
        "'roots': {'parcel': '.'}",
        "'roots': {'other': 'lib', 'parcel': '.'}",
    )
    assert not planned(notebook, plain).changes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
@example("a = 1\n")
@example("a = 1\r\n")
@example("   \n")
@example("\n\n")
@pytest.mark.slow
def test_any_rendered_text_is_read_back_unchanged(text: str) -> None:
    """The cell of the edited file, in the notebook of the original file."""
    config = load_config(SAMPLE, environment={})
    before, after = (
        json.loads(
            render(Bundle({"parcel": "."}, config.entry, (file,), {}, NOWHERE), config).notebook
        )
        for file in (
            SourceFile("parcel/new.txt", content, module=None)
            for content in (b"base", text.encode("utf-8", "surrogatepass"))
        )
    )
    (old,) = [c for c in before["cells"] if "module" in c["metadata"]["tags"]]
    (new,) = [c for c in after["cells"] if "module" in c["metadata"]["tags"]]
    before["cells"][before["cells"].index(old)] = new
    found = plan(json.dumps(as_an_editor_saves(before)), config)
    assert [change.after for change in found.changes] == [text.encode()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(codec="utf-8")))
@pytest.mark.slow
def test_any_text_typed_into_a_cell_is_synced(text: str) -> None:
    notebook = copy.deepcopy(NOTEBOOK)
    add(notebook, "%%writefile {SRC}/parcel/new.txt\n" + text)
    (change,) = planned(notebook, SAMPLE).changes
    typed = text.replace("\r\n", "\n").rstrip("\n")
    assert change.after.decode() == (f"{typed}\n" if typed else "")


def test_git_can_apply_the_diff(make_project: Make) -> None:
    project = make_project(FORMS)
    notebook = rendered(project)
    edit(notebook, "/pkg/shown.py", "a = 1", "a = 2")
    edit(notebook, "'pkg/crlf.py'", "b = 2", "b = 3")
    edit(notebook, "'pkg/no_newline.txt'", "'two'", "'three'")
    add(notebook, "%%writefile {SRC}/pkg/new.py\nx = 1")
    found = planned(notebook, project)
    patch = "".join(change.diff for change in found.changes).encode()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run(
        ["git", "-c", "core.autocrlf=false", "apply", "-"], input=patch, cwd=project, check=True
    )
    for change in found.changes:
        assert change.target.read_bytes() == change.after


def test_the_diff_of_a_binary_file_is_one_line(make_project: Make) -> None:
    project = make_project(FORMS)
    notebook = rendered(project)
    cell_with(notebook, "'pkg/data.bin'")["source"] = (
        "kernelkit_run.write_source('pkg/data.bin', b'\\xff')"
    )
    (change,) = planned(notebook, project).changes
    assert change.diff == "Binary file pkg/data.bin: 256 → 1 bytes\n"
    assert change.syntax_error is None


def test_the_command_shows_and_writes_changes_and_lists_the_rest(
    plain: Path, cli: Cli, tmp_path: Path
) -> None:
    before = files_of(plain)
    notebook = as_an_editor_saves(rendered(plain))
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    edit(notebook, "data_dir = ", "epochs = 2", "epochs = 5")
    add(notebook, "%%writefile {SRC}/parcel/new.py\nx = '\x1b[31m'")
    add(notebook, "!nvidia-smi # \x1b[31m [bold]")
    path = tmp_path / "pulled.ipynb"
    path.write_text(json.dumps(notebook))
    shown = cli("sync", path, "--dry-run", cwd=plain).stdout
    assert "nothing was written" in shown
    assert files_of(plain) == before
    output = cli("sync", path, cwd=plain).stdout
    assert "+    return sorted(path.read_text().rstrip()" in output
    assert "1 file changed, 1 added; review with `git diff`" in output
    assert "parameters: epochs = 2 → 5: change it in [tool.kernelkit.parameters]" in output
    assert (
        rf"cell {len(notebook['cells'])}: !nvidia-smi # \x1b[31m [bold]  (your own cell)" in output
    )
    assert "\x1b" not in output
    assert set(changed(plain, before)) == {"parcel/letters.py", "parcel/new.py"}
    assert "no file has changed" in cli("sync", path, cwd=plain).stdout


def test_the_command_fails_with_the_right_exit_code(plain: Path, cli: Cli, tmp_path: Path) -> None:
    notebook = rendered(plain)
    edit(notebook, "/parcel/letters.py", "strip()", "rstrip()")
    path = tmp_path / "pulled.ipynb"
    path.write_text(json.dumps(notebook))
    letters = plain / "parcel" / "letters.py"
    letters.write_text("mine = 1\n")
    report = json.loads(cli("sync", path, "--json", "--dry-run", cwd=plain, expect=8).stdout)
    assert report["changes"][0]["conflict"] is True
    assert letters.read_text() == "mine = 1\n"
    shown = cli("sync", path, "--force", "--dry-run", cwd=plain).stdout
    assert "parcel/letters.py: the notebook overwrites a change on disk" in shown
    done = cli("sync", path, "--json", "--force", cwd=plain)
    assert json.loads(done.stdout)["written"] is True
    assert b"rstrip" in letters.read_bytes()
    assert "is not a file" in cli("sync", tmp_path, cwd=plain, expect=2).stderr
    cli("sync", plain / "parcel" / "main.py", cwd=plain, expect=2)


def test_notebooks_saved_by_official_tools_are_read(plain: Path) -> None:
    """Saved by nbformat, as a Jupyter server does."""
    notebook = nbformat.from_dict(rendered(plain))
    found = plan(nbformat.writes(notebook), load_config(plain, environment={}))
    require_applicable(found)
    assert (found.changes, found.left) == ((), ())
