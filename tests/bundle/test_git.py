from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kernelkit.bundle.bundle import read_bundle
from kernelkit.bundle.git import changes, read_provenance
from kernelkit.config import load_config

Make = Callable[..., Path]
IDENTITY = (
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@example.org",
    "-c",
    "protocol.file.allow=always",
)


def git(folder: Path, *arguments: str | Path) -> str:
    command = ["git", "-C", str(folder), *IDENTITY, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def committed(make_project: Make) -> Path:
    project = make_project({"pkg/a.dat": "one\n", "pkg/b.dat": "two\n"})
    commit_all(project)
    return project


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A command that leaves a mark next to itself."""
    path = tmp_path / "trap.sh"
    path.write_text(f'#!/bin/sh\ntouch "{tmp_path}/sprung"\ncat\n')
    path.chmod(0o755)
    return path


def ask_everything(project: Path) -> None:
    """Every call of git that a command makes."""
    read_bundle(load_config(project, environment={}))
    changes(project)


def set_all(folder: Path, settings: Sequence[tuple[str, str]]) -> None:
    for key, value in settings:
        git(folder, "config", key, value)


EXECUTING = {
    "fsmonitor": [("core.fsmonitor", "{trap}")],
    "clean": [("filter.x.clean", "{trap}"), ("filter.x.required", "true")],
    "an odd name": [("filter.x=y.clean", "{trap}")],
    "process": [("filter.x.process", "{trap}"), ("filter.x.smudge", "{trap}")],
    "external diff": [("diff.external", "{trap}"), ("diff.x.command", "{trap}")],
    "textconv": [("diff.x.textconv", "{trap}"), ("diff.x.cachetextconv", "true")],
    "hooks": [("core.hooksPath", "{hooks}")],
    "aliases": [
        (f"alias.{word}", "!{trap}") for word in ("ls-files", "ls-tree", "rev-parse", "config")
    ],
    "pager": [("core.pager", "{trap}"), ("pager.ls-files", "true"), ("core.editor", "{trap}")],
    "signatures": [("gpg.program", "{trap}"), ("log.showSignature", "true")],
    "include": [("include.path", "{included}")],
    "includeIf": [("includeIf.gitdir:**.path", "{included}")],
    "partial clone": [
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", "ext::{trap}"),
        ("remote.origin.promisor", "true"),
        ("protocol.ext.allow", "always"),
        ("protocol.allow", "always"),
        ("credential.helper", "!{trap}"),
        ("core.askPass", "{trap}"),
    ],
    "ssh": [
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", "ssh://127.0.0.1/x"),
        ("remote.origin.promisor", "true"),
        ("core.sshCommand", "{trap}"),
    ],
    "upload pack": [
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", "{project}"),
        ("remote.origin.uploadpack", "{trap}"),
        ("remote.origin.promisor", "true"),
    ],
}


@pytest.mark.parametrize("kind", EXECUTING)
@pytest.mark.parametrize("worktree", [False, True])
def test_no_setting_of_a_repository_is_executed(
    committed: Path, trap: Path, tmp_path: Path, kind: str, worktree: bool
) -> None:
    project = committed
    (project / ".gitattributes").write_text("*.dat filter=x diff=x\n*.py filter=x=y diff=x\n")
    commit_all(project)
    if worktree:
        git(project, "worktree", "add", "--quiet", tmp_path / "linked")
        project = tmp_path / "linked"
    hooks, included = tmp_path / "hooks", tmp_path / "included"
    hooks.mkdir()
    for name in ("post-index-change", "pre-auto-gc", "reference-transaction", "fsmonitor-watchman"):
        shutil.copy(trap, hooks / name)
        shutil.copy(trap, committed / ".git" / "hooks" / name)
    included.write_text(f'[core]\n\tfsmonitor = "{trap}"\n[filter "x"]\n\tclean = "{trap}"\n')
    places = {"trap": trap, "hooks": hooks, "included": included, "project": project}
    if "partialClone" in str(EXECUTING[kind]):
        git(project, "config", "core.repositoryFormatVersion", "1")
        blob = git(project, "rev-parse", "HEAD:pkg")
        (committed / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    set_all(project, [(key, value.format(**places)) for key, value in EXECUTING[kind]])
    (project / "pkg" / "a.dat").write_text("changed\n")
    os.utime(project / "pkg" / "b.dat", (1, 1))  # the index does not know it as unchanged
    ask_everything(project)
    assert not (tmp_path / "sprung").exists()


def test_the_traps_of_these_tests_do_spring(committed: Path, trap: Path, tmp_path: Path) -> None:
    set_all(committed, [("core.fsmonitor", str(trap))])
    git(committed, "status")
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_EXEC_PATH"])
def test_no_variable_of_git_reaches_it(
    committed: Path, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(trap))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor={trap}'")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(trap))
    ask_everything(committed)
    assert not (tmp_path / "sprung").exists()
    assert changes(committed) is not None


def test_a_repository_inside_a_project_is_not_executed(
    make_project: Make, trap: Path, tmp_path: Path
) -> None:
    """With a .git folder, as a .git file, as a submodule, and bare: its files lie in the open."""
    setting = f'[core]\n\trepositoryformatversion = 0\n\tfsmonitor = "{trap}"\n'
    project = make_project({"pkg/sub/data.txt": "x", "pkg/odd/data.txt": "x"})
    inner = tmp_path / "inner"
    (inner / "deep").mkdir(parents=True)
    (inner / "deep" / "data.txt").write_text("x")
    commit_all(inner)
    commit_all(project)
    git(
        project,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "add",
        "--quiet",
        inner,
        "pkg/module",
    )
    commit_all(project)
    set_all(project / "pkg" / "module", [("core.fsmonitor", str(trap)), ("alias.status", "!x")])
    (project / "pkg" / "module" / "deep" / "data.txt").write_text("changed")
    for home in (project / "pkg" / "sub", tmp_path / "away"):
        git(tmp_path, "init", "--quiet", "--bare", home)
        (home / "config").write_text(f"{setting}\tbare = false\n\tworktree = .\n")
    (project / "pkg" / "odd" / ".git").write_text(f"gitdir: {tmp_path / 'away'}\n")
    ask_everything(project)
    for folder in (project / "pkg" / "sub", project / "pkg" / "odd"):
        changes(folder)
        read_provenance(folder, ["data.txt"])
    assert not (tmp_path / "sprung").exists()


def test_the_content_decides_what_differs_from_the_commit(committed: Path) -> None:
    commit = git(committed, "rev-parse", "HEAD")
    assert changes(committed) == (commit, set())
    git(committed, "add", "--renormalize", ".")
    os.utime(committed / "pkg" / "a.dat", (1, 1))
    assert changes(committed) == (commit, set())
    (committed / "pkg" / "a.dat").write_bytes(b"one\r\n")  # as git writes it on Windows
    assert changes(committed) == (commit, set())
    (committed / "pkg" / "a.dat").write_bytes(b"three\n")
    (committed / "pkg" / "b.dat").unlink()
    (committed / "pkg" / " new.dat").write_text("new")
    (committed / "pkg" / "main.py").chmod(0o755)
    expected = {"pkg/a.dat", "pkg/b.dat", "pkg/ new.dat", "pkg/main.py"}
    assert changes(committed) == (commit, expected)
    git(committed, "config", "core.fileMode", "false")
    assert changes(committed) == (commit, expected - {"pkg/main.py"})


def test_links_submodules_and_files_in_git_lfs_are_compared(committed: Path) -> None:
    (committed / "pkg" / "link").symlink_to("a.dat")
    (committed / "pkg" / "weights.bin").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:"
        "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\nsize 3\n"
    )
    commit = commit_all(committed)
    (committed / "pkg" / "weights.bin").write_text("foo")
    assert changes(committed) == (commit, set())
    assert read_provenance(committed, ["pkg/weights.bin", "pkg/link"]).dirty is False
    (committed / "pkg" / "link").unlink()
    (committed / "pkg" / "link").symlink_to("b.dat")
    assert read_provenance(committed, ["pkg/a.dat", "pkg/link"]).dirty is True
    assert read_provenance(committed, ["pkg/a.dat"]).dirty is False


def test_a_repository_of_sha256_has_provenance(make_project: Make) -> None:
    project = make_project({})
    git(project, "init", "--quiet", "--object-format=sha256")
    commit = commit_all(project)
    assert changes(project) == (commit, set())
    assert read_bundle(load_config(project, environment={})).provenance.dirty is False
