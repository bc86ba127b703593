"""What git knows of a project: the commit, the changes, and which files it ignores.

Paths are strings relative to the project, with forward slashes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec
from pydantic import BaseModel, ConfigDict

from kernelkit.config import is_pattern

GIT_TIMEOUT_SECONDS = 20  # for a repository on a slow disk


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

        self._listed = _listed_files(project)
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


def read_provenance(project: Path, carried: Iterable[str]) -> Provenance:
    """The commit, and whether it has other content for any of the carried files."""
    names = set(carried)
    commit = ask_git(project, "rev-parse", "HEAD")
    if not commit:
        return Provenance(commit=None, dirty=None)
    changes = ask_git(project, "diff", "HEAD", "--name-only", "--relative", "-z")
    tracked = ask_git(project, "ls-files", "-z")
    if changes is None or tracked is None:
        return Provenance(commit=commit, dirty=None)
    changed = {name for name in changes.split("\0") if name}
    folders = {str(PurePosixPath(name).parent) for name in names}
    deleted = any(
        str(PurePosixPath(name).parent) in folders and not (project / name).exists()
        for name in changed
    )
    dirty = deleted or bool(changed & names or names - set(tracked.split("\0")))
    return Provenance(commit=commit, dirty=dirty)


def ask_git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _listed_files(project: Path) -> set[str] | None:
    """The files that git tracks and the new ones that it does not ignore; None without an answer.

    A nested repository is listed as its folder.
    """
    names = ask_git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is None:
        return None
    return {name.rstrip("/") for name in names.split("\0") if name}
