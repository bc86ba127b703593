"""What git knows of a project: the commit, the changes, and which files it ignores.

A repository may be a stranger's, so nothing in its configuration may run. `_ask_git` is the only
call of git in kernelkit. It takes commands that never read the content of a file, because git
filters that through commands of the repository: `changes` compares the files itself.

Paths are strings relative to the project, with forward slashes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec
from pydantic import BaseModel, ConfigDict

from kernelkit.config import is_pattern
from kernelkit.errors import BundleError
from kernelkit.storage import (
    digest_of_bytes,
    read_file,
)

GIT_TIMEOUT_SECONDS = 20  # for a repository on a slow disk
PATIENCE_SECONDS = 1  # then the reason is looked for

_NOTHING_RUNS = (
    ("core.fsmonitor", ""),
    ("core.hooksPath", os.devnull),
    ("core.alternateRefsCommand", ""),
    ("core.sshCommand", "false"),
    ("credential.helper", ""),
    ("safe.bareRepository", "explicit"),  # a folder of a project may be a repository of its own
)
"""Settings that come before those of a repository."""

_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "none",  # a partial clone fetches what it lacks, by a remote's command
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
_LINK_MODE, _EXECUTABLE_MODE, _REPOSITORY_MODE = "120000", "100755", "160000"
_LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


class Provenance(BaseModel):
    """The git commit of the sources, and whether the carried files differ from it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    commit: str | None = None
    """None where there is no repository, or git does not answer."""

    dirty: bool | None = None
    """None where that is not known."""


class GitIgnore:
    """Which files git ignores: git itself says so, or else the .gitignore files.

    The project file names each package, even if git ignores it as a whole. For such a package the
    .gitignore files below the project's folder decide.
    """

    def __init__(self, project: Path, packages: Collection[str]) -> None:
        self.notes: list[str] = []
        self._specs: dict[str, GitIgnoreSpec] = {}
        self._ignored_folders: dict[str, bool] = {}
        self._root = project
        self._prefix = ""
        """From the folder of the topmost .gitignore file to the project."""

        self._listed = listed_files(project)
        if self._listed is not None:
            self._folders = {folder for name in self._listed for folder in parents(name)}
            self._unlisted_packages = [
                name for name in packages if not self._lists(name) and name not in self._folders
            ]
            return
        repository = next((f for f in (project, *project.parents) if (f / ".git").exists()), None)
        if repository is not None:
            self._root = repository
            below = project.relative_to(repository).as_posix()
            self._prefix = "" if below == "." else f"{below}/"
            self.notes.append(
                f"git does not answer for {repository}: only the .gitignore files decide what is "
                "left out"
            )

    def ignores(self, name: str) -> bool:
        """Whether git neither tracks a file nor lists it as new."""
        if self._knows(name):
            return not self._lists(name)
        return self._is_ignored_by_files(name)

    def ignores_all_of(self, folder: str) -> bool:
        """Whether git ignores everything below a folder."""
        if self._knows(folder):
            return folder not in self._folders and not self._lists(folder)
        return self._is_ignored_by_files(folder, is_folder=True)

    def _knows(self, name: str) -> bool:
        return self._listed is not None and not any(
            name == package or name.startswith(f"{package}/") for package in self._unlisted_packages
        )

    def _lists(self, name: str) -> bool:
        """Whether git lists the file, or a link or a nested repository that holds it."""
        assert self._listed is not None
        return name in self._listed or not self._listed.isdisjoint(parents(name))

    def _is_ignored_by_files(self, name: str, *, is_folder: bool = False) -> bool:
        """Decides from the top down: below an ignored folder no pattern takes anything back."""
        path = self._prefix + name
        around = path.rpartition("/")[0]
        return (around != "" and self._folder_is_ignored(around)) or self._decision(
            path + ("/" if is_folder else "")
        )

    def _folder_is_ignored(self, path: str) -> bool:
        if path not in self._ignored_folders:
            around = path.rpartition("/")[0]
            above = around != "" and self._folder_is_ignored(around)
            self._ignored_folders[path] = above or self._decision(f"{path}/")
        return self._ignored_folders[path]

    def _decision(self, path: str) -> bool:
        """What the deepest matching .gitignore says; a folder ends in a slash."""
        cut = len(path.rstrip("/"))
        while cut >= 0:
            cut = path.rfind("/", 0, cut)
            spec = self._spec(path[: max(cut, 0)])
            decision = spec.check_file(path[cut + 1 :]).include if len(spec) else None
            if decision is not None:
                return decision
        return False

    def _spec(self, folder: str) -> GitIgnoreSpec:
        if folder not in self._specs:
            path = self._root / folder / ".gitignore"
            text = path.read_bytes().decode("utf-8-sig", "replace") if path.is_file() else ""
            self._specs[folder] = GitIgnoreSpec.from_lines(filter(is_pattern, text.splitlines()))
        return self._specs[folder]


