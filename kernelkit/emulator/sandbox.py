"""A private Linux namespace that looks like Kaggle's container. Standard library only.

`enter()` moves the calling process into new user, mount, process, IPC and (without internet)
network namespaces, as `unshare -Urmnpi` does. It needs no privileges and works the same for root.
The new root is an empty tmpfs. This machine's folders are bound into it read-only; Kaggle's folders
come on top: /kaggle/{input,working,temp}, a private /tmp, HOME=/root. /kaggle is not created on
this machine.

What may surprise you:
- The process is uid 0 inside, as on Kaggle, and owns only the files of the user who started it.
- Programs in the sandbox cannot mount, because CAP_SYS_ADMIN is removed from the bounding set. This
  keeps the inputs read-only for root too.
- Folders in `hide` (the caller's home, the checkout) are empty inside, except for those in `keep`
  (the interpreter). A notebook that needs the checkout fails here, as it would on Kaggle.
- This machine's folders are read-only. `pip install` writes to a throw-away environment at
  ENVIRONMENT: see `environment`.

Needs Linux 5.12 (mount_setattr) and a kernel that lets this user create user namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# From <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>, <linux/sockios.h>.
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 24, 36
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
SYS_MOUNT_SETATTR = 442  # the same on every architecture: younger than the common numbering
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

DOCKER_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
"""What root keeps in a container by default: chown, kill, setuid …, without CAP_SYS_ADMIN."""
LAST_CAPABILITY = 63
ENVIRONMENT = Path("/environment")
"""The place of the run's own Python environment."""

_long = ctypes.c_long
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class SandboxLayout:
    """What the sandbox shows. All paths are this machine's; `inputs` maps names to folders."""

    root: Path
    """An empty folder that becomes the new root; it stays empty outside the sandbox."""
    inputs: dict[str, Path]
    working: Path
    temp: Path
    tmp: Path
    home: Path
    environment: Path
    hide: tuple[Path, ...]
    keep: tuple[Path, ...]
    internet: bool

    @classmethod
    def from_json(cls, record: Any) -> SandboxLayout:
        """The layout that `json.dumps(asdict(layout), default=os.fspath)` has written."""
        return cls(
            inputs={name: Path(folder) for name, folder in record["inputs"].items()},
            hide=tuple(map(Path, record["hide"])),
            keep=tuple(map(Path, record["keep"])),
            internet=record["internet"],
            **{
                name: Path(record[name])
                for name in ("root", "working", "temp", "tmp", "home", "environment")
            },
        )


def enter(layout: SandboxLayout) -> None:
    """Return as a process inside the sandbox.

    The calling process stays outside and ends with the exit status of the process that returns.
    When that one ends, or its process group is killed, everything inside is killed. The calling
    process must not have other threads. Raises OSError if this machine does not allow a sandbox.
    """
    _unshare(internet=layout.internet)
    _follow(os.fork())
    _build(layout)
    if not layout.internet:
        _loopback_up()
    _drop_capabilities()
    _init(os.fork())


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends; without a sandbox, init would."""
    _call(_libc.prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _follow(child: int) -> None:
    """In the parent: wait for `child` and end as it ended. In the child: return."""
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(_exit_code(status))


def _init(child: int) -> None:
    """In the parent, process 1: reap orphans until `child` ends. In the child: return.

    When process 1 ends, the kernel kills the rest of its namespace.
    """
    if not child:
        return
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(_exit_code(status))


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _unshare(*, internet: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC
    _call(_libc.unshare, flags | (0 if internet else CLONE_NEWNET))
    # An ordinary user can map only its own ids, and its group only after denying setgroups.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _build(layout: SandboxLayout) -> None:
    """Build the new root and enter it."""
    _mount(None, Path("/"), MS_REC | MS_PRIVATE)
    root = layout.root
    _mount("tmpfs", root, 0, "tmpfs", "mode=755")
    _bind_machine(root)
    _hide(root, layout)
    _kaggle_folders(root, layout)
    os.chdir(root)
    pivot_root = _long(SYS_PIVOT_ROOT[os.uname().machine])
    _call(_libc.syscall, pivot_root, b".", b".", what="pivot_root")
    _call(_libc.umount2, b".", MNT_DETACH)
    os.chdir("/kaggle/working")


def _bind_machine(root: Path) -> None:
    """Bind every entry of /, read-only except for devices, and mount a private /proc."""
    own = {"proc", "kaggle", "tmp", "lost+found"}
    for entry in sorted(Path("/").iterdir()):
        target = root / entry.name
        if entry.name in own:
            continue
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif entry.is_dir() or entry.is_file():
            _bind(entry, target)
            if entry.name != "dev":
                _read_only(target)
    _mount("tmpfs", root / "dev/shm", 0, "tmpfs")
    (root / "proc").mkdir()
    _mount("proc", root / "proc", 0, "proc")
    # Files there belong to the real root: a run started by root could change this machine.
    for name in ("bus", "fs", "irq", "sys", "sysrq-trigger"):
        path = root / "proc" / name
        if path.exists():
            _mount(str(path), path, MS_BIND | MS_REC)
            _read_only(path)


def _hide(root: Path, layout: SandboxLayout) -> None:
    """A private /tmp and HOME, empty folders in place of the caller's, the interpreter on top."""
    _bind(layout.environment, _inside(root, ENVIRONMENT))
    _bind(layout.tmp, root / "tmp")
    _bind(layout.home, root / "root")
    for folder in layout.hide:
        _mount("tmpfs", _inside(root, folder), 0, "tmpfs", "mode=755")
    for folder in layout.keep:
        if not _inside(root, folder).exists():
            _bind(folder, _inside(root, folder))
            _read_only(_inside(root, folder))
    for folder in layout.hide:
        _read_only(_inside(root, folder))


