"""Namespaces: a file system of libraries only, no network, no other process in sight.

`separate` leaves the machine's namespaces, `build_root` makes the small file system; a solution
process then gets a process namespace of its own (referee) and a `private_folder`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from . import libc, seccomp

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _REC, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2
FOLDER = "/sandbox"
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def separate() -> list[str]:
    """Leave the machine's namespaces; children will be in a process namespace of their own.

    Returns the namespaces' names. OSError where the kernel forbids it.
    """
    flags = (
        libc.CLONE_NEWNS
        | libc.CLONE_NEWPID
        | libc.CLONE_NEWNET
        | libc.CLONE_NEWIPC
        | libc.CLONE_NEWUTS
    )
    names = ["mount", "process", "network", "ipc", "host name"]
    if os.geteuid() == 0:
        try:
            libc.call("unshare", flags)
            return names
        except PermissionError:
            pass  # root of a container: an ordinary user's way may still be open
    uid, gid = os.geteuid(), os.getegid()
    libc.call("unshare", flags | libc.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return ["user", *names]


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = None if kind is None else kind.encode()
    libc.call(
        "mount", os.fsencode(source), os.fsencode(target), kind_bytes, flags, options.encode()
    )


def _pivot(new_root: str, old: str) -> None:
    paths = os.fsencode(new_root), os.fsencode(old)
    libc.call("syscall", seccomp.number("pivot_root"), *paths)
    os.chdir("/")


def build_root(readable: Iterable[str], hidden: Iterable[str], libraries: Iterable[str]) -> None:
    """Make a root of which only the given files and folders remain, read-only, and an empty FOLDER.

    The `hidden` folders are empty but for the `libraries` that lie in them.
    """
    real = {path: os.path.realpath(path) for path in [*readable, *hidden, *libraries, *DEVICES]}
    _mount("none", "/", None, _REC | _PRIVATE)
    # The new root grows on any folder that exists. After the first pivot the machine's own files
    # are under /old, also those that lay in that folder.
    folder = os.path.realpath(tempfile.gettempdir())
    _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    Path(folder, "old").mkdir()
    _pivot(folder, f"{folder}/old")
    Path("/new").mkdir()
    _mount("tmpfs", "/new", "tmpfs", _NOSUID | _NODEV, "size=4m,mode=755")

    _bind_all(real[path] for path in [*readable, *DEVICES])
    covers = [f"/new{real[path]}" for path in hidden if Path(f"/new{real[path]}").is_dir()]
    for cover in covers:
        _mount("tmpfs", cover, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    _bind_all(real[path] for path in libraries)
    for path, target in real.items():
        alias = Path(f"/new{path}")
        if not os.path.lexists(alias) and os.path.lexists(f"/new{target}"):
            alias.parent.mkdir(parents=True, exist_ok=True)
            alias.symlink_to(target)

    Path(f"/new{FOLDER}").mkdir()
    if not Path("/new/tmp").exists():  # it does if libraries lie in it
        Path("/new/tmp").symlink_to(FOLDER)
    Path("/new/.old").mkdir()
    _pivot("/new", "/new/.old")
    libc.call("umount2", b"/.old", _DETACH)
    Path("/.old").rmdir()
    for path in ["/", *(cover.removeprefix("/new") for cover in covers)]:
        _mount("none", path, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def _bind_all(paths: Iterable[str]) -> None:
    """Show files and folders of /old, read-only, at the same place of /new."""
    for path in sorted(set(paths)):
        source, target = f"/old{path}", f"/new{path}"
        if os.path.lexists(target):
            continue  # part of a folder that is there already
        if Path(source).is_dir():
            Path(target).mkdir(parents=True)
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).touch()
        _mount(source, target, None, _BIND | _REC)
        # A user namespace may not take away flags that the mount has already.
        kept = os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC)
        devices = 0 if path in DEVICES else _NODEV
        _mount("none", target, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | devices | kept)


def private_folder(owner: int | None, megabytes: int) -> str:
    """A file system in memory on FOLDER that vanishes with this process; returns FOLDER."""
    libc.call("unshare", libc.CLONE_NEWNS)
    options = f"size={megabytes}m,nr_inodes=4096,mode=700"
    if owner is not None:
        options += f",uid={owner},gid={owner}"
    _mount("tmpfs", FOLDER, "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)
    return FOLDER
