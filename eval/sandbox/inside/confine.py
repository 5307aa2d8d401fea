"""What the processes of a program give up before they see any foreign code."""

from __future__ import annotations

import ctypes
import math
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from . import landlock, libc, seccomp
from .limits import Limits


@dataclass(frozen=True)
class Walls:
    """What holds beside the namespaces, if there are any.

    Attributes:
        limits: of each program.
        own_user: whether the kernel counts no one else's threads as ours.
        landlock: whether file access is by Landlock's list of the next two.
        readable: files and folders that may be read: libraries.
        listable: folders that may be listed, as an import does.
    """

    limits: Limits
    own_user: bool
    landlock: bool
    readable: Sequence[str] = ()
    listable: Sequence[str] = ()


def _limit_resources(walls: Walls) -> None:
    limits, megabyte = walls.limits, 1 << 20
    # A second line: the server ends a program at cpu_s exactly. SIGXCPU, the soft limit's signal,
    # says which limit struck; SIGKILL, the hard one's, would not.
    cpu_s = math.ceil(limits.cpu_s) + 1
    values = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: limits.memory_mb * megabyte,
        resource.RLIMIT_FSIZE: limits.file_mb * megabyte,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_STACK: 8 * megabyte,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if walls.own_user:
        values[resource.RLIMIT_NPROC] = limits.threads
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        spare = 1 if kind == resource.RLIMIT_CPU and bounded == value else 0
        resource.setrlimit(kind, (bounded, bounded + spare))


def confine(walls: Walls, folder: str) -> None:
    """Give up, for good, all that the walls and the limits say; `folder` stays writable."""
    libc.call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)  # no other process can look into this one
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if walls.landlock:
        landlock.restrict(walls.readable, walls.listable, [folder])
    _limit_resources(walls)
    seccomp.install()
