"""What a solution process gives up before it sees any foreign code."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import landlock, libc, seccomp
from .limits import Limits

# Users that no one else has: the range systemd keeps for dynamic users.
_FIRST_UID, _UIDS = 61184, 4336


@dataclass(frozen=True)
class Plan:
    """How solution processes are isolated. What is promised here is in force or nothing is run.

    Attributes:
        namespaces: names of the namespaces that the server and its programs are in.
        landlock: whether file access is by Landlock's list.
        uid: the user (and group) that programs run as, None for the caller's.
        readable: files and folders that Landlock lets programs read: libraries.
        listable: folders that it lets them list, as an import does.
    """

    namespaces: tuple[str, ...]
    landlock: bool
    uid: int | None
    readable: tuple[str, ...]
    listable: tuple[str, ...]


def spare_uid(needed: Iterable[str], new_root: bool) -> int | None:
    """A user for the programs of this server if we may choose, that is, if we are root.

    Without a new root, that user must be able to reach what is needed in the machine's own tree.
    """
    if os.geteuid() != 0:
        return None
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    first_unmapped = max(int(first) + int(count) for first, _, count in map(str.split, lines))
    if first_unmapped < _FIRST_UID + _UIDS:
        return None
    folders = {folder for path in needed for folder in Path(path).parents}
    if not new_root and not all(folder.stat().st_mode & stat.S_IXOTH for folder in folders):
        return None
    return _FIRST_UID + os.getpid() % _UIDS


def drop_privileges(uid: int | None) -> None:
    """Become `uid`, if given, and hold no capability; the process cannot be looked into."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc.call("capset", header, (ctypes.c_uint32 * 6)())
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def limit_resources(limits: Limits, own_uid: bool) -> None:
    """Set the limits; that on threads only where the kernel counts no one else's (`own_uid`)."""
    megabyte = 1 << 20
    values = {
        # A second line: the referee ends a program at cpu_s exactly.
        resource.RLIMIT_CPU: math.ceil(limits.cpu_s) + 1,
        resource.RLIMIT_AS: limits.memory_mb * megabyte,
        resource.RLIMIT_FSIZE: limits.file_mb * megabyte,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_STACK: 8 * megabyte,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if own_uid:
        values[resource.RLIMIT_NPROC] = limits.threads
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))


def confine(plan: Plan, limits: Limits, folder: str) -> None:
    """Give up, for good, all that the plan and the limits say; `folder` stays writable."""
    drop_privileges(plan.uid)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if plan.landlock:
        landlock.restrict(plan.readable, plan.listable, [folder])
    limit_resources(limits, own_uid=plan.uid is not None or "user" in plan.namespaces)
    seccomp.install()
