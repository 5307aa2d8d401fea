"""Landlock: file access by list, for kernels that refuse us namespaces.

Every open, create and remove outside the list fails with EACCES, as does reaching into any
process outside (`/proc/<pid>/mem`, ptrace). That a path exists can still be found out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from . import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def available() -> bool:
    try:
        return libc.call("syscall", _CREATE_RULESET, None, 0, 1) >= 1
    except OSError:
        return False


def outside(paths: Iterable[str], hidden: Iterable[str]) -> list[str]:
    """The paths without the hidden folders in them: for what a rule cannot take back."""
    found = []
    for path in paths:
        if path in hidden or not Path(path).exists():  # a dangling symbolic link
            continue
        if any(folder.startswith(f"{path}/") for folder in hidden):
            found += outside((str(child) for child in Path(path).iterdir()), hidden)
        else:
            found.append(path)
    return found


def restrict(readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> None:
    """Allow this process no file but those beneath the given paths, for good.

    `listable` folders may be listed (all the way down) but their files not be read.
    """
    version = libc.call("syscall", _CREATE_RULESET, None, 0, 1)
    everything = _ALL_BY_ABI[min(version, max(_ALL_BY_ABI))]
    attributes = _Ruleset(everything)
    size = ctypes.sizeof(attributes)
    ruleset = libc.call("syscall", _CREATE_RULESET, attributes, size, 0)
    for paths, access in (
        (readable, _READ_FILE | _READ_DIR),
        (listable, _READ_DIR),
        (writable, everything),
    ):
        for path in paths:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            # A right that is about folders may not be given on a file.
            allowed = access if Path(path).is_dir() else access & ~_READ_DIR
            libc.call("syscall", _ADD_RULE, ruleset, 1, _PathBeneath(allowed, fd), 0)
            os.close(fd)
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.call("syscall", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