def _inside(root: Path, folder: Path) -> Path:
    return root / folder.relative_to("/")


def _kaggle_folders(root: Path, layout: SandboxLayout) -> None:
    kaggle = root / "kaggle"
    _bind(layout.working, kaggle / "working")
    _bind(layout.temp, kaggle / "temp")
    inputs = kaggle / "input"
    inputs.mkdir()
    _mount("tmpfs", inputs, 0, "tmpfs", "mode=755")
    for name, folder in layout.inputs.items():
        _bind(folder, inputs / name)
    _read_only(inputs)


def _bind(source: Path, target: Path) -> None:
    """Show `source`, with everything mounted below it, at `target`."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), target, MS_BIND | MS_REC)


def _mount(
    source: str | None, target: Path, flags: int, kind: str | None = None, options: str = ""
) -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, str(target), kind)]
    _call(_libc.mount, *names, ctypes.c_ulong(flags), options.encode(), what=f"mount {target}")


def _read_only(target: Path) -> None:
    """Recursive. Keeps the other attributes of a mount, which a remount would have to repeat."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (_long(AT_FDCWD), os.fsencode(target), _long(AT_RECURSIVE), attributes)
    size = _long(len(attributes))
    number = _long(SYS_MOUNT_SETATTR)
    _call(_libc.syscall, number, *arguments, size, what=f"make {target} read-only")


def _loopback_up() -> None:
    """Enable `lo`, which is off in a new network namespace: the Jupyter kernel needs it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _drop_capabilities() -> None:
    """For every program started from now on. This process keeps its capabilities."""
    for capability in range(LAST_CAPABILITY + 1):
        if capability not in DOCKER_CAPABILITIES:
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL: unknown here


def _call(function: Any, *arguments: Any, what: str = "") -> None:
    """Call a C function that returns -1 and sets errno on failure. Raises OSError."""
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what or function.__name__}: {os.strerror(number)}")


def folders_to_hide(home: Path, search_path: Iterable[str], keep: Iterable[Path]) -> list[Path]:
    """The caller's folders: the home, and what is importable without being installed.

    The latter is a checkout, an editable install or PYTHONPATH; Kaggle has none of them.
    """
    kept = [folder.resolve() for folder in keep]
    outside = (Path(entry).resolve() for entry in search_path if entry)
    checkout = [p for p in outside if not any(p.is_relative_to(folder) for folder in kept)]
    covered = [Path("/root"), Path("/tmp")]  # they get private folders anyway
    for folder in sorted({home.resolve(), *checkout}):  # sorted: parents first
        inside = any(folder.is_relative_to(other) for other in covered)
        if folder.is_dir() and not inside and not _is_system(folder):
            covered.append(folder)
    return covered[2:]


def interpreter_folders() -> list[Path]:
    """The folders of the running interpreter; the base of a venv may be in a home folder.

    Both under the names by which they are found and under their real ones: the path from the
    `python` of a venv to its base can lead through links in a hidden folder.
    """
    found = {Path(sys.prefix), Path(sys.base_prefix)}
    link = Path(sys.executable)
    while link.is_symlink():
        link = link.parent.resolve() / link.readlink()
        found.add(link.parent)
    return sorted({*found, *(folder.resolve() for folder in found)})


def _is_system(folder: Path) -> bool:
    """Folders that are never hidden, even if they are on the search path."""
    system = {"bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys"}
    top = folder.parts[1:2]
    return not top or top[0] in system or folder in (Path("/usr"), Path("/var"))