def parents(name: str) -> Iterator[str]:
    """The folders around a file: `a/b/c.py` gives `a/b` and `a`."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def listed_files(project: Path) -> set[str] | None:
    """The files that git tracks and the new ones that it does not ignore; None without an answer.

    A nested repository is listed as its folder.
    """
    names = _ask_git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is None:
        return None
    return {name.rstrip("/") for name in names.split("\0") if name}


def is_part_of_repository(path: Path, project: Path) -> bool:
    """Whether the repository of a project tracks a file, or a file below a folder."""
    above = (project, *project.parents)
    repository = next((folder for folder in above if (folder / ".git").exists()), None)
    if repository is None or not path.is_relative_to(repository) or path == repository:
        return False
    name = path.relative_to(repository).as_posix()
    return bool(_ask_git(repository, "ls-files", "-z", "--cached", "--", f":(literal){name}"))


def read_provenance(project: Path, carried: Iterable[str]) -> Provenance:
    """The commit, and whether it has other content for any of the carried files."""
    names = set(carried)
    folders = {str(PurePosixPath(name).parent) for name in names}
    commit, tree = _head(project)
    if commit is None or tree is None:
        return Provenance(commit=commit, dirty=None)
    gone = any(
        str(PurePosixPath(name).parent) in folders and not os.path.lexists(project / name)
        for name in tree.keys() - names
    )
    return Provenance(commit=commit, dirty=gone or bool(_changed(project, names, tree)))


def changes(project: Path) -> tuple[str, set[str]] | None:
    """The commit, and every file below the project that differs from it, new ones included.

    None where there is no git, no commit or no answer.
    """
    commit, tree = _head(project)
    listed = listed_files(project)
    if commit is None or tree is None or listed is None:
        return None
    return commit, _changed(project, listed | tree.keys(), tree)


@dataclass(frozen=True)
class _TreeEntry:
    """One file of a commit."""

    mode: str
    object_id: str

    def is_content(self, content: bytes) -> bool:
        """Whether the commit has this content; for git, ends of lines may differ on disk.

        Of a file in git LFS the commit has a pointer.
        """
        if self._is_blob(content) or self._is_blob(content.replace(b"\r\n", b"\n")):
            return True
        pointer = _LFS_POINTER.format(digest_of_bytes(content), len(content))
        return self._is_blob(pointer.encode())

    def _is_blob(self, content: bytes) -> bool:
        algorithm = hashlib.sha1 if len(self.object_id) == 40 else hashlib.sha256
        return algorithm(b"blob %d\0" % len(content) + content).hexdigest() == self.object_id


def _head(project: Path) -> tuple[str | None, dict[str, _TreeEntry] | None]:
    """The commit, and its files below the project."""
    commit = _ask_git(project, "rev-parse", "HEAD")
    if not commit:
        return None, None
    lines = _ask_git(project, "ls-tree", "-r", "-z", commit)
    if lines is None:
        return commit, None
    tree = {}
    for line in filter(None, lines.split("\0")):
        attributes, _, name = line.partition("\t")
        mode, _, object_id = attributes.split()
        tree[name] = _TreeEntry(mode, object_id)
    return commit, tree


def _changed(project: Path, names: Iterable[str], tree: dict[str, _TreeEntry]) -> set[str]:
    """Those of the files whose content or executable bit is not that of the commit."""
    changed, other_bit = set(), set()
    for name in names:
        entry = tree.get(name)
        if entry is None:
            changed.add(name)
            continue
        if entry.mode == _REPOSITORY_MODE:
            continue
        path = project / name
        try:
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                same = entry.is_content(os.fsencode(path.readlink()))
            else:
                same = stat.S_ISREG(mode) and entry.is_content(read_file(path))
        except OSError:
            same = False
        if not same or (stat.S_ISLNK(mode) and entry.mode != _LINK_MODE):
            changed.add(name)
        elif stat.S_ISREG(mode) and bool(mode & stat.S_IXUSR) != (entry.mode == _EXECUTABLE_MODE):
            other_bit.add(name)
    # Some disks know no executable bit.
    if other_bit and _ask_git(project, "config", "--bool", "core.fileMode") != "false":
        changed |= other_bit
    return changed


def _ask_git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository or no answer in time.

    Raises:
        BundleError: a file that git reads is a pipe or a device: git would wait for ever.
    """
    settings = [word for key, value in _NOTHING_RUNS for word in ("-c", f"{key}={value}")]
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith("GIT_")}
    try:
        git = subprocess.Popen(
            ["git", "--no-optional-locks", "--no-pager", *settings, "-C", str(folder), *arguments],
            env=inherited | _ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="surrogateescape",
        )
    except OSError:
        return None
    try:
        return _answer(git, folder)
    finally:
        git.kill()
        git.communicate()


def _answer(git: subprocess.Popen[str], folder: Path) -> str | None:
    for seconds in (PATIENCE_SECONDS, GIT_TIMEOUT_SECONDS - PATIENCE_SECONDS):
        try:
            printed, _ = git.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _require_regular_files(folder)
        else:
            return printed.rstrip("\n") if git.returncode == 0 else None
    return None


def _require_regular_files(project: Path) -> None:
    """Raise if git waits for a file that is none."""
    around = [project, *project.parents]
    read = [path for folder in around for path in (folder / ".gitignore", *_files_of_git(folder))]
    below = (
        Path(folder, ".gitignore") for folder, _, names in os.walk(project) if ".gitignore" in names
    )
    for path in (*read, *below):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BundleError(
                f"{path} is not a regular file: git would wait for it for ever",
                "Remove it.",
            )


def _files_of_git(folder: Path) -> list[Path]:
    names = ("", "HEAD", "config", "index", "packed-refs", "info/exclude", "commondir")
    return [folder / ".git" / name for name in names]
